"""Going through a matrix: what is asked, interruption and resumption, failures, the same answers every time."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import architectures
import gguf
import learned_positions
import more_models
import numpy as np
import pytest
from reference import Reference, log_softmax

from pyselfextend import EvalError, Llama, ModelFileError, SelfExtendError, SettingError
from pyselfextend.cache_size import cache_size
from pyselfextend.eval import room
from pyselfextend.eval.cases import Case, Choose, Generate, Score, Task, Tokenizer
from pyselfextend.eval.model import EvalModel
from pyselfextend.eval.results import Result, ResultsFile, read_results
from pyselfextend.eval.run import Column, Options, evaluate
from pyselfextend.eval.settings import Rope, Setting
from pyselfextend.eval.sharing import cost
from pyselfextend.eval.tasks.kv import KeyValue
from pyselfextend.eval.tasks.niah import Niah
from pyselfextend.eval.tasks.passkey import Passkey
from pyselfextend.eval.tasks.ppl import Perplexity
from pyselfextend.eval.tasks.ruler import Ruler
from pyselfextend.eval.tasks.short import Short
from pyselfextend.eval.text import Text, default_text

PASSKEY = Passkey(lengths=(512, 1100), depths=(0.0, 0.5, 1.0), digits=(5,))
PPL = Perplexity(default_text(), lengths=(300, 900), stride=100, windows=2)
ONE = Options(n_threads=1)


def settings(*texts: str) -> list[Setting]:
    return [Setting.parse(text) for text in texts]


def without_times(results: list[Result]) -> list[Result]:
    return [replace(result, seconds=0.0) for result in results]


class Watcher:
    """Adds up what it is told."""

    def __init__(self) -> None:
        self.columns: list[tuple[str, int, float, float]] = []
        self.done: list[float] = []

    def begin(self, column: Column, n_cases: int, total: float, later: float) -> None:
        self.columns.append((str(column.setting), n_cases, total, later))
        self.done.append(0.0)

    def advance(self, done: float) -> None:
        self.done[-1] += done


@pytest.fixture(scope="module")
def models(tiny_models: dict[str, Path]) -> list[Path]:
    return [tiny_models["llama"], tiny_models["qwen2"]]


def test_the_whole_matrix(models: list[Path]) -> None:
    watcher = Watcher()
    chosen = settings("plain", "4:64", "yarn")
    caches = [("F16", "F16"), ("Q8_0", "F16")]
    results = list(evaluate(models, [PASSKEY, PPL], chosen, caches, options=ONE, watcher=watcher))
    assert not [result.error for result in results if result.error]
    columns = Counter((r.model, r.type_k, r.type_v, r.setting) for r in results)
    assert set(columns.values()) == {6 + 4}
    assert len(columns) == 2 * 2 * 3
    assert {r.setting for r in results} == {"plain", "4:64", "yarn:2.18"}
    asked = {(r.model, r.task, r.key): r.digest for r in results}
    assert all(asked[r.model, r.task, r.key] == r.digest for r in results)  # the same for every setting and cache
    assert len({r.identity for r in results}) == len(results)
    # The progress adds up: all that was announced was done, but for answers that end early.
    assert [n for _, n, _, _ in watcher.columns] == [10] * 12
    for (_, _, total, later), done in zip(watcher.columns, watcher.done, strict=True):
        assert 0.9 * total < done <= total * (1 + 1e-9)
        assert later % total == pytest.approx(0, abs=1e-6) or later % total == pytest.approx(total)


def test_an_interrupted_run_goes_on_and_repeats_nothing(models: list[Path]) -> None:
    chosen = settings("plain", "3:50")
    whole = list(evaluate(models[:1], [PASSKEY, PPL], chosen, options=ONE))
    found: list[Result] = []
    for n_more in (0, 1, 3, 7, 2, 100):
        done = {result.identity for result in found}
        run = evaluate(models[:1], [PASSKEY, PPL], chosen, options=ONE, done=done)
        for _, result in zip(range(n_more), run, strict=False):
            assert result.identity not in done
            found.append(result)
        run.close()
    assert without_times(found) == without_times(whole)  # answers and all, bit by bit
    assert list(evaluate(models[:1], [PASSKEY, PPL], chosen, options=ONE, done={r.identity for r in whole})) == []


def test_what_prompts_share_does_not_show(models: list[Path]) -> None:
    """Each case by itself, and all of them the other way round, give what the planned order gives."""
    task = replace(PASSKEY, lengths=(1100, 1700))

    @dataclass(frozen=True)
    class Some:
        indexes: tuple[int, ...]
        name: str = "passkey"
        chat: bool = False
        n_ctx: int = task.n_ctx

        def cases(self, tokenizer: Tokenizer) -> Iterator[Case]:
            cases = list(task.cases(tokenizer))
            return (cases[i] for i in self.indexes)

    for setting in settings("plain", "4:64", "auto"):
        planned = without_times(list(evaluate(models[:1], [task], [setting], options=ONE)))
        (backwards,) = [
            without_times(list(evaluate(models[:1], [Some(tuple(reversed(range(6))))], [setting], options=ONE)))
        ]
        assert backwards[::-1] == planned
        for i in (0, 3, 5):
            assert without_times(list(evaluate(models[:1], [Some((i,))], [setting], options=ONE))) == [planned[i]]


def test_auto_reads_each_case_with_the_group_of_its_length(models: list[Path]) -> None:
    """By the authors' rule: 499 tokens with the answer are plain, 612 are grouped by 2, 913 and 1,113 by 4."""
    task = replace(PASSKEY, lengths=(486, 599, 900, 1100))
    auto = list(evaluate(models[:1], [task, PPL], settings("auto", "auto:64"), options=ONE))
    assert [result.setting for result in auto] == ["auto:64"] * 16  # one setting, asked once
    assert not [result.error for result in auto if result.error]
    fixed = {
        (result.key, result.setting): result
        for result in evaluate(models[:1], [task, PPL], settings("plain", "2:64", "4:64"), options=ONE)
    }
    for result in auto:
        n = int(result.axes["n_tokens"])
        group = "plain" if n < 500 else "2:64" if n == 599 else "4:64"
        expected = fixed[result.key, group]
        if group == "plain":
            assert result.nll == (expected.nll and pytest.approx(expected.nll, rel=1e-3))
        else:
            assert (result.answer, result.score, result.nll) == (expected.answer, expected.score, expected.nll)
            assert result.gold_log_prob == expected.gold_log_prob


def test_what_groups_do_not_share_is_planned(models: list[Path]) -> None:
    """Texts with one beginning, with groups of 2 and 4: each group reads it once, and the progress adds up."""

    @dataclass(frozen=True)
    class Texts:
        name: str = "texts"
        chat: bool = False
        n_ctx: int = 910

        def cases(self, tokenizer: Tokenizer) -> Iterator[Case]:
            text = tuple(np.random.default_rng(2).integers(3, 360, 910).tolist())
            for n in (600, 610, 900, 910):
                yield Case("texts", str(n), {}, Score(text[:n], 2))

    done = {}
    for setting in ("plain", "auto"):
        watcher = Watcher()
        assert len(list(evaluate(models[:1], [Texts()], settings(setting), options=ONE, watcher=watcher))) == 4
        ((_, _, total, _),) = watcher.columns
        assert 0.99 * total < watcher.done[0] <= total
        done[setting] = watcher.done[0]
    assert done["auto"] - done["plain"] == pytest.approx(cost(512, 0))


def test_the_cache_of_auto(models: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a near part where the context is longer than the trained window."""
    windows: list[int | None] = []

    def spied(*args: Any, ga_w: int | None, **kwargs: Any) -> Any:
        windows.append(ga_w)
        return cache_size(*args, ga_w=ga_w, **kwargs)

    monkeypatch.setattr(room, "cache_size", spied)
    for length in (486, 900):
        task = replace(PASSKEY, lengths=(length,), depths=(0.0,))
        assert len(list(evaluate(models[:1], [task], settings("auto", "plain", "4:32"), options=ONE))) == 3
    assert windows == [None, None, 32, 64, None, 32]


def test_failed_cases_are_recorded_and_the_rest_goes_on(tiny_models: dict[str, Path]) -> None:
    path = tiny_models["llama-yarn"]
    chosen = settings("yarn", "2:64", "2:512", "auto:512", "plain")
    results = list(evaluate([path], [PASSKEY], chosen, options=ONE))
    errors = {setting: {r.error for r in results if r.setting == setting} for setting in {r.setting for r in results}}
    reach = (512 - 64 + 32) * 2
    assert errors == {
        "yarn": {
            "yarn would replace the RoPE scaling that the model itself declares (yarn); compare plain and pairs on it"
        },
        "2:64": {"", f"2:64 reaches {reach} tokens, the case needs 1113"},
        "2:512": {"ga_w is 512; it must be below the trained context of 512 tokens"},
        "auto:512": {"ga_w is 512; it must be below the trained context of 512 tokens"},
        "plain": {""},
    }
    assert all((r.score is None) == bool(r.error) for r in results)
    assert len(results) == 5 * 6


def test_an_architecture_that_is_not_supported_is_a_failure(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    results = list(evaluate([tiny_models["gemma3"]], [PPL], settings("4:64"), [("IQ4_NL", "Q4_0")], options=Options(
        n_threads=1, flash_attn=False)))  # fmt: skip
    assert {bool(r.error) for r in results} == {True}
    assert len({r.error for r in results}) == 1


def test_a_task_decides_about_the_chat_template_unless_the_options_do(models: list[Path]) -> None:
    needle = Niah(default_text(), lengths=(600,), depths=(0.0,))
    passkey = replace(PASSKEY, lengths=(600,), depths=(0.0,))

    def digests(task: Niah | Passkey, chat: bool | None) -> list[str]:
        options = Options(n_threads=1, chat=chat)
        return [r.digest for r in evaluate(models[:1], [task], settings("plain"), options=options)]

    assert digests(passkey, None) == digests(passkey, False) != digests(passkey, True)
    assert digests(needle, None) == digests(needle, True) != digests(needle, False)


def test_models_are_asked_once_whatever_they_are_called(models: list[Path], tmp_path: Path) -> None:
    """The same file twice, under two names, with equal settings and caches: every case is asked once."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first, second = tmp_path / "a" / "m.gguf", tmp_path / "b" / "m.gguf"
    shutil.copy(models[0], first)
    shutil.copy(models[1], second)
    task = replace(PASSKEY, lengths=(600, 600), depths=(0.0, 0.0))
    alone = list(evaluate([first, first], [task], settings("plain", "plain"), [("F16", "F16")] * 2, options=ONE))
    assert len(alone) == 1
    both = list(evaluate([first, second], [task], settings("plain"), options=ONE, done={r.identity for r in alone}))
    assert [(r.model, r.model_digest) for r in both] != [(r.model, r.model_digest) for r in alone]
    assert len(both) == 1  # the first one's result is there


def test_all_models_are_looked_at_before_any_is_asked(models: list[Path], tmp_path: Path) -> None:
    small = architectures.make_tiny().make(tmp_path / "small.gguf", "llama", 128)
    task = Short(default_text(), lengths=(300,), stride=32, windows=1, samples=1)
    with pytest.raises(EvalError, match="300 tokens are beyond the window of 128 tokens"):
        next(evaluate([models[0], small], [task], settings("plain"), options=ONE))


def test_positions_that_do_not_exist_are_not_asked_for(tmp_path: Path) -> None:
    """llama.cpp aborts where a model with learned positions is given more tokens than it has of them."""
    path = learned_positions.make(tmp_path / "gpt2.gguf")
    task = replace(PPL, lengths=(300, 700), windows=1)
    results = list(evaluate([path], [task], settings("plain", "yarn", "auto", "2:64"), options=ONE))
    reach = "a model with learned positions reaches 512 tokens, the case needs 700"
    assert [(r.setting, r.error) for r in results[:6]] == [
        ("plain", ""),
        ("plain", reach),
        ("yarn", "yarn scales RoPE, which the model does not have"),
        ("yarn", "yarn scales RoPE, which the model does not have"),
        ("auto:64", ""),
        ("auto:64", reach),
    ]
    assert results[0].nll == results[4].nll  # no more is opened than there are positions
    assert all("not support" in r.error for r in results[6:])


def test_models_that_cannot_be_asked(tmp_path: Path, models: list[Path]) -> None:
    mute = more_models.make(tmp_path / "mute.gguf", "heads of each layer")
    with pytest.raises(ModelFileError, match=r"mute\.gguf has no tokenizer, so it cannot be asked"):
        next(evaluate([mute], [PASSKEY], settings("plain")))
    with pytest.raises(EvalError, match=r"there is nothing to ask of .*: no case"):
        next(evaluate(models, [replace(PASSKEY, lengths=())], settings("plain")))


def test_caches_that_cannot_be_made(models: list[Path]) -> None:
    (result,) = evaluate(
        models[:1], [replace(PASSKEY, lengths=(600,), depths=(0.0,))], settings("plain"), [("Q8_0", "Q8_0")],
        options=Options(n_threads=1, flash_attn=False),
    )  # fmt: skip
    assert result.error == "values of type Q8_0 need flash attention"


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (replace(PASSKEY, depths=(2.0,)), "depth"),
        (replace(PASSKEY, depths=(-0.5,)), "depth"),
        (replace(PASSKEY, digits=(0,)), "digits is 0; it must be an integer from 1 to 100"),
        (replace(PPL, stride=0), "stride is 0; it must be an integer of at least 1"),
        (replace(PPL, windows=0), "windows is 0; it must be an integer of at least 1"),
        (replace(PPL, lengths=()), "lengths is 0; it must be an integer of at least 1"),
        (Niah(Text("nothing", ()), lengths=(600,)), "nothing has 0 tokens"),
    ],
)
def test_tasks_that_make_no_sense(models: list[Path], task: Task, message: str) -> None:
    with pytest.raises(SelfExtendError, match=message):
        next(evaluate(models[:1], [task], settings("plain")))
    with pytest.raises(SettingError, match="the kind of setting is 'fast'"):
        Setting("fast")


def test_no_model_and_no_room(tmp_path: Path, models: list[Path]) -> None:
    (tmp_path / "letter.gguf").write_text("a letter")
    for path in (tmp_path / "letter.gguf", tmp_path / "missing.gguf", tmp_path):
        with pytest.raises(ModelFileError, match=path.name):
            next(evaluate([models[0], path], [PASSKEY], settings("plain")))
    with pytest.raises(EvalError, match="tokens are too few for a passkey prompt"):
        next(evaluate(models, [replace(PASSKEY, lengths=(20,))], settings("plain")))


# -- the right answer


@pytest.mark.parametrize("setting", ["plain", "4:64", "auto"])
def test_the_right_answer_s_log_probability_is_llama_s(models: list[Path], setting: str) -> None:
    """The same tokens through ``Llama`` with the logits of all of them."""
    path = models[0]
    parsed = Setting.parse(setting).resolve(Rope.of(path), 1113)
    (*results,) = evaluate([path], [PASSKEY], [parsed], [("F32", "F32")], options=Options(1, flash_attn=False))
    with EvalModel(path, Setting("plain"), Rope.of(path), 64) as model:
        cases = {case.key: case.query for case in PASSKEY.cases(model.tokenizer(False))}
    exact: dict[str, Any] = {"type_k": 0, "type_v": 0, "flash_attn": False, "n_threads": 1, "verbose": False}
    for result in results:
        query = cases[result.key]
        assert isinstance(query, Generate)
        n, gold = len(query.prompt), query.gold
        group = 4 if setting == "4:64" or (setting == "auto" and n == 1100) else 2 if setting == "auto" else 1
        arguments = {"ga_n": group, "ga_w": 64} if group > 1 else {"ga_n": 1}
        with Llama(path, n_ctx=n + 20, logits_all=True, **arguments, **exact) as llm:
            llm.eval([*query.prompt, *gold])
            rows = log_softmax(np.array(llm.scores[n - 1 : n + len(gold) - 1], dtype=np.float64))
        expected = [float(rows[i, token]) for i, token in enumerate(gold)]
        assert result.n_gold == len(gold)
        assert result.gold_log_prob == pytest.approx(sum(expected), abs=2e-3)
        assert result.gold_mean == pytest.approx(np.mean(expected), abs=1e-3)


def test_answers_are_the_same_without_a_right_answer(models: list[Path]) -> None:
    @dataclass(frozen=True)
    class Blind:
        """The same prompts, of which no right answer is known."""

        name: str = "passkey"
        chat: bool = False
        n_ctx: int = PASSKEY.n_ctx

        def cases(self, tokenizer: Tokenizer) -> Iterator[Case]:
            for case in PASSKEY.cases(tokenizer):
                assert isinstance(case.query, Generate)
                yield replace(case, query=replace(case.query, gold=()))

    chosen = settings("plain", "4:64", "auto")
    scored, blind = (without_times(list(evaluate(models, [t], chosen, options=ONE))) for t in (PASSKEY, Blind()))
    assert all(result.gold_log_prob is not None for result in scored)
    assert [replace(result, gold_log_prob=None, n_gold=0) for result in scored] == blind


def test_only_what_has_one_right_answer_is_scored(models: list[Path]) -> None:
    tasks: list[Task] = [
        replace(PASSKEY, lengths=(600,), depths=(0.0,)),
        Niah(default_text(), lengths=(600,), depths=(0.0,)),
        KeyValue((900,), (0.0, 1.0), 1),
        Ruler((2500,), ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "fwe"), 1),
        PPL,
    ]
    results = list(evaluate(models[:1], tasks, settings("plain"), options=ONE))
    assert not [result.error for result in results if result.error]
    scored = {(r.task, r.axes.get("subtask")) for r in results if r.gold_log_prob is not None}
    assert scored == {
        ("passkey", None), ("niah", None), ("kv", None),
        ("ruler", "niah_single_1"), ("ruler", "niah_multikey_2"), ("ruler", "niah_multikey_3"),
    }  # fmt: skip
    assert all((r.n_gold > 0) == (r.gold_log_prob is not None) for r in results)


def test_results_of_a_version_without_it_are_not_asked_again(models: list[Path], tmp_path: Path) -> None:
    """They have no log probability; what is left has one."""
    results = list(evaluate(models[:1], [PASSKEY], settings("plain"), options=ONE))
    path = tmp_path / "results.jsonl"
    with ResultsFile(path) as file:
        for result in results[:2]:
            file.append(result)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        del line["gold_log_prob"], line["n_gold"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with ResultsFile(path) as file:
        for result in evaluate(models[:1], [PASSKEY], settings("plain"), options=ONE, done=file.done):
            file.append(result)
    found, _ = read_results([path])
    old = [replace(result, gold_log_prob=None, n_gold=0) for result in results[:2]]
    assert without_times(found) == without_times([*old, *results[2:]])


def test_a_right_answer_that_is_impossible(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """A probability of 0 has no logarithm; the answer counts all the same."""
    path = tmp_path / "no-digits.gguf"
    path.write_bytes(tiny_models["phi2"].read_bytes())
    with EvalModel(path, Setting("plain"), Rope.of(path), 64) as model:
        digits = [model.tokenizer().plain(digit)[-1] for digit in "0123456789"]
    reader = gguf.GGUFReader(path, "r+")
    (bias,) = (tensor for tensor in reader.tensors if tensor.name == "output.bias")
    bias.data[digits] = -np.inf
    reader.data.flush()
    task = replace(PASSKEY, lengths=(600,), depths=(0.0,))
    (result,) = evaluate([path], [task], settings("plain"), options=ONE)
    assert (result.error, result.gold_log_prob, result.n_gold, result.score) == ("", None, 0, 0.0)
    assert result.answer and not any(digit in result.answer for digit in "0123456789")


# -- perplexity


def test_every_length_scores_the_same_tokens(models: list[Path]) -> None:
    with EvalModel(models[0], Setting("plain"), Rope.of(models[0]), 64) as model:
        cases = list(PPL.cases(model.tokenizer()))
    assert [len(query.text) for case in cases if isinstance(query := case.query, Score)] == [300, 300, 900, 900]
    scored: dict[object, set[tuple[int, ...]]] = {}
    for case in cases:
        assert isinstance(case.query, Score)
        scored.setdefault(case.axes["window"], set()).add(case.query.text[-case.query.n_scored :])
    assert all(len(texts) == 1 for texts in scored.values())
    (first,), (second,) = scored.values()
    text = cases[-1].query.tokens[0]
    assert (first + second) == text[-200:]  # windows stand beside each other, and overlap in nothing that is scored


@pytest.mark.parametrize("setting", ["plain", "4:64"])
def test_perplexity_is_the_reference_s(models: list[Path], setting: str) -> None:
    path, parsed = models[0], Setting.parse(setting)
    results = list(evaluate([path], [PPL], [parsed], [("F32", "F32")], options=Options(1, flash_attn=False)))
    reference = Reference(path)
    with EvalModel(path, Setting("plain"), Rope.of(path), 64) as model:
        cases = {case.key: case for case in PPL.cases(model.tokenizer())}
    for result in results:
        query = cases[result.key].query
        assert isinstance(query, Score)
        n = len(query.text)
        logits = log_softmax(reference.logits(query.text, parsed.ga_n, parsed.ga_w or 0))
        expected = -sum(logits[i - 1, query.text[i]] for i in range(n - 100, n))
        assert result.n_scored == 100
        assert result.nll == pytest.approx(expected, rel=1e-5)


def test_a_text_that_is_too_short_or_a_stride_that_is_too_long(models: list[Path]) -> None:
    with pytest.raises(EvalError, match=r"the documentation that comes with Python has \d+ tokens for this model, 89"):
        next(evaluate(models, [replace(PPL, lengths=(9000000,), windows=1)], settings("plain")))
    with pytest.raises(EvalError, match="the stride is 300; it must be below the shortest length, 300"):
        next(evaluate(models, [replace(PPL, stride=300)], settings("plain")))


# -- choices


def test_a_choice_is_made_by_bytes(models: list[Path]) -> None:
    @dataclass(frozen=True)
    class Choices:
        name: str = "choices"
        chat: bool = False
        n_ctx: int = 900

        def cases(self, tokenizer: Tokenizer) -> Iterator[Case]:
            rng = np.random.default_rng(0)
            for i in range(8):
                texts = ["".join(map(chr, rng.integers(97, 123, n))) for n in (600, 5, 9, 14, 31)]
                prompt, *choices = map(tokenizer.plain, texts)
                yield Case("choices", str(i), {}, Choose(prompt, tuple(choices), tuple(map(len, texts[1:])), i % 4))

    path, pair = models[0], Setting.parse("4:64")
    results = list(evaluate([path], [Choices()], [pair], [("F32", "F32")], options=Options(1, flash_attn=False)))
    reference = Reference(path)
    with EvalModel(path, Setting("plain"), Rope.of(path), 64) as model:
        cases = list(Choices().cases(model.tokenizer()))
    for case, result in zip(cases, results, strict=True):
        assert isinstance(case.query, Choose)
        means = []
        for choice, n_bytes in zip(case.query.choices, case.query.n_bytes, strict=True):
            tokens, n = case.query.prompt + choice, len(case.query.prompt)
            logits = log_softmax(reference.logits(tokens, 4, 64))
            means.append(sum(logits[i - 1, tokens[i]] for i in range(n, len(tokens))) / n_bytes)
        assert result.score == float(int(np.argmax(means)) == case.query.gold)
    assert 0 < sum(result.score or 0 for result in results) < 8
