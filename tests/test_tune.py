"""What tune measures, without the command: plans, texts, readings against another way of computing them, the choice."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import architectures
import numpy as np
import pytest
import unsupported
from eval_helpers import characters
from hypothesis import given, settings
from hypothesis import strategies as st

from pyselfextend import EvalError, Llama, ModelFileError, SettingError, measured
from pyselfextend.eval.settings import Rope, Setting
from pyselfextend.eval.text import Text
from pyselfextend.groups import ga_n_auto
from pyselfextend.positions import n_ctx_reach
from pyselfextend.tune import Answer, Document, Plan, Reading, Stop, choose, make_plan, measure
from pyselfextend.tune.choice import table
from pyselfextend.tune.document import ResultFile
from pyselfextend.tune.plan import default_groups, default_lengths
from pyselfextend.tune.reader import Reader
from pyselfextend.tune.run import left, texts_of
from pyselfextend.tune.texts import Passage, passages

L, W = 512, 64


def plan_of(model: Path, **options: Any) -> Plan:
    return make_plan(model, **{"lengths": (500, 900, 1500), "keys": 2, "window": 200, **options})


#
# plans
#


def test_the_defaults() -> None:
    assert default_lengths(8192) == (4096, 8192, 12288, 16384, 24576, 32768)
    assert default_groups(8192, 1024, default_lengths(8192)) == (1, 2, 3, 4, 6, 8)
    assert default_groups(8192, 1024, (4096, 8192)) == (1,)
    assert default_groups(8192, 1024, (12288,)) == (2, 3, 4)  # the plain model does not reach it


@given(st.integers(2, 10_000), st.data())
def test_default_groups_reach(n_ctx_train: int, data: st.DataObject) -> None:
    """Every length is reached, and what the rule takes is among them."""
    ga_w = data.draw(st.integers(0, n_ctx_train // 2))
    lengths = data.draw(st.lists(st.integers(1, 6 * n_ctx_train), min_size=1, max_size=5))
    groups = default_groups(n_ctx_train, ga_w, lengths)
    assert list(groups) == sorted(set(groups))
    for length in lengths:
        assert ga_n_auto(n_ctx_train, ga_w, length) in groups
    for ga_n in groups:
        assert n_ctx_reach(n_ctx_train, ga_n, ga_w) >= min(lengths)


def test_a_plan(tiny_model: Path) -> None:
    plan = make_plan(tiny_model)
    assert (plan.ga_w, plan.lengths) == (W, (256, 512, 768, 1024, 1536, 2048))
    assert plan.groups == (1, 2, 3, 4, 6, 8)
    assert [plan.lengths_of(ga_n)[-1] for ga_n in plan.groups] == [512, 768, 1024, 1536, 2048, 2048]
    plan = make_plan(tiny_model, lengths=(900, 500, 900), groups=(4, 2, 4), ga_w=0, keys=1)
    assert (plan.lengths, plan.groups, plan.ga_w) == ((500, 900), (2, 4), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": ()}, "there is nothing to measure: no length"),
        ({"lengths": (0,)}, "length is 0; it must be an integer from 1 to"),
        ({"groups": (0,)}, "ga_n is 0; it must be an integer from 1 to"),
        ({"groups": ()}, "none of the groups"),
        (
            {"groups": (2, 1), "lengths": (600,)},
            "ga_n=1 reaches 512 tokens on this model, and the shortest length is 600",
        ),
        ({"groups": (1, 2)}, "none of the groups 1, 2 reaches 2048 tokens; give one of at least 5"),
        ({"ga_w": 512}, "ga_w is 512; it must be below the trained context of 512 tokens"),
        ({"keys": 0}, "keys is 0; it must be an integer from 1 to 64"),
        ({"samples": 0}, "samples is 0; it must be"),
        ({"window": 0}, "window is 0; it must be"),
    ],
)
def test_what_is_not_allowed(tiny_model: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make_plan(tiny_model, **options)


def test_models_without_groups(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="has no groups to choose from: architecture 'mamba' is not supported"):
        make_plan(unsupported.make(tmp_path / "model.gguf", "mamba"))
    with pytest.raises(ModelFileError):
        make_plan(tmp_path / "missing.gguf")


#
# texts
#

PROSE = Text("prose", tuple(f"Sentence {i} says little. So does what follows it! Is that all?" for i in range(400)))


def text_of(passage: Passage) -> str:
    return "".join(map(chr, passage.tokens[1:]))  # behind characters()'s bos


@pytest.mark.parametrize("keys", [1, 3, 8])
def test_keys_stand_where_they_are_asked_for(tiny_model: Path, keys: int) -> None:
    plan = plan_of(tiny_model, lengths=(2000, 3000, 4000, 8000), keys=keys, text=PROSE, samples=2)
    found = passages(plan, characters())
    assert found == passages(plan, characters())
    assert found[0].tokens != found[1].tokens
    for passage in found:
        text = text_of(passage)
        assert len(passage.tokens) == len(passage.prose) == passage.places[-1].n_read
        assert [place.n_tokens for place in passage.places] == list(plan.lengths)
        asked = {i for place in passage.places for i in place.keys}
        assert asked == set(range(len(passage.keys)))  # none stands there for nothing
        assert keys <= len(passage.keys) < 4 * keys or keys == 1
        names = set()
        for key in passage.keys:
            question, number = ("".join(map(chr, tokens)) for tokens in (key.question, key.answer))
            name = question.removeprefix("\n\nWhat is the pass key of ").partition("?")[0]
            names.add(name)
            needle = f"\n\nThe pass key of {name} is{number}. Remember it.{number} is the pass key of {name}.\n\n"
            begin = key.place - 1
            assert text[begin : begin + key.n_tokens] == needle
            assert text[begin - 1] in ".!?\n"  # between sentences
            assert not any(passage.prose[key.place : key.place + key.n_tokens])
            assert question.endswith(f"The pass key of {name} is")
            assert len(number) == 6
        assert len(names) == len(passage.keys)
        for place in passage.places:
            assert place.n_before == max(0, place.n_read - 200)
            longest = max(len(key.question) + len(key.answer) for key in passage.keys)
            assert place.n_read + longest <= place.n_tokens
            assert len(place.keys) == keys
            for n, i in enumerate(place.keys):
                key = passage.keys[i]
                assert key.place + key.n_tokens <= place.n_read
                middle = (2 * n + 1) / (2 * keys)  # as deep as they should stand, or half the way to the next one
                assert abs(key.place / place.n_read - middle) <= 1 / (2 * keys) + 100 / place.n_read
        without = "".join(c for c, is_prose in zip(text, passage.prose[1:], strict=True) if is_prose)
        assert without in "".join(f"{paragraph}\n\n" for paragraph in PROSE.paragraphs)


def test_texts_depend_on_the_seed_alone(tiny_model: Path) -> None:
    plan = plan_of(tiny_model, text=PROSE, samples=2)
    first, second = passages(plan, characters())
    assert passages(replace(plan, samples=1), characters()) == [first]
    others = passages(replace(plan, seed=2), characters())
    assert {other.digest for other in others}.isdisjoint({first.digest, second.digest})
    for change in ({"keys": 1}, {"window": 100}, {"lengths": (500, 900, 1499)}):
        assert passages(replace(plan, **change), characters())[0].digest != first.digest  # type: ignore[arg-type]
    assert passages(replace(plan, groups=(1, 8)), characters()) == [first, second]


def test_texts_that_are_too_short(tiny_model: Path) -> None:
    short = replace(PROSE, paragraphs=PROSE.paragraphs[:20])
    with pytest.raises(
        EvalError, match=r"prose has \d+ tokens for this model, and about 3000 are needed: give a longer"
    ):
        passages(plan_of(tiny_model, text=short, samples=2), characters())
    for lengths, keys in (((150, 2000), 2), ((400, 2000), 8), ((300,), 3)):
        with pytest.raises(EvalError, match=f"a length of {lengths[0]} tokens is too short for {keys} keys"):
            passages(plan_of(tiny_model, text=PROSE, lengths=lengths, keys=keys), characters())
    with pytest.raises(EvalError, match=r"\d+ keys are more than there are names for, 480"):
        many = tuple(5_000 * 4**i for i in range(10))
        passages(plan_of(tiny_model, text=PROSE, lengths=many, keys=64, groups=(4_000_000,)), characters())


#
# readings
#


@pytest.mark.parametrize(
    ("name", "ga_n"), [("llama", 1), ("llama", 2), ("llama", 5), ("gemma3", 5), ("hunyuan-dense", 5)]
)
def test_a_reading_is_what_llama_says_of_the_same_tokens(tmp_path: Path, name: str, ga_n: int) -> None:
    """Each key and each perplexity, by a context of its own that reads everything at once and is never cut."""
    model = Path(architectures.make_tiny().make(tmp_path / "model.gguf", name, L))
    lengths = (260, 500) if ga_n == 1 else (400, 900)
    plan = plan_of(model, lengths=lengths, groups=(ga_n,), keys=2, window=150)
    (passage,) = texts_of(plan)
    (reading,) = measure(plan, n_threads=1)
    assert (reading.ga_n, reading.sample, reading.digest) == (ga_n, 0, passage.digest)
    assert [stop.n_tokens for stop in reading.stops] == list(lengths)
    for stop, place in zip(reading.stops, passage.places, strict=True):
        assert len(stop.answers) == 2
        for answer, i in zip(stop.answers, place.keys, strict=True):
            key = passage.keys[i]
            assert answer.depth == key.place / place.n_read
            tokens = [*passage.tokens[: place.n_read], *key.question, *key.answer]
            n, logits = len(key.answer), all_logits(model, tokens, ga_n)
            values = log_softmax(logits[-n - 1 : -1])[np.arange(n), key.answer]
            assert answer.log_p == pytest.approx(values.sum(), abs=0.25)  # of about -60: F16 caches round differently
            assert answer.is_right == (logits[-n - 1 : -1].argmax(axis=1) == key.answer).all()
            values = log_softmax(logits[: place.n_read - 1])[np.arange(place.n_read - 1), tokens[1 : place.n_read]]
            some = [values[j - 1] for j in range(place.n_before, place.n_read) if passage.prose[j]]
            assert stop.n_scored == len(some) > 30
            assert stop.nll == pytest.approx(-sum(some), rel=2e-3)


def all_logits(model: Path, tokens: Sequence[int], ga_n: int) -> Any:
    options: dict[str, Any] = {} if ga_n == 1 else {"ga_w": W}
    with Llama(str(model), n_ctx=max(512, len(tokens)), ga_n=ga_n, n_threads=1, logits_all=True, verbose=False,
               flash_attn=True, swa_full=True, **options) as llm:  # fmt: skip
        llm.eval(tokens)
        return np.array(llm.scores[: len(tokens)], dtype=np.float64)


def log_softmax(rows: Any) -> Any:
    shifted = rows - rows.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def test_questions_leave_nothing_behind(tiny_model: Path) -> None:
    """What is read and asked after many questions is what it is after few."""
    few = plan_of(tiny_model, lengths=(1500,), groups=(4,))
    (passage,) = texts_of(few)
    (reading,) = measure(few, n_threads=1)
    with Reader(tiny_model, Setting("auto", ga_w=W), Rope.of(tiny_model), 1600, n_threads=1) as reader:
        reader.begin(4)
        n_read, found = passage.places[0].n_read, []
        reader.read(passage.tokens[:100])
        for start in range(100, n_read, 100):
            found += reader.score(passage.tokens[start : min(start + 100, n_read)]).tolist()
            for key in passage.keys:
                reader.ask(key.question, key.answer)
        answers = [float(reader.ask(key.question, key.answer).values.sum()) for key in passage.keys]
    assert answers == pytest.approx([each.log_p for each in reading.stops[0].answers], abs=0.25)
    some = [found[j - 100] for j in range(passage.places[0].n_before, n_read) if passage.prose[j]]
    assert -sum(some) == pytest.approx(reading.stops[0].nll, rel=2e-3)


#
# the choice
#


def reading(ga_n: int, stops: dict[int, tuple[float, Sequence[float]]], sample: int = 0) -> Reading:
    """stops: by length, perplexity and log probabilities."""
    return Reading(ga_n, sample, f"text {sample}", 1.0, tuple(
        Stop(length, 100 * math.log(perplexity), 100, tuple(Answer(0.5, value, value > -1) for value in values))
        for length, (perplexity, values) in stops.items()
    ))  # fmt: skip


NOISE = [-3.0, -2.0, -1.5, -4.0, -2.5, -1.0, -3.5, -2.0]


def shifted(by: float, noise: float = 0.0) -> list[float]:
    return [value + by + noise * (-1) ** i for i, value in enumerate(NOISE)]


@pytest.mark.parametrize(
    ("length", "groups", "chosen"),
    [
        (8192, {1: (10.0, shifted(0)), 2: (10.0, shifted(0.3, 1.0))}, 1),  # it may be chance
        (8192, {1: (10.0, shifted(0)), 2: (10.0, shifted(0.3, 0.1))}, 2),  # every key is better
        (8192, {1: (10.0, shifted(0)), 2: (10.2, shifted(3))}, 1),  # reads worse
        (8192, {1: (10.2, shifted(0)), 2: (10.0, shifted(-3)), 4: (10.05, shifted(-2))}, 4),  # plain reads worse
        (16384, {3: (10.0, shifted(0.2, 1.0)), 4: (10.0, shifted(0)), 8: (10.0, shifted(-1))}, 4),  # the rule's
        (16384, {3: (10.0, shifted(1)), 4: (10.0, shifted(0)), 8: (10.0, shifted(0.5))}, 3),
        (16384, {3: (10.0, shifted(0.1)), 8: (10.0, shifted(0.2))}, 8),  # the rule's was not measured
        (16384, {4: (10.0, shifted(-100))}, 4),
    ],
)
def test_the_rule_is_left_for_something(length: int, groups: dict[int, Any], chosen: int) -> None:
    readings = [reading(ga_n, {length: cell}) for ga_n, cell in groups.items()]
    (choice,) = choose(readings[::-1], 8192, 1024)
    assert (choice.n_tokens, choice.chosen.ga_n) == (length, chosen)
    assert choice.ga_n_rule == (1 if length == 8192 else 4)
    assert [cell.ga_n for cell in choice.cells] == sorted(groups)
    for cell in choice.cells:
        perplexity, values = groups[cell.ga_n]
        assert cell.perplexity == pytest.approx(perplexity)
        assert cell.counts == (perplexity <= 1.01 * min(each for each, _ in groups.values()))
        assert cell.log_p.value == pytest.approx(np.mean(values))
        assert cell.log_p.low < cell.log_p.value < cell.log_p.high
        assert (cell.n_right, cell.n_keys) == (sum(value > -1 for value in values), 8)
    if choice.ga_n_rule not in groups:
        assert (choice.rule, choice.gain, choice.perplexity_ratio) == (None, None, None)
    else:
        perplexity, values = groups[choice.ga_n_rule]
        assert choice.rule is not None
        assert choice.rule.ga_n == choice.ga_n_rule
        assert choice.gain is not None
        assert choice.gain.value == pytest.approx(np.mean(groups[chosen][1]) - np.mean(values))
        assert choice.perplexity_ratio == pytest.approx(groups[chosen][0] / perplexity)


def test_texts_count_together() -> None:
    """Keys are compared with the same keys of the same text, in whatever order the readings came."""
    plain = [reading(1, {500: (10.0, shifted(-10 * sample))}, sample) for sample in range(3)]
    grouped = [reading(2, {500: (12.0 if sample else 7.0, shifted(0.2 - 10 * sample))}, sample) for sample in range(3)]
    for readings in ([*plain, *grouped], [*grouped[::-1], *plain]):
        (choice,) = choose(readings, 512, 64)
        assert choice.gain is not None
        assert (choice.gain.value, choice.gain.low) == (pytest.approx(0.2), pytest.approx(0.2))
        assert choice.chosen.perplexity == pytest.approx((7.0 * 12.0 * 12.0) ** (1 / 3))
        assert choice.chosen.ga_n == 2


def test_the_interval_covers_a_mean() -> None:
    """Of 200 samples of 16 values, the bootstrap's 95% intervals hold the true mean in most."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        values = rng.normal(-2.0, 1.0, 16).tolist()
        (choice,) = choose([reading(1, {100: (10.0, values)})], 512, 64)
        hits += choice.chosen.log_p.low <= -2.0 <= choice.chosen.log_p.high
    assert 170 <= hits <= 198


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.floats(5, 20), st.lists(st.floats(-50, 0), min_size=4, max_size=4)), min_size=1, max_size=5)
)
def test_a_choice_counts_and_is_no_worse_than_chance(cells: list[tuple[float, list[float]]]) -> None:
    readings = [reading(2**i, {500: cell}) for i, cell in enumerate(cells)]
    (choice,) = choose(readings, 512, 64)
    assert choice.chosen.counts
    assert choice.chosen.perplexity <= 1.0100001 * min(cell.perplexity for cell in choice.cells)
    best = max((cell for cell in choice.cells if cell.counts), key=lambda cell: cell.log_p.value)
    assert choice.chosen in (best, choice.rule)
    assert table([choice]) == ((500, choice.chosen.ga_n),)


#
# the file
#


@pytest.fixture
def measured_plan(tiny_model: Path) -> tuple[Plan, Document]:
    plan = plan_of(tiny_model, groups=(4,))
    readings = tuple(measure(plan, n_threads=1))
    return plan, replace(Document.of(plan), readings=readings, groups=table(choose(readings, L, W)))


def test_what_is_written_is_read(measured_plan: tuple[Plan, Document], tmp_path: Path) -> None:
    plan, document = measured_plan
    assert Document.from_json(document.to_json()).readings == document.readings
    file = ResultFile(tmp_path / "new" / "result.json")
    assert file.load(Document.of(plan)).readings == ()
    file.keep(replace(document, groups=()))
    assert file.unfinished.exists()
    assert not file.path.exists()
    again = ResultFile(file.path).load(Document.of(plan))
    assert again.readings == document.readings
    assert left(plan, texts_of(plan), again) == []
    file.finish(document)
    assert not file.unfinished.exists()
    n_ctx_train, groups = measured.check(json.loads(file.path.read_bytes()), plan.digest, W)
    assert (n_ctx_train, groups) == (L, ((500, 4), (900, 4), (1500, 4)))


def test_what_is_there_is_not_read_again(measured_plan: tuple[Plan, Document]) -> None:
    plan, document = measured_plan

    def tasks(**change: Any) -> list[tuple[int, int]]:
        changed = replace(plan, **change)
        return [(task.ga_n, task.sample) for task in left(changed, texts_of(changed), document)]

    assert tasks() == []
    assert tasks(samples=2) == [(4, 1)]
    assert tasks(groups=(2, 4)) == [(2, 0)]
    for change in ({"seed": 2}, {"keys": 1}, {"window": 100}, {"lengths": (500, 1500)}):
        assert tasks(**change) == [(4, 0)]


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"\xff", b"not JSON", b'{"format": "pyselfextend-tune", "version": 1}']
)
@pytest.mark.parametrize("unfinished", [False, True])
def test_a_file_that_is_something_else_is_not_replaced(
    tiny_model: Path, tmp_path: Path, content: bytes, unfinished: bool
) -> None:
    file = ResultFile(tmp_path / "result.json")
    place = file.unfinished if unfinished else file.path
    place.write_bytes(content)
    with pytest.raises(EvalError, match=f"{place} is not a result of tune that can be gone on with: .*; remove it"):
        file.load(Document.of(plan_of(tiny_model)))
    assert place.read_bytes() == content


def test_any_damage_is_noticed_or_harmless(measured_plan: tuple[Plan, Document]) -> None:
    """Each byte of a reading once changed, and the file once cut there: another error never comes out."""
    _, document = measured_plan
    text = document.to_json()
    n_refused = 0
    for i in range(0, len(text), 7):
        for damaged in (text[:i], text[:i] + "x" + text[i + 1 :], text[:i] + text[i + 1 :]):
            try:
                Document.from_json(damaged)
            except ValueError:
                n_refused += 1
    assert n_refused > len(text) // 7


def test_results_of_another_model_are_not_replaced(measured_plan: tuple[Plan, Document], tmp_path: Path) -> None:
    _, document = measured_plan
    file = ResultFile(tmp_path / "result.json")
    file.finish(document)
    for other in (replace(document, digest="0" * 16), replace(document, ga_w=65)):
        with pytest.raises(EvalError, match="holds what was measured on another model or with another window"):
            file.load(other)
