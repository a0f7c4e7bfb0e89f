"""The machine that a benchmark ran on, and how the library was compiled."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

import psutil

from ..machine import cpu_name, n_cores
from .stock import build_options

__all__ = ["Machine", "this_machine"]


@dataclass(frozen=True)
class Machine:
    """What a speed depends on beside the program."""

    cpu: str
    """The processor, as it calls itself."""

    n_cores: int
    """Logical cores that the process may use."""

    n_cores_all: int
    """Logical cores there are."""

    memory_bytes: int
    """Physical memory."""

    os: str
    python: str
    compilers: Mapping[str, str]
    """By language: what our libraries were compiled with."""

    build_type: str
    cpu_flags: str
    """Compiler options of the CPU backend."""

    openmp: Mapping[str, str]
    """Variables of the environment that control OpenMP's threads."""

    date: str
    """When it began: ISO 8601, UTC."""


def this_machine() -> Machine:
    """This machine, now."""
    record = build_options()
    return Machine(
        cpu=cpu_name(),
        n_cores=n_cores(),
        n_cores_all=os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        os=platform.platform(),
        python=platform.python_version(),
        compilers=record["compilers"],
        build_type=record["options"].get("CMAKE_BUILD_TYPE", ""),
        cpu_flags=record["cpu_flags"],
        openmp={name: value for name, value in sorted(os.environ.items()) if re.match("(OMP|GOMP|KMP)_", name)},
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
