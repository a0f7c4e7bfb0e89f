"""Needles: ``niah_single_1``, ``niah_multikey_2`` and ``niah_multikey_3`` of RULER (``niah.py`` there).

=================  ===================================  ===========  ========
subtask            haystack                             key          value
=================  ===================================  ===========  ========
niah_single_1      a line about grass, sky and sun      two words    7 digits
niah_multikey_2    lines like the needle                two words    7 digits
niah_multikey_3    lines like the needle                UUID         UUID
=================  ===================================  ===========  ========

There is one needle, in front of a random line. In ``niah_single_1`` each sample has its own place for it. In the others
every line could be the needle: all samples of a length ask about one haystack, each for another of its lines but the
last, which is the same to ask, and the haystack is read once. No key and no value comes twice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...cases import Tokenizer, Tokens
from ...prompt import filled, n_items, question, right_answer
from ..kv import Pairs, random_uuid
from .asked import Asked, each_sample
from .words import words

__all__ = ["multikey_2", "multikey_3", "single_1"]

HEAD = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n"
)
NEEDLE = "One of the special magic {kind}s for {key} is: {value}."
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
QUESTION = "\nWhat is the special magic {kind} for {key} mentioned in the provided text?"
ANSWER = " The special magic {kind} for {key} mentioned in the provided text is"


@dataclass(frozen=True)
class Kind:
    """What keys and values are."""

    value: str
    """What a prompt calls a value."""

    draw_key: Callable[[random.Random], str]
    draw_value: Callable[[random.Random], str]

    def needle(self, key: str, value: str) -> str:
        """A needle's line."""
        return NEEDLE.format(kind=self.value, key=key, value=value)

    def front(self, tokenizer: Tokenizer, lines: Sequence[str]) -> Tokens:
        """The beginning of a prompt, with its haystack."""
        return tokenizer.before + tokenizer.plain(HEAD.format(kind=self.value) + "\n".join(lines))

    def behind(self, tokenizer: Tokenizer, key: str) -> Tokens:
        """Its end, with the question."""
        return question(tokenizer, *self._texts(key))

    def gold(self, tokenizer: Tokenizer, key: str, value: str) -> Tokens:
        """The right answer."""
        return right_answer(tokenizer, *self._texts(key), value)

    def _texts(self, key: str) -> tuple[str, str]:
        """The question, and the beginning of the answer."""
        return QUESTION.format(kind=self.value, key=key), ANSWER.format(kind=self.value, key=key)


def random_key(rng: random.Random) -> str:
    """An adjective and a noun."""
    return f"{rng.choice(words('adjective'))}-{rng.choice(words('noun'))}"


def random_number(rng: random.Random) -> str:
    """Seven digits, the first of them not 0."""
    return str(rng.randrange(10**6, 10**7))


NUMBERS = Kind("number", random_key, random_number)
UUIDS = Kind("uuid", random_uuid, random_uuid)


def _single_1(tokenizer: Tokenizer, seed: str, n_tokens: int) -> Asked:
    rng = random.Random(seed)
    key, value, depth = random_key(rng), random_number(rng), rng.random()
    needle = NUMBERS.needle(key, value)
    behind = NUMBERS.behind(tokenizer, key)

    def place(n: int) -> int:
        return int(depth * n)

    def front(n: int) -> Tokens:
        return NUMBERS.front(tokenizer, [NOISE] * place(n) + [needle] + [NOISE] * (n - place(n)))

    n = n_items("RULER's niah_single_1", n_tokens, lambda n: len(front(n)) + len(behind), 1)
    gold = NUMBERS.gold(tokenizer, key, value)
    return Asked(filled(tokenizer, front(n), behind, n_tokens), (value,), place(n), gold)


def _multikey(tokenizer: Tokenizer, what: str, kind: Kind, seed: str, n_tokens: int, samples: int) -> list[Asked]:
    pairs = Pairs(random.Random(seed), kind.draw_key, kind.draw_value)

    def front(n: int) -> Tokens:
        return kind.front(tokenizer, [kind.needle(*pair) for pair in pairs.first(n)])

    def golds(n: int) -> list[tuple[str, str]]:
        order = pairs.first(n - 1)
        random.Random(f"{seed} {n_tokens}").shuffle(order)
        return order[:samples]

    def n_needed(n: int) -> int:
        return len(front(n)) + max(len(kind.behind(tokenizer, key)) for key, _ in golds(n))

    n = n_items(what, n_tokens, n_needed, samples + 1)
    shared = front(n)
    return [
        Asked(
            filled(tokenizer, shared, kind.behind(tokenizer, key), n_tokens),
            (value,),
            n,
            kind.gold(tokenizer, key, value),
        )
        for key, value in golds(n)
    ]


single_1 = each_sample(_single_1)


def multikey_2(tokenizer: Tokenizer, seed: str, n_tokens: int, samples: int) -> list[Asked]:
    """Needles whose keys are words and whose values are numbers."""
    return _multikey(tokenizer, "RULER's niah_multikey_2", NUMBERS, seed, n_tokens, samples)


def multikey_3(tokenizer: Tokenizer, seed: str, n_tokens: int, samples: int) -> list[Asked]:
    """Needles whose keys and values are UUIDs."""
    return _multikey(tokenizer, "RULER's niah_multikey_3", UUIDS, seed, n_tokens, samples)
