"""What an evaluation found, on the screen: a table for each task, model and cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ...eval.report.cells import Cell, headline
from ...eval.report.items import LOG_PROB, MEASURES, Axes, Subject, every_measure, prepare
from ...eval.report.texts import labels, quantity, task_text
from ...eval.report.words import axis_words, interval, number
from ...eval.results import Result

__all__ = ["result_tables"]

LOG_P = "log p: of the right answer, mean over its tokens, in nats"


def result_tables(results: Iterable[Result]) -> Iterator[Table]:
    """Every setting inside and beyond the trained window, with all that was measured there and 95% intervals.

    Raises:
        EvalError: there are no results.
    """
    groups: dict[tuple[str, Subject], list[Cell]] = {}
    for cell in headline(every_measure(prepare(results))):
        groups.setdefault((cell.task, cell.subject), []).append(cell)
    names = labels({subject for _, subject in groups})
    for (task, subject), cells in groups.items():
        title = task_text(task).title if len(names) == 1 else f"{task_text(task).title}: {names[subject]}"
        yield _table(title, cells)


def _table(title: str, cells: Sequence[Cell]) -> Table:
    measures = [measure for measure in MEASURES if any(cell.measure == measure for cell in cells)]
    table = Table(title=title, title_justify="left", caption_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    if LOG_PROB in measures:
        table.caption = LOG_P
    table.add_column("setting")
    table.add_column("window")
    for measure in measures:
        table.add_column("log p" if measure == LOG_PROB else quantity(cells[0].task, measure), justify="right")
        table.add_column("95%")
    table.add_column("cases", justify="right")
    rows: dict[tuple[str, Axes], dict[str, Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.setting, cell.axes), {})[cell.measure] = cell
    for (setting, axes), found in rows.items():
        values = [text for measure in measures for text in _value(found.get(measure))]
        where = ", ".join(str(value) if name == "where" else axis_words(name, value) for name, value in axes)
        table.add_row(setting, where or "all", *values, str(max(cell.n for cell in found.values())))
    return table


def _value(cell: Cell | None) -> tuple[str, str]:
    """A number and its interval."""
    if cell is None or cell.estimate is None:
        return ("" if cell is None else "failed"), ""
    return number(cell.estimate.value, cell.measure), interval(cell.estimate, cell.measure)
