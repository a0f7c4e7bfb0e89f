"""The groups that ``pyselfextend tune`` has measured on a model, as ``ga_n="auto"`` finds them. Imports nothing native.

A result lies in the user's data folder under the fingerprint of the model's file and the neighbour window, so that it
is found wherever the file lies. ``PYSELFEXTEND_GROUPS=rule`` leaves all of them aside.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

from . import positions
from .config import SETTING_MAX
from .errors import SettingError
from .fingerprint import fingerprint
from .groups import GroupTable

__all__ = ["FORMAT", "VERSION", "check", "data_dir", "groups", "groups_by_window", "place"]

FORMAT = "pyselfextend-tune"
VERSION = 1

#: Whether measured groups are used: ``measured``, the default, or ``rule``.
VARIABLE = "PYSELFEXTEND_GROUPS"
MEASURED, RULE = "measured", "rule"


def data_dir() -> Path | None:
    """The user's data folder, which need not be there. None: the environment names none."""
    for variable, below in (
        ("PYSELFEXTEND_DATA_DIR", ""),
        ("XDG_DATA_HOME", "pyselfextend"),
        ("LOCALAPPDATA", "pyselfextend/data"),
        ("HOME", ".local/share/pyselfextend"),
    ):
        if os.environ.get(variable):
            return Path(os.environ[variable], below)
    return None


def place(digest: str, ga_w: int) -> Path | None:
    """The file of what was measured on a model with a window. None: there is no data folder."""
    folder = data_dir()
    return None if folder is None else folder / "tune" / f"{digest}-{ga_w}.json"


def groups(model: Path, n_ctx_train: int, ga_w: int) -> GroupTable:
    """What was measured on a model with this window; empty if nothing was, or not with this trained context.

    A file that cannot be read, or is something else, is left aside with a warning that names it.

    Args:
        model: the GGUF file.
        n_ctx_train: the trained context that is in force, in tokens.

    Raises:
        ModelFileError: the model's file cannot be read.
        SettingError: ``PYSELFEXTEND_GROUPS`` is neither ``measured`` nor ``rule``.
    """
    digest = _digest(model)
    path = place(digest, ga_w) if digest else None
    return _read(path, digest, n_ctx_train, ga_w) if path is not None and os.path.exists(path) else ()


def groups_by_window(model: Path, n_ctx_train: int) -> dict[int, GroupTable]:
    """The same by window, for every one that something was measured with."""
    digest, found = _digest(model), {}
    folder = data_dir() if digest else None
    for path in sorted((folder / "tune").glob(f"{digest}-*.json")) if folder else ():
        ga_w = path.stem.removeprefix(f"{digest}-")
        if ga_w.isdecimal() and (table := _read(path, digest, n_ctx_train, int(ga_w))):
            found[int(ga_w)] = table
    return found


def check(document: Any, digest: str, ga_w: int) -> tuple[int, GroupTable]:
    """The trained context and the groups of what ``tune`` has written of a model and a window.

    Raises:
        ValueError: it is something else, damaged, of another model or window, or of a later version.
    """
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"it is not a result of {FORMAT}")
    if document.get("version") != VERSION:
        raise ValueError(f"it is of version {document.get('version')!r}, and this one reads {VERSION}")
    if (document.get("digest"), document.get("ga_w")) != (digest, ga_w):
        raise ValueError("it is of another model or neighbour window")
    n_ctx_train, rows = document.get("n_ctx_train"), document.get("groups")
    if not isinstance(n_ctx_train, int) or not ga_w < n_ctx_train <= SETTING_MAX or not isinstance(rows, list):
        raise ValueError("it is damaged")
    if not rows:
        raise ValueError("it is not finished")
    table: list[tuple[int, int]] = []
    for row in rows:
        if not isinstance(row, list) or len(row) != 2 or not all(map(_is_count, row)):
            raise ValueError(f"it is damaged: {row!r} is not a length and a group")
        length, ga_n = row
        if table and length <= table[-1][0]:
            raise ValueError("it is damaged: its lengths do not ascend")
        if positions.n_ctx_reach(n_ctx_train, ga_n, ga_w) < length:
            raise ValueError(f"it is damaged: group {ga_n} does not reach {length} tokens")
        table.append((length, ga_n))
    return n_ctx_train, tuple(table)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= SETTING_MAX


def _digest(model: Path) -> str:
    """The fingerprint of a model; empty if nothing can have been measured, or that is not to be used."""
    wanted = os.environ.get(VARIABLE) or MEASURED
    if wanted not in (MEASURED, RULE):
        raise SettingError(f"{VARIABLE} is {wanted!r}; it must be {MEASURED} or {RULE}")
    folder = data_dir()
    if wanted == RULE or folder is None or not os.path.isdir(folder / "tune"):  # also where it must not be looked at
        return ""
    return fingerprint(model)


def _read(path: Path, digest: str, n_ctx_train: int, ga_w: int) -> GroupTable:
    try:
        n_ctx_measured, table = check(json.loads(path.read_bytes()), digest, ga_w)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError):
            reason = "it is damaged"
        warnings.warn(
            f'{path} is left aside, and ga_n="auto" follows the authors\' rule: {reason}', RuntimeWarning, stacklevel=2
        )
        return ()
    return table if n_ctx_measured == n_ctx_train else ()
