"""Context shift: tokens are dropped and the rest moves, against a reference that keeps keys and values unrotated."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from context import ATTN, Context, open_model
from reference import kl_divergence
from reference_cache import CachedReference
from test_reference import some_tokens

PAIRS = [(2, 0), (4, 64), (3, 100), (5, 1)]
F32, F16, Q8_0 = 0, 1, 8

# each turns its keys in another way; Gemma 3 in its layers with a window, too, and SmolLM 3 not in all layers
MODELS = [
    "llama",
    "llama-3",
    "llama-yarn",
    "llama-linear",
    "qwen3",
    "stablelm",
    "phi2",
    "phi4-mini",
    "glm4",
    "gemma3",
    "smollm3",
]


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Iterator[tuple[Path, Any]]:
    path = tiny_models[request.param]
    with open_model(path) as model:
        yield path, model


@pytest.fixture(scope="module")
def llama(tiny_model: Path) -> Iterator[tuple[Path, Any]]:
    with open_model(tiny_model) as model:
        yield tiny_model, model


def drop(ctx: Context, reference: CachedReference, n_keep: int, n_drop: int) -> None:
    """What chat programs do when a context is full: keep the first tokens, drop the next ones, move the rest."""
    assert ctx.remove(0, n_keep, n_keep + n_drop)
    ctx.shift(0, n_keep + n_drop, -1, -n_drop)
    reference.remove(n_keep, n_keep + n_drop)
    reference.shift(n_keep + n_drop, 1 << 30, -n_drop)
    assert ctx.pos_max() == reference.pos.max()


@pytest.mark.parametrize(("ga_n", "ga_w"), PAIRS)
def test_drop_the_oldest(case: tuple[Path, Any], ga_n: int, ga_w: int) -> None:
    """Far keys go to the group of their new position, whether or not what was dropped is a multiple of the group."""
    path, model = case
    tokens = some_tokens(900)
    for n_keep, n_drop in [(0, 200), (4, 203), (7, 1), (50, 450)]:
        reference = CachedReference(path, ga_n, ga_w)
        exact = reference.extend(tokens[:600])
        with Context(model, ga_n, ga_w, type_k=F32, type_v=F32, flash_attn_type=0) as ctx:
            assert ctx.can_shift()
            logits = ctx.logits(tokens[:600].tolist())
            rounding = np.abs(logits - exact).max()
            drop(ctx, reference, n_keep, n_drop)
            logits = ctx.logits(tokens[600:700].tolist(), 600 - n_drop)
            # a key that was moved was turned once or twice more
            assert np.abs(logits - reference.extend(tokens[600:700])).max() < 4 * rounding + 1e-4


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gemma3-linear"])
@pytest.mark.parametrize(("ga_n", "ga_w"), PAIRS)
def test_any_number_of_shifts(tiny_models: dict[str, Path], name: str, ga_n: int, ga_w: int) -> None:
    """Layers with a window hold all that the others do, in whichever order cells become free.

    At times so little is left behind what is dropped that the window reaches back to the tokens that were kept.
    """
    path = tiny_models[name]
    reference = CachedReference(path, ga_n, ga_w)
    with open_model(path) as model, Context(model, ga_n, ga_w, n_ctx=512, type_k=F32, type_v=F32) as ctx:
        tolerance = 0.0
        for step, n_left in enumerate([100, 0, 5, 20, 200, 1, 150, 12]):
            length = int(reference.pos.max()) + 1 if step else 0
            for n in (500 - length - step, 1, step + 1):  # more than a ubatch, one, and some
                tokens = some_tokens(n, seed=step)
                distance = np.abs(ctx.logits(tokens.tolist(), length) - reference.extend(tokens)).max()
                tolerance = tolerance or 4 * distance + 1e-4
                assert distance < tolerance, (step, n)
                length += n
            assert ctx.can_shift(), step
            n_keep = 10 + 17 * step
            drop(ctx, reference, n_keep, length - n_keep - n_left)


@pytest.mark.parametrize("attn", ATTN)
@pytest.mark.parametrize(("ga_n", "ga_w"), PAIRS)
@pytest.mark.parametrize("seed", range(2))
def test_random_shifts(llama: tuple[Path, Any], ga_n: int, ga_w: int, seed: int, attn: int) -> None:
    """Growth, rollbacks, holes and shifts in any order, several before the next batch among them."""
    path, model = llama
    rng = random.Random(seed)
    reference = CachedReference(path, ga_n, ga_w)
    n_checked = 0
    with Context(model, ga_n, ga_w, attn=attn, type_k=F32, type_v=F32, flash_attn_type=seed % 2) as ctx:
        for step in range(25):
            length = int(reference.pos.max()) + 1 if len(reference.pos) else 0
            what = rng.choice(["grow", "grow", "drop", "cut", "hole"])
            if what == "grow" or length < 10:
                tokens = some_tokens(min(rng.choice([1, 3, 60, 150]), 900 - length), seed=step)
                if len(tokens):
                    exact = reference.extend(tokens)
                    assert np.abs(ctx.logits(tokens.tolist(), length) - exact).max() < 5e-3, (step, what)
                    n_checked += len(tokens)
            elif what == "drop":
                n_keep = rng.randrange(length // 2)
                drop(ctx, reference, n_keep, rng.randrange(1, length - n_keep))
            elif what == "cut":
                keep = rng.randrange(1, length)
                assert ctx.remove(0, keep)
                reference.remove(keep, length)
            else:
                p0 = rng.randrange(length // 2)
                p1 = rng.randrange(p0 + 1, length)
                assert ctx.remove(0, p0, p1)
                reference.remove(p0, p1)
    assert n_checked > 200


@contextmanager
def rounded(path: Path, cache: int) -> Iterator[tuple[Context, CachedReference]]:
    """A context with a cache of a type, and the reference of its model."""
    with open_model(path) as model, Context(model, 4, 64, type_k=cache, type_v=cache, flash_attn_type=1) as ctx:
        yield ctx, CachedReference(path, 4, 64)


# with heads of 64 llama.cpp multiplies what goes into a quantized cache by a Hadamard matrix
@pytest.mark.parametrize("name", ["llama", "llama-64", "smollm3-64"])
@pytest.mark.parametrize("cache", [F16, Q8_0])
def test_rounded_caches(tiny_models: dict[str, Path], name: str, cache: int) -> None:
    """A moved key is rounded once more. Mean KL: against that of the same tokens before they were moved."""
    tokens = some_tokens(900)
    with rounded(tiny_models[name], cache) as (ctx, reference):
        exact = reference.extend(tokens[:600])
        before = kl_divergence(exact, ctx.logits(tokens[:600].tolist())).mean()
        drop(ctx, reference, 4, 203)
        logits = ctx.logits(tokens[600:900].tolist(), 600 - 203)
        after = kl_divergence(reference.extend(tokens[600:900]), logits).mean()
        print(f"mean KL {after:.2e} after a shift, {before:.2e} before")
        assert after < 2 * before


@pytest.mark.parametrize("name", ["llama-64", "smollm3-64"])
def test_a_rollback_in_a_quantized_cache(tiny_models: dict[str, Path], name: str) -> None:
    """Keys of a window that was forgotten are made from the far part: read, turned, and rounded once more."""
    tokens = some_tokens(900)
    with rounded(tiny_models[name], Q8_0) as (ctx, reference):
        exact = reference.extend(tokens)
        before = kl_divergence(exact[300:364], ctx.logits(tokens.tolist())[300:364]).mean()
        assert ctx.remove(0, 300)
        again = ctx.logits(tokens[300:364].tolist(), 300)  # they see the keys that were made
        after = kl_divergence(exact[300:364], again).mean()
        print(f"mean KL {after:.2e} after a roll-back, {before:.2e} before")
        assert after < 2 * before


def test_shifts_are_saved(llama: tuple[Path, Any]) -> None:
    """A state that is saved before the next batch holds the keys where they were moved."""
    path, model = llama
    tokens = some_tokens(900)
    reference = CachedReference(path, 4, 64)
    exact = reference.extend(tokens[:600])
    options: dict[str, Any] = {"type_k": F32, "type_v": F32, "flash_attn_type": 0}
    with Context(model, 4, 64, **options) as ctx, Context(model, 4, 64, **options) as other:
        rounding = np.abs(ctx.logits(tokens[:600].tolist()) - exact).max()
        drop(ctx, reference, 10, 111)
        assert other.load(ctx.save())
        exact = reference.extend(tokens[600:700])
        for context in (ctx, other):
            logits = context.logits(tokens[600:700].tolist(), 600 - 111)
            assert np.abs(logits - exact).max() < 4 * rounding + 1e-4


def test_one_sequence_of_several(llama: tuple[Path, Any]) -> None:
    path, model = llama
    tokens = some_tokens(600)
    for unified in (True, False):
        references = [CachedReference(path, 4, 64) for _ in range(2)]
        with Context(model, 4, 64, n_seq_max=2, kv_unified=unified, type_k=F32, type_v=F32) as ctx:
            rounding = 0.0
            for seq, reference in enumerate(references):
                exact = reference.extend(tokens[: 400 + seq])
                logits = ctx.logits(tokens[: 400 + seq].tolist(), seq=seq)
                rounding = max(rounding, float(np.abs(logits - exact).max()))
            drop(ctx, references[0], 3, 130)
            for seq, reference in enumerate(references):
                first = int(reference.pos.max()) + 1
                logits = ctx.logits(tokens[500:550].tolist(), first, seq)
                assert np.abs(logits - reference.extend(tokens[500:550])).max() < 4 * rounding + 1e-4


def test_a_shift_beyond_the_reach_does_nothing(llama: tuple[Path, Any]) -> None:
    path, model = llama
    tokens = some_tokens(700)
    exact = CachedReference(path, 2, 0).extend(tokens)  # reach: 1024
    with Context(model, 2, 0, type_k=F32, type_v=F32) as ctx:
        ctx.logits(tokens[:600].tolist())
        ctx.shift(0, 0, -1, 1024 - 599)
        assert ctx.pos_max() == 599
        ctx.shift(0, 0, -1, 1024 - 600)
        assert ctx.pos_max() == 1023
        ctx.shift(0, 0, -1, 600 - 1024)
        assert np.abs(ctx.logits(tokens[600:].tolist(), 600) - exact[600:]).max() < 5e-3


@pytest.mark.parametrize(
    ("name", "swa_full"),
    [
        ("qwen2vl", True),  # M-RoPE: nor can llama.cpp
        ("hunyuan-dense", True),  # weights of a norm after RoPE
        ("gpt-oss", True),  # llama.cpp's own shift would scale the keys of layers with a window (YaRN)
        ("gemma3", False),  # layers with a window have forgotten
    ],
)
def test_what_cannot_be_exact_is_not_done(tiny_models: dict[str, Path], name: str, swa_full: bool) -> None:
    """The context says so, and a shift that is asked for all the same changes nothing."""
    tokens = some_tokens(300).tolist()
    with (
        open_model(tiny_models[name]) as model,
        Context(model, 4, 64, swa_full=swa_full) as ctx,
        Context(model, 4, 64, swa_full=swa_full) as other,
    ):
        for context in (ctx, other):
            context.logits(tokens[:200])
        assert not ctx.can_shift()
        ctx.shift(0, 0, -1, -50)
        assert ctx.pos_max() == 199
        assert np.array_equal(*(context.logits(tokens[200:], 200) for context in (ctx, other)))
