"""The reference itself: two independent forms of it agree, and without SelfExtend it is what stock llama.cpp computes.

The bounds against llama.cpp are float rounding, measured: over the models, the largest difference of a logit was 2.5e-4
with an F32 cache and plain attention; logits have a standard deviation of 1 to 3. llama.cpp's GELU is a table of F16
(3e-3), and its flash attention rounds an F32 cache to F16 and adds up in F16 in small batches (8e-2, mean KL 1e-5):
these have bounds of their own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reference import Array, Reference, far_frames, kl_divergence, log_softmax, relative_position
from runner import Job, evaluate_all, tokenize

MODELS = [
    "llama",
    "llama-mha",
    "llama-3",
    "llama-yarn",
    "llama-64",
    "qwen2",
    "qwen2vl",
    "qwen3",
    "stablelm",
    "phi2",
    "gemma",
]
GELU = {"phi2", "gemma"}


def some_tokens(n: int, seed: int = 0) -> Array:
    """Random ids of the tiny models' vocabulary, without the control tokens."""
    return np.random.default_rng(seed).integers(3, 360, n)


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Path:
    return tiny_models[request.param]


@pytest.fixture(scope="module")
def reference(model: Path) -> Reference:
    return Reference(model)


def test_every_tiny_model_is_tested(tiny_models: dict[str, Path]) -> None:
    assert set(tiny_models) == set(MODELS)


@pytest.mark.parametrize(
    ("q", "k", "ga_n", "ga_w", "expected"),
    [
        (100, 37, 4, 64, 63),  # the last near distance
        (100, 36, 4, 64, 64),  # the first far one: 25 + 48 - 9
        (100, 10, 4, 64, 71),
        (700, 0, 3, 100, 300),  # 233 + 67 - 0: floor of 100/3
        (5, 5, 5, 1, 0),
        (5, 4, 5, 1, 2),  # 1 + 1 - 0: with a window of 1 a neighbour in another group is pushed away
        (7, 7, 2, 0, 0),
        (7, 6, 2, 0, 0),
        (8, 7, 2, 0, 1),
        (1000, 0, 1, 64, 1000),
    ],
)
def test_rule_by_hand(q: int, k: int, ga_n: int, ga_w: int, expected: int) -> None:
    assert relative_position(np.array(q), np.array(k), ga_n, ga_w) == expected


@pytest.mark.parametrize(("ga_n", "ga_w"), [(2, 0), (4, 64), (3, 100), (8, 256), (5, 1)])
def test_rule_largest_position_and_frames(ga_n: int, ga_w: int) -> None:
    n = 700
    q, k = np.arange(n)[:, None], np.arange(n)[None, :]
    rel = relative_position(q, k, ga_n, ga_w)
    assert rel[q >= k].max() == (n - 1) // ga_n + ga_w - ga_w // ga_n
    far = q - k >= ga_w
    frames = far_frames(q, ga_n, ga_w)[0] - far_frames(k, ga_n, ga_w)[1]
    assert np.array_equal(frames[far], rel[far])
    assert np.array_equal(rel[~far], (q - k)[~far])


@pytest.mark.parametrize(("ga_n", "ga_w"), [(1, 0), (2, 0), (4, 64), (3, 100), (5, 1), (7, 33)])
def test_frames_match_the_definition(reference: Reference, ga_n: int, ga_w: int) -> None:
    tokens = some_tokens(170)
    by_pairs = reference.logits(tokens, ga_n, ga_w, by_pairs=True)
    assert np.abs(reference.logits(tokens, ga_n, ga_w) - by_pairs).max() < 1e-10


def test_plain_where_nothing_is_far(reference: Reference) -> None:
    tokens = some_tokens(100)
    plain = reference.logits(tokens)
    assert np.array_equal(reference.logits(tokens, 1, 64), plain)
    assert np.array_equal(reference.logits(tokens, 4, 100), plain)
    extended = reference.logits(tokens, 4, 98)  # at q = W the one far key, k = 0, is still at distance W
    assert np.array_equal(extended[:98], plain[:98])
    assert np.abs(extended[98] - plain[98]).max() < 1e-10
    assert np.abs(extended[99] - plain[99]).max() > 1e-6


def test_a_prefix_does_not_see_what_follows(tiny_model: Path) -> None:
    reference, tokens = Reference(tiny_model), some_tokens(300)  # more than one block of queries
    whole = reference.logits(tokens, 4, 64)
    for n in (1, 63, 65, 256, 299):
        assert np.abs(reference.logits(tokens[:n], 4, 64) - whole[:n]).max() < 1e-10


def test_float32_products_are_close(reference: Reference, model: Path) -> None:
    tokens = some_tokens(200)
    exact = reference.logits(tokens, 4, 64)
    assert np.abs(Reference(model, np.float32).logits(tokens, 4, 64) - exact).max() < 1e-3


def test_positions_matter(reference: Reference) -> None:
    """A rule that is off by one for far keys is orders of magnitude further away than rounding (KL 1e-10)."""
    tokens = some_tokens(700)
    extended, plain = reference.logits(tokens, 4, 64), reference.logits(tokens)
    assert kl_divergence(plain, extended)[200:].mean() > 0.05
    assert kl_divergence(extended, reference.logits(tokens, 4, 65))[100:].mean() > 0.01


def test_plain_is_stock_llama_cpp(reference: Reference, model: Path, stock_lib: Path) -> None:
    tokens = some_tokens(700)
    exact = reference.logits(tokens)
    jobs = [Job(flash=flash, type_k="f32", type_v="f32", n_ubatch=128, threads=1) for flash in ("off", "on")]
    plain, flash = (result.logits for result in evaluate_all(stock_lib, model, tokens, jobs))
    assert np.abs(plain - exact).max() < (1e-2 if reference.name in GELU else 1e-3)
    assert kl_divergence(exact, flash).mean() < 1e-4


def test_real_model(smollm2: Path, stock_lib: Path, prose: str) -> None:
    """Quantized weights: the reference reads prose well, and llama.cpp is as near as its 8-bit activations let it."""
    tokens = tokenize(stock_lib, smollm2, prose)[:400]
    assert len(tokens) == 400
    exact = Reference(smollm2, np.float32).logits(tokens)
    perplexity = np.exp(-log_softmax(exact)[np.arange(399), tokens[1:]].mean())
    assert perplexity < 40
    for result in evaluate_all(stock_lib, smollm2, tokens, [Job(flash=flash) for flash in ("off", "on")]):
        assert kl_divergence(exact, result.logits).mean() < 0.01


@pytest.mark.parametrize(("ga_n", "ga_w"), [(0, 64), (-1, 0), (4, -1)])
def test_bad_pair(tiny_model: Path, ga_n: int, ga_w: int) -> None:
    with pytest.raises(ValueError, match="at least"):
        Reference(tiny_model).logits([1, 2], ga_n, ga_w)
