"""Passkey retrieval: a number hidden among sentences that say nothing.

Mohtashami and Jaggi, "Landmark Attention", arXiv 2305.16300, section 4.2 and their ``run_test.py``: the texts are
theirs, and so is the score, whether the answer holds the number. As there, the model goes on with the text, without a
chat template. The SelfExtend paper (arXiv 2401.01325, section 4.2) uses the task with five digits. The right answer,
whose probability is measured as well, is the number.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from ...config import integer
from ..cases import Axis, Case, Generate, Tokenizer, Tokens, key_of
from ..prompt import check_fractions, right_answer, with_needle

__all__ = ["Passkey"]

HEAD = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there.\n"
)
GARBAGE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key.\n"
QUESTION = "\nWhat is the pass key?"
ANSWER = " The pass key is"


@dataclass(frozen=True)
class Passkey:
    """Every length at every depth, with keys of every number of digits."""

    lengths: tuple[int, ...] = (4096, 8192, 16384)
    """Lengths of the prompts, in tokens."""

    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Where the key stands, from 0 (at the beginning) to 1 (at the end)."""

    digits: tuple[int, ...] = (5, 10)
    samples: int = 1
    """Different keys for each of these."""

    seed: int = 1
    name: str = "passkey"
    chat: bool = False

    @property
    def n_predict(self) -> int:
        """Room for the answer: a tokenizer may need a token for each digit, and some words stand around them."""
        return max(self.digits) + 8

    @property
    def n_ctx(self) -> int:
        """The context that the longest case needs, in tokens."""
        return max(self.lengths) + self.n_predict

    def cases(self, tokenizer: Tokenizer) -> Iterator[Case]:
        """See ``Task.cases``."""
        check_fractions("depth", self.depths)
        for value in self.digits:
            integer("digits", value, 1, 100)
        # The needle stands between lines, never inside a sentence.
        unit = tokenizer.plain(GARBAGE)

        def haystack(n: int) -> Tokens:
            return (unit * (n // len(unit) + 1))[:n]

        def line_start(hay: Tokens, place: int) -> int:
            return place // len(unit) * len(unit)

        found: list[tuple[int, Case]] = []
        for n_tokens, depth, digits, sample in itertools.product(
            self.lengths, self.depths, self.digits, range(self.samples)
        ):
            axes: dict[str, Axis] = {"n_tokens": n_tokens, "depth": float(depth), "digits": digits, "sample": sample}
            number = random_number(f"{self.name} {self.seed} {key_of(axes)}", digits)
            needle = NEEDLE.format(key=number)
            prompt, place = with_needle(
                tokenizer, "a passkey prompt", HEAD, haystack, needle, QUESTION, ANSWER, n_tokens, depth, line_start
            )
            gold = right_answer(tokenizer, QUESTION, ANSWER, number)
            query = Generate(prompt, self.n_predict, (number,), "contains_all", gold=gold)
            found.append((place, Case(self.name, key_of(axes), axes, query)))
        found.sort(key=lambda pair: pair[0])
        return (case for _, case in found)


def random_number(seed: str, digits: int) -> str:
    """A number with that many digits, the first of them not 0."""
    return str(random.Random(seed).randrange(10 ** (digits - 1), 10**digits))
