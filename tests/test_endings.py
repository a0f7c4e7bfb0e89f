"""Where a completion ends, and that a stream and one answer are the same text.

The tokens are not the model's own choice here: a logits processor lets exactly the wanted one be sampled. So the
expected text is known, and computed from the tokens' bytes alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyselfextend import Llama

QUIET: dict[str, Any] = {"verbose": False, "n_threads": 1, "n_threads_batch": 1, "n_ctx": 512}
PROMPT = "ab"
WHICH = pytest.mark.parametrize("ga_n", [1, 4])


@pytest.fixture(scope="module")
def models(tiny_model: Path) -> Iterator[dict[int, Llama]]:
    opened = {ga_n: Llama(tiny_model, ga_n=ga_n, **QUIET) for ga_n in (1, 4)}
    yield opened
    for llm in opened.values():
        llm.close()


@pytest.fixture
def llm(models: dict[int, Llama], ga_n: int) -> Llama:
    return models[ga_n]


class Forced:
    """Logits that leave one token of a sequence at a time, and then the end of the text."""

    def __init__(self, tokens: Sequence[int], eos: int) -> None:
        self.tokens, self.eos, self.n_prompt = list(tokens), eos, -1

    def __call__(self, before: Any, logits: Any) -> Any:
        if self.n_prompt < 0:
            self.n_prompt = len(before)
        i = len(before) - self.n_prompt
        forced = np.full_like(logits, -np.inf)
        forced[self.tokens[i] if i < len(self.tokens) else self.eos] = 0
        return forced


def byte_tokens(llm: Llama, text: bytes) -> list[int]:
    """A token for each byte: of the tiny models' vocabulary."""
    by_byte = {llm.detokenize([token]): token for token in range(llm.n_vocab() - 1, 2, -1)}
    return [by_byte[bytes([byte])] for byte in text]


def complete(llm: Llama, tokens: Sequence[int], **arguments: Any) -> tuple[str, str, int]:
    """Text, reason and number of tokens; a stream must give the same."""
    forced = {"logits_processor": [Forced(tokens, llm.token_eos())], "temperature": 0.0}
    answer: Any = llm.create_completion(PROMPT, **{"max_tokens": None, **arguments, **forced})
    forced["logits_processor"] = [Forced(tokens, llm.token_eos())]
    chunks: Any = list(llm.create_completion(PROMPT, stream=True, **{"max_tokens": None, **arguments, **forced}))  # type: ignore[arg-type]
    (choice,) = answer["choices"]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == choice["text"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
    return choice["text"], choice["finish_reason"], answer["usage"]["completion_tokens"]


@WHICH
@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (None, ("hello world", "stop", 11)),
        ([], ("hello world", "stop", 11)),
        ("", ("hello world", "stop", 11)),
        ([""], ("hello world", "stop", 11)),
        (["", "w"], ("hello ", "stop", 7)),
        ("lo w", ("hel", "stop", 7)),
        ("hello world!", ("hello world", "stop", 11)),
        (["world", "o"], ("hell", "stop", 5)),
        (("zz", "rl"), ("hello wo", "stop", 10)),
        (["d"], ("hello worl", "stop", 11)),
        (["h"], ("", "stop", 1)),
    ],
)
def test_stops(llm: Llama, stop: Any, expected: tuple[str, str, int]) -> None:
    assert complete(llm, byte_tokens(llm, b"hello world"), stop=stop) == expected


@WHICH
def test_the_first_in_the_text_ends_it_not_the_first_in_the_list(llm: Llama) -> None:
    """Both come with one token."""
    texts = {token: llm.detokenize([token]) for token in range(3, llm.n_vocab())}
    token, text = next((token, text) for token, text in texts.items() if len(text) >= 2 and text.isascii())
    first, second = text.decode()[:1], text.decode()[1:]
    for stop in ([first, second], [second, first]):
        assert complete(llm, [token], stop=stop) == ("", "stop", 1)


@WHICH
@pytest.mark.parametrize("max_tokens", range(1, 12))
def test_at_most_max_tokens_also_within_a_character(llm: Llama, max_tokens: int) -> None:
    text = "aé€😀z".encode()  # 1, 2, 3, 4 and 1 bytes
    expected = text[:max_tokens].decode(errors="ignore")
    found = complete(llm, byte_tokens(llm, text), max_tokens=max_tokens)
    assert found == (expected, "length" if max_tokens <= len(text) else "stop", min(max_tokens, len(text)))


@WHICH
def test_bytes_that_are_no_text_are_left_out(llm: Llama) -> None:
    found = complete(llm, byte_tokens(llm, b"a\xffb\xc3\xc3\xa9\xf0\x9f"))
    assert found == ("abé", "stop", 8)


@WHICH
def test_a_stop_with_characters_of_several_bytes(llm: Llama) -> None:
    tokens = byte_tokens(llm, "naïve café, olé".encode())
    assert complete(llm, tokens, stop=["é, "])[0] == "naïve caf"
    assert complete(llm, tokens, stop=["è"])[0] == "naïve café, olé"  # its first byte is the same


@given(
    text=st.text("ab é", max_size=20),
    stops=st.lists(st.text("ab é", max_size=3), max_size=3),
    max_tokens=st.integers(1, 30),
    ga_n=st.sampled_from([1, 4]),
)
@settings(max_examples=60, deadline=None)
def test_any_text(models: dict[int, Llama], text: str, stops: list[str], max_tokens: int, ga_n: int) -> None:
    """A stop ends it with the byte that completes it; the first in the text if one byte completes several."""
    data = text.encode()
    expected, reason = data[:max_tokens].decode(errors="ignore"), "stop" if len(data) < max_tokens else "length"
    n_tokens = min(len(data), max_tokens)
    for n in range(1, n_tokens + 1):
        read = data[:n].decode(errors="ignore")
        places = [read.find(stop) for stop in stops if stop and stop in read]
        if places:
            expected, reason, n_tokens = read[: min(places)], "stop", n
            break
    llm = models[ga_n]
    assert complete(llm, byte_tokens(llm, data), stop=stops, max_tokens=max_tokens) == (expected, reason, n_tokens)


@WHICH
def test_without_stops_it_is_llama_cpps_text(llm: Llama, tiny_model: Path) -> None:
    """Where llama_cpp has it right: characters of one byte."""
    import llama_cpp

    tokens = byte_tokens(llm, b"plain ASCII text. ")
    with_ours = complete(llm, tokens, stop=["ASCII"])
    theirs = llama_cpp.Llama(str(tiny_model), **QUIET)
    answer: Any = theirs.create_completion(
        PROMPT, max_tokens=None, temperature=0.0, stop=["ASCII"],
        logits_processor=llama_cpp.LogitsProcessorList([Forced(tokens, llm.token_eos())]),
    )  # fmt: skip
    (choice,) = answer["choices"]
    assert with_ours == (choice["text"], choice["finish_reason"], answer["usage"]["completion_tokens"])
    theirs.close()


@WHICH
def test_echo(llm: Llama) -> None:
    tokens = byte_tokens(llm, b"cd")
    assert complete(llm, tokens, stop=None)[0] == "cd"
    processors = [Forced(tokens, llm.token_eos())]
    answer: Any = llm.create_completion(PROMPT, echo=True, logits_processor=processors, temperature=0.0)  # type: ignore[arg-type]
    assert answer["choices"][0]["text"] == "abcd"
    processors = [Forced(tokens, llm.token_eos())]
    prompt = byte_tokens(llm, b"xy")
    answer = llm.create_completion(prompt, echo=True, logits_processor=processors, temperature=0.0)  # type: ignore[arg-type]
    assert answer["choices"][0]["text"] == "xycd"


def test_logprobs_of_a_stream_are_those_of_the_answer(tiny_model: Path) -> None:
    with Llama(tiny_model, logits_all=True, **QUIET) as llm:
        arguments: Any = {"max_tokens": 6, "temperature": 0.0, "logprobs": 2}
        answer: Any = llm.create_completion("abc", **arguments)
        chunks: Any = list(llm.create_completion("abc", stream=True, **arguments))
    expected = answer["choices"][0]["logprobs"]
    found = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert [each["tokens"][0] for each in found] == expected["tokens"]
    assert np.allclose([each["token_logprobs"][0] for each in found], expected["token_logprobs"], atol=1e-5)


@WHICH
def test_a_stream_goes_on_behind_bytes_that_are_no_text(llm: Llama) -> None:
    """llama_cpp's holds back all that follows, and tries all of its beginnings with each token."""
    tokens = byte_tokens(llm, b"abc\x80" + b"a" * 60)
    chunks: Any = list(
        llm.create_completion(
            PROMPT,
            stream=True,
            max_tokens=None,
            temperature=0.0,
            logits_processor=[Forced(tokens, llm.token_eos())],  # type: ignore[arg-type]
        )
    )
    assert [chunk["choices"][0]["text"] for chunk in chunks[:-1]] == [*"abc", *"a" * 60]


@WHICH
def test_an_empty_prompt(llm: Llama) -> None:
    answer: Any = llm.create_completion("", max_tokens=5, temperature=0.0, logit_bias={llm.token_eos(): -1e9})
    assert answer["choices"][0]["finish_reason"] == "length"
    chunks: Any = list(
        llm.create_completion("", max_tokens=5, temperature=0.0, logit_bias={llm.token_eos(): -1e9}, stream=True)
    )
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == answer["choices"][0]["text"]
