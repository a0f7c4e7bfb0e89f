"""Types of what is given on the command line, and the options that several commands have.

Help texts are sentences, as click's own are. Errors say what was given and what is allowed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
from click.shell_completion import CompletionItem

from ..config import AUTO, SETTING_MAX
from ..machine import n_cores
from ..output_file import check_output
from ._command import option

__all__ = [
    "FRACTION",
    "GGUF_FILE",
    "LENGTH_MAX",
    "CommaSeparated",
    "GgufFile",
    "GroupSize",
    "Integer",
    "NamedPath",
    "Real",
    "output",
    "prose",
    "seed",
    "threads",
    "window",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: The longest text in tokens, more than any model was trained on: a mistaken number would take all memory.
LENGTH_MAX = 2**24

N_THREADS_MAX = 512  # GGML_MAX_N_THREADS


class _Number(click.ParamType[Any]):
    """A number from ``low`` to ``high``, both allowed; None is no bound. ``note`` ends the error of one outside."""

    kind: Callable[[Any], Any]
    article: str

    def __init__(self, low: float | None = None, high: float | None = None, note: str = "") -> None:
        self.low, self.high, self.note = low, high, note

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read and check it."""
        try:
            number = self.kind(value)
            if not math.isfinite(number):
                raise ValueError
        except (OverflowError, ValueError):
            self.fail(f"{value!r} is not {self.article} {self.name}", param, ctx)
        if (self.low is None or number >= self.low) and (self.high is None or number <= self.high):
            return number
        if self.low is None:
            allowed = f"at most {self.high}"
        elif self.high is None or (number < self.low and self.high == SETTING_MAX):  # where that is only a formality
            allowed = f"at least {self.low}"
        else:
            allowed = f"between {self.low} and {self.high}"
        self.fail(f"{value} is not {allowed}{self.note and f'; {self.note}'}", param, ctx)


class Integer(_Number):
    """An integer. The engine's integers have 32 bits, so that is the default of ``high``."""

    name, kind, article = "integer", int, "an"

    def __init__(self, low: int | None = None, high: int | None = SETTING_MAX, note: str = "") -> None:
        super().__init__(low, high, note)


class GroupSize(Integer):
    """A group size, or ``auto``, which follows the length."""

    name = "integer or auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | Literal["auto"]:
        """Read and check it."""
        return value if value == AUTO else super().convert(value, param, ctx)  # type: ignore[no-any-return]

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """The word."""
        return [CompletionItem(AUTO)] if AUTO.startswith(incomplete) else []


class Real(_Number):
    """A number, not infinite."""

    name, kind, article = "number", float, "a"


class CommaSeparated(click.ParamType[tuple[Any, ...]]):
    """Several of a type with commas between them, as a tuple. Defaults are text, so that help shows them as typed."""

    def __init__(self, item: click.ParamType[Any]) -> None:
        self.item = item
        self.name = f"{item.name} list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Read each."""
        if not isinstance(value, str):
            return tuple(value)
        items = [item.strip() for item in value.split(",")]
        if not all(items):
            self.fail(f"{value!r} has an empty item", param, ctx)
        return tuple(self.item.convert(item, param, ctx) for item in items)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Complete the last one, with one that is not there yet."""
        before, comma, last = incomplete.rpartition(",")
        return [
            CompletionItem(before + comma + item.value, type="list", help=item.help)
            for item in self.item.shell_complete(ctx, param, last)
            if item.value not in before.split(",")
        ]


class GgufFile(click.ParamType[Path]):
    """The path of a model file, which completes to folders and ``*.gguf``. Whether it is there is for others to say."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path. ``~`` is understood, since shells leave it alone in ``--model=~/model.gguf``."""
        if not value:  # which would be the folder that one is in
            self.fail("the name is empty; it must be that of a GGUF file", param, ctx)
        return Path(os.path.expanduser(value))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Left to what the shell has for it (``completion``)."""
        return [CompletionItem(incomplete, type="gguf")]


class NamedPath(click.Path[Path]):
    """The path of a file or a folder. An empty one, such as a variable that is not set, is not the folder one is in."""

    def __init__(self, file_okay: bool = True, dir_okay: bool = True) -> None:
        super().__init__(file_okay=file_okay, dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Check it."""
        if not value:
            self.fail("the name is empty", param, ctx)
        return super().convert(value, param, ctx)


#: From 0 to 1.
FRACTION = Real(0, 1)

GGUF_FILE = GgufFile()


def threads(section: str = "Options") -> Callable[[_Function], _Function]:
    """How many threads compute."""
    return option(
        "--threads",
        type=Integer(1, N_THREADS_MAX),
        default=n_cores(),
        show_default=f"all cores: {n_cores()}",
        metavar="T",
        section=section,
        help="Threads.",
    )


def seed(what: str, section: str = "Options") -> Callable[[_Function], _Function]:
    """The seed of what a command draws at random."""
    return option("--seed", type=Integer(None, None), default=1, metavar="S", section=section, help=f"Chooses {what}.")


def window(what: str, section: str = "Options") -> Callable[[_Function], _Function]:
    """The neighbour window."""
    default = "1/8 of the trained window, at most 2048"
    return option("--ga-w", type=Integer(0), metavar="W", section=section, show_default=default, help=what)


def prose(section: str) -> Callable[[_Function], _Function]:
    """The prose that texts are made of; hands on a ``Text``."""

    def read(ctx: click.Context, param: click.Parameter, value: Path | None) -> Any:
        from ..eval.text import default_text, read_text

        if ctx.resilient_parsing:
            return None
        return default_text() if value is None else read_text(value)

    return option(
        "--text", type=NamedPath(dir_okay=False), metavar="FILE", section=section, callback=read,
        help="A UTF-8 text.  [default: the documentation that comes with Python]",
    )  # fmt: skip


def output(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    """A callback of options that name a file: say now what cannot be written later."""
    if path is not None:
        try:
            check_output(path)
        except OSError as error:
            raise click.BadParameter(f"{path} cannot be written: {error.strerror or error}", ctx, param) from None
    return path
