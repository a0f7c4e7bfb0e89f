"""Draws log probability and perplexity over length, a line for each group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .._extras import need
from ..errors import EvalError
from ..figure_file import check_figure, write_figure
from ..terminal import printable
from .choice import Cell, Choice
from .document import Document

__all__ = ["check_plot", "save_plot"]


def check_plot(path: Path) -> None:
    """Find out before anything is measured whether a plot can be made.

    Raises:
        MissingExtraError: matplotlib is missing.
        EvalError: it draws no files of that name.
    """
    check_figure(path, "eval", EvalError)


def save_plot(choices: Sequence[Choice], document: Document, path: Path) -> None:
    """Write a figure. Rings are what is chosen, bars the 95% intervals.

    Raises:
        MissingExtraError: matplotlib is missing.
        EvalError: the file cannot be written.
    """
    need("matplotlib", "eval")
    from ..eval.report.theme import INK, grid, put_legend, short_length, styles, themed, window_line

    names = {
        ga_n: "plain" if ga_n == 1 else f"group {ga_n}" for ga_n in sorted({c.ga_n for e in choices for c in e.cells})
    }
    looks = styles(list(names.values()))
    lengths = [choice.n_tokens for choice in choices]
    title = printable(f"{document.model}, neighbour window {document.ga_w}", lines=False)
    with themed():
        figure, (left, right), _ = grid(
            ["Log probability of the right key", "Perplexity"], 2, 4.6, 3.4, title, share_y=False
        )
        handles: list[Any] = []
        for ga_n, name in names.items():
            cells = [cell for choice in choices for cell in choice.cells if cell.ga_n == ga_n]
            look = looks[name]
            style = {"color": look.colour, "marker": look.marker, "linestyle": look.dash, "markersize": 4.5}
            at = [cell.n_tokens for cell in cells]
            means = [cell.log_p for cell in cells]
            spread = [[m.value - m.low for m in means], [m.high - m.value for m in means]]
            handles.append(left.errorbar(at, [m.value for m in means], spread, capsize=2.5, label=name, **style))
            right.plot(at, [cell.perplexity for cell in cells], label=name, **style)
        rings: list[tuple[Any, Callable[[Cell], float]]] = [
            (left, lambda cell: cell.log_p.value), (right, lambda cell: cell.perplexity)
        ]  # fmt: skip
        for axis, value in rings:
            ring = axis.plot(
                lengths, [value(choice.chosen) for choice in choices], "o", markersize=11, markerfacecolor="none",
                markeredgecolor=INK, linestyle="", label="chosen",
            )[0]  # fmt: skip
            axis.axvline(document.n_ctx_train, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
            axis.set_xticks(lengths, [short_length(length) for length in lengths])
            axis.set_xlabel("tokens")
        left.set_ylabel("nats, mean and 95% interval")
        right.set_yscale("log")
        right.yaxis.set_major_formatter("{x:g}")
        right.yaxis.set_minor_formatter("{x:g}")
        put_legend(figure, [*handles, ring, window_line()])
        write_figure(figure, path, 144, EvalError)
