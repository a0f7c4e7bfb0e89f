"""Prompt caches, shared, small, or damaged: the answers are those without one, and what cannot be used is a miss."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_llama import QUIET, complete, some_tokens

from pyselfextend import Llama, WrongTypeError

from llama_cpp import LlamaDiskCache, LlamaRAMCache, llama_cpp  # isort: skip  # after pyselfextend

GA_NS = [1, 4]
PROMPT = some_tokens(300)
OTHERS = [some_tokens(200, seed) for seed in range(1, 5)]  # have no beginning in common with it

Open = Callable[..., Llama]


@pytest.fixture
def open_tiny(tiny_model: Path) -> Iterator[Open]:
    """Opens a tiny model, the Llama one if none is named; closes what was opened."""
    opened: list[Llama] = []

    def open_model(model: Path = tiny_model, **kwargs: Any) -> Llama:
        opened.append(Llama(str(model), **{**QUIET, "ga_n": 1, "n_ctx": 1024, "n_batch": 64, **kwargs}))
        return opened[-1]

    yield open_model
    for llm in opened:
        llm.close()


@pytest.fixture(params=["ram", "disk"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "ram":
        yield LlamaRAMCache()
    else:
        disk = LlamaDiskCache(str(tmp_path / "cache"))
        yield disk
        disk.cache.close()


def n_evaluated(llm: Llama) -> int:
    """Tokens that the model has evaluated since it was opened, or since the last call of this function."""
    perf = llama_cpp.llama_perf_context(llm.ctx)
    llama_cpp.llama_perf_context_reset(llm.ctx)
    # llama.cpp counts calls with one token apart, and never counts fewer than one of them
    return int(perf.n_p_eval + perf.n_eval)


def n_held(cache: LlamaRAMCache) -> int:
    """Bytes that a RAM cache really holds."""
    arrays = [array for state in cache.cache_state.values() for array in (state.scores, state.input_ids)]
    return sum(len(s.llama_state) for s in cache.cache_state.values()) + sum(array.nbytes for array in arrays)


# -- hits


@pytest.mark.parametrize("ga_n", GA_NS)
def test_the_longest_known_beginning_is_not_evaluated_again(open_tiny: Open, cache: Any, ga_n: int) -> None:
    plain, llm, fresh = open_tiny(ga_n=ga_n), open_tiny(ga_n=ga_n), open_tiny(ga_n=ga_n)
    prompts = [PROMPT[:100], PROMPT, OTHERS[0], PROMPT, PROMPT + OTHERS[1]]
    expected = [complete(plain, prompt) for prompt in prompts]
    llm.set_cache(cache)
    assert [complete(llm, prompt) for prompt in prompts] == expected
    fresh.set_cache(cache)
    n_evaluated(fresh)
    assert complete(fresh, prompts[-1]) == expected[-1]
    assert n_evaluated(fresh) < 30  # of 500
    assert complete(fresh, prompts[1]) == expected[1]


def test_a_hit_takes_nothing_out(open_tiny: Open, cache: Any) -> None:
    """A disk cache of llama_cpp's loses what is read, and has it again only if the completion comes to its end."""
    llm = open_tiny()
    llm.set_cache(cache)
    complete(llm, PROMPT)
    for _ in range(3):
        fresh = open_tiny()
        fresh.set_cache(cache)
        n_evaluated(fresh)
        stream: Any = fresh.create_completion(PROMPT, max_tokens=8, temperature=0.0, stream=True)
        next(stream)
        stream.close()
        assert n_evaluated(fresh) < 10


@pytest.mark.parametrize("ga_n", GA_NS)
def test_what_is_drawn_is_what_is_drawn_without(open_tiny: Open, ga_n: int) -> None:
    """A state brings along the seed of its time; the same prompt would get the answer of that time again."""
    answers = []
    for cache in (None, LlamaRAMCache()):
        llm = open_tiny(ga_n=ga_n, seed=7)
        llm.set_cache(cache)
        drawn = [llm.create_completion(p, max_tokens=8) for p in (PROMPT, OTHERS[0], PROMPT, OTHERS[0], PROMPT)]
        answers.append([completion["choices"][0]["text"] for completion in drawn])
    assert answers[0] == answers[1]
    assert len(set(answers[0][::2])) == 3


def test_streams_and_chats_use_it(open_tiny: Open, cache: Any) -> None:
    messages: Any = [{"role": "user", "content": "What is in the text? " * 12}]
    answers = []
    for given in (None, cache, cache):
        llm = open_tiny(ga_n=4)
        llm.set_cache(given)
        n_evaluated(llm)
        stream: Any = llm.create_chat_completion(messages, max_tokens=8, temperature=0.0, stream=True)
        answers.append("".join(chunk["choices"][0]["delta"].get("content", "") for chunk in stream))
    assert n_evaluated(llm) < 30
    assert len(set(answers)) == 1


# -- shared


SETTINGS: list[dict[str, Any]] = [
    {"ga_n": 1},
    {"ga_n": 3},
    {"ga_n": 4},
    {"ga_n": 4, "ga_w": 100},
    {"ga_n": 4, "type_k": 8},
    {"ga_n": 1, "type_k": 8},
    {"ga_n": 1, "n_ctx": 512},
    {"ga_n": 1, "n_batch": 128},
    {"ga_n": 1, "logits_all": True},
    {"ga_n": 4, "logits_all": True},
    {"ga_n": 1, "flash_attn": True},
    {"ga_n": 1, "rope_freq_scale": 0.5},
    {"ga_n": 4, "rope_freq_base": 50000.0},
]


def test_instances_with_other_settings_do_not_meet(open_tiny: Open, cache: Any, tiny_models: dict[str, Path]) -> None:
    """Each has the same prompts, one after the other, so that an entry of any of the others would be the longest."""
    every = [*SETTINGS, {"model": tiny_models["llama-mha"]}, {"model": tiny_models["gemma3"], "ga_n": 4}]
    expected = {}
    for shared in (None, cache, cache):
        for i, settings in enumerate(every):
            llm = open_tiny(**settings)
            llm.set_cache(shared)
            n_evaluated(llm)
            answer = complete(llm, PROMPT), complete(llm, PROMPT + OTHERS[0])
            assert expected.setdefault(i, answer) == answer, settings
            was_known = n_evaluated(llm) < 50
            llm.close()
            if shared is None:
                assert not was_known
    assert was_known


def test_llama_cpps_own_class_does_not_meet_ours(open_tiny: Open, tiny_model: Path, cache: Any) -> None:
    import llama_cpp

    theirs = llama_cpp.Llama(str(tiny_model), **QUIET, n_ctx=1024, n_batch=64)
    ours = open_tiny(ga_n=4)
    expected = complete(theirs, PROMPT), complete(ours, PROMPT)
    theirs.set_cache(cache)
    ours.set_cache(cache)
    theirs.reset()
    ours.reset()
    assert (complete(theirs, PROMPT), complete(ours, PROMPT)) == expected
    theirs.reset()
    ours.reset()
    assert (complete(theirs, PROMPT), complete(ours, PROMPT)) == expected
    theirs.close()


def test_a_file_that_was_replaced_is_another_model(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    """Also while an instance that has the old one open goes on to file its states."""
    path, cache = tmp_path / "model.gguf", LlamaRAMCache()
    answers = []
    with Llama(str(tiny_models["llama-mha"]), **QUIET, n_ctx=1024) as llm:
        expected = complete(llm, PROMPT)
    shutil.copy(tiny_models["llama"], path)
    with Llama(str(path), **QUIET, n_ctx=1024, use_mmap=False) as old:
        shutil.copy(tiny_models["llama-mha"], path)
        old.set_cache(cache)
        answers.append(complete(old, PROMPT))
        with Llama(str(path), **QUIET, n_ctx=1024) as new:
            new.set_cache(cache)
            assert complete(new, PROMPT) == expected != answers[0]


TWO = """
import sys
from pyselfextend import Llama, WrongTypeError
from llama_cpp import LlamaDiskCache
model, folder, ga_n, prompts = sys.argv[1], sys.argv[2], int(sys.argv[3]), eval(sys.argv[4])
llm = Llama(model, ga_n=ga_n, n_ctx=1024, n_batch=64, verbose=False, n_threads=1, n_threads_batch=1)
llm.set_cache(LlamaDiskCache(folder, 800_000))
for prompt in prompts * 6:
    print(ascii(llm.create_completion(prompt, max_tokens=12, temperature=0.0)["choices"][0]["text"]))
"""


def test_processes_share_a_disk_cache(open_tiny: Open, tiny_model: Path, tmp_path: Path) -> None:
    """A small one, so that each throws out what the other is about to read."""
    prompts = [PROMPT, OTHERS[0], PROMPT[:150] + OTHERS[1], OTHERS[2]]
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", TWO, str(tiny_model), str(tmp_path), str(ga_n), repr(prompts)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for ga_n in (1, 4, 4)
    ]
    for process, ga_n in zip(processes, (1, 4, 4), strict=True):
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        expected = [ascii(complete(open_tiny(ga_n=ga_n), prompt)) for prompt in prompts]
        assert out.splitlines() == expected * 6


def test_threads_share_a_ram_cache(open_tiny: Open) -> None:
    cache = LlamaRAMCache(600_000)
    prompts = [PROMPT, *OTHERS]
    expected = [complete(open_tiny(ga_n=4), prompt) for prompt in prompts]
    answers: dict[int, list[str]] = {}

    def ask(number: int) -> None:
        answers[number] = [complete(llms[number], prompt) for prompt in prompts * 4]

    llms = [open_tiny(ga_n=4) for _ in range(3)]
    for llm in llms:
        llm.set_cache(cache)
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(answers.values()) == [expected * 4] * 3


# -- bounded


@pytest.mark.parametrize("ga_n", GA_NS)
@pytest.mark.parametrize("logits_all", [False, True])
def test_a_ram_cache_holds_what_it_may(open_tiny: Open, ga_n: int, logits_all: bool) -> None:
    cache = LlamaRAMCache()
    llm = open_tiny(ga_n=ga_n, logits_all=logits_all)
    llm.set_cache(cache)
    complete(llm, PROMPT)
    cache.capacity_bytes = 5 * n_held(cache) // 2
    sizes = []
    for prompt in [PROMPT, *OTHERS] * 2:
        complete(llm, prompt)
        sizes.append(n_held(cache))
        assert sizes[-1] <= cache.cache_size <= cache.capacity_bytes
    assert len(cache.cache_state) in (2, 3)
    assert max(sizes) > cache.capacity_bytes / 2


def test_a_disk_cache_holds_what_it_may(open_tiny: Open, tmp_path: Path) -> None:
    cache = LlamaDiskCache(str(tmp_path), 2**20)
    llm = open_tiny(logits_all=True)
    llm.set_cache(cache)
    for prompt in [PROMPT, *OTHERS] * 2:
        complete(llm, prompt)
        values = [file for file in tmp_path.rglob("*.val") if file.is_file()]
        assert 0 < sum(file.stat().st_size for file in values) <= 2**20
    assert len(values) < 3
    cache.cache.close()


def test_a_disk_cache_holds_all_that_it_may(open_tiny: Open, tmp_path: Path) -> None:
    """diskcache has a limit of its own, 1 GiB, here a small one."""
    cache = LlamaDiskCache(str(tmp_path))
    cache.cache.reset("size_limit", 2**16)
    llm = open_tiny()
    llm.set_cache(cache)
    for prompt in [PROMPT, *OTHERS]:
        complete(llm, prompt)
    assert all(prompt in llm.cache for prompt in [PROMPT, *OTHERS])
    cache.cache.close()


def test_a_state_without_logits_takes_no_room_for_them(open_tiny: Open) -> None:
    """At ga_n=1 llama_cpp's has rows for a batch of tokens, never written."""
    cache = LlamaRAMCache()
    llm = open_tiny(n_batch=512)
    llm.set_cache(cache)
    complete(llm, PROMPT)
    (state,) = cache.cache_state.values()
    assert n_held(cache) < len(state.llama_state) + 2**14
    expected = complete(llm, PROMPT + OTHERS[0])
    fresh = open_tiny(n_batch=512)
    fresh.set_cache(cache)
    assert complete(fresh, PROMPT + OTHERS[0]) == expected


def test_a_state_that_is_too_large_throws_out_nothing(open_tiny: Open, cache: Any) -> None:
    llm = open_tiny()
    llm.set_cache(cache)
    complete(llm, some_tokens(20, 9))
    n_entries = len(getattr(cache, "cache_state", getattr(cache, "cache", None)))
    llm.cache.capacity_bytes = cache.cache_size + 1000
    with pytest.warns(RuntimeWarning, match=r"^a state of \d+ bytes does not fit into the cache of \d+ bytes$") as said:
        answers = [complete(llm, prompt) for prompt in (PROMPT, OTHERS[0])]
    assert len(said) == 1
    assert answers == [complete(open_tiny(), prompt) for prompt in (PROMPT, OTHERS[0])]
    assert len(getattr(cache, "cache_state", getattr(cache, "cache", None))) == n_entries == 1


# -- damaged


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    """In what is the engine's: pickle does not see it."""
    return data[: len(data) // 3] + bytes([data[len(data) // 3] ^ 64]) + data[len(data) // 3 + 1 :]


@pytest.mark.parametrize("ga_n", GA_NS)
@pytest.mark.parametrize("damage", [cut, flip, lambda _: b"", lambda data: os.urandom(len(data)), lambda _: b"N."])
def test_damaged_entries_of_a_disk_cache(
    open_tiny: Open, tmp_path: Path, ga_n: int, damage: Callable[[bytes], bytes]
) -> None:
    cache = LlamaDiskCache(str(tmp_path))
    llm = open_tiny(ga_n=ga_n)
    llm.set_cache(cache)
    complete(llm, PROMPT[:150])
    whole = set(tmp_path.rglob("*.val"))
    expected = complete(llm, PROMPT)
    (longest,) = set(tmp_path.rglob("*.val")) - whole
    longest.write_bytes(damage(longest.read_bytes()))

    fresh = open_tiny(ga_n=ga_n)
    fresh.set_cache(cache)
    n_evaluated(fresh)
    if damage(b"N.") == b"N.":  # something else that was not damaged on the way
        assert complete(fresh, PROMPT) == expected
    else:
        with pytest.warns(RuntimeWarning, match="^the prompt cache cannot be read") as said:
            assert complete(fresh, PROMPT) == expected
        assert len(said) == 1
    assert 140 < n_evaluated(fresh) < 200  # the shorter one was found
    assert not longest.exists()
    assert complete(fresh, PROMPT) == expected
    cache.cache.close()


def test_an_entry_whose_file_is_gone(open_tiny: Open, tmp_path: Path) -> None:
    cache = LlamaDiskCache(str(tmp_path))
    llm = open_tiny()
    llm.set_cache(cache)
    expected = complete(llm, PROMPT)
    for file in tmp_path.rglob("*.val"):
        file.unlink()
    fresh = open_tiny()
    fresh.set_cache(cache)
    assert complete(fresh, PROMPT) == expected
    cache.cache.close()


def test_a_damaged_database(open_tiny: Open, tmp_path: Path) -> None:
    """Nothing can be read, nothing written; the answers are there."""
    cache = LlamaDiskCache(str(tmp_path))
    llm = open_tiny(ga_n=4)
    llm.set_cache(cache)
    expected = complete(llm, PROMPT)
    cache.cache.close()
    for file in tmp_path.glob("cache.db*"):
        file.write_bytes(b"no database" * 1000)
    llm.reset()
    with pytest.warns(RuntimeWarning, match=r"^the prompt cache cannot be (read|written)") as said:
        assert [complete(llm, PROMPT) for _ in range(3)] == [expected] * 3
    assert len(said) == 2
    cache.cache.close()


def test_a_cache_of_the_callers_that_fails(open_tiny: Open) -> None:
    class Failing(LlamaRAMCache):
        def __getitem__(self, key: Any) -> Any:
            raise ConnectionError("the server is away")

        def __setitem__(self, key: Any, value: Any) -> None:
            raise OSError("no space left")

    llm = open_tiny()
    expected = complete(llm, PROMPT)
    llm.reset()
    llm.set_cache(Failing())
    with pytest.warns(RuntimeWarning) as said:
        assert [complete(llm, PROMPT) for _ in range(2)] == [expected] * 2
    assert [str(warning.message) for warning in said] == [
        "the prompt cache cannot be read: ConnectionError('the server is away')",
        "the prompt cache cannot be written: OSError('no space left')",
    ]


# -- the attribute


@pytest.mark.parametrize("given", [{}, {1: 2}, "ram", 5, False, LlamaRAMCache, object()])
def test_what_is_no_cache_is_refused(open_tiny: Open, given: Any) -> None:
    llm, cache = open_tiny(), LlamaRAMCache()
    llm.set_cache(cache)
    with pytest.raises(WrongTypeError, match=r"it must be None or a llama_cpp\.BaseLlamaCache") as caught:
        llm.set_cache(given)
    assert "\n" not in str(caught.value)
    complete(llm, PROMPT)
    assert cache.cache_size > 0  # still the one in use


def test_the_attribute_is_the_callers_cache_in_effect(open_tiny: Open, cache: Any) -> None:
    llm = open_tiny(ga_n=4)
    assert llm.cache is None
    llm.cache = cache
    assert llm.cache
    assert PROMPT not in llm.cache
    with pytest.raises(KeyError):
        llm.cache[PROMPT]
    with pytest.raises(KeyError):
        llm.cache[[]]
    llm.eval(PROMPT)
    llm.cache[PROMPT] = llm.save_state()
    assert [*PROMPT, 5] in llm.cache
    assert OTHERS[0] not in llm.cache
    assert llm.cache.cache_size == cache.cache_size > 0
    assert llm.cache.capacity_bytes == cache.capacity_bytes
    inside = "cache_state" if isinstance(cache, LlamaRAMCache) else "cache"
    assert getattr(llm.cache, inside) is getattr(cache, inside)
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        llm.cache.colour  # noqa: B018
    state = llm.cache[[*PROMPT, 5]]
    llm.reset()
    llm.load_state(state)
    assert llm.eval_tokens == type(llm.eval_tokens)(PROMPT)
    other = open_tiny(ga_n=3)
    other.set_cache(llm.cache)  # the cache, not this instance's view of it
    assert PROMPT not in other.cache
    llm.set_cache(None)
    assert llm.cache is None


def test_keys_of_numpys_integers(open_tiny: Open, cache: Any) -> None:
    llm = open_tiny()
    llm.set_cache(cache)
    llm.eval(PROMPT)
    llm.cache[np.array(PROMPT)] = llm.save_state()
    assert llm.cache[PROMPT].n_tokens == 300


def test_a_cache_keeps_no_instance_alive(tiny_model: Path) -> None:
    cache = LlamaRAMCache()
    llm = Llama(str(tiny_model), **QUIET)
    llm.set_cache(cache)
    complete(llm, PROMPT)
    gone = weakref.ref(llm)
    gc.disable()
    try:
        del llm
        assert gone() is None
    finally:
        gc.enable()
