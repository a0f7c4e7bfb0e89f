"""The model that an evaluation asks: what it computes, and that nothing of what was asked before shows in it.

Values are compared with the reference, which shares nothing with the engine. Everything else is compared bit by bit with
a model that has been asked nothing before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import Array, Reference, log_softmax

from pyselfextend import EvalError, SettingError
from pyselfextend.eval.cases import Tokens
from pyselfextend.eval.model import Answer, EvalModel
from pyselfextend.eval.settings import Rope, Setting
from pyselfextend.eval.sharing import N_SLICE, plan_readings

N_CTX = 1800

#: Plain attention, the two kinds of caches under it, and what each makes of a cut: sliding windows that states leave out
#: (Gemma) or that are a multiple of a block (gpt-oss), keys that cannot be turned (Hunyuan), layers without RoPE.
MODELS = ["llama", "gemma2", "gemma3", "gpt-oss", "hunyuan-dense", "smollm3", "qwen3moe"]
SETTINGS = ["plain", "5:64", "8:200"]

Ask = Callable[[EvalModel], Any]


def random_tokens(n: int, seed: int) -> Tokens:
    return tuple(int(token) for token in np.random.default_rng(seed).integers(3, 360, n))


def open_model(path: Path, setting: str, **options: Any) -> EvalModel:
    rope = Rope.of(path)
    return EvalModel(path, Setting.parse(setting).resolve(rope, N_CTX), rope, N_CTX, **{"n_threads": 1, **options})


def log_probs(prompt: Tokens, continuation: Tokens, n_keep: int = 0) -> Ask:
    def ask(model: EvalModel) -> bytes:
        found = model.log_probs(prompt, continuation, n_keep)
        assert len(found.values) == len(found.greedy) == len(continuation)
        return found.values.tobytes() + found.greedy.tobytes()

    return ask


def answer(prompt: Tokens, n_predict: int, n_keep: int = 0) -> Ask:
    return lambda model: model.answer(prompt, n_predict, n_keep=n_keep)


def forget(model: EvalModel) -> None:
    """Leave nothing of what was asked: an empty cache, and no state."""
    other = random_tokens(5, seed=99)
    model.log_probs(other, ())
    assert model.log_probs(random_tokens(N_SLICE + 7, seed=98), (), N_SLICE)


# -- nothing shows


class Script:
    """Questions in a random order, with the answers that a fresh model gives."""

    def __init__(self, n_questions: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        beginning = random_tokens(N_SLICE * 2, seed + 1)
        # of one slice and of more, with a common beginning of none, one or two slices, and one inside another
        prompts = [beginning[: N_SLICE * k] + random_tokens(int(rng.integers(2, 400)), seed + 10 + i)
                   for i, k in enumerate([0, 0, 1, 1, 2, 2])]  # fmt: skip
        prompts += [beginning[:N_SLICE], beginning]
        self.questions: list[tuple[str, Ask]] = []
        prompt = prompts[0]
        for i in range(n_questions):
            if i == 0 or rng.random() < 0.5:  # else the same prompt again
                prompt = prompts[rng.integers(len(prompts))]
            n = int(rng.choice([1, 2, 40, 127, 130, 300]))
            n_keep = int(rng.integers(0, (len(prompt) - 1) // N_SLICE + 1)) * N_SLICE
            about = f"{i}: {len(prompt)} tokens, {n} more, {n_keep} kept"
            if rng.random() < 0.3:
                self.questions.append((f"{about}, answer", answer(prompt, min(n, 60), n_keep)))
            else:
                self.questions.append((about, log_probs(prompt, random_tokens(n, seed + 100 + i), n_keep)))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", MODELS)
def test_what_was_asked_before_does_not_show(tiny_models: dict[str, Path], name: str, setting: str) -> None:
    script = Script(24, seed=sum(map(ord, name)))
    with open_model(tiny_models[name], setting) as model, open_model(tiny_models[name], setting) as fresh:
        wrong = []
        for about, ask in script.questions:
            forget(fresh)
            if ask(model) != ask(fresh):
                wrong.append(about)
        assert not wrong
