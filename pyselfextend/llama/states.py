"""Loading a saved state, so that one that cannot be loaded costs nothing."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import llama_cpp
import numpy as np

from ..errors import StateError, WrongTypeError

if TYPE_CHECKING:
    from .model import Llama

__all__ = ["load"]

DAMAGED = "it is not a state of this model's architecture, or it is damaged"


def load(llm: Llama, state: llama_cpp.LlamaState) -> None:
    """``Llama.load_state``.

    Raises:
        StateError: it cannot be loaded; the instance has what it had.
        WrongTypeError: it is no state.
    """
    if not isinstance(state, llama_cpp.LlamaState):
        raise WrongTypeError(f"state is of type {type(state).__name__}; it must be what save_state() returned")
    _check(llm, state)
    n_tokens = state.n_tokens
    before = llm.save_state() if llm._n_exact < llm.n_tokens else None  # evaluated again, it would not be what it was
    n_read, errors = llm._read_state(state.llama_state)
    if n_read != len(state.llama_state):
        reason = errors or DAMAGED
        _keep(llm, reason, before, is_whole=n_read == 0 and not llm._config.is_plain)
    if llama_cpp.llama_memory_seq_pos_max(llm._ctx.memory, 0) + 1 < n_tokens:
        _keep(llm, f"it says that it has {n_tokens} tokens, and has fewer", before, is_whole=False)

    # llama_cpp would replace arrays by those of the instance that saved the state, or write into them beforehand
    llm.input_ids[:n_tokens] = state.input_ids[:n_tokens]
    if llm._logits_all:
        n_rows = min(n_tokens, len(state.scores))
        llm.scores[:n_rows] = state.scores[:n_rows]
        llm.scores[n_rows:n_tokens] = np.nan  # saved without them
    llm.n_tokens = n_tokens
    llm._n_exact = getattr(state, "n_exact", math.inf)
    llm._seed = state.seed
    llm._requires_eval = True


def _check(llm: Llama, state: llama_cpp.LlamaState) -> None:
    try:
        data, n_tokens, n_ids = memoryview(state.llama_state), int(state.n_tokens), len(state.input_ids)
        n_columns = state.scores.shape[1] if llm._logits_all and len(state.scores) else llm._n_vocab
        is_seed = -1 <= int(state.seed) < 2**32 + 1
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise StateError(f"the state cannot be loaded: {error}") from None
    n_ctx = len(llm.input_ids)
    if not data.nbytes:
        raise StateError("the state cannot be loaded: it is empty")
    if int.from_bytes(data[:4], sys.byteorder) > data.nbytes:  # the length of a name: llama.cpp would make room for it
        raise StateError(f"the state cannot be loaded: {DAMAGED}")
    if not 0 <= n_tokens <= n_ctx:
        raise StateError(
            f"the state cannot be loaded: the state has {n_tokens} tokens, this context has room for {n_ctx}"
        )
    if n_ids < n_tokens or n_columns != llm._n_vocab or not is_seed:
        raise StateError("the state cannot be loaded: its tokens, logits or seed are not those of such a model")


def _keep(llm: Llama, reason: str, before: llama_cpp.LlamaState | None, *, is_whole: bool) -> None:
    """Raise, with the cache as it was: where llama.cpp has given it up, its tokens are evaluated again, or the state of
    before is loaded.
    """
    if not is_whole:
        llm._ctx.kv_cache_clear()
        if before is None:
            llm._evaluate_again()
        else:
            llm._read_state(before.llama_state)
            llm._requires_eval = True
    raise StateError(f"the state cannot be loaded: {reason}")
