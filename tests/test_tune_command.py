"""``pyselfextend tune`` as a user calls it, on tiny models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyselfextend import Llama
from pyselfextend.cli import main
from pyselfextend.fingerprint import fingerprint
from pyselfextend.tune import Document, choose
from pyselfextend.tune.choice import table

SMALL = ["--keys", "2", "--threads", "1", "--lengths", "400,512,900"]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Calls the command with a data folder of this test, ``tmp_path / "data"``."""

    def call(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYSELFEXTEND_DATA_DIR": str(tmp_path / "data"), "COLUMNS": "100", **environment}
        command = [sys.executable, "-m", "pyselfextend", "tune", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=env)

    return call


def place_of(model: Path, tmp_path: Path) -> Path:
    return tmp_path / "data" / "tune" / f"{fingerprint(model)}-64.json"


def without_times(document: Document) -> list[Any]:
    return [replace(reading, seconds=0.0) for reading in document.readings]


def test_from_nothing_to_llama(run: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(tiny_model, *SMALL, "--plot", "plot.png")
    assert done.returncode == 0, done.stderr
    place = place_of(tiny_model, tmp_path)
    document = Document.from_json(place.read_bytes())
    assert [(reading.ga_n, len(reading.stops)) for reading in document.readings] == [(1, 2), (2, 3), (3, 3), (4, 3)]
    assert (document.n_ctx_train, document.ga_w, document.model) == (512, 64, tiny_model.name)
    choices = choose(document.readings, 512, 64)
    assert document.groups == table(choices)
    assert not place.with_name(f"{place.name}.unfinished").exists()
    (info,) = document.runs
    assert info.command.endswith(f"tune {tiny_model} {' '.join(SMALL)} --plot plot.png")

    lines = done.stderr.splitlines()
    assert lines[0] == (
        f"{tiny_model.name}: 4 readings, 3212 tokens in all, of a text with the group sizes 1 up to 512, 2 up to 900, "
        "3 up to 900, 4 up to 900 tokens"
    )
    assert [line.split(" at ")[0] for line in lines[1:5]] == [
        f"{tiny_model.name} {i + 1}/4 group {ga_n}, text 1:" for i, ga_n in enumerate((1, 2, 3, 4))
    ]
    assert lines[5].startswith("took 0:")
    for choice in choices:
        (row,) = [line for line in done.stdout.splitlines() if "chosen" in line and f" {choice.n_tokens} " in line]
        assert f"{choice.chosen.log_p.value:.2f}" in row
        assert ("rule" in row) == (choice.chosen.ga_n == choice.ga_n_rule)
    assert done.stdout.count("At ") == sum(choice.chosen.ga_n != choice.ga_n_rule for choice in choices)
    assert done.stdout.splitlines()[-1] == f"result in {place}"
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setenv("PYSELFEXTEND_DATA_DIR", str(tmp_path / "data"))
    with Llama(str(tiny_model), n_ctx=1000, n_threads=1, verbose=False) as llm:
        assert llm.self_extend.is_measured
        for length, ga_n in document.groups:
            llm.reset()
            llm.eval([5] * length)
            assert llm.self_extend.ga_n == ga_n

    again = run(tiny_model, *SMALL)
    assert again.returncode == 0
    assert again.stderr.splitlines()[0] == f"{tiny_model.name}: nothing is left to measure"
    assert len(again.stderr.splitlines()) == 2
    assert again.stdout == done.stdout
    assert Document.from_json(place.read_bytes()) == document


def test_more_is_added_to_what_is_there(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    options = [*SMALL, "--groups", "1,4", "--output", path]
    first = run(tiny_model, *options)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == f"result in {path}, where auto does not look"
    assert not (tmp_path / "data").exists()
    before = Document.from_json(path.read_bytes())
    more = run(tiny_model, *options, "--samples", "2", "--groups", "1,2,4", "--json")
    assert more.returncode == 0, more.stderr
    assert more.stderr.splitlines()[0].startswith(f"{tiny_model.name}: 4 readings, 3212 tokens in all")
    assert more.stderr.splitlines()[0].endswith("; 2 are there already")
    document = Document.from_json(more.stdout)
    assert document == Document.from_json(path.read_bytes())
    assert document.readings[:2] == before.readings
    assert {(each.ga_n, each.sample) for each in document.readings} == {(g, s) for g in (1, 2, 4) for s in (0, 1)}
    assert len(document.runs) == 2
    assert json.loads(more.stdout)["settings"]["samples"] == 2
    other = run(tiny_model, *options, "--seed", "2")  # asks for something else, which takes its place
    assert other.returncode == 0
    assert "are there already" not in other.stderr
    assert len(Document.from_json(path.read_bytes()).readings) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_measurement_goes_on(run: Run, tiny_model: Path, tmp_path: Path, number: int) -> None:
    # So many readings that it is not over before the signal, also where this process is held up.
    options = ["--keys", "1", "--threads", "1", "--lengths", "500,900", "--groups", "1,4", "--samples", "40",
               "--output", tmp_path / "result.json"]  # fmt: skip
    unfinished = tmp_path / "result.json.unfinished"
    words = [sys.executable, str(Path(__file__).with_name("interruptible.py")), "tune", str(tiny_model), *options]
    process = subprocess.Popen(list(map(str, words)), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not unfinished.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert errors.splitlines()[-2:] == [
            f"what has been measured is in {unfinished}; the same command goes on there",
            "pyselfextend tune: interrupted",
        ]
    first = Document.from_json(unfinished.read_bytes())
    assert 1 <= len(first.readings) < 80
    assert first.groups == ()
    assert not (tmp_path / "result.json").exists()
    done = run(tiny_model, *options)
    assert done.returncode == 0, done.stderr
    n = len(first.readings)
    assert done.stderr.splitlines()[0].startswith(f"{tiny_model.name}: {80 - n} reading")
    assert done.stderr.splitlines()[0].endswith(f"; {n} {'is' if n == 1 else 'are'} there already")
    document = Document.from_json((tmp_path / "result.json").read_bytes())
    assert document.readings[:n] == first.readings
    assert not unfinished.exists()
    whole = run(tiny_model, *options, "--output", tmp_path / "whole.json")
    assert whole.returncode == 0
    expected = Document.from_json((tmp_path / "whole.json").read_bytes())
    assert without_times(document) == without_times(expected)  # bit by bit
    assert document.groups == expected.groups
    assert [line for line in done.stdout.splitlines() if "result in" not in line] == [
        line for line in whole.stdout.splitlines() if "result in" not in line
    ]


def test_a_result_stays_while_another_is_measured(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    assert run(tiny_model, *SMALL, "--groups", "1,4", "--output", path).returncode == 0
    content = path.read_bytes()
    (tmp_path / "result.json.unfinished").mkdir()  # nothing can be kept there
    refused = run(tiny_model, *SMALL, "--groups", "1,4", "--seed", "2", "--output", path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("pyselfextend tune: ")
    assert refused.stderr.count("\n") == 1
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lengths", "0"], "0 is not between 1 and 16777216"),
        (["--groups", "1,x"], "'x' is not an integer"),
        (["--keys", "65"], "65 is not between 1 and 64"),
        (["--samples", "1001"], "1001 is not between 1 and 1000"),
        (["--ga-w", "512"], "pyselfextend tune: ga_w is 512; it must be below the trained context of 512 tokens"),
        (["--groups", "1"], "none of the groups 1 reaches 900 tokens; give one of at least 2"),
        (["--keys", "64"], "a length of 400 tokens is too short for 64 keys; give fewer keys or longer lengths"),
        (["--text", "missing.txt"], "missing.txt cannot be read: No such file or directory"),
        (["--text", "short.txt"], "short.txt has 14 tokens for this model, and about 900 are needed"),
        (["--plot", "plot.xyz"], "no plot can be written to plot.xyz; its name must end in one of ."),
        (["--output", "missing/result.json"], "cannot be written: there is no folder"),
        (["--output", "/dev/null"], "/dev/null is no regular file"),
        (["--output", "short.txt"], "short.txt is not a result of tune that can be gone on with"),
        (["--output", "model.gguf"], "model.gguf is the model, and it would be replaced"),
        (["--gpu-layers", "-2"], "-2 is not at least -1"),
    ],
)
def test_what_cannot_be_done_is_a_line(
    run: Run, tiny_model: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    (tmp_path / "short.txt").write_text("Too short.\n")
    (tmp_path / "model.gguf").write_bytes(tiny_model.read_bytes())
    done = run("model.gguf", *SMALL, *options)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if not line.startswith(("Usage: ", "Try '"))]) <= 2


def test_without_a_place_to_keep_it(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    empty = dict.fromkeys(("PYSELFEXTEND_DATA_DIR", "XDG_DATA_HOME", "LOCALAPPDATA", "HOME"), "")
    done = run(tiny_model, *SMALL, **empty)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "pyselfextend tune: there is no data folder: set PYSELFEXTEND_DATA_DIR, or give --output FILE\n"
    )
    (tmp_path / "file").write_text("")
    done = run(tiny_model, *SMALL, PYSELFEXTEND_DATA_DIR=str(tmp_path / "file"))
    assert done.returncode == 2
    assert "cannot be written: Not a directory" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_extra_is_said_before_anything_runs(tiny_model: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None; from pyselfextend.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["tune", str(tiny_model), *SMALL, "--output", str(tmp_path / "result.json")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--plot", "x.png"], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "pyselfextend tune: this needs matplotlib, which is not installed; "
        "install it with: pip install 'pyselfextend[eval]'\n"
    )
    without = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)
    assert without.returncode == 0, without.stderr  # only the plot needs it


def test_a_text_of_ones_own(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("It was a dark night. Nobody came.\n\nThen somebody did.\n\n" * 200)
    done = run(tiny_model, *SMALL, "--text", "book.txt", "--groups", "4", "--ga-w", "0", "--output", "result.json")
    assert done.returncode == 0, done.stderr
    document = Document.from_json((tmp_path / "result.json").read_bytes())
    assert (document.settings["text"], document.ga_w) == ("book.txt", 0)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--help"]) == 0
    shown = capsys.readouterr().out
    for text in ("Examples:", "What is measured:", "Results:", "Running:", "--output", "PYSELFEXTEND_GROUPS=rule"):
        assert text in shown
