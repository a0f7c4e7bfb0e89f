"""Prose with keys in it, and where to stop and ask for which of them. Pure: imports nothing native.

A key is a number that belongs to a name, in a sentence that stands as a paragraph of its own between two sentences of
the prose. It is asked for by the beginning of that sentence; its answer is the number. That is passkey retrieval
(Mohtashami and Jaggi, arXiv 2305.16300) with several keys in real prose, of which one is asked for at a time (RULER's
multi-key needles, arXiv 2404.06654). Keys that stand at the right place serve several lengths: the fewer there are, the
less they stand in each other's way.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from ..errors import EvalError
from ..eval.cases import Tokenizer, Tokens
from ..eval.sharing import shared_prefix
from .plan import Plan

__all__ = ["Key", "Passage", "Place", "passages"]

NEEDLE = "The pass key of {name} is {number}. Remember it. {number} is the pass key of {name}."
QUESTION = "\n\nWhat is the pass key of {name}? The pass key of {name} is"
ANSWER = " {number}"

CITIES = (
    "Lisbon", "Oslo", "Cairo", "Lima", "Kyoto", "Boston", "Geneva", "Havana", "Dublin", "Athens", "Manila", "Warsaw",
    "Naples", "Denver", "Prague", "Vienna", "Madrid", "Nairobi", "Sydney", "Quito", "Tunis", "Riga", "Delhi", "Seoul",
    "Bergen", "Dakar", "Hanoi", "Bogota", "Turin", "Zurich", "Malmo", "Porto", "Leeds", "Tampa", "Basel", "Accra",
    "Perth", "Minsk", "Sofia", "Tokyo", "Paris", "London", "Berlin", "Rome", "Chicago", "Dallas", "Toronto", "Jakarta",
)  # fmt: skip
SIDES = ("", "North ", "South ", "East ", "West ", "Old ", "New ", "Upper ", "Lower ", "Central ")


@dataclass(frozen=True)
class Key:
    """A number in a text."""

    place: int
    """Where its sentence begins, in tokens."""

    n_tokens: int
    """How long that is."""

    question: Tokens
    answer: Tokens
    """The number, as it follows the question."""


@dataclass(frozen=True)
class Place:
    """Where reading stops to ask."""

    n_tokens: int
    """The length, with the longest question and answer, in tokens."""

    n_read: int
    """The tokens of the text that have been read."""

    n_before: int
    """The tokens before those whose probabilities make up the perplexity."""

    keys: tuple[int, ...]
    """The numbers of the keys that are asked for."""


@dataclass(frozen=True)
class Passage:
    """A text, its keys, and where to stop."""

    tokens: Tokens
    """With the beginning-of-sequence token, if the model wants one."""

    prose: tuple[bool, ...]
    """Of each token, whether its probability counts: not those of keys, nor the first one, [n_tokens]."""

    keys: tuple[Key, ...]
    """By their place."""

    places: tuple[Place, ...]
    """By length."""

    @property
    def digest(self) -> str:
        """A hash of all of it, so that a result is not taken for that of another text."""
        return hashlib.sha256(repr((self.tokens, self.prose, self.keys, self.places)).encode()).hexdigest()[:16]


def passages(plan: Plan, tokenizer: Tokenizer) -> list[Passage]:
    """The texts of a plan, one behind the other in its prose, in the tokens of its model.

    Raises:
        EvalError: the prose is too short, or a length is too short for the keys.
    """
    units = _Units(plan, tokenizer)
    return [_passage(plan, tokenizer, sample, units) for sample in range(plan.samples)]


class _Units:
    """The sentences of the prose as tokens, one after another."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer) -> None:
        self._plan, self._tokenizer, self._n_tokens = plan, tokenizer, 0
        self._sentences = self._all()

    def _all(self) -> Iterator[Tokens]:
        text = self._plan.text
        line_break = self._tokenizer.plain("\n\n")
        for paragraph in chain(text.paragraphs, text.more() if text.more is not None else ()):
            for i, sentence in enumerate(re.split(r"(?<=[.!?]) +", paragraph)):
                yield self._tokenizer.plain(f" {sentence}" if i else sentence)
            yield line_break

    def next(self) -> Tokens:
        """The next one."""
        for found in self._sentences:
            self._n_tokens += len(found)
            return found
        raise EvalError(
            f"{self._plan.text.name} has {self._n_tokens} tokens for this model, and about "
            f"{self._plan.samples * self._plan.lengths[-1]} are needed: give a longer text, shorter lengths, or fewer "
            "samples"
        )


def _passage(plan: Plan, tokenizer: Tokenizer, sample: int, units: _Units) -> Passage:
    drawn = _drawn(plan, sample)
    asked = [_asked(tokenizer, name, number) for name, number in drawn]
    n_room = max(len(question) + len(answer) for question, answer in asked)
    targets, wanted = _targets(plan, n_room)
    if len(targets) > len(drawn):
        raise EvalError(f"{len(targets)} keys are more than there are names for, {len(drawn)}; give fewer keys")
    n_tokens = plan.lengths[-1] - n_room

    tokens, prose = list(tokenizer.bos), [False] * len(tokenizer.bos)
    keys: list[Key] = []
    sentence = units.next()
    order = sorted(range(len(targets)), key=lambda i: targets[i])
    while len(tokens) < n_tokens or len(keys) < len(order):
        if len(keys) < len(order) and len(tokens) + len(sentence) > targets[order[len(keys)]]:
            i = order[len(keys)]
            name, number = drawn[i]
            needle = tokenizer.plain(f"\n\n{NEEDLE.format(name=name, number=number)}\n\n")
            keys.append(Key(len(tokens), len(needle), *asked[i]))
            tokens += needle
            prose += [False] * len(needle)
            continue
        tokens += sentence
        prose += [True] * len(sentence)
        sentence = units.next()
    prose[0] = False  # nothing stands before it
    rank = {i: n for n, i in enumerate(order)}
    places = []
    for length, some in zip(plan.lengths, wanted, strict=True):
        n_read = length - n_room
        place = Place(length, n_read, max(0, n_read - plan.window), tuple(sorted(rank[i] for i in some)))
        if any(keys[i].place + keys[i].n_tokens > n_read for i in place.keys) or not any(
            prose[place.n_before : n_read]
        ):
            raise _too_short(plan, length)
        places.append(place)
    return Passage(tuple(tokens[:n_tokens]), tuple(prose[:n_tokens]), tuple(keys), tuple(places))


def _drawn(plan: Plan, sample: int) -> list[tuple[str, str]]:
    """Names with their numbers, of five digits."""
    rng = random.Random(f"tune {plan.seed} {sample}")
    names = [side + city for side in SIDES for city in rng.sample(CITIES, len(CITIES))]
    n = min(len(names), plan.keys * len(plan.lengths))
    return list(zip(names, map(str, rng.sample(range(10_000, 100_000), n)), strict=False))


def _asked(tokenizer: Tokenizer, name: str, number: str) -> tuple[Tokens, Tokens]:
    """A question and its answer, tokenized as one text."""
    question = QUESTION.format(name=name)
    whole = tokenizer.plain(question + ANSWER.format(number=number))
    n = shared_prefix(tokenizer.plain(question), whole)
    return whole[:n], whole[n:]


def _targets(plan: Plan, n_room: int) -> tuple[list[int], list[list[int]]]:
    """Where keys should stand, and which of them each length asks for.

    At each length they are spread evenly over the text; one that is there already, no further than half their distance
    away, serves.
    """
    targets: list[int] = []
    wanted: list[list[int]] = []
    for length in plan.lengths:
        n_read = length - n_room
        if n_read < plan.keys:
            raise _too_short(plan, length)
        chosen: list[int] = []
        for i in range(plan.keys):
            middle = (2 * i + 1) * n_read // (2 * plan.keys)
            near = _nearest(targets, middle, chosen)
            if near is None or abs(targets[near] - middle) * 2 * plan.keys > n_read:
                near = len(targets)
                targets.append(middle)
            chosen.append(near)
        wanted.append(chosen)
    return targets, wanted


def _too_short(plan: Plan, length: int) -> EvalError:
    return EvalError(
        f"a length of {length} tokens is too short for {plan.keys} keys; give fewer keys or longer lengths"
    )


def _nearest(targets: Sequence[int], middle: int, taken: Sequence[int]) -> int | None:
    """The target nearest to a place that is not taken."""
    free = [i for i in range(len(targets)) if i not in taken]
    return min(free, key=lambda i: abs(targets[i] - middle), default=None)
