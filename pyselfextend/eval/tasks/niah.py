"""A needle in a haystack: a sentence hidden in prose, and a question about it.

Greg Kamradt, "Needle In A Haystack: Pressure Testing LLMs" (2023, github.com/gkamradt/LLMTest_NeedleInAHaystack). The
frame of the prompt, the shape of the sentence and its place, at the end of a sentence of the prose, are his. Different:

- His needle is always the same sentence about San Francisco, which models know by now. Here the town, the park and the
  food are drawn from the seed, and the first two are invented.
- He has a model judge the answers. Here the score is the share of the needle's two distinctive parts, the food and the
  name of the park, that the answer holds.
- The answer is begun for the model, as in RULER, so that base models can be asked as well. The right answer, whose
  probability is measured, goes on as the needle does, up to the name of the park.
- The prose is any text; it starts again if it is too short. It is cut where the prompt is full, as his is.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..cases import Axis, Case, Generate, Tokenizer, Tokens, key_of
from ..prompt import check_fractions, right_answer, with_needle
from ..text import Text, default_text

__all__ = ["Needle", "Niah"]

HEAD = "You are a helpful AI bot that answers questions for a user. Keep your response short and direct\n\n"
NEEDLE = "\nThe best thing to do in {town} is eat a {food} and sit in {park} Park on a sunny day.\n"
QUESTION = (
    "\n\nWhat is the best thing to do in {town}? Don't give information outside the document or repeat your findings"
)
ANSWER = " The best thing to do in {town} is"
RIGHT = "eat a {food} and sit in {park}"

SYLLABLES = (
    "bel", "cor", "dan", "dru", "fen", "gar", "hol", "jun", "kar", "lom",
    "mer", "nel", "pol", "ras", "sil", "tor", "ven", "wil", "yar", "zem",
)  # fmt: skip
FILLINGS = (
    "bean", "beet", "carrot", "cherry", "fig", "leek", "lentil", "mango",
    "peanut", "pear", "plum", "pumpkin", "quince", "radish", "turnip", "walnut",
)  # fmt: skip
DISHES = (
    "cake", "curry", "dumpling", "muffin", "pancake", "pasty", "pie", "pizza",
    "pudding", "roll", "salad", "sandwich", "soup", "stew", "tart", "waffle",
)  # fmt: skip

#: How far from the asked place the end of a sentence is looked for, in tokens.
REACH = 256


@dataclass(frozen=True)
class Needle:
    """What is hidden."""

    town: str
    food: str
    park: str

    @classmethod
    def of(cls, seed: str) -> Needle:
        """The needle that belongs to a seed."""
        rng = random.Random(seed)
        town, park = ("".join(rng.sample(SYLLABLES, 3)).capitalize() for _ in range(2))
        return cls(town, f"{rng.choice(FILLINGS)} {rng.choice(DISHES)}", park)


@dataclass(frozen=True)
class Niah:
    """Every length at every depth."""

    text: Text = field(default_factory=default_text)
    """The haystack."""

    lengths: tuple[int, ...] = (4096, 8192, 16384)
    """Lengths of the prompts, in tokens."""

    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Where the needle stands, from 0 (before the prose) to 1 (at its last end of a sentence)."""

    samples: int = 1
    """Different needles for each of these."""

    seed: int = 1
    name: str = "niah"
    chat: bool = True

    n_predict: int = 64
    """The longest answer, in tokens: about three times what repeating the needle takes."""

    @property
    def n_ctx(self) -> int:
        """The context that the longest case needs, in tokens."""
        return max(self.lengths) + self.n_predict

    def cases(self, tokenizer: Tokenizer) -> Iterator[Case]:
        """See ``Task.cases``."""
        check_fractions("depth", self.depths)
        prose = self.text.tokens(tokenizer, max(self.lengths), repeat=True)

        def haystack(n: int) -> Tokens:
            return prose[:n]

        def places(hay: Tokens, place: int) -> int:
            return sentence_end(tokenizer, hay, place)

        found: list[tuple[int, Case]] = []
        for n_tokens, depth, sample in itertools.product(self.lengths, self.depths, range(self.samples)):
            axes: dict[str, Axis] = {"n_tokens": n_tokens, "depth": depth, "sample": sample}
            needle = Needle.of(f"{self.name} {self.seed} {key_of(axes)}")
            sentence, tail, answer, right = (
                text.format(town=needle.town, food=needle.food, park=needle.park)
                for text in (NEEDLE, QUESTION, ANSWER, RIGHT)
            )
            prompt, place = with_needle(
                tokenizer, "a needle in a haystack", HEAD, haystack, sentence, tail, answer, n_tokens, depth, places
            )
            gold = right_answer(tokenizer, tail, answer, right)
            query = Generate(prompt, self.n_predict, (needle.food, needle.park), "contains_all", gold=gold)
            found.append((place, Case(self.name, key_of(axes), axes, query)))
        found.sort(key=lambda pair: pair[0])
        return (case for _, case in found)


def sentence_end(tokenizer: Tokenizer, hay: Tokens, place: int) -> int:
    """The beginning of the text or the end of a sentence that is nearest to a place; all are indices of tokens.

    A text without sentences, or with none near by, is cut where asked.
    """
    for distance in range(REACH):
        for i in (place - distance, place + distance):
            if i == 0 or (0 < i <= len(hay) and _ends_sentence(tokenizer, hay, i)):
                return i
    return place


def _ends_sentence(tokenizer: Tokenizer, hay: Tokens, i: int) -> bool:
    """Whether a sentence or a paragraph ends in front of the i-th token. A few tokens on each side tell."""
    before, behind = tokenizer.detokenize(hay[max(i - 4, 0) : i]), tokenizer.detokenize(hay[i : i + 4])
    if re.search(r"[.!?][\"')\]\u201d\u2019]*$", before):
        return re.match(r"$|\s+[^\sa-z]", behind) is not None
    if before.endswith("\n"):
        return re.match(r"\S", behind) is not None
    # Chinese and Japanese have their own, and no spaces.
    return before.endswith(("\u3002", "\uff01", "\uff1f"))
