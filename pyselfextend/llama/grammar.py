"""Grammars: what llama.cpp's parser and sampler do not survive is a ``GrammarError``."""

from __future__ import annotations

import ctypes
import re
from typing import Any

from .. import _native
from ..errors import GrammarError

_library = _native.load()  # before llama_cpp, which it imports with our library

import llama_cpp  # noqa: E402
from llama_cpp.llama_grammar import LlamaGrammar  # noqa: E402

from .sampling import insert  # noqa: E402

__all__ = ["add", "check_sampled", "clear"]

NEWLINE = "\n"
N_MESSAGE = 120  # characters
UNFIT = re.compile("[\0\ud800-\udfff]")  # ends a text in C; has no UTF-8


def add(sampler: Any, vocab: Any, grammar: Any) -> None:
    """Put a grammar into a chain of samplers, behind the penalties, as llama_cpp does.

    Args:
        sampler: llama_cpp's ``LlamaSampler``.
        vocab: the ``llama_vocab *`` of the model.
        grammar: a ``LlamaGrammar``.

    Raises:
        GrammarError: it is not one, or it cannot be used. The message names line and column, from 1, in characters.
    """
    text, root = (_text(grammar, name) for name in ("_grammar", "_root"))
    own = _library.init_grammar(vocab, text.encode("utf-8"), root.encode("utf-8"))
    if own is None:
        message, offset = _library.grammar_error()
        place = None if offset is None else len(text.encode("utf-8")[:offset].decode("utf-8", "ignore"))
        raise GrammarError(_problem(text, message, place))
    insert(sampler.sampler, ctypes.cast(own, ctypes.POINTER(llama_cpp.llama_sampler)), 1)  # the penalties are first


def check_sampled() -> None:
    """To be called when a token has been sampled with a grammar.

    Raises:
        GrammarError: the grammar allows none of the model's tokens, or it cannot be followed further.
    """
    message, _ = _library.grammar_error()
    if message:
        raise GrammarError(f"the grammar cannot be followed: {message}")


def clear() -> None:
    """Forget what a token that was not looked at has left."""
    _library.grammar_error()


def _text(grammar: Any, name: str) -> str:
    if not isinstance(grammar, LlamaGrammar):
        raise GrammarError(
            f"grammar is of type {type(grammar).__name__}; it must be a LlamaGrammar, such as from_string() returns"
        )
    text = getattr(grammar, name, None)
    if not isinstance(text, str):
        raise GrammarError(f"the text of a grammar is of type {type(text).__name__}; it must be a str")
    if bad := UNFIT.search(text):
        raise GrammarError(_problem(text, f"a grammar cannot have the character {bad[0]!r}", bad.start()))
    return text


def _problem(text: str, message: str, place: int | None) -> str:
    """The message, with a place in the text in characters."""
    message = " ".join(message.split())  # it may quote what stands in the text
    message = message if len(message) <= N_MESSAGE else f"{message[:N_MESSAGE]}..."
    where = ""
    if place is not None:
        before = text[:place]
        where = f" at line {before.count(NEWLINE) + 1}, column {place - before.rfind(NEWLINE)}"
        if message.startswith("expecting"):
            found = text[place:].split(maxsplit=1)
            message += f", found {found[0][:32]!r}" if found else ", found the end of the text"
    return f"the grammar cannot be used{where}: {message}"
