"""Plans: pairs against their definition, sizes of caches against the engine."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import architectures
import more_models
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyselfextend import Llama, positions
from pyselfextend.cache_size import CACHE_TYPES, cache_size
from pyselfextend.errors import SettingError
from pyselfextend.groups import RULE, auto_limit, choose_ga_n, ga_n_auto, ga_n_by_rule, rule_share
from pyselfextend.llama import CACHE_TYPES as ENGINE_TYPES
from pyselfextend.plan import AutoGroup, Pair, make_plan

TYPES = {name: number for number, name in ENGINE_TYPES.items()}


#
# pairs
#


def rule(n_ctx_train: int, ga_n: int, ga_w: int, n_tokens: int, share: Fraction) -> bool:
    """The authors' rule as they write it."""
    return share * n_ctx_train > ga_w + Fraction(n_tokens - ga_w, ga_n)


@given(st.integers(1, 3000), st.data(), st.sampled_from(RULE))
@settings(max_examples=300, deadline=None)
def test_group_size_by_the_rule(n_ctx_train: int, data: st.DataObject, share: Fraction) -> None:
    ga_w = data.draw(st.integers(0, n_ctx_train - 1))
    n_tokens = data.draw(st.integers(1, 20 * n_ctx_train))
    found = ga_n_by_rule(n_ctx_train, ga_w, n_tokens, share)
    keeps = (ga_n for ga_n in itertools.count(1) if rule(n_ctx_train, ga_n, ga_w, n_tokens, share))
    if ga_w < share * n_ctx_train:
        assert found == next(keeps)
        assert rule_share(n_ctx_train, found, ga_w, n_tokens) < share
    else:
        assert found == 0
        assert n_tokens <= ga_w or not any(rule(n_ctx_train, g, ga_w, n_tokens, share) for g in (1, 2, 99, 10**6))


@given(st.integers(3, 3000), st.data())
@settings(max_examples=300, deadline=None)
def test_chosen_group_sizes_reach(n_ctx_train: int, data: st.DataObject) -> None:
    ga_w = data.draw(st.integers(0, n_ctx_train - 1))
    n_tokens = data.draw(st.integers(n_ctx_train + 1, 2**31 - 1))
    ga_n = choose_ga_n(n_ctx_train, ga_w, n_tokens)
    assert ga_n >= 2
    assert positions.n_ctx_reach(n_ctx_train, ga_n, ga_w) >= n_tokens


def power(n_ctx_train: int, ga_w: int, n_tokens: int) -> int:
    """The smallest power of two that keeps the rule and reaches; where none keeps it, that reaches."""
    powers = [2**i for i in range(1, 32)]
    reach = [g for g in powers if positions.n_ctx_reach(n_ctx_train, g, ga_w) >= n_tokens]
    return next((g for g in reach if rule(n_ctx_train, g, ga_w, n_tokens, RULE[1])), reach[0])


@given(st.integers(2, 300), st.data())
@settings(max_examples=300, deadline=None)
def test_limits_of_auto(n_ctx_train: int, data: st.DataObject) -> None:
    """The longest text that is read with a group or a smaller one; one token more is not."""
    ga_w = data.draw(st.integers(0, n_ctx_train - 1))
    ga_n = 2 ** data.draw(st.integers(0, 8))
    longest = auto_limit(n_ctx_train, ga_w, ga_n)
    assert longest >= n_ctx_train
    if longest > n_ctx_train:
        assert power(n_ctx_train, ga_w, longest) <= ga_n
    assert power(n_ctx_train, ga_w, longest + 1) > ga_n or (ga_n == 1 and ga_n_auto(n_ctx_train, ga_w, longest) == 1)


def definition(n_ctx_train: int, ga_w: int, n_tokens: int) -> set[int]:
    """The group sizes that a plan names for a window, by trying them all."""

    def smallest(ok: Any) -> int:
        return next((ga_n for ga_n in range(2, 4 * n_tokens) if ok(ga_n)), 0)

    sizes = {smallest(lambda g: positions.n_ctx_reach(n_ctx_train, g, ga_w) >= n_tokens)}
    sizes |= {smallest(lambda g, end=end: rule(n_ctx_train, g, ga_w, n_tokens, end)) for end in RULE}
    return sizes - {0}


@pytest.mark.parametrize("n_tokens", [513, 700, 1024, 1500, 3000])
def test_pairs(tiny_model: Path, n_tokens: int) -> None:
    plan = make_plan(tiny_model, n_tokens)
    assert plan.model.n_ctx_train == 512
    found: dict[int, set[int]] = {}
    for pair in plan.pairs:
        found.setdefault(pair.ga_w, set()).add(pair.ga_n)
        relative = {positions.pos_rel(q, k, pair.ga_n, pair.ga_w) for q in (n_tokens - 1,) for k in range(q + 1)}
        assert pair.pos_rel_max == max(relative) < 512
        assert pair.share == pair.pos_rel_max / 512
        assert pair.n_ctx_reach == positions.n_ctx_reach(512, pair.ga_n, pair.ga_w) >= n_tokens
        assert pair.reaches
        kept = [end for end in RULE if rule(512, pair.ga_n, pair.ga_w, n_tokens, end)]
        assert pair.rule == (str(kept[0]) if kept else None)
    auto = power(512, 64, n_tokens)
    expected = {ga_w: definition(512, ga_w, n_tokens) for ga_w in (32, 64, 128, 256)}
    assert found == expected | {64: expected[64] | {auto}}
    assert plan.recommended in plan.pairs
    assert plan.recommended is not None
    assert (plan.recommended.ga_n, plan.recommended.ga_w) == (auto, 64)
    assert plan.pair == plan.recommended
    assert f"ga_w=64 is an eighth of the trained window, and ga_n={auto} the smallest power of two" in plan.why


@pytest.mark.parametrize(
    ("ga_map", "ga_n", "ga_w"),
    [("jet-long", 3, 64), ("rerope", 2, 64), ("leaky", 8, 64), ("lampe", 332, 64), ("mrrope", 3, 0)],
)
def test_other_maps(tiny_model: Path, ga_map: str, ga_n: int, ga_w: int) -> None:
    """1,500 tokens on a model trained on 512."""
    plan = make_plan(tiny_model, 1500, ga_map=ga_map)
    assert plan.recommended is not None
    assert (plan.recommended.ga_n, plan.recommended.ga_w, plan.ga_map) == (ga_n, ga_w, ga_map)
    assert [(each.ga_n, each.n_tokens) for each in plan.auto] == (
        [(64 if ga_map == "lampe" else 1, 512), (ga_n, 1500)] if ga_map != "mrrope" else []
    )
    for pair in plan.pairs:
        den = positions.pos_den(pair.ga_n, ga_map)
        largest = max(Fraction(positions.pos_rel(1499, k, pair.ga_n, pair.ga_w, ga_map), den) for k in range(1500))
        assert pair.pos_rel_max - 1 < largest <= pair.pos_rel_max
        assert pair.share == float(largest / 512)
        assert pair.reaches
    asked = make_plan(tiny_model, 1500, ga_map=ga_map, ga_n=512).asked
    assert asked is not None
    assert asked.n_ctx_reach == positions.n_ctx_reach(512, 512, ga_w, ga_map)


def test_the_default_window_of_a_long_trained_context(tmp_path: Path) -> None:
    """It is not a part of it like the others, and has its rows."""
    path = architectures.make_tiny().make(tmp_path / "long.gguf", "llama", 65536)
    plan = make_plan(path)
    assert plan.recommended is not None
    assert plan.recommended.ga_w == 2048
    assert list(dict.fromkeys(pair.ga_w for pair in plan.pairs)) == [2048, 4096, 8192, 16384, 32768]
    assert plan.recommended in plan.pairs
    assert "ga_w=2048 is 3% of the trained window" in plan.why


@pytest.mark.parametrize(("n_tokens", "ga_w"), [(700, None), (3000, None), (1500, 256), (1500, 400), (600, 0)])
def test_what_auto_does(tiny_model: Path, n_tokens: int, ga_w: int | None) -> None:
    """A text of each length at which the plan says that another group begins is read with that by ``Llama``."""
    plan = make_plan(tiny_model, n_tokens, ga_n="auto", ga_w=ga_w)
    assert plan.asked == plan.pair == plan.recommended
    assert plan.recommended is not None
    assert plan.auto[0] == AutoGroup(1, 512)
    assert plan.auto[-1].ga_n == plan.recommended.ga_n
    assert plan.auto[-1].n_tokens >= n_tokens > plan.auto[-2].n_tokens
    with engine(tiny_model, n_ctx=n_tokens, ga_n="auto", ga_w=ga_w, n_threads=1) as llm:
        assert llm.self_extend.ga_w == plan.recommended.ga_w
        for i, group in enumerate(plan.auto):
            lengths = [min(group.n_tokens, n_tokens)] + ([plan.auto[i - 1].n_tokens + 1] if i else [])
            for length in lengths:
                llm.n_tokens = 0
                llm.eval([5] * length)
                assert llm.self_extend.ga_n == group.ga_n, length


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_memory_of_auto(tiny_models: dict[str, Path], name: str) -> None:
    """What a context with auto has taken, with the settings that are left to it and some that are not."""
    for n_ctx, options in (
        (2000, {}),
        (700, {"ga_w": 100, "n_ubatch": 32}),
        (3000, {"type_k": "Q8_0", "type_v": "Q8_0", "flash_attn": True}),
        (400, {}),  # which is the plain model
    ):
        one = {"type_k": "F16", "type_v": "F16", **options}
        (memory,) = make_plan(tiny_models[name], n_ctx, ga_n="auto", **one).memory
        types = {"type_k": TYPES[one["type_k"]], "type_v": TYPES[one["type_v"]]}
        with engine(tiny_models[name], n_ctx=n_ctx, ga_n="auto", n_threads=1, **{**options, **types}) as llm:
            info = llm.self_extend
            (found,) = info.memory
            if n_ctx > 512:
                assert (memory.cache.bytes_far, memory.cache.bytes_near) == (info.bytes_far, info.bytes_near)
            else:
                assert (info.ga_n_max, memory.cache.bytes_near) == (1, 0)
            assert memory.cache.n_bytes == found.bytes_cache
            assert found.bytes_compute <= memory.bytes_compute < 1.8 * found.bytes_compute


def test_twice_the_trained_window_by_default(tiny_model: Path) -> None:
    assert make_plan(tiny_model) == make_plan(tiny_model, 1024)


def test_inside_the_trained_window(tiny_model: Path) -> None:
    plan = make_plan(tiny_model, 512)
    assert (plan.recommended, plan.pair, plan.pairs) == (None, None, ())
    assert plan.auto == (AutoGroup(1, 512),)
    assert make_plan(tiny_model, 512, ga_n="auto") == plan
    assert plan.why.startswith("512 tokens fit into the trained window of 512")
    assert all(memory.cache.bytes_near == 0 for memory in plan.memory)
    asked = make_plan(tiny_model, 512, ga_n=4)
    assert asked.recommended is None
    assert asked.asked == asked.pair == Pair(4, 64, 1856, True, 175, 175 / 512, "1/2")


def test_a_pair_of_ones_own(tiny_model: Path) -> None:
    plan = make_plan(tiny_model, 1500, ga_n=5, ga_w=100)
    assert plan.asked == plan.pair == Pair(5, 100, 2160, True, 379, 379 / 512, None)
    assert plan.recommended != plan.asked
    assert {pair.ga_w for pair in plan.pairs} == {100}

    short = make_plan(tiny_model, 1500, ga_n=2, ga_w=100)
    assert short.asked is not None
    assert (short.asked.reaches, short.asked.n_ctx_reach) == (False, 924)
    assert short.asked.share >= 1
    assert short.pair == short.recommended != short.asked

    window = make_plan(tiny_model, 1500, ga_w=400)  # leaves nothing for the rule
    assert window.asked == window.recommended == window.pair
    assert window.recommended is not None
    assert window.recommended.rule is None
    assert window.recommended.ga_n == power(512, 400, 1500) == 16
    assert positions.ga_n_min(512, 400, 1500) == 10
    assert "no ga_n keeps the authors' rule" in window.why

    plain = make_plan(tiny_model, 400, ga_n=1)
    assert plain.pair is None
    assert plain.asked is not None
    assert (plain.asked.ga_n, plain.asked.n_ctx_reach, plain.asked.pos_rel_max) == (1, 512, 399)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_tokens": 0}, "^n_tokens is 0; it must be an integer from 1 "),
        ({"ga_n": 0}, "^ga_n is 0; .*, or 'auto'$"),
        ({"ga_n": "Auto"}, "^ga_n is 'Auto' of type str; .*, or 'auto'$"),
        ({"ga_w": -1}, "^ga_w is -1; "),
        ({"ga_w": 512}, "^ga_w is 512; it must be below the trained context of 512 tokens$"),
        ({"n_ubatch": 0}, "^n_ubatch is 0; "),
        ({"n_gpu_layers": -2}, "^n_gpu_layers is -2; it must be an integer from -1 "),
        ({"type_k": "Q4_K"}, "^'Q4_K' is no type of cache; it must be one of F32, F16, BF16, Q8_0, "),
        ({"type_v": "Q8_0", "flash_attn": False}, "^values of type Q8_0 need flash attention$"),
    ],
)
def test_settings_that_are_not_allowed(tiny_model: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make_plan(tiny_model, **options)


#
# the cache, against the engine
#

CONTEXTS = [  # n_ctx, ga_n, ga_w, n_ubatch, type_k, type_v, flash_attn
    (1000, 4, 64, 32, "F16", "F16", False),
    (1000, 4, 64, 32, "F16", "F16", True),
    (2049, 8, 256, 512, "F32", "BF16", False),
    (600, 2, 0, 512, "Q8_0", "Q8_0", True),
    (700, 5, 1, 1, "Q5_1", "F16", True),
    (300, 3, 100, 512, "Q5_0", "Q4_1", True),
    (3000, 9, 200, 256, "Q4_0", "IQ4_NL", True),
    (513, 3, 511, 100, "IQ4_NL", "F32", False),
]


def engine(path: Path, **options: Any) -> Llama:
    """A context without llama.cpp's log, which tells that n_ctx is beyond the trained context."""
    with contextlib.redirect_stderr(io.StringIO()):
        return Llama(str(path), verbose=False, **options)


@pytest.mark.parametrize("name", ["llama", "llama-64", "gemma", "qwen3", "gemma2", "gemma3", "gpt-oss", "olmo3"])
def test_cache_sizes_are_the_engines(tiny_models: dict[str, Path], name: str) -> None:
    for n_ctx, ga_n, ga_w, n_ubatch, type_k, type_v, flash_attn in CONTEXTS:
        options = {"ga_n": ga_n, "ga_w": ga_w, "n_ubatch": n_ubatch, "flash_attn": flash_attn}
        plan = make_plan(tiny_models[name], n_ctx, type_k=type_k, type_v=type_v, **options)
        types = {"type_k": TYPES[type_k], "type_v": TYPES[type_v]}
        with engine(tiny_models[name], n_ctx=n_ctx, **types, **options) as llm:
            info = llm.self_extend
        (memory,) = plan.memory
        assert (memory.cache.bytes_far, memory.cache.bytes_near) == (info.bytes_far, info.bytes_near)
        assert len(plan.model.extended) == info.n_layer_fused
        assert plan.asked is not None
        assert (plan.asked.n_ctx_reach, plan.model.n_ctx_train) == (info.n_ctx_reach, info.n_ctx_train)
        assert plan.asked == plan.pair


@pytest.mark.parametrize("flash_attn", [False, True])
def test_cache_sizes_where_layers_differ(tmp_path: Path, flash_attn: bool) -> None:
    """Without flash attention values are padded to those of the widest layer."""
    for i, name in enumerate(("heads of each layer", "layers without attention", "layers used twice")):
        path = more_models.make(tmp_path / f"{i}.gguf", name)
        (memory,) = make_plan(path, 90, ga_n=2, ga_w=8, n_ubatch=16, type_k="F16", flash_attn=flash_attn).memory
        with engine(path, n_ctx=90, ga_n=2, ga_w=8, n_ubatch=16, flash_attn=flash_attn) as llm:
            info = llm.self_extend
        assert (memory.cache.bytes_far, memory.cache.bytes_near) == (info.bytes_far, info.bytes_near), name


CACHE_LOG = re.compile(r"size = +([\d.]+) MiB \( *(\d+) cells, +(\d+) layers.*?K \((\S+)\): .*?V \((\S+)\): ")


@pytest.mark.parametrize("swa_full", [True, False])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gpt-oss"])
def test_cache_of_the_plain_model_is_what_llama_cpp_logs(
    tiny_models: dict[str, Path], name: str, swa_full: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """Cells, layers and types of each cache in llama.cpp's own log; sizes there are rounded to two digits."""
    for n_ctx, n_ubatch, type_k, type_v in (
        (2000, 64, "F16", "F16"),
        (300, 512, "Q8_0", "Q4_0"),
        (1500, 1, "F32", "F16"),
    ):
        flash_attn = type_v == "Q4_0"
        plan = make_plan(tiny_models[name], 300, type_k=type_k, type_v=type_v)
        cache = cache_size(plan.model.layers, n_ctx, type_k=type_k, type_v=type_v, n_ubatch=n_ubatch, swa_full=swa_full)
        types = {"type_k": TYPES[type_k], "type_v": TYPES[type_v]}
        log = io.StringIO()
        with contextlib.redirect_stderr(log):
            Llama(
                str(tiny_models[name]),
                n_ctx=n_ctx,
                ga_n=1,
                n_ubatch=n_ubatch,
                swa_full=swa_full,
                flash_attn=flash_attn,
                **types,
            ).close()
        expected = [(cache.bytes_far, cache.cells_far, len(plan.model.extended))]
        if plan.model.windowed:
            expected.append((cache.bytes_swa, cache.cells_swa, len(plan.model.windowed)))
        assert [
            (float(size), int(cells), int(n_layer), k.upper(), v.upper())
            for size, cells, n_layer, k, v in CACHE_LOG.findall(log.getvalue())
        ] == [
            (pytest.approx(n_bytes / 2**20, abs=0.0051), cells, n_layer, type_k, type_v)
            for n_bytes, cells, n_layer in expected
        ]
        assert cache.bytes_near == cache.cells_near == 0


def test_bytes_of_a_row_are_ggmls() -> None:
    from pyselfextend import _native

    cdll = _native.load().cdll
    for name, (n_block, n_bytes) in CACHE_TYPES.items():
        assert cdll.ggml_row_size(TYPES[name], 32 * 7) == 32 * 7 // n_block * n_bytes


def test_types_are_the_engines() -> None:
    assert list(CACHE_TYPES) == list(ENGINE_TYPES.values())


def test_types_that_do_not_fit_the_heads(tmp_path: Path) -> None:
    """Heads of 16: with flash attention llama.cpp makes no quantized cache for them, without it rows of 32 do."""
    path = more_models.make(tmp_path / "model.gguf", "no windows by the number of layers")
    plan = make_plan(path, 100)
    assert [memory.cache.type_k for memory in plan.memory] == ["F32", "F16", "BF16"]
    assert set(plan.impossible) == set(CACHE_TYPES) - {"F32", "F16", "BF16"}
    assert plan.impossible["Q8_0"] == "keys of type Q8_0 are stored in blocks of 32, the model's heads have 16"
    options = {"n_ctx": 100, "ga_n": 2, "type_k": TYPES["Q8_0"]}
    with pytest.raises(ValueError, match="keys of type Q8_0 are stored in blocks of 32"):
        engine(path, flash_attn=True, type_v=TYPES["Q8_0"], **options)
    with engine(path, **options) as llm:
        info = llm.self_extend
    (memory,) = make_plan(path, 100, ga_n=2, type_k="Q8_0").memory
    assert (memory.cache.bytes_far, memory.cache.bytes_near) == (info.bytes_far, info.bytes_near)


def test_real_models(smollm2: Path, gemma3: Path) -> None:
    """Weights, parameters and caches as llama.cpp has them; computing takes what is said and not much more."""
    import llama_cpp

    for path, n_ctx in ((smollm2, 10_000), (gemma3, 40_000)):
        plan = make_plan(path, n_ctx, n_ubatch=256, type_k="Q8_0", type_v="Q8_0", swa_full=False)
        assert plan.recommended is not None
        log = io.StringIO()
        with contextlib.redirect_stderr(log):
            llm = Llama(
                str(path), n_ctx=n_ctx, ga_n=plan.recommended.ga_n, n_ubatch=256, flash_attn=True, swa_full=False,
                type_k=TYPES["Q8_0"], type_v=TYPES["Q8_0"], n_threads=1,
            )  # fmt: skip
        with llm:
            info, model = llm.self_extend, llm._model.model
            assert plan.model.n_params == llama_cpp.llama_model_n_params(model)
            assert plan.model.bytes_weights == llama_cpp.llama_model_size(model)
            assert plan.model.n_vocab == llm.n_vocab()
            assert plan.model.n_embd == llm.n_embd()
            assert len(plan.model.layers) == llama_cpp.llama_model_n_layer(model)
        (memory,) = plan.memory
        assert (memory.cache.bytes_far, memory.cache.bytes_near) == (info.bytes_far, info.bytes_near)
        assert info.ga_w == plan.recommended.ga_w
        (found,) = info.memory
        assert found.bytes_compute <= memory.bytes_compute < 1.05 * found.bytes_compute
        assert (memory.bytes_cache_device, memory.ways, plan.offload) == (0, (), None)
        assert memory.n_bytes == plan.model.bytes_weights + memory.cache.n_bytes + memory.bytes_compute
        assert memory.holds == (memory.n_bytes <= plan.free.n_bytes)
        if path == gemma3:
            assert [bool(layer.window) for layer in plan.model.layers] == [(i + 1) % 6 != 0 for i in range(18)]
            sizes = [float(size) for size, *_ in CACHE_LOG.findall(log.getvalue())]
            assert sizes[1] == pytest.approx(memory.cache.bytes_swa / 2**20, abs=0.0051)


def test_computing_the_plain_model_takes_its_scores(tiny_model: Path) -> None:
    with engine(tiny_model, n_ctx=512, n_batch=512) as llm:
        (found,) = llm.self_extend.memory
    (memory,) = make_plan(tiny_model, 512, type_k="F16").memory
    assert 4 * 512 * 4 * 512 <= found.bytes_compute <= memory.bytes_compute < 1.5 * found.bytes_compute  # four heads


#
# a device; its numbers are compared with the engine's in test_devices.py
#


@pytest.mark.parametrize(
    ("n_gpu_layers", "layers"), [(1, ()), (2, (1,)), (3, (0, 1)), (4, (0, 1)), (-1, (0, 1)), (99, (0, 1))]
)
def test_layers_on_a_device(tiny_model: Path, n_gpu_layers: int, layers: tuple[int, ...]) -> None:
    plan = make_plan(tiny_model, 1024, n_gpu_layers=n_gpu_layers)
    model = plan.model
    assert sum(model.bytes_blocks) + model.bytes_input + model.bytes_output == model.bytes_weights
    assert plan.offload is not None
    assert plan.offload.layers == layers
    assert plan.offload.bytes_weights + plan.offload.bytes_weights_rest == model.bytes_weights
    for memory in plan.memory:
        assert memory.cache.flash_attn
        assert memory.bytes_cache_device == memory.cache.n_bytes * len(layers) // 2
        assert [way.way for way in memory.ways] == ["fused", "composed"]
        for way in memory.ways:
            assert way.n_bytes == plan.offload.bytes_weights + memory.bytes_cache_device + way.bytes_compute
        fused, composed = memory.ways
        assert (fused.bytes_compute < composed.bytes_compute) == bool(layers)
        rest = plan.offload.bytes_weights_rest + memory.cache.n_bytes - memory.bytes_cache_device
        assert memory.n_bytes == rest + memory.bytes_compute


def test_ways_of_a_device(tiny_model: Path) -> None:
    """A device can compute in one kernel with flash attention only; the plain model has a way of its own."""
    (memory,) = make_plan(tiny_model, 1024, n_gpu_layers=-1, type_k="F16", flash_attn=False).memory
    assert [way.way for way in memory.ways] == ["composed"]
    (memory,) = make_plan(tiny_model, 512, n_gpu_layers=-1, type_k="F16").memory
    assert [way.way for way in memory.ways] == ["plain"]
    assert make_plan(tiny_model, 1024).offload is None


def test_an_output_layer_with_the_embeddings(smollm2: Path) -> None:
    """They are on the device and in main memory."""
    plan = make_plan(smollm2, 16384, n_gpu_layers=1)
    assert plan.offload is not None
    assert plan.offload.bytes_weights + plan.offload.bytes_weights_rest > plan.model.bytes_weights
    assert plan.offload.bytes_weights_rest == plan.model.bytes_input + sum(plan.model.bytes_blocks)
