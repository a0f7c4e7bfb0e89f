"""A state that is saved just after a shift: its keys are where its positions are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_llama import QUIET, last_logits, some_tokens

from pyselfextend import Llama


@pytest.mark.parametrize("ga_n", [1, 4])
@pytest.mark.parametrize("name", ["llama", "llama-3", "qwen2", "gemma3"])
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
