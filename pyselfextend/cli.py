"""The command ``pyselfextend``: calls a command and turns what it raises into a line and an exit status."""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import click

from .commands._command import COMMAND_PATH, COMPLETE_VARIABLE, EXIT_ERROR, EXIT_INTERRUPTED, LazyGroup
from .errors import SelfExtendError

__all__ = ["COMMANDS", "main", "program"]

NAME = "pyselfextend"

#: A command is ``command`` in the module of its name in ``commands``, which is imported when it is called.
COMMANDS = {
    "demo": "Show a model answering from beyond its trained window.",
    "plan": "Say which settings reach a length, and what they take.",
    "eval": "Measure how good models are at long texts.",
    "bench": "Measure how fast a model reads and writes, and its memory.",
    "doctor": "Say what is built in, and whether a model is supported.",
    "completion": "Print a script that makes a shell complete what is typed.",
}

EXIT_CLOSED_PIPE = 141  # as shells: 128 + SIGPIPE


@click.group(
    NAME,
    cls=LazyGroup,
    lazy={name: (f"{__package__}.commands.{name}", about) for name, about in COMMANDS.items()},
    examples=[f"{NAME} demo", f"{NAME} plan model.gguf --ctx 32768", f"{NAME} eval --help"],
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(package_name=NAME, message="%(prog)s %(version)s")
def program() -> None:
    """Longer contexts for language models at inference time: exact SelfExtend inside llama.cpp.

    Each command describes itself with --help.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status.

    Args:
        arguments: what follows the name of the program. None: those of the process, which may be a shell's request for
            completions as well.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # the name of a model may not be ASCII where the terminal is
    try:
        if arguments is None and (request := os.environ.get(COMPLETE_VARIABLE)):
            from .commands.completion import answer

            status = answer(program, NAME, request)
        else:
            status = _run(sys.argv[1:] if arguments is None else arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except BrokenPipeError:
        broken = [stream for stream in (sys.stdout, sys.stderr) if stream is not None and _is_closed_pipe(stream)]
        if not broken:
            raise
        for stream in broken:  # what is left in its buffer has to go somewhere when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return EXIT_CLOSED_PIPE


def _run(arguments: Sequence[str]) -> int:
    meta: dict[str, Any] = {}
    try:
        with program.make_context(NAME, list(arguments)) as context:
            meta = context.meta
            return int(program.invoke(context) or 0)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except SelfExtendError as error:
        click.echo(f"{meta.get(COMMAND_PATH, NAME)}: {error}", err=True)
        return EXIT_ERROR
    except (KeyboardInterrupt, click.Abort):
        newline = "\n" if sys.stderr is not None and sys.stderr.isatty() else ""  # after ^C, or half a line
        click.echo(f"{newline}{meta.get(COMMAND_PATH, NAME)}: interrupted", err=True)
        return EXIT_INTERRUPTED


def _is_closed_pipe(stream: TextIO) -> bool:
    """Whether nobody reads what is written there."""
    try:
        poll = select.poll()
        poll.register(stream, select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):  # it has no descriptor
        return False
