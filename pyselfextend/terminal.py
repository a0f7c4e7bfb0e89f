"""What the command line does about its terminal and its streams, whatever they are. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
import unicodedata
from typing import TextIO

__all__ = ["broken_pipes", "discard", "prepare", "printable", "say", "unwritable"]

N_DIGITS = 4  # of a number of columns or lines; no terminal has more, and padding to a mistaken one takes memory

#: Characters that are no letters, but harmless: spaces, and joiners of scripts and of emoji.
HARMLESS = "\u200c\u200d"


def printable(text: str, lines: bool = True) -> str:
    r"""Text without what a terminal would obey: control characters, and all else that cannot be seen, as ``\x1b``.

    Args:
        lines: whether line breaks stay.
    """
    return "".join(c if _is_harmless(c) or (lines and c == "\n") else _escaped(c) for c in text)


def _is_harmless(character: str) -> bool:
    return character.isprintable() or character in HARMLESS or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file's name that is no text
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def prepare() -> None:
    """Make the process's streams and its idea of the terminal such that what is printed cannot fail for them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file to be opened would get its number, and what a library prints
            with contextlib.suppress(OSError):
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for stream in _streams():
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the name of a model may not be ASCII where the terminal is
    for name in ("COLUMNS", "LINES"):
        value = os.environ.get(name, "")
        if not (value.isascii() and value.isdecimal() and len(value) <= N_DIGITS and int(value) > 0):
            os.environ.pop(name, None)  # as if it were not set: the terminal's own size, or 80 columns


def say(text: str) -> None:
    """Write a line to stderr, if that can be written."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


def broken_pipes() -> list[TextIO]:
    """The streams whose reader is gone."""
    return [stream for stream in _streams() if _is_closed_pipe(stream)]


def unwritable() -> list[TextIO]:
    """The streams that do not take what is still in their buffers: on a full disk, for example."""
    found = []
    for stream in _streams():
        try:
            stream.flush()
        except OSError:
            found.append(stream)
    return found


def discard(stream: TextIO) -> None:
    """Throw away what a stream still holds, and what it is given from now on: Python would complain when it ends."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _streams() -> list[TextIO]:
    return [stream for stream in (sys.stdout, sys.stderr) if stream is not None]


def _is_closed_pipe(stream: TextIO) -> bool:
    """Whether nobody reads what is written there."""
    try:
        poll = select.poll()
        poll.register(stream, select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):  # it has no descriptor
        return False
