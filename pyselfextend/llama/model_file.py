"""Opening a model file: what is wrong with it is said before llama.cpp sees it, and the reason when llama.cpp fails."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from .. import _native
from ..errors import ModelFileError, SettingError

__all__ = ["opening"]

_library = _native.load()


@contextmanager
def opening(path: str | os.PathLike[str]) -> Iterator[None]:
    """Around what loads a model and makes its context: an assertion of llama.cpp that fails is an exception.

    Raises:
        ModelFileError: the file cannot be loaded; the message says why, in llama.cpp's words where it knows more.
        SettingError: the context cannot be made.
    """
    _library.guard_begin()
    errors = None
    try:
        yield
    except ValueError as error:
        errors = _library.guard_end()
        what = str(error)
        if what.startswith("Failed to load model from file"):
            raise ModelFileError(f"{path} cannot be loaded: {_reason(errors)}") from error
        if what.startswith("Failed to create llama_context"):
            raise SettingError(f"llama.cpp cannot make a context of {path}: {_reason(errors)}") from error
        raise
    finally:
        if errors is None:
            _library.guard_end()


def _reason(errors: list[str]) -> str:
    """What llama.cpp has logged as the cause: the first line, without the names of functions and what is known."""
    if not errors:
        return "llama.cpp gives no reason"
    return re.sub(r"^(\w+: )?(error loading model( \w+)?: )*", "", errors[0])
