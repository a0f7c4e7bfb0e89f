"""A short run of the stress test, and that it finds what is wrong."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stress import run as stress_run
from stress.run import Limits, StressError, Summary, run
from stress.subject import Subject

from pyselfextend import Llama

TESTS = Path(__file__).resolve().parent


def laps(models: dict[str, Path], n_laps: int, seed: int = 1, n_threads: int = 1) -> Summary:
    return run(models, seed, n_threads, Limits(None, 0, n_laps), lambda _: None)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_short_run(n_threads: int) -> None:
    """In a process of its own, which may end by a signal."""
    command = [sys.executable, "-m", "stress", "--seed", "1", "--seconds", "5", "--threads", str(n_threads)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(TESTS)}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = re.search(r"^(\d+) operations in (\d+) laps", done.stdout, re.MULTILINE)
    assert found, done.stdout
    assert int(found[1]) > 50


def test_a_seed_repeats_a_run(tiny_models: dict[str, Path]) -> None:
    assert laps(tiny_models, 2).tally == laps(tiny_models, 2).tally != laps(tiny_models, 2, seed=2).tally


def test_wrong_logits_are_found(tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """One of a hundred batches is not what was asked for."""
    evaluate, rng = Llama._evaluate, random.Random(0)

    def wrong(self: Llama, tokens: list[int]) -> None:
        is_wrong = tokens and rng.random() < 0.01
        evaluate(self, [*tokens[:-1], 5] if is_wrong else tokens)
        if is_wrong:
            self.input_ids[self.n_tokens - 1] = tokens[-1]

    monkeypatch.setattr(Llama, "_evaluate", wrong)
    with pytest.raises(
        StressError, match=r"(?s)^lap \d+: .*\nagain with --seed 1 --threads 1 --first-lap \d+ --laps 1$"
    ):
        laps(tiny_models, 20)


@pytest.mark.parametrize(
    ("left", "message"),
    [
        (lambda: open(os.devnull), r"^lap \d left something: "),  # noqa: SIM115
        (lambda: bytearray(b"x" * 2**20), r"^memory grows: "),
    ],
)
def test_what_is_left_is_found(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, left: Any, message: str
) -> None:
    kept: list[Any] = []
    close = Subject.close

    def leave(self: Subject) -> None:
        kept.append(left())
        close(self)

    monkeypatch.setattr(Subject, "close", leave)
    monkeypatch.setattr(stress_run, "N_WARM_UP", 1)
    with pytest.raises(StressError, match=message):
        laps(tiny_models, 5)
    for each in kept:
        if hasattr(each, "close"):
            each.close()
