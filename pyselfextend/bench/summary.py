"""Medians, spreads and ratios of what was measured. Pure: imports nothing native.

The baseline of a measurement is the stock build with flash attention on or off, whichever is faster (by the median)
with the same cache, phase, depth and number of threads. A ratio is formed in each round, of two measurements that are
neighbours in time, and the ratios have a median of their own; it need not be the ratio of the medians.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .plan import Configuration
from .records import Change, Measurement, Record

__all__ = ["ChangeRow", "Row", "Spread", "busy_others", "summarize", "summarize_changes"]


@dataclass(frozen=True)
class Spread:
    """A median and what lies around it. Quartiles are interpolated linearly."""

    n: int
    """How many values."""

    median: float
    low: float
    """The lower quartile."""

    high: float
    """The upper quartile."""

    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """That of at least one value."""
        least, low, median, high, most = (float(value) for value in np.quantile(values, [0, 0.25, 0.5, 0.75, 1]))
        return cls(len(values), median, low, high, least, most)


@dataclass(frozen=True)
class Row:
    """A configuration at a depth."""

    configuration: Configuration
    phase: str
    """``prefill`` or ``decode``."""

    depth: int
    """Tokens in the cache."""

    threads: int
    n_tokens: int
    """Tokens of one measurement."""

    speed: Spread
    """Tokens per second."""

    baseline: Configuration | None
    """What the ratio is to. None: the stock build was not measured here."""

    ratio: Spread | None
    """Speed as a multiple of the baseline's. None: no round has both."""

    ga_n: int
    """Group size in force."""

    @property
    def kind(self) -> str:
        """What is compared, with the group in force where it follows the length."""
        return self.configuration.kind_with(self.ga_n)


@dataclass(frozen=True)
class ChangeRow:
    """What a change of the group takes."""

    configuration: Configuration
    depth: int
    """Tokens that are turned."""

    ga_n: int
    """Group size before it."""

    ga_n_new: int
    """Group size after it."""

    seconds: Spread
    """What it takes."""

    seconds_reading: float
    """What reading these tokens took."""

    @property
    def share(self) -> float:
        """The median as a share of that."""
        return self.seconds.median / self.seconds_reading


def summarize(records: Iterable[Record]) -> list[Row]:
    """A row for each configuration, number of threads, phase and depth, in the order in which they were measured."""
    rounds: dict[tuple[Configuration, int, str, int], dict[int, Measurement]] = defaultdict(dict)
    for record in records:
        if isinstance(record, Measurement):
            key = (record.configuration, record.threads, record.phase, record.depth)
            rounds[key][record.round] = record
    speeds = {key: Spread.of([each.tokens_per_second for each in found.values()]) for key, found in rounds.items()}

    rows = []
    for (configuration, threads, phase, depth), found in rounds.items():
        baselines = [
            other
            for other, *where in rounds
            if other.is_stock and other.cache == configuration.cache and where == [threads, phase, depth]
        ]
        baseline = max(baselines, key=lambda other: speeds[other, threads, phase, depth].median, default=None)
        ratios: list[float] = []
        if baseline is not None:
            others = rounds[baseline, threads, phase, depth]
            ratios = [found[i].tokens_per_second / others[i].tokens_per_second for i in found if i in others]
        speed = speeds[configuration, threads, phase, depth]
        first = next(iter(found.values()))
        ratio = Spread.of(ratios) if ratios else None
        rows.append(Row(configuration, phase, depth, threads, first.n_tokens, speed, baseline, ratio, first.ga_n))
    return rows


def summarize_changes(records: Iterable[Record]) -> list[ChangeRow]:
    """A row for each configuration whose group was changed."""
    rounds: dict[Configuration, list[Change]] = defaultdict(list)
    for record in records:
        if isinstance(record, Change):
            rounds[record.configuration].append(record)
    return [
        ChangeRow(each, found[0].depth, found[0].ga_n, found[0].ga_n_new, Spread.of([one.seconds for one in found]),
                  found[0].seconds_reading)
        for each, found in rounds.items()
    ]  # fmt: skip


def busy_others(records: Iterable[Record]) -> float:
    """How many cores other processes kept busy while something was measured, on average over its time."""
    measured = [record for record in records if isinstance(record, Measurement)]
    seconds = sum(each.seconds for each in measured)
    return sum(each.other_cores * each.seconds for each in measured) / seconds if measured else 0.0
