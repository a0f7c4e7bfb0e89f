"""Callbacks of the caller's: what they are given, that what they raise reaches the caller, and biases beside them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyselfextend import Llama, SettingError, UsageError

import llama_cpp  # isort: skip  # after pyselfextend

QUIET: dict[str, Any] = {"verbose": False, "n_threads": 1, "n_threads_batch": 1, "n_ctx": 512}
WHICH = pytest.mark.parametrize("ga_n", [1, 4])
GREEDY: dict[str, Any] = {"max_tokens": 6, "temperature": 0.0}


@pytest.fixture
def llm(tiny_model: Path, ga_n: int) -> Iterator[Llama]:
    with Llama(tiny_model, ga_n=ga_n, **QUIET) as opened:
        yield opened


def text(llm: Llama, **arguments: Any) -> str:
    answer: Any = llm.create_completion("abc", **{**GREEDY, **arguments})
    return str(answer["choices"][0]["text"])


@WHICH
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("is_stream", [False, True])
def test_what_a_processor_raises_reaches_the_caller(
    llm: Llama, capfd: pytest.CaptureFixture[str], error: type[BaseException], is_stream: bool
) -> None:
    expected = text(llm)

    def fail(before: Any, logits: Any) -> Any:
        if len(before) > 6:
            raise error("mine")
        return logits

    with pytest.raises(error, match="mine"):
        list(llm.create_completion("abc", **GREEDY, logits_processor=[fail], stream=is_stream))  # type: ignore[arg-type]
    with pytest.raises(error, match="mine"):
        llm.create_completion("abc", **GREEDY, stopping_criteria=lambda *given: fail(*given) is None)  # type: ignore[arg-type]
    assert text(llm) == expected
    assert capfd.readouterr() == ("", "")


@WHICH
def test_ctrl_c_while_a_processor_runs(llm: Llama) -> None:
    expected = text(llm)

    def wait(_: Any, logits: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(30)
        return logits

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in a background job of a shell
    try:
        with pytest.raises(KeyboardInterrupt):
            text(llm, logits_processor=[wait])
    finally:
        signal.signal(signal.SIGINT, before)
    assert text(llm) == expected


@WHICH
@pytest.mark.parametrize("form", [dict, lambda biases: {str(key): value for key, value in biases.items()}])
def test_bias_and_processors_both_act(llm: Llama, form: Any) -> None:
    first, second = 40, 41
    calls: list[int] = []

    def prefer(before: Any, logits: Any) -> Any:
        calls.append(len(before))
        logits[first] = 1e4
        return logits

    processors = llama_cpp.LogitsProcessorList([prefer])
    found = text(llm, logits_processor=processors, logit_bias=form({second: 2e4, 5: float("-inf")}))
    assert found.encode() == llm.detokenize([second] * 6)
    assert len(calls) == 6
    assert list(processors) == [prefer]  # the caller's list is as it was
    assert text(llm, logits_processor=processors).encode() == llm.detokenize([first] * 6)


@WHICH
def test_a_processor_may_be_one_callable_or_several(llm: Llama) -> None:
    def add(before: Any, logits: Any) -> Any:
        return logits + np.eye(1, len(logits), 40, dtype=np.single)[0] * 1e4

    def double(before: Any, logits: Any) -> Any:
        return logits * 2

    for given in (add, [add], (add, double), llama_cpp.LogitsProcessorList([add, double])):
        assert text(llm, logits_processor=given).encode() == llm.detokenize([40] * 6)


@WHICH
@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda logits: None, "shape"),
        (lambda logits: logits[:-1], "shape"),
        (lambda logits: logits * np.nan, "NaN"),
        (lambda logits: logits + np.inf, "infinity"),
        (lambda logits: np.full_like(logits, -np.inf), "minus infinity for all"),
        (lambda logits: 1.0, "shape"),
    ],
)
def test_what_a_processor_returns_is_looked_at(llm: Llama, result: Any, message: str) -> None:
    expected = text(llm)
    with pytest.raises((SettingError, TypeError), match=message):
        text(llm, logits_processor=[lambda before, logits: result(logits)])
    assert text(llm) == expected


@WHICH
@pytest.mark.parametrize("bias", [float("nan"), float("inf"), "5", None, 1e400])
def test_biases_that_are_no_numbers(llm: Llama, bias: Any) -> None:
    with pytest.raises(SettingError, match="logit_bias"):
        text(llm, logit_bias={40: bias})
    with pytest.raises(SettingError, match=r"a key of logit_bias is 100000; it must be an integer from 0 to \d+"):
        text(llm, logit_bias={10**5: 1.0})


@WHICH
@pytest.mark.parametrize("logits_all", [False, True])
def test_a_criterion_is_given_the_logits_of_the_last_token(tiny_model: Path, ga_n: int, logits_all: bool) -> None:
    seen: list[tuple[list[int], Any]] = []

    def look(tokens: Any, logits: Any) -> bool:
        seen.append((list(tokens), np.array(logits)))
        return False

    with Llama(tiny_model, ga_n=ga_n, logits_all=logits_all, **QUIET) as llm:
        text(llm, stopping_criteria=llama_cpp.StoppingCriteriaList([look]))
    assert len(seen) == GREEDY["max_tokens"]
    with Llama(tiny_model, ga_n=ga_n, **QUIET) as fresh:
        for tokens, logits in seen:
            fresh.reset()
            fresh.eval(tokens)
            row = np.ctypeslib.as_array(fresh._ctx.get_logits_ith(-1), shape=(fresh.n_vocab(),))
            assert np.allclose(logits, row, rtol=0, atol=1e-3)
    for (before, logits), (after, _) in pairwise(seen):
        assert after == [*before, int(np.argmax(logits))]  # greedy: the next is the best of these


@WHICH
@pytest.mark.parametrize("n", [1, 3])
def test_a_criterion_ends_it(llm: Llama, n: int) -> None:
    n_prompt = len(llm.tokenize(b"abc"))
    answer: Any = llm.create_completion(
        "abc", **GREEDY, stopping_criteria=lambda tokens, logits: len(tokens) >= n_prompt + n
    )
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (n, "stop")


class Guess(llama_cpp.llama_speculative.LlamaDraftModel):
    """A draft model that is right about some tokens and wrong about others."""

    def __init__(self, text: list[int]) -> None:
        self.text = text

    def __call__(self, input_ids: Any, /, **_: Any) -> Any:
        right = self.text[len(input_ids) : len(input_ids) + 3]
        return np.array([*right, 40, 41], dtype=np.intc)


@WHICH
def test_callbacks_with_drafts_see_only_what_is_kept(tiny_model: Path, ga_n: int) -> None:
    def run(draft: Any) -> tuple[list[int], list[list[int]], list[list[int]]]:
        processed: list[list[int]] = []
        judged: list[list[int]] = []

        def process(before: Any, logits: Any) -> Any:
            processed.append(list(before))
            return logits

        def judge(before: Any, logits: Any) -> bool:
            judged.append(list(before))
            return False

        with Llama(tiny_model, ga_n=ga_n, draft_model=draft, **QUIET) as llm:
            steps = llm.generate([1, 40, 50], temp=0.0, logits_processor=[process], stopping_criteria=judge)  # type: ignore[arg-type]
            return [next(steps) for _ in range(20)], processed, judged

    plain = run(None)
    assert run(Guess([1, 40, 50, *plain[0]])) == plain


@WHICH
def test_drafts_of_a_text_longer_than_a_batch(tiny_model: Path, ga_n: int) -> None:
    tokens = [1] + [int(token) for token in np.random.default_rng(0).integers(3, 300, 40)] * 6
    lookup = llama_cpp.llama_speculative.LlamaPromptLookupDecoding(num_pred_tokens=5)
    answers = []
    for draft in (None, lookup):
        with Llama(tiny_model, ga_n=ga_n, draft_model=draft, n_batch=64, **QUIET) as llm:
            steps = llm.generate(tokens, temp=0.0)
            answers.append([next(steps) for _ in range(40)])
    assert answers[0] == answers[1]


@WHICH
def test_more_drafts_than_a_batch(tiny_model: Path, ga_n: int) -> None:
    lookup = llama_cpp.llama_speculative.LlamaPromptLookupDecoding(num_pred_tokens=10)
    answers = []
    for draft in (None, lookup):
        with Llama(tiny_model, ga_n=ga_n, draft_model=draft, n_batch=8, **QUIET) as llm:
            steps = llm.generate([1, *[40, 41, 42] * 8], temp=0.0)
            answers.append([next(steps) for _ in range(60)])
    assert answers[0] == answers[1]


@WHICH
@pytest.mark.parametrize("result", [None, "text", [[1]], np.array([1.5])])
def test_what_a_draft_model_returns_is_looked_at(tiny_model: Path, ga_n: int, result: Any) -> None:
    with (
        Llama(tiny_model, ga_n=ga_n, draft_model=lambda ids: result, **QUIET) as llm,
        pytest.raises(TypeError, match=r"^the draft model returned "),
    ):
        text(llm)


@WHICH
def test_a_draft_model_cannot_change_its_llama(tiny_model: Path, ga_n: int) -> None:
    def draft(ids: Any) -> Any:
        llm.reset()

    with Llama(tiny_model, ga_n=ga_n, draft_model=draft, **QUIET) as llm, pytest.raises(UsageError, match="callback"):
        text(llm)


@WHICH
def test_nothing_of_a_failed_call_reaches_the_next(llm: Llama) -> None:
    def fail(before: Any, logits: Any) -> Any:
        raise ZeroDivisionError

    def only_x(before: Any, logits: Any) -> Any:
        left = np.full_like(logits, -np.inf)
        left[llm.tokenize(b"x", add_bos=False)[-1]] = 0
        return left

    expected = text(llm)
    with pytest.raises(ZeroDivisionError):
        text(llm, logits_processor=[fail])
    llm.reset()
    llm.eval(llm.tokenize(b"abc"))
    assert llm.detokenize([llm.sample(temp=0.0)]) == expected.encode()[:1]  # not with the processor
    grammar = llama_cpp.LlamaGrammar.from_string('root ::= "b"+')
    for processors in ([only_x, fail], [only_x]):
        with pytest.raises((ZeroDivisionError, SettingError)):
            text(llm, grammar=grammar, logits_processor=processors)
        assert text(llm) == expected


@WHICH
def test_an_interrupted_evaluation_is_done_again(llm: Llama) -> None:
    expected = text(llm)
    llm.reset()
    llm.eval(llm.tokenize(b"abc"))
    llm._n_outputs = 0  # as Ctrl-C between the evaluation and its end leaves it
    assert text(llm) == expected


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in a destructor Python drops it
@WHICH
def test_ctrl_c_at_any_moment(llm: Llama) -> None:
    """A timer raises it within Python's code, ours, llama_cpp's or a processor's."""
    expected = text(llm, logit_bias={5: 1.0})
    n_raised = 0
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for i in range(150):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0001 + 0.00005 * i)
                text(llm, logit_bias={5: 1.0})
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                n_raised += 1
            if i % 10 == 0:
                assert text(llm, logit_bias={5: 1.0}) == expected
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert n_raised > 20
    assert text(llm, logit_bias={5: 1.0}) == expected
