"""Runs the command line so that Ctrl-C reaches it: where tests run in the background, SIGINT is ignored."""

from __future__ import annotations

import signal
import sys

from pyselfextend.cli import main

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
