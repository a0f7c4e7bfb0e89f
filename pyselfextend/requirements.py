"""What the package requires of other distributions, and which of them are not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata

__all__ = ["NAME", "extras", "installed_version", "missing"]

NAME = "pyselfextend"


def installed_version(distribution: str) -> str | None:
    """The version of a distribution; None: it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def missing() -> Iterator[str]:
    """A sentence for each distribution that the package needs and that is not there, or is of another version."""
    for name, condition, extra in _requirements():
        if extra is not None:
            continue
        version = installed_version(name)
        if version is None:
            yield f"{name}, which {NAME} needs, is not installed; install it with: pip install '{name}{condition}'"
        elif condition.startswith("==") and condition != f"=={version}":
            yield f"{name} is of version {version}; install the one that fits: pip install '{name}{condition}'"


def extras() -> dict[str, tuple[str, ...]]:
    """By extra, without that for the project's own tests: the distributions that are not installed."""
    found: dict[str, list[str]] = {}
    for name, _, extra in _requirements():
        if extra is not None and extra != "test":
            lacks = found.setdefault(extra, [])
            if installed_version(name) is None:
                lacks.append(name)
    return {extra: tuple(lacks) for extra, lacks in found.items()}


def _requirements() -> Iterator[tuple[str, str, str | None]]:
    """Distribution, condition on its version, and extra, from the installed metadata."""
    try:
        lines = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        return
    for line in lines:  # jieba>=0.42; extra == "eval"
        requirement, _, marker = line.partition(";")
        name = re.match(r"[\w.-]+", requirement.strip())
        extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", marker)
        if name is not None:
            yield name[0], requirement.strip()[name.end() :].strip(" ()"), extra and extra[1]
