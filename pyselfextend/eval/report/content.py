"""What stands on the page, in its order: sentences, tables, sections. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..results import RunInfo
from .cells import PLACES, Cell, aggregate, once, views
from .compare import Difference, Sample
from .items import BEYOND, MEASURES, Axes, Item, Subject, axes_order, is_number, measured, n_read
from .summary import Summary
from .texts import TaskText, quantity, setting_text, task_text
from .words import axes_words, axis_words, count, duration, enumerated

__all__ = [
    "Block",
    "Column",
    "Row",
    "Run",
    "Section",
    "Table",
    "headline_table",
    "lead",
    "reaches",
    "run_table",
    "sections",
]


INTRODUCTION = (
    "A language model is trained on texts up to a certain length, its window. On longer ones it loses its way, unless "
    "the positions of their tokens are brought back into what it knows."
)

#: A table with more rows unfolds.
ROWS_MAX = 16

#: What is narrower keeps its settings in rows; more settings than this do not stand in columns.
COLUMNS_MIN, COLUMNS_MAX = 6, 8


@dataclass(frozen=True)
class Column:
    """Of a table of settings."""

    group: str
    """What stands above it, and above its neighbours with the same."""

    name: str
    beyond: bool = False
    """Whether it is the first one beyond the trained window."""


@dataclass(frozen=True)
class Row:
    """A setting; or a task, where settings stand in columns."""

    name: str
    note: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Block:
    """The rows of one model and cache."""

    subject: Subject
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """A block of rows for each model and cache."""

    caption: str
    corner: str
    """What the rows are."""

    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]

    @property
    def folded(self) -> bool:
        """Whether it is so long that it unfolds on demand."""
        return sum(len(block.rows) for block in self.blocks) > ROWS_MAX

    @property
    def groups(self) -> list[tuple[str, int]]:
        """What stands above the columns, and how many it spans."""
        return [(group, len(list(found))) for group, found in itertools.groupby(self.columns, lambda c: c.group)]


@dataclass(frozen=True)
class Section:
    """A task."""

    task: str
    anchor: str
    text: TaskText
    details: tuple[str, ...]
    """Sentences about its cases."""

    tables: tuple[Table, ...]
    differences: tuple[Difference, ...]
    samples: tuple[Sample, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Run:
    """Runs that differ in nothing but their date."""

    info: RunInfo
    first: str
    last: str
    n: int


def lead(summary: Summary) -> list[str]:
    """What was measured, in a few sentences."""
    items = summary.items
    models = sorted({subject.model for subject in summary.subjects})
    trained = sorted({subject.n_ctx_train for subject in summary.subjects if subject.n_ctx_train})
    longest = max((n_read(item.result) for item in items if not item.error), default=0)
    what = models[0].removesuffix(".gguf") if len(models) == 1 else f"{len(models)} model files"
    if len({subject.cache for subject in summary.subjects}) > 1:
        what += f" with {enumerated(sorted({subject.cache for subject in summary.subjects}))} caches"
    first = f"Here {what} read prompts of up to {longest:,} tokens"
    if trained:
        first += f", trained on windows of {enumerated([f'{n:,}' for n in trained], 'or')}"
    settings = list(summary.settings)
    if len(settings) > COLUMNS_MAX:
        settings = [*settings[: COLUMNS_MAX - 2], f"{len(settings) - COLUMNS_MAX + 2} more"]
    put = "Questions were put, not all of them everywhere," if summary.gaps else "Every question was put"
    second = f"{put} under {count(len(summary.settings), 'setting')}: {enumerated(settings)}"
    tasks = enumerated([task_text(task).title for task in summary.tasks])
    n_failed = sum(bool(item.error) for item in items)
    third = f"{count(len(summary.tasks), 'task')} ({tasks}), {count(len(items), 'case')}, "
    third += f"{n_failed:,} of which failed" if n_failed else "none of which failed"
    seconds = math.fsum(item.result.seconds for item in items)
    return [INTRODUCTION, f"{first}.", f"{second}.", f"{third}; {duration(seconds)} of computing."]


def headline_table(summary: Summary) -> Table:
    """Every task inside and beyond the trained window."""
    cells = {(c.subject, c.setting, (c.task, c.measure, dict(c.axes).get("where"))): c for c in summary.headline}
    keys = sorted(
        {key for _, _, key in cells},
        key=lambda key: (summary.tasks.index(key[0]), key[1], key[2] == BEYOND, str(key[2])),
    )
    measures: dict[str, set[str]] = {}
    for task, measure, _ in keys:
        measures.setdefault(task, set()).add(measure)
    columns = []
    for task, measure, where in keys:
        title = task_text(task).title
        group = f"{title}, {quantity(task, measure)}" if len(measures[task]) > 1 else title
        columns.append(Column(group, "all" if where is None else axis_words("where", where), where == BEYOND))
    return _table("", "task", keys, columns, cells, summary)


def reaches(summary: Summary) -> list[tuple[str, list[str]]]:
    """For each setting that is not plain, what it means for each trained window."""
    trained = {subject.n_ctx_train: subject for subject in summary.subjects if subject.n_ctx_train}
    found = []
    for setting in summary.settings:
        texts = [setting_text(setting, trained[n]) for n in sorted(trained)]
        if any(texts):
            found.append((setting, texts))
    return found


def sections(summary: Summary, anchors: dict[str, str]) -> list[Section]:
    """One for each task.

    Args:
        summary: the numbers.
        anchors: of the tasks.
    """
    return [
        Section(
            task=task,
            anchor=anchors[task],
            text=task_text(task),
            details=tuple(_details(summary.of_task(task))),
            tables=tuple(_tables(task, summary)),
            differences=tuple(d for d in summary.differences if d.task == task),
            samples=tuple(s for s in summary.samples if s.task == task),
            cells=tuple(c for c in summary.cells if c.task == task),
        )
        for task in summary.tasks
    ]


def run_table(runs: Sequence[RunInfo]) -> list[Run]:
    """Runs in the order of their dates, those of one command on one machine together."""
    groups: dict[tuple[str, ...], list[RunInfo]] = {}
    for run in runs:
        groups.setdefault((run.version, run.build_id, run.machine, run.command), []).append(run)
    return [Run(group[0], group[0].date, group[-1].date, len(group)) for group in groups.values()]


def _details(items: Sequence[Item]) -> list[str]:
    asked = {(item.subject, item.result.key, item.result.digest) for item in items}
    n = len(asked) // len({item.subject for item in items})
    found = [f"{count(n, 'case')} for each setting." if n else ""]
    subtasks = sorted({str(item.axes["subtask"]) for item in items if "subtask" in item.axes})
    if subtasks:
        found.append(f"{count(len(subtasks), 'subtask')}: {enumerated(subtasks)}.")
    strides = sorted({stride for item in items if isinstance(stride := item.axes.get("stride"), int)})
    if strides:
        each = enumerated([f"{n:,}" for n in strides], "or")
        found.append(f"Windows move on by {each} tokens, and as many are scored in each.")
    return [sentence for sentence in found if sentence]


def _tables(task: str, summary: Summary) -> list[Table]:
    """By length, and by each axis that has no plot, inside and beyond the trained window."""
    found = []
    for measure in MEASURES:
        items = measured(summary.of_task(task), measure)
        what = quantity(task, measure)
        axes = [names[-1] for names in views(items) if names]
        for axis in axes:
            if axis in PLACES:
                continue  # these have maps and lines
            names = (axis,) if axis == "n_tokens" else (axis, "where")
            of_table = items if axis == "n_tokens" else once(items)
            cells = aggregate(of_table, names) or aggregate(of_table, names[:1])
            by = "length" if axis == "n_tokens" else axis
            caption = f"{what[0].upper()}{what[1:]} by {by}, with 95% intervals"
            if len(of_table) < len(items):
                caption += ", at the longest length"
            keys = sorted({cell.axes for cell in cells}, key=axes_order)
            lookup = {(cell.subject, cell.setting, cell.axes): cell for cell in cells}
            found.append(_table(caption, by, keys, _columns(keys, summary), lookup, summary))
    return found


def _columns(keys: Sequence[Axes], summary: Summary) -> list[Column]:
    """Those of a table by length, or by another axis inside and beyond the window."""
    trained = {subject.n_ctx_train for subject in summary.subjects}
    columns: list[Column] = []
    was_inside = False
    for axes in keys:
        name, value = axes[-1]
        beyond = value == BEYOND
        if name == "n_tokens" and len(trained) == 1 and is_number(value):
            beyond = was_inside and float(value) > min(trained)
            was_inside = float(value) <= min(trained)
        columns.append(Column(axes_words(axes[:-1]), axis_words(name, value), beyond))
    return columns


def _table(
    caption: str,
    what: str,
    keys: Sequence[object],
    columns: Sequence[Column],
    cells: dict[tuple[Subject, str, Any], Cell],
    summary: Summary,
) -> Table:
    """A cell for each setting and key. Settings stand in rows; in columns, where the table would get wide.

    Args:
        caption: of the table.
        what: what the keys are.
        keys: of the cells, behind subject and setting.
        columns: one for each key.
        cells: what there is.
        summary: has the subjects and settings.
    """
    turned = len(keys) > max(len(summary.settings), COLUMNS_MIN) and len(summary.settings) <= COLUMNS_MAX
    blocks = []
    for subject in summary.subjects:
        found = [[cells.get((subject, setting, key)) for key in keys] for setting in summary.settings]
        if turned:
            rows = [
                Row(c.group or c.name, c.name if c.group else "", tuple(row))
                for c, row in zip(columns, zip(*found, strict=True), strict=True)
            ]
        else:
            rows = [Row(setting, "", tuple(row)) for setting, row in zip(summary.settings, found, strict=True)]
        shown = tuple(row for row in rows if any(cell is not None for cell in row.cells))
        if shown:
            blocks.append(Block(subject, shown))
    if turned:
        return Table(caption, what, tuple(Column("", setting) for setting in summary.settings), tuple(blocks))
    return Table(caption, "setting", tuple(columns), tuple(blocks))
