"""The reference itself: two independent forms of it agree, and without SelfExtend it is what stock llama.cpp computes.

The bounds against llama.cpp are float rounding, measured: over the models, the largest difference of a logit was 4e-4
with an F32 cache and plain attention; logits have a standard deviation of 1 to 3. llama.cpp's GELU is a table of F16
(5e-3), and its flash attention rounds an F32 cache to F16 and adds up in F16 in small batches (1e-1, mean KL 3e-5):
these have bounds of their own.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from reference import Array, Reference, far_frames, kl_divergence, log_softmax, relative_position
from runner import Job, evaluate, evaluate_all, tokenize

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
    "llama-linear",
    "phi4-mini",
    "glm4",
    "granite",
    "hunyuan-dense",
    "smollm3",
    "smollm3-64",
    "qwen3vl",
    "qwen3moe",
    "gemma2",
    "gemma3",
    "gemma3-linear",
    "olmo3",
    "gpt-oss",
]
WINDOWS = {"gemma2": 32, "gemma3": 40, "gemma3-linear": 150, "olmo3": 48, "gpt-oss": 128}
EXPERTS = ["qwen3moe", "gpt-oss"]
PLAIN_JOB = Job(flash="off", type_k="f32", type_v="f32", n_ubatch=128, threads=1)


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
    if reference.arch.norm_after_rope:
        with pytest.raises(ValueError, match="a norm follows RoPE"):
            reference.logits(tokens, ga_n, ga_w, by_pairs=True)
        return
    by_pairs = reference.logits(tokens, ga_n, ga_w, by_pairs=True)
    assert np.abs(reference.logits(tokens, ga_n, ga_w) - by_pairs).max() < 1e-10


def test_a_norm_after_rope(tiny_models: dict[str, Path]) -> None:
    """With the same weight for the two members of a pair it can go before RoPE, where the definition applies."""
    after, before = Reference(tiny_models["hunyuan-dense"]), Reference(tiny_models["hunyuan-dense"])
    before.arch = replace(before.arch, norm_after_rope=False)
    for reference in (after, before):
        for il in range(reference.n_layer):
            for c in "qk":
                weight = reference._tensors[f"blk.{il}.attn_{c}_norm.weight"]
                weight[...] = np.tile(weight[: len(weight) // 2], 2)
    tokens = some_tokens(170)
    by_pairs = before.logits(tokens, 4, 64, by_pairs=True)
    assert np.abs(after.logits(tokens, 4, 64) - by_pairs).max() < 1e-10


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
    jobs = [PLAIN_JOB, replace(PLAIN_JOB, flash="on")]
    plain, flash = (result.logits for result in evaluate_all(stock_lib, model, tokens, jobs))
    assert np.abs(plain - exact).max() < (1e-2 if reference.arch.gelu else 1e-3)
    assert kl_divergence(exact, flash).mean() < 1e-4


@pytest.mark.parametrize("n_ctx", [100, 256, 257, 700])
def test_long_rope_goes_by_the_size_of_the_context(tiny_models: dict[str, Path], stock_lib: Path, n_ctx: int) -> None:
    model, tokens = tiny_models["phi4-mini"], some_tokens(100)
    reference = Reference(model)
    exact = reference.logits(tokens, n_ctx=n_ctx)
    stock = evaluate(stock_lib, model, tokens, replace(PLAIN_JOB, n_ctx=n_ctx))
    assert np.abs(stock.logits - exact).max() < 1e-3
    other = reference.logits(tokens, n_ctx=700 if n_ctx <= 256 else 100)
    assert kl_divergence(exact, other).mean() > 1e-2


# windows, and whatever else an architecture brings


@pytest.mark.parametrize(("name", "window"), WINDOWS.items())
def test_layers_with_a_window_stay_plain(tiny_models: dict[str, Path], name: str, window: int) -> None:
    reference, tokens = Reference(tiny_models[name]), some_tokens(400)
    layers = [reference.layer(il, 0) for il in range(reference.n_layer)]
    assert {layer.window for layer in layers} == {0, window}

    reference.n_layer = 1
    assert layers[0].window
    plain = reference.logits(tokens)
    assert np.array_equal(reference.logits(tokens, 4, 10), plain)
    tokens[100] += 1
    difference = np.abs(reference.logits(tokens) - plain).max(axis=1)
    assert np.array_equal(np.flatnonzero(difference > 1e-10), np.arange(100, 100 + window))


@pytest.mark.parametrize(
    ("name", "what", "value"),
    [
        *((name, "n_window", window + 1) for name, window in WINDOWS.items()),
        ("gemma2", "kq_soft_cap", 0.0),
        ("gemma2", "logit_soft_cap", 0.0),
        ("gemma3", "window_base", 0.0),
        ("gemma3-linear", "window_scaled", True),
        ("olmo3", "window_scaled", True),
        ("gpt-oss", "window_scaled", False),
        ("gpt-oss", "clamped", False),
        ("gpt-oss", "n_expert_used", 1),
        ("qwen3moe", "n_expert_used", 3),
        ("qwen3vl", "interleaved", False),
        ("smollm3", "no_rope_every", 0),
        ("hunyuan-dense", "norm_after_rope", False),
        ("glm4", "n_rot", 32),
        ("glm4", "neox", True),
        ("granite", "kq_scale", 32**-0.5),
        ("granite", "residual_scale", 1.0),
    ],
)
def test_every_feature_shows(tiny_models: dict[str, Path], name: str, what: str, value: float) -> None:
    """Without it, or with a window one token wider, logits are orders of magnitude further away than rounding."""
    reference, tokens = Reference(tiny_models[name]), some_tokens(700)
    exact = reference.logits(tokens)
    if what in {field.name for field in fields(reference.arch)}:
        reference.arch = replace(reference.arch, **{what: value})
    else:
        assert getattr(reference, what) != value
        setattr(reference, what, value)
    assert kl_divergence(exact, reference.logits(tokens)).mean() > 5e-3


def test_sinks_show(tiny_models: dict[str, Path]) -> None:
    """In one softmax with the keys: counted twice, as if each part of a cache had one, they are far away as well."""
    reference, tokens = Reference(tiny_models["gpt-oss"]), some_tokens(700)
    exact = reference.logits(tokens, 4, 64)
    for share in (0.0, 2.0):
        other = Reference(tiny_models["gpt-oss"])
        for il in range(other.n_layer):
            with np.errstate(divide="ignore"):
                other._tensors[f"blk.{il}.attn_sinks.weight"] += np.log(share)
        assert kl_divergence(exact, other.logits(tokens, 4, 64)).mean() > 0.1


class Router(Reference):
    """Keeps how much better the last chosen expert of each token was than the first that was not."""

    def _moe(self, block: str, x: Array) -> Array:
        ranked = np.sort(self._linear(f"{block}.ffn_gate_inp", x), axis=1)[:, ::-1]
        self.margins.append(ranked[:, self.n_expert_used - 1] - ranked[:, self.n_expert_used])
        return super()._moe(block, x)


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize(("ga_n", "ga_w"), [(1, 0), (2, 0), (4, 64), (3, 100), (8, 256), (5, 1)])
def test_no_choice_of_experts_is_a_tie(tiny_models: dict[str, Path], name: str, ga_n: int, ga_w: int) -> None:
    """Rounding (1e-5) must not decide it: the logits of two right engines would differ for these tokens."""
    reference = Router(tiny_models[name])
    reference.margins = []
    reference.logits(some_tokens(700), ga_n, ga_w)
    assert np.min(reference.margins) > 1e-4


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
