"""Ctrl-C while a command starts or ends: exit status 130, without a traceback.

The package imports this before all else, as the imports are most of a start. It does something only in a process of
the package's own commands; in every other program the handler is that program's.
"""

import os
import sys

__all__ = ["EXIT_INTERRUPTED", "leave_at_once", "raise_again"]

EXIT_INTERRUPTED = 130  # as shells: 128 + SIGINT

#: How the commands are called with ``python -m``.
MODULES = (" -m pyselfextend ", " -m pyselfextend.lm_eval ")


def _is_own_process() -> bool:
    program: str = (getattr(sys, "argv", None) or [""])[0]  # a program that embeds Python may have none
    if program == "-m":  # Python imports the packages above the module that it is to run
        return any(module in f" {' '.join(sys.orig_argv)} " for module in MODULES)
    return os.path.splitext(os.path.basename(program))[0] == "pyselfextend"


def leave_at_once() -> None:
    """Let Ctrl-C end the process from now on, if it is one of the package's commands: there is nothing to tidy up."""
    if IS_OWN_PROCESS and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)  # where it is ignored, as behind a shell's &, that stays so


def raise_again() -> None:
    """Let Ctrl-C raise ``KeyboardInterrupt`` again, as the work of a command needs it."""
    if IS_OWN_PROCESS and signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: object) -> None:
    os._exit(EXIT_INTERRUPTED)


IS_OWN_PROCESS = _is_own_process()

try:
    import signal

    leave_at_once()
except KeyboardInterrupt:
    if not IS_OWN_PROCESS:
        raise
    os._exit(EXIT_INTERRUPTED)
