"""The task inside the trained window: lengths, which sentences are offered, and what is chosen."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from eval_helpers import under_hash_seed
from reference import Reference, log_softmax

from pyselfextend import EvalError
from pyselfextend.eval.cases import Case, Choose, Score, Tokenizer
from pyselfextend.eval.model import EvalModel
from pyselfextend.eval.run import evaluate
from pyselfextend.eval.settings import Rope, Setting
from pyselfextend.eval.tasks.ppl import Perplexity
from pyselfextend.eval.tasks.short import N_CHOICES, Short
from pyselfextend.eval.text import Text, default_text

TEXT = default_text()
WHOLE = " ".join(TEXT.paragraphs)

TASK = Short(TEXT, lengths=(320, 512), stride=64, windows=3, samples=12)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Iterator[Tokenizer]:
    with EvalModel(tiny_model, Setting("plain"), Rope.of(tiny_model), 64) as model:
        yield model.tokenizer()


@pytest.fixture(scope="module")
def cases(tokenizer: Tokenizer) -> list[Case]:
    return list(TASK.cases(tokenizer))


def choose(cases: list[Case]) -> list[tuple[Case, Choose]]:
    return [(case, case.query) for case in cases if isinstance(case.query, Choose)]


def texts(tokenizer: Tokenizer, query: Choose) -> list[str]:
    return [tokenizer.detokenize(choice) for choice in query.choices]


def test_every_case_is_there_once(cases: list[Case]) -> None:
    keys = [f"subtask=ppl n_tokens={n} stride=64 window={w}" for n in (320, 512) for w in range(3)]
    keys += [f"subtask=choice n_tokens={n} sample={s}" for s in range(12) for n in (320, 512)]
    assert [case.key for case in cases] == keys
    assert {case.task for case in cases} == {"short"}
    assert TASK.n_ctx == 512


def test_lengths_are_exact(cases: list[Case], tokenizer: Tokenizer) -> None:
    """Of a text, and of the longest choice with all that stands before it; both begin as the model wants it."""
    for case in cases:
        assert case.query.n_ctx == case.axes["n_tokens"]
        first = case.query.text if isinstance(case.query, Score) else case.query.prompt
        assert first[:1] == tokenizer.bos and first.count(tokenizer.bos[0]) == 1


def test_perplexity_is_that_of_ppl(cases: list[Case], tokenizer: Tokenizer) -> None:
    scores = [case.query for case in cases if isinstance(case.query, Score)]
    assert scores == [case.query for case in Perplexity(TEXT, (320, 512), 64, 3).cases(tokenizer)]


def test_the_right_choice_really_follows(cases: list[Case], tokenizer: Tokenizer) -> None:
    """In the text, what is before the question goes on with the right choice, and with no other one."""
    for _, query in choose(cases):
        before = " ".join(tokenizer.detokenize(query.prompt[-200:]).split())
        offered = texts(tokenizer, query)
        assert [before + text in WHOLE for text in offered] == [i == query.gold for i in range(N_CHOICES)]
        # they stand in one paragraph, and the others elsewhere
        (paragraph,) = (p for p in TEXT.paragraphs if before[-20:] + offered[query.gold] in p)
        assert sum(text in f" {paragraph}" for text in offered) == 1


def test_choices_are_whole_sentences_of_one_length(cases: list[Case], tokenizer: Tokenizer) -> None:
    for _, query in choose(cases):
        offered = texts(tokenizer, query)
        assert len(set(offered)) == N_CHOICES
        for text, n_bytes in zip(offered, query.n_bytes, strict=True):
            assert text in WHOLE and re.fullmatch(r" [A-Z].*[.!?]", text)
            assert len(text.encode()) == n_bytes
        assert max(query.n_bytes) < 1.5 * min(query.n_bytes)


def test_nothing_that_is_offered_stands_in_the_text_before(cases: list[Case], tokenizer: Tokenizer) -> None:
    for _, query in choose(cases):
        before = tokenizer.detokenize(query.prompt)
        for i, text in enumerate(texts(tokenizer, query)):
            assert i == query.gold or text not in before


def test_lengths_ask_the_same(cases: list[Case]) -> None:
    """The choices are the same, and a shorter prompt is the end of the longer one."""
    found = choose(cases)
    for (_, short), (_, long) in zip(found[::2], found[1::2], strict=True):
        assert (short.choices, short.gold, short.n_bytes) == (long.choices, long.gold, long.n_bytes)
        assert long.prompt[-len(short.prompt) + 1 :] == short.prompt[1:]


def test_the_right_one_stands_everywhere(tokenizer: Tokenizer) -> None:
    """A scorer that guesses is right in a quarter of the cases, within four standard errors."""
    queries = [query for _, query in choose(list(replace(TASK, lengths=(512,), samples=300).cases(tokenizer)))]
    rng = random.Random(5)
    bound = 4 * (300 * 0.25 * 0.75) ** 0.5
    for guesses in ([0] * 300, [3] * 300, [rng.randrange(4) for _ in queries]):
        right = sum(query.gold == guess for query, guess in zip(queries, guesses, strict=True))
        assert abs(right - 75) < bound
    longest = sum(query.n_bytes.index(max(query.n_bytes)) == query.gold for query in queries)
    assert abs(longest - 75) < bound  # nor does the length tell


def test_the_same_everywhere(cases: list[Case], tokenizer: Tokenizer) -> None:
    """Seeds differ, runs do not, whatever Python's hashes are."""
    assert list(TASK.cases(tokenizer)) == cases
    other = list(replace(TASK, seed=2).cases(tokenizer))
    assert [case.key for case in other] == [case.key for case in cases]
    assert choose(other) != choose(cases)
    code = (
        "from eval_helpers import characters\nfrom test_task_short import *\n"
        "task = replace(TASK, lengths=(1200,), samples=4)\n"
        "print([case.digest for case in task.cases(characters())])"
    )
    assert under_hash_seed(code, 0) == under_hash_seed(code, 1) != ""


def test_beyond_the_window(tokenizer: Tokenizer) -> None:
    """The model's own window is what counts; where it is not known everything is asked."""
    assert tokenizer.n_ctx_train == 512
    with pytest.raises(
        EvalError,
        match="513 tokens are beyond the window of 512 tokens that the model was trained on, and short asks inside it",
    ):
        list(replace(TASK, lengths=(320, 513)).cases(tokenizer))
    assert list(replace(TASK, lengths=(320, 513), samples=1).cases(replace(tokenizer, n_ctx_train=0)))


def test_too_little_room(tokenizer: Tokenizer) -> None:
    with pytest.raises(EvalError, match="are too few for a question with its choices; at least"):
        list(replace(TASK, lengths=(20,), stride=8).cases(tokenizer))
    with pytest.raises(EvalError, match="the stride is 64; it must be below the shortest length, 64"):
        list(replace(TASK, lengths=(64, 512)).cases(tokenizer))


def test_too_little_text(tokenizer: Tokenizer) -> None:
    """Sentences are looked for in more text if there is some."""
    few = Text("a note", TEXT.paragraphs[:9])
    with pytest.raises(
        EvalError, match=r"a note has [0-9]+ sentences that can be asked for behind 512 tokens of text, 12 are"
    ):
        list(replace(TASK, text=few).cases(tokenizer))
    more = replace(few, more=lambda: TEXT.paragraphs[9:])
    assert list(replace(TASK, text=more).cases(tokenizer)) == list(TASK.cases(tokenizer))
    # enough to ask for, but everything else stands in the text before
    one = Text("one page", ("A word. " * 200 + "This is what comes at the end of the page, for all to read.",))
    pages = replace(one, paragraphs=one.paragraphs * 2)
    with pytest.raises(EvalError, match="the text has too few sentences that could be choices"):
        list(replace(TASK, text=pages, lengths=(512,), samples=1).cases(tokenizer))


@pytest.mark.parametrize("setting", ["plain", "4:64"])
def test_choices_and_scores_are_those_of_the_reference(tiny_model: Path, tokenizer: Tokenizer, setting: str) -> None:
    """The index that the reference chooses for each question, and its log likelihoods."""
    task = replace(TASK, lengths=(320,), samples=3, windows=1)
    reference = Reference(tiny_model)
    pair = (4, 64) if setting == "4:64" else (1, 0)

    def log_likelihood(text: tuple[int, ...], n: int) -> float:
        rows = log_softmax(reference.logits(np.array(text[:-1]), *pair)[-n:])
        return float(rows[np.arange(n), np.array(text[-n:])].sum())

    results = {
        result.key: result for result in evaluate([tiny_model], [task], [Setting.parse(setting)], [("F32", "F32")])
    }
    chosen = []
    for case in task.cases(tokenizer):
        result, query = results[case.key], case.query
        assert not result.error
        if isinstance(query, Score):
            assert result.nll == pytest.approx(-log_likelihood(query.text, query.n_scored), rel=1e-3)
        else:
            assert isinstance(query, Choose)
            values = [log_likelihood(query.prompt + choice, len(choice)) for choice in query.choices]
            chosen.append(int(np.argmax(np.array(values) / query.n_bytes)))
            assert result.score == (chosen[-1] == query.gold)
    assert len(set(chosen)) > 1  # a model that always takes the same one would show nothing
