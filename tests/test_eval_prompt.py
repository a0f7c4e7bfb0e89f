"""The tokens of a right answer: the seam between a prompt, whose tokens are there, and what goes on with it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from eval_helpers import characters

from pyselfextend.eval.cases import Tokenizer, Tokens
from pyselfextend.eval.model import EvalModel
from pyselfextend.eval.prompt import question, right_answer
from pyselfextend.eval.settings import Rope, Setting


def merging(pattern: str) -> Tokenizer:
    """A tokenizer whose tokens are the longest matches of a pattern, otherwise characters; a match is one token with a
    number of its own."""
    known: dict[str, int] = {}

    def tokenize(text: str, special: bool) -> list[int]:
        pieces = re.findall(f"{pattern}|.", text, re.DOTALL)
        return [ord(piece) if len(piece) == 1 else known.setdefault(piece, 2**21 + len(known)) for piece in pieces]

    def detokenize(tokens: Tokens) -> str:
        pieces = {number: piece for piece, number in known.items()}
        return "".join(pieces.get(token) or chr(token) for token in tokens)

    return Tokenizer(tokenize, detokenize)


@pytest.mark.parametrize(
    ("tail", "after", "prefix", "expected"),
    [
        ("Key:", "", "", " 12"),  # no template, no beginning of the answer: the question itself goes on
        ("Key:\n", "", "", "12"),
        ("Key?", "</user>", " The key is", " 12"),
        ("Key?", "</user>", "", " 12"),
        ("Key?", "</user>\n", "", "12"),
        ("Key?", "", " The key is ", "12"),
    ],
)
def test_a_space_stands_behind_words(tail: str, after: str, prefix: str, expected: str) -> None:
    tokenizer = replace(characters(), after=characters().special(after))
    assert tokenizer.detokenize(right_answer(tokenizer, tail, prefix, "12")) == expected


def test_no_space_stands_behind_a_special_token() -> None:
    def detokenize(tokens: Tokens) -> str:
        return "".join(chr(token) for token in tokens if token != 7)

    tokenizer = replace(characters(), detokenize=detokenize, after=(*characters().special("end"), 7))
    assert detokenize(right_answer(tokenizer, "Key?", "", "12")) == "12"
    behind = replace(tokenizer, after=(*tokenizer.after, *characters().special("bot:")))
    assert detokenize(right_answer(behind, "Key?", "", "12")) == " 12"


def test_the_answer_s_tokens_are_those_behind_the_text() -> None:
    """Where it is merged with its own space, and where a word is one token only at the beginning of a text."""
    words = merging(" ?[0-9]+")
    (token,) = right_answer(words, "Key?", " The key is", "12")
    assert words.detokenize((token,)) == " 12"
    starting = merging("(?:^12)")
    assert right_answer(starting, "Key:\n", "", "12") == characters().plain("12")


def test_a_token_across_the_seam_is_not_scored() -> None:
    """The prompt ends before it, and cannot have it: what is scored spells the answer all the same."""
    greedy = merging("is 1")
    found = right_answer(greedy, "Key?", " The key is", "12")
    assert greedy.detokenize(found) == " 12"
    assert greedy.detokenize(question(greedy, "Key?", " The key is") + found) == "Key? The key is 12"


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen2"])
@pytest.mark.parametrize("answer", ["12345", "8f3a-01", "eat a plum pie"])
def test_a_model_s_own_tokenizer(tiny_models: dict[str, Path], name: str, answer: str) -> None:
    """SentencePiece and BPE: behind the beginning of an answer the whole is tokenized as one."""
    tail, prefix = "\nWhat is the pass key?", " The pass key is"
    with EvalModel(tiny_models[name], Setting("plain"), Rope.of(tiny_models[name]), 64) as model:
        tokenizer = model.tokenizer()
        gold = right_answer(tokenizer, tail, prefix, answer)
        end = question(tokenizer, tail, prefix) + gold
        assert end == question(tokenizer, tail) + tokenizer.plain(f"{prefix} {answer}")
        assert tokenizer.detokenize(gold) == f" {answer}"
