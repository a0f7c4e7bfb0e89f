"""A lap: instances are opened, worked on, checked and closed."""

from __future__ import annotations

import random
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from context import open_model
from random_edits import Case, Edits, make_case

from .kinds import Kind, kinds
from .others import Embedding, Shared
from .subject import Subject
from .trace import Trace

from llama_cpp import LlamaDiskCache, LlamaRAMCache  # isort: skip  # after pyselfextend

N_SUBJECTS = 3
N_OPERATIONS = 60  # of a lap and thread
CHECK_EVERY = 6


@dataclass
class Tally:
    operations: Counter[str] = field(default_factory=Counter)
    worst: float = 0.0  # difference from a fresh instance, in terms of the bound

    def add(self, other: Any) -> None:
        self.operations.update(other.operations)
        self.worst = max(self.worst, other.worst)


class LapError(Exception):
    """What went wrong, and the operations before it."""


class Course:
    """What laps need: the kinds, and a case of sequences, whose models stay open."""

    def __init__(self, models: dict[str, Path], seed: int, n_threads: int) -> None:
        self.seed, self.n_threads = seed, n_threads
        self.kinds = kinds(models)
        self._open = ExitStack()
        self.cases: list[Case] = []
        for name in ("llama", "gemma3"):
            model = self._open.enter_context(open_model(models[name]))
            self.cases.append(make_case(model, 64, name == "gemma3"))

    def close(self) -> None:
        self._open.close()

    def run(self, lap: int) -> Tally:
        """All threads of a lap.

        Raises:
            LapError: an operation failed, or something is not what it should be.
        """
        tally, errors = Tally(), []
        with _caches(self._rng(lap, -1)) as caches, _shared(self.kinds, self._rng(lap, -2)) as shared:

            def work(thread: int) -> None:
                try:
                    tally.add(_work(self, self._rng(lap, thread), caches, shared))
                except BaseException as error:
                    errors.append(error)

            if self.n_threads == 1:
                work(0)
            else:
                threads = [threading.Thread(target=work, args=(thread,)) for thread in range(self.n_threads)]
                for each in threads:
                    each.start()
                for each in threads:
                    each.join()
        for error in errors:
            raise error
        return tally

    def _rng(self, lap: int, thread: int) -> random.Random:
        return random.Random(f"{self.seed} {lap} {thread}")


def _work(course: Course, rng: random.Random, caches: list[Any], shared: Shared) -> Tally:
    """One thread's part of a lap."""
    tally = Tally()
    with ExitStack() as stack:
        subjects: list[Any] = []
        for kind in rng.choices(course.kinds, k=N_SUBJECTS):
            subjects.append(Subject(kind, random.Random(rng.random()), caches))
            stack.callback(subjects[-1].close)
        if rng.random() < 0.3:
            subjects.append(Embedding(rng.choice(course.kinds[:1] + course.kinds[4:5]), random.Random(rng.random())))
            stack.callback(subjects[-1].close)
        for number in range(N_OPERATIONS):
            subject = rng.choice(subjects)
            with _told(subject.trace):
                subject.operate()
                if number % CHECK_EVERY == 0:
                    subject.check()
            if rng.random() < 0.2:
                with _told(Trace("shared")):
                    shared.ask(rng)
                tally.operations["ask"] += 1
        for subject in subjects:
            with _told(subject.trace):
                subject.check()
            tally.add(subject)
    _edit(rng.choice(course.cases), rng, tally)
    return tally


def _edit(case: Case, rng: random.Random, tally: Tally) -> None:
    """Sequences, by llama_cpp's low-level functions."""
    edits = Edits(case, rng, kv_unified=rng.random() < 0.5, flash_attn_type=rng.randrange(2), attn=rng.choice([1, 2]))
    with edits.ctx, _told(Trace("sequences")):
        for _ in range(N_OPERATIONS // 4):
            edits.operate()
    tally.operations.update({f"sequences: {what}": n for what, n in edits.done.items()})


@contextmanager
def _told(trace: Trace) -> Iterator[None]:
    """What was done before an error, in its message."""
    try:
        yield
    except Exception as error:
        where = traceback.format_exc(limit=-6)
        raise LapError(f"{trace.name}: {type(error).__name__}: {error}\n{trace}{where}") from error


@contextmanager
def _caches(rng: random.Random) -> Iterator[list[Any]]:
    """Prompt caches that all instances of a lap may use; the RAM cache is small enough to be full."""
    with tempfile.TemporaryDirectory(prefix="stress-") as folder:
        disk = LlamaDiskCache(folder)
        yield [LlamaRAMCache(rng.choice([10**6, 10**7])), disk]
        disk.cache.close()


@contextmanager
def _shared(every: list[Kind], rng: random.Random) -> Iterator[Shared]:
    """The instance that the threads of a lap share."""
    shared = Shared(rng.choice([kind for kind in every if kind.name in ("plain", "pair")]))
    yield shared
    shared.close()
