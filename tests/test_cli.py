"""The command line: help, version, errors and their exit status."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from pyselfextend import cli


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyselfextend", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parent)


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"pyselfextend {metadata.version('pyselfextend')}\n", "")


def test_help_names_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    for name, about in cli.COMMANDS.items():
        assert f"{name}  {about}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help_and_a_module(command: str) -> None:
    assert callable(importlib.import_module(f"pyselfextend.commands.{command}").main)
    done = run(command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: pyselfextend {command} ")


def test_installed_as_a_script() -> None:
    (script,) = metadata.entry_points(group="console_scripts", name="pyselfextend")
    assert script.load() is cli.main


def test_help_loads_nothing_native() -> None:
    code = (
        "import sys; from pyselfextend.cli import main\n"
        "try: main(['demo', '--help'])\nexcept SystemExit: print('llama_cpp' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=Path(__file__).parent
    )
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("dance",), "invalid choice: 'dance'"),
        (("demo", "--dance"), "unrecognized arguments: --dance"),
        (("demo", "--tokens", "0"), "argument --tokens: 0 is not at least 1"),
        (("demo", "--tokens", "many"), "argument --tokens: invalid"),
        (("demo", "--ga-n", "1"), "argument --ga-n: 1 is not at least 2"),
        (("demo", "--depth", "2"), "argument --depth: 2 is not between 0 and 1"),
    ],
)
def test_usage_errors(arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("usage: pyselfextend ")
    assert message in done.stderr


def test_errors_are_one_line(tmp_path: Path) -> None:
    missing, text = tmp_path / "missing.gguf", tmp_path / "text.gguf"
    text.write_text("not a model")
    for path, message in ((missing, "there is no model file "), (text, "could not be loaded as a GGUF model")):
        done = run("demo", "--model", str(path))
        assert done.returncode == 2
        assert done.stderr.startswith("pyselfextend demo: ")
        assert message in done.stderr
        assert str(path) in done.stderr
        assert done.stderr.count("\n") == 1
