"""How plots look: colours, markers, fonts, small multiples, and the file of a figure.

Settings keep their colour, marker and dash on the page. The colours are those of Okabe and Ito ("Color universal
design", 2008), which colour-blind people tell apart; markers and dashes do so in greyscale.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..._extras import need
from .items import is_number
from .words import shortened

matplotlib = need("matplotlib", "eval")
_figure = need("matplotlib.figure", "eval")
_lines = need("matplotlib.lines", "eval")
_patches = need("matplotlib.patches", "eval")

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Plot
    from matplotlib.figure import Figure

__all__ = [
    "FAILED",
    "INK",
    "NAME_MAX",
    "QUIET",
    "STYLES_MAX",
    "Style",
    "failed_patch",
    "grid",
    "percent",
    "png",
    "put_legend",
    "short_length",
    "styles",
    "themed",
    "window_line",
]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A")
MARKERS = "sD^vPXh"
DASHES: tuple[Any, ...] = ("-", "-", "-", "-", (0, (5, 1.5)), (0, (5, 1.5)), (0, (5, 1.5)))

#: Settings in one plot, plain not counted.
STYLES_MAX = len(COLOURS)

INK, QUIET, GRID = "#222222", "#666666", "#E4E4E4"

THEME = {
    "axes.axisbelow": True,
    "axes.edgecolor": QUIET,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "grid.color": GRID,
    "hatch.color": "#8C8C8C",
    "hatch.linewidth": 0.8,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.parse_math": False,  # names of files may hold dollar signs
    "xtick.color": QUIET,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.color": QUIET,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8.5,
}

DPI = 144

#: Characters of a name in a plot, and of a title.
NAME_MAX, TITLE_MAX = 28, 110

#: A figure's least width and the height of a line of a title, in inches.
WIDTH_MIN, LINE = 4.6, 0.19

#: How a cell without numbers looks.
FAILED: dict[str, Any] = {"facecolor": "#D9D9D9", "edgecolor": "#8C8C8C", "hatch": "////"}


@dataclass(frozen=True)
class Style:
    """How a setting is drawn."""

    colour: str
    marker: str
    dash: Any


def styles(settings: Sequence[str]) -> dict[str, Style]:
    """A style for each setting; after ``STYLES_MAX`` they come again."""
    others = [setting for setting in settings if setting != "plain"]
    found = {
        setting: Style(COLOURS[i % STYLES_MAX], MARKERS[i % STYLES_MAX], DASHES[i % STYLES_MAX])
        for i, setting in enumerate(others)
    }
    return {"plain": Style("#000000", "o", (0, (1, 1.2))), **found}


@contextmanager
def themed() -> Iterator[None]:
    """matplotlib with our settings, whatever the user's are."""
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box stands for it
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(THEME)
        yield


def png(figure: Figure) -> bytes:
    """The file of a figure, without date and version."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None}, pil_kwargs={"optimize": True})
    return out.getvalue()


def grid(
    titles: Sequence[str], n_columns: int, width: float, height: float, title: str = "", *, share_y: bool = True
) -> tuple[Figure, list[Plot], list[tuple[bool, bool]]]:
    """A figure with a panel of a size in inches for each title, in rows of up to ``n_columns``.

    Returns:
        The figure, its panels, and for each whether it stands in the first column and whether nothing is below it.
    """
    n = len(titles)
    n_rows = -(-n // n_columns)
    n_columns = -(-n // n_rows)  # rows of about the same length
    width = max(width, WIDTH_MIN / n_columns)
    titles = [textwrap.fill(shortened(text, TITLE_MAX), int(width * 11)) for text in titles]
    title = textwrap.fill(shortened(title, TITLE_MAX), int(n_columns * width * 11))
    height += LINE * max(text.count("\n") for text in titles)
    above = LINE * (1.5 + title.count("\n")) if title else 0.0
    figure = _figure.Figure(figsize=(n_columns * width, n_rows * height + above), layout="constrained")
    plots = figure.subplots(n_rows, n_columns, squeeze=False, sharey="all" if share_y else False).ravel()
    for plot in plots[n:]:
        plot.remove()
    for plot, text in zip(plots, titles, strict=False):
        plot.set_title(text)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure, list(plots[:n]), [(i % n_columns == 0, i + n_columns >= n) for i in range(n)]


def short_length(n_tokens: int | float | str) -> str:
    """``4k`` for 4,096, otherwise all digits."""
    if not is_number(n_tokens):
        return str(n_tokens)
    number = float(n_tokens)
    if number >= 1024 and number % 1024 == 0:
        return f"{int(number) // 1024}k"
    return f"{number:,.6g}" if number % 1 else f"{int(number):,}"


def percent(share: int | float | str) -> str:
    """``25%`` for 0.25."""
    return f"{100 * float(share):.4g}%" if is_number(share) else str(share)


def window_line() -> Any:
    """The legend's entry for the trained window."""
    return _lines.Line2D([], [], color=INK, linewidth=1.2, linestyle=(0, (4, 2)), label="end of the trained window")


def failed_patch() -> Any:
    """The legend's entry for a cell without numbers."""
    return _patches.Patch(label="all cases failed", linewidth=0, **FAILED)


def put_legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Below the panels, in as many columns as fit."""
    widths = [0.9 + 0.078 * len(str(handle.get_label())) for handle in handles]  # inches, about

    def width(n_columns: int) -> float:
        n_rows = -(-len(widths) // n_columns)
        return sum(max(widths[i : i + n_rows]) for i in range(0, len(widths), n_rows))

    n_columns = next((n for n in range(len(handles), 1, -1) if width(n) <= figure.get_figwidth()), 1)
    n_rows = -(-len(handles) // n_columns)
    n_columns = -(-len(handles) // n_rows)
    figure.legend(handles=handles, loc="outside lower center", ncols=n_columns, handlelength=2.6)
