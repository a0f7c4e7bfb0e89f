"""What the demo shows: a progress bar while a model reads, its answer as it comes, and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from ..config import SelfExtendInfo
from ..prompts import Fact

__all__ = ["ReadingBar", "Run", "clock", "printable", "reading_bar", "result_table", "seconds_left"]


@dataclass(frozen=True)
class Run:
    """How a model did."""

    name: str
    answer: str
    is_right: bool
    n_tokens: int
    seconds_reading: float
    seconds_answering: float


class ReadingBar:
    """Counts tokens that have been read; knows the speed and the time left."""

    def __init__(self, progress: Progress, description: str, n_tokens: int) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=n_tokens, speed="", left="")
        self._n_tokens = n_tokens
        self._depths: list[int] = [0]
        self._times: list[float] = [time.monotonic()]

    def advance(self, n_tokens: int) -> None:
        """Say that ``n_tokens`` more have been read, just now."""
        self._depths.append(self._depths[-1] + n_tokens)
        self._times.append(time.monotonic())
        speed = n_tokens / max(self._times[-1] - self._times[-2], 1e-9)
        left = seconds_left(self._depths, self._times, self._n_tokens)
        self._progress.update(
            self._task, advance=n_tokens, speed=f"{speed:.0f} tokens/s", left=f"{clock(left)} left" if left else ""
        )


@contextmanager
def reading_bar(console: Console, description: str, n_tokens: int) -> Iterator[ReadingBar]:
    """A progress bar on ``console``. Where that is not a terminal, one line when it ends."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield ReadingBar(progress, description, n_tokens)


def seconds_left(depths: Sequence[int], times: Sequence[float], n_tokens: int) -> float:
    """How long the rest will take, from the times at which some depths were reached.

    A token costs a constant part and one in proportion to its depth, so that time is a parabola in depth.
    """
    if depths[-1] >= n_tokens:
        return 0.0
    elapsed = times[-1] - times[0]
    linear = elapsed / depths[-1] * (n_tokens - depths[-1])
    if len(depths) < 5:
        return linear
    curve = np.polynomial.Polynomial.fit(depths, np.asarray(times) - times[0], 2)
    return float(max(linear, curve(n_tokens) - curve(depths[-1])))


def printable(text: str) -> str:
    """Text without what a terminal would obey: a model may write escape sequences."""
    return "".join(character if character.isprintable() or character == "\n" else "\ufffd" for character in text)


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def result_table(fact: Fact, info: SelfExtendInfo, plain: Run, extended: Run) -> Table:
    """The summary, one column for each model. ``info`` is what was in force in the extended one."""
    table = Table(
        title=f"a text of {extended.n_tokens} tokens, a trained window of {info.n_ctx_train}; the fact: {fact.number}"
    )
    for heading in ("", "plain model", f"SelfExtend, {extended.name}"):
        table.add_column(heading)
    runs = (plain, extended)
    far, both = mib(info.bytes_far), mib(info.bytes_far + info.bytes_near)
    table.add_row("answer", *(" ".join(run.answer.split()) or "(nothing)" for run in runs))
    table.add_row("holds the fact", *("yes" if run.is_right else "no" for run in runs))
    table.add_row("reading", *(f"{run.seconds_reading:.0f} s ({speed(run):.0f} tokens/s)" for run in runs))
    table.add_row("answering", *(f"{run.seconds_answering:.1f} s" for run in runs))
    table.add_row("KV cache", far, f"{both} (far {far}, near {mib(info.bytes_near)})")
    return table


def speed(run: Run) -> float:
    """Tokens read per second."""
    return run.n_tokens / max(run.seconds_reading, 1e-9)


def mib(n_bytes: int) -> str:
    """A number of bytes as people read it."""
    return f"{n_bytes / 2**20:.1f} MiB"
