"""One call at a time: threads, streams that are out of date, children of fork, callbacks that call their own Llama."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pyselfextend import Llama, StaleStreamError, UsageError

QUIET: dict[str, Any] = {"verbose": False, "n_threads": 1, "n_threads_batch": 1, "n_ctx": 512}
PROMPTS = ["The quick brown fox", "One two three", "A b c d e f g", "jumps over the lazy dog"]
WHICH = pytest.mark.parametrize("ga_n", [1, 4])


@pytest.fixture
def llm(tiny_model: Path, ga_n: int) -> Iterator[Llama]:
    with Llama(tiny_model, ga_n=ga_n, **QUIET) as opened:
        yield opened


def answer(llm: Llama, prompt: str) -> str:
    completion: Any = llm.create_completion(prompt, max_tokens=8, temperature=0.0)
    return str(completion["choices"][0]["text"])


# -- threads


@WHICH
def test_calls_of_threads_wait_for_each_other(llm: Llama) -> None:
    expected = [answer(llm, prompt) for prompt in PROMPTS]
    prompts = PROMPTS * 10
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda prompt: answer(llm, prompt), prompts))
    assert found == expected * 10


@WHICH
def test_other_methods_wait_as_well(llm: Llama) -> None:
    expected = answer(llm, PROMPTS[0])
    stop = threading.Event()
    errors: list[BaseException] = []

    def call() -> None:
        try:
            while not stop.is_set():
                state = llm.save_state()
                llm.load_state(state)
                llm.detokenize(llm.tokenize(b"text"))
                llm.reset()
                llm.eval([1, 5, 6])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert [answer(llm, PROMPTS[0]) for _ in range(10)] == [expected] * 10
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert errors == []


@WHICH
def test_closing_waits_for_a_call(tiny_model: Path, ga_n: int) -> None:
    llm = Llama(tiny_model, ga_n=ga_n, **QUIET)
    began = threading.Event()

    def slow(_: Any, logits: Any) -> Any:
        began.set()
        time.sleep(0.05)
        return logits

    with ThreadPoolExecutor(1) as pool:
        completion = pool.submit(llm.create_completion, "a", max_tokens=4, temperature=0.0, logits_processor=[slow])
        assert began.wait(60)
        llm.close()
        assert completion.done()
        assert completion.result()["choices"]
    with pytest.raises(UsageError, match="closed"):
        llm.create_completion("a")


def test_models_are_opened_by_many_threads(tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """llama_cpp sends file descriptors 1 and 2 to nowhere meanwhile; they must be what they were."""

    def open_one(ga_n: int) -> str:
        with Llama(tiny_model, ga_n=ga_n, **QUIET) as llm:
            return answer(llm, PROMPTS[0])

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(open_one, [1, 4] * 6))
    assert len(set(found)) == 1  # inside the window both are one model
    os.write(1, b"still here")
    assert "still here" in capfd.readouterr().out


# -- streams


def stream(llm: Llama) -> Iterator[Any]:
    chunks: Any = llm.create_completion(PROMPTS[0], max_tokens=20, temperature=0.0, stream=True)
    return iter(chunks)


def tokens_of(llm: Llama) -> Iterator[Any]:
    return llm.generate(llm.tokenize(PROMPTS[0].encode()), temp=0.0)


def chat(llm: Llama) -> Iterator[Any]:
    chunks: Any = llm.create_chat_completion([{"role": "user", "content": "a"}], max_tokens=20, stream=True)
    return iter(chunks)


@WHICH
@pytest.mark.parametrize("begin", [stream, tokens_of, chat])
@pytest.mark.parametrize(
    "call",
    [
        lambda llm: answer(llm, PROMPTS[1]),
        lambda llm: next(stream(llm)),
        lambda llm: next(tokens_of(llm)),
        lambda llm: llm.reset(),
        lambda llm: llm.eval([1, 5]),
        lambda llm: llm.load_state(llm.save_state()),
        lambda llm: llm.context_shift(0, 1),
        lambda llm: llm.sample(),
    ],
)
def test_a_stream_is_not_continued_after_another_call(
    llm: Llama, begin: Callable[[Llama], Iterator[Any]], call: Callable[[Llama], object]
) -> None:
    expected = answer(llm, PROMPTS[1])
    old = begin(llm)
    next(old)
    if begin is chat:
        next(old)  # the first has the role alone
    call(llm)
    with pytest.raises(StaleStreamError, match="cannot be continued"):
        next(old)
    with pytest.raises((StaleStreamError, StopIteration)):
        next(old)
    assert answer(llm, PROMPTS[1]) == expected


@WHICH
@pytest.mark.parametrize(
    "call",
    [
        lambda llm: llm.tokenize(b"text"),
        lambda llm: llm.detokenize([5]),
        lambda llm: llm.save_state(),
        lambda llm: llm.n_ctx(),
        lambda llm: llm.set_seed(3),
        lambda llm: llm.self_extend,
    ],
)
def test_a_stream_goes_on_after_calls_that_only_read(llm: Llama, call: Callable[[Llama], object]) -> None:
    expected = "".join(chunk["choices"][0]["text"] for chunk in stream(llm))
    found = []
    for chunk in stream(llm):
        call(llm)
        found.append(chunk["choices"][0]["text"])
    assert "".join(found) == expected


@WHICH
def test_a_stream_that_is_dropped_leaves_no_sampler(llm: Llama) -> None:
    """llama_cpp's sample() takes the sampler of the last stream, whatever it is asked for."""
    tokens = llm.tokenize(PROMPTS[0].encode())
    hot = llm.generate(tokens, temp=100.0, top_k=0, top_p=1.0, min_p=0.0)
    next(hot)
    hot.close()
    llm.reset()
    llm.eval(tokens)
    assert {llm.sample(temp=0.0) for _ in range(10)} == {next(tokens_of(llm))}


# -- callbacks


@WHICH
def test_a_callback_cannot_call_its_own_llama(llm: Llama) -> None:
    expected = answer(llm, PROMPTS[0])

    def ask(_: Any, logits: Any) -> Any:
        llm.create_completion("a")
        return logits

    with pytest.raises(UsageError, match="by a callback of the same Llama"):
        llm.create_completion("a", logits_processor=[ask])
    with pytest.raises(UsageError, match="by a callback of the same Llama"):
        llm.create_completion("a", stopping_criteria=lambda tokens, logits: llm.close())
    assert answer(llm, PROMPTS[0]) == expected


@WHICH
def test_a_callback_can_read(llm: Llama) -> None:
    texts: list[bytes] = []

    def look(tokens: Any, logits: Any) -> Any:
        texts.append(llm.detokenize(tokens))
        return logits

    llm.create_completion("abc", max_tokens=3, temperature=0.0, logits_processor=[look])
    assert len(texts) == 3
    assert all(b"abc" in text for text in texts)


# -- fork

FORK = """
    import os, sys
    from pyselfextend import Llama, UsageError
    quiet = dict(verbose=False, n_threads=2, n_threads_batch=2, n_ctx=512, ga_n=int(sys.argv[2]))
    llm = Llama(sys.argv[1], **quiet)
    stream = llm.create_completion("a", max_tokens=20, stream=True)
    next(stream)
    child = os.fork()
    if child == 0:
        calls = [lambda: llm.create_completion("a"), lambda: next(stream), lambda: llm.n_ctx(), lambda: llm.eval([5])]
        for call in calls:
            try:
                call()
            except UsageError as error:
                assert "before a fork" in str(error), error
            else:
                os._exit(3)
        try:
            Llama(sys.argv[1], **quiet)  # would wait for threads that are not there
        except UsageError as error:
            assert "was used before this process was forked" in str(error), error
        else:
            os._exit(4)
        llm.close()
        del llm, stream
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert next(stream)["choices"]
    print(llm.create_completion("a", max_tokens=2)["object"])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@WHICH
def test_a_child_of_fork_says_so(tiny_model: Path, ga_n: int) -> None:
    command = [sys.executable, "-c", textwrap.dedent(FORK), str(tiny_model), str(ga_n)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "text_completion"
    assert done.stderr == ""


RACE = """
import sys, threading, time
import pyselfextend, llama_cpp
settings = {"verbose": False, "n_threads": 1, "n_ctx": 1024, "n_threads_batch": 1}
one, other = (pyselfextend.Llama(sys.argv[1], **settings) for _ in range(2))
one.eval([5, 6, 7])
state, end = one.save_state(), time.monotonic() + 4

def load():
    while time.monotonic() < end:
        one.load_state(state)

def open_contexts():
    while time.monotonic() < end:
        llama_cpp.llama_free(llama_cpp.llama_init_from_model(other.model, other.context_params))

threads = [threading.Thread(target=work) for work in (load, open_contexts)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("done")
"""


def test_what_is_logged_while_another_thread_looks_for_errors(tiny_model: Path) -> None:
    """llama.cpp has one log for all threads; the function that is given to it must outlive the calls of it."""
    done = subprocess.run(
        [sys.executable, "-c", RACE, str(tiny_model)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]
