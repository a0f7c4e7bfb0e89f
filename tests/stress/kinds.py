"""The kinds of instances, what they have been told so far, and the logits that they should have."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from reference import Array

from pyselfextend import Llama

from llama_cpp.llama_speculative import LlamaPromptLookupDecoding  # isort: skip  # after pyselfextend

F32, Q8_0 = 0, 8
PAIR = {"ga_n": 4, "ga_w": 64, "n_ctx": 1024}
PLAIN = {"ga_n": 1, "n_ctx": 512}


@dataclass(frozen=True)
class Kind:
    """Options are those of ``Llama``; bound: how far logits may be from those of the same tokens in other batches."""

    name: str
    model: Path
    options: dict[str, Any] = field(hash=False)

    def open(self, **more: Any) -> Llama:
        fixed = {"verbose": False, "n_threads": 1, "n_threads_batch": 1, "n_batch": 128, "n_ubatch": 64}
        return Llama(str(self.model), **{**fixed, **self.options, **more})

    @property
    def bound(self) -> float:
        return _bound(self)

    def logits(self, text: Text, **more: Any) -> Array:
        """Logits [n_tokens, n_vocab] of a fresh instance that is told the same."""
        with self.open(logits_all=True, draft_model=None, **more) as fresh:
            text.tell(fresh)
            return fresh.scores[: fresh.n_tokens].copy()


@cache
def _bound(kind: Kind) -> float:
    """What the type of the cache does to the logits, at most: wrong keys in a window make a hundred times more."""
    rounding = 0.0
    for seed in range(3):
        text = Text().add(some_tokens(random.Random(seed), kind.options["n_ctx"] - 8))
        exact = kind.logits(text, type_k=F32, type_v=F32)
        rounding = max(rounding, float(np.abs(kind.logits(text) - exact).max()))
    return 2.5 * rounding


def some_tokens(rng: random.Random, n: int) -> tuple[int, ...]:
    """Without control tokens."""
    return tuple(rng.randrange(3, 300) for _ in range(n))


@dataclass(frozen=True)
class Shift:
    n_keep: int
    n_discard: int


@dataclass(frozen=True)
class Cut:
    n_tokens: int


@dataclass(frozen=True)
class Text:
    """The tokens that an instance has evaluated, and how it came to them: after a shift keys are what they were."""

    steps: tuple[tuple[int, ...] | Shift | Cut, ...] = ()
    tokens: tuple[int, ...] = ()

    @property
    def n_shifts(self) -> int:
        return sum(isinstance(step, Shift) for step in self.steps)

    def add(self, tokens: tuple[int, ...]) -> Text:
        whole = self.tokens + tokens
        if self.steps and isinstance(self.steps[-1], tuple):
            return Text((*self.steps[:-1], self.steps[-1] + tokens), whole)
        return Text((*self.steps, tokens), whole)

    def cut(self, n_tokens: int) -> Text:
        if n_tokens == 0 or not self.n_shifts:
            return Text().add(self.tokens[:n_tokens]) if n_tokens else Text()
        return Text((*self.steps, Cut(n_tokens)), self.tokens[:n_tokens])

    def shift(self, shift: Shift) -> Text:
        behind = shift.n_keep + shift.n_discard
        return Text((*self.steps, shift), self.tokens[: shift.n_keep] + self.tokens[behind:])

    def tell(self, llm: Llama) -> None:
        """A fresh instance."""
        for step in self.steps:
            if isinstance(step, Shift):
                llm.context_shift(step.n_keep, step.n_discard)
            elif isinstance(step, Cut):
                llm.n_tokens = step.n_tokens
            else:
                llm.eval(list(step))


def kinds(models: dict[str, Path]) -> list[Kind]:
    """By the paths of the tiny models by name."""
    flash = {"type_k": Q8_0, "type_v": Q8_0, "flash_attn": True}
    return [
        Kind("plain", models["llama"], PLAIN),
        Kind("plain, quantized", models["llama"], {**PLAIN, **flash}),
        Kind("plain, windows", models["gemma3"], {**PLAIN, "swa_full": True}),
        Kind("plain, windows that forget", models["gemma3"], {**PLAIN, "swa_full": False}),
        Kind("pair", models["llama"], PAIR),
        Kind("pair, logits of all", models["llama"], {**PAIR, "logits_all": True}),
        Kind("pair, quantized", models["llama"], {**PAIR, **flash}),
        Kind("pair, windows", models["gemma3"], {**PAIR, "swa_full": True}),
        Kind("pair, windows that forget", models["gemma3"], {**PAIR, "swa_full": False}),
        Kind("pair, drafts", models["llama"], {**PAIR, "draft_model": LlamaPromptLookupDecoding(num_pred_tokens=4)}),
    ]
