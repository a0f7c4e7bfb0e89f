"""Key-value retrieval: the object, which pair is asked for, lengths, and what is shared."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from eval_helpers import CHAT, characters, under_hash_seed

from pyselfextend import EvalError
from pyselfextend.eval.cases import Case, Generate, Tokenizer
from pyselfextend.eval.metrics import METRICS
from pyselfextend.eval.model import EvalModel
from pyselfextend.eval.run import evaluate
from pyselfextend.eval.settings import Rope, Setting
from pyselfextend.eval.sharing import plan_readings
from pyselfextend.eval.tasks.kv import KeyValue

TASK = KeyValue(lengths=(1000, 1777), places=(0.0, 0.1, 0.25, 0.5, 0.75, 1.0), samples=2)


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def tokenizer(tiny_models: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Tokenizer]:
    path = tiny_models[request.param]
    with EvalModel(path, Setting("plain"), Rope.of(path), 64) as model:
        yield model.tokenizer()


def query(case: Case) -> Generate:
    assert isinstance(case.query, Generate)
    return case.query


def parse(text: str) -> tuple[dict[str, str], str]:
    """The object in a prompt, and the key that is asked for."""
    (found,) = re.findall(r'JSON data:\n(\{.*\})\s+Key: "(.*)"\nCorresponding value:', text, re.DOTALL)
    pairs = json.loads(found[0], object_pairs_hook=list)
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs), found[1]


def test_the_prompt_is_the_published_one() -> None:
    for case in TASK.cases(characters()):
        text = characters().detokenize(query(case).prompt)
        pairs, key = parse(text)
        published = (
            "Extract the value corresponding to the specified key in the JSON object below.\n\nJSON data:\n"
            + json.dumps(pairs, separators=(",\n ", ": "))
            + f'\n\nKey: "{key}"\nCorresponding value:'
        )
        n_pad = int(str(case.axes["n_tokens"])) - len(CHAT[0] + published + CHAT[1])
        front, behind = published.split("}")
        assert text == CHAT[0] + front + "}" + "\n" * n_pad + behind + CHAT[1]
        one_more = ',\n "": ""' + 2 * str(uuid.UUID(int=0))
        assert 0 <= n_pad < len(one_more)  # as many pairs as fit


def test_every_combination_once_at_its_exact_length(tokenizer: Tokenizer) -> None:
    for spelled in (characters(), tokenizer):
        task = KeyValue((1500, 2222), (0.0, 0.5, 1.0), 2)
        cases = list(task.cases(spelled))
        assert len({case.key for case in cases}) == len(cases) == 2 * 3 * 2
        assert all(len(query(case).prompt) == case.axes["n_tokens"] for case in cases)
        assert all(case.query.n_ctx <= task.n_ctx for case in cases)


def test_the_pair_stands_where_it_should(tokenizer: Tokenizer) -> None:
    for spelled in (characters(), tokenizer):
        for case in TASK.cases(spelled):
            pairs, key = parse(spelled.detokenize(query(case).prompt))
            index, place = list(pairs).index(key), case.axes["place"]
            assert isinstance(place, float)
            assert abs(index - place * (len(pairs) - 1)) <= 0.5
            assert query(case).references == (pairs[key],)


def test_all_uuids_differ() -> None:
    for case in TASK.cases(characters()):
        pairs, _ = parse(characters().detokenize(query(case).prompt))
        found = [*pairs, *pairs.values()]
        assert len(set(found)) == len(found)
        assert all(uuid.UUID(text).version == 4 and str(uuid.UUID(text)) == text for text in found)


def test_only_the_right_value_scores() -> None:
    for case in TASK.cases(characters()):
        pairs, key = parse(characters().detokenize(query(case).prompt))
        metric, references = METRICS[query(case).metric], query(case).references
        assert metric(f' "{pairs[key].upper()}"', references, ()) == 1.0
        others = " ".join([*pairs, *(value for name, value in pairs.items() if name != key)])
        assert metric(others, references, ()) == metric(pairs[key][:-1], references, ()) == 0.0


def test_the_right_answer_is_the_value(tokenizer: Tokenizer) -> None:
    """Behind the line break that ends a chat template there is no space; there is one behind the colon without it."""
    template = replace(tokenizer, after=tokenizer.plain("\n"))
    for spelled, space in ((template, ""), (replace(characters(), before=(), after=()), " ")):
        for case in KeyValue((1500,), (0.0, 1.0), 1).cases(spelled):
            (value,) = query(case).references
            assert spelled.detokenize(query(case).gold) == space + value


def test_places_are_asked_of_one_object_that_is_read_once() -> None:
    task = KeyValue(lengths=(4096, 8192), places=(0.0, 0.25, 0.5, 0.75, 1.0), samples=2)
    cases = list(task.cases(characters()))
    objects = {(case.axes["n_tokens"], case.axes["sample"]): set[str]() for case in cases}
    for case in cases:
        pairs, _ = parse(characters().detokenize(query(case).prompt))
        objects[case.axes["n_tokens"], case.axes["sample"]].add(json.dumps(pairs))
    assert all(len(found) == 1 for found in objects.values())
    short, long, other = (next(iter(objects[which])) for which in ((4096, 0), (8192, 0), (8192, 1)))
    assert long.startswith(short[:-1])
    assert not set(json.loads(long)) & set(json.loads(other))

    readings = plan_readings([query(case).prompt for case in cases])
    evaluated = sum(len(query(c).prompt) - r.n_shared for c, r in zip(cases, readings, strict=True))
    # Each object once, and of every prompt the last slices, in which line breaks and key stand.
    assert evaluated <= 2 * (4096 + 8192) + len(cases) * 2 * 512


def test_objects_do_not_depend_on_the_tokenizer(tokenizer: Tokenizer) -> None:
    for mine, theirs in zip(TASK.cases(characters()), TASK.cases(tokenizer), strict=True):
        a, _ = parse(characters().detokenize(query(mine).prompt))
        b, _ = parse(tokenizer.detokenize(query(theirs).prompt))
        n = min(len(a), len(b))
        assert list(a.items())[:n] == list(b.items())[:n]


def test_more_samples_and_places_leave_the_others_alone() -> None:
    few = {case.key: case.digest for case in KeyValue((1500,), (0.25, 1.0), 1).cases(characters())}
    many = {case.key: case.digest for case in KeyValue((1500, 2000), (0.25, 0.5, 1.0), 3).cases(characters())}
    assert len(few) == 2
    assert few.items() <= many.items()


def test_a_length_that_is_too_short() -> None:
    with pytest.raises(
        EvalError, match=r"^99 tokens are too few for key-value retrieval; at least \d+ are needed$"
    ) as e:
        list(KeyValue((99,)).cases(characters()))
    least = int(str(e.value).split()[-3])
    cases = list(KeyValue((least,), samples=1).cases(characters()))
    assert [len(query(case).prompt) for case in cases] == [least] * 5
    assert len({query(case).references for case in cases}) == 5
    with pytest.raises(EvalError, match=f"at least {least} are needed"):
        list(KeyValue((least - 1,)).cases(characters()))


def test_a_place_that_is_none() -> None:
    with pytest.raises(EvalError, match=r"^the place is 1\.5; it must be between 0 and 1$"):
        list(KeyValue((2000,), (0.5, 1.5)).cases(characters()))


def test_only_the_seed_decides() -> None:
    code = (
        "from eval_helpers import characters\nfrom pyselfextend.eval.tasks.kv import KeyValue\n"
        "print([(c.key, c.digest) for c in KeyValue((1500,), seed=3).cases(characters())])"
    )
    first = under_hash_seed(code, 1)
    assert first == under_hash_seed(code, 2)
    digests = [(case.key, case.digest) for case in KeyValue((1500,), seed=3).cases(characters())]
    assert first == f"{digests}\n"
    other = {case.digest for case in KeyValue((1500,), seed=4).cases(characters())}
    assert not other & {digest for _, digest in digests}


def test_a_model_answers(tiny_model: Path) -> None:
    task = KeyValue((700,), (0.0, 1.0), 1, n_predict=3)
    results = list(evaluate([tiny_model], [task], [Setting("plain")]))
    assert [(result.axes["place"], result.error, result.n_prompt) for result in results] == [
        (0.0, "", 700),
        (1.0, "", 700),
    ]
    assert all(result.score == float(result.references[0] in result.answer) for result in results)
