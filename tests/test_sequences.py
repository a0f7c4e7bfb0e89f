"""Whatever is done to the sequences of a context, what is evaluated next gets the logits of its own tokens alone.

Sequences are grown, cut to any length, copied in part, removed, kept, saved and loaded at random, and each result is
compared with the same tokens evaluated in one go in a context of their own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from context import ATTN, Context, open_model
from random_edits import GA_N, N_TEXT, Case, Edits, make_case


@pytest.fixture(
    scope="module",
    params=[
        ("llama", 0), ("llama", 1), ("llama", 64), ("llama", 100), ("gemma3", 64), ("gemma2", 100), ("smollm3", 64),
    ],
    ids=lambda param: f"{param[0]}-{param[1]}",
)  # fmt: skip
def case(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Iterator[Case]:
    name, ga_w = request.param
    with open_model(tiny_models[name]) as model:
        yield make_case(model, ga_w, name.startswith("gemma"))


@pytest.fixture
def model_llama(tiny_model: Path) -> Iterator[Any]:
    with open_model(tiny_model) as model:
        yield model


@pytest.mark.parametrize("attn", ATTN)
@pytest.mark.parametrize("flash", [0, 1])
@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_random_edits(case: Case, unified: bool, seed: int, flash: int, attn: int) -> None:
    edits = Edits(case, random.Random(seed), kv_unified=unified, flash_attn_type=flash, attn=attn)
    with edits.ctx:
        for _ in range(40):
            edits.operate()
    assert edits.done["grow"] > 5
    assert edits.done["cut"] > 1


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
