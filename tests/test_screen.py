"""What commands show: consoles, bars, times."""

from __future__ import annotations

import io
import math
import re

import pytest
from rich.console import Console

from pyselfextend import screen


def test_results_go_to_stdout_and_progress_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    screen.result_console().print("results")
    screen.progress_console().print("progress")
    assert capsys.readouterr() == ("results\n", "progress\n")


def test_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[/INST] [bold]a[/bold] :pig: 12 'b' http://c"
    screen.result_console().print(text)
    assert capsys.readouterr().out == f"{text}\n"


def test_a_text_that_was_read_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with screen.reading_bar(screen.result_console(), "[b] reading", 900) as bar:
        for _ in range(3):
            bar.advance(300)
    assert re.fullmatch(r"\[b\] reading \S+ 900/900 \d+ tokens/s +\n", capsys.readouterr().out)


def test_each_case_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with screen.case_bar(screen.progress_console()) as bar:
        for name in ("a", "[b]"):
            bar.begin(name, 2, cost=10, later=0 if name == "[b]" else 10)
            for answer in ("[right]", "x" * 200):
                bar.advance(5)
                bar.finish(answer)
    lines = [f"{name} {i}/2 {line}\n" for name in ("a", "[b]") for i, line in ((1, "[right]"), (2, "x" * 200))]
    assert capsys.readouterr() == ("", "".join(lines))


def test_a_terminal_gets_a_bar_as_well() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, highlight=False, width=100)
    with screen.case_bar(console) as bar:
        bar.begin("a", 2, cost=10, later=10)
        bar.advance(5)
        bar.finish("line")
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[" in output
    assert "a 1/2 line" in output
    assert re.search(r"1/2.* 0:00 left", output)


def test_time_left_grows_with_depth() -> None:
    """Time as a model takes it: a constant part for each token and one in proportion to its depth."""

    def reached(depth: int) -> float:
        return 100 + 0.002 * depth + 1e-6 * depth**2

    depths = list(range(0, 5000, 250))
    left = screen.seconds_left(depths, [reached(depth) for depth in depths], 12_000)
    assert math.isclose(left, reached(12_000) - reached(depths[-1]), rel_tol=1e-6)
    assert screen.seconds_left([0, 100], [0.0, 1.0], 400) == 3.0
    assert screen.seconds_left([0, 400], [0.0, 1.0], 400) == 0.0


def test_clock() -> None:
    assert [screen.clock(seconds) for seconds in (0, 59.6, 61, 600)] == ["0:00", "1:00", "1:01", "10:00"]
    assert [screen.clock(seconds) for seconds in (3599, 3600, 36_061)] == ["59:59", "1:00:00", "10:01:01"]


def test_mib() -> None:
    assert screen.mib(3 * 2**19) == "1.5 MiB"
