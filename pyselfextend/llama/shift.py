"""The context shift: which contexts can be shifted, and how an instance is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _native
from ..config import integer
from ..errors import ShiftError

if TYPE_CHECKING:
    from .model import Llama

_library = _native.load()  # before llama_cpp, which it imports with our library

import llama_cpp  # noqa: E402

__all__ = ["shift"]


def shift(llm: Llama, n_keep: int, n_discard: int) -> None:
    """``Llama.context_shift``."""
    n_keep = integer("n_keep", n_keep, 0, llm.n_tokens)
    n_discard = integer("n_discard", n_discard, 0, llm.n_tokens - n_keep)
    if fault := _fault(llm):
        raise ShiftError(f"the context of this model cannot be shifted: {fault}")
    n_tokens, p1 = llm.n_tokens, n_keep + n_discard
    # what is left of a longer text, and what is to go
    if not (llm._ctx.kv_cache_seq_rm(0, n_tokens, -1) and llm._ctx.kv_cache_seq_rm(0, n_keep, p1)):
        raise ShiftError("the context of this model cannot be shifted: it cannot forget some of its tokens")
    llm._ctx.kv_cache_seq_shift(0, p1, n_tokens, -n_discard)
    llm.input_ids[n_keep : n_tokens - n_discard] = llm.input_ids[p1:n_tokens].copy()
    if llm._logits_all:
        llm.scores[n_keep : n_tokens - n_discard] = llm.scores[p1:n_tokens].copy()
    llm.n_tokens = n_tokens - n_discard
    llm._requires_eval = True  # the last logits are those of before
    if 0 < n_discard < n_tokens - n_keep:
        llm._n_exact = min(llm._n_exact, n_keep)


def _fault(llm: Llama) -> str:
    """Why keys cannot be moved to other positions without loss; empty if they can."""
    ctx = llm._ctx.ctx
    if fault := _library.plain_shift_fault(ctx):
        return fault
    if not llama_cpp.llama_memory_can_shift(llama_cpp.llama_get_memory(ctx)):
        return "its keys cannot be moved to other positions without loss"
    return ""
