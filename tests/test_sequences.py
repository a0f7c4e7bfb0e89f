"""Whatever is done to the sequences of a context, what is evaluated next gets the logits of its own tokens alone.

Sequences are grown, cut to any length, copied in part, removed, kept, saved and loaded at random, and each result is
compared with the same tokens evaluated in one go in a context of their own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from context import ATTN, Context, open_model, rounding_of_batches
from reference import Array

N_TEXT = 700
GA_N = 4


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


@pytest.fixture(
    scope="module",
    params=[
        ("llama", 0), ("llama", 1), ("llama", 64), ("llama", 100), ("gemma3", 64), ("gemma2", 100), ("smollm3", 64),
    ],
    ids=lambda param: f"{param[0]}-{param[1]}",
)  # fmt: skip
def case(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Iterator[Case]:
    """Each text is evaluated in one batch in a context of its own, with an F32 cache. What an F16 cache does to that is
    the engine's own rounding, and on a device what other batches do to it; a key that was turned back from the far part
    is rounded once more. Wrong keys in a window make a hundred times more.
    """
    name, ga_w = request.param
    with open_model(tiny_models[name]) as model:
        texts, rounding = [], 0.0
        for seed in range(3):
            tokens = np.random.default_rng(seed).integers(3, 200, N_TEXT).tolist()
            exact, rounded = (solo(model, ga_w, tokens, cache) for cache in (0, 1))
            texts.append((tokens, exact))
            rounding = max(rounding, float(np.abs(rounded - exact).max()))
        rounding = max(rounding, rounding_of_batches(model, GA_N, ga_w, texts[0][0]))
        assert rounding < 0.2  # logits have a standard deviation of 1 to 3
        yield Case(model, ga_w, texts, 2.5 * rounding, name.startswith("gemma"))


@pytest.fixture
def model_llama(tiny_model: Path) -> Iterator[Any]:
    with open_model(tiny_model) as model:
        yield model


def solo(model: Any, ga_w: int, tokens: list[int], cache: int) -> Array:
    with Context(model, GA_N, ga_w, n_ubatch=512, type_k=cache, type_v=cache, flash_attn_type=0) as ctx:
        return ctx.logits(tokens)


@pytest.mark.parametrize("attn", ATTN)
@pytest.mark.parametrize("flash", [0, 1])
@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_random_edits(case: Case, unified: bool, seed: int, flash: int, attn: int) -> None:
    texts, rng = case.texts, random.Random(seed)
    n_seq = 3
    held: dict[int, tuple[int, int]] = {}  # sequence -> (text, length)
    done: dict[str, int] = {}

    options: dict[str, Any] = {"n_seq_max": n_seq, "kv_unified": unified, "flash_attn_type": flash, "attn": attn}
    with Context(case.model, GA_N, case.ga_w, **options) as ctx:

        def grow(sequences: Sequence[int], n: int) -> None:
            batch, exact = [], []
            for seq in sequences:
                text, length = held.get(seq, (rng.randrange(3), 0))
                end = min(length + n, N_TEXT)
                held[seq] = (text, end)
                tokens, logits = texts[text]
                batch += [(tokens[pos], pos, seq) for pos in range(length, end)]
                exact += [logits[pos] for pos in range(length, end)]
            if batch:
                status, logits = ctx.decode(batch)
                assert status == 0
                assert np.abs(logits - np.array(exact)).max() < case.bound, (sequences, held)

        for _ in range(40):
            seq, other = rng.randrange(n_seq), rng.randrange(n_seq)
            what = rng.choices(["grow", "together", "cut", "remove", "copy", "keep", "state"], [6, 3, 5, 1, 2, 0.3, 1])[
                0
            ]
            if what == "grow":
                grow([seq], rng.choice([1, 1, 5, 40, 100, 300]))
            elif what == "together":
                grow(sorted(held), rng.choice([1, 4, 50]))
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
                is_part = unified and not case.has_windows
                part = rng.randrange(1, length + 1) if is_part else length
                ctx.copy(seq, other, part if is_part else -1)
                held[other] = (text, part)
            elif what == "keep" and seq in held and unified:  # with a stream each llama.cpp keeps the other streams
                ctx.keep(seq)
                held = {seq: held[seq]}
            elif what == "state" and seq in held and seq != other:
                room = ctx.load(ctx.save(seq), other)
                assert room or unified, held  # sequences that share a buffer may leave too little of it
                if room:
                    held[other] = held[seq]
            done[what] = done.get(what, 0) + 1
            for s in range(n_seq):
                length = held.get(s, (0, 0))[1]
                assert ctx.pos_max(s) == length - 1, (what, held)
                assert ctx.pos_min(s) == min(0, length - 1) or case.has_windows, (what, held)
    assert done["grow"] > 5
    assert done.get("cut", 0) > 1


def test_a_batch_is_cut_after_a_rollback(case: Case) -> None:
    """A later ubatch pushes keys out of the window that an earlier one of the same batch still needs."""
    tokens, exact = case.texts[0]
    for length, keep in [(276, 106), (300, 120), (500, 350)]:
        with Context(case.model, GA_N, case.ga_w) as ctx:
            ctx.logits(tokens[:length])
            assert ctx.remove(0, keep)
            case.check(ctx.logits(tokens[keep : keep + 200], keep), exact[keep : keep + 200])


@pytest.mark.parametrize("attn", ATTN)
@pytest.mark.parametrize("flash", [0, 1])
def test_a_rollback_of_any_depth(case: Case, flash: int, attn: int) -> None:
    """Back to any position, the first included: nothing is reported lost, and nothing is evaluated but what is new."""
    tokens, exact = case.texts[0]
    with Context(case.model, GA_N, case.ga_w, flash_attn_type=flash, attn=attn, n_ubatch=32) as ctx:
        ctx.logits(tokens)
        for keep in (690, 600, 599, 350, 351, 170, 100, 65, 64, 17, 2, 1):
            before = ctx.n_evaluated()
            assert ctx.remove(0, keep)
            assert (ctx.pos_min(), ctx.pos_max()) == (0, keep - 1)
            n = min(80, N_TEXT - keep)
            case.check(ctx.logits(tokens[keep : keep + n], keep), exact[keep : keep + n])
            assert ctx.n_evaluated() - before == n
        assert ctx.remove(0, 0)
        case.check(ctx.logits(tokens[:80]), exact[:80])


def test_a_rollback_in_many_sequences_at_once(case: Case) -> None:
    for unified in (True, False):
        with Context(case.model, GA_N, case.ga_w, n_seq_max=3, kv_unified=unified) as ctx:
            for seq, (tokens, _) in enumerate(case.texts):
                ctx.logits(tokens, seq=seq)
            assert ctx.remove(-1, 150)
            status, logits = ctx.decode([(tokens[150], 150, seq) for seq, (tokens, _) in enumerate(case.texts)])
            assert status == 0
            case.check(logits, np.array([exact[150] for _, exact in case.texts]))


def test_a_prefix_is_shared(case: Case) -> None:
    """One prompt, several answers: the prompt is evaluated once, and each answer stands alone."""
    tokens, exact = case.texts[0]
    with Context(case.model, GA_N, case.ga_w, n_seq_max=4, kv_unified=True) as ctx:
        ctx.logits(tokens[:500])
        for seq, length in [(1, 500), (2, 330), (3, 20)]:
            ctx.copy(0, seq, length)
        before = ctx.n_evaluated()
        for seq, length in [(1, 500), (2, 330), (3, 20)]:
            case.check(ctx.logits(tokens[length : length + 90], length, seq), exact[length : length + 90])
        case.check(ctx.logits(tokens[500:], 500), exact[500:])
        assert ctx.n_evaluated() - before == 3 * 90 + 200


def test_a_position_beyond_the_reach_is_refused(case: Case) -> None:
    """Several sequences may share a buffer that is longer than the reach; none of them may be."""
    reach = 512 * GA_N - case.ga_w * GA_N + case.ga_w // GA_N * GA_N
    with Context(case.model, GA_N, case.ga_w, n_seq_max=3, kv_unified=True) as ctx:
        assert ctx.decode([(5, reach - 1, 0)])[0] == 0
        assert ctx.decode([(5, reach, 0)])[0] == 1


def test_sharers_of_a_prefix_part(model_llama: Any) -> None:
    """Sequences that shared all their cells may come to need windows of their own: there is room for them."""
    tokens = np.random.default_rng(0).integers(3, 200, 300).tolist()
    with Context(model_llama, 4, 100, n_ctx=256, n_seq_max=4, kv_unified=True) as ctx:
        ctx.logits(tokens[:200])
        for seq in (1, 2, 3):
            ctx.copy(0, seq)
        ctx.shift(0, 100, -1, -10)  # moves the shared cells of all
        assert [ctx.decode([(tokens[200], ctx.pos_max(seq) + 1, seq)])[0] for seq in range(4)] == [0] * 4


def test_a_copy_that_layers_with_a_window_cannot_make(tiny_models: dict[str, Path]) -> None:
    """They hold the end of the text and not of its beginning: the copy is not evaluated, the others go on."""
    tokens = np.random.default_rng(0).integers(3, 200, N_TEXT).tolist()
    with (
        open_model(tiny_models["gemma3"]) as model,
        Context(model, GA_N, 64, n_seq_max=2, kv_unified=True, swa_full=False) as ctx,
    ):
        ctx.logits(tokens[:600])
        ctx.copy(0, 1, 150)
        assert ctx.decode([(tokens[150], 150, 1)])[0] != 0
        assert ctx.decode([(tokens[600], 600, 0)])[0] == 0
        assert ctx.remove(1, -1)
        assert ctx.decode([(tokens[0], 0, 1)])[0] == 0
