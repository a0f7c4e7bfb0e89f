"""Settings against plain, case by case; what failed, what is missing, and samples of answers. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from ..._extras import need
from ..results import Result
from .cells import Estimate, mean, perplexity
from .items import BEYOND, LOG_PROB, PERPLEXITY, PLAIN, Axes, Item, Subject, group_order, setting_order

__all__ = ["Difference", "Failure", "Gap", "Sample", "differences", "failures", "gaps", "mixed", "samples"]


@dataclass(frozen=True)
class Difference:
    """A setting against plain, over the cases that both have answered."""

    subject: Subject
    setting: str
    task: str
    measure: str
    axes: Axes
    """What the cases share."""

    n: int
    """Pairs of cases."""

    plain: float
    value: float
    """Accuracy, perplexity or log probability of the two, over these cases."""

    n_better: int
    n_worse: int
    """Cases in which the setting does better or worse than plain."""

    p_value: float
    """Of the sign test over the cases that differ, two-sided. For answers that are right or wrong it is McNemar's
    exact test."""

    ratio: Estimate | None
    """Of perplexities: the setting's over plain's, with Student's t over the differences of windows. None for
    others."""

    gain: Estimate | None = None
    """Of log probabilities: the mean of the setting's minus plain's, with Student's t over cases. None for others."""


@dataclass(frozen=True)
class Failure:
    """Cases of a task that failed under one setting for one reason."""

    subject: Subject
    setting: str
    task: str
    error: str
    keys: tuple[str, ...]
    """The cases."""

    lengths: tuple[int, ...]
    """Their lengths in tokens, each once."""


@dataclass(frozen=True)
class Gap:
    """A setting that has not been asked all cases that others have."""

    subject: Subject
    setting: str
    task: str
    n: int
    n_all: int


@dataclass(frozen=True)
class Sample:
    """An answer, to be read."""

    subject: Subject
    setting: str
    task: str
    key: str
    right: bool
    """Whether the score is at least a half."""

    score: float
    references: tuple[str, ...]
    answer: str


def differences(items: Collection[Item]) -> list[Difference]:
    """Each setting that is not plain, per subject and task: inside and beyond the trained window, or by subtask where
    no case is longer than it; by length where every length asks the same."""
    beyond = {(item.subject, item.task) for item in items if item.axes.get("where") == BEYOND}
    plain = {_case(item): item.result for item in items if item.setting == PLAIN and not item.error}
    groups: dict[tuple[str, str, Subject, str, Axes], list[tuple[Result, Result]]] = {}
    for item in items:
        if item.setting == PLAIN or item.error or _case(item) not in plain:
            continue
        name = "where" if (item.subject, item.task) in beyond else "subtask"
        if item.is_repeated:
            name = "n_tokens"
        axes = ((name, item.axes[name]),) if name in item.axes else ()
        group = (item.task, item.measure, item.subject, item.setting, axes)
        groups.setdefault(group, []).append((plain[_case(item)], item.result))
    return [_difference(*group, groups[group]) for group in sorted(groups, key=lambda group: group_order(*group))]


def failures(items: Collection[Item]) -> list[Failure]:
    """What failed, by its reason."""
    groups: dict[tuple[Subject, str, str, str], list[Item]] = {}
    for item in items:
        if item.error:
            groups.setdefault((item.subject, item.setting, item.task, item.error), []).append(item)
    return [
        Failure(*group, tuple(item.result.key for item in failed), tuple(sorted({item.length for item in failed})))
        for group, failed in groups.items()
    ]


def gaps(items: Collection[Item]) -> list[Gap]:
    """Settings of a task that some or all of a subject's cases are missing of, as after an interrupted run."""
    everything: dict[tuple[Subject, str], set[_Case]] = {}
    of_setting: dict[tuple[Subject, str, str], set[_Case]] = {}
    settings: dict[str, set[str]] = {}  # of each task
    for item in items:
        everything.setdefault((item.subject, item.task), set()).add(_case(item))
        of_setting.setdefault((item.subject, item.setting, item.task), set()).add(_case(item))
        settings.setdefault(item.task, set()).add(item.setting)
    return [
        Gap(subject, setting, task, n, len(cases))
        for (subject, task), cases in everything.items()
        for setting in sorted(settings[task], key=setting_order)
        if (n := len(of_setting.get((subject, setting, task), ()))) < len(cases)
    ]


def mixed(items: Collection[Item]) -> int:
    """How many cases of one name have been asked in several ways: other seeds, texts or templates."""
    asked: dict[tuple[Subject, str, str], set[str]] = {}
    for item in items:
        asked.setdefault((item.subject, item.task, item.result.key), set()).add(item.result.digest)
    return sum(len(digests) > 1 for digests in asked.values())


def samples(items: Collection[Item], n: int = 2) -> list[Sample]:
    """For each subject, task and setting, up to ``n`` right and ``n`` wrong answers, the longest prompts first."""
    found: dict[tuple[Subject, str, str, bool], list[Sample]] = {}
    for item in sorted(items, key=lambda item: -item.length):
        result = item.result
        if item.error or result.score is None or not (result.answer or result.references):
            continue
        right = result.score >= 0.5
        group = found.setdefault((item.subject, item.task, item.setting, right), [])
        if len(group) < n:
            whose = (item.subject, item.setting, item.task, result.key)
            group.append(Sample(*whose, right, result.score, result.references, result.answer))
    everything = [sample for group in found.values() for sample in group]
    return sorted(everything, key=lambda s: (*group_order(s.task, "", s.subject, s.setting, ()), not s.right))


_Case = tuple[Subject, str, str, str]


def _case(item: Item) -> _Case:
    """What was asked, whatever the setting."""
    return (item.subject, item.task, item.result.key, item.result.digest)


def _difference(
    task: str, measure: str, subject: Subject, setting: str, axes: Axes, pairs: list[tuple[Result, Result]]
) -> Difference:
    n = len(pairs)
    ratio = gain = None
    if measure == PERPLEXITY:
        total = sum(b.n_scored for _, b in pairs)
        gains = [(a.nll or 0.0) - (b.nll or 0.0) for a, b in pairs]
        plain, value = (
            math.exp(math.fsum(r.nll or 0.0 for r in column) / total) for column in zip(*pairs, strict=True)
        )
        ratio = perplexity([-each for each in gains], [b.n_scored for _, b in pairs])
    elif measure == LOG_PROB:
        gains = [(b.gold_mean or 0.0) - (a.gold_mean or 0.0) for a, b in pairs]
        plain, value = (math.fsum(r.gold_mean or 0.0 for r in column) / n for column in zip(*pairs, strict=True))
        gain = mean(gains)
    else:
        gains = [(b.score or 0.0) - (a.score or 0.0) for a, b in pairs]
        plain, value = (math.fsum(r.score or 0.0 for r in column) / n for column in zip(*pairs, strict=True))
    n_better, n_worse = sum(each > 0 for each in gains), sum(each < 0 for each in gains)
    p_value = 1.0
    if n_better + n_worse:
        p_value = float(need("scipy.stats", "eval").binomtest(n_better, n_better + n_worse).pvalue)
    return Difference(subject, setting, task, measure, axes, n, plain, value, n_better, n_worse, p_value, ratio, gain)
