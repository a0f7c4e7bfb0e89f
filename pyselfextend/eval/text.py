"""The prose that tasks are made of: a file of the user's, or what Python itself ships. Pure: imports nothing native."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from ..errors import EvalError
from ..prompts import docstrings, prose
from .cases import Tokenizer, Tokens

__all__ = ["Text", "default_text", "read_text"]


@dataclass(frozen=True)
class Text:
    """Paragraphs, and what they are called in a report."""

    name: str
    paragraphs: tuple[str, ...]
    more: Callable[[], Iterable[str]] | None = field(default=None, repr=False)
    """Paragraphs behind these, which take a while to get."""

    def tokens(self, tokenizer: Tokenizer, n_tokens: int, *, repeat: bool = False) -> Tokens:
        """The first ``n_tokens`` tokens of the text, a blank line between paragraphs.

        Args:
            repeat: whether the text starts again from its first paragraph where it is too short.

        Raises:
            EvalError: it is too short.
        """
        found: list[int] = []
        repeat = repeat and any(self.paragraphs)
        while len(found) < n_tokens:
            for paragraph in chain(self.paragraphs, () if repeat or self.more is None else self.more()):
                found += tokenizer.plain(paragraph + "\n\n")
                if len(found) >= n_tokens:
                    break
            if not repeat:
                break
        if len(found) < n_tokens:
            raise EvalError(
                f"{self.name} has {len(found)} tokens for this model, {n_tokens} are needed: give a longer text, "
                "or shorter lengths"
            )
        return tuple(found[:n_tokens])


def default_text() -> Text:
    """English prose that comes with Python: its language reference, then the docstrings of its standard library.

    Raises:
        DemoError: this Python comes without its language reference.
    """
    return Text("the documentation that comes with Python", tuple(prose()), docstrings)


def read_text(path: Path) -> Text:
    """A UTF-8 text file; blank lines separate its paragraphs, line breaks within them are spaces.

    Raises:
        EvalError: it cannot be read, is not UTF-8, or is empty.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise EvalError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise EvalError(f"{path} is not a UTF-8 text") from None
    paragraphs = _paragraphs(re.split(r"\n\s*\n", content))
    if not paragraphs:
        raise EvalError(f"{path} holds no text")
    return Text(path.name, paragraphs)


def _paragraphs(blocks: Sequence[str]) -> tuple[str, ...]:
    return tuple(paragraph for block in blocks if (paragraph := " ".join(block.split())))
