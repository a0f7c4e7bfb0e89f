"""What commands show: consoles, progress bars, times, sizes. Results belong on stdout, progress on stderr.

Where a console is no terminal there are no control codes, and a line for each thing that is finished.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn
from rich.text import Text

from .terminal import printable

__all__ = [
    "CaseBar",
    "PlainColumn",
    "ReadingBar",
    "case_bar",
    "clock",
    "mib",
    "printable",
    "progress_console",
    "reading_bar",
    "result_console",
    "seconds_left",
]


class _Console(Console):
    """Prints text as it is, but ``printable``: a model's answer may hold what rich would take for markup.

    That goes for strings, those in tables too; a ``Text`` is to be made of printable ones.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as rich shows it."""
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> None:
        raise  # the error itself, for cli.main; rich would exit with status 1, which has other meanings here


def result_console() -> Console:
    """A console on stdout."""
    return _Console()


def progress_console() -> Console:
    """A console on stderr."""
    return _Console(stderr=True)


class PlainColumn(TextColumn):
    """A column of a progress bar with text as it is, but ``printable``."""

    def __init__(self, text_format: str) -> None:
        super().__init__(text_format, markup=False)

    def render(self, task: Task) -> Text:
        """The text of a task."""
        return Text(printable(self.text_format.format(task=task), lines=False))


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
    """A progress bar on ``console`` for one text that is read. Where that is not a terminal, one line when it ends."""
    columns = (
        PlainColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        PlainColumn("{task.fields[speed]}"),
        PlainColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield ReadingBar(progress, description, n_tokens)


class CaseBar:
    """Counts cases of different cost, group by group; knows the time that is left of all of them."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None, count="", left="")
        self._description = ""
        self._n_finished = self._n_cases = 0
        self._spent, self._total, self._started = 0.0, 0.0, time.monotonic()

    def begin(self, description: str, n_cases: int, cost: float, later: float) -> None:
        """Begin a group of cases. ``cost`` is that of the group, ``later`` about that of the groups after it."""
        self._description, self._n_finished, self._n_cases = description, 0, n_cases
        self._total = self._spent + cost + later
        self._progress.update(
            self._task, description=description, total=self._total, completed=self._spent, count=f"0/{n_cases}"
        )

    def advance(self, cost: float) -> None:
        """Say that some of the work has been done, in the unit of the cost."""
        self._spent += cost
        left = (time.monotonic() - self._started) / max(self._spent, 1e-9) * max(self._total - self._spent, 0)
        self._progress.update(self._task, advance=cost, left=f"{clock(left)} left")

    def finish(self, line: str) -> None:
        """Say that a case is finished; ``line`` tells of it."""
        self._n_finished += 1
        count = f"{self._n_finished}/{self._n_cases}"
        self._progress.update(self._task, count=count)
        self._progress.console.print(f"{self._description} {count} {line}", markup=False, soft_wrap=True)


@contextmanager
def case_bar(console: Console) -> Iterator[CaseBar]:
    """A progress bar on ``console`` for cases of different cost, with a line above it for each that is finished.

    Where the console is no terminal there are only the lines.
    """
    columns = (
        PlainColumn("{task.description}"),
        BarColumn(),
        PlainColumn("{task.fields[count]}"),
        PlainColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield CaseBar(progress)


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


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours if there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def mib(n_bytes: int) -> str:
    """A number of bytes as people read it."""
    return f"{n_bytes / 2**20:.1f} MiB"
