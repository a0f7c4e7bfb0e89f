"""Models with sliding windows whose cache forgets: a text that is gone on with from an earlier point is right again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_llama import QUIET, complete, last_logits, some_tokens

from pyselfextend import Llama

MODELS = ["gemma2", "gemma3", "gemma3-linear", "olmo3", "gpt-oss"]
GA_NS = [1, 4]


def settings(ga_n: int, **more: Any) -> dict[str, Any]:
    return {**QUIET, "n_ctx": 512, "n_batch": 32, "n_ubatch": 32, "swa_full": False, "ga_n": ga_n, **more}


@pytest.mark.parametrize("ga_n", GA_NS)
@pytest.mark.parametrize("name", MODELS)
def test_rolling_back_past_the_window(tiny_models: dict[str, Path], name: str, ga_n: int) -> None:
    """To every kind of place: within the window, at its edges, far behind it, the beginning."""
    model, tokens, others = str(tiny_models[name]), some_tokens(480), some_tokens(20, seed=1)
    with Llama(model, **settings(ga_n)) as llm, Llama(model, **settings(ga_n, type_k=0, type_v=0)) as exact:
        exact.eval(tokens)
        llm.eval(tokens)
        rounding = np.abs(last_logits(llm) - last_logits(exact)).max()
        for keep in (479, 475, 450, 441, 440, 439, 432, 300, 100, 41, 40, 39, 20, 1, 0):
            llm.reset()
            llm.eval(tokens)
            llm.n_tokens = keep
            llm.eval(others)
            with Llama(model, **settings(ga_n)) as fresh:
                fresh.eval(tokens[:keep] + others)
                distance = np.abs(last_logits(llm) - last_logits(fresh)).max()
            assert distance < max(5 * rounding, 0.05), keep


@pytest.mark.parametrize("ga_n", GA_NS)
def test_generation_after_the_beginning_of_a_longer_text(tiny_models: dict[str, Path], ga_n: int) -> None:
    """llama_cpp reuses the common beginning, and evaluates no more than what follows it."""
    model, tokens = str(tiny_models["gemma3"]), some_tokens(400)
    prompts = [tokens, tokens[:150] + some_tokens(20, seed=1), tokens[:30], tokens]
    answers = []
    with Llama(model, **settings(ga_n)) as llm:
        for prompt in prompts:
            with Llama(model, **settings(ga_n)) as fresh:
                answers.append((complete(llm, prompt), complete(fresh, prompt)))
    assert [together for together, _ in answers] == [apart for _, apart in answers]


def test_nothing_is_evaluated_again_that_need_not_be(tiny_models: dict[str, Path]) -> None:
    import llama_cpp

    with Llama(str(tiny_models["gemma3"]), **settings(1)) as llm:
        llm.eval(some_tokens(400))
        for n_cut in (1, 1, 1, 5):
            last_logits(llm)  # waits until what was evaluated is counted
            llama_cpp.llama_perf_context_reset(llm.ctx)
            llm.n_tokens -= n_cut
            llm.eval([5, 6, 7])
            last_logits(llm)
            assert llama_cpp.llama_perf_context(llm.ctx).n_p_eval == 3
