"""Numbers out of results: groups of cases, their means and intervals. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass

from ..._extras import need
from ..cases import Axis
from ..intervals import accuracy
from .items import LOG_PROB, PERPLEXITY, Axes, Item, Subject, axis_order, group_order

__all__ = ["PLACES", "Cell", "Estimate", "aggregate", "headline", "mean", "once", "perplexity", "values", "views"]

#: Axes that tell samples apart; everything else can be a group of its own.
SAMPLE_AXES = frozenset({"sample", "window", "stride", "seed", "index", "id", "where"})

#: An axis with more values than this tells samples apart as well.
MAX_VALUES = 48

#: Axes of interest also if all cases have the same value.
PLACES = ("depth", "place")


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval. None: there are too few values for an interval."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Cell:
    """All cases of a task under one setting that share some axes."""

    subject: Subject
    setting: str
    task: str
    measure: str
    """``accuracy`` (a mean score from 0 to 1), ``perplexity``, or ``log_prob``: the mean over cases of the right
    answer's log probability for each of its tokens, in nats."""

    axes: Axes
    """What they share, in the order that was asked for."""

    n: int
    """Cases that count."""

    n_failed: int
    """Cases that failed; they are in no other number here."""

    n_scored: int
    """Tokens that were scored, of a perplexity."""

    estimate: Estimate | None
    """None: all cases failed."""

    errors: tuple[str, ...]
    """Why cases failed, each reason once."""

    def axis(self, name: str) -> Axis:
        """The value of an axis. ``KeyError`` if it is not one of the cell's."""
        return dict(self.axes)[name]


def aggregate(items: Iterable[Item], names: Sequence[str]) -> list[Cell]:
    """One cell for each combination of the axes ``names`` that occurs, per task, measure, subject and setting.

    Cases without one of the axes are in none of the cells. In order of tasks, subjects, settings and axes.
    """
    groups: dict[tuple[Subject, str, str, str, Axes], list[Item]] = {}
    for item in items:
        if all(name in item.axes for name in names):
            axes = tuple((name, item.axes[name]) for name in names)
            groups.setdefault((item.subject, item.setting, item.task, item.measure, axes), []).append(item)
    return sorted((_cell(*key, group) for key, group in groups.items()), key=_order)


def views(items: Collection[Item]) -> list[tuple[str, ...]]:
    """The groupings that a task's cases allow: by length, and by length together with each other axis."""
    found: dict[str, set[Axis]] = {}
    for item in items:
        for name, value in item.axes.items():
            if name not in SAMPLE_AXES:
                found.setdefault(name, set()).add(value)
    length = ("n_tokens",) if "n_tokens" in found else ()
    others = [
        name
        for name, of_axis in sorted(found.items())
        if name != "n_tokens" and (name in PLACES or 1 < len(of_axis) <= MAX_VALUES)
    ]
    return [length, *((*length, name) for name in others)]


def headline(items: Collection[Item]) -> list[Cell]:
    """One cell for each task inside the trained window and one beyond it, per subject and setting.

    They are over all cases there. Where every length asks the same, lengths cannot be put together: then only the
    longest one counts, and the cell has the axis ``n_tokens`` as well.
    """
    groups: dict[tuple[str, ...], list[Item]] = {}
    for item in once(items):
        names: tuple[str, ...] = ("where",) if "where" in item.axes else ()
        groups.setdefault((*names, "n_tokens") if item.is_repeated else names, []).append(item)
    return sorted((cell for names, group in groups.items() for cell in aggregate(group, names)), key=_order)


def once(items: Collection[Item]) -> list[Item]:
    """The cases without those that ask the same at a shorter length, on either side of the trained window."""

    def side(item: Item) -> tuple[Hashable, ...]:
        return (item.subject, item.task, item.measure, item.axes.get("where"))

    longest: dict[tuple[Hashable, ...], int] = {}
    for item in items:
        longest[side(item)] = max(item.length, longest.get(side(item), 0))
    return [item for item in items if not item.is_repeated or item.length == longest[side(item)]]


def values(cells: Iterable[Cell], name: str) -> list[Axis]:
    """The values of an axis that occur, in order."""
    return sorted({cell.axis(name) for cell in cells}, key=axis_order)


def perplexity(nlls: Sequence[float], n_scored: Sequence[int]) -> Estimate:
    """``exp`` of the mean negative log likelihood of all tokens of some windows: each token weighs the same.

    The interval is that of the mean. It is about these windows being a sample of windows.

    Args:
        nlls: of each window, summed over its tokens, in nats.
        n_scored: how many tokens each window scores.
    """
    found = mean(nlls, n_scored)
    low, high = (None if end is None else exp(end) for end in (found.low, found.high))
    return Estimate(math.exp(found.value), low, high)


def mean(sums: Sequence[float], counts: Sequence[int] | None = None) -> Estimate:
    """A mean with Student's t on ``len(sums) - 1`` degrees of freedom.

    With counts it is that of a ratio of sums; where all are the same, the usual one of a mean of means.

    Args:
        sums: of each case.
        counts: over how many each of them is. None: over one.
    """
    counts = [1] * len(sums) if counts is None else counts
    n, total = len(sums), sum(counts)
    middle = math.fsum(sums) / total
    if n < 2:
        return Estimate(middle, None, None)
    squares = math.fsum((each - middle * count) ** 2 for each, count in zip(sums, counts, strict=True))
    spread = student_t(n - 1) * math.sqrt(n / (n - 1) * squares) / total
    return Estimate(middle, middle - spread, middle + spread)


def student_t(n_free: int) -> float:
    """The two-sided 95% quantile of Student's t."""
    return float(need("scipy.stats", "eval").t.ppf(0.975, n_free))


def exp(x: float) -> float:
    """``exp`` that does not overflow: of two windows the interval is as wide as that."""
    return math.exp(min(x, 700.0))


def _cell(subject: Subject, setting: str, task: str, measure: str, axes: Axes, group: list[Item]) -> Cell:
    counted = [item.result for item in group if not item.error]
    estimate = None
    if counted and measure == PERPLEXITY:
        estimate = perplexity([r.nll or 0.0 for r in counted], [r.n_scored for r in counted])
    elif counted and measure == LOG_PROB:
        estimate = mean([r.gold_mean or 0.0 for r in counted])
    elif counted:
        share = accuracy([r.score or 0.0 for r in counted])
        estimate = Estimate(share.mean, share.low, share.high)
    return Cell(
        subject, setting, task, measure, axes,
        n=len(counted),
        n_failed=len(group) - len(counted),
        n_scored=sum(r.n_scored for r in counted) if measure == PERPLEXITY else 0,
        estimate=estimate,
        errors=tuple(sorted({item.error for item in group if item.error})),
    )  # fmt: skip


def _order(cell: Cell) -> tuple[Hashable, ...]:
    return group_order(cell.task, cell.measure, cell.subject, cell.setting, cell.axes)
