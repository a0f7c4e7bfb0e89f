"""Random edits of the sequences of a context, after each of which the logits are those of the tokens alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from context import Context, rounding_of_batches
from reference import Array

N_TEXT = 700
GA_N = 4
N_SEQ = 3


@dataclass(frozen=True)
class Case:
    """A model, a window, three texts with their logits, and how far the F16 cache of the tests may be from those."""

    model: Any
    ga_w: int
    texts: list[tuple[list[int], Array]]  # tokens, logits [N_TEXT, n_vocab]
    bound: float
    has_windows: (
        bool  # layers with a window of their own forget, copied, saved or when room is short: they are llama.cpp's
    )

    def check(self, logits: Array, exact: Array) -> None:
        assert np.abs(logits - exact).max() < self.bound


def make_case(model: Any, ga_w: int, has_windows: bool) -> Case:
    """Each text is evaluated in one batch in a context of its own, with an F32 cache. What an F16 cache does to that is
    the engine's own rounding, and on a device what other batches do to it; a key that was turned back from the far part
    is rounded once more. Wrong keys in a window make a hundred times more.
    """
    texts, rounding = [], 0.0
    for seed in range(3):
        tokens = np.random.default_rng(seed).integers(3, 200, N_TEXT).tolist()
        exact, rounded = (_solo(model, ga_w, tokens, cache) for cache in (0, 1))
        texts.append((tokens, exact))
        rounding = max(rounding, float(np.abs(rounded - exact).max()))
    rounding = max(rounding, rounding_of_batches(model, GA_N, ga_w, texts[0][0]))
    assert rounding < 0.2  # logits have a standard deviation of 1 to 3
    return Case(model, ga_w, texts, 3 * rounding, has_windows)  # 2.51 was seen, on Vulkan


def _solo(model: Any, ga_w: int, tokens: list[int], cache: int) -> Array:
    with Context(model, GA_N, ga_w, n_ubatch=512, type_k=cache, type_v=cache, flash_attn_type=0) as ctx:
        return ctx.logits(tokens)


class Edits:
    """The sequences of a context of its own. done counts what was done."""

    def __init__(self, case: Case, rng: random.Random, *, kv_unified: bool, **options: Any) -> None:
        self.case, self.rng, self.unified = case, rng, kv_unified
        self.ctx = Context(case.model, GA_N, case.ga_w, n_seq_max=N_SEQ, kv_unified=kv_unified, **options)
        self.held: dict[int, tuple[int, int]] = {}  # sequence -> (text, length)
        self.done: Counter[str] = Counter()

    def operate(self) -> None:
        """One edit, and that the context then holds what it should."""
        case, ctx, rng, held = self.case, self.ctx, self.rng, self.held
        seq, other = rng.randrange(N_SEQ), rng.randrange(N_SEQ)
        (what,) = rng.choices(["grow", "together", "cut", "remove", "copy", "keep", "state"], [6, 3, 5, 1, 2, 0.3, 1])
        if what == "grow":
            self._grow([seq], rng.choice([1, 1, 5, 40, 100, 300]))
        elif what == "together":
            self._grow(sorted(held), rng.choice([1, 4, 50]))
        elif what == "cut" and held.get(seq, (0, 0))[1] > 1:
            text, length = held[seq]
            keep = max(1, length - rng.choice([1, 3, 20, 70, 150, 400, 700]))
            removed = ctx.remove(seq, keep)
            assert removed or case.has_windows
            held[seq] = (text, keep if removed else length)
        elif what == "remove":
            assert ctx.remove(seq, -1)
            held.pop(seq, None)
        elif what == "copy" and seq in held and other not in held:
            text, length = held[seq]
            # llama.cpp copies between streams only all, and of layers with windows only what they hold
            is_part = self.unified and not case.has_windows
            part = rng.randrange(1, length + 1) if is_part else length
            ctx.copy(seq, other, part if is_part else -1)
            held[other] = (text, part)
        elif what == "keep" and seq in held and self.unified:  # with a stream each llama.cpp keeps the other streams
            ctx.keep(seq)
            self.held = {seq: held[seq]}
        elif what == "state" and seq in held and seq != other:
            room = ctx.load(ctx.save(seq), other)
            assert room or self.unified, held  # sequences that share a buffer may leave too little of it
            if room:
                held[other] = held[seq]
        self.done[what] += 1
        for s in range(N_SEQ):
            length = self.held.get(s, (0, 0))[1]
            assert ctx.pos_max(s) == length - 1, (what, self.held)
            assert ctx.pos_min(s) == min(0, length - 1) or case.has_windows, (what, self.held)

    def _grow(self, sequences: Sequence[int], n: int) -> None:
        batch, exact = [], []
        for seq in sequences:
            text, length = self.held.get(seq, (self.rng.randrange(3), 0))
            end = min(length + n, N_TEXT)
            self.held[seq] = (text, end)
            tokens, logits = self.case.texts[text]
            batch += [(tokens[pos], pos, seq) for pos in range(length, end)]
            exact += [logits[pos] for pos in range(length, end)]
        if batch:
            status, logits = self.ctx.decode(batch)
            assert status == 0
            assert np.abs(logits - np.array(exact)).max() < self.case.bound, (sequences, self.held)
