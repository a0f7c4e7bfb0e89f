"""The command line of the stress test."""

from __future__ import annotations

import argparse
import faulthandler
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import architectures

from .run import Limits, StressError, run
from .subject import Subject
from .trace import Trace


def main() -> int:
    parser = argparse.ArgumentParser(prog="stress", description="Random operations on instances of Llama, checked.")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (%(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="of all that is drawn (one that is drawn)")
    parser.add_argument("--threads", type=int, default=1, help="threads, each with instances of its own (%(default)s)")
    parser.add_argument("--first-lap", type=int, default=0, metavar="LAP", help="number of the first lap (%(default)s)")
    parser.add_argument("--laps", type=int, default=None, help="how many laps, instead of --seconds")
    parser.add_argument("--interrupts", action="store_true", help="Ctrl-C at any moment; with one thread")
    parser.add_argument("--tell", action="store_true", help="print each operation before it is done")
    args = parser.parse_args()
    if args.interrupts and args.threads != 1:
        parser.error("--interrupts takes one thread: Python interrupts the main thread alone")
    faulthandler.enable()
    Trace.tells, Subject.has_interrupts = args.tell, args.interrupts
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    limits = Limits(args.seconds if args.laps is None else None, args.first_lap, args.laps)
    print(f"seed {seed}, {args.threads} threads", flush=True)
    with tempfile.TemporaryDirectory(prefix="stress-") as folder:
        models = architectures.make_tiny().make_all(Path(folder), ["llama", "gemma3"])
        try:
            summary = run(models, seed, args.threads, limits, _progress())
        except StressError as error:
            print(error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
    print(summary)
    return 0


def _progress() -> Callable[[str], None]:
    """Prints a line every ten seconds."""
    last = time.monotonic()

    def say(line: str) -> None:
        nonlocal last
        if time.monotonic() - last > 10:
            last = time.monotonic()
            print(line, flush=True)

    return say


if __name__ == "__main__":
    sys.exit(main())
