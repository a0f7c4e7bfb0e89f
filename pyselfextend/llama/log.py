"""What llama.cpp says of an error: its reason goes to the log alone."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llama_cpp

__all__ = ["errors"]

ERROR = 3  # GGML_LOG_LEVEL_ERROR
_lock = threading.RLock()


class Errors:
    """Lines of llama.cpp's log that tell of an error."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @property
    def reason(self) -> str:
        """They in one line, without the names of llama.cpp's functions."""
        lines = [line.partition(": ")[2] or line for line in self.lines]
        return "; ".join(dict.fromkeys(line.strip() for line in lines if line.strip()))


@contextmanager
def errors() -> Iterator[Errors]:
    """Collects them while it is entered, and hands them on. One thread at a time: llama.cpp has one log."""
    found = Errors()
    with _lock:
        callback, user_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
        llama_cpp.llama_log_get(ctypes.byref(callback), ctypes.byref(user_data))

        @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
        def collect(level: int, text: bytes, _: Any) -> None:
            if level == ERROR and text:
                found.lines.append(text.decode("utf-8", errors="replace"))
            if callback:
                callback(level, text, user_data)

        llama_cpp.llama_log_set(collect, ctypes.c_void_p())
        try:
            yield found
        finally:
            llama_cpp.llama_log_set(callback, user_data)
