"""Which plots a task's results allow, with captions and descriptions. What a plot needs is axes, not a task's name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from .cells import Cell, aggregate, values
from .items import (
    ACCURACY,
    BEYOND,
    LOG_PROB,
    MEASURES,
    PERPLEXITY,
    PLAIN,
    Item,
    Subject,
    is_number,
    measured,
    pair_of,
    setting_order,
)
from .maps import heat_maps, sweep_maps
from .plots import CLOSE, Panel, bars, lines
from .texts import quantity, task_text
from .theme import STYLES_MAX, styles
from .words import axes_words, axis_words, number

__all__ = ["Picture", "is_grid", "pictures"]

#: Panels in one figure of lines.
PANELS_MAX = 6

#: Figures of one kind that are open on the page; the rest unfolds.
OPEN_MAX = 2

#: A figure with more panels unfolds as well.
OPEN_PANELS_MAX = 12

#: Notes on failures below one figure.
NOTES_MAX = 6


@dataclass(frozen=True)
class Picture:
    """A plot with its words."""

    name: str
    """Of its file."""

    title: str
    """What it is about, and what it unfolds from."""

    caption: str
    alt: str
    """What it shows, for those who do not see it."""

    notes: tuple[str, ...]
    """What failed in it, and why."""

    folded: bool
    """Whether it unfolds on demand."""

    data: bytes = field(repr=False)
    """The PNG."""


def pictures(items: Sequence[Item], names: dict[Subject, str], settings: Sequence[str], prefix: str) -> list[Picture]:
    """All plots of one task, accuracies first.

    Args:
        items: of the task.
        names: of the subjects.
        settings: all of the page, in its order: they keep their colours, as long as there are enough.
        prefix: of the names of files.
    """
    found = []
    for measure in MEASURES:
        of_measure = measured(items, measure)
        if of_measure:
            found += _Pictures(of_measure, names, settings, prefix).all()
    return found


class _Pictures:
    """The plots of one task and measure."""

    def __init__(self, items: Sequence[Item], names: dict[Subject, str], settings: Sequence[str], prefix: str) -> None:
        self.items, self.names, self.prefix = items, names, prefix
        self.task, self.measure = items[0].task, items[0].measure
        self.text = task_text(self.task)
        self.quantity = quantity(self.task, self.measure)
        self.settings = sorted({item.setting for item in items}, key=setting_order)
        self.subjects = list(dict.fromkeys(item.subject for item in items))
        self.style = styles(settings if len(settings) <= STYLES_MAX else self.settings)
        self.has_length = any("n_tokens" in item.axes for item in items)

    def all(self) -> list[Picture]:
        found = [
            *self._sweeps(),
            *self._over_length(),
            *(self._heat_maps() if self.has_length else self._over("depth", "depth (0% beginning, 100% end)")),
            *self._over("place", "place of the pair that is asked for (0% first, 100% last)"),
            *self._bars(),
        ]
        return found or self._by_setting()

    def _over_length(self) -> list[Picture]:
        cells = [cell for cell in aggregate(self._with("n_tokens"), ("n_tokens",)) if float(cell.axis("n_tokens")) > 0]
        if len(values(cells, "n_tokens")) < 2:
            return []
        charts = []
        for first in range(0, len(self.subjects), PANELS_MAX):
            for settings in self._chunks():
                panels = []
                for subject in self.subjects[first : first + PANELS_MAX]:
                    of_panel = [cell for cell in cells if cell.subject == subject and cell.setting in settings]
                    if of_panel:
                        panels += self._panels(of_panel, subject)
                if panels:
                    charts.append((self.text.title, panels))
        caption = (
            ", with 95% intervals. Points stand a little beside their length, so that they do not hide each other. "
            + self._window("shaded side lies beyond")
        )
        if any(panel.close_up for _, panels in charts for panel in panels):
            caption += " Close up: the lowest values alone, without intervals."
        x_label = "length in tokens (k = 1,024)"
        return self._pictures(
            "length", "over the length of the prompt", caption, charts,
            lambda title, panels: lines(title, panels, "n_tokens", self.style, self.quantity, x_label),
        )  # fmt: skip

    def _panels(self, cells: Sequence[Cell], subject: Subject) -> list[Panel]:
        """The panel of a model; where some perplexities are far above others, a close-up as well."""
        panel = Panel(self.names[subject], cells, subject.n_ctx_train)
        found = [cell.estimate.value for cell in cells if cell.estimate is not None]
        if self.measure != PERPLEXITY or not found or max(found) <= 2 * CLOSE * min(found):
            return [panel]
        return [panel, replace(panel, title=f"{panel.title}, close up", close_up=True)]

    def _heat_maps(self) -> list[Picture]:
        cells = aggregate(self._with("n_tokens", "depth"), ("n_tokens", "depth"))
        charts = []
        for subject in self._subjects(cells):
            panels = [
                Panel(setting, found, subject.n_ctx_train)
                for setting in self.settings
                if (found := [cell for cell in cells if cell.subject == subject and cell.setting == setting])
            ]
            charts.append((f"{self.text.title}: {self.names[subject]}", panels))
        what = "by length and depth"
        caption = " (top: at the beginning of the text), one map for each setting; bright is good. " + self._window(
            "dashed line is the end of"
        )
        return self._pictures(
            "map", what, caption, charts, lambda title, panels: heat_maps(title, panels, self.quantity)
        )

    def _over(self, axis: str, x_label: str) -> list[Picture]:
        """Lines over an axis from 0 to 1, a panel for each length."""
        return self._pictures(
            axis, f"by {x_label}", ", with 95% intervals.", self._by_length(axis, self._chunks()),
            lambda title, panels: lines(title, panels, axis, self.style, self.quantity, x_label),
        )  # fmt: skip

    def _bars(self) -> list[Picture]:
        if len({item.axes["subtask"] for item in self.items if "subtask" in item.axes}) < 2:
            return []
        return self._pictures(
            "subtasks", "by subtask", ", with 95% intervals.", self._by_length("subtask", self._chunks()),
            lambda title, panels: bars(title, panels, "subtask", self.style, self.quantity),
        )  # fmt: skip

    def _by_length(self, axis: str, chunks: Sequence[Collection[str]]) -> list[tuple[str, list[Panel]]]:
        """A chart for each subject and chunk of settings, a panel for each length."""
        items = [item for item in self.items if axis in item.axes] if axis == "subtask" else self._with(axis)
        cells = aggregate(items, ("n_tokens", axis) if self.has_length else (axis,))
        charts = []
        for subject in self._subjects(cells):
            for chunk in chunks:
                of_chart = [cell for cell in cells if cell.subject == subject and cell.setting in chunk]
                panels = [Panel("", of_chart)]
                if self.has_length:
                    panels = [
                        Panel(axis_words("n_tokens", n), [cell for cell in of_chart if cell.axis("n_tokens") == n])
                        for n in values(of_chart, "n_tokens")
                    ]
                if of_chart:
                    charts.append((f"{self.text.title}: {self.names[subject]}", panels))
        return charts

    def _sweeps(self) -> list[Picture]:
        charts = []
        for subject in self.subjects:
            items = [item for item in self.items if item.subject == subject and pair_of(item.setting) is not None]
            if not is_grid({pair for item in items if (pair := pair_of(item.setting)) is not None}):
                continue
            panels = [Panel("all cases", aggregate(items, ()), subject.n_ctx_train)]
            if self.has_length:
                cells = aggregate(items, ("n_tokens",))
                panels = []
                for n in values(cells, "n_tokens"):
                    of_length = [cell for cell in cells if cell.axis("n_tokens") == n]
                    panels.append(
                        Panel(axis_words("n_tokens", n), of_length, subject.n_ctx_train, n if isinstance(n, int) else 0)
                    )
            charts.append((f"{self.text.title}: {self.names[subject]}", panels))
        caption = (
            "; bright is good. N is the length of the prompt. The outlines hold the pairs that the SelfExtend authors' "
            "rule recommends for it: W + (N - W) / G below a half (cautious) to two thirds of the trained window."
        )
        if self.measure != ACCURACY:
            caption += " Each length has a scale of colours of its own."
        what = "by group size G and neighbour window W"
        return self._pictures(
            "sweep", what, caption, charts, lambda title, panels: sweep_maps(title, panels, self.quantity)
        )

    def _by_setting(self) -> list[Picture]:
        """Where there is nothing else to compare than settings."""
        cells = [replace(cell, axes=(("all", self.text.title),)) for cell in aggregate(self.items, ())]
        charts = [
            (self.names[subject], [Panel("", [c for c in cells if c.subject == subject and c.setting in chunk])])
            for subject in self._subjects(cells)
            for chunk in self._chunks()
        ]
        return self._pictures(
            "settings", "over all cases", ", with 95% intervals.", charts,
            lambda title, panels: bars(title, panels, "all", self.style, self.quantity),
        )  # fmt: skip

    def _pictures(
        self,
        kind: str,
        what: str,
        caption: str,
        charts: Sequence[tuple[str, list[Panel]]],
        draw: Callable[[str, list[Panel]], bytes],
    ) -> list[Picture]:
        """The pictures of one kind; the name of the quantity, ``what`` and ``caption`` make the caption."""
        parts = [self.prefix, kind]
        if self.measure == LOG_PROB:
            parts.append("log-prob")
            caption += " In nats, the mean over the answer's tokens; higher is better."
        elif self.measure == PERPLEXITY and self.task != "ppl":
            parts.append("perplexity")
        found = []
        for i, (title, panels) in enumerate(charts):
            if len(panels) == 1 and panels[0].title:
                title, panels = f"{title}: {panels[0].title}", [replace(panels[0], title="")]
            cells = [cell for panel in panels for cell in panel.cells]
            settings = list(dict.fromkeys(cell.setting for cell in cells))
            found.append(
                Picture(
                    name="-".join(parts) + (f"-{i + 1}" if len(charts) > 1 else "") + ".png",
                    title=f"{title}, {what} ({', '.join(settings)})",
                    caption=f"{self._name()} {what}{caption}",
                    alt=f"{title}. {self._name()} {what}. Values shown: {_ranges(cells)}.",
                    notes=_notes(cells),
                    folded=i >= OPEN_MAX or len(panels) > OPEN_PANELS_MAX,
                    data=draw(title, panels),
                )
            )
        return found

    def _with(self, *axes: str) -> list[Item]:
        """Items that have a number on each of these axes."""
        return [item for item in self.items if all(is_number(item.axes.get(axis)) for axis in axes)]

    def _subjects(self, cells: Collection[Cell]) -> list[Subject]:
        return [subject for subject in self.subjects if any(cell.subject == subject for cell in cells)]

    def _chunks(self) -> list[list[str]]:
        """Settings in groups whose styles differ, plain in each."""
        others = [setting for setting in self.settings if setting != PLAIN]
        plain = [PLAIN] if PLAIN in self.settings else []
        return [plain + others[i : i + STYLES_MAX] for i in range(0, max(1, len(others)), STYLES_MAX)]

    def _name(self) -> str:
        return self.quantity[0].upper() + self.quantity[1:]

    def _window(self, mark: str) -> str:
        beyond = [item.subject for item in self.items if item.axes.get("where") == BEYOND]
        trained = sorted({subject.n_ctx_train for subject in beyond})
        if not trained:
            return ""
        return f"The {mark} the trained window ({' or '.join(f'{n:,}' for n in trained)} tokens)."


def is_grid(pairs: Collection[tuple[int, int]]) -> bool:
    """Whether two group sizes come with the same two windows."""
    windows: dict[int, set[int]] = {}
    for ga_n, ga_w in pairs:
        windows.setdefault(ga_n, set()).add(ga_w)
    return any(len(a & b) >= 2 for a, b in itertools.combinations(windows.values(), 2))


def _ranges(cells: Sequence[Cell]) -> str:
    """The lowest and highest value of each setting."""
    found = []
    for setting in dict.fromkeys(cell.setting for cell in cells):
        shown = [e.value for cell in cells if cell.setting == setting and (e := cell.estimate) is not None]
        if not shown:
            found.append(f"{setting} failed")
            continue
        low, high = (number(value, cells[0].measure) for value in (min(shown), max(shown)))
        found.append(f"{setting} {low}" if low == high else f"{setting} {low} to {high}")
    return ", ".join(found)


def _notes(cells: Sequence[Cell]) -> tuple[str, ...]:
    """What failed: each setting and reason once, with the places."""
    found: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        where = axes_words(tuple((name, value) for name, value in cell.axes if name != "all"))
        for error in cell.errors:
            found.setdefault((cell.setting, error), []).append(where)
    notes = []
    for (setting, error), places in found.items():
        places = [place for place in dict.fromkeys(places) if place]
        shown = "; ".join(places[:4]) + (f"; and {len(places) - 4} more" if len(places) > 4 else "")
        notes.append(f"{setting}{f' at {shown}' if shown else ''}: {error}")
    if len(notes) > NOTES_MAX:
        notes[NOTES_MAX:] = [f"{len(notes) - NOTES_MAX} more, see the failures below"]
    return tuple(notes)
