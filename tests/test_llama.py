"""``pyselfextend.Llama``: everything of llama_cpp's class, the two arguments, their errors, and the description."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import pickle
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import unsupported

from pyselfextend import (
    ContextFullError,
    Llama,
    NotAnIntegerError,
    SelfExtendError,
    SelfExtendInfo,
    SettingError,
    UsageError,
    _native,
    positions,
)
from pyselfextend.placement import Attention

import llama_cpp  # isort: skip  # after pyselfextend

N_CTX_TRAIN = 512  # of the tiny models
PAIRS = [(2, 0), (4, 64), (3, 100), (5, 1)]
N_BYTES_PER_TOKEN = 2 * 2 * 2 * 32 * 2  # of the tiny Llama model's cache: layers, K and V, KV heads, head size, F16

QUIET: dict[str, Any] = {"verbose": False, "n_threads": 1, "n_threads_batch": 1}  # one thread: the models are tiny

Open = Callable[..., Llama]


@pytest.fixture
def open_tiny(tiny_model: Path) -> Iterator[Open]:
    """Opens the tiny Llama model; closes what was opened."""
    opened: list[Llama] = []

    def open_model(**kwargs: Any) -> Llama:
        opened.append(Llama(str(tiny_model), **{**QUIET, "ga_n": 1, **kwargs}))
        return opened[-1]

    yield open_model
    for llm in opened:
        llm.close()


def some_tokens(n_tokens: int, seed: int = 0) -> list[int]:
    """Token ids of the tiny models, without control tokens."""
    return [int(token) for token in np.random.default_rng(seed).integers(3, 300, n_tokens)]


def last_logits(llm: llama_cpp.Llama) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits [n_vocab] after the last token."""
    return np.ctypeslib.as_array(llm._ctx.get_logits(), shape=(llm.n_vocab(),)).copy()


def complete(llm: llama_cpp.Llama, prompt: str | list[int], n_tokens: int = 12) -> str:
    completion: Any = llm.create_completion(prompt, max_tokens=n_tokens, temperature=0.0)
    return str(completion["choices"][0]["text"])


# -- settings


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"ga_n": 0}, SettingError, "ga_n is 0; it must be an integer from 1 to "),
        ({"ga_n": -4}, SettingError, "ga_n is -4; it must be an integer from 1 to "),
        ({"ga_n": 2**40}, SettingError, "ga_n is 1099511627776; it must be an integer from 1 to "),
        ({"ga_n": 2.0}, NotAnIntegerError, "ga_n is 2.0 of type float; it must be an integer"),
        ({"ga_n": np.float32(2)}, NotAnIntegerError, "of type float32; it must be an integer"),
        ({"ga_n": True}, NotAnIntegerError, "ga_n is True of type bool; it must be an integer"),
        ({"ga_n": "2"}, NotAnIntegerError, "ga_n is '2' of type str; it must be an integer"),
        ({"ga_n": "many"}, NotAnIntegerError, "ga_n is 'many' of type str; it must be .*, or 'auto'"),
        ({"ga_n": 2, "ga_w": -1}, SettingError, "ga_w is -1; it must be an integer from 0 to "),
        ({"ga_n": 2, "ga_w": 64.0}, NotAnIntegerError, "ga_w is 64.0 of type float; it must be an integer"),
        ({"ga_n": 2, "ga_w": 512}, SettingError, "ga_w is 512, it must be below the trained context.* 512 tokens"),
        ({"ga_n": 2, "ga_w": 2**31 - 1}, SettingError, "ga_w is 2147483647, it must be below the trained context"),
        ({"ga_n": 2, "n_ctx": -1}, SettingError, "n_ctx is -1; it must be an integer from 0 to "),
        ({"ga_n": 2, "n_ctx": 2**32 + 512}, SettingError, "n_ctx is 4294967808; it must be an integer from 0 to "),
        ({"ga_n": 2, "n_ctx": 512.0}, NotAnIntegerError, "n_ctx is 512.0 of type float; it must be an integer"),
        ({"ga_n": 2, "n_batch": 0}, SettingError, "n_batch is 0; it must be an integer from 1 to "),
        ({"ga_n": 2, "type_k": 999}, SettingError, r"type_k is 999; it must be None or one of 0 \(F32\), 1 \(F16\), "),
        ({"ga_n": 2, "type_v": "f16"}, SettingError, "type_v is 'f16'; it must be None or one of "),
        ({"ga_n": 2, "n_ubatch": -1}, SettingError, "n_ubatch is -1; it must be an integer from 1 to "),
    ],
)
def test_bad_settings(open_tiny: Open, kwargs: dict[str, Any], error: type[ValueError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        open_tiny(**kwargs)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("ga_n", "ga_w"), PAIRS)
def test_context_up_to_the_reach_and_no_further(open_tiny: Open, ga_n: int, ga_w: int) -> None:
    reach = positions.n_ctx_reach(N_CTX_TRAIN, ga_n, ga_w)
    llm = open_tiny(ga_n=ga_n, ga_w=ga_w, n_ctx=reach)
    assert llm.n_ctx() == reach  # llama.cpp pads it to a multiple of 256
    assert llm.self_extend.n_ctx_reach == reach

    smallest = positions.ga_n_min(N_CTX_TRAIN, ga_w, reach + 1)
    with pytest.raises(
        SettingError, match=rf"\b{reach + 1}\b.*\b{reach} tokens\b.*smallest ga_n that fits is {smallest}$"
    ):
        open_tiny(ga_n=ga_n, ga_w=ga_w, n_ctx=reach + 1)
    assert open_tiny(ga_n=smallest, ga_w=ga_w, n_ctx=reach + 1).n_ctx() > reach


def test_a_failed_construction_frees_the_model(open_tiny: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    bindings: Any = sys.modules["llama_cpp.llama_cpp"]
    freed: list[Any] = []
    free = bindings.llama_model_free

    def free_and_count(model: Any) -> None:
        freed.append(model)
        free(model)

    monkeypatch.setattr(bindings, "llama_model_free", free_and_count)

    with pytest.raises(SettingError) as caught:
        open_tiny(ga_n=2, ga_w=0, n_ctx=5000)
    assert len(freed) == 1  # now, while the exception still holds the instance
    del caught
    gc.collect()  # and nothing is left that complains when it is collected: warnings are errors here


def test_a_failed_construction_leaves_no_setting_behind(open_tiny: Open, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        Llama(str(tmp_path / "missing.gguf"), ga_n=4, verbose=False)
    assert _native.load().get_info(open_tiny()._ctx.ctx) is None

    with pytest.raises(SettingError):
        open_tiny(ga_n=2, n_ctx=10**6)
    assert _native.load().get_info(open_tiny()._ctx.ctx) is None


def test_a_setting_belongs_to_its_thread(open_tiny: Open) -> None:
    both_set = threading.Barrier(2)
    library = _native.load()
    seen: dict[int, SelfExtendInfo] = {}

    def create(ga_n: int) -> None:
        library.set_next(ga_n, 64)
        both_set.wait(60)
        context = llama_cpp.llama_init_from_model(model, params)
        info = library.get_info(context)
        assert info is not None
        seen[ga_n] = info
        llama_cpp.llama_free(context)

    llm = open_tiny()
    model, params = llm.model, llm.context_params
    threads = [threading.Thread(target=create, args=(ga_n,)) for ga_n in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {ga_n: info.ga_n for ga_n, info in seen.items()} == {2: 2, 3: 3}


@pytest.mark.parametrize("arch", unsupported.LAYERS)
def test_unsupported_architectures_are_refused_by_name(tmp_path: Path, arch: str) -> None:
    model = str(unsupported.make(tmp_path / "model.gguf", arch))
    with pytest.raises(SettingError, match=f"'{arch}' is not supported.*{unsupported.REASONS[arch]}"):
        Llama(model, n_ctx=64, ga_n=2, ga_w=8, verbose=False)
    with Llama(model, n_ctx=64, verbose=False) as llm:  # the plain model works
        assert llm.self_extend.ga_n == 1


@pytest.mark.parametrize(("way", "n_fused"), [("auto", 2), ("fused", 2), ("composed", 0)])
def test_the_way_of_computing_can_be_forced(
    open_tiny: Open, monkeypatch: pytest.MonkeyPatch, way: str, n_fused: int
) -> None:
    monkeypatch.setenv("PYSELFEXTEND_ATTN", way)
    info = open_tiny(ga_n=4).self_extend
    assert (info.n_layer_fused, info.n_layer_composed) == (n_fused, 2 - n_fused)


@pytest.mark.parametrize(
    ("is_fused", "given", "expected"),
    [
        (True, {"n_gpu_layers": -1}, True),
        (True, {"n_gpu_layers": -1, "flash_attn": False}, False),
        (True, {}, False),
        (False, {"n_gpu_layers": -1}, False),
    ],
)
def test_flash_attention_is_on_where_a_device_fuses_with_it(
    open_tiny: Open, monkeypatch: pytest.MonkeyPatch, is_fused: bool, given: dict[str, Any], expected: bool
) -> None:
    monkeypatch.setattr("pyselfextend.llama.model._library.device_is_fused", lambda: is_fused)
    for ga_n in (4, 1):
        flash = open_tiny(ga_n=ga_n, **given).context_params.flash_attn_type
        assert (flash == llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED) == (expected and ga_n > 1)


def test_flash_attention_is_off_where_it_does_not_help(open_tiny: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that fuses, but not this model's layers: as if there was none."""
    from pyselfextend.llama.model import _library

    get_info = _library.get_info

    def composed(ctx: Any) -> SelfExtendInfo | None:
        info = get_info(ctx)
        assert info is not None
        return dataclasses.replace(info, attention=(Attention("composed", "GPU0", (0, 1)),))

    monkeypatch.setattr("pyselfextend.llama.model._library.device_is_fused", lambda: True)
    monkeypatch.setattr("pyselfextend.llama.model._library.get_info", composed)
    llm = open_tiny(ga_n=4, n_gpu_layers=-1)
    assert llm.context_params.flash_attn_type == llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    assert llm.create_completion("a", max_tokens=2)["choices"]


def test_a_bad_way_of_computing(open_tiny: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSELFEXTEND_ATTN", "fast")
    with pytest.raises(SettingError, match=r"^PYSELFEXTEND_ATTN is 'fast'; it must be one of auto, fused, composed$"):
        open_tiny(ga_n=4)


# -- description


def test_description(open_tiny: Open) -> None:
    info = open_tiny(ga_n=np.int64(4), ga_w=64, n_ctx=1024, n_ubatch=128).self_extend
    assert (info.ga_n, info.ga_w, info.n_ctx_train, info.n_ctx_reach) == (4, 64, 512, (512 - 64 + 16) * 4)
    assert info.bytes_far == 1024 * N_BYTES_PER_TOKEN
    assert (64 + 128) * N_BYTES_PER_TOKEN <= info.bytes_near < info.bytes_far
    assert "ga_n=4 ga_w=64" in str(info)


def test_default_window_is_an_eighth_of_the_trained_context(open_tiny: Open) -> None:
    assert open_tiny(ga_n=4).self_extend.ga_w == N_CTX_TRAIN // 8


def test_description_of_the_plain_model(open_tiny: Open) -> None:
    llm = open_tiny(n_ctx=1024)
    assert llm.self_extend == SelfExtendInfo(
        ga_n=1,
        ga_n_max=1,
        ga_w=0,
        n_ctx_train=512,
        n_ctx_reach=512,
        bytes_far=0,
        bytes_near=0,
        attention=(),
        memory=_native.load().get_memory(llm._ctx.ctx),
    )
    (memory,) = llm.self_extend.memory
    assert (memory.device, memory.bytes_cache) == ("CPU", 1024 * N_BYTES_PER_TOKEN)


@pytest.mark.parametrize("way", ["fused", "composed"])
def test_attention_and_memory(open_tiny: Open, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setenv("PYSELFEXTEND_ATTN", way)
    llm = open_tiny(ga_n=4, ga_w=64, n_ctx=1024, n_ubatch=128)
    info = llm.self_extend
    assert info.attention == (Attention(way, "CPU", (0, 1)),)
    (memory,) = info.memory
    assert (memory.device, memory.bytes_cache) == ("CPU", info.bytes_far + info.bytes_near)
    assert llama_cpp.llama_model_size(llm.model) <= memory.bytes_model < 1.1 * llama_cpp.llama_model_size(llm.model)
    assert memory.bytes_compute > 0
    assert f"attention {way} on CPU (2 layers), memory " in str(info)


def test_layers_with_a_window_are_not_in_it(tiny_models: dict[str, Path]) -> None:
    with Llama(str(tiny_models["gemma3"]), ga_n=4, **QUIET) as llm:
        (attention,) = llm.self_extend.attention
        n_layer = llama_cpp.llama_model_n_layer(llm.model)
    assert attention.way == "fused"
    assert len(attention.layers) == 1 < n_layer


def test_devices_that_fuse() -> None:
    library = _native.load()
    assert library.device_is_fused("CPU")
    assert not library.device_is_fused("no such device")


# -- the same class


def test_the_plain_model_calls_nothing_native(open_tiny: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it is asked what is in force: the memory on each device is then read, which is llama.cpp's own count."""

    def called(*_: object) -> None:
        raise AssertionError("called")

    def count(library: _native.Library, ctx: Any) -> Any:
        read.append(ctx)
        return get_memory(library, ctx)

    read: list[Any] = []
    get_memory = _native.Library.get_memory
    for name in ("set_next", "get_info", "get_attention", "last_error"):
        monkeypatch.setattr(_native.Library, name, called)
    monkeypatch.setattr(_native.Library, "get_memory", count)
    llm = open_tiny()
    complete(llm, "a")
    llm.load_state(llm.save_state())
    assert llm.n_ctx() == 512
    assert read == []
    assert llm.self_extend.ga_n == 1
    assert read == [llm._ctx.ctx]


def test_the_plain_model_is_llama_cpps(open_tiny: Open, tiny_model: Path) -> None:
    theirs = llama_cpp.Llama(str(tiny_model), **QUIET)
    ours = open_tiny()
    assert isinstance(ours, llama_cpp.Llama)
    tokens = some_tokens(300)
    theirs.eval(tokens)
    ours.eval(tokens)
    assert np.array_equal(last_logits(ours), last_logits(theirs))
    prompt = ours.tokenize(b"The quick brown")
    assert prompt == theirs.tokenize(b"The quick brown")
    for temperature in (0.0, 1.0):
        ours.set_seed(7)
        theirs.set_seed(7)
        answers = [llm.generate(prompt, temp=temperature) for llm in (ours, theirs)]
        assert [next(answers[0]) for _ in range(12)] == [next(answers[1]) for _ in range(12)]
    theirs.close()


def test_signature_has_every_parameter() -> None:
    upstream = inspect.signature(llama_cpp.Llama).parameters
    ours = inspect.signature(Llama).parameters
    assert list(ours)[:3] == ["model_path", "ga_n", "ga_w"]
    assert {name: ours[name] for name in upstream} == dict(upstream)
    assert set(ours) - set(upstream) == {"ga_n", "ga_w"}
    assert (ours["ga_n"].default, ours["ga_w"].default) == (None, None)


def test_pickling(open_tiny: Open) -> None:
    llm = open_tiny(ga_n=4, ga_w=64, n_ctx=1000)
    copy = pickle.loads(pickle.dumps(llm))
    try:
        assert type(copy) is Llama
        assert copy.self_extend == llm.self_extend
        assert copy.n_ctx() == llm.n_ctx() == 1024
        tokens = some_tokens(800)
        assert complete(copy, tokens) == complete(llm, tokens)
    finally:
        copy.close()


def test_pickling_keeps_the_default_window_open(open_tiny: Open) -> None:
    state = open_tiny(ga_n=4).__getstate__()
    assert (state["ga_n"], state["ga_w"]) == (4, None)


def test_context_manager_and_close(tiny_model: Path) -> None:
    with Llama(str(tiny_model), ga_n=4, verbose=False) as llm:
        assert isinstance(llm, Llama)
        llm.eval([1, 5, 6])
    assert llm.self_extend.ga_n == 4
    llm.close()
    llm.close()


@pytest.mark.parametrize("ga_n", [1, 4])
@pytest.mark.parametrize(
    "use",
    [
        lambda llm: llm.eval([5]),
        lambda llm: llm.n_ctx(),
        lambda llm: llm.tokenize(b"text"),
        lambda llm: llm.detokenize([5]),
        lambda llm: llm.create_completion("text"),
        lambda llm: next(llm.generate([5])),
        lambda llm: llm.create_chat_completion([{"role": "user", "content": "text"}]),
        lambda llm: llm.save_state(),
        lambda llm: llm.ctx,
    ],
)
def test_a_closed_model_raises(open_tiny: Open, ga_n: int, use: Callable[[Llama], object]) -> None:
    """Not a matter of course: llama_cpp passes what it has freed on to llama.cpp."""
    llm = open_tiny(ga_n=ga_n)
    llm.eval([1, 5, 6])
    llm.close()
    with pytest.raises(SelfExtendError, match=r"^this Llama has been closed$"):
        use(llm)


def test_from_pretrained_takes_our_arguments(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is not ours to test and not always there: a stand-in that has the one file."""
    hub: Any = types.ModuleType("huggingface_hub")
    hub.utils = types.ModuleType("huggingface_hub.utils")
    hub.hf_hub_download = lambda **_: str(tiny_model)
    hub.HfFileSystem = lambda: types.SimpleNamespace(ls=lambda *_, **__: ["some/model/tiny.gguf"])
    hub.utils.validate_repo_id = lambda _: None
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", hub.utils)

    llm = Llama.from_pretrained("some/model", "*.gguf", ga_n=4, ga_w=64, verbose=False)
    assert isinstance(llm, Llama)
    with llm:
        assert (llm.self_extend.ga_n, llm.self_extend.ga_w) == (4, 64)


# -- evaluation


@pytest.mark.parametrize(("ga_n", "ga_w"), PAIRS)
def test_tokens_that_do_not_fit_are_refused_before_anything_is_evaluated(open_tiny: Open, ga_n: int, ga_w: int) -> None:
    reach = positions.n_ctx_reach(N_CTX_TRAIN, ga_n, ga_w)
    llm = open_tiny(ga_n=ga_n, ga_w=ga_w, n_ctx=reach)
    tokens = some_tokens(reach)

    llm.eval(tokens[:700])
    with pytest.raises(ContextFullError, match=f"^{reach - 699} tokens after 700 do not fit .* of {reach} tokens; "):
        llm.eval(tokens[: reach - 699])
    assert llm.n_tokens == 700

    llm.eval(tokens[700:])
    assert llm.n_tokens == reach
    with pytest.raises(ContextFullError, match="give at most 0"):
        llm.eval([5])

    fresh = open_tiny(ga_n=ga_n, ga_w=ga_w, n_ctx=reach)
    fresh.eval(tokens)
    assert np.allclose(last_logits(llm), last_logits(fresh), rtol=0, atol=0.02)


def test_a_prompt_that_does_not_fit_leaves_the_instance_usable(open_tiny: Open) -> None:
    llm = open_tiny(ga_n=4, ga_w=64, n_ctx=1000)
    before = complete(llm, some_tokens(600))
    n_tokens = llm.n_tokens
    with pytest.raises(ValueError, match="exceed context window"):
        llm.create_completion(some_tokens(1100))
    with pytest.raises(ContextFullError):
        next(llm.generate(some_tokens(1100, seed=1)))
    assert llm.n_tokens in (0, n_tokens)
    assert complete(llm, some_tokens(600)) == before


def test_the_whole_padded_context_can_be_used(open_tiny: Open) -> None:
    """llama.cpp pads n_ctx to a multiple of 256; llama_cpp's own arrays do not follow."""
    for logits_all in (False, True):
        llm = open_tiny(ga_n=4, ga_w=64, n_ctx=1000, logits_all=logits_all)
        assert llm.n_ctx() == 1024
        llm.eval(some_tokens(1024))
        assert llm.n_tokens == len(llm.eval_tokens) == 1024
    assert llm.scores.shape == (1024, llm.n_vocab())
    assert np.array_equal(llm.scores[1023], last_logits_of_all(llm))


def last_logits_of_all(llm: Llama) -> np.ndarray[Any, np.dtype[np.float32]]:
    """As last_logits, of a model that computes them for every token."""
    return np.ctypeslib.as_array(llm._ctx.get_logits_ith(-1), shape=(llm.n_vocab(),)).copy()


@pytest.mark.parametrize("flash_attn", [False, True])
@pytest.mark.parametrize("keep", [899, 890, 500, 100, 3])
def test_rolling_back(open_tiny: Open, keep: int, flash_attn: bool) -> None:
    """Evaluating on from an earlier point is the same as evaluating afresh, however far back the point is."""
    kwargs = {"ga_n": 4, "ga_w": 64, "n_ctx": 1024, "n_ubatch": 64, "flash_attn": flash_attn}
    tokens, others = some_tokens(900), some_tokens(60, seed=1)
    llm, fresh = open_tiny(**kwargs), open_tiny(**kwargs)
    fresh.eval(tokens[:keep] + others)

    llm.eval(tokens)
    llm.n_tokens = keep
    llm.eval(others)
    assert llm.n_tokens == keep + len(others)
    assert list(llm.eval_tokens) == tokens[:keep] + others
    assert np.allclose(last_logits(llm), last_logits(fresh), rtol=0, atol=0.02)


@pytest.mark.parametrize("ga_n", [1, 4])
def test_going_on_from_just_where_it_was_rolled_back_to(open_tiny: Open, ga_n: int) -> None:
    """There are no logits of the last token: it is evaluated again."""
    tokens = some_tokens(300)
    llm = open_tiny(ga_n=ga_n)
    expected = complete(llm, tokens[:100])
    llm.eval(some_tokens(100, seed=1))
    llm.n_tokens = 100
    assert complete(llm, tokens[:100]) == expected
    llm.n_tokens = 50
    with pytest.raises(UsageError, match="there are no logits to sample from"):
        llm.sample()
    assert complete(llm, tokens[:100]) == expected


def test_a_refused_roll_back_evaluates_again(open_tiny: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """What llama.cpp may answer to any roll-back, and llama_cpp's own eval() ignores."""
    tokens, others = some_tokens(900), some_tokens(60, seed=1)
    llm, fresh = open_tiny(ga_n=4, ga_w=64, n_ctx=1024), open_tiny(ga_n=4, ga_w=64, n_ctx=1024)
    fresh.eval(tokens[:500] + others)

    llm.eval(tokens)
    llm.n_tokens = 500
    with monkeypatch.context() as patch:
        remove = llm._ctx.kv_cache_seq_rm
        patch.setattr(llm._ctx, "kv_cache_seq_rm", lambda seq, p0, p1: p0 != 500 and remove(seq, p0, p1))
        llm.eval(others)
    assert list(llm.eval_tokens) == tokens[:500] + others
    assert np.allclose(last_logits(llm), last_logits(fresh), rtol=0, atol=0.02)


def test_generation_reuses_a_common_prefix(open_tiny: Open) -> None:
    tokens = some_tokens(800)
    prompts = [tokens, tokens + some_tokens(50, seed=1), tokens[:400] + some_tokens(50, seed=2), tokens[:90], tokens]
    llm = open_tiny(ga_n=4, ga_w=64, n_ctx=1024)
    together = [complete(llm, prompt) for prompt in prompts]
    apart = [complete(open_tiny(ga_n=4, ga_w=64, n_ctx=1024), prompt) for prompt in prompts]
    assert together == apart


def test_completions_stop_at_the_end_of_the_context(open_tiny: Open) -> None:
    reach = positions.n_ctx_reach(N_CTX_TRAIN, 2, 0)
    llm = open_tiny(ga_n=2, ga_w=0, n_ctx=reach)
    completion: Any = llm.create_completion(
        some_tokens(reach - 5), max_tokens=None, temperature=0.0, logit_bias={llm.token_eos(): -1e9}
    )
    assert completion["usage"]["completion_tokens"] == 5
    assert completion["choices"][0]["finish_reason"] == "length"


def test_chat(open_tiny: Open) -> None:
    messages: Any = [{"role": "user", "content": "What is in the text? " * 40}]
    answers = []
    for _ in range(2):
        llm = open_tiny(ga_n=4, ga_w=64, n_ctx=1536)
        answer: Any = llm.create_chat_completion(messages, max_tokens=8, temperature=0.0)
        answers.append(answer["choices"][0]["message"]["content"])
        stream: Any = llm.create_chat_completion(messages, max_tokens=8, temperature=0.0, stream=True)
        answers.append("".join(chunk["choices"][0]["delta"].get("content", "") for chunk in stream))
    assert answer["object"] == "chat.completion"
    assert len(set(answers)) == 1


def test_in_the_place_of_llama_cpps_class(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "Llama", Llama)
    with Llama(str(tiny_model), ga_n=4, **QUIET) as llm:
        copy = pickle.loads(pickle.dumps(llm))
        copy.close()
        llm.set_cache(llama_cpp.LlamaRAMCache())
        assert len(complete(llm, "a")) > 0


def test_what_llama_cpps_server_still_gives_is_left_unused(open_tiny: Open) -> None:
    assert open_tiny(rpc_servers=None, mul_mat_q=True).n_ctx() == 512


def test_tokens_that_were_never_written_are_none_that_do_harm(open_tiny: Open) -> None:
    """Chat handlers of images hand on the places of images, which they have not written."""
    assert not open_tiny(n_ctx=1024).input_ids.any()
