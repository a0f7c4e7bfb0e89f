"""Numbers and names as they stand on the page. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..cases import Axis
from .cells import Estimate
from .items import BEYOND, INSIDE, LOG_PROB, PERPLEXITY, Axes, is_number

__all__ = [
    "axes_words",
    "axis_words",
    "count",
    "duration",
    "enumerated",
    "interval",
    "moment",
    "number",
    "p_value",
]


def number(value: float | None, measure: str) -> str:
    """An accuracy, a log probability or a perplexity."""
    if value is None:
        return ""
    if measure == LOG_PROB:
        return f"{value:.3f}"
    if measure == PERPLEXITY:
        return f"{value:.4g}" if value < 1000 else f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"
    return f"{100 * value:.1f}".removesuffix(".0") + "%"


def interval(estimate: Estimate | None, measure: str) -> str:
    """The 95% interval, empty if there is none."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    if measure in (LOG_PROB, PERPLEXITY):
        return f"{number(estimate.low, measure)} to {number(estimate.high, measure)}"
    return f"{100 * estimate.low:.0f} to {100 * estimate.high:.0f}%"


def p_value(value: float) -> str:
    """A probability with as many digits as say something."""
    return "< 0.001" if value < 0.001 else f"= {value:.2g}" if value < 0.995 else "= 1"


def axis_words(name: str, value: Axis) -> str:
    """A value of an axis: ``4,096 tokens``, ``depth 25%``."""
    if name == "where":
        return {INSIDE: "inside the window", BEYOND: "beyond the window"}.get(str(value), str(value))
    if name == "n_tokens":
        return f"{value:,} tokens" if isinstance(value, int) else f"{value} tokens"
    if name in ("depth", "place") and is_number(value):
        return f"{name} {100 * float(value):.4g}%"
    return str(value) if name == "subtask" else f"{name} {value}"


def axes_words(axes: Axes) -> str:
    """Values of some axes."""
    return ", ".join(axis_words(name, value) for name, value in axes)


def enumerated(words: Sequence[str], last: str = "and") -> str:
    """``a, b and c``."""
    return f" {last} ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def count(n: int, one: str, many: str = "") -> str:
    """``1 case``, ``2 cases``."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def moment(date: str) -> str:
    """``2025-01-31 12:00`` of a date in ISO 8601."""
    return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d).*", r"\1 \2", date)


def duration(seconds: float) -> str:
    """Hours, minutes or seconds."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


def shortened(text: str, n: int) -> str:
    """At most ``n`` characters of a text."""
    return text if len(text) <= n else text[: n - 1].rstrip() + "…"
