"""Intervals for accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .._extras import need

__all__ = ["Accuracy", "accuracy"]


@dataclass(frozen=True)
class Accuracy:
    """A mean score with its 95% interval."""

    mean: float
    low: float
    high: float
    n: int
    """How many cases."""


def accuracy(scores: Sequence[float]) -> Accuracy:
    """The mean of scores between 0 and 1, with Wilson's interval (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    For scores that are 0 or 1 this is the interval of a proportion. Graded scores are counted with their fractions; of
    all variables between 0 and 1 with one mean, the one that is 0 or 1 varies most, so that the interval is wide enough
    for them as well.

    Raises:
        ValueError: there are no scores.
    """
    if not scores:
        raise ValueError("there are no scores")
    proportion_confint = need("statsmodels.stats.proportion", "eval").proportion_confint
    mean = sum(scores) / len(scores)
    low, high = proportion_confint(sum(scores), len(scores), alpha=0.05, method="wilson")
    return Accuracy(mean, max(0.0, float(low)), min(1.0, float(high)), len(scores))
