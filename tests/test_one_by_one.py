"""tests/one_by_one.py: a test that hangs in a native call or aborts is named, and the others are run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil

RUNNER = Path(__file__).with_name("one_by_one.py")

TESTS = """
import ctypes, os, subprocess, sys
import pytest

def test_first(): pass

def test_hangs():
    # the GIL is held: no thread of Python's runs any more
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open("child.pid", "w").write(str(child.pid))
    ctypes.PyDLL(None).pause()

def test_aborts():
    ctypes.CDLL(None).abort()

def test_fails(): assert 1 == 2

@pytest.mark.parametrize("words", ["a b", "c::d [e]"])
def test_after_them(words): pass

@pytest.mark.skip(reason="not today")
def test_skipped(): pass
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RUNNER), *arguments, "test_those.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_each_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "test_those.py").write_text(TESTS)
    done = run(tmp_path, "--limit", "20", "--json", "results.json")
    assert done.returncode == 1
    found = {
        each["test"].removeprefix("test_those.py::"): each
        for each in json.loads((tmp_path / "results.json").read_text())
    }
    assert {name: each["outcome"] for name, each in found.items()} == {
        "test_first": "passed",
        "test_hangs": "timed out",
        "test_aborts": "died",
        "test_fails": "failed",
        "test_after_them[a b]": "passed",
        "test_after_them[c::d [e]]": "passed",
        "test_skipped": "skipped",
    }
    assert found["test_aborts"]["reason"] == "of SIGABRT"
    assert found["test_fails"]["reason"] == "assert 1 == 2"
    assert "in test_hangs" in found["test_hangs"]["output"], "no stack of where it hung"
    for name in ("test_hangs", "test_aborts", "test_fails"):
        assert f"test_those.py::{name}: " in done.stdout
    assert "3 passed, 1 timed out, 1 died, 1 failed, 1 skipped in " in done.stdout.splitlines()[-1]
    child = int((tmp_path / "child.pid").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_the_time_for_all_is_kept(tmp_path: Path) -> None:
    (tmp_path / "test_those.py").write_text(
        "import time\n" + "".join(f"def test_{i}(): time.sleep(60)\n" for i in range(9))
    )
    began = time.monotonic()
    done = run(tmp_path, "--limit", "50", "--total", "25")
    assert time.monotonic() - began < 80
    assert done.returncode == 1
    assert "1 timed out, 8 not run" in done.stdout


def test_all_well_is_0_and_nothing_to_run_is_not(tmp_path: Path) -> None:
    (tmp_path / "test_those.py").write_text("def test_it(): pass\n")
    done = run(tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1].partition(" in ")[0]) == (0, "1 passed")
    (tmp_path / "test_those.py").write_text("import nothing_of_that_name\n")
    done = run(tmp_path)
    assert done.returncode == 1
    assert "nothing_of_that_name" in done.stderr
