"""The names of ``pyselfextend.eval``, and that only what needs the native library loads it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyselfextend.eval


def test_public_names() -> None:
    assert sorted(pyselfextend.eval._MODULES) == pyselfextend.eval.__all__ == dir(pyselfextend.eval)
    for name in pyselfextend.eval.__all__:
        assert getattr(pyselfextend.eval, name).__module__.startswith("pyselfextend.eval")
    assert not hasattr(pyselfextend.eval, "no_such_name")


def test_what_is_pure_loads_nothing() -> None:
    modules = "cases, settings, results, sharing, text, prompt, metrics, intervals, records, truncation"
    tasks = "passkey, niah, kv, ruler, ppl, short, longbench, leval"
    code = (
        f"import sys\nfrom pyselfextend.eval import {modules}\nfrom pyselfextend.eval.tasks import {tasks}\n"
        "print([name for name in ('llama_cpp', 'matplotlib', 'statsmodels', 'rouge', 'jieba') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=Path(__file__).parent
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
