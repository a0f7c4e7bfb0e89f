"""What is asked of a model: the data of an evaluation. Pure: imports nothing native.

A task (``tasks``) makes cases out of a seed and a model's tokenizer. A case asks one of three things: ``Generate`` an
answer, ``Score`` the tokens of a text, or ``Choose`` among continuations. ``model`` answers them, ``run`` goes through
them for every model, cache and setting.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Axis", "Case", "Choose", "Generate", "Query", "Score", "Task", "Tokenizer", "Tokens"]

Tokens = tuple[int, ...]

#: A value by which results are grouped: a length in tokens, a depth from 0 to 1, the name of a subtask.
Axis = int | float | str


@dataclass(frozen=True)
class Generate:
    """Answer a prompt greedily."""

    prompt: Tokens
    n_predict: int
    """The longest answer, in tokens."""

    references: tuple[str, ...]
    """What the metric compares the answer with."""

    metric: str
    """A name in ``metrics.METRICS``."""

    stop: str = ""
    """A text at which the answer ends; it does not belong to the answer."""

    options: tuple[str, ...] = ()
    """What a classification chooses from; for metrics that need it."""

    gold: Tokens = ()
    """The one right answer, as the model would go on with the prompt (``prompt.right_answer``): its probability is
    measured as well. Empty where there is not one alone."""

    @property
    def n_ctx(self) -> int:
        """The context that this needs, in tokens."""
        return len(self.prompt) + max(self.n_predict, len(self.gold))

    @property
    def tokens(self) -> tuple[Tokens, ...]:
        """All that a model is given."""
        return (self.prompt,)


@dataclass(frozen=True)
class Score:
    """The log probability of the last ``n_scored`` tokens of a text, each given all that stand before it."""

    text: Tokens
    n_scored: int

    @property
    def n_ctx(self) -> int:
        """The context that this needs, in tokens."""
        return len(self.text)

    @property
    def tokens(self) -> tuple[Tokens, ...]:
        """All that a model is given."""
        return (self.text,)


@dataclass(frozen=True)
class Choose:
    """Which of several continuations of a prompt is the most probable one, for each of its bytes.

    The division by the length in bytes, lm-evaluation-harness's ``acc_bytes``, does not favour short ones.
    """

    prompt: Tokens
    choices: tuple[Tokens, ...]
    n_bytes: tuple[int, ...]
    """The length of each choice, in bytes."""

    gold: int
    """The index of the right one."""

    @property
    def n_ctx(self) -> int:
        """The context that this needs, in tokens."""
        return len(self.prompt) + max(map(len, self.choices))

    @property
    def tokens(self) -> tuple[Tokens, ...]:
        """All that a model is given."""
        return (self.prompt, *self.choices)


Query = Generate | Score | Choose


@dataclass(frozen=True)
class Case:
    """One question of a task."""

    task: str
    key: str
    """Unique in the task, and the same for every model and setting: ``n_tokens=4096 depth=0.5 sample=0``."""

    axes: Mapping[str, Axis]
    """What a report groups by; ``n_tokens`` is the length that was asked for."""

    query: Query

    @property
    def digest(self) -> str:
        """A hash of all that is asked, so that a result is not taken for that of another prompt."""
        digest = hashlib.sha256()
        for tokens in self.query.tokens:
            digest.update(array("q", (len(tokens), *tokens)).tobytes())
        query = self.query
        if isinstance(query, Generate):  # without gold, which the rest implies: older files of results are gone on with
            rest: object = (query.n_predict, query.references, query.metric, query.options, query.stop)
        else:
            rest = query.n_scored if isinstance(query, Score) else (query.n_bytes, query.gold)
        digest.update(repr(rest).encode())
        return digest.hexdigest()[:16]


def key_of(axes: Mapping[str, Axis]) -> str:
    """The key of a case that its axes describe."""
    return " ".join(f"{name}={value}" for name, value in axes.items())


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer and the frame of its chat template."""

    tokenize: Callable[[str, bool], list[int]]
    """The tokens of a text, without a beginning-of-sequence token. The second argument says whether special tokens in
    the text count."""

    detokenize: Callable[[Tokens], str] = field(repr=False)
    """The text of tokens; what is no UTF-8 is replaced."""

    before: Tokens = ()
    """What a chat template puts before the user's message, with the beginning-of-sequence token if there is one."""

    after: Tokens = ()
    """What it puts after the message: the beginning of the answer."""

    bos: Tokens = ()
    """The beginning-of-sequence token, if the model wants one."""

    n_ctx_train: int = 0
    """The model's trained context, in tokens; 0 if it is not known."""

    def plain(self, text: str) -> Tokens:
        """The tokens of a text in which nothing is special."""
        return tuple(self.tokenize(text, False))

    def special(self, text: str) -> Tokens:
        """The tokens of a text in which special tokens count."""
        return tuple(self.tokenize(text, True))


class Task(Protocol):
    """Makes cases. Tasks are frozen dataclasses whose fields are their options."""

    @property
    def name(self) -> str:
        """As in the command line and in results."""

    @property
    def chat(self) -> bool:
        """Whether the task is defined in a model's chat template, if it has one. Options can say otherwise."""

    @property
    def n_ctx(self) -> int:
        """The context that the longest case needs, in tokens."""

    def cases(self, tokenizer: Tokenizer) -> Iterator[Case]:
        """The cases for models with this tokenizer, always the same ones in the same order.

        Cases that share the beginning of their prompts stand beside each other, those that share least first: what
        two neighbours share is evaluated once.

        Raises:
            EvalError: a text is too short, or a length too small for the task.
        """
