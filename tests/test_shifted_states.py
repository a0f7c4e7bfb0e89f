"""States of a text that was shifted: keys are where positions are, and know of what is gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_llama import QUIET, complete, last_logits, some_tokens

from pyselfextend import Llama, StateError

from llama_cpp import LlamaRAMCache  # isort: skip  # after pyselfextend


@pytest.mark.parametrize(
    ("name", "ga_n"), [("llama", 1), ("llama-3", 1), ("qwen2", 1), ("llama", 4), ("llama-3", 4), ("gemma3", 4)]
)
def test_a_state_that_is_saved_after_a_shift(tiny_models: dict[str, Path], name: str, ga_n: int) -> None:
    """As many shifts as one likes, with nothing evaluated in between; what goes on from it is what went on without."""
    settings: dict[str, Any] = {**QUIET, "ga_n": ga_n, "n_ctx": 512, "swa_full": True}
    path = str(tiny_models[name])
    with Llama(path, **settings) as saved, Llama(path, **settings) as loaded, Llama(path, **settings) as without:
        for llm in (saved, without):
            llm.eval(some_tokens(300))
            llm.context_shift(20, 100)
            llm.context_shift(5, 30)
        loaded.load_state(saved.save_state())
        for llm in (saved, loaded, without):
            llm.eval([5, 6, 7])
        assert np.allclose(last_logits(loaded), last_logits(without), rtol=0, atol=1e-3)
        assert np.allclose(last_logits(saved), last_logits(without), rtol=0, atol=1e-3)


@pytest.mark.parametrize("ga_n", [1, 4])
def test_a_state_that_cannot_be_loaded_leaves_a_shifted_text_as_it_is(tiny_model: Path, ga_n: int) -> None:
    """Its keys know of what was discarded: evaluated again, they would not."""
    settings: dict[str, Any] = {**QUIET, "ga_n": ga_n, "n_ctx": 512}
    with Llama(str(tiny_model), **settings) as llm, Llama(str(tiny_model), **settings) as without:
        for each in (llm, without):
            each.eval(some_tokens(300))
            each.context_shift(20, 100)
        shifted = llm.save_state()
        for state in (llm.save_state(), shifted):
            state.llama_state = state.llama_state[: len(state.llama_state) // 2]
            with pytest.raises(StateError):
                llm.load_state(state)
        for each in (llm, without):
            each.eval([5, 6, 7])
        assert np.allclose(last_logits(llm), last_logits(without), rtol=0, atol=1e-3)


@pytest.mark.parametrize("ga_n", [1, 4])
def test_states_of_a_shifted_text_are_not_in_a_prompt_cache(tiny_model: Path, ga_n: int) -> None:
    cache = LlamaRAMCache()
    with Llama(str(tiny_model), ga_n=ga_n, n_ctx=512, **QUIET) as llm:
        llm.eval(some_tokens(300))
        llm.context_shift(20, 100)
        llm.set_cache(cache)
        tokens = list(llm.eval_tokens)
        complete(llm, tokens)
        llm.load_state(llm.save_state())
        complete(llm, [*tokens, 5])
        assert cache.cache_size == 0
        complete(llm, [*tokens[:20], 5, 6])  # from where nothing was moved
        assert cache.cache_size > 0
