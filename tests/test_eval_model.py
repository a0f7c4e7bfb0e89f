"""The model that an evaluation asks: what it computes, and that nothing of what was asked before shows in it.

Values are compared with the reference, which shares nothing with the engine. Everything else is compared bit by bit
with a model that has forgotten all that it was asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from reference import Reference, log_softmax

from pyselfextend import EvalError, Llama, SelfExtendError
from pyselfextend.eval.cases import Tokens
from pyselfextend.eval.model import Answer, EvalModel
from pyselfextend.eval.settings import Rope, Setting
from pyselfextend.eval.sharing import N_SLICE

N_CTX = 1800

#: Plain caches; windows that have forgotten keys, in a near part of two slices and of three; sliding windows, which
#: states leave out; keys that cannot be turned; layers without RoPE; groups that follow the length.
CASES = [
    ("llama", "plain"),
    ("llama", "5:64"),
    ("llama", "8:200"),
    ("llama", "yarn:2"),
    ("gemma2", "plain"),
    ("gemma3", "5:64"),
    ("gpt-oss", "5:64"),
    ("hunyuan-dense", "5:64"),
    ("smollm3", "8:200"),
    ("llama", "auto:64"),
    ("gemma3", "auto:64"),
    ("hunyuan-dense", "auto:64"),
]

#: Cases whose windows states leave out, so that nothing is kept of prompts that the near part does not hold.
NOT_KEPT = {("gemma3", "5:64"), ("gpt-oss", "5:64"), ("gemma3", "auto:64")}

Ask = Callable[[EvalModel], Any]


def group_of(n_tokens: int, setting: str = "auto:64") -> int:
    """What auto reads a text with, by the authors' rule ``2/3 * L > W + (N - W) / G``; of other settings 0."""
    if not setting.startswith("auto"):
        return 0
    ga_n = 1 if n_tokens <= 512 else 2
    while ga_n > 1 and 2 * 512 * ga_n <= 3 * (64 * ga_n + n_tokens - 64):
        ga_n *= 2
    return ga_n


def random_tokens(n: int, seed: int) -> Tokens:
    return tuple(int(token) for token in np.random.default_rng(seed).integers(3, 360, n))


def open_model(path: Path, setting: str, n_ctx: int = N_CTX, **options: Any) -> EvalModel:
    rope = Rope.of(path)
    return EvalModel(path, Setting.parse(setting).resolve(rope, n_ctx), rope, n_ctx, **{"n_threads": 1, **options})


def log_probs(prompt: Tokens, continuation: Tokens, n_keep: int = 0, again: bool = False) -> Ask:
    def ask(model: EvalModel) -> bytes:
        found = model.log_probs(prompt, continuation, n_keep, again)
        assert len(found.values) == len(found.greedy) == len(continuation)
        return found.values.tobytes() + found.greedy.tobytes()

    return ask


def answer(prompt: Tokens, n_predict: int, n_keep: int = 0, gold: Tokens = ()) -> Ask:
    def ask(model: EvalModel) -> Answer:
        found = model.answer(prompt, n_predict, n_keep=n_keep, gold=gold)
        assert len(found.gold) == len(gold)
        return found

    return ask


def forget(model: EvalModel) -> None:
    """Leave nothing of what was asked: neither in the cache nor as a state."""
    model.log_probs(random_tokens(N_SLICE + 7, seed=98), (), N_SLICE)
    model.log_probs(random_tokens(5, seed=99), ())


class Counter:
    """Counts the tokens that are evaluated."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self, n_tokens: int, n_past: int) -> None:
        self.n += n_tokens


# -- nothing shows


def questions(n: int, seed: int) -> list[tuple[str, Ask]]:
    """In a random order, about prompts of one to three slices that share none, one or two of them, or are part of one
    another."""
    rng = np.random.default_rng(seed)
    beginning = random_tokens(N_SLICE * 2, seed + 1)
    prompts = [
        beginning[: N_SLICE * k] + random_tokens(int(rng.integers(2, 400)), seed + 10 + i)
        for i, k in enumerate([0, 0, 1, 1, 2, 2])
    ]
    prompts += [beginning[:N_SLICE], beginning]
    found: list[tuple[str, Ask]] = []
    prompt = prompts[0]
    for i in range(n):
        if rng.random() < 0.5:  # otherwise the same one once more
            prompt = prompts[rng.integers(len(prompts))]
        n_more, again = int(rng.choice([1, 2, 40, 127, 130, 300])), bool(rng.integers(2))
        n_keep = int(rng.integers(0, (len(prompt) - 1) // N_SLICE + 1)) * N_SLICE
        about = f"{i}: {len(prompt)} tokens, {n_more} more, {n_keep} kept"
        if rng.random() < 0.4:
            n_predict = min(n_more, 60)
            gold = random_tokens(int(rng.choice([0, 1, 9, 140])), seed + 200 + i)
            found.append((f"{about}, answer, {len(gold)} right", answer(prompt, n_predict, n_keep, gold)))
        else:
            continuation = random_tokens(n_more, seed + 100 + i)
            found.append((f"{about}, again: {again}", log_probs(prompt, continuation, n_keep, again)))
    return found


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_what_was_asked_before_does_not_show(tiny_models: dict[str, Path], name: str, setting: str) -> None:
    path = tiny_models[name]
    with open_model(path, setting) as model, open_model(path, setting) as fresh:
        wrong = []
        for about, ask in questions(20, seed=sum(map(ord, name))):
            forget(fresh)
            if ask(model) != ask(fresh):
                wrong.append(about)
    assert not wrong


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_choices_of_one_prompt(tiny_models: dict[str, Path], name: str, setting: str) -> None:
    """Long ones and short ones behind each other, also where the neighbour window has forgotten keys; the prompt is
    evaluated once, but for models with windows of two kinds, and for each change of the group."""
    path = tiny_models[name]
    choices = [random_tokens(n, 20 + i) for i, n in enumerate([30, 300, 2, 140, 1, 140])]
    counter = Counter()
    with open_model(path, setting, progress=counter) as model, open_model(path, setting) as fresh:
        for n_prompt in (100, 600, 1300):
            prompt = random_tokens(n_prompt, n_prompt)
            counter.n = 0
            found = [log_probs(prompt, c, 0, c is not choices[-1])(model) for c in choices]
            for choice, given in zip(choices, found, strict=True):
                forget(fresh)
                assert given == log_probs(prompt, choice)(fresh)
            if (name, setting) not in NOT_KEPT or n_prompt == 100:
                n_times = len(list(groupby(group_of(n_prompt + len(choice) - 1, setting) for choice in choices)))
                assert counter.n == n_times * n_prompt + sum(len(choice) - 1 for choice in choices)


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_a_beginning_is_evaluated_once(tiny_models: dict[str, Path], name: str, setting: str) -> None:
    """Two slices of it, but for models with windows of two kinds, and by texts with one group."""
    beginning = random_tokens(2 * N_SLICE, 1)
    prompts = [beginning + random_tokens(n, 30 + n) for n in (5, 90, 200)]
    counter = Counter()
    with open_model(tiny_models[name], setting, progress=counter) as model:
        for prompt in prompts:
            model.answer(prompt, 1, n_keep=2 * N_SLICE)
    n_shared = 0 if (name, setting) in NOT_KEPT else 2 * N_SLICE
    n_groups = len({group_of(len(prompt) + 1, setting) for prompt in prompts})
    assert n_groups == (2 if setting == "auto:64" else 1)
    assert counter.n == sum(map(len, prompts)) - (3 - n_groups) * n_shared


@pytest.mark.parametrize("setting", ["plain", "5:64", "auto:64"])
def test_an_interruption_does_not_show(tiny_model: Path, setting: str) -> None:
    """Neither one in a prompt nor one in what follows it."""
    prompt, continuation = random_tokens(1300, 1), random_tokens(300, 2)
    with open_model(tiny_model, setting) as model:

        def scores() -> Any:
            return log_probs(prompt, continuation, N_SLICE)(model)

        def both() -> Any:
            return answer(prompt, 20, gold=random_tokens(30, 3))(model)

        expected = scores(), both()
        for ask, n_before in ((scores, 600), (scores, 1500), (both, 600), (both, 1310), (both, 1325)):

            def interrupt(n_tokens: int, n_past: int, n_before: int = n_before) -> None:
                if n_past + n_tokens >= n_before:
                    raise KeyboardInterrupt

            forget(model)
            model.progress = interrupt
            with pytest.raises(KeyboardInterrupt):
                ask()
            model.progress = None
            assert (scores(), both()) == expected


# -- the right answer, scored beside the greedy one


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_scoring_changes_no_answer_and_reads_no_prompt_twice(
    tiny_models: dict[str, Path], name: str, setting: str
) -> None:
    """Also where the neighbour window is full. What is scored is what ``log_probs`` gives for it, bit by bit."""
    path = tiny_models[name]
    counter = Counter()
    compared = 0
    with open_model(path, setting, progress=counter) as model, open_model(path, setting) as fresh:
        for n_prompt, n_predict, n_gold in (
            (40, 6, 12), (500, 20, 12), (570, 9, 2), (600, 1, 7), (1300, 40, 9), (1536, 9, 40), (1536, 200, 3),
        ):  # fmt: skip
            prompt, gold = random_tokens(n_prompt, n_prompt), random_tokens(n_gold, n_prompt + 1)
            forget(model)
            counter.n = 0
            found = model.answer(prompt, n_predict, gold=gold)
            n_decoded = min(found.n_tokens, n_predict - 1)  # of an answer that ends early all tokens have been read
            assert counter.n == n_prompt + n_decoded + n_gold - 1
            forget(fresh)
            assert fresh.answer(prompt, n_predict) == replace(found, gold=())
            if group_of(n_prompt + n_predict, setting) == group_of(n_prompt + n_gold - 1, setting):
                forget(fresh)
                assert tuple(fresh.log_probs(prompt, gold).values) == found.gold
                compared += 1
    assert compared >= 5


def test_a_right_answer_is_scored_with_the_group_of_the_answer(tiny_model: Path) -> None:
    """600 tokens are read with 2, with an answer of up to 30 by 4: whatever is scored."""
    exact = {"type_k": "F32", "type_v": "F32", "flash_attn": False}
    prompt, gold = random_tokens(600, 1), random_tokens(6, 2)
    assert (group_of(600 + 5), group_of(600 + 30)) == (2, 4)
    values = {}
    for setting, n_ctx in (("auto:64", N_CTX), ("2:64", 960), ("4:64", N_CTX)):
        with open_model(tiny_model, setting, n_ctx, **exact) as model:
            values[setting] = np.array(model.answer(prompt, 30, gold=gold).gold)
    assert np.array_equal(values["auto:64"], values["4:64"])
    assert np.abs(values["auto:64"] - values["2:64"]).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "setting"), [("llama", "plain"), ("llama", "5:64"), ("hunyuan-dense", "5:64"), ("gemma3", "8:200")]
)
def test_a_right_answer_has_the_reference_s_probability(tiny_models: dict[str, Path], name: str, setting: str) -> None:
    parsed = Setting.parse(setting)
    prompt, gold = random_tokens(1100, 7), random_tokens(20, 8)
    tokens = np.array((prompt + gold)[:-1])
    rows = log_softmax(Reference(tiny_models[name]).logits(tokens, parsed.ga_n, parsed.ga_w or 0)[-20:])
    with open_model(tiny_models[name], setting, type_k="F32", type_v="F32", flash_attn=False) as model:
        found = model.answer(prompt, 30, gold=gold).gold
    assert np.abs(np.array(found) - rows[np.arange(20), gold]).max() < BOUNDS[name]


# -- auto is the pair of each length

#: Tokens that are read, on both sides of the limits: 512, 618, 1173.
LENGTHS = [40, 511, 512, 513, 600, 618, 619, 1173, 1174, 1500, N_CTX]


@pytest.mark.parametrize("name", ["llama", "gemma3", "hunyuan-dense", "smollm3"])
def test_auto_is_the_pair_of_each_length(tiny_models: dict[str, Path], name: str) -> None:
    """Bit by bit, in any order, whatever beginnings are shared and kept. Inside the trained window it is the plain
    model, up to rounding."""
    path = tiny_models[name]
    text = random_tokens(N_CTX + 1, 8)
    asked: list[tuple[int, str, Ask]] = []
    for n in LENGTHS:
        n_more = min(n // 2, 140)
        prompt, more = text[: n - n_more], text[n - n_more : n + 1]
        n_keep = (len(prompt) - 1) // N_SLICE * N_SLICE
        asked.append((n, "scores", log_probs(prompt, more, n_keep)))
        asked.append((n, "scores of two", log_probs(prompt, more, n_keep, again=True)))
        asked.append((n, "answer", lambda m, p=text[: n - 9], k=n_keep: m.answer(p, 9, n_keep=k)))
    expected: dict[tuple[int, str], Any] = {}
    exact = {"type_k": "F32", "type_v": "F32", "flash_attn": False}
    for ga_n, setting, n_ctx in ((1, "plain", N_CTX), (2, "2:64", 960), (4, "4:64", N_CTX), (8, "8:64", N_CTX)):
        with open_model(path, setting, n_ctx, **exact) as pair:
            for n, what, ask in asked:
                if group_of(n) == ga_n:
                    forget(pair)
                    expected[n, what] = ask(pair)
    assert len(expected) == len(asked)
    rng = np.random.default_rng(3)
    with open_model(path, "auto:64", **exact) as model:
        for i in [*range(len(asked)), *rng.integers(0, len(asked), 60)]:
            n, what, ask = asked[i]
            found, right = ask(model), expected[n, what]
            if n > 512 or what == "answer":
                assert found == right, (n, what)
            else:
                n_values = len(right) // 9  # eight bytes and a truth
                a, b = (np.frombuffer(each[: 8 * n_values]) for each in (found, right))
                assert np.abs(a - b).max() < 1e-3
                assert np.array_equal(*(np.frombuffer(each[8 * n_values :], dtype=bool) for each in (found, right)))
        # Another group shows: these are read with 2, and with 4.
        short, long = (log_probs(text[:600], text[600:n])(model)[:8] for n in (619, 620))
        assert abs(np.frombuffer(short)[0] - np.frombuffer(long)[0]) > 1e-3


def test_the_group_is_that_of_llama(tiny_model: Path) -> None:
    """What is measured is what a user gets, for a prompt and the answer that is asked for."""
    rope = Rope.of(tiny_model)
    setting = Setting.parse("auto").resolve(rope, N_CTX)
    with Llama(tiny_model, n_ctx=N_CTX, n_threads=1, verbose=False, **setting.arguments(rope)) as llm:
        for n in LENGTHS:
            llm.create_completion(list(random_tokens(n - 5, n)), max_tokens=5)
            assert llm.self_extend.ga_n == setting.group(rope, n) == group_of(n)


def test_auto_inside_the_trained_window_is_the_plain_model(tiny_model: Path) -> None:
    """Where the whole context is: bit by bit, and nothing of SelfExtend is there."""
    asked = [log_probs(random_tokens(n, n), random_tokens(40, 1)) for n in (10, 470, 200)]
    with open_model(tiny_model, "auto", 512) as auto, open_model(tiny_model, "plain", 512) as plain:
        assert auto._llm.self_extend == plain._llm.self_extend
        assert [ask(auto) for ask in asked] == [ask(plain) for ask in asked]
        with pytest.raises(EvalError, match="513 tokens do not fit into the context of 512 tokens"):
            auto.answer(random_tokens(500, 1), 13)


# -- what is computed

#: How far a log probability may be from the exact one: four times what was measured, with an F32 cache and plain
#: attention. The models differ in how sharp their attention is, as they do with stock llama.cpp.
BOUNDS = {"llama": 6e-4, "hunyuan-dense": 2e-4, "gemma3": 1e-2, "gpt-oss": 1e-3}


@pytest.mark.parametrize(
    ("name", "setting"),
    [("llama", "plain"), ("llama", "5:64"), ("hunyuan-dense", "5:64"), ("gemma3", "8:200"), ("gpt-oss", "plain")],
)
def test_values_are_those_of_the_reference(tiny_models: dict[str, Path], name: str, setting: str) -> None:
    """In a prompt of more than two slices and a continuation of more than two, and after a cut."""
    parsed = Setting.parse(setting)
    tokens = random_tokens(1100 + 290, 7)
    prompt, continuation = tokens[:1100], tokens[1100:]
    rows = log_softmax(Reference(tiny_models[name]).logits(np.array(tokens[:-1]), parsed.ga_n, parsed.ga_w or 0)[-290:])
    top = np.sort(rows, axis=1)[:, -2:]
    clear = top[:, 1] - top[:, 0] > 4 * BOUNDS[name]
    assert clear.mean() > 0.9
    with open_model(tiny_models[name], setting, type_k="F32", type_v="F32", flash_attn=False) as model:
        for _ in range(2):
            found = model.log_probs(prompt, continuation)
            assert np.abs(found.values - rows[np.arange(290), continuation]).max() < BOUNDS[name]
            assert np.array_equal(found.greedy[clear], (rows.argmax(axis=1) == continuation)[clear])
            assert model.log_probs(prompt, (int(rows[0].argmax()),)).greedy.tolist() == [True]


def test_answers_are_those_of_the_reference(tiny_model: Path) -> None:
    """Token by token the most probable one, beyond the trained window of 512."""
    reference = Reference(tiny_model)
    tokens = list(random_tokens(600, 3))
    for _ in range(8):
        tokens.append(int(reference.logits(np.array(tokens), 5, 64)[-1].argmax()))
    with open_model(tiny_model, "5:64", type_k="F32", type_v="F32", flash_attn=False) as model:
        answer = model.answer(tuple(tokens[:600]), 8)
        assert answer.text == model.tokenizer().detokenize(tuple(tokens[600:]))
        assert answer.n_tokens == 8


def test_an_answer_ends_at_the_first_of_some_texts(tiny_model: Path) -> None:
    with open_model(tiny_model, "plain") as model:
        prompt = random_tokens(40, 4)
        whole = model.answer(prompt, 30).text
        middle, later = whole[11:13], whole[17:19]
        assert whole.index(middle) == 11 and whole.index(later) == 17
        ended = model.answer(prompt, 30, middle)
        assert ended.text == whole[:11] and ended.n_tokens < 30
        assert model.answer(prompt, 30, [later, middle, "nowhere", ""]) == ended
        assert model.answer(prompt, 30, ["nowhere"]).text == model.answer(prompt, 30, "").text == whole
        assert model.answer(prompt, 0).text == ""


def test_a_character_can_span_tokens(tiny_model: Path) -> None:
    """Bytes that are no UTF-8 are replaced, others are not torn apart."""
    with open_model(tiny_model, "plain") as model:
        tokenizer = model.tokenizer()
        text = "na\u00efve \u4e2d\u6587 \U0001f40d"
        tokens = tokenizer.plain(text)
        assert len(tokens) > len(text)
        assert tokenizer.detokenize(tokens).strip() == text
        assert tokenizer.detokenize(tokens[:-1]).strip() == text[:-1] + "\ufffd"


def test_long_tokens_are_whole(smollm2: Path) -> None:
    """Real vocabularies have tokens of many spaces or dashes."""
    with EvalModel(smollm2, Setting("plain"), Rope.of(smollm2), 64) as model:
        tokenizer = model.tokenizer()
        for text in (" " * 100, "-" * 120, "#" * 70, "x =" + "=" * 90 + "\n" + " " * 51 + "y"):
            tokens = tokenizer.plain(text)
            assert len(tokens) < len(text) / 8
            assert tokenizer.detokenize(tokens) == text


def test_what_does_not_fit(tiny_model: Path) -> None:
    with open_model(tiny_model, "5:64") as model:
        n = model.n_ctx
        assert n == 1800 + (-1800) % 256
        prompt = random_tokens(n - 4, 5)
        assert model.answer(prompt, 4).n_tokens == 4
        assert len(model.log_probs(prompt, prompt[:4]).values) == 4
        with pytest.raises(EvalError, match=f"{n + 1} tokens do not fit into the context of {n} tokens"):
            model.answer(prompt, 5)
        with pytest.raises(EvalError, match=f"{n + 1} tokens do not fit into the context of {n} tokens"):
            model.answer(prompt, 1, gold=prompt[:5])
        with pytest.raises(EvalError, match=f"{n + 1} tokens do not fit into the context of {n} tokens"):
            model.log_probs(prompt, prompt[:5])
        with pytest.raises(EvalError, match="the prompt is empty"):
            model.answer((), 5)
        assert len(model.log_probs(prompt[:3], ()).values) == 0
    with pytest.raises(SelfExtendError, match="has been closed"):
        model.answer(prompt, 1)
    model.close()  # twice is fine


def test_numbers_that_are_none(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """A damaged weight makes an error, not a score."""
    path = tmp_path / "damaged.gguf"
    path.write_bytes(tiny_models["llama"].read_bytes())
    reader = gguf.GGUFReader(path, "r+")
    (tensor,) = (tensor for tensor in reader.tensors if tensor.name == "output_norm.weight")
    tensor.data[:] = np.nan
    reader.data.flush()
    with open_model(path, "plain") as model, pytest.raises(EvalError, match="the model's logits are not numbers"):
        model.answer(random_tokens(5, 6), 2)
