"""Maps of two axes, as PNG: length and depth, group size and neighbour window.

The colour scale is cividis (Nuñez, Anderton and Renslow 2018, doi:10.1371/journal.pone.0199239): its brightness grows
steadily, also in greyscale, and colour-blind people see nearly the same as others. Numbers stand in the cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from ..._extras import need
from ...groups import RULE, rule_share
from ...positions import n_ctx_reach
from ..cases import Axis
from .cells import Cell, Estimate, values
from .items import ACCURACY, LOG_PROB, is_number, pair_of
from .plots import Panel, has_beyond
from .theme import FAILED, INK, failed_patch, grid, percent, png, put_legend, short_length, themed, window_line

matplotlib = need("matplotlib", "eval")
_cm = need("matplotlib.cm", "eval")
_colors = need("matplotlib.colors", "eval")
_lines = need("matplotlib.lines", "eval")
_patches = need("matplotlib.patches", "eval")
_ticker = need("matplotlib.ticker", "eval")

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Plot
    from matplotlib.figure import Figure

__all__ = ["heat_maps", "sweep_maps"]

#: Dashes of the outlines for the ends of the authors' rule, in the order of ``RULE``.
RULE_DASHES: tuple[Any, ...] = ("-", (0, (2.2, 1.6)))


def heat_maps(title: str, panels: Sequence[Panel], quantity: str) -> bytes:
    """A map of length and depth for each panel, on one colour scale.

    Args:
        title: stands above all.
        panels: one for each setting; their cells have the axes ``n_tokens`` and ``depth``.
        quantity: what the numbers are.
    """
    everything = [cell for panel in panels for cell in panel.cells]
    lengths, depths = values(everything, "n_tokens"), values(everything, "depth")
    with themed():
        mappable, number = _scale(everything)
        width = max(2.3, 0.9 + 0.46 * len(lengths))
        n_columns = max(1, min(4, len(panels), int(13 / width)))
        height = 0.95 + 0.34 * len(depths)
        figure, plots, edges = grid([p.title for p in panels], n_columns, width, height, title)
        for panel, plot, (first, last) in zip(panels, plots, edges, strict=True):
            for cell in panel.cells:
                x, y = lengths.index(cell.axis("n_tokens")), depths.index(cell.axis("depth"))
                _draw(plot, x, y, cell, mappable, number)
            _category_axes(plot, [short_length(n) for n in lengths], [percent(d) for d in depths])
            _mark_window(plot, lengths, panel.n_ctx_train)
            plot.tick_params(labelleft=first)
            if first:
                plot.set_ylabel("depth")
            if last:
                plot.set_xlabel("length, tokens")
        _colour_bar(figure, mappable, plots, quantity)
        handles = [window_line()] if any(map(has_beyond, panels)) else []
        _put_notes(figure, handles, everything)
        return png(figure)


def sweep_maps(title: str, panels: Sequence[Panel], quantity: str) -> bytes:
    """A map of group size and neighbour window for each panel, with the pairs that the authors' rule recommends.

    Args:
        title: stands above all.
        panels: one for each length; the settings of their cells are pairs.
        quantity: what the numbers are.
    """
    everything = [cell for panel in panels for cell in panel.cells]
    pairs = [pair for cell in everything if (pair := pair_of(cell.setting)) is not None]
    sizes, windows = sorted({ga_n for ga_n, _ in pairs}), sorted({ga_w for _, ga_w in pairs})
    with themed():
        mappable, number = _scale(everything)
        width = max(2.7, 1.0 + 0.52 * len(windows))
        n_columns = max(1, min(3, len(panels), int(13 / width)))
        figure, plots, edges = grid([p.title for p in panels], n_columns, width, 1.0 + 0.4 * len(sizes), title)
        for panel, plot, (first, last) in zip(panels, plots, edges, strict=True):
            if any(cell.measure != ACCURACY for cell in panel.cells):
                mappable, number = _scale(panel.cells)  # lengths differ by more than pairs do
            for cell in panel.cells:
                pair = pair_of(cell.setting)
                if pair is not None:
                    _draw(plot, windows.index(pair[1]), sizes.index(pair[0]), cell, mappable, number)
            if panel.n_tokens and panel.n_ctx_train:
                _mark_rule(plot, sizes, windows, panel.n_ctx_train, panel.n_tokens)
                _mark_reach(plot, sizes, windows, panel.n_ctx_train, panel.n_tokens)
            _category_axes(plot, [f"{w:,}" for w in windows], [str(g) for g in sizes])
            plot.tick_params(labelleft=first, axis="y")
            plot.tick_params(axis="x", labelrotation=45 if len(windows) > 4 else 0)
            if first:
                plot.set_ylabel("group size G")
            if last:
                plot.set_xlabel("neighbour window W, tokens")
        if all(cell.measure == ACCURACY for cell in everything):
            _colour_bar(figure, mappable, plots, quantity)
        marks = [
            _lines.Line2D(
                [], [], color=INK, linestyle=dash, linewidth=2, label=f"W + (N - W) / G below {end} of the window"
            )
            for end, dash in zip(RULE, RULE_DASHES, strict=True)
        ]
        cross = _lines.Line2D([], [], color=INK, marker="x", linestyle="", label="does not reach the length")
        _put_notes(figure, [*marks, cross] if any(panel.n_tokens for panel in panels) else [], everything)
        return png(figure)


def _scale(cells: Sequence[Cell]) -> tuple[Any, Callable[[Estimate], str]]:
    """Colours, and the number that stands in a cell. Bright is good."""
    if all(cell.measure == ACCURACY for cell in cells):
        return _cm.ScalarMappable(_colors.Normalize(0, 1), "cividis"), lambda e: f"{100 * e.value:.0f}"
    found = [cell.estimate.value for cell in cells if cell.estimate is not None] or [1.0]
    if all(cell.measure == LOG_PROB for cell in cells):
        linear = _colors.Normalize(min(min(found), max(found) - 0.1), max(found))
        return _cm.ScalarMappable(linear, "cividis"), lambda e: f"{e.value:.2f}"
    norm = _colors.LogNorm(min(found), max(max(found), 1.1 * min(found)))  # what hardly differs looks so
    return _cm.ScalarMappable(norm, "cividis_r"), lambda e: f"{e.value:.4g}" if e.value < 10000 else f"{e.value:.0e}"


def _draw(plot: Plot, x: int, y: int, cell: Cell, mappable: Any, number: Callable[[Estimate], str]) -> None:
    """One cell, with its number."""
    box: dict[str, Any] = {"edgecolor": "white", "linewidth": 1}
    if cell.estimate is None:
        box = {"linewidth": 0, **FAILED}
    else:
        box["facecolor"] = mappable.to_rgba(cell.estimate.value)
        red, green, blue, _ = box["facecolor"]
        dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.48
        text = number(cell.estimate) + ("*" if cell.n_failed else "")
        plot.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    plot.add_patch(_patches.Rectangle((x - 0.5, y - 0.5), 1, 1, **box))


def _category_axes(plot: Plot, columns: Sequence[str], rows: Sequence[str]) -> None:
    plot.set_xlim(-0.5, len(columns) - 0.5)
    plot.set_ylim(len(rows) - 0.5, -0.5)
    plot.set_xticks(range(len(columns)), columns)
    plot.set_yticks(range(len(rows)), rows)
    plot.grid(visible=False)
    plot.tick_params(length=0)
    for spine in plot.spines.values():
        spine.set_visible(False)
    if max(map(len, columns)) > 4 and len(columns) > 4:
        plot.tick_params(axis="x", labelrotation=60)


def _mark_window(plot: Plot, lengths: Sequence[Axis], n_ctx_train: int) -> None:
    """A line behind the last length that lies inside the trained window."""
    inside = sum(is_number(n) and float(n) <= n_ctx_train for n in lengths)
    if n_ctx_train and 0 < inside < len(lengths):
        _outlined(plot, [inside - 0.5] * 2, [-0.5, plot.get_ylim()[0]], (0, (4, 2)))


def _mark_rule(plot: Plot, sizes: Sequence[int], windows: Sequence[int], n_ctx_train: int, n_tokens: int) -> None:
    """Outlines around the pairs that keep the authors' rule with each of its ends."""
    for inset, end, dash in zip((0.09, 0.03), RULE, RULE_DASHES, strict=True):
        inside = {
            (windows.index(w), sizes.index(g)) for g, w in recommended(sizes, windows, n_ctx_train, n_tokens, end)
        }
        for (x0, y0), (x1, y1) in outline(inside, inset):
            _outlined(plot, [x0, x1], [y0, y1], dash)


def recommended(
    sizes: Sequence[int], windows: Sequence[int], n_ctx_train: int, n_tokens: int, share: Fraction
) -> list[tuple[int, int]]:
    """The pairs that keep the authors' rule, with this share of the trained window, for a length."""
    return [(ga_n, ga_w) for ga_n in sizes for ga_w in windows if rule_share(n_ctx_train, ga_n, ga_w, n_tokens) < share]


def outline(cells: set[tuple[int, int]], inset: float) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The border of a set of unit squares around integer points, moved inwards, as pieces from corner to corner."""
    pieces = []
    for x, y in sorted(cells):
        for out_x, out_y in ((0, -1), (1, 0), (0, 1), (-1, 0)):
            if (x + out_x, y + out_y) in cells:
                continue
            ends = []
            for side in (-1, 1):
                along_x, along_y = side * abs(out_y), side * abs(out_x)
                length = 0.5
                if (x + along_x, y + along_y) not in cells:
                    length -= inset  # the border turns away from us here
                elif (x + along_x + out_x, y + along_y + out_y) in cells:
                    length += inset  # it turns outwards
                depth = 0.5 - inset
                ends.append((x + out_x * depth + along_x * length, y + out_y * depth + along_y * length))
            pieces.append((ends[0], ends[1]))
    return pieces


def _mark_reach(plot: Plot, sizes: Sequence[int], windows: Sequence[int], n_ctx_train: int, n_tokens: int) -> None:
    """A cross on each pair that does not reach the length."""
    for y, ga_n in enumerate(sizes):
        for x, ga_w in enumerate(windows):
            if ga_w >= n_ctx_train or n_ctx_reach(n_ctx_train, ga_n, ga_w) < n_tokens:
                plot.plot(x, y, marker="x", color=INK, markersize=7, markeredgewidth=1.6)


def _outlined(plot: Plot, x: Sequence[float], y: Sequence[float], dash: Any) -> None:
    """A black line on a white one, to be seen on every colour."""
    plot.plot(x, y, color="white", linewidth=3.6, solid_capstyle="projecting", zorder=3)
    plot.plot(x, y, color=INK, linewidth=1.8, linestyle=dash, solid_capstyle="projecting", zorder=3.1)


def _colour_bar(figure: Figure, mappable: Any, plots: Sequence[Plot], quantity: str) -> None:
    """Beside the panels, of a readable size however many these are."""
    n_rows = plots[0].get_subplotspec().get_gridspec().nrows  # type: ignore[union-attr]
    bar = figure.colorbar(
        mappable, ax=list(plots), aspect=18, pad=0.015, fraction=0.05, shrink=min(1.0, 2 / n_rows), anchor=(0.0, 1.0)
    )
    bar.set_label(quantity)
    bar.outline.set_visible(False)
    low, high = mappable.norm.vmin, mappable.norm.vmax
    if (low, high) == (0, 1):
        bar.ax.yaxis.set_major_formatter(_ticker.PercentFormatter(1.0))
    elif low > 0:
        ticks = [low * (high / low) ** (i / 4) for i in range(5)]
        bar.set_ticks(ticks, labels=[f"{tick:.3g}" for tick in ticks])
        bar.minorticks_off()


def _put_notes(figure: Figure, handles: Sequence[Any], cells: Sequence[Cell]) -> None:
    found = list(handles)
    if any(cell.estimate is None for cell in cells):
        found.append(failed_patch())
    if any(cell.estimate is not None and cell.n_failed for cell in cells):
        found.append(_lines.Line2D([], [], color=INK, marker="$*$", linestyle="", label="some cases failed"))
    if found:
        put_legend(figure, found)
