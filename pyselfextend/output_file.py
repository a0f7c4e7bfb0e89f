"""Writes a file that the user names: whole or not at all, and whatever it is that has the name."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

__all__ = ["check_output", "is_stream", "write_output"]


def is_stream(path: Path) -> bool:
    """Whether what is written there goes on to somewhere else: a device, a FIFO, /dev/stdout."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False


def check_output(path: Path) -> None:
    """Say now what could not be written later.

    Raises:
        OSError: it is a folder or a socket, or the folder or the file must not be written to.
    """
    target = _target(path)
    if target.is_dir():
        raise IsADirectoryError("it is a folder")
    if is_stream(path):
        if stat.S_ISSOCK(path.stat().st_mode):
            raise OSError("it is a socket")
    elif not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent}")
    elif not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"the folder {target.parent} must not be written to")
    elif _is_our_output(path):
        raise OSError("it is what the tables are printed into")
    if target.exists() and not os.access(path, os.W_OK):
        raise PermissionError("it must not be written to")


def write_output(path: Path, content: bytes) -> None:
    """Write a file. What was there before stays until all of it is written.

    A symbolic link stays one: the file that it names is written. A device gets the content as it comes, and so does
    a FIFO, as soon as somebody reads it.

    Raises:
        OSError: it cannot be written. A file that was there is as it was.
    """
    if is_stream(path):
        with path.open("wb", buffering=0) as stream:
            rest = memoryview(content)
            while rest:
                rest = rest[stream.write(rest) :]
        return
    target = _target(path)
    new = target.with_name(f".{secrets.token_hex(8)}.new")
    try:
        with new.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            new.chmod(stat.S_IMODE(target.stat().st_mode))
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)


def _target(path: Path) -> Path:
    """The file that symbolic links lead to."""
    return Path(os.path.realpath(path))


def _is_our_output(path: Path) -> bool:
    """Whether it is the file that this process's stdout or stderr goes into, for example /dev/stdout."""
    return any(os.path.samestat(path.stat(), os.fstat(number)) for number in (1, 2)) if path.exists() else False
