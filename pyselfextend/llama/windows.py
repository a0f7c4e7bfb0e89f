"""Layers with a sliding window of their own, whose cache holds the end of a text alone (``swa_full=False``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import llama_cpp

if TYPE_CHECKING:
    from .evaluation import Evaluating

__all__ = ["have_forgotten"]


def have_forgotten(llm: Evaluating) -> bool:
    """Whether the plain model's cache lacks what the token after ``n_tokens`` sees; with a pair the cache says so.

    llama.cpp cuts such a cache at any length without a word. What is left begins at its first position.
    """
    window = int(llama_cpp.llama_model_n_swa(llm.model))
    if not llm._config.is_plain or not window or not llm.n_tokens:
        return False
    first = int(llama_cpp.llama_memory_seq_pos_min(llm._ctx.memory, 0))
    return first < 0 or first > max(0, llm.n_tokens + 1 - window)
