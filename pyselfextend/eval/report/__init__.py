"""The report of results: a page that holds everything, its plots as files beside it, and its numbers for programs.

What the page says of numbers: accuracies are mean scores with Wilson's intervals, perplexities are over all tokens with
an interval over windows, log probabilities of right answers are means over cases with Student's t, and cases that
failed are counted and listed with their reasons.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from ...errors import EvalError
from ...output_file import write_output
from ..results import Result, RunInfo

__all__ = ["write_report"]

PAGE, SUMMARY = "index.html", "summary.json"


def write_report(
    results: Iterable[Result], runs: Iterable[RunInfo], folder: Path, *, title: str = "Beyond the trained window"
) -> Path:
    """Write ``index.html``, ``summary.json`` (see ``summary``) and a PNG for each plot into a folder.

    The same results make the same files, in whatever order they come. Plots that an earlier report has left there are
    taken away.

    Args:
        results: in any order; of two with one identity, the last one counts.
        runs: where they were made.
        folder: is made if it is not there.
        title: of the page.

    Returns:
        The page.

    Raises:
        EvalError: there are no results, or the folder cannot be written.
        MissingExtraError: an optional dependency is not installed.
    """
    from .figures import pictures
    from .items import prepare
    from .page import render
    from .summary import summarize, summary_json
    from .texts import labels, slug

    summary = summarize(prepare(results), runs)
    names = labels(summary.subjects)
    anchors: dict[str, str] = {}
    for task in summary.tasks:
        anchor = slug(task)
        while anchor in anchors.values():
            anchor += "-"
        anchors[task] = anchor
    plots = {task: pictures(summary.of_task(task), names, summary.settings, anchors[task]) for task in summary.tasks}
    files = {picture.name: picture.data for of_task in plots.values() for picture in of_task}
    page = render(summary, plots, anchors, title).encode("utf-8", "replace")
    numbers = summary_json(summary, title, list(files)).encode("utf-8", "replace")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        old = _plots_of(folder / SUMMARY)
        for name, content in {**files, SUMMARY: numbers, PAGE: page}.items():
            write_output(folder / name, content)
        for name in old - set(files):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise EvalError(f"{folder} cannot be written: {error.strerror or error}") from None
    return folder / PAGE


def _plots_of(path: Path) -> set[str]:
    """The plots that an earlier report has made."""
    try:
        found = list(json.loads(path.read_bytes())["plots"])
    except (OSError, ValueError, TypeError, KeyError):
        return set()
    return {name for name in found if isinstance(name, str) and name.endswith(".png") and name == Path(name).name}
