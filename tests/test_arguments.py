"""What is given to Llama and its methods: names that do not exist, and values of every kind for every argument.

A sweep calls every public method with every argument being each of many values. It runs in processes of its own, so
that one that ends by a signal is found and named.
"""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sweep

from pyselfextend import ContextFullError, Llama, SettingError, StateError, UnknownArgumentError, UsageError

import llama_cpp  # isort: skip  # after pyselfextend

QUIET: dict[str, Any] = {"verbose": False, "n_threads": 1, "n_threads_batch": 1, "n_ctx": 512}
WHICH = pytest.mark.parametrize("ga_n", [1, 4])


@pytest.fixture
def llm(tiny_model: Path, ga_n: int) -> Iterator[Llama]:
    with Llama(tiny_model, ga_n=ga_n, **QUIET) as opened:
        yield opened


def text(llm: Llama, **arguments: Any) -> str:
    answer: Any = llm.create_completion("abc", **{"max_tokens": 4, "temperature": 0.0, **arguments})
    return str(answer["choices"][0]["text"])


# -- names


@pytest.mark.parametrize(
    ("name", "similar"),
    [("ga_size", "ga_n"), ("n_contex", "n_ctx"), ("n_gpu_layer", "n_gpu_layers"), ("flash_attention", "flash_attn")],
)
def test_arguments_that_do_not_exist(tiny_model: Path, name: str, similar: str) -> None:
    with pytest.raises(UnknownArgumentError, match=rf"^Llama\(\) has no argument '{name}'; did you mean .*{similar}"):
        Llama(tiny_model, **{name: 4}, **QUIET)
    with pytest.raises(TypeError, match=r"has no argument 'qqq'$"):
        Llama(tiny_model, qqq=4, **QUIET)


@WHICH
def test_arguments_of_methods_that_do_not_exist(llm: Llama) -> None:
    with pytest.raises(UnknownArgumentError, match=r"^create_completion\(\) has no argument 'max_token'; .*max_tokens"):
        llm.create_completion("a", max_token=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"generate\(\): missing a required argument: 'tokens'"):
        llm.generate()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="too many positional"):
        llm.eval([5], 6)  # type: ignore[call-arg]


# -- values


def test_every_method_and_argument_is_swept() -> None:
    """New ones of llama_cpp must be swept as well."""
    public = {name for name, value in vars(llama_cpp.Llama).items() if callable(value) and not name.startswith("_")}
    assert public - {*sweep.METHODS, *sweep.NOT_SWEPT} == set()
    assert {*inspect.signature(Llama).parameters} - {"kwargs"} == set(sweep.constructor_arguments())


@pytest.mark.parametrize("what", ["constructor", *sweep.METHODS])
def test_sweep(tiny_model: Path, what: str) -> None:
    """Each gives its result or an exception of ours, the process lives on, and the instance answers as before."""
    found = sweep.run(tiny_model, what)
    bad = [each for each in found if not each["ok"]]
    assert bad == [], "\n".join(json.dumps(each) for each in bad[:20])
    assert len(found) >= 2 * len(sweep.VALUES) or what in sweep.WITHOUT_ARGUMENTS


@WHICH
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_batch": -1}, r"^n_batch is -1; it must be an integer from 1 to "),
        ({"n_threads": 10**6}, r"^n_threads is 1000000; it must be an integer from 0 to 512$"),
        ({"type_k": 99}, r"^type_k is 99; it must be None or one of 0 \(F32\)"),
        ({"type_v": 12}, r"^type_v is 12; it must be None or one of 0 \(F32\)"),
        ({"seed": "7"}, r"^seed is '7' of type str; it must be an integer from -1 to 4294967295$"),
        ({"rope_freq_base": math.nan}, r"^rope_freq_base is nan; it must be a number of at least 0$"),
        ({"yarn_ext_factor": "1"}, r"^yarn_ext_factor is '1' of type str; it must be a number$"),
        (
            {"kv_overrides": {"a": []}},
            r"^kv_overrides\['a'\] is \[\] of type list; it must be a bool, int, float or str$",
        ),
        ({"n_ctx": 10**9}, r"^n_ctx is 1000000000, for which the cache takes \d+\.\d GiB of memory"),
        ({"type_v": 8}, r"^values of type Q8_0 need flash attention$"),
    ],
)
def test_numbers_out_of_range(tiny_model: Path, ga_n: int, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Llama(tiny_model, ga_n=ga_n, **{**QUIET, **arguments})


@WHICH
def test_zero_is_a_seed(tiny_model: Path, ga_n: int) -> None:
    def sampled(seed: Any) -> list[int]:
        with Llama(tiny_model, ga_n=ga_n, seed=seed, **QUIET) as llm:
            steps = llm.generate([1, 40], temp=2.0, top_k=0, top_p=1.0, min_p=0.0)
            return [next(steps) for _ in range(12)]

    zero, other = sampled(0), sampled(llama_cpp.LLAMA_DEFAULT_SEED)
    assert sampled(0) == zero
    assert zero != other
    with Llama(tiny_model, ga_n=ga_n, **QUIET) as llm:
        hot: Any = {"seed": 0, "temperature": 2.0, "max_tokens": 8}
        assert text(llm, **hot) == text(llm, **hot)


@WHICH
def test_one_kind_of_error_beyond_the_context(llm: Llama) -> None:
    with pytest.raises(ContextFullError, match=r"^600 tokens after 0 do not fit into the context of 512 tokens"):
        llm.eval([5] * 600)
    with pytest.raises(ContextFullError, match=r"exceed context window of 512 "):
        llm.create_completion([5] * 600)
    with pytest.raises(ContextFullError):
        next(llm.generate([5] * 600))
    assert len(text(llm)) > 0


@WHICH
def test_a_vocabulary_alone(tiny_model: Path, ga_n: int) -> None:
    if ga_n > 1:
        with pytest.raises(SettingError, match=r"^vocab_only opens no weights"):
            Llama(tiny_model, ga_n=ga_n, vocab_only=True, **QUIET)
        return
    with Llama(tiny_model, vocab_only=True, **QUIET) as llm:
        assert llm.detokenize(llm.tokenize(b"abc")) == b"abc"
        for call in (lambda: llm.eval([5]), lambda: llm.create_completion("a")):
            with pytest.raises(UsageError, match="or was opened with vocab_only"):
                call()


# -- tokens and texts


@WHICH
@pytest.mark.parametrize("token", [10**9, -1, 2**31, 1.5, None, "5", True])
def test_tokens_that_are_none(llm: Llama, token: Any) -> None:
    expected = text(llm)
    for call in (llm.detokenize, llm.eval, lambda tokens: next(llm.generate(tokens)), llm.create_completion):
        with pytest.raises(SettingError, match=r"(tokens|prompt)\[1\] is .*; it must be an integer from 0 to \d+$"):
            call([5, token])
    assert text(llm) == expected


@WHICH
def test_tokens_of_numpy(llm: Llama) -> None:
    tokens = llm.tokenize(b"abc")
    for dtype in (np.int32, np.int64, np.uint8):
        array: Any = np.array(tokens, dtype=dtype if max(tokens) < 256 or dtype is not np.uint8 else np.int64)
        assert llm.detokenize(array) == llm.detokenize(tokens)
        assert next(llm.generate(array, temp=0.0)) == next(llm.generate(tokens, temp=0.0))


@WHICH
def test_long_texts_of_tokens(llm: Llama) -> None:
    """llama_cpp reads them into 32 bytes."""
    pieces = llm._pieces
    for token in range(llm.n_vocab()):
        buffer = (llama_cpp.ctypes.c_char * 1024)()
        n = llama_cpp.llama_token_to_piece(llm._model.vocab, token, buffer, 1024, 0, True)
        assert pieces.join([token], special=True) == buffer.raw[:n]


@WHICH
def test_embedding(tiny_model: Path, ga_n: int) -> None:
    with Llama(tiny_model, ga_n=ga_n, embedding=True, n_batch=64, **QUIET) as llm:
        assert llm.embed([]) == []
        assert llm.embed([], return_count=True) == ([], 0)
        assert llm.create_embedding([])["data"] == []
        with pytest.warns(RuntimeWarning, match=r"input\[1\] has \d+ tokens, and is cut to n_batch=64"):
            llm.embed(["a", "b" * 200])
        with pytest.raises(ValueError, match="exceed batch size"):
            llm.embed(["a", "b" * 200], truncate=False)
        assert len(llm.embed("a")) > 0


@WHICH
def test_paths(tiny_model: Path, tmp_path: Path, ga_n: int) -> None:
    odd = os.fsencode(tmp_path) + b"/m\xff\xe9 \n.gguf"
    os.link(tiny_model, odd)
    for path in (tiny_model, str(tiny_model), os.fsdecode(odd), Path(os.fsdecode(odd))):
        with Llama(path, ga_n=ga_n, **QUIET) as llm:
            assert len(text(llm)) > 0
    for path in (tmp_path / "missing.gguf", tmp_path):
        with pytest.raises(ValueError, match=str(path)):
            Llama(path, ga_n=ga_n, **QUIET)


@WHICH
def test_forms_of_an_answer(tiny_model: Path, ga_n: int) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    forms = [
        {"type": "json_object", "schema": schema},
        {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},  # as OpenAI has it
    ]
    messages: Any = [{"role": "user", "content": "a"}]
    with Llama(tiny_model, ga_n=ga_n, **QUIET) as llm:
        for form in forms:
            arguments: Any = {"response_format": form, "max_tokens": 100, "temperature": 0.0}
            answer: Any = llm.create_chat_completion(messages, **arguments)
            assert list(json.loads(answer["choices"][0]["message"]["content"])) == ["a"]
        with pytest.raises(SettingError, match="its type must be text, json_object or json_schema"):
            llm.create_chat_completion(messages, response_format={"type": "xml"})  # type: ignore[typeddict-item]


# -- states


@pytest.mark.parametrize("logits_all", [False, True])
@WHICH
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:40],
        lambda data: data + b"x",
        lambda data: b"\xff" * len(data),
        lambda data: data[:8] + b"\xff\xff\xff\xff" + data[12:],
    ],
)
def test_states_that_cannot_be_loaded(tiny_model: Path, ga_n: int, logits_all: bool, damage: Any) -> None:
    with Llama(tiny_model, ga_n=ga_n, logits_all=logits_all, **QUIET) as llm:
        llm.eval([1, 40, 50, 60])
        state = llm.save_state()
        llm.eval([70, 80])
        expected = next(llm.generate([1, 40, 50, 60, 70, 80, 90], temp=0.0))
        llm.reset()
        llm.eval([1, 40, 50, 60, 70, 80])
        data = damage(bytes(state.llama_state))
        for size in (len(data), state.llama_state_size):
            bad = llama_cpp.LlamaState(
                state.input_ids, state.scores, state.n_tokens, llama_state=data, llama_state_size=size, seed=state.seed
            )
            with pytest.raises(StateError, match=r"^the state cannot be loaded: "):
                llm.load_state(bad)
            assert list(llm.eval_tokens) == [1, 40, 50, 60, 70, 80]
        llm.eval([90])
        assert llm.sample(temp=0.0) == expected
        llm.load_state(state)
        assert list(llm.eval_tokens) == [1, 40, 50, 60]


@WHICH
def test_a_state_says_more_tokens_than_it_has(llm: Llama) -> None:
    llm.eval([1, 40, 50, 60])
    state = llm.save_state()
    state.n_tokens = 100
    with pytest.raises(StateError, match="it says that it has 100 tokens, and has fewer"):
        llm.load_state(state)
    assert list(llm.eval_tokens) == [1, 40, 50, 60]
    with pytest.raises(TypeError, match="must be what save_state"):
        llm.load_state(b"state")  # type: ignore[arg-type]


# -- moments


@WHICH
def test_sampling_without_logits(llm: Llama) -> None:
    """llama.cpp would read what is not there."""
    for prepare in (lambda: None, llm.reset, lambda: llm.load_state(llm.save_state()), lambda: llm.context_shift(0, 1)):
        if prepare is not llm.reset:
            llm.eval([1, 5, 6])
        prepare()
        if llm._requires_eval:
            with pytest.raises(UsageError, match=r"^there are no logits to sample from; evaluate tokens first$"):
                llm.sample()
    llm.reset()
    llm.eval([1, 5, 6])
    with pytest.raises(SettingError, match="idx is 0; it must be an integer from 2 to 2"):
        llm.sample(idx=0)
    assert isinstance(llm.sample(), int)
