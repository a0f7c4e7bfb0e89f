"""Files of a published benchmark: JSON Lines in a folder that the user names. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import EvalError

__all__ = ["Record", "find_files", "read_records"]


@dataclass(frozen=True)
class Record:
    """A line of a file. What it should hold and does not raises an ``EvalError`` that names file and line."""

    path: Path
    line: int
    """From 1."""

    values: Mapping[str, Any]

    def text(self, field: str) -> str:
        """A field that is a text."""
        value = self.values.get(field)
        if not _is_text(value):
            raise self.error(f"{field!r} must be a text")
        return str(value)

    def texts(self, field: str) -> tuple[str, ...]:
        """A field that is a list of texts, at least one."""
        value = self.values.get(field)
        if not isinstance(value, list) or not value or not all(map(_is_text, value)):
            raise self.error(f"{field!r} must be a list of texts")
        return tuple(value)

    def integer(self, field: str) -> int:
        """A field that is an integer."""
        value = self.values.get(field)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(f"{field!r} must be an integer")
        return value

    def error(self, what: str) -> EvalError:
        """An error of this line."""
        return EvalError(f"{self.path}, line {self.line}: {what}")


def find_files(
    folder: Path, benchmark: str, names: Sequence[str], wanted: Sequence[str], inside: Sequence[str]
) -> dict[str, Path]:
    """The files NAME.jsonl of some datasets.

    Args:
        benchmark: its name, for error messages.
        names: all datasets that there are.
        wanted: those that are looked for; if there are none of them, all that the folder holds.
        inside: folders in the folder, in which files are looked for as well.

    Returns:
        Paths by dataset, in the order of ``names``.

    Raises:
        EvalError: the folder is missing, or a dataset that is wanted; or there is none at all.
    """
    if unknown := [name for name in wanted if name not in names]:
        raise EvalError(f"{benchmark} has no dataset {unknown[0]!r}; it has {', '.join(names)}")
    if not folder.is_dir():
        raise EvalError(f"{folder} is not a folder; it must hold the published files of {benchmark}")
    places = [folder, *(folder / name for name in inside)]
    found: dict[str, Path] = {}
    for name in names:
        path = next((file for place in places if (file := place / f"{name}.jsonl").is_file()), None)
        if path is not None and (not wanted or name in wanted):
            found[name] = path
        elif name in wanted:
            raise EvalError(f"{folder} holds no file {name}.jsonl, {_nor(inside)}")
    if not found:
        raise EvalError(f"{folder} holds none of {benchmark}'s files, such as {names[0]}.jsonl, {_nor(inside)}")
    return found


def _nor(inside: Sequence[str]) -> str:
    *others, last = inside
    return f"nor does {' or '.join([', '.join(others), last] if others else [last])} in it"


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file, one after another; blank lines are left out.

    Raises:
        EvalError: the file cannot be read, holds none, or a line is no JSON object.
    """
    empty = True
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _record(path, number, line)
                    empty = False
    except OSError as error:
        raise EvalError(f"{path} cannot be read: {error.strerror}") from None
    if empty:
        raise EvalError(f"{path} is empty; each line must be a record")


def _is_text(value: object) -> bool:
    """Whether it is a text that can be written in UTF-8; JSON can escape halves of characters."""
    return isinstance(value, str) and value == value.encode(errors="ignore").decode()


def _record(path: Path, number: int, line: bytes) -> Record:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise EvalError(f"{path}, line {number}: this is no JSON object; each line must be one")
    return Record(path, number, values)
