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
_lock = threading.Lock()
_n_entered = 0  # there is one log for all threads


class Errors:
    """Lines of llama.cpp's log that tell of an error."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @property
    def reason(self) -> str:
        """They in one line, without the names of llama.cpp's functions."""
        lines = [line.partition(": ")[2] or line for line in self.lines]
        return "; ".join(dict.fromkeys(line.strip() for line in lines if line.strip()))


class _Thread(threading.local):
    """What this thread collects."""

    found: Errors | None = None


_thread = _Thread()
_before: Any = (llama_cpp.llama_log_callback(), ctypes.c_void_p())


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _collect(level: int, text: bytes, _: Any) -> None:
    """Never freed: another thread may be in it, or about to be, when the log is set back."""
    if _thread.found is not None and level == ERROR and text:
        _thread.found.lines.append(text.decode("utf-8", errors="replace"))
    callback, user_data = _before
    if callback:
        callback(level, text, user_data)


@contextmanager
def errors() -> Iterator[Errors]:
    """Collects those of this thread while it is entered, and hands them on."""
    outer, found = _thread.found, Errors()
    _enter()
    _thread.found = found
    try:
        yield found
    finally:
        _thread.found = outer
        _leave()


def _enter() -> None:
    global _before, _n_entered
    with _lock:
        _n_entered += 1
        if _n_entered == 1:
            callback, user_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
            llama_cpp.llama_log_get(ctypes.byref(callback), ctypes.byref(user_data))
            _before = callback, user_data
            llama_cpp.llama_log_set(_collect, ctypes.c_void_p())


def _leave() -> None:
    global _n_entered
    with _lock:
        _n_entered -= 1
        if _n_entered == 0:
            llama_cpp.llama_log_set(*_before)
