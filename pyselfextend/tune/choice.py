"""Which group for which length. Pure.

For a length, a group counts if its perplexity is within 1% of the lowest there. Of those that count, the best is the
one with the highest mean log probability of the right answers. What the built-in rule would take (``ga_n_auto``: the
plain model inside the trained context) is kept unless the best is clearly better: unless the 95% interval of the
difference between the two, key by key, excludes 0, or the rule's own group does not count or was not measured. So
chance does not choose among groups that are as good as each other, and a plain model is left only for something.

Groups are compared on the same texts and the same keys. The intervals are those of a bootstrap over keys (Efron and
Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3); they are about these texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..groups import GroupTable, ga_n_auto
from .document import Reading, Stop

__all__ = ["TOLERANCE", "Cell", "Choice", "Mean", "choose", "mean", "table"]

#: How much above the lowest perplexity a group may be.
TOLERANCE = 0.01

N_RESAMPLES = 10_000
SEED = 1  # of the bootstrap


@dataclass(frozen=True)
class Mean:
    """A mean with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Cell:
    """A group at a length."""

    n_tokens: int
    ga_n: int
    log_p: Mean
    """Of the right answers, in nats."""

    n_right: int
    n_keys: int
    perplexity: float
    counts: bool
    """Whether its perplexity is within 1% of the lowest at this length."""


@dataclass(frozen=True)
class Choice:
    """What is chosen for a length."""

    n_tokens: int
    chosen: Cell
    cells: tuple[Cell, ...]
    """All groups that reach it, ascending."""

    ga_n_rule: int
    """What the rule takes."""

    rule: Cell | None
    """The same, if it was measured."""

    gain: Mean | None
    """By how much the log probability of the chosen group is above that of the rule, key by key. None: the rule's group
    was not measured."""

    @property
    def perplexity_ratio(self) -> float | None:
        """The chosen group's perplexity over that of the rule's."""
        return None if self.rule is None else self.chosen.perplexity / self.rule.perplexity


def choose(readings: Sequence[Reading], n_ctx_train: int, ga_w: int) -> tuple[Choice, ...]:
    """The choice for each length.

    Args:
        readings: of every group the same texts, as far as it reaches.
        n_ctx_train, ga_w: for the rule, in tokens.
    """
    lengths = sorted({stop.n_tokens for reading in readings for stop in reading.stops})
    return tuple(_choice(length, readings, n_ctx_train, ga_w) for length in lengths)


def table(choices: Sequence[Choice]) -> GroupTable:
    """What ``ga_n="auto"`` needs of them."""
    return tuple((choice.n_tokens, choice.chosen.ga_n) for choice in choices)


def _choice(n_tokens: int, readings: Sequence[Reading], n_ctx_train: int, ga_w: int) -> Choice:
    stops: dict[int, list[Stop]] = {}
    for reading in sorted(readings, key=lambda reading: (reading.ga_n, reading.sample)):
        for stop in reading.stops:
            if stop.n_tokens == n_tokens:
                stops.setdefault(reading.ga_n, []).append(stop)
    perplexities = {
        ga_n: math.exp(math.fsum(stop.nll for stop in some) / sum(stop.n_scored for stop in some))
        for ga_n, some in stops.items()
    }
    limit = (1 + TOLERANCE) * min(perplexities.values())
    values = {ga_n: np.array([a.log_p for stop in some for a in stop.answers]) for ga_n, some in stops.items()}
    cells = {
        ga_n: Cell(
            n_tokens, ga_n, mean(values[ga_n]),
            n_right=sum(a.is_right for stop in some for a in stop.answers),
            n_keys=len(values[ga_n]),
            perplexity=perplexities[ga_n],
            counts=perplexities[ga_n] <= limit,
        )
        for ga_n, some in stops.items()
    }  # fmt: skip
    best = max((cell for cell in cells.values() if cell.counts), key=lambda cell: cell.log_p.value)
    ga_n_rule = ga_n_auto(n_ctx_train, ga_w, n_tokens)
    rule = cells.get(ga_n_rule)
    chosen = best
    if rule is not None and rule.counts and mean(values[best.ga_n] - values[ga_n_rule]).low <= 0:
        chosen = rule
    gain = None if rule is None else mean(values[chosen.ga_n] - values[ga_n_rule])
    return Choice(n_tokens, chosen, tuple(cells.values()), ga_n_rule, rule, gain)


def mean(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Mean:
    """The mean of values, at least one, with the percentile interval of a bootstrap, always the same."""
    rng = np.random.default_rng(SEED)
    means = values[rng.integers(len(values), size=(N_RESAMPLES, len(values)))].mean(axis=1)
    low, high = (float(value) for value in np.quantile(means, [0.025, 0.975]))
    return Mean(float(values.mean()), low, high)
