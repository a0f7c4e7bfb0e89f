"""RULER's words: the lists of the wonderwords package, as they are in the version that is installed."""

from __future__ import annotations

import functools

from ...._extras import need

__all__ = ["words"]


@functools.cache
def words(*categories: str) -> tuple[str, ...]:
    """The words of some categories ("noun", "adjective", "verb"), sorted, each once.

    Raises:
        MissingExtraError: wonderwords is not installed.
    """
    lists = need("wonderwords", "eval").RandomWord(enhanced_prefixes=False)
    return tuple(lists.filter(include_categories=categories))
