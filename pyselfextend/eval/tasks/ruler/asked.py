"""What the families of RULER's subtasks have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...cases import Tokenizer, Tokens

__all__ = ["Asked", "Make", "each_sample"]


@dataclass(frozen=True)
class Asked:
    """A prompt of a subtask."""

    prompt: Tokens
    references: tuple[str, ...]
    """What RULER calls the outputs: all of them are looked for in the answer."""

    differs: int = 0
    """Where the prompt begins to differ from others of its subtask: they are asked in ascending order of it."""

    gold: Tokens = ()
    """The one right answer, see ``Generate``."""


#: Makes the samples of a subtask: takes the tokenizer, a seed, the length in tokens, and the number of samples.
Make = Callable[[Tokenizer, str, int, int], list[Asked]]


def each_sample(one: Callable[[Tokenizer, str, int], Asked]) -> Make:
    """Makes samples one by one. What is drawn for a sample does not depend on the length, so that lengths compare."""

    def make(tokenizer: Tokenizer, seed: str, n_tokens: int, samples: int) -> list[Asked]:
        return [one(tokenizer, f"{seed} {sample}", n_tokens) for sample in range(samples)]

    return make
