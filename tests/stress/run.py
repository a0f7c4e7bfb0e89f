"""Laps, one after the other, and what the process holds after each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .lap import Course, Tally
from .watch import Usage, measure

#: Laps after which memory is what it stays: by then every kind has been opened several times.
N_WARM_UP = 10
#: How much memory may grow after that. Allocators do not give back all that is free; what they say is in use is exact,
#: but for the tables that kinds that are met for the first time leave behind.
BYTES_GROWTH_MAX = 32 * 2**20
BYTES_HEAP_GROWTH_MAX = 2**21  # a table of Python's that doubles takes 0.9 MiB, once, after some 16,000 operations
#: A lap after which there is more is done again so often: garbage may lie in a thread that has just ended.
N_REPEATS = 3


class StressError(Exception):
    """What went wrong, and how to do it again."""


@dataclass(frozen=True)
class Limits:
    """seconds or n_laps may be None: no limit."""

    seconds: float | None
    first_lap: int = 0
    n_laps: int | None = None


@dataclass
class Summary:
    seed: int
    tally: Tally = field(default_factory=Tally)
    n_laps: int = 0
    seconds: float = 0.0
    warm: Usage | None = None
    last: Usage | None = None

    @property
    def n_operations(self) -> int:
        return self.tally.operations.total()

    def __str__(self) -> str:
        counts = ", ".join(f"{what} {n}" for what, n in self.tally.operations.most_common())
        return (
            f"{self.n_operations} operations in {self.n_laps} laps and {self.seconds:.0f} s, "
            f"{self.n_operations / max(self.seconds, 0.001):.0f} a second; "
            f"differences reach {self.tally.worst:.2f} of their bounds\n{counts}\n"
            f"after the warm-up {self.warm}; at the end {self.last}"
        )


def run(models: dict[str, Path], seed: int, n_threads: int, limits: Limits, say: Callable[[str], None]) -> Summary:
    """Laps until a limit is reached.

    Args:
        models: paths of the tiny models "llama" and "gemma3".
        say: is given a line about each lap.

    Raises:
        StressError: an operation failed, logits are not those of a fresh instance, or something is left behind.
    """
    summary, start = Summary(seed), time.monotonic()
    course = Course(models, seed, n_threads)
    try:
        lap = limits.first_lap
        while not _is_over(summary, limits, start):
            _lap(course, lap, summary)
            summary.seconds = time.monotonic() - start
            say(f"lap {lap}: {summary.n_operations} operations, {summary.last}")
            lap += 1
    finally:
        course.close()
    return summary


def _is_over(summary: Summary, limits: Limits, start: float) -> bool:
    if limits.n_laps is not None:
        return summary.n_laps >= limits.n_laps
    return limits.seconds is not None and time.monotonic() - start > limits.seconds


def _lap(course: Course, lap: int, summary: Summary) -> None:
    again = f"again with --seed {course.seed} --threads {course.n_threads} --first-lap {lap} --laps 1"
    try:
        summary.tally.add(course.run(lap))
    except Exception as error:
        raise StressError(f"lap {lap}: {error}\n{again}") from error
    summary.n_laps += 1
    for _ in range(N_REPEATS):
        if not _is_larger(summary, measure()):
            break
        course.run(lap)  # what stays is left again each time, what goes is not
    _check_left(lap, again, summary)


def _is_larger(summary: Summary, now: Usage) -> bool:
    """Than after the warm-up."""
    warm = summary.warm or now
    heap = now.n_bytes_heap - warm.n_bytes_heap
    return now.n_bytes - warm.n_bytes > BYTES_GROWTH_MAX or heap > BYTES_HEAP_GROWTH_MAX


def _check_left(lap: int, again: str, summary: Summary) -> None:
    """That nothing is left of a lap."""
    summary.last = now = measure()
    if summary.n_laps <= N_WARM_UP:
        summary.warm = now
        return
    assert summary.warm is not None
    if now.n_threads > summary.warm.n_threads or now.n_files > summary.warm.n_files:
        raise StressError(f"lap {lap} left something: {summary.warm} after the warm-up, now {now}\n{again}")
    if _is_larger(summary, now):
        raise StressError(f"memory grows: {summary.warm} after the warm-up, {now} after lap {lap}")
