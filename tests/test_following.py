"""``ga_n="auto"`` in ``Llama``: which group a text gets, when, and that its logits are those of that group."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import architectures
import numpy as np
import pytest
import unsupported
from reference_cache import CachedReference
from test_llama import QUIET, some_tokens

from pyselfextend import Llama, SettingError
from pyselfextend.groups import ga_n_auto

L, W, N_CTX = 128, 16, 1024  # trained context and window of the model here; the context

Open = Callable[..., Llama]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(architectures.make_tiny().make(tmp_path_factory.mktemp("following") / "llama.gguf", "llama", L))


@pytest.fixture
def open_auto(path: Path) -> Iterator[Open]:
    opened: list[Llama] = []

    def open_model(**kwargs: Any) -> Llama:
        opened.append(Llama(str(kwargs.pop("path", path)), **{**QUIET, "n_ctx": N_CTX, "n_batch": 64, **kwargs}))
        return opened[-1]

    yield open_model
    for llm in opened:
        llm.close()


def group(llm: Llama) -> int:
    return llm.self_extend.ga_n


def last_logits(llm: Llama) -> Any:
    return np.array(llm._ctx.get_logits_ith(-1)[: llm.n_vocab()])


#
# when it is on
#


def test_it_is_the_default_beyond_the_trained_context(open_auto: Open) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm = open_auto()
        info = llm.self_extend
        assert (info.ga_n, info.ga_n_max, info.ga_w, info.n_ctx_train, info.n_ctx_next) == (1, 16, W, L, L)
        assert info.n_ctx_reach >= llm.n_ctx() == N_CTX
        assert open_auto(ga_n="auto", ga_w=20).self_extend.ga_w == 20
        assert open_auto(ga_w=20).self_extend.ga_n_max > 1
        for options in ({"n_ctx": L}, {"n_ctx": 0}, {"n_ctx": L, "ga_n": "auto"}, {"ga_n": 1}, {"vocab_only": True}):
            plain = open_auto(**options)
            assert plain._config.is_plain
            assert "vocab_only" in options or plain.self_extend.ga_n_max == 1
        fixed = open_auto(ga_n=16)
        fixed.eval(some_tokens(L))
        assert group(fixed) == fixed.self_extend.ga_n_max == 16


@pytest.mark.parametrize(
    ("options", "name", "reason"),
    [
        ({"rope_freq_scale": 0.25}, "llama", "rope_freq_scale=0.25 scales its positions"),
        ({"rope_scaling_type": 2, "yarn_orig_ctx": L}, "llama", "rope_scaling_type=2 scales its positions"),
        ({"chat_handler": print}, "qwen2vl", "images of this model have positions in several dimensions"),
        ({}, "cohere2", "architecture 'cohere2' is not supported: its layers without a window of their own do not use"),
    ],
)
def test_plain_with_a_warning_where_it_cannot_be(
    open_auto: Open, tmp_path: Path, options: dict[str, Any], name: str, reason: str
) -> None:
    if name == "cohere2":
        options = {**options, "path": unsupported.make(tmp_path / "model.gguf", name)}
    elif name != "llama":
        options = {**options, "path": architectures.make_tiny().make(tmp_path / "model.gguf", name, L)}
    with pytest.warns(RuntimeWarning, match=rf"n_ctx={N_CTX} is above the \d+ tokens .*{reason}") as caught:
        llm = open_auto(**options)
    assert llm.self_extend.ga_n_max == 1
    assert Path(caught[0].filename).name == "test_following.py"  # who has opened it
    if name == "cohere2":  # asked for by name it is refused
        with pytest.raises(SettingError, match="is not supported"):
            open_auto(**options, ga_n="auto")


def test_a_window_that_does_not_fit_is_an_error(open_auto: Open) -> None:
    with pytest.raises(SettingError, match=f"ga_w is {L}; it must be below the trained context of {L} tokens"):
        open_auto(ga_w=L)


def test_pickled_as_it_was_asked_for(open_auto: Open) -> None:
    for options in ({}, {"ga_n": "auto", "ga_w": 20}, {"ga_n": 1}):
        with pickle.loads(pickle.dumps(open_auto(**options))) as again:
            assert again._asked == {"ga_n": None, "ga_w": None, "ga_map": "self-extend", **options}


#
# which group
#


@pytest.mark.parametrize("n_tokens", [1, 100, L, L + 1, 200, 500, N_CTX])
def test_a_text_is_read_with_the_group_of_its_length(open_auto: Open, path: Path, n_tokens: int) -> None:
    """From its first token on, as in a context that was opened with that group."""
    tokens = some_tokens(n_tokens)
    llm = open_auto(type_k=0, type_v=0)
    llm.eval(tokens)
    ga_n = ga_n_auto(L, W, n_tokens)
    assert group(llm) == ga_n
    exact = CachedReference(path, ga_n, W).extend(tokens[:512])
    if n_tokens <= 512:
        assert np.abs(last_logits(llm) - exact[-1]).max() < 5e-3
    if ga_n > 1:
        fixed = open_auto(ga_n=ga_n, ga_w=W, n_ctx=n_tokens, type_k=0, type_v=0)
        fixed.eval(tokens)
        assert np.array_equal(last_logits(fixed), last_logits(llm))


def test_a_text_in_parts(open_auto: Open) -> None:
    """What is to follow is said with each part, and the group is that of the whole text from its first token on."""
    tokens = some_tokens(200)
    whole, parts = open_auto(type_k=0, type_v=0), open_auto(type_k=0, type_v=0)
    whole.eval(tokens)
    for start in range(0, 200, 40):
        parts.eval(tokens[start : start + 40], n_expected=160 - start)
        assert group(parts) == 4
    assert np.abs(last_logits(parts) - last_logits(whole)).max() < 1e-3
    parts.reset()
    parts.eval(tokens[:40])
    assert group(parts) == 1  # nobody has said that more comes
    with pytest.raises(SettingError, match="n_expected is -1; it must be an integer from 0 to "):
        parts.eval(tokens[:1], n_expected=-1)


def test_the_answer_that_is_asked_for_counts(open_auto: Open) -> None:
    """It is generated with the group that was chosen for it, unless it becomes longer than anyone has said."""
    prompt = some_tokens(100)
    seen: list[int] = []
    llm = open_auto()

    def groups(n: int, **options: Any) -> list[int]:
        llm.reset()
        seen.clear()
        llm.create_completion(prompt, temperature=0, logit_bias={llm.token_eos(): -100}, max_tokens=n,
                              stopping_criteria=[lambda *_: bool(seen.append(group(llm)))], **options)  # fmt: skip
        return seen

    assert set(groups(L - 100)) == {1}
    assert set(groups(L - 99)) == {2}
    assert set(groups(300)) == {ga_n_auto(L, W, 400)} == {8}
    llm.reset()
    # nobody has said how long: a few hundred tokens are expected, and the engine raises the group where they are more
    found = groups(None)
    assert found[0] == ga_n_auto(L, W, 100 + 256) == 8
    assert found[-1] == 16
    assert found == sorted(found)
    assert len(found) == N_CTX - 100


def test_inside_the_window_the_answers_are_the_plain_ones(open_auto: Open) -> None:
    prompt = some_tokens(60)
    options: dict[str, Any] = {"max_tokens": 50, "temperature": 0}
    assert (
        open_auto().create_completion(prompt, **options)["choices"]  # type: ignore[index]
        == open_auto(ga_n=1).create_completion(prompt, **options)["choices"]  # type: ignore[index]
    )


def test_a_chat_that_grows_and_is_edited(open_auto: Open, path: Path) -> None:
    """Each turn is read behind what is cached, which is turned where a turn needs a larger group, and keeps it.

    The reference has read each part with the group of its time, with keys that were never turned.
    """
    llm, reference = open_auto(type_k=0, type_v=0), CachedReference(path, 1, W)
    text: list[int] = []

    def turn(n_kept: int, n_more: int, ga_n: int, seed: int) -> None:
        del text[n_kept:]
        text.extend(some_tokens(n_more, seed=seed))
        llm.n_tokens = n_kept  # as generate() does
        llm.eval(text[n_kept:])
        reference.remove(n_kept, 1 << 30)
        reference.ga_n = ga_n
        exact = reference.extend(text[n_kept:])
        assert group(llm) == ga_n
        assert np.abs(last_logits(llm) - exact[-1]).max() < 5e-3

    turn(0, 90, 1, 1)
    turn(90, 30, 1, 2)
    turn(120, 30, 2, 3)  # beyond the trained context
    turn(150, 60, 4, 4)
    turn(100, 10, 4, 5)  # an edit: the group is enough, though 1 would be
    turn(110, 300, 8, 6)
    turn(410, 1, 8, 7)
    turn(10, 50, 1, 8)  # no more is kept than the window has: it is read anew


def test_regenerate(open_auto: Open) -> None:
    """The same prompt again is not read again, in the same group, with the same answer."""
    llm = open_auto()
    prompt = some_tokens(150)
    n_read = []

    def answer() -> Any:
        before = llm._ctx.ctx and __import__("llama_cpp").llama_perf_context(llm._ctx.ctx).n_p_eval
        made = llm.create_completion(prompt, max_tokens=20, temperature=0)
        n_read.append(__import__("llama_cpp").llama_perf_context(llm._ctx.ctx).n_p_eval - before)
        return made["choices"][0]["text"]  # type: ignore[index]

    first = answer()
    assert group(llm) == 4
    assert answer() == first
    assert group(llm) == 4
    assert n_read[1] < 3 < 140 < n_read[0]


def test_states_and_shifts(open_auto: Open) -> None:
    tokens = some_tokens(200)
    llm, other = open_auto(), open_auto()
    llm.eval(tokens)
    state = llm.save_state()
    other.eval(some_tokens(50, seed=1))
    assert group(other) == 1
    other.load_state(state)
    assert (group(other), other.n_tokens) == (4, 200)
    for each in (llm, other):
        each.eval(tokens[:5])
    assert np.array_equal(last_logits(llm), last_logits(other))
    llm.context_shift(4, 150)
    llm.eval(tokens[:5])
    assert (group(llm), llm.n_tokens) == (4, 60)  # it keeps its group
    llm.reset()
    llm.eval(tokens[:100])
    assert group(llm) == 1


def test_keys_that_cannot_be_turned_are_read_again(open_auto: Open, tmp_path: Path) -> None:
    """A norm with weights follows RoPE."""
    path = architectures.make_tiny().make(tmp_path / "model.gguf", "hunyuan-dense", L)
    tokens = some_tokens(200)
    llm = open_auto(path=path, type_k=0, type_v=0)
    llm.eval(tokens[:100])
    llm.eval(tokens[100:199])
    assert group(llm) == 4
    llm.eval(tokens[199:])
    exact = CachedReference(path, 4, W).extend(tokens)
    assert np.abs(last_logits(llm) - exact[-1]).max() < 5e-3
    made = llm.create_completion(tokens[:120], max_tokens=None, temperature=0, logit_bias={llm.token_eos(): -100})
    assert made["usage"]["completion_tokens"] == N_CTX - 120  # type: ignore[index]
    assert group(llm) == 16


def test_windows_of_layers_that_forget(open_auto: Open, tmp_path: Path) -> None:
    path = architectures.make_tiny().make(tmp_path / "model.gguf", "gemma3", L)
    tokens = some_tokens(1000)
    llm = open_auto(path=path, type_k=0, type_v=0, swa_full=False)
    llm.eval(tokens)
    llm.n_tokens = 100
    llm.eval(tokens[100:110])  # the beginning is evaluated again, and that is a new text
    assert group(llm) == 1
    exact = CachedReference(path, 1, W).extend(tokens[:110])
    assert np.abs(last_logits(llm) - exact[-1]).max() < 5e-2
