"""``pyselfextend eval report``."""

from __future__ import annotations

from pathlib import Path

import click

from .._command import Command, option
from .._options import NamedPath


@click.command(
    cls=Command,
    examples=[
        "pyselfextend eval report eval-passkey/results.jsonl",
        "pyselfextend eval report eval-*/results.jsonl --out report",
    ],
)
@click.argument("files", metavar="RESULTS...", nargs=-1, required=True, type=NamedPath(dir_okay=False))
@option(
    "--out", type=NamedPath(file_okay=False), default="report", metavar="DIR",
    help="Folder of the report.",
)  # fmt: skip
def command(files: tuple[Path, ...], out: Path) -> int:
    """Make the report of results again: a page, plots and a summary.

    Results of several runs, such as those of two models or two tasks, become one report.
    """
    from ...screen import result_console
    from ._report import show_report

    show_report(files, out, result_console())
    return 0
