"""Files of matplotlib's figures that the user names. Imports nothing native, and matplotlib when it is called."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ._extras import need
from .errors import SelfExtendError
from .output_file import write_output

__all__ = ["check_figure", "write_figure"]


def check_figure(path: Path, extra: str, error: type[SelfExtendError]) -> None:
    """Find out before there is anything to draw whether it can be drawn.

    Args:
        extra: the package's, which brings matplotlib.
        error: what is raised where it draws no files of that name.

    Raises:
        MissingExtraError: matplotlib is missing.
    """
    need("matplotlib", extra)
    known = need("matplotlib.figure", extra).Figure().canvas.get_supported_filetypes()
    if _format(path) not in known:
        raise error(f"no plot can be written to {path}; its name must end in one of .{', .'.join(sorted(known))}")


def write_figure(figure: Any, path: Path, dpi: int, error: type[SelfExtendError]) -> None:
    """Write a figure, see ``write_output``. ``error`` is raised where it cannot be written."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=dpi, format=_format(path))
    try:
        write_output(path, drawn.getvalue())
    except OSError as refused:
        raise error(f"the plot cannot be written to {path}: {refused.strerror or refused}") from refused


def _format(path: Path) -> str:
    return path.suffix.removeprefix(".").lower()
