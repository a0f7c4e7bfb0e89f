"""This machine, as reports state it. Pure: imports nothing native."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path

__all__ = ["cpu_name", "describe", "n_cores"]


def cpu_name() -> str:
    """The processor, as it calls itself."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(
            r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", info.read_text(errors="replace"), re.MULTILINE
        )
        if found:
            return found[1].strip()
    if sys.platform == "darwin":
        import subprocess

        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return platform.processor() or platform.machine()


def n_cores() -> int:
    """The logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe() -> str:
    """One line: processor, cores, memory, system."""
    import psutil

    memory = psutil.virtual_memory().total / 2**30
    return f"{cpu_name()}, {n_cores()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}"
