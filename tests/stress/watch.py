"""What a process holds: memory, threads, open files."""

from __future__ import annotations

import ctypes
import gc
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Usage:
    n_bytes: int  # resident
    n_threads: int
    n_files: int

    def __str__(self) -> str:
        return f"{self.n_bytes / 2**20:.1f} MiB, {self.n_threads} threads, {self.n_files} files"


def measure() -> Usage:
    """After what is free has been given back to the system, where the C library can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    process = psutil.Process()
    with process.oneshot():
        return Usage(process.memory_info().rss, process.num_threads(), process.num_fds())
