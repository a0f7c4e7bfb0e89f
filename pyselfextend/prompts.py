"""The demo's prompt: a long text with a fact placed early in it, and a question about the fact. Imports nothing native.

The task is passkey retrieval (Mohtashami and Jaggi, arXiv 2305.16300), which the SelfExtend paper tests with as well,
but in real prose instead of one repeated sentence. The prose is what Python itself ships: the language reference behind
``help()``. The fact speaks of a lighthouse, because "pass" and "key" have meanings of their own there.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import DemoError

__all__ = ["Fact", "Tokenize", "build_prompt", "docstrings", "prose"]

#: Turns text into tokens. The second argument says whether special tokens, such as those of a chat template, count.
Tokenize = Callable[[str, bool], list[int]]


def prose() -> list[str]:
    """Paragraphs of English prose from the language reference that comes with Python, in its own order, each once.

    Raises:
        DemoError: this Python comes without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DemoError("this Python comes without its language reference (the module pydoc_data.topics)") from error

    paragraphs: dict[str, None] = {}  # an ordered set: topics share paragraphs
    for name in sorted(topics):
        for block in topics[name].split("\n\n"):
            paragraph = " ".join(block.split())
            if _is_prose(paragraph):
                paragraphs[paragraph] = None
    return list(paragraphs)


def docstrings() -> Iterator[str]:
    """Paragraphs of English prose from the docstrings of Python's standard library, module by module, each once.

    The modules are read, not imported. All of them take some seconds.
    """
    library = Path(sysconfig.get_path("stdlib"))
    seen = set()
    for path in sorted(library.rglob("*.py")):
        folders = path.relative_to(library).parts[:-1]
        if {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages"} & set(folders):
            continue
        try:
            module = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):  # some files are there to be wrong
            continue
        for node in ast.walk(module):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            for block in (ast.get_docstring(node) or "").split("\n\n"):
                paragraph = " ".join(block.split())
                if _is_prose(paragraph) and paragraph not in seen:
                    seen.add(paragraph)
                    yield paragraph


def _is_prose(paragraph: str) -> bool:
    """Whole sentences, not a heading, a list, a grammar rule or code."""
    if len(paragraph) < 200 or not paragraph[0].isupper() or not paragraph.endswith("."):
        return False
    return len(re.findall(r"[A-Za-z ,.]", paragraph)) > 0.93 * len(paragraph)


@dataclass(frozen=True)
class Fact:
    """A fact that no model can know or guess: a number of five digits."""

    number: int

    @classmethod
    def of(cls, seed: int) -> Fact:
        """The fact that belongs to a seed."""
        return cls(random.Random(seed).randint(10_000, 99_999))

    @property
    def sentences(self) -> str:
        """What goes into the text."""
        return (
            f"The magic number of the lighthouse is {self.number}. Remember it. "
            f"{self.number} is the magic number of the lighthouse."
        )

    @property
    def question(self) -> str:
        """What is asked after the text."""
        return "What is the magic number of the lighthouse?"

    def is_in(self, answer: str) -> bool:
        """Whether an answer holds the fact."""
        return str(self.number) in answer


def build_prompt(
    tokenize: Tokenize,
    fact: Fact,
    paragraphs: Sequence[str],
    n_tokens: int,
    *,
    depth: float = 0.1,
    before: str = "",
    after: str = "\n",
) -> list[int]:
    """A prompt of exactly ``n_tokens`` tokens: ``before``, prose with the fact in it, the question, ``after``.

    Args:
        tokenize: see ``Tokenize``. It adds no beginning-of-sequence token: that belongs into ``before``.
        fact: what to place and to ask for.
        paragraphs: prose; it starts again from the first paragraph if it is too short.
        n_tokens: the length, in the model's own tokens.
        depth: where the fact goes, between 0 (the start of the prose) and 1 (its end).
        before: what a chat template puts before the user's message.
        after: what it puts after that.

    Raises:
        DemoError: the length is too short for the fact and the question.
    """
    head = tokenize(before, True)
    needle = tokenize(f"{fact.sentences}\n\n", False)
    tail = tokenize(f"\n\n{fact.question}", False) + tokenize(after, True)

    n_prose = n_tokens - len(head) - len(needle) - len(tail)
    if n_prose < 0:
        raise DemoError(f"a prompt of {n_tokens} tokens is too short; at least {n_tokens - n_prose} are needed")

    text: list[int] = []
    place = 0
    while len(text) < n_prose:
        for paragraph in paragraphs:
            if len(text) <= depth * n_prose:
                place = len(text)  # the last start of a paragraph that is not deeper than asked for
            text += tokenize(paragraph + "\n\n", False)
            if len(text) >= n_prose:
                break
    text = text[:n_prose]
    return head + text[:place] + needle + text[place:] + tail
