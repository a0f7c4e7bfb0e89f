"""Opening a model file: what is wrong with it is said before llama.cpp sees it, and the reason when llama.cpp fails."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .. import _native, gguf_file
from ..errors import ModelFileError, SettingError
from ..model_info import model_info
from .cache_check import check_cache

__all__ = ["opening", "reason"]

_library = _native.load()


@contextmanager
def opening(
    path: str | os.PathLike[str],
    *,
    vocab_only: bool = False,
    kv_overrides: Mapping[str, Any] | None = None,
    lora_path: str | None = None,
    **context: Any,
) -> Iterator[list[str]]:
    """Around what loads a model and makes its context: an assertion of llama.cpp that fails is an exception.

    Args:
        path: the file.
        vocab_only, kv_overrides, lora_path, context: as ``llama_cpp.Llama`` takes them.

    Yields:
        The errors that llama.cpp has logged, when it has been left.

    Raises:
        ModelFileError: the file cannot be loaded. The message says why: as ``model_info`` does, which reads it first,
            or in llama.cpp's words. Or that of the LoRA adapter cannot be read (see ``gguf_file.read``).
        SettingError: the context cannot be made: ``check_cache`` says why, or the message has llama.cpp's words.
    """
    if vocab_only:
        gguf_file.read(path, vocab_only=True)
    else:
        check_cache(model_info(path, kv_overrides), **context)
    if lora_path:
        gguf_file.read(lora_path)
    try:
        with _library.guarded() as errors:
            yield errors
    except UnicodeDecodeError as error:  # llama_cpp reads what metadata say of tokens
        raise ModelFileError(
            f"{path} is damaged: a text in it is not UTF-8: {gguf_file.shown(error.object)}"
        ) from error
    except ValueError as error:
        what = str(error)
        if what.startswith("Failed to load model from file"):
            raise ModelFileError(f"{path} cannot be loaded: {reason(errors)}") from error
        if what.startswith("Failed to create llama_context"):
            raise SettingError(f"llama.cpp cannot make a context of {path}: {reason(errors)}") from error
        raise


def reason(errors: list[str]) -> str:
    """What llama.cpp has logged as the cause: the first line, without the names of functions and what is known."""
    if not errors:
        return "llama.cpp gives no reason"
    known = r"[a-z]+_\w+: |error loading (model|state)( \w+)?: |failed to apply lora adapter: "
    return re.sub(f"^({known})*", "", errors[0])
