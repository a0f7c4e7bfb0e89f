"""Optional dependencies: one sentence that helps where one is missing."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import MissingExtraError

__all__ = ["need"]


def need(module: str, extra: str) -> Any:
    """Import and return a module that belongs to an extra of the package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # installed, but something that it needs is not
        raise MissingExtraError(
            f"this needs {error.name}, which is not installed; install it with: pip install 'pyselfextend[{extra}]'"
        ) from None
