"""How much memory is free for this process: the machine's, or less where a control group limits it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["FreeMemory", "free_memory"]


@dataclass(frozen=True)
class FreeMemory:
    """Memory that can be had without swapping."""

    n_bytes: int
    """In bytes."""

    limit: str
    """What limits it: "machine" or "cgroup"."""


def free_memory(root: Path = Path("/")) -> FreeMemory:
    """What this process can still take, in main memory.

    Args:
        root: where ``proc`` and ``sys`` lie.
    """
    machine = psutil.virtual_memory().available
    cgroup = min(_cgroup_free(root), default=machine)
    return FreeMemory(cgroup, "cgroup") if cgroup < machine else FreeMemory(machine, "machine")


def _cgroup_free(root: Path) -> Iterator[int]:
    """What each control group that this process is in has left, of either version of cgroups. Nothing if none says.

    Files that were read are counted as used, but they are given up when memory is wanted (``inactive_file``).
    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html.
    """
    versions = {
        "": ("", "memory.max", "memory.current", "inactive_file"),
        "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }
    for line in _read(root / "proc/self/cgroup").splitlines():  # 4:memory:/group, or 0::/group
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        for controller in controllers.split(","):
            if controller not in versions:
                continue
            folder, limit, usage, inactive = versions[controller]
            top = root / "sys/fs/cgroup" / folder
            # in a container the names may be those outside of it, while only its own groups are visible
            place = Path(group.strip("/"))
            for path in (place, *place.parents):
                try:
                    n_max, n_used = (int(_read(top / path / name)) for name in (limit, usage))
                except ValueError:  # not there, or "max": no limit
                    continue
                stat = dict(
                    row.split(maxsplit=1) for row in _read(top / path / "memory.stat").splitlines() if " " in row
                )
                yield max(0, n_max - n_used + int(stat.get(inactive, 0)))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
