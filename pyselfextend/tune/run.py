"""Measures: every text is read once with every group, and asked for its keys on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..eval.model import EvalModel
from ..eval.room import check_room
from ..eval.settings import Rope, Setting
from ..eval.sharing import cost
from .document import Answer, Document, Reading, Stop
from .plan import Plan
from .reader import Reader
from .texts import Passage, Place, passages

__all__ = ["Task", "Watcher", "carry_out", "left", "measure", "read", "texts_of"]


@dataclass(frozen=True)
class Task:
    """A reading that is to be made."""

    ga_n: int
    sample: int
    passage: Passage
    places: tuple[Place, ...]
    """As far as the group reaches."""

    @property
    def cost(self) -> float:
        """About how long it takes, in the units of ``sharing.cost``."""
        keys = self.passage.keys
        asked = sum(
            cost(len(keys[i].question) + len(keys[i].answer) - 1, place.n_read)
            for place in self.places
            for i in place.keys
        )
        return cost(self.places[-1].n_read, 0) + asked


class Watcher(Protocol):
    """Is told how a measurement goes."""

    def advance(self, done: float) -> None:
        """Some more has been done, in the units of ``Task.cost``."""


def measure(plan: Plan, *, n_threads: int | None = None, n_gpu_layers: int = 0) -> list[Reading]:
    """Make every reading of a plan.

    Args:
        n_threads: None for llama_cpp's default.
        n_gpu_layers: layers on a device; -1 for all.

    Raises:
        ModelFileError: llama.cpp cannot load the model.
        EvalError: the text is too short, a length too short for the keys, or there is not enough memory.
    """
    tasks = left(plan, texts_of(plan), Document.of(plan))
    return list(carry_out(plan, tasks, n_threads=n_threads, n_gpu_layers=n_gpu_layers))


def texts_of(plan: Plan) -> list[Passage]:
    """The texts of a plan, in the tokens of its model.

    Raises:
        ModelFileError, EvalError: see ``measure``.
    """
    with EvalModel(plan.model.path, Setting("plain"), Rope.of(plan.model), 64) as opened:  # for its tokenizer alone
        return passages(plan, opened.tokenizer(chat=False))


def left(plan: Plan, texts: Sequence[Passage], document: Document) -> list[Task]:
    """The readings that a document does not have yet."""
    tasks = []
    for ga_n in plan.groups:
        lengths = plan.lengths_of(ga_n)
        for sample, passage in enumerate(texts):
            if document.reading(ga_n, sample, passage.digest, lengths) is None:
                tasks.append(Task(ga_n, sample, passage, passage.places[: len(lengths)]))
    return tasks


def carry_out(
    plan: Plan,
    tasks: Sequence[Task],
    *,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    watcher: Watcher | None = None,
) -> Iterator[Reading]:
    """Make readings, and yield each when it is done. Raises what ``measure`` does."""
    if not tasks:
        return
    # beyond the trained context, so that the group follows: what auto reads with group 1 is read so here
    n_ctx = max(plan.lengths[-1], plan.model.n_ctx_train + 1)
    check_room(plan.model, n_ctx, plan.ga_w, n_gpu_layers=n_gpu_layers)
    setting, rope = Setting("auto", ga_w=plan.ga_w), Rope.of(plan.model)
    with Reader(
        plan.model.path, setting, rope, n_ctx, n_threads=n_threads, n_gpu_layers=n_gpu_layers,
        progress=None if watcher is None else lambda n, n_past: watcher.advance(cost(n, n_past)),
    ) as reader:  # fmt: skip
        for task in tasks:
            yield read(reader, task)


def read(reader: Reader, task: Task) -> Reading:
    """Make a reading."""
    started = time.monotonic()
    passage = task.passage
    log_p: dict[int, float] = {}  # of tokens, by place
    stops = []
    reader.begin(task.ga_n)
    at = 0
    for place in task.places:
        begin = max(at, 1, place.n_before)  # nothing predicts the first token
        reader.read(passage.tokens[at:begin])
        if begin < place.n_read:
            values = reader.score(passage.tokens[begin : place.n_read])
            log_p.update(zip(range(begin, place.n_read), values.tolist(), strict=True))
        at = place.n_read
        answers = []
        for i in place.keys:
            key = passage.keys[i]
            found = reader.ask(key.question, key.answer)
            answers.append(Answer(key.place / place.n_read, float(found.values.sum()), bool(found.greedy.all())))
        some = [log_p[i] for i in range(place.n_before, place.n_read) if passage.prose[i]]
        stops.append(Stop(place.n_tokens, -sum(some), len(some), tuple(answers)))
    return Reading(task.ga_n, task.sample, passage.digest, round(time.monotonic() - started, 3), tuple(stops))
