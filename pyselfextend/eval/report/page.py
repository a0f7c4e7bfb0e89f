"""The page: one HTML file that holds everything, made from ``template.html.j2`` and ``style.css``."""

from __future__ import annotations

import base64
import itertools
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from . import words
from .content import headline_table, lead, reaches, run_table, sections
from .figures import Picture
from .items import ACCURACY, LOG_PROB, PERPLEXITY, clean, kind_of
from .summary import Summary
from .texts import SETTINGS, labels
from .theme import DPI

__all__ = ["render"]

FOLDER = Path(__file__).parent


def render(summary: Summary, pictures: Mapping[str, Sequence[Picture]], anchors: dict[str, str], title: str) -> str:
    """The page. Whatever came from results is escaped.

    Args:
        summary: its numbers.
        pictures: the plots of each task.
        anchors: a name for each task that is good in an address.
        title: of the page.
    """
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    env.filters |= {
        "axes": words.axes_words,
        "count": words.count,
        "data_uri": data_uri,
        "groupby_subject": lambda found: [
            (key, list(group)) for key, group in itertools.groupby(found, lambda d: d.subject)
        ],
        "interval": words.interval,
        "moment": words.moment,
        "number": words.number,
        "p_value": words.p_value,
        "shortened": words.shortened,
        "size": size,
        "tokens": lambda n: f"{n:,}",
    }
    env.tests["has_length"] = lambda axes: "n_tokens" in dict(axes)
    names = labels(summary.subjects)
    return env.get_template("template.html.j2").render(
        ACCURACY=ACCURACY,
        LOG_PROB=LOG_PROB,
        PERPLEXITY=PERPLEXITY,
        title=title,
        style=Markup((FOLDER / "style.css").read_text(encoding="utf-8")),
        summary=summary,
        names=names,
        lead=lead(summary),
        headline=headline_table(summary),
        kinds=[SETTINGS[kind] for kind in SETTINGS if any(kind_of(setting) == kind for setting in summary.settings)],
        reaches=reaches(summary),
        sections=sections(summary, anchors),
        pictures=pictures,
        runs=run_table(summary.runs),
    )


def data_uri(png: bytes) -> str:
    """A picture as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def size(png: bytes) -> tuple[int, int]:
    """Width and height of a picture in CSS pixels."""
    width, height = struct.unpack(">II", png[16:24])  # of the IHDR chunk, which comes first
    return round(width * 96 / DPI), round(height * 96 / DPI)
