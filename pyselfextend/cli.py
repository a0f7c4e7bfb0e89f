"""The command ``pyselfextend``: calls a command and turns what it raises into a line and an exit status."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from . import _interrupt, terminal
from ._interrupt import EXIT_INTERRUPTED
from .commands._command import COMMAND_PATH, COMPLETE_VARIABLE, EXIT_ERROR, LazyGroup
from .errors import BenchError, SelfExtendError

__all__ = ["COMMANDS", "main", "program"]

NAME = "pyselfextend"

#: A command is ``command`` in the module of its name in ``commands``, which is imported when it is called.
COMMANDS = {
    "chat": "Chat with a model about texts longer than it was trained on.",
    "serve": "Serve a model to programs that speak OpenAI's protocol.",
    "demo": "Show a model answering from beyond its trained window.",
    "plan": "Say which settings reach a length, and what they take.",
    "eval": "Measure how good models are at long texts.",
    "tune": "Measure which group size a model reads best with.",
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
    terminal.prepare()
    meta: dict[str, Any] = {}
    try:
        _interrupt.raise_again()
        try:
            if arguments is None and (request := os.environ.get(COMPLETE_VARIABLE)):
                from .commands.completion import answer

                status = answer(program, NAME, request)
            else:
                status = _run(sys.argv[1:] if arguments is None else arguments, meta)
        finally:
            _interrupt.leave_at_once()
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except BrokenPipeError:
        if not (broken := terminal.broken_pipes()):
            raise
        for stream in broken:
            terminal.discard(stream)
        return EXIT_CLOSED_PIPE
    except MemoryError:
        terminal.say(f"{meta.get(COMMAND_PATH, NAME)}: there is not enough memory")
        return EXIT_ERROR
    except OSError as error:
        return _cannot_go_on(error, meta)
    except KeyboardInterrupt:
        return _interrupted(meta)


def _run(arguments: Sequence[str], meta: dict[str, Any]) -> int:
    """Call a command; ``meta`` is given its path, see ``COMMAND_PATH``. Returns the exit status."""
    try:
        with program.make_context(NAME, list(arguments)) as context:
            try:
                return int(program.invoke(context) or 0)
            finally:
                meta |= context.meta
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show(shown := io.StringIO())
        terminal.say(terminal.printable(shown.getvalue().rstrip("\n")))
        return error.exit_code
    except SelfExtendError as error:
        lines = isinstance(error, BenchError)  # which ends with what a worker wrote
        terminal.say(f"{meta.get(COMMAND_PATH, NAME)}: {terminal.printable(str(error), lines)}")
        return EXIT_ERROR
    except click.Abort:
        return _interrupted(meta)


def _cannot_go_on(error: OSError, meta: dict[str, Any]) -> int:
    """The system has refused something that no command expects, or what is printed cannot be written."""
    message = error.strerror or str(error)
    if streams := terminal.unwritable():
        message = f"its output cannot be written: {message}"
    elif error.filename is not None:
        message = f"{os.fsdecode(error.filename)}: {message}"
    for stream in streams:
        terminal.discard(stream)
    terminal.say(f"{meta.get(COMMAND_PATH, NAME)}: {terminal.printable(message, lines=False)}")
    return EXIT_ERROR


def _interrupted(meta: dict[str, Any]) -> int:
    newline = "\n" if sys.stderr is not None and sys.stderr.isatty() else ""  # after ^C, or half a line
    terminal.say(f"{newline}{meta.get(COMMAND_PATH, NAME)}: interrupted")
    return EXIT_INTERRUPTED
