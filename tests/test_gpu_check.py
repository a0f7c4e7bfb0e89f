"""native/tools/gpu-check.sh, as far as it goes without a build: what it says, its steps, its limits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "native" / "tools" / "gpu-check.sh"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is for Linux")


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), *map(str, words)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )


def test_it_says_how_it_is_called() -> None:
    done = run("--help")
    assert done.returncode == 0
    for word in ("prepare DIR", "run [--cpu]", "BUDGET"):
        assert word in done.stdout
    assert run().returncode == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "run needs the folder that prepare made"),
        (["run", "--gpu", "somewhere"], "unknown option --gpu"),
        (["prepare"], "prepare needs a folder"),
    ],
)
def test_what_it_does_not_understand(words: list[str], message: str) -> None:
    done = run(*words)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The script in a tree of its own, with a folder as ``prepare`` would make it, but empty."""
    script = tmp_path / "tree" / "native" / "tools" / "gpu-check.sh"
    script.parent.mkdir(parents=True)
    shutil.copy(SCRIPT, script)
    (tmp_path / "given" / "base").mkdir(parents=True)
    (tmp_path / "given" / "base" / "commit").write_text("0123456789ab\n")
    return script


def test_a_step_that_fails_stops_no_other(copy: Path, tmp_path: Path) -> None:
    words = [
        "bash",
        str(copy),
        "run",
        "--cpu",
        "--only",
        "build,info,real",
        str(tmp_path / "given"),
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHON": sys.executable}
    )
    assert done.returncode == 1
    lines = [line.split(maxsplit=3) for line in (tmp_path / "out" / "summary.txt").read_text().splitlines()]
    assert [(line[0], line[3].partition(",")[0]) for line in lines[:3]] == [
        ("info", "ok"),
        ("build", "failed"),
        ("real", "skipped: SmolLM2 is not here yet"),
    ]
    assert lines[3][0] == "all"
    assert (tmp_path / "out" / "machine.txt").read_text().startswith("0123456789ab\n")


def test_what_does_not_fit_into_the_budget_is_skipped(copy: Path, tmp_path: Path) -> None:
    words = ["bash", str(copy), "run", "--cpu", str(tmp_path / "given"), str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env={**os.environ, "BUDGET": "5"})
    assert done.returncode == 0
    assert done.stdout.count("skipped: the budget of 5 s is used") == 10
