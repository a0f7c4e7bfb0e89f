"""The options that ``serve`` and ``chat`` have in common."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from ..config import AUTO, SETTING_MAX
from ..errors import ServerError
from ..maps import MAPS, SELF_EXTEND
from ._command import option
from ._options import GgufFile, GroupSize, Integer, window

__all__ = ["OTHERS", "context_options", "keep", "keep_options", "port", "split_files"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

OTHERS = "All other options are handed on to llama.cpp's program, which lists them: pyselfextend serve MODEL -- --help."


class FirstFile(GgufFile):
    """The path of a model file, before options that are somebody else's: it could not be told from their values."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path."""
        if str(value).startswith("-"):
            self.fail(f"{value} stands where the model file belongs, before llama.cpp's own options", param, ctx)
        return super().convert(value, param, ctx)


def context_options(function: _Function) -> _Function:
    """The model, how long its context is and how it is extended, and what is handed on."""
    for decorate in (
        option(
            "--ga-map",
            type=click.Choice(list(MAPS)),
            metavar="MAP",
            default=SELF_EXTEND.name,
            section="Context",
            help=f"The map of positions: {', '.join(MAPS)}.",
        ),
        window("Neighbour window in tokens.", "Context"),
        option(
            "--ga-n",
            type=GroupSize(1),
            default=AUTO,
            metavar="G",
            section="Context",
            help="Group size; auto follows the length of the text, 1 is the plain model.",
        ),
        option(
            "--ctx",
            type=Integer(1, SETTING_MAX),
            metavar="N",
            section="Context",
            show_default="up to four times the trained window, as memory allows, and 32768",
            help="Tokens of a chat with its answers.",
        ),
        click.argument("options", nargs=-1, type=click.UNPROCESSED),
        click.argument("model", type=FirstFile()),
    ):
        function = decorate(function)
    return function


def port(default: int, what: str) -> Callable[[_Function], _Function]:
    """The port."""
    return option("--port", type=Integer(0, 65535), default=default, metavar="N", section="Server", help=what)


def keep(function: _Function) -> _Function:
    """Where slots are kept from one run to the next."""
    return option(
        "--keep",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="FOLDER",
        section="Server",
        help="Keep there what has been read when it ends, and go on from it the next time.",
    )(function)


def keep_options(folder: Path | None) -> list[str]:
    """For ``llama-server``. The folder is there afterwards.

    Raises:
        ServerError: it cannot be made.
    """
    if folder is None:
        return []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServerError(f"{folder} cannot be made: {error.strerror}") from error
    return ["--slot-save-path", os.fspath(folder), "--keep-slots"]


def split_files(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files that stand before the first option, and what follows.

    Raises:
        click.UsageError: one of them cannot be read, or is no text.
    """
    n_files = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    files = [Path(word) for word in words[:n_files]]
    for file in files:
        try:
            file.read_text(encoding="utf-8")
        except OSError as error:
            raise click.UsageError(f"{file} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise click.UsageError(f"{file} is no text in UTF-8; the page reads PDF") from error
    return files, list(words[n_files:])
