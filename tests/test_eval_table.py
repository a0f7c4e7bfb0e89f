"""The tables that an evaluation ends with on the screen, against the numbers of its results."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

import numpy as np
import report_scenes as scenes
from report_scenes import N_CTX_TRAIN, result
from rich.console import Console

from pyselfextend.commands.eval._table import result_tables
from pyselfextend.eval.results import Result


def shown(results: Iterable[Result], width: int = 120) -> list[list[str]]:
    """The lines, in columns."""
    out = io.StringIO()
    console = Console(file=out, width=width)
    for table in result_tables(results):
        console.print(table)
    return [re.split(r"\s{2,}", line.strip()) for line in out.getvalue().splitlines() if line.strip()]


def test_all_answers_wrong_and_yet_a_better_setting() -> None:
    results = scenes.blind(scenes.passkey(("plain", "4:1024")))
    title, head, _, *rows, caption = shown(results, width=80)
    assert caption == ["log p: of the right answer, mean over its tokens, in nats"]
    assert title == ["Passkey retrieval"]
    assert head == ["setting", "window", "accuracy", "95%", "log p", "95%", "cases"]
    assert [row[:2] for row in rows] == [
        [setting, where] for setting in ("plain", "4:1024") for where in ("inside", "beyond")
    ]
    for row in rows:
        of_row = [r for r in results if r.setting == row[0] and (r.n_prompt > N_CTX_TRAIN) == (row[1] == "beyond")]
        assert row[2:4] == ["0%", "0 to 9%"] and row[6] == str(len(of_row)) == "40"
        assert row[4] == f"{np.mean([r.gold_mean or 0.0 for r in of_row]):.3f}"
        low, high = map(float, row[5].split(" to "))
        assert low < float(row[4]) < high


def test_other_tasks_have_their_own_columns() -> None:
    lines = shown([*scenes.perplexity(("plain",)), *scenes.kv(("plain",))])
    assert [line for line in lines if line[0] == "setting"] == [
        ["setting", "window", "accuracy", "95%", "cases"],
        ["setting", "window", "perplexity", "95%", "cases"],
    ]
    assert ["Key-value retrieval"] in lines and ["Perplexity"] in lines
    assert any(line[1] == "beyond, 16,384 tokens" for line in lines if line[0] == "plain")


def test_what_failed_and_what_was_not_measured() -> None:
    """An interval takes two cases."""
    results = [
        result("kv", {"n_tokens": 4096}, score=1.0),
        result("kv", {"n_tokens": 4096}, "4:1024", score=0.0, gold_log_prob=-6.0, n_gold=4),
        result("kv", {"n_tokens": 4096}, "8:1024", error="no memory"),
    ]
    rows = {row[0]: row[2:] for row in shown(results)[3:-1]}
    assert rows["plain"] == ["100%", "21 to 100%", "1"]
    assert rows["4:1024"] == ["0%", "0 to 79%", "-1.500", "1"]
    assert rows["8:1024"] == ["failed", "failed", "0"]
