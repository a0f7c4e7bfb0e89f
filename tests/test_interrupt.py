"""Ctrl-C at any time of a command: status 130, a line or none, and files that are whole."""

from __future__ import annotations

import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

from pyselfextend.eval.results import read_results

#: Calls the installed script as Python does, and sends SIGINT when a module is looked for: the first that is named
#: so, and then a number of others.
AT_AN_IMPORT = """
import os, runpy, signal, sys

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        global left, begun
        begun = begun or name == first
        left -= begun
        if left == 0:
            sys.stderr.write(f"at {name}\\n")
            os.kill(os.getpid(), signal.SIGINT)
        return None

signal.signal(signal.SIGINT, signal.default_int_handler)
first, left, begun = sys.argv[1], int(sys.argv[2]), False
sys.argv = sys.argv[3:]
sys.meta_path.insert(0, Finder)
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    sys.stderr.write(f"{left} left\\n")
"""

SCRIPT = Path(sysconfig.get_path("scripts"), "pyselfextend")


def interrupted_at(first: str, number: int, *words: str | Path) -> tuple[int, list[str]]:
    """Exit status and the lines of stderr, the first of which names the module."""
    done = subprocess.run(
        [sys.executable, "-c", AT_AN_IMPORT, first, str(number), SCRIPT, *words],
        capture_output=True, text=True, timeout=60, cwd=Path(__file__).parent,
    )  # fmt: skip
    return done.returncode, done.stderr.splitlines()


def test_at_any_import_of_the_start() -> None:
    """Every third of those that follow the one of our own handler."""
    seen = set()
    for number in range(1, 1000, 3):
        status, lines = interrupted_at("pyselfextend._native", number, "--version")
        if not lines[0].startswith("at "):  # there are no more
            assert status == 0
            break
        assert status == 130, lines
        assert [line for line in lines[1:] if line not in ("0 left", "pyselfextend: interrupted")] == []
        seen.add(lines[0])
    assert len(seen) > 20
    assert any("click" in line for line in seen)


def test_at_imports_of_a_command(tiny_model: Path, tmp_path: Path) -> None:
    """Some of many: of the model, of the results, of the report. What was written is whole."""
    words = ["eval", "passkey", tiny_model, "--lengths", "400", "--depths", "0", "--digits", "5", "--setting", "plain",
             "--threads", "1"]  # fmt: skip
    for number in (1, 30, 150, 320, 450, 600, 1100):
        out = tmp_path / str(number)
        status, lines = interrupted_at("pyselfextend.commands.eval", number, *words, "--out", out)
        assert status == 130
        assert lines[-2:] == ["pyselfextend eval passkey: interrupted", "0 left"] or number == 1, lines
        assert not [line for line in lines if "Traceback" in line or "Exception" in line]
        files = list(out.iterdir()) if out.exists() else []
        assert {file.name for file in files} <= {"results.jsonl"}
        for file in files:
            assert len(read_results([file])[0]) == 1


def test_programs_that_import_the_package_keep_their_handler() -> None:
    code = "import signal; before = signal.getsignal(signal.SIGINT); import pyselfextend, pyselfextend.cli as cli\n"
    code += "cli.main(['--version']); assert signal.getsignal(signal.SIGINT) is before"
    for handler in (signal.default_int_handler, signal.SIG_IGN, signal.SIG_DFL):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, timeout=60,
            preexec_fn=lambda handler=handler: signal.signal(signal.SIGINT, handler),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_where_it_is_ignored_it_stays_so() -> None:
    """As behind a shell's &."""
    code = AT_AN_IMPORT.replace("signal.default_int_handler", "signal.SIG_IGN")
    for number in (1, 20, 60):
        done = subprocess.run(
            [sys.executable, "-c", code, "pyselfextend._native", str(number), SCRIPT, "--version"],
            capture_output=True, text=True, timeout=60, cwd=Path(__file__).parent,
        )  # fmt: skip
        assert done.returncode == 0
        assert done.stdout.startswith("pyselfextend ")
        assert done.stderr.startswith("at ")
