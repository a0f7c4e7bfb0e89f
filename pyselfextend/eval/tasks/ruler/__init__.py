"""The six tasks of RULER that need no corpus.

Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context Language Models?", arXiv 2404.06654, and their
repository (github.com/NVIDIA/RULER: ``scripts/synthetic.yaml``, ``scripts/data/synthetic``, ``scripts/eval``). Prompts,
parameters, the beginnings of the answers and the room for their rest are theirs. So is the score of all six,
``string_match_all``: the share of the references that the answer holds. These are one value in the needle tasks, five
variables in ``vt``, ten words in ``cwe``, three in ``fwe``.

The needle tasks have one right answer, the value, whose probability is measured as well; the others have several
strings, in any order.

What all six have that the repository has not:

- Lengths are exact, and without the answer; there a length is the most that prompt and answer may take together. The
  haystack has as many whole items as fit; what is left, less than an item, is line breaks in front of the question.
- The beginning of the answer stands behind the chat template, as there; its text is not changed, also where it ends in
  a space. lm-evaluation-harness's port strips it, leaves the example of ``cwe`` out, and has another
  ``string_match_part``.
- Each sample has a seed of its own: it does not depend on how many there are, and has the same keys, values, names and
  words at all lengths.

What else differs is said where it is made: ``retrieval``, ``tracing``, ``aggregation``. ``words`` come from the package
wonderwords, as there; another version of it can make other prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ....errors import EvalError
from ...cases import Axis, Case, Generate, Tokenizer, key_of
from .aggregation import common_words, frequent_words
from .asked import Asked, Make
from .retrieval import multikey_2, multikey_3, single_1
from .tracing import variable_tracking

__all__ = ["SUBTASKS", "Ruler"]


@dataclass(frozen=True)
class Subtask:
    """How a subtask is asked."""

    n_predict: int
    """The longest answer, in tokens."""

    make: Make


_SUBTASKS = {
    "niah_single_1": Subtask(128, single_1),
    "niah_multikey_2": Subtask(128, multikey_2),
    "niah_multikey_3": Subtask(128, multikey_3),
    "vt": Subtask(30, variable_tracking),
    "cwe": Subtask(120, common_words),
    "fwe": Subtask(50, frequent_words),
}

#: The names of the subtasks.
SUBTASKS = tuple(_SUBTASKS)


@dataclass(frozen=True)
class Ruler:
    """Every subtask at every length.

    Raises:
        EvalError: there is no such subtask.
    """

    lengths: tuple[int, ...] = (4096, 8192, 16384)
    """Lengths of the prompts, in tokens."""

    subtasks: tuple[str, ...] = SUBTASKS
    samples: int = 3
    """Different prompts for each of these."""

    seed: int = 1
    name: str = "ruler"
    chat: bool = True

    def __post_init__(self) -> None:
        for subtask in self.subtasks:
            if subtask not in SUBTASKS:
                raise EvalError(f"the subtask is {subtask!r}; it must be one of {', '.join(SUBTASKS)}")

    @property
    def n_ctx(self) -> int:
        """The context that the longest case needs, in tokens."""
        return max(self.lengths) + max(_SUBTASKS[subtask].n_predict for subtask in self.subtasks)

    def cases(self, tokenizer: Tokenizer) -> Iterator[Case]:
        """See ``Task.cases``.

        Raises:
            EvalError: a length is too short for a subtask, or too long for ``cwe``.
            MissingExtraError: wonderwords is not installed.
        """
        for subtask in self.subtasks:
            yield from self._cases(tokenizer, subtask)

    def _cases(self, tokenizer: Tokenizer, name: str) -> Iterator[Case]:
        subtask = _SUBTASKS[name]
        found: list[tuple[Asked, Case]] = []
        for n_tokens in sorted(self.lengths):
            made = subtask.make(tokenizer, f"{self.name} {self.seed} {name}", n_tokens, self.samples)
            for sample, asked in enumerate(made):
                axes: dict[str, Axis] = {"n_tokens": n_tokens, "subtask": name, "sample": sample}
                query = Generate(asked.prompt, subtask.n_predict, asked.references, "contains_all", gold=asked.gold)
                found.append((asked, Case(self.name, key_of(axes), axes, query)))
        found.sort(key=lambda pair: pair[0].differs)
        return (case for _, case in found)
