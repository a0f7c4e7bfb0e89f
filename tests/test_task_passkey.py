"""Passkey prompts: their lengths, where the number stands, and that nothing but the seed decides."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from eval_helpers import CHAT, characters, under_hash_seed

from pyselfextend import EvalError
from pyselfextend.eval.cases import Case, Generate
from pyselfextend.eval.metrics import METRICS
from pyselfextend.eval.model import EvalModel
from pyselfextend.eval.settings import Rope, Setting
from pyselfextend.eval.sharing import plan_readings
from pyselfextend.eval.tasks.passkey import Passkey

TASK = Passkey(lengths=(600, 1111), depths=(0.0, 0.3, 1.0), digits=(5, 10), samples=2)


def query(case: Case) -> Generate:
    assert isinstance(case.query, Generate)
    return case.query


def text(case: Case) -> str:
    return characters().detokenize(query(case).prompt)


def test_every_combination_once() -> None:
    cases = list(TASK.cases(characters()))
    assert len({case.key for case in cases}) == len(cases) == 2 * 3 * 2 * 2
    assert {case.axes["n_tokens"] for case in cases} == {600, 1111}
    assert all(case.query.n_ctx <= TASK.n_ctx for case in cases)


def test_lengths_are_exact() -> None:
    for case in TASK.cases(characters()):
        assert len(query(case).prompt) == case.axes["n_tokens"]
        assert text(case).startswith(f"{CHAT[0]}There is an important info")
        assert text(case).endswith(f"\nWhat is the pass key?{CHAT[1]} The pass key is")


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize("chat", [True, False])
def test_lengths_are_exact_in_the_tokens_of_a_model(tiny_models: dict[str, Path], name: str, chat: bool) -> None:
    path = tiny_models[name]
    with EvalModel(path, Setting("plain"), Rope.of(path), 64) as model:
        tokenizer = model.tokenizer(chat)
        for case in Passkey(lengths=(512, 700)).cases(tokenizer):
            assert len(query(case).prompt) == case.axes["n_tokens"]
            (number,) = query(case).references
            assert tokenizer.detokenize(query(case).prompt).count(number) == 2


def test_the_number_stands_where_it_should() -> None:
    for case in TASK.cases(characters()):
        (number,) = query(case).references
        assert len(number) == case.axes["digits"]
        found = re.findall(r"The pass key is (\d+)\. Remember it\. (\d+) is the pass key\.", text(case))
        assert found == [(number, number)]
        before, _, behind = text(case).partition(f"The pass key is {number}")
        assert before.endswith(("There and back again.\n", "important information there.\n"))  # a line of its own
        garbage = len(before.partition("there.\n")[2])
        whole = garbage + len(behind.partition("is the pass key.\n")[2].partition("\nWhat")[0])
        line = len("The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n")
        depth = case.axes["depth"]
        assert isinstance(depth, float)
        assert depth * whole - line < garbage <= depth * whole + 1


def test_numbers_differ_and_only_the_right_one_scores() -> None:
    numbers = [query(case).references[0] for case in TASK.cases(characters())]
    assert len(set(numbers)) > len(numbers) - 3  # drawn at random, so that two may be the same
    metric = METRICS["contains_all"]
    assert metric(f" {numbers[0]}. Remember it.", numbers[:1], ()) == 1.0
    assert metric(f" {numbers[1]}.", numbers[:1], ()) == 0.0
    assert metric("", numbers[:1], ()) == 0.0


def test_the_right_answer_goes_on_with_the_prompt() -> None:
    for case in TASK.cases(characters()):
        (number,) = query(case).references
        assert characters().detokenize(query(case).gold) == f" {number}"


def test_the_right_answer_has_the_tokens_that_it_has_in_a_text(smollm2: Path) -> None:
    with EvalModel(smollm2, Setting("plain"), Rope.of(smollm2), 64) as model:
        tokenizer = model.tokenizer(False)
        for case in Passkey(lengths=(600,)).cases(tokenizer):
            (number,) = query(case).references
            end = tokenizer.plain(f"\nWhat is the pass key? The pass key is {number}")
            assert (query(case).prompt + query(case).gold)[-len(end) :] == end
            assert len(query(case).gold) == 1 + len(number)  # a space, and a token for each digit


def test_a_length_that_is_too_short() -> None:
    with pytest.raises(
        EvalError, match=r"^100 tokens are too few for a passkey prompt; at least ([0-9]+) are needed$"
    ) as e:
        list(Passkey(lengths=(100,)).cases(characters()))
    least = int(str(e.value).split()[-3])
    assert all(len(query(case).prompt) == least for case in Passkey(lengths=(least,), digits=(5,)).cases(characters()))


def test_neighbours_share_what_stands_before_their_numbers() -> None:
    task = Passkey(lengths=(4096, 8192), depths=(0.0, 0.25, 0.5, 0.75, 1.0), digits=(5,))
    prompts = [query(case).prompt for case in task.cases(characters())]
    readings = plan_readings(prompts)
    evaluated = sum(len(p) - r.n_shared for p, r in zip(prompts, readings, strict=True))
    # Each length's parts behind the number, and the trunk before the deepest number once.
    least = sum((1 - depth) * n for n in (4096, 8192) for depth in task.depths) + 8192
    assert evaluated < 1.1 * least < 0.75 * sum(map(len, prompts))


def test_only_the_seed_decides() -> None:
    code = (
        "from eval_helpers import characters\nfrom pyselfextend.eval.tasks.passkey import Passkey\n"
        "print([(c.key, c.digest) for c in Passkey(lengths=(700,), seed=3).cases(characters())])"
    )
    first = under_hash_seed(code, 1)
    assert first == under_hash_seed(code, 2)
    assert first == f"{[(c.key, c.digest) for c in Passkey(lengths=(700,), seed=3).cases(characters())]}\n"
    other = [c.digest for c in Passkey(lengths=(700,), seed=4).cases(characters())]
    assert not set(other) & {c.digest for c in Passkey(lengths=(700,), seed=3).cases(characters())}
