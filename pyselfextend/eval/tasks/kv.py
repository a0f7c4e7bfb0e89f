"""Key-value retrieval: the value of one UUID among many, with the pair at chosen places of a JSON object.

Liu et al., "Lost in the Middle: How Language Models Use Long Contexts", arXiv 2307.03172, section 3, and their
repository (github.com/nelson-liu/lost-in-the-middle: ``prompting.py``, ``make_kv_retrieval_data.py``,
``evaluate_kv_responses.py``). The prompt is theirs, without a beginning of the answer, and so is the score, whether the
answer holds the value. The right answer, whose probability is measured as well, is the value alone. Different:

- They fix the number of pairs; here the length is fixed, and the object holds as many pairs as fit. What is left, less
  than a pair and the differences of keys, is line breaks between the object and the key.
- They move one pair through the object. Here all places ask about the same object, each for the pair that stands
  there: among random pairs that is the same task, and the object is read once for all places.
- The object of a shorter length is the beginning of the longer one's. Samples have objects of their own.
- The answer may have 160 tokens instead of 100, in which a model can give key and value twice also where its tokenizer
  takes a token for nearly each digit.
"""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..cases import Axis, Case, Generate, Tokenizer, Tokens, key_of
from ..prompt import check_fractions, filled, n_items, question, right_answer

__all__ = ["KeyValue", "Pairs", "random_uuid"]

HEAD = "Extract the value corresponding to the specified key in the JSON object below.\n\nJSON data:\n"
QUESTION = '\n\nKey: "{key}"\nCorresponding value:'

Pair = tuple[str, str]


@dataclass(frozen=True)
class KeyValue:
    """Every length at every place."""

    lengths: tuple[int, ...] = (4096, 8192, 16384)
    """Lengths of the prompts, in tokens."""

    places: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Where the pair stands, from 0 (the first one) to 1 (the last one)."""

    samples: int = 3
    """Different objects."""

    seed: int = 1
    name: str = "kv"
    chat: bool = True

    n_predict: int = 160
    """The longest answer, in tokens."""

    @property
    def n_ctx(self) -> int:
        """The context that the longest case needs, in tokens."""
        return max(self.lengths) + self.n_predict

    def cases(self, tokenizer: Tokenizer) -> Iterator[Case]:
        """See ``Task.cases``."""
        check_fractions("place", self.places)
        for sample in range(self.samples):
            pairs = Pairs(random.Random(f"{self.name} {self.seed} {sample}"), random_uuid, random_uuid)
            for n_tokens in sorted(self.lengths):
                for place, (prompt, (key, value)) in self._prompts(tokenizer, pairs, n_tokens).items():
                    axes: dict[str, Axis] = {"n_tokens": n_tokens, "place": place, "sample": sample}
                    gold = right_answer(tokenizer, QUESTION.format(key=key), "", value)
                    query = Generate(prompt, self.n_predict, (value,), "contains_all", gold=gold)
                    yield Case(self.name, key_of(axes), axes, query)

    def _prompts(self, tokenizer: Tokenizer, pairs: Pairs, n_tokens: int) -> dict[float, tuple[Tokens, Pair]]:
        """For each place the prompt and the pair that it asks for."""

        def front(n: int) -> Tokens:
            return tokenizer.before + tokenizer.plain(HEAD + json_object(pairs.first(n)))

        def gold(n: int, place: float) -> Pair:
            return pairs.first(n)[round(place * (n - 1))]

        def behind(key: str) -> Tokens:
            return question(tokenizer, QUESTION.format(key=key))

        def n_needed(n: int) -> int:
            return len(front(n)) + max(len(behind(gold(n, place)[0])) for place in self.places)

        # Two pairs are theirs, too; and each place has a pair of its own.
        n = n_items("key-value retrieval", n_tokens, n_needed, max(2, len(self.places)))
        shared = front(n)
        found = {}
        for place in self.places:
            pair = gold(n, place)
            found[place] = filled(tokenizer, shared, behind(pair[0]), n_tokens), pair
        return found


def json_object(pairs: Sequence[Pair]) -> str:
    """A JSON object with a line for each pair."""
    return "{" + ",\n ".join(f'"{key}": "{value}"' for key, value in pairs) + "}"


def random_uuid(rng: random.Random) -> str:
    """A UUID of version 4 out of a generator of one's own."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


class Pairs:
    """Keys and values that are drawn one after another, none of them twice."""

    def __init__(
        self, rng: random.Random, draw_key: Callable[[random.Random], str], draw_value: Callable[[random.Random], str]
    ) -> None:
        self._found: list[Pair] = []
        self._source = self._draw(rng, draw_key, draw_value)

    def first(self, n: int) -> list[Pair]:
        """The first n of them, the same however often and in which order it is called."""
        self._found.extend(itertools.islice(self._source, max(n - len(self._found), 0)))
        return self._found[:n]

    @staticmethod
    def _draw(
        rng: random.Random, draw_key: Callable[[random.Random], str], draw_value: Callable[[random.Random], str]
    ) -> Iterator[Pair]:
        seen: set[str] = set()
        while True:
            key, value = draw_key(rng), draw_value(rng)
            if key not in seen and value not in seen:
                seen.update((key, value))
                yield key, value
