"""Draws tokens per second over depth."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

from .._extras import need
from ..errors import BenchError
from ..figure_file import check_figure, write_figure
from ..terminal import printable
from .records import Results
from .summary import Row, summarize

__all__ = ["check_plot", "save_plot"]

TITLES = {"prefill": "Prefill", "decode": "Decode"}
STOCK = "stock, flash on or off, the faster one"

STOCK_STYLE: dict[str, Any] = {"color": "black", "marker": "o", "linestyle": "-"}

#: Told apart in grey as well: by lightness, marker and dashes.
STYLES: list[dict[str, Any]] = [
    {"color": "#e69f00", "marker": "s", "linestyle": "-"},
    {"color": "#0072b2", "marker": "^", "linestyle": "--"},
    {"color": "#56b4e9", "marker": "D", "linestyle": "-."},
    {"color": "#d55e00", "marker": "v", "linestyle": ":"},
    {"color": "#cc79a7", "marker": "P", "linestyle": (0, (5, 1))},
    {"color": "#009e73", "marker": "X", "linestyle": (0, (3, 1, 1, 1))},
]


def check_plot(path: Path) -> None:
    """Find out before anything is measured whether a plot can be made.

    Raises:
        MissingExtraError: matplotlib is missing.
        BenchError: it draws no files of that name.
    """
    check_figure(path, "bench", BenchError)


def save_plot(results: Results, path: Path) -> None:
    """Write a figure: prefill and decode side by side, a row for each cache type and number of threads. Points are
    medians, bars the quartiles.

    Raises:
        MissingExtraError: matplotlib is missing.
        BenchError: nothing was measured, or the file cannot be written.
    """
    figure_class = need("matplotlib.figure", "bench").Figure
    rows = summarize(results.records)
    if not rows:
        raise BenchError("nothing was measured that could be drawn")
    panels = list(dict.fromkeys((row.configuration.cache, row.threads) for row in rows))
    figure = figure_class(figsize=(11, 1.2 + 4.1 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 2, squeeze=False)
    styles = _styles(rows)
    for pair, (cache, threads) in zip(axes, panels, strict=True):
        for axis, (phase, title) in zip(pair, TITLES.items(), strict=True):
            some = [row for row in rows if (row.configuration.cache, row.threads, row.phase) == (cache, threads, phase)]
            _draw(axis, some, styles)
            if some:
                axis.set_title(f"{title}, {some[0].n_tokens} tokens ({_count(threads, 'thread')}, {cache} cache)")
    handles = [axis.get_legend_handles_labels() for axis in axes.flat]
    found = {label: handle for lines, labels in handles for handle, label in zip(lines, labels, strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=3, fontsize="small")
    machine = results.machine
    title = printable(f"{results.plan.model.name}, {machine.cpu}, {machine.date[:10]}", lines=False)
    figure.suptitle(title, fontsize="medium", parse_math=False)
    write_figure(figure, path, 150, BenchError)


def _label(row: Row) -> str:
    """The line that a row belongs to; empty for a stock build that is not the faster one."""
    if row.configuration.is_stock:
        return STOCK if row.configuration == row.baseline else ""
    return row.configuration.name


def _styles(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """How each line looks, in all panels."""
    labels = dict.fromkeys(_label(row) for row in rows if not row.configuration.is_stock)
    return {STOCK: STOCK_STYLE, **dict(zip(labels, cycle(STYLES), strict=False))}


def _draw(axis: Any, rows: list[Row], styles: dict[str, dict[str, Any]]) -> None:
    """Lines of one panel."""
    for label, style in styles.items():
        points = [row for row in rows if _label(row) == label]
        if not points:
            continue
        medians = [row.speed.median for row in points]
        spread = [
            [row.speed.median - row.speed.low for row in points],
            [row.speed.high - row.speed.median for row in points],
        ]
        axis.errorbar([row.depth for row in points], medians, spread, label=label, capsize=3, markersize=5, **style)
    axis.set_yscale("log")  # equal ratios are equal distances
    low, high = axis.get_ylim()
    axis.set_ylim(low / 1.3, high * 1.3)
    axis.yaxis.set_major_locator(need("matplotlib.ticker", "bench").LogLocator(subs=(1, 2, 3, 5, 7)))
    axis.yaxis.set_major_formatter("{x:,g}")
    axis.yaxis.set_minor_locator(need("matplotlib.ticker", "bench").NullLocator())
    axis.set_xlabel("depth (tokens in the cache)")
    axis.set_ylabel("tokens/s (median, quartiles)")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.grid(alpha=0.3)


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
