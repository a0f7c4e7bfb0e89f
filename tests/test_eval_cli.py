"""``pyselfextend eval`` as a user calls it, on tiny models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyselfextend.cli import main
from pyselfextend.commands.eval import COMMANDS
from pyselfextend.commands.eval import ruler as ruler_command
from pyselfextend.eval.results import read_results
from pyselfextend.eval.tasks.ruler import SUBTASKS

TASKS = [name for name in COMMANDS if name != "report"]
SMALL = ["--lengths", "400,700", "--depths", "0,0.5", "--digits", "5", "--setting", "plain,4:64", "--threads", "1"]


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "pyselfextend", "eval", *map(str, arguments)]


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, cwd=cwd)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_help(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", task, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Usage: pyselfextend eval {task} [OPTIONS] MODEL...")
    for text in ("Examples:", "Task:", "--setting", "--cache", "--out", "--sweep", "Exit status:"):
        assert text in shown


def test_a_run_its_results_and_its_report(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    models = [tiny_models["llama"], tiny_models["qwen2"]]
    done = run("passkey", *models, *SMALL, "--cache", "F16,Q8_0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "eval-passkey"
    results, (info,) = read_results([folder / "results.jsonl"])
    assert len(results) == 2 * 2 * 2 * 4
    assert not [result for result in results if result.error]
    assert info.command.startswith("__main__.py eval passkey ")
    assert done.stderr.count("\n") == len(results)  # a line for each, and nothing of llama.cpp's
    *tables, page, last = done.stdout.splitlines()
    assert page == f"report in {Path('eval-passkey') / 'index.html'}"
    assert last.startswith(f"results in {Path('eval-passkey') / 'results.jsonl'}, took 0:")
    assert [line.strip() for line in tables if "Passkey" in line] == [
        f"Passkey retrieval: tiny-{name}, {cache} cache" for name in ("llama", "qwen2") for cache in ("F16", "Q8_0")
    ]
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "tiny-llama.gguf" in page
    assert json.loads((folder / "summary.json").read_text())

    again = run("passkey", *models, *SMALL, "--cache", "F16,Q8_0", "--no-report", cwd=tmp_path)
    assert again.returncode == 0
    assert again.stderr == f"{Path('eval-passkey') / 'results.jsonl'} holds 32 results, which are not repeated\n"
    assert read_results([folder / "results.jsonl"])[0] == results

    report = run("report", folder / "results.jsonl", "--out", tmp_path / "report")
    assert (report.returncode, report.stderr) == (0, "")
    assert (tmp_path / "report" / "index.html").is_file()


def test_ctrl_c_leaves_whole_results_and_the_run_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    # So many cases that the run is not over before the signal, also where this process is held up.
    options = ["passkey", tiny_model, "--lengths", "1500", "--digits", "5", "--samples", "20",
               "--setting", "plain,4:64", "--threads", "1",
               "--no-report", "--out", tmp_path]  # fmt: skip
    path = tmp_path / "results.jsonl"
    words = [sys.executable, str(Path(__file__).with_name("interruptible.py")), "eval", *map(str, options)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while (not path.exists() or path.read_bytes().count(b"\n") < 3) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "pyselfextend eval passkey: interrupted"
    assert "Traceback" not in errors
    first = read_results([path])[0]
    assert 2 <= len(first) < 200
    done = run(*options)
    assert done.returncode == 0
    assert len(done.stderr.splitlines()) == 1 + 200 - len(first)
    results = read_results([path])[0]
    assert results[: len(first)] == first
    assert len(results) == 200


@pytest.mark.parametrize(
    ("task", "options", "n_cases"),
    [
        ("niah", ["--lengths", "600", "--depths", "0,1"], 2),
        ("kv", ["--lengths", "900", "--places", "0,1", "--samples", "1"], 2),
        ("ruler", ["--lengths", "2500", "--subtasks", "niah_single_1,vt", "--samples", "1"], 2),
        ("ppl", ["--lengths", "300,600", "--stride", "64", "--windows", "1"], 2),
        ("short", ["--lengths", "400", "--stride", "64", "--windows", "1", "--samples", "2"], 3),
    ],
)
def test_every_task_runs(tiny_model: Path, tmp_path: Path, task: str, options: list[str], n_cases: int) -> None:
    done = run(task, tiny_model, *options, "--setting", "plain,8:64", "--threads", "1", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    results = read_results([tmp_path / "results.jsonl"])[0]
    assert [(r.task, r.error) for r in results] == [(task, "")] * (2 * n_cases)
    assert (tmp_path / "index.html").is_file()


def test_the_names_of_subtasks() -> None:
    assert ruler_command.SUBTASKS == SUBTASKS


def test_results_of_another_build_are_kept_and_named(tiny_model: Path, tmp_path: Path) -> None:
    options = ["passkey", tiny_model, *SMALL, "--no-report", "--out", tmp_path]
    assert run(*options).returncode == 0
    path = tmp_path / "results.jsonl"
    (info,) = read_results([path])[1]
    path.write_text(path.read_text().replace(info.build_id, "0123456789abcdef"))
    again = run(*options)
    assert again.returncode == 0
    assert again.stderr.splitlines() == [
        f"{path} holds 8 results, which are not repeated",
        "some of them were made with another build of the engine; another --out asks everything again",
    ]


def test_failed_cases_show_in_the_exit_status_and_are_tried_again_on_demand(tiny_model: Path, tmp_path: Path) -> None:
    options = ["passkey", tiny_model, *SMALL, "--setting", "2:500", "--no-report", "--out", tmp_path]
    done = run(*options)
    assert done.returncode == 1
    reach = (512 - 500 + 250) * 2
    assert done.stderr.count(f"failed: 2:500 reaches {reach} tokens, the case needs 713 (0.0 s)") == 2
    again = run(*options)
    assert again.returncode == 1  # they are still failed
    assert "holds 4 results, which are not repeated" in again.stderr
    retried = run(*options, "--retry")
    assert retried.returncode == 1
    assert retried.stderr.count("failed: ") == 2


def test_a_missing_extra_is_said_before_anything_runs(tiny_model: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None; from pyselfextend.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["eval", "passkey", str(tiny_model), *SMALL, "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == (
        "pyselfextend eval passkey: this needs matplotlib, which is not installed; "
        "install it with: pip install 'pyselfextend[eval]'\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("lengths", "settings"),
    [
        ("400,1000", ["plain", "plain", "auto:64", "auto:64"]),
        ("300,400", ["plain", "plain", "2:64", "2:64"]),  # inside the trained window auto would be plain
    ],
)
def test_the_default_settings(tiny_model: Path, tmp_path: Path, lengths: str, settings: list[str]) -> None:
    done = run(
        "passkey", tiny_model, "--lengths", lengths, "--depths", "0", "--digits", "5", "--no-report", "--out", tmp_path
    )
    assert done.returncode == 0, done.stderr
    results = read_results([tmp_path / "results.jsonl"])[0]
    assert [result.setting for result in results] == settings
    assert not [result.error for result in results if result.error]


def test_auto_beside_the_pair_that_it_chooses(tiny_model: Path, tmp_path: Path) -> None:
    """4 for 1,013 tokens, by the authors' rule: 64 + (1013 - 64) / 4 < 2/3 * 512."""
    options = ["passkey", tiny_model, "--lengths", "1000", "--depths", "0,0.5", "--digits", "5", "--threads", "1"]
    done = run(*options, "--setting", "plain,auto,auto:64,4:64,auto:32", "--out", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (0, 8)  # a line for each result, and no warning
    results = read_results([tmp_path / "results.jsonl"])[0]
    answers = {setting: [r.answer for r in results if r.setting == setting] for setting in {r.setting for r in results}}
    assert sorted(answers) == ["4:64", "auto:32", "auto:64", "plain"]
    assert answers["auto:64"] == answers["4:64"] != answers["plain"]
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "plain up to 512 tokens, group 2 up to 618, group 4 up to 1,173, group 8 up to 2,282, and so on" in page


def test_a_sweep_is_every_pair(tiny_model: Path, tmp_path: Path) -> None:
    done = run("ppl", tiny_model, "--lengths", "600", "--stride", "50", "--windows", "1", "--sweep", "2,4", "0,32,64",
               "--no-report", "--out", tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [result.setting for result in read_results([tmp_path / "results.jsonl"])[0]]
    assert found == ["2:0", "2:32", "2:64", "4:0", "4:32", "4:64"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument 'MODEL...'"),
        (("missing.gguf",), "missing.gguf"),
        (("MODEL", "--setting", "fast"), "the setting is 'fast'; it must be plain, auto, also"),
        (("MODEL", "--setting", "1:64"), "ga_n is 1; it must be an integer from 2"),
        (("MODEL", "--cache", "Q9"), "'Q9' is not one of F32, F16, BF16, Q8_0"),
        (("MODEL", "--lengths", "0"), "0 is not between 1 and 16777216"),
        (("MODEL", "--depths", "2"), "2 is not between 0 and 1"),
        (("MODEL", "--lengths", "30"), "30 tokens are too few for a passkey prompt; at least"),
        (("MODEL", "--out", "FILE"), "is a file"),
        (("MODEL", "--text", "x"), "No such option"),
    ],
)
def test_errors_are_short(tiny_model: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "FILE").write_text("")
    given = [str(tiny_model) if word == "MODEL" else word for word in arguments]
    done = run("passkey", *given, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 5
    assert not list(tmp_path.glob("eval-*/results.jsonl"))
