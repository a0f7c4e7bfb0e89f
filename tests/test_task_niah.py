"""Needles in prose: where they stand, what is asked, lengths, and what is shared."""

from __future__ import annotations

import re
from collections.abc import Iterator
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
from pyselfextend.eval.tasks.niah import Needle, Niah, sentence_end
from pyselfextend.eval.text import Text, default_text

TASK = Niah(lengths=(2000, 3333), depths=(0.0, 0.1, 0.5, 0.9, 1.0), samples=2)

HEAD = "You are a helpful AI bot that answers questions for a user. Keep your response short and direct\n\n"
NEEDLE = r"\nThe best thing to do in (\w+) is eat a (\w+ \w+) and sit in (\w+) Park on a sunny day\.\n"
QUESTION = (
    r"\n\nWhat is the best thing to do in (\w+)\? Don't give information outside the document or repeat your findings"
)


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def tokenizer(tiny_models: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Tokenizer]:
    path = tiny_models[request.param]
    with EvalModel(path, Setting("plain"), Rope.of(path), 64) as model:
        yield model.tokenizer()


def query(case: Case) -> Generate:
    assert isinstance(case.query, Generate)
    return case.query


def parse(text: str) -> tuple[str, str, tuple[str, str]]:
    """The prose before and behind a prompt's needle, and its parts, if it is about the town that is asked for."""
    found = re.search(f"{re.escape(HEAD)}(.*){NEEDLE}(.*){QUESTION}", tidy(text), re.DOTALL)
    assert found
    before, town, food, park, behind, asked = found.groups()
    assert town == asked
    return before, behind, (food, park)


def tidy(text: str) -> str:
    """A text without the spaces that some tokenizers put in front of each piece."""
    return re.sub(" *\n *", "\n", re.sub(" +", " ", text))


def test_every_combination_once_at_its_exact_length(tokenizer: Tokenizer) -> None:
    for spelled in (characters(), tokenizer):
        cases = list(TASK.cases(spelled))
        assert len({case.key for case in cases}) == len(cases) == 2 * 5 * 2
        assert all(len(query(case).prompt) == case.axes["n_tokens"] for case in cases)
        assert all(case.query.n_ctx <= TASK.n_ctx for case in cases)


def test_the_frame() -> None:
    for case in TASK.cases(characters()):
        text = characters().detokenize(query(case).prompt)
        assert re.fullmatch(
            re.escape(CHAT[0] + HEAD) + ".*" + QUESTION + re.escape(CHAT[1]) + r" The best thing to do in \1 is",
            text,
            re.DOTALL,
        )


def test_the_prose_is_whole_and_the_needle_at_the_end_of_a_sentence(tokenizer: Tokenizer) -> None:
    prose = "".join("".join(default_text().paragraphs).split())
    for spelled in (characters(), tokenizer):
        for case in TASK.cases(spelled):
            before, behind, parts = parse(spelled.detokenize(query(case).prompt))
            assert query(case).references == parts
            assert prose.startswith("".join((before + behind).split()))
            assert before == "" or re.search(r"[.!?][\"')]*(\n\n)?$", before)
            assert re.match(r"\s*[^\sa-z]|$", behind)
            depth, whole = case.axes["depth"], len(before + behind)
            assert isinstance(depth, float)
            assert abs(len(before) - depth * whole) < 300  # characters; sentences have up to about 400
            assert (before == "") == (depth == 0.0)


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("One. Two! Three? Four", ["One.", "One. Two!", "One. Two! Three?"]),
        ('He said "no." She left.', ['He said "no."', 'He said "no." She left.']),
        ("Some, e.g. this, cost 3.50 each. Others", ["Some, e.g. this, cost 3.50 each."]),
        ("A heading\n\nA text", ["A heading\n\n"]),
        ("\u7b2c\u4e00\u3002\u7b2c\u4e8c\uff01\u7b2c", ["\u7b2c\u4e00\u3002", "\u7b2c\u4e00\u3002\u7b2c\u4e8c\uff01"]),
    ],
)
def test_ends_of_sentences(text: str, ends: list[str]) -> None:
    hay = characters().plain(text)
    found = {sentence_end(characters(), hay, place) for place in range(len(hay) + 1)}
    assert sorted(found) == [0, *map(len, ends)]
    for place in range(len(hay) + 1):
        assert abs(sentence_end(characters(), hay, place) - place) == min(abs(end - place) for end in found)


def test_a_text_without_sentences_is_cut_where_asked() -> None:
    task = Niah(Text("words", ("word " * 2000,)), (3000,), (0.5,))
    (case,) = task.cases(characters())
    before, behind, _ = parse(characters().detokenize(query(case).prompt))
    assert abs(len(before) - len(behind)) <= 1


def test_a_short_text_starts_again() -> None:
    paragraphs = ("The first paragraph. It is short.", "The second one.")
    for case in Niah(Text("short", paragraphs), (1500,), (0.5,)).cases(characters()):
        before, behind, _ = parse(characters().detokenize(query(case).prompt))
        again = "\n\n".join(paragraphs * 100)
        assert len(before + behind) > 1000
        assert again.startswith(before + behind)


def test_needles_are_in_no_text_and_differ() -> None:
    needles = [Needle.of(str(seed)) for seed in range(300)]
    assert len({needle.park for needle in needles}) > 280
    assert len({needle.food for needle in needles}) > 100
    prose = " ".join(default_text().paragraphs).lower()
    for needle in needles:
        assert len({needle.town, needle.park}) == 2
        assert not any(part.lower() in prose for part in (needle.town, needle.food, needle.park))


def test_the_score_is_the_share_of_the_parts() -> None:
    (case, other, *_) = TASK.cases(characters())
    _, _, (food, park) = parse(characters().detokenize(query(case).prompt))
    metric, references = METRICS[query(case).metric], query(case).references
    assert metric(f" eat a {food} and sit in {park.upper()} Park on a sunny day.", references, ()) == 1.0
    assert metric(f" eating a {food} in Dolores Park", references, ()) == 0.5
    assert metric(f" sit in {park}", references, ()) == 0.5
    wrong = " ".join(query(other).references)
    assert metric(wrong, references, ()) == metric(" eat a sandwich and sit in Dolores Park", references, ()) == 0.0


def test_the_right_answer_goes_on_as_the_needle_does() -> None:
    for case in TASK.cases(characters()):
        prompt, gold = (characters().detokenize(tokens) for tokens in (query(case).prompt, query(case).gold))
        (town,) = re.findall(r"The best thing to do in (\w+) is$", prompt)
        food, park = query(case).references
        assert gold == f" eat a {food} and sit in {park}"
        assert f"The best thing to do in {town} is{gold} Park on a sunny day." in prompt


def test_neighbours_share_what_stands_before_their_needles() -> None:
    task = Niah(lengths=(4096, 8192), samples=1)
    prompts = [query(case).prompt for case in task.cases(characters())]
    readings = plan_readings(prompts)
    evaluated = sum(len(p) - r.n_shared for p, r in zip(prompts, readings, strict=True))
    # Each length's parts behind the needle, and what stands before the deepest needle once.
    least = sum((1 - depth) * n for n in (4096, 8192) for depth in task.depths) + 8192
    assert evaluated < least + len(prompts) * 2 * 512
    assert evaluated < 0.8 * sum(map(len, prompts))


def test_the_text_does_not_depend_on_the_tokenizer(tokenizer: Tokenizer) -> None:
    by_key = {case.key: query(case).references for case in TASK.cases(characters())}
    assert by_key == {case.key: query(case).references for case in TASK.cases(tokenizer)}


def test_a_length_that_is_too_short() -> None:
    with pytest.raises(EvalError, match=r"^99 tokens are too few for a needle in a haystack; at least \d+ are needed$"):
        list(Niah(lengths=(99,)).cases(characters()))


def test_a_depth_that_is_none() -> None:
    with pytest.raises(EvalError, match=r"^the depth is -0\.1; it must be between 0 and 1$"):
        list(Niah(lengths=(2000,), depths=(-0.1,)).cases(characters()))


def test_only_the_seed_decides() -> None:
    code = (
        "from eval_helpers import characters\nfrom pyselfextend.eval.tasks.niah import Niah\n"
        "print([(c.key, c.digest) for c in Niah(lengths=(1500,), seed=3).cases(characters())])"
    )
    first = under_hash_seed(code, 1)
    assert first == under_hash_seed(code, 2)
    digests = [(case.key, case.digest) for case in Niah(lengths=(1500,), seed=3).cases(characters())]
    assert first == f"{digests}\n"
    other = {case.digest for case in Niah(lengths=(1500,), seed=4).cases(characters())}
    assert not other & {digest for _, digest in digests}


def test_a_model_answers(tiny_model: Path) -> None:
    results = list(evaluate([tiny_model], [Niah(lengths=(500,), depths=(0.0, 1.0), n_predict=3)], [Setting("plain")]))
    assert [(result.axes["depth"], result.error, result.n_prompt) for result in results] == [
        (0.0, "", 500),
        (1.0, "", 500),
    ]
    for result in results:
        assert result.score == sum(part.lower() in result.answer.lower() for part in result.references) / 2
