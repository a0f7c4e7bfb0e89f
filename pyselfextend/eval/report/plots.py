"""Lines and bars, as PNG. Each function takes cells and returns the bytes of a file."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..._extras import need
from .cells import Cell, values
from .items import ACCURACY, LOG_PROB, PERPLEXITY, is_number
from .theme import FAILED, INK, NAME_MAX, QUIET, Style, failed_patch, grid, png, put_legend, short_length, themed
from .words import shortened

_lines = need("matplotlib.lines", "eval")
_patches = need("matplotlib.patches", "eval")
_ticker = need("matplotlib.ticker", "eval")

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Plot
    from matplotlib.figure import Figure

__all__ = ["CLOSE", "Panel", "bars", "lines"]


#: A close-up shows values up to this multiple of the lowest one.
CLOSE = 1.6

BEYOND_COLOUR = "#EDF0F4"


@dataclass(frozen=True)
class Panel:
    """One of the small multiples of a figure."""

    title: str
    cells: Sequence[Cell]
    n_ctx_train: int = 0
    """Where the trained window is marked; 0 is nowhere."""

    n_tokens: int = 0
    """The length of all prompts in it; 0 is unknown."""

    close_up: bool = False
    """Whether it leaves out what is far above the lowest values, and the intervals."""


def has_beyond(panel: Panel) -> bool:
    """Whether something in it is longer than the trained window."""
    lengths = [float(cell.axis("n_tokens")) for cell in panel.cells if is_number(dict(cell.axes).get("n_tokens"))]
    return 0 < panel.n_ctx_train < max(lengths, default=0.0)


def lines(
    title: str, panels: Sequence[Panel], axis: str, style: dict[str, Style], quantity: str, x_label: str
) -> bytes:
    """A line for each setting over ``axis``, with 95% intervals.

    Lengths stand on a logarithmic axis. A cross at the lower edge is a cell in which all cases failed.
    """
    lengths = axis == "n_tokens"
    measures = {cell.measure for panel in panels for cell in panel.cells}
    perplexity = PERPLEXITY in measures
    with themed():
        n_columns = 1 if len(panels) == 1 else 2 if len(panels) < 5 else 3
        size = (6.6, 3.9) if n_columns == 1 else (4.6, 3.3)
        figure, plots, edges = grid([p.title for p in panels], n_columns, *size, title, share_y=not perplexity)
        failed = False
        for panel, plot, (first, last) in zip(panels, plots, edges, strict=True):
            settings = list(dict.fromkeys(cell.setting for cell in panel.cells))
            for i, setting in enumerate(settings):
                shift = i - (len(settings) - 1) / 2
                of_setting = [cell for cell in panel.cells if cell.setting == setting]
                failed |= _line(
                    plot, of_setting, axis, style[setting], 0.0 if panel.close_up else shift, panel.close_up
                )
            _scale(plot, [float(x) for x in values(panel.cells, axis)], lengths)
            if lengths and has_beyond(panel):
                right = plot.get_xlim()[1]
                plot.axvspan(panel.n_ctx_train, right, facecolor=BEYOND_COLOUR, edgecolor="none", zorder=0)
            if first:
                plot.set_ylabel(quantity)
            if last:
                plot.set_xlabel(x_label)
        if perplexity:
            for close_up in (False, True):
                of_kind = [i for i, panel in enumerate(panels) if panel.close_up == close_up]
                cells = [cell for i in of_kind for cell in panels[i].cells]
                _perplexity_axis([plots[i] for i in of_kind], cells, close_up)
        elif LOG_PROB in measures:
            plots[0].set_ylim(_log_prob_limits([cell for panel in panels for cell in panel.cells]))
        else:
            plots[0].set_ylim(-0.04, 1.04)
            plots[0].yaxis.set_major_formatter(_ticker.PercentFormatter(1.0))
        _legend(figure, panels, style, failed, lengths and any(map(has_beyond, panels)))
        return png(figure)


def bars(title: str, panels: Sequence[Panel], axis: str, style: dict[str, Style], quantity: str) -> bytes:
    """Horizontal bars for each value of ``axis``, one per setting, with 95% intervals."""
    everything = [cell for panel in panels for cell in panel.cells]
    groups = values(everything, axis)
    settings = [setting for setting in style if any(cell.setting == setting for cell in everything)]
    is_share = all(cell.measure == ACCURACY for cell in everything)
    thickness = 0.8 / len(settings)
    with themed():
        n_columns = 2 if len(panels) == 4 else min(3, len(panels))
        height = 0.9 + len(groups) * max(0.34, 0.12 * len(settings) + 0.14)
        figure, plots, edges = grid([p.title for p in panels], n_columns, (6.6, 4.4, 3.4)[n_columns - 1], height, title)
        failed = False
        for panel, plot, (_, last) in zip(panels, plots, edges, strict=True):
            for cell in panel.cells:
                i, j = groups.index(cell.axis(axis)), settings.index(cell.setting)
                y = i - 0.4 + (j + 0.5) * thickness
                failed |= _bar(plot, cell, y, thickness * 0.86, style[cell.setting].colour)
            plot.grid(visible=False, axis="y")
            plot.tick_params(axis="y", length=0)
            if last:
                plot.set_xlabel(quantity)
            if is_share:
                plot.set_xlim(0, 1)
                plot.xaxis.set_major_formatter(_ticker.PercentFormatter(1.0))
            elif all(cell.measure == LOG_PROB for cell in everything):
                plot.set_xlim(_log_prob_limits(everything)[0], 0)
        plots[0].set_yticks(range(len(groups)), [shortened(str(group), NAME_MAX) for group in groups])
        plots[0].set_ylim(len(groups) - 0.5, -0.5)
        handles = [_patches.Patch(facecolor=style[s].colour, label=shortened(s, NAME_MAX)) for s in settings]
        put_legend(figure, handles + ([failed_patch()] if failed else []))
        return png(figure)


def _line(plot: Plot, cells: Sequence[Cell], axis: str, style: Style, shift: float, bare: bool) -> bool:
    """Draw one setting, moved sideways a little so that intervals do not hide each other. True: a cell failed."""

    def place(cell: Cell) -> float:
        x = float(cell.axis(axis))
        return x * 1.012**shift if axis == "n_tokens" else x + 0.006 * shift

    found = [(place(cell), cell.estimate) for cell in cells if cell.estimate is not None]
    x = [at for at, _ in found]
    y = [e.value for _, e in found]
    below = [math.nan if e.low is None else max(0.0, e.value - e.low) for _, e in found]
    above = [math.nan if e.high is None else max(0.0, e.high - e.value) for _, e in found]
    plot.errorbar(
        x, y, yerr=None if bare else (below, above), color=style.colour, marker=style.marker, linestyle=style.dash,
        markersize=5.2, linewidth=1.7, elinewidth=1.0, capsize=2.2, markeredgecolor="white", markeredgewidth=0.6,
    )  # fmt: skip
    failed = [place(cell) for cell in cells if cell.estimate is None]
    if failed:
        plot.plot(
            failed, [0.0] * len(failed), transform=plot.get_xaxis_transform(), color=style.colour, marker="x",
            linestyle="", markersize=7, markeredgewidth=2, clip_on=False, zorder=5,
        )  # fmt: skip
    return bool(failed)


def _scale(plot: Plot, x: list[float], lengths: bool) -> None:
    """Ticks where there are measurements."""
    if not lengths:
        if all(0 <= at <= 1 for at in x):
            plot.set_xlim(-0.03, 1.03)
        plot.xaxis.set_major_formatter(_ticker.PercentFormatter(1.0))
        return
    plot.set_xscale("log", base=2)
    plot.set_xlim(min(x) / 1.12, max(x) * 1.12)
    labels = [short_length(at) for at in x]
    inches = (5.6 if len(plot.figure.axes) == 1 else 3.6) / math.log2(max(x) / min(x) * 1.25)
    labelled = itertools.pairwise(zip(x, labels, strict=True))
    crowded = any(math.log2(b / a) * inches < 0.04 * len(one + two) + 0.06 for (a, one), (b, two) in labelled)
    plot.xaxis.set_major_locator(_ticker.FixedLocator(x))
    plot.xaxis.set_major_formatter(_ticker.FixedFormatter(labels))
    plot.xaxis.set_minor_locator(_ticker.NullLocator())
    if crowded:
        plot.tick_params(axis="x", labelrotation=60)


def _perplexity_axis(plots: Sequence[Plot], cells: Sequence[Cell], close_up: bool) -> None:
    """The same for all, with room for the values; intervals may end outside. Logarithmic where values are far apart."""
    found = [cell.estimate for cell in cells if cell.estimate is not None]
    if not found:
        return
    low, high = min(e.value for e in found), max(e.value for e in found)
    if close_up:
        high = max(e.value for e in found if e.value <= CLOSE * low)
    else:
        low = max(low / 1.5, min([low, *(e.low for e in found if e.low is not None)]))
        high = min(high * 1.5, max([high, *(e.high for e in found if e.high is not None)]))
    for plot in plots:
        if high / low > 4:
            plot.set_yscale("log")
            plot.set_ylim(low / 1.1, high * 1.1)
            plot.yaxis.set_major_locator(_ticker.LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
            plot.yaxis.set_minor_locator(_ticker.NullLocator())
        else:
            margin = 0.08 * (high - low) or 0.05 * high
            plot.set_ylim(low - margin, high + margin)
        plot.yaxis.set_major_formatter(_ticker.FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _log_prob_limits(cells: Sequence[Cell]) -> tuple[float, float]:
    """Of an axis with room for the values, up to 0 at the most; intervals may end outside."""
    found = [cell.estimate for cell in cells if cell.estimate is not None]
    low, high = min((e.value for e in found), default=-1.0), max((e.value for e in found), default=0.0)
    room = 0.5 * (high - low) or 0.1
    low = max(low - room, min([low, *(e.low for e in found if e.low is not None)]))
    high = min(high + room, max([high, *(e.high for e in found if e.high is not None)]), 0.0)
    margin = 0.06 * (high - low) or 0.1
    return low - margin, high + margin


def _bar(plot: Plot, cell: Cell, y: float, height: float, colour: str) -> bool:
    estimate = cell.estimate
    if estimate is None:
        plot.barh(
            y,
            0.04,
            height=height,
            transform=plot.get_yaxis_transform(),
            **FAILED,
        )
        return True
    plot.barh(y, estimate.value, height=height, facecolor=colour, edgecolor=colour, linewidth=0.8)  # 0 is seen as well
    if estimate.low is not None and estimate.high is not None:
        plot.plot([estimate.low, estimate.high], [y, y], color="white", linewidth=2.4)
        plot.plot([estimate.low, estimate.high], [y, y], color=INK, linewidth=1.0)
    return False


def _legend(figure: Figure, panels: Sequence[Panel], style: dict[str, Style], failed: bool, with_window: bool) -> None:
    used = {cell.setting for panel in panels for cell in panel.cells}
    handles: list[Any] = []
    for setting, s in style.items():
        if setting in used:
            name = shortened(setting, NAME_MAX)
            look = {"color": s.colour, "marker": s.marker, "linestyle": s.dash, "markeredgecolor": "white"}
            handles.append(_lines.Line2D([], [], label=name, **look))
    if with_window:
        handles.append(_patches.Patch(facecolor=BEYOND_COLOUR, label="beyond the trained window"))
    if failed:
        handles.append(_lines.Line2D([], [], color=QUIET, marker="x", linestyle="", label="all cases failed"))
    put_legend(figure, handles)
