"""The command ``pyselfextend``: finds the module of a command, runs it, and turns exceptions into an exit status."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from . import __version__
from .errors import SelfExtendError

#: A command is a module in ``commands`` with ``main(arguments) -> int``; it is imported when it is called.
COMMANDS = {
    "demo": "show a model answering from a text that is longer than its trained window",
}

EXIT_ERROR = 2  # as argparse
EXIT_INTERRUPTED = 130  # as shells: 128 + SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status."""
    args = _parser().parse_args(arguments)
    try:
        return int(importlib.import_module(f".commands.{args.command}", __package__).main(args.arguments))
    except SelfExtendError as error:
        print(f"pyselfextend {args.command}: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print(f"pyselfextend {args.command}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="pyselfextend",
        description="Longer contexts for language models at inference time: exact SelfExtend inside llama.cpp.",
        epilog="commands:\n"
        + "\n".join(f"  {name:{width}}  {about}" for name, about in COMMANDS.items())
        + "\n\n'pyselfextend COMMAND --help' describes one of them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pyselfextend {__version__}")
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help=f"one of: {', '.join(COMMANDS)}")
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help="what the command takes")
    return parser
