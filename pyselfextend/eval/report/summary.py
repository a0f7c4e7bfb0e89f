"""The numbers of a report for programs: ``summary.json``. Pure.

=============  =========================================================================================================
``format``     1
``title``      the page's title
``models``     ``id``, ``model`` (file), ``model_bytes``, ``n_ctx_train``, ``type_k``, ``type_v``; others name the id
``settings``   names, in the page's order
``runs``       ``date``, ``version``, ``build_id``, ``machine``, ``command`` of each run
``headline``   cells: each task inside and beyond the trained window (``where``)
``cells``      cells: each task by ``n_tokens``, if it has that, and by ``n_tokens`` with each other axis
``against_plain``  each setting against plain, case by case
``failures``   ``model``, ``setting``, ``task``, ``error``, ``lengths``, ``n``
``n_mixed``    how many cases have been asked with more than one prompt; all of them count
``gaps``       settings with fewer cases than others: ``model``, ``setting``, ``task``, ``n``, ``n_all``
``plots``      files beside this one
=============  =========================================================================================================

A cell has ``model``, ``setting``, ``task``, ``axes`` (what its cases share), ``measure`` (``accuracy``: a mean score
from 0 to 1; ``perplexity``; or ``log_prob``: the mean over cases of the right answer's mean log probability for each of
its tokens, in nats), ``value`` with ``low`` and ``high``, its 95% interval (null: all cases failed, or
there is too little for an interval), ``n`` cases that count, ``n_failed`` that do not, and of a perplexity ``n_scored``
tokens that are scored.

A comparison has ``model``, ``setting``, ``task``, ``axes``, ``measure``, ``n`` pairs of cases, ``plain`` and ``value``
over these, ``n_better`` and ``n_worse`` cases, ``p_value`` of the sign test, of a perplexity its ``ratio`` to plain's
with ``low`` and ``high``, and of a log probability its ``gain`` over plain's with ``low`` and ``high``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..results import RunInfo
from .cells import Cell, aggregate, headline, views
from .compare import Difference, Failure, Gap, Sample, differences, failures, gaps, mixed, samples
from .items import MEASURES, Item, Subject, every_measure, setting_order, subject_order

__all__ = ["FORMAT", "Summary", "summarize", "summary_json"]

FORMAT = 1


@dataclass(frozen=True)
class Summary:
    """Everything that a report says, as numbers."""

    items: tuple[Item, ...]
    runs: tuple[RunInfo, ...]
    """By date, each once."""

    subjects: tuple[Subject, ...]
    settings: tuple[str, ...]
    tasks: tuple[str, ...]
    headline: tuple[Cell, ...]
    cells: tuple[Cell, ...]
    differences: tuple[Difference, ...]
    failures: tuple[Failure, ...]
    gaps: tuple[Gap, ...]
    samples: tuple[Sample, ...]
    n_mixed: int
    """Cases of one name that were asked in several ways."""

    def of_task(self, task: str) -> list[Item]:
        """The cases of a task."""
        return [item for item in self.items if item.task == task]


def summarize(items: Sequence[Item], runs: Iterable[RunInfo]) -> Summary:
    """All numbers of a report.

    Args:
        items: from ``prepare``.
        runs: in any order.
    """
    tasks = tuple(dict.fromkeys(item.task for item in items))
    every = every_measure(items)
    cells: list[Cell] = []
    for task in tasks:
        for measure in MEASURES:
            of_task = [item for item in every if item.task == task and item.measure == measure]
            for names in views(of_task) if of_task else ():
                cells += aggregate(of_task, names)
    return Summary(
        items=tuple(items),
        runs=tuple(sorted(set(runs), key=lambda run: tuple(asdict(run).values()))),
        subjects=tuple(sorted({item.subject for item in items}, key=subject_order)),
        settings=tuple(sorted({item.setting for item in items}, key=setting_order)),
        tasks=tasks,
        headline=tuple(headline(every)),
        cells=tuple(cells),
        differences=tuple(differences(every)),
        failures=tuple(failures(items)),
        gaps=tuple(gaps(items)),
        samples=tuple(samples(items)),
        n_mixed=mixed(items),
    )


def summary_json(summary: Summary, title: str, plots: Sequence[str]) -> str:
    """The text of ``summary.json``: a line for each entry, so that changes are easy to see."""
    ids = {subject: i for i, subject in enumerate(summary.subjects)}
    parts: dict[str, Any] = {
        "format": FORMAT,
        "title": title,
        "models": [{"id": ids[subject], **asdict(subject)} for subject in summary.subjects],
        "settings": list(summary.settings),
        "runs": [asdict(run) for run in summary.runs],
        "headline": [_cell(cell, ids) for cell in summary.headline],
        "cells": [_cell(cell, ids) for cell in summary.cells],
        "against_plain": [_difference(difference, ids) for difference in summary.differences],
        "failures": [
            {**_whose(f, ids), "error": f.error, "lengths": list(f.lengths), "n": len(f.keys)} for f in summary.failures
        ],
        "n_mixed": summary.n_mixed,
        "gaps": [{**_whose(gap, ids), "n": gap.n, "n_all": gap.n_all} for gap in summary.gaps],
        "plots": list(plots),
    }
    return "{\n" + ",\n".join(f"{_dump(name)}: {_lines(value)}" for name, value in parts.items()) + "\n}\n"


def _lines(value: Any) -> str:
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return _dump(value)
    return "[\n  " + ",\n  ".join(map(_dump, value)) + "\n]"


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _whose(entry: Cell | Difference | Failure | Gap, ids: dict[Subject, int]) -> dict[str, Any]:
    return {"model": ids[entry.subject], "setting": entry.setting, "task": entry.task}


def _cell(cell: Cell, ids: dict[Subject, int]) -> dict[str, Any]:
    estimate = cell.estimate
    found = {
        **_whose(cell, ids),
        "axes": dict(cell.axes),
        "measure": cell.measure,
        "value": None if estimate is None else _rounded(estimate.value),
        "low": None if estimate is None else _rounded(estimate.low),
        "high": None if estimate is None else _rounded(estimate.high),
        "n": cell.n,
        "n_failed": cell.n_failed,
    }
    return {**found, "n_scored": cell.n_scored} if cell.n_scored else found


def _difference(difference: Difference, ids: dict[Subject, int]) -> dict[str, Any]:
    found = {
        **_whose(difference, ids),
        "axes": dict(difference.axes),
        "measure": difference.measure,
        "n": difference.n,
        "plain": _rounded(difference.plain),
        "value": _rounded(difference.value),
        "n_better": difference.n_better,
        "n_worse": difference.n_worse,
        "p_value": _rounded(difference.p_value),
    }
    if difference.ratio is not None:
        ratio = difference.ratio
        found |= {"ratio": _rounded(ratio.value), "low": _rounded(ratio.low), "high": _rounded(ratio.high)}
    if difference.gain is not None:
        gain = difference.gain
        found |= {"gain": _rounded(gain.value), "low": _rounded(gain.low), "high": _rounded(gain.high)}
    return found


def _rounded(value: float | None) -> float | None:
    """Six significant digits."""
    return None if value is None else float(f"{value:.6g}")
