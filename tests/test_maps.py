"""Other maps of positions: the engine against the reference, and what they refuse."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import learned_positions
import numpy as np
import pytest
from context import ATTN, ROUNDING, Context, load, open_model
from reference import Array, Reference, kl_divergence
from reference_cache import CachedReference
from runner import MAPS as NUMBERS
from runner import evaluate_all
from test_groups import F32 as TYPE_F32
from test_groups import GA_N_MAX, GA_W, N_CTX, Sequences, _opened, unit
from test_reference import some_tokens
from yardstick import F32, N_TOKENS, WAYS, Distance, stock_rounding

import pyselfextend
from pyselfextend import SettingError, StateError
from pyselfextend.maps import MAPS

#: Group sizes and windows at which each map is compared.
PAIRS = {
    "jet-long": [(2, 64), (3, 100), (8, 0)],
    "rerope": [(2, 64), (5, 100)],
    "leaky": [(2, 64), (4, 100), (8, 0)],
    "lampe": [(96, 64), (150, 100), (111, 0)],
    "mrrope": [(2, 0), (3, 0)],
}
CASES = [(ga_map, *pair) for ga_map, pairs in PAIRS.items() for pair in pairs]

#: Those that change, and group sizes of each.
CHANGES = {
    "jet-long": [1, 2, 3, 4, 6, 8, 20],
    "rerope": [1, 2, 3, 8],
    "leaky": [1, 2, 4, 8, 16],
    "lampe": [64, 80, 96, 128, 200, 256, 512, 1000],
}


def exactly(model: Path, tokens: Array, ga_map: str, ga_n: int, ga_w: int, *, by_pairs: bool = False) -> Array:
    reference = Reference(model)
    reference.ga_map = ga_map
    return reference.logits(tokens, ga_n, ga_w, by_pairs=by_pairs)


def test_the_same_maps_everywhere() -> None:
    assert {name: each.number for name, each in MAPS.items()} == NUMBERS
    assert set(PAIRS) == set(MAPS) - {"self-extend"}
    assert set(CHANGES) == {name for name, each in MAPS.items() if each.follows} - {"self-extend"}


@pytest.mark.parametrize(("ga_map", "ga_n", "ga_w"), CASES)
def test_frames_are_the_definition(tiny_models: dict[str, Path], ga_map: str, ga_n: int, ga_w: int) -> None:
    """The reference's two ways: far frames that are multiplied, and each pair turned by its relative position."""
    tokens = some_tokens(130)
    frames, pairs = (
        exactly(tiny_models["llama"], tokens, ga_map, ga_n, ga_w // 4, by_pairs=by_pairs) for by_pairs in (False, True)
    )
    assert np.abs(frames - pairs).max() < 1e-6
    assert kl_divergence(exactly(tiny_models["llama"], tokens, "self-extend", 1, 0), pairs).mean() > 1e-5


#: Kinds of RoPE: interleaved, YaRN's, that of Llama 3 with factors of its own, halves, part of a head, windows, M-RoPE.
MODELS = ["llama", "llama-yarn", "llama-3", "qwen3", "phi2", "phi4-mini", "gemma3", "qwen2vl"]


@pytest.mark.parametrize("name", MODELS)
def test_every_position(tiny_models: dict[str, Path], stock_lib: Path, engine_lib: Path, name: str) -> None:
    model, tokens = tiny_models[name], some_tokens(N_TOKENS)
    reference = Reference(model)
    flash = "off" if reference.n_window else F32.flash
    yardstick = stock_rounding(stock_lib, model, reference, tokens)
    for ga_map, ga_n, ga_w in CASES:
        exact = exactly(model, tokens, ga_map, ga_n, ga_w)
        job = replace(F32, ga_n=ga_n, ga_w=ga_w, ga_map=ga_map, flash=flash, calls="400,37,1,1,250,1")
        for result in evaluate_all(engine_lib, model, tokens, [replace(job, attn=way) for way in WAYS]):
            assert result.info["map"] == NUMBERS[ga_map]
            print(ga_map, ga_n, ga_w, end=": ")
            yardstick.check(result.logits, exact)


@pytest.mark.parametrize("ga_map", PAIRS)
def test_another_map_is_far_away(tiny_model: Path, engine_lib: Path, yardstick: Distance, ga_map: str) -> None:
    """What would pass unseen if the bounds were loose."""
    tokens = some_tokens(N_TOKENS)
    ga_n, ga_w = PAIRS[ga_map][0]
    exact = exactly(tiny_model, tokens, ga_map, ga_n, ga_w)
    [result] = evaluate_all(engine_lib, tiny_model, tokens, [replace(F32, ga_n=ga_n, ga_w=ga_w, ga_map=ga_map)])
    yardstick.check(result.logits, exact)
    right = kl_divergence(exact, result.logits).mean()
    for other in MAPS:
        if other != ga_map:
            wrong = exactly(tiny_model, tokens, other, 128 if other == "lampe" else 2, 0 if other == "mrrope" else ga_w)
            assert kl_divergence(wrong, result.logits).mean() > max(1e-5, 1e3 * right), other


@pytest.mark.parametrize(("type_k", "flash"), [("f16", "on"), ("q8_0", "on"), ("f16", "off")])
@pytest.mark.parametrize("ga_map", PAIRS)
def test_rounded_caches(
    tiny_models: dict[str, Path], stock_lib: Path, engine_lib: Path, ga_map: str, type_k: str, flash: str
) -> None:
    """Mean KL at most 1.2 times that of stock's plain model with the same cache."""
    model, tokens = tiny_models["llama-64"], some_tokens(N_TOKENS)
    job = replace(F32, type_k=type_k, type_v=type_k, flash=flash)
    [stock] = evaluate_all(stock_lib, model, tokens, [job])
    yardstick = kl_divergence(Reference(model).logits(tokens), stock.logits).mean()
    ga_n, ga_w = PAIRS[ga_map][0]
    exact = exactly(model, tokens, ga_map, ga_n, ga_w)
    [result] = evaluate_all(engine_lib, model, tokens, [replace(job, ga_n=ga_n, ga_w=ga_w, ga_map=ga_map)])
    assert kl_divergence(exact, result.logits).mean() <= 1.2 * yardstick


#
# groups that change
#


@pytest.mark.parametrize("attn", ATTN)
@pytest.mark.parametrize("ga_map", CHANGES)
@pytest.mark.parametrize("name", ["llama", "llama-yarn", "gemma3"])
def test_up_and_down(tmp_path: Path, name: str, ga_map: str, attn: int) -> None:
    """All far keys are turned."""
    tokens = some_tokens(200)
    with (
        _opened(name, tmp_path) as (path, model),
        Context(
            model, unit(ga_map), GA_W, ga_n_max=GA_N_MAX * unit(ga_map), ga_map=ga_map, attn=attn, n_ctx=N_CTX,
            type_k=TYPE_F32, type_v=TYPE_F32, flash_attn_type=0,
        ) as ctx,
    ):  # fmt: skip
        reference = CachedReference(path, unit(ga_map), GA_W, ga_map=ga_map)
        assert np.abs(ctx.logits(tokens[:50].tolist()) - reference.extend(tokens[:50])).max() < ROUNDING
        for ga_n in [*CHANGES[ga_map], *reversed(CHANGES[ga_map])]:
            first = 45
            assert ctx.remove(0, first)
            reference.remove(first, 1 << 30)
            assert ctx.set_group(0, ga_n)
            reference.ga_n = ga_n
            logits = ctx.logits(tokens[first : first + 7].tolist(), first)
            assert np.abs(logits - reference.extend(tokens[first : first + 7])).max() < ROUNDING, ga_n


@pytest.mark.parametrize("ga_map", CHANGES)
def test_a_window_that_is_made_again(tmp_path: Path, ga_map: str) -> None:
    """After a cut: its keys are turned from the far ones, here to half of their group meanwhile."""
    tokens, ga_n = some_tokens(370), 8 * unit(ga_map)
    with (
        _opened("llama", tmp_path) as (path, model),
        Context(
            model, ga_n, GA_W, ga_map=ga_map, n_ctx=N_CTX, type_k=TYPE_F32, type_v=TYPE_F32, flash_attn_type=0
        ) as ctx,
    ):
        reference = CachedReference(path, ga_n, GA_W, ga_map=ga_map)
        assert np.abs(ctx.logits(tokens.tolist()) - reference.extend(tokens)).max() < ROUNDING
        assert ctx.remove(0, 80)
        reference.remove(80, 1 << 30)
        assert ctx.set_group(0, ga_n // 2)
        reference.ga_n = ga_n // 2
        assert np.abs(ctx.logits(tokens[80:120].tolist(), 80) - reference.extend(tokens[80:120])).max() < ROUNDING


@pytest.mark.parametrize("attn", ATTN)
@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("ga_map", CHANGES)
def test_random_operations(tmp_path: Path, ga_map: str, unified: bool, attn: int) -> None:
    """Growth, cuts, copies, shifts, states and changes, on three sequences with groups of their own."""
    with _opened("llama", tmp_path) as (path, model):
        sequences = Sequences(
            path, model, random.Random(len(ga_map)), kv_unified=unified, attn=attn, swa_full=True, flash_attn_type=0,
            ga_map=ga_map, groups=CHANGES[ga_map],
        )  # fmt: skip
        sequences.operate_often()


def test_mrrope_is_shifted(tmp_path: Path) -> None:
    """Its keys are turned by positions at its own frequencies."""
    tokens = some_tokens(150)
    with (
        _opened("llama", tmp_path) as (path, model),
        Context(model, 4, 0, ga_map="mrrope", n_ctx=256, type_k=TYPE_F32, type_v=TYPE_F32, flash_attn_type=0) as ctx,
    ):
        reference = CachedReference(path, 4, 0, ga_map="mrrope")
        ctx.logits(tokens[:100].tolist())
        reference.extend(tokens[:100])
        assert ctx.remove(0, 4, 44)
        ctx.shift(0, 44, -1, -40)
        reference.remove(4, 44)
        reference.shift(44, 1 << 30, -40)
        assert np.abs(ctx.logits(tokens[100:].tolist(), 60) - reference.extend(tokens[100:])).max() < ROUNDING


#
# what is refused
#


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ga_n": 32, "ga_map": "lampe"}, "ga_n is 32, it must be at least 64: this map counts it in 64ths of a token"),
        ({"ga_n": 64, "ga_n_max": 3, "ga_map": "lampe"}, "ga_n_max is 3, it must be at least 64: this map counts"),
        ({"ga_n": 3, "ga_map": "leaky"}, "ga_n is 3, it must be a power of two with this map"),
        ({"ga_n": 1, "ga_n_max": 6, "ga_map": "leaky"}, "ga_n_max is 6, it must be a power of two with this map"),
        ({"ga_n": 2, "ga_w": 8, "ga_map": "mrrope"}, "ga_w is 8, it must be 0 with this map, which has no near keys"),
        ({"ga_n": 2, "ga_n_max": 4, "ga_map": "mrrope"}, "ga_n_max is 4, it must be 0 with this map, whose group size"),
        ({"ga_n": 0}, "ga_n is 0, it must be at least 1"),
    ],
)
def test_parameters_that_are_refused(given: dict[str, Any], message: str) -> None:
    library = load()
    assert not library.set_next(**given)
    assert library.last_error().startswith(message)


def test_a_map_that_does_not_exist(tiny_model: Path) -> None:
    library = load()
    with pytest.raises(SettingError, match=r"^ga_map is 'yarn'; it must be one of self-extend, jet-long, .*, mrrope$"):
        pyselfextend.Llama(str(tiny_model), ga_n=2, ga_map="yarn")
    from pyselfextend._native import Params

    assert not library._set_next(Params(2, 0, 16, 0, 6))
    assert library.last_error() == "map is 6, it must be one of the values of llama_self_extend_map_type"


def test_groups_that_are_refused(tmp_path: Path) -> None:
    with _opened("llama", tmp_path) as (_, model):
        with Context(model, 4, 0, ga_map="mrrope", n_ctx=256) as ctx:
            assert not ctx.set_group(0, 2)
            assert ctx.library.last_error() == ("ga_n is 2, but with this map it stays as the context was created: 4")
            assert ctx.set_group(0, 4)
        with Context(model, 2, GA_W, ga_map="leaky", n_ctx=100) as ctx:
            assert not ctx.set_group(0, 6)
            assert ctx.library.last_error() == "ga_n is 6, it must be a power of two with this map"
            assert ctx.group() == 2


def test_a_state_of_another_map(tmp_path: Path) -> None:
    with _opened("llama", tmp_path) as (_, model):
        with Context(model, 2, GA_W, n_ctx=100) as ctx:
            ctx.logits(some_tokens(50).tolist())
            one, whole = ctx.save(0), ctx.save()
        with Context(model, 2, GA_W, ga_map="jet-long", n_ctx=100) as ctx:
            for data, seq in ((one, 0), (whole, None)):
                assert not ctx.load(data, seq)
                assert ctx.library.last_error() == (
                    "the state was saved with another map of positions: 0, this context has 1"
                )


#
# Llama
#


@pytest.mark.parametrize("ga_map", [*CHANGES, "mrrope"])
def test_llama(tiny_model: Path, yardstick: Distance, ga_map: str) -> None:
    """A text beyond the trained context of 512, with the group that follows where it can, in two calls."""
    tokens, by = some_tokens(N_TOKENS), MAPS[ga_map]
    given: dict[str, Any] = {"ga_n": "auto", "ga_w": 64} if by.follows else {"ga_n": 2}
    with pyselfextend.Llama(
        str(tiny_model), **given, ga_map=ga_map, n_ctx=N_TOKENS, n_threads=1, n_threads_batch=1, logits_all=True,
        type_k=0, type_v=0, verbose=False,
    ) as llm:  # fmt: skip
        assert llm.self_extend.ga_map == ga_map
        llm.eval(tokens[:600].tolist(), n_expected=N_TOKENS - 600)
        llm.eval(tokens[600:].tolist())
        logits = np.array(llm.scores[:N_TOKENS])
        info = llm.self_extend
        assert info.ga_n > by.unit
        assert info.n_ctx_next >= N_TOKENS
        assert f"ga_map={ga_map}" in str(info)
        again = pickle.loads(pickle.dumps(llm))
        assert again.self_extend.ga_map == ga_map
        again.close()
    yardstick.check(logits, exactly(tiny_model, tokens, ga_map, info.ga_n, info.ga_w))


def test_a_map_by_name_is_not_left_out(tmp_path: Path) -> None:
    """Where it cannot be done it is an error, and not the plain model with a warning."""
    with pytest.raises(SettingError, match="it does not use RoPE"):
        pyselfextend.Llama(
            str(learned_positions.make(tmp_path / "gpt2.gguf")), ga_map="jet-long", n_ctx=2048, verbose=False
        )


def test_inside_the_trained_context_a_map_is_the_plain_model(tiny_model: Path) -> None:
    with pyselfextend.Llama(str(tiny_model), ga_map="leaky", n_ctx=256, verbose=False) as llm:
        assert (llm.self_extend.ga_n, llm.self_extend.bytes_near) == (1, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ga_n": 32, "ga_map": "lampe"}, "ga_n is 32; it must be at least 64: the map lampe counts it in parts"),
        ({"ga_n": 3, "ga_map": "leaky"}, "ga_n is 3; it must be a power of two with the map leaky"),
        ({"ga_n": "auto", "ga_map": "mrrope"}, "ga_n is 'auto', but the group of the map mrrope does not follow"),
        ({"ga_n": 2, "ga_w": 8, "ga_map": "mrrope"}, "ga_w is 8; it must be 0 with the map mrrope"),
    ],
)
def test_settings_that_are_refused(tiny_model: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=f"^{message}"):
        pyselfextend.Llama(str(tiny_model), n_ctx=600, **given)


def test_a_state_of_another_map_in_llama(tiny_model: Path) -> None:
    options: dict[str, Any] = {"n_ctx": 600, "ga_n": 2, "ga_w": 64, "verbose": False}
    with (
        pyselfextend.Llama(str(tiny_model), **options) as llm,
        pyselfextend.Llama(str(tiny_model), ga_map="rerope", **options) as other,
    ):
        llm.eval(some_tokens(100).tolist())
        with pytest.raises(StateError, match="another map of positions"):
            other.load_state(llm.save_state())


def test_models_open_with_every_map(tmp_path: Path) -> None:
    """Also a plain context of the same library, after each."""
    with _opened("llama", tmp_path) as (_, model):
        for ga_map, [(ga_n, ga_w), *_] in PAIRS.items():
            with Context(model, ga_n, min(ga_w, GA_W), ga_map=ga_map, n_ctx=64) as ctx:
                ctx.logits([1, 2, 3])
            with Context(model, 1, 0, n_ctx=64) as ctx:
                assert ctx.group() == 0


def test_context_is_opened_alone(tiny_model: Path) -> None:
    with open_model(tiny_model) as model, Context(model, 2, 16, ga_map="jet-long", n_ctx=600) as ctx:
        info = ctx.library.get_info(ctx.ctx)
        assert info is not None
        assert (info.ga_map, info.n_ctx_reach) == ("jet-long", 1024)
