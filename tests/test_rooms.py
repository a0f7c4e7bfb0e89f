"""The rooms of the engine's sources: arrows between them run one way, and every file can be read in one sitting."""

from __future__ import annotations

import re
from pathlib import Path

SRC = Path(__file__).resolve().parent.parent / "native" / "src"

# What a room may include, besides itself. native/README.md says what each is for.
ROOMS: dict[str, set[str]] = {
    "positions": set(),
    "params": {"positions"},
    "rope": {"positions"},
    "grammar": set(),
    "state": {"params"},
    "attention": set(),
    "attention/cpu": {"attention"},
    "attention/check": {"attention", "attention/cpu"},
    "attention/cuda": {"attention"},
    "attention/vulkan": {"attention"},
    "cache": {"params", "positions", "rope", "state", "attention", "attention/check"},
    "graph": {"params", "positions", "rope", "attention", "attention/cpu", "cache"},
    "api": {"params", "positions", "attention", "attention/cpu", "cache", "graph"},
    "rpc": set(),
    "server": set(),  # by the header of the library alone
}
MAX_LINES = 520


def files() -> list[Path]:
    found = sorted(path for path in SRC.rglob("*") if path.is_file())
    assert found
    return found


def room_of(path: Path) -> str:
    return path.parent.relative_to(SRC).as_posix()


def included_rooms(path: Path) -> set[str]:
    """The rooms whose files a file includes, its own left out."""
    names = re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE)
    return {room_of(SRC / name) for name in names if (SRC / name).is_file()} - {room_of(path)}


def test_every_file_is_in_a_room() -> None:
    assert {room_of(path) for path in files()} == set(ROOMS)


def test_a_room_includes_only_what_it_may() -> None:
    wrong = [
        f"{path.relative_to(SRC)} includes {room}/"
        for path in files()
        for room in sorted(included_rooms(path) - ROOMS[room_of(path)])
    ]
    assert wrong == []


def test_own_files_are_included_by_their_room() -> None:
    """A name without its room would be found beside the file that includes it, and the arrow would not be seen."""
    own = {path.name for path in files()}
    bare = [
        f"{path.relative_to(SRC)} includes {name}"
        for path in files()
        for name in re.findall(r'^\s*#\s*include\s+"([^"/]+)"', path.read_text(encoding="utf-8"), re.MULTILINE)
        if name in own
    ]
    assert bare == []


def test_arrows_run_one_way() -> None:
    """Of the table itself: rooms can be laid in an order in which each includes only earlier ones."""
    left = dict(ROOMS)
    while left:
        free = {room for room, below in left.items() if not below & set(left)}
        assert free, f"these include one another: {sorted(left)}"
        left = {room: below for room, below in left.items() if room not in free}


def test_files_can_be_read_in_one_sitting() -> None:
    lines = {path.relative_to(SRC).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in files()}
    assert {name: n for name, n in lines.items() if n > MAX_LINES} == {}
