"""Every option and argument of every command with values that make no sense: a line, status 2, no traceback, no wait.

The commands and their options are found in the program itself, so that new ones are among them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pyselfextend.cli import program

#: The smallest work of each command; MODEL and the others are replaced. What is tried is added at its end.
SMALL = {
    "chat": "MODEL --terminal --version",  # which is handed on, and ends it
    "serve": "MODEL --port 0 --version",
    "demo": "--model MODEL --tokens 600 --threads 1",
    "plan": "MODEL",
    "doctor": "MODEL",
    "tune": "MODEL --lengths 400 --groups 2 --keys 1 --threads 1 --output TUNED",
    "bench": "MODEL --no-stock --no-pairs --depths 0 --prefill 8 --decode 1 --rounds 1 --threads 1",
    "completion": "bash",
    "eval passkey": "MODEL --lengths 400 --depths 0 --digits 5 EVAL",
    "eval niah": "MODEL --lengths 400 --depths 0 EVAL",
    "eval kv": "MODEL --lengths 900 --places 0 --samples 1 EVAL",
    "eval ruler": "MODEL --lengths 2500 --subtasks vt --samples 1 EVAL",
    "eval ppl": "MODEL --lengths 300 --stride 64 --windows 1 EVAL",
    "eval short": "MODEL --lengths 400 --stride 64 --windows 1 --samples 1 EVAL",
    "eval longbench": "MODEL --data FOLDER EVAL",
    "eval leval": "MODEL --data FOLDER EVAL",
    "eval report": "RESULTS --out OUT",
}

EVAL = "--setting plain --threads 1 --no-report --out OUT"

#: What few options take. Words in capitals are paths.
VALUES = ["", "nonsense", "-1", "1.5", "nan", "2147483647", "9" * 40, ",", "\x1b[31m", "\udcff", "x" * 5000, "FOLDER",
          "FIFO", "MODEL"]  # fmt: skip

#: What may be a FIFO: the command waits until somebody reads or writes there.
STREAMS = ("text", "files", "json_path", "plot_path", "plot")


def commands(group: click.Group, before: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """The words of each command that does something, and the command."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*before, name))
        else:
            yield " ".join((*before, name)), command


COMMANDS = dict(commands(program))


def tried(name: str, places: dict[str, str], values: list[str]) -> Iterator[list[str]]:
    """The words of each call. What the tasks of eval have in common is tried with one of them."""

    def placed(words: str | list[str]) -> list[str]:
        return [places.get(word, word) for word in (words.split() if isinstance(words, str) else words)]

    command, words = COMMANDS[name], placed(SMALL[name].replace("EVAL", EVAL))
    shared = {param.name for param in COMMANDS["eval passkey"].params}
    for param in command.params:
        if name.startswith("eval ") and name != "eval passkey" and param.name in shared:
            continue
        if param.type is click.UNPROCESSED:  # another program's
            continue
        given = placed([value for value in values if value != "FIFO" or param.name not in STREAMS])
        if isinstance(param, click.Option):
            flag = max(param.opts, key=len)
            start = [word for word in words if word != f"--no-{flag[2:]}"]
            if param.is_flag:
                yield [*name.split(), *start, f"{flag}=nonsense"]
                continue
            for value in given:
                yield [*name.split(), *start, *([flag, value, value] if param.nargs == 2 else [f"{flag}={value}"])]
        else:
            for value in given:
                yield [*name.split(), "--", value] if value.startswith("-") else [*name.split(), value, *words[1:]]


@pytest.fixture
def places(tiny_model: Path, tmp_path: Path) -> dict[str, str]:
    """Paths that can be given, by the word that stands for each."""
    for name in ("folder", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "results.jsonl").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    return {"MODEL": shutil.copy(tiny_model, tmp_path)} | {
        word: str(tmp_path / name)
        for word, name in [("FOLDER", "folder"), ("OUT", "out"), ("EMPTY", "empty"), ("FIFO", "fifo"),
                           ("MISSING", "missing"), ("RESULTS", "results.jsonl"), ("TUNED", "tuned.json")]
    }  # fmt: skip


def test_every_command_is_among_them() -> None:
    assert set(SMALL) == set(COMMANDS)


@pytest.mark.parametrize("name", SMALL)
def test_values_that_make_no_sense(name: str, places: dict[str, str], tmp_path: Path) -> None:
    calls = list(tried(name, places, VALUES))
    assert len(calls) > 5
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("option_sweep.py")), "20"],
        input=json.dumps(calls), stdout=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**os.environ, "COLUMNS": "80", "PYSELFEXTEND_CACHE_DIR": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0
    wrong = []
    for words, line in zip(calls, done.stdout.splitlines(), strict=True):
        status, text = json.loads(line)
        lines = [each for each in text.splitlines() if not each.startswith(("Usage: ", " ", "Try '"))]
        if status not in (0, 1, 2) or "Traceback" in text or "\x1b" in text or (status == 2 and not lines):
            how = signal.Signals(-status).name if status < 0 else str(status)
            wrong.append(f"{how}: {' '.join(words)[-200:]!r}: {text[-600:]}")
    assert not wrong, "\n\n".join([f"{len(wrong)} of {len(calls)}", *wrong])
