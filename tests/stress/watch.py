"""What a process holds: memory, threads, open files."""

from __future__ import annotations

import ctypes
import gc
from dataclasses import dataclass
from typing import ClassVar

import psutil


@dataclass(frozen=True)
class Usage:
    n_bytes: int  # resident: also what allocators keep for later, which is not always the same
    n_bytes_heap: int  # that are in use, exact to the byte; 0 where the C library does not say
    n_threads: int
    n_files: int

    def __str__(self) -> str:
        return (
            f"{self.n_bytes / 2**20:.1f} MiB, {self.n_bytes_heap / 2**20:.2f} MiB of them in use on the heap, "
            f"{self.n_threads} threads, {self.n_files} files"
        )


class _MallInfo(ctypes.Structure):
    """struct mallinfo2 of glibc"""

    _fields_: ClassVar = [
        (name, ctypes.c_size_t)
        for name in ("arena", "n_free", "n_fast", "n_mapped", "mapped", "unused", "fast", "in_use", "free", "top")
    ]


def measure() -> Usage:
    """After what is free has been given back to the system, where the C library can."""
    gc.collect()
    library = ctypes.CDLL(None)
    trim, info = getattr(library, "malloc_trim", None), getattr(library, "mallinfo2", None)
    n_bytes_heap = 0
    if trim is not None:
        trim(0)
    if info is not None:
        info.restype = _MallInfo
        found = info()
        n_bytes_heap = found.in_use + found.mapped
    process = psutil.Process()
    with process.oneshot():
        return Usage(process.memory_info().rss, n_bytes_heap, process.num_threads(), process.num_fds())
