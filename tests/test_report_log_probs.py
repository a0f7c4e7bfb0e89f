"""Log probabilities of right answers in a report: means, intervals, pairs, the page and its plots."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import report_scenes as scenes
import scipy.stats
from report_scenes import N_CTX_TRAIN, result
from test_report import colours, panel, report, rgb, summary_of

from pyselfextend.eval.report.cells import Estimate, aggregate
from pyselfextend.eval.report.compare import differences
from pyselfextend.eval.report.items import ACCURACY, LOG_PROB, MEASURES, PERPLEXITY, measured, prepare
from pyselfextend.eval.report.maps import heat_maps
from pyselfextend.eval.report.plots import bars, lines
from pyselfextend.eval.report.theme import styles
from pyselfextend.eval.results import Result


def log_probs(results: Iterable[Result], setting: str = "4:1024") -> np.ndarray[Any, Any]:
    """Of each case, for each token."""
    return np.array([r.gold_log_prob / r.n_gold for r in results if r.setting == setting and r.gold_log_prob])


def test_log_probabilities_are_means_over_cases_with_student_s_interval() -> None:
    results = scenes.blind(scenes.passkey())
    cells = aggregate(measured(prepare(results), LOG_PROB), ("n_tokens", "depth"))
    assert len(cells) == len(scenes.SETTINGS) * len(scenes.LENGTHS) * len(scenes.DEPTHS)
    for cell in cells:
        found = log_probs([r for r in results if all(r.axes[n] == v for n, v in cell.axes)], cell.setting)
        assert cell.n == len(found) == 4 and cell.n_scored == 0 and cell.estimate is not None
        assert cell.estimate.value == pytest.approx(found.mean())
        interval = scipy.stats.t.interval(0.95, 3, found.mean(), scipy.stats.sem(found))
        assert (cell.estimate.low, cell.estimate.high) == pytest.approx(interval)


def test_one_case_has_no_interval() -> None:
    (item,) = measured(prepare([result("kv", {"n_tokens": 4096}, score=0.0, gold_log_prob=-6.0, n_gold=4)]), LOG_PROB)
    assert aggregate([item], ())[0].estimate == Estimate(-1.5, None, None)


def test_gains_are_paired() -> None:
    results = [r for r in scenes.blind(scenes.passkey(("plain", "4:1024"))) if r.axes["n_tokens"] == 16384]
    (found,) = differences(measured(prepare(results), LOG_PROB))
    a, b = log_probs(results, "plain"), log_probs(results)
    interval = scipy.stats.ttest_rel(b, a).confidence_interval(0.95)
    assert found.gain is not None and found.ratio is None
    assert found.gain.value == pytest.approx((b - a).mean())
    assert (found.gain.low, found.gain.high) == pytest.approx((interval.low, interval.high))
    assert (found.plain, found.value, found.n) == (pytest.approx(a.mean()), pytest.approx(b.mean()), 20)
    assert (found.n_better, found.n_worse) == ((b > a).sum(), (b < a).sum())
    assert found.p_value == pytest.approx(scipy.stats.binomtest(found.n_better, 20).pvalue)


def test_what_an_earlier_version_has_not_measured_is_not_counted() -> None:
    """It counts as an answer, and with nothing as a log probability; nor does it fail."""
    axes = [{"n_tokens": 4096, "sample": i} for i in range(4)]
    results = [result("kv", a, score=1.0) for a in axes[:2]]
    results += [result("kv", a, score=1.0, gold_log_prob=-3.0, n_gold=2) for a in axes[2:]]
    items = prepare(results)
    counts = {m: [(c.n, c.n_failed) for c in aggregate(measured(items, m), ())] for m in MEASURES}
    assert counts == {ACCURACY: [(4, 0)], LOG_PROB: [(2, 0)], PERPLEXITY: []}
    assert measured(prepare(results[:2]), LOG_PROB) == []


def test_failed_cases_have_no_log_probability() -> None:
    """Neither those without an answer, nor numbers that are none. A subtask that has none at all is left out."""
    axes: list[dict[str, Any]] = [{"n_tokens": 4096, "subtask": "niah", "sample": i} for i in range(7)]
    results = [result("ruler", axes[0], score=0.0, gold_log_prob=-3.0, n_gold=2)]
    results.append(result("ruler", axes[1], error="no memory"))
    for a, (value, n_gold) in zip(
        axes[2:], ((math.nan, 2), (0.5, 2), (-3.0, 0), (-math.inf, 2), (-1e9, 2)), strict=True
    ):
        results.append(result("ruler", a, score=0.0, gold_log_prob=value, n_gold=n_gold))
    results.append(result("ruler", {"n_tokens": 4096, "subtask": "vt", "sample": 0}, error="late"))
    results.append(result("ruler", {"n_tokens": 4096, "subtask": "vt", "sample": 1}, score=1.0))
    items = prepare(results)
    (cell,) = aggregate(measured(items, LOG_PROB), ())
    assert (cell.n, cell.n_failed) == (1, 6)
    assert cell.errors[-1] == "the log probability of the right answer is nan over 2 tokens"
    assert sum(not item.error for item in items) == 7  # as answers they count


def test_log_probabilities_on_the_page(tmp_path: Path) -> None:
    """All answers are wrong, and it says which setting is better."""
    results = [*scenes.blind(scenes.passkey(("plain", "4:1024"))), *scenes.blind(scenes.kv(("plain", "4:1024")))]
    page = report(tmp_path, results)
    summary = summary_of(tmp_path)
    assert set(summary["plots"]) == {
        "passkey-length.png", "passkey-map.png", "passkey-length-log-prob.png", "passkey-map-log-prob.png",
        "kv-length.png", "kv-place.png", "kv-length-log-prob.png", "kv-place-log-prob.png",
    }  # fmt: skip
    cells = {
        c["setting"]: c for c in summary["headline"]
        if (c["task"], c["measure"], c["axes"]["where"]) == ("passkey", "log_prob", "beyond")
    }  # fmt: skip
    for setting, cell in cells.items():
        found = log_probs([r for r in results if r.task == "passkey" and r.n_prompt > N_CTX_TRAIN], setting)
        assert (cell["value"], cell["n"]) == (pytest.approx(found.mean(), rel=1e-5), 40)
        assert f"{found.mean():.3f}" in page.words
    assert cells["4:1024"]["low"] > cells["plain"]["high"]
    (gain,) = [
        d for d in summary["against_plain"]
        if (d["task"], d["measure"], d["axes"]) == ("passkey", "log_prob", {"where": "beyond"})
    ]  # fmt: skip
    assert gain["gain"] == pytest.approx(cells["4:1024"]["value"] - cells["plain"]["value"], rel=1e-4)
    assert f"{gain['gain']:+.3f} {gain['low']:+.3f} to {gain['high']:+.3f}" in page.words
    for text in ("(1/ n) \u03a3 ln p(token i | prompt, tokens before it), in nats", "less far below 0"):
        assert text in page.words
    assert f"{len(results):,} cases, none of which failed" in page.words  # each of them once


def test_bright_is_good_in_log_probabilities_as_well() -> None:
    values = ((4096, 0.0, -8.0), (4096, 1.0, -6.0), (16384, 0.0, -4.0), (16384, 1.0, -1.0))
    results = [
        result("passkey", {"n_tokens": n, "depth": depth}, score=0.0, gold_log_prob=value, n_gold=1)
        for n, depth, value in values
    ]
    cells = aggregate(measured(prepare(results), LOG_PROB), ("n_tokens", "depth"))
    found = colours(heat_maps("", [panel(cells)], "log probability"))
    cividis = matplotlib.colormaps["cividis"]
    assert all(found.get(rgb(cividis((value + 8) / 7)), 0) > 1000 for _, _, value in values)


def test_log_probabilities_are_drawn_on_one_axis() -> None:
    """Lines in their colours, bars in their lengths, whatever panel they stand in."""
    results = scenes.blind(scenes.passkey())
    style = styles(scenes.SETTINGS)
    of_lines = aggregate(measured(prepare(results), LOG_PROB), ("n_tokens",))
    found = colours(lines("", [panel(of_lines)], "n_tokens", style, "log probability", "length"))
    assert all(found[rgb(style[setting].colour)] > 300 for setting in scenes.SETTINGS)
    panels = []
    for setting, value in (("3:1024", -4.0), ("yarn:2.01", -2.0)):
        fields: dict[str, Any] = {"score": 0.0, "gold_log_prob": value, "n_gold": 1}
        one = [result("ruler", {"subtask": "vt"}, setting, **fields)]
        panels.append(panel(aggregate(measured(prepare(one), LOG_PROB), ("subtask",))))
    found = colours(bars("", panels, "subtask", style, "log probability"))
    long, short = (found[rgb(style[setting].colour)] for setting in ("3:1024", "yarn:2.01"))
    assert long / short == pytest.approx(2.0, abs=0.3)
