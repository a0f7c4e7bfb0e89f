"""Makes and shows a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..._extras import need
from ...eval.results import read_results

__all__ = ["check_report", "show_report"]


def check_report() -> None:
    """Import all that a report takes.

    Raises:
        MissingExtraError: something is not installed.
    """
    for module in ("jinja2", "matplotlib", "scipy", "statsmodels"):
        need(module, "eval")


def show_report(files: Sequence[Path], folder: Path, console: Console) -> None:
    """Write the report of results into a folder, and print its tables.

    Raises:
        EvalError: a file is missing or something else, or holds no results.
    """
    from ...eval.report import write_report
    from ._table import result_tables

    results, runs = read_results(files)
    page = write_report(results, runs, folder)
    for table in result_tables(results):
        console.print(table)
    console.print(f"report in {page}", markup=False, soft_wrap=True)
