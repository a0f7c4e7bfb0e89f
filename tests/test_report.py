"""The report: its numbers against other libraries, its page as a browser would parse it, its plots pixel by pixel."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import report_scenes as scenes
import scipy.stats
import statsmodels.api as sm
from matplotlib.image import imread
from report_scenes import N_CTX_TRAIN, RUN, result
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from pyselfextend import EvalError
from pyselfextend.eval.report import write_report
from pyselfextend.eval.report.cells import Cell, Estimate, aggregate, headline, once, perplexity, views
from pyselfextend.eval.report.compare import differences, failures, gaps, mixed, samples
from pyselfextend.eval.report.figures import is_grid
from pyselfextend.eval.report.items import LOG_PROB, PERPLEXITY, Subject, clean, pair_of, prepare, setting_order
from pyselfextend.eval.report.maps import heat_maps, outline, recommended, sweep_maps
from pyselfextend.eval.report.plots import Panel, bars, lines
from pyselfextend.eval.report.texts import TASKS, labels, setting_text, task_text
from pyselfextend.eval.report.theme import FAILED, STYLES_MAX, styles
from pyselfextend.eval.results import Result, ResultsFile, RunInfo, read_results
from pyselfextend.groups import RULE

ROOT = Path(__file__).resolve().parent.parent

VOID = {"br", "img", "link", "meta"}


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: dict[str, list[dict[str, str]]] = defaultdict(list)
        self.text = ""
        self.problems: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        self.problems += [f"{tag} is not closed" for tag in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.text += " "
        self.found[tag].append({name: value or "" for name, value in attrs})
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.problems.append(f"{tag} is closed at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data

    @property
    def words(self) -> str:
        """The text, with spaces as a reader sees them."""
        return " ".join(self.text.split())


def report(folder: Path, results: Iterable[Result], runs: Iterable[RunInfo] = (RUN,), **options: Any) -> Page:
    """A page, checked for what every page must be."""
    path = write_report(results, runs, folder, **options)
    assert path == folder / "index.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.problems
    assert "script" not in page.found
    assert not [a for found in page.found.values() for a in found if any(name.startswith("on") for name in a)]
    assert all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in page.found["img"])
    assert all(a["href"].startswith(("#", "https://arxiv.org/", "https://github.com/")) for a in page.found["a"])
    anchors = {a["id"] for found in page.found.values() for a in found if "id" in a}
    assert {a["href"][1:] for a in page.found["a"] if a["href"].startswith("#")} <= anchors
    return page


def summary_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return found


def cell_of(cells: Iterable[Cell], setting: str, **axes: object) -> Cell:
    (found,) = [cell for cell in cells if cell.setting == setting and dict(cell.axes) == axes]
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def everything() -> list[Result]:
    two = (*scenes.MODELS, ("SmolLM2-135M-Instruct.Q8_0.gguf", 145_000_000, N_CTX_TRAIN))
    settings = ("plain", "2:1024", "4:1024", "yarn:2.01")
    found = [*scenes.passkey(settings, two, samples=1), *scenes.perplexity(settings, two)]
    return [*found, *scenes.kv(settings), *scenes.ruler(settings)]


@pytest.fixture(scope="module")
def folder(everything: list[Result], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of everything."""
    path = tmp_path_factory.mktemp("report")
    write_report(everything, [RUN], path)
    return path


# Numbers


def test_accuracies_are_means_with_wilson_intervals() -> None:
    results = list(scenes.passkey())
    cells = aggregate(prepare(results), ("n_tokens", "depth"))
    assert len(cells) == len(scenes.SETTINGS) * len(scenes.LENGTHS) * len(scenes.DEPTHS)
    for cell in cells:
        scores = [r.score for r in results if r.setting == cell.setting and all(r.axes[n] == v for n, v in cell.axes)]
        assert cell.n == len(scores) == 4 and cell.estimate is not None
        assert cell.estimate.value == pytest.approx(np.mean(scores))
        low, high = proportion_confint(np.sum(scores), len(scores), method="wilson")
        assert (cell.estimate.low, cell.estimate.high) == pytest.approx((low, high))


def test_perplexities_are_over_all_tokens() -> None:
    results = list(scenes.perplexity())
    for cell in aggregate(prepare(results), ("n_tokens",)):
        of_cell = [r for r in results if r.setting == cell.setting and r.axes["n_tokens"] == cell.axis("n_tokens")]
        means = np.array([r.nll / r.n_scored for r in of_cell])
        assert cell.estimate is not None
        assert cell.n == len(means) == 4 and cell.n_scored == 4 * 256
        assert cell.estimate.value == pytest.approx(math.exp(means.mean()))
        interval = scipy.stats.t.interval(0.95, len(means) - 1, means.mean(), scipy.stats.sem(means))
        assert (cell.estimate.low, cell.estimate.high) == pytest.approx(tuple(np.exp(interval)))


def test_windows_of_different_size_weigh_by_their_tokens() -> None:
    rng = np.random.default_rng(7)
    n_scored = rng.integers(10, 400, 9)
    nlls = n_scored * rng.normal(3, 0.2, 9)
    fit = sm.WLS(nlls / n_scored, np.ones(9), weights=n_scored).fit(cov_type="HC1", use_t=True)
    found = perplexity(nlls.tolist(), n_scored.tolist())
    assert found.value == pytest.approx(math.exp(nlls.sum() / n_scored.sum()))
    assert (found.low, found.high) == pytest.approx(tuple(np.exp(fit.conf_int(0.05)[0])))


def test_one_window_has_no_interval() -> None:
    assert perplexity([512.0], [256]) == Estimate(math.exp(2), None, None)


def test_failed_cases_are_counted_and_not_averaged() -> None:
    axes = [{"n_tokens": 4096, "sample": i} for i in range(5)]
    results = [result("passkey", a, score=1.0) for a in axes[:2]]
    results += [result("passkey", axes[2], score=0.0), result("passkey", axes[3], error="no memory")]
    results.append(result("passkey", axes[4], score=float("nan")))
    (cell,) = aggregate(prepare(results), ("n_tokens",))
    assert (cell.n, cell.n_failed) == (3, 2)
    assert cell.estimate is not None and cell.estimate.value == pytest.approx(2 / 3)
    assert cell.errors == ("no memory", "the score is nan; it must be from 0 to 1")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({}, "the result has neither a score nor a likelihood"),
        ({"score": 1.5}, "the score is 1.5; it must be from 0 to 1"),
        ({"nll": math.inf, "n_scored": 4}, "the negative log likelihood is inf over 4 tokens"),
        ({"nll": 3.0}, "the negative log likelihood is 3.0 over 0 tokens"),
        ({"nll": 1e9, "n_scored": 1}, "the negative log likelihood is 1000000000.0 over 1 tokens"),
        ({"score": 1.0, "error": "late"}, "late"),
    ],
)
def test_what_is_no_result_has_failed(fields: dict[str, Any], error: str) -> None:
    (item,) = prepare([result("passkey", {"n_tokens": 4096}, **fields)])
    assert item.error == error


def test_a_failed_case_is_measured_like_its_neighbours() -> None:
    results = list(scenes.perplexity(("plain", "2:1024"), task="new", lengths=(1024, 16384)))
    assert any(r.error for r in results)
    assert {item.measure for item in prepare(results)} == {PERPLEXITY}


def test_headline_is_inside_and_beyond_the_window() -> None:
    results = [*scenes.passkey(), *scenes.perplexity()]
    cells = headline(prepare(results))
    passkey = [cell for cell in cells if cell.task == "passkey"]
    for where, lengths in (("inside", (4096, 8192)), ("beyond", (12288, 16384))):
        scores = [
            r.score for r in results if r.task == "passkey" and r.setting == "4:1024" and r.axes["n_tokens"] in lengths
        ]
        cell = cell_of(passkey, "4:1024", where=where)
        assert cell.n == len(scores) and cell.estimate is not None
        assert cell.estimate.value == pytest.approx(np.mean(scores))
    # Lengths of one perplexity score the same tokens: only the longest on each side counts.
    found = {dict(cell.axes)["where"]: cell for cell in cells if cell.task == "ppl" and cell.setting == "plain"}
    assert {where: cell.axis("n_tokens") for where, cell in found.items()} == {"inside": 8192, "beyond": 16384}
    assert all(cell.n == 4 for cell in found.values())


def test_lengths_that_ask_the_same_are_not_put_together() -> None:
    found = {cell.measure: cell for cell in headline(prepare(scenes.short())) if cell.setting == "plain"}
    assert {measure: (cell.axis("n_tokens"), cell.n) for measure, cell in found.items()} == {
        "accuracy": (2048, 16), "perplexity": (2048, 4),
    }  # fmt: skip
    assert [d.axes for d in differences(prepare(scenes.short())) if d.measure == "accuracy"] == [
        (("n_tokens", n),) for n in (512, 1024, 2048)
    ]


def test_prompts_decide_what_is_beyond_the_window() -> None:
    # LongBench cuts prompts at a length; most are shorter.
    axes = {"n_tokens": 16384, "subtask": "qasper"}
    items = prepare(
        [result("longbench", {**axes, "sample": i}, n_prompt=n, score=1.0) for i, n in enumerate((8192, 8193))]
    )
    assert [item.axes["where"] for item in items] == ["inside", "beyond"]
    # The prompt of a choice counts with all continuations; the model reads one of them at a time.
    (item,) = prepare([result("short", {"n_tokens": 8192, "sample": 0}, n_prompt=8300, score=1.0)])
    assert item.axes["where"] == "inside"


def test_unknown_window() -> None:
    items = prepare([replace(r, n_ctx_train=0) for r in scenes.passkey(("plain",))])
    (cell,) = headline(items)
    assert cell.axes == () and cell.n == len(items)


def test_views_follow_the_axes() -> None:
    assert views(prepare(scenes.passkey())) == [("n_tokens",), ("n_tokens", "depth"), ("n_tokens", "digits")]
    assert views(prepare(scenes.kv())) == [("n_tokens",), ("n_tokens", "place")]
    assert views(prepare(scenes.perplexity())) == [("n_tokens",)]
    assert views(prepare([result("new", {"colour": c}, score=1.0) for c in ("red", "blue")])) == [(), ("colour",)]


def test_differences_are_paired() -> None:
    rng = random.Random(3)
    plain = [result("short", {"sample": i}, score=float(rng.random() < 0.7)) for i in range(60)]
    other = [
        replace(r, setting="4:1024", score=r.score if rng.random() < 0.7 else float(rng.random() < 0.5)) for r in plain
    ]
    (found,) = differences(prepare([*plain, *other]))
    a, b = (np.array([r.score for r in column], dtype=bool) for column in (plain, other))
    table = [[int((x & y).sum()) for y in (b, ~b)] for x in (a, ~a)]
    assert found.p_value == pytest.approx(mcnemar(table, exact=True).pvalue)
    assert (found.n_better, found.n_worse, found.n) == (table[1][0], table[0][1], 60)
    assert (found.plain, found.value) == pytest.approx((a.mean(), b.mean()))


def test_ratios_of_perplexities_are_paired() -> None:
    results = [r for r in scenes.perplexity(("plain", "4:1024"), windows=6) if r.axes["n_tokens"] == 4096]
    (found,) = differences(prepare(results))
    means = [np.array([r.nll / 256 for r in results if r.setting == setting]) for setting in ("4:1024", "plain")]
    interval = scipy.stats.ttest_rel(*means).confidence_interval(0.95)
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(np.exp((means[0] - means[1]).mean()))
    assert (found.ratio.low, found.ratio.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))
    assert found.value / found.plain == pytest.approx(found.ratio.value)


def test_differences_are_over_what_both_have_answered() -> None:
    results = list(scenes.passkey(("plain", "2:1024")))
    found = {dict(d.axes)["where"]: d for d in differences(prepare(results))}
    assert any(r.error for r in results)
    assert found["inside"].n == 40 and found["beyond"].n == 20  # 16,384 tokens are beyond the pair's reach
    other_prompts = [replace(r, digest="other") if r.setting == "plain" else r for r in results]
    assert differences(prepare(other_prompts)) == []


def test_failures_gaps_and_mixed_prompts() -> None:
    results = list(scenes.passkey(("plain", "2:1024")))
    (failure,) = failures(prepare(results))
    assert failure.lengths == (16384,) and len(failure.keys) == 20
    assert "reaches 15360 tokens" in failure.error
    assert gaps(prepare(results)) == [] and mixed(prepare(results)) == 0
    (gap,) = gaps(prepare([r for r in results if r.setting == "plain" or r.axes["depth"] != 0.5]))
    assert (gap.setting, gap.n, gap.n_all) == ("2:1024", 64, 80)
    both = [*results, *(replace(r, model="b", model_digest="b") for r in results if r.setting == "plain")]
    (gap,) = gaps(prepare(both))
    assert (gap.subject.model, gap.setting, gap.n, gap.n_all) == ("b", "2:1024", 0, 80)
    assert mixed(prepare([*results, *(replace(r, digest="x") for r in results[:3])])) == 3


def test_samples_are_right_and_wrong_and_the_longest() -> None:
    found = samples(prepare(scenes.passkey(("plain", "4:1024"))))
    assert [(s.setting, s.right) for s in found] == [
        *[("plain", True)] * 2, *[("plain", False)] * 2, *[("4:1024", True)] * 2, *[("4:1024", False)] * 2,
    ]  # fmt: skip
    assert all(s.right == (s.references[0] in s.answer) for s in found)
    assert (
        "n_tokens=8192" in found[0].key and "n_tokens=16384" in found[2].key
    )  # plain is right inside the window alone


def test_orders() -> None:
    settings = ["ntk:2", "8:512", "new", "auto:1024", "yarn:2.01", "auto:512", "2:1024", "plain", "2:512", "linear:2"]
    assert sorted(settings, key=setting_order) == [
        "plain", "auto:512", "auto:1024", "2:512", "2:1024", "8:512", "yarn:2.01", "linear:2", "ntk:2", "new",
    ]  # fmt: skip
    assert pair_of("4:1024") == (4, 1024)
    assert pair_of("yarn:4") is pair_of("1:1024") is pair_of("plain") is pair_of("auto:1024") is None


INSIDE = "plain up to 8,192 tokens"


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("auto:1024", f"{INSIDE}, group 2 up to 9,898, group 4 up to 18,773, group 8 up to 36,522, and so on"),
        ("auto", f"{INSIDE}, group 2 up to 9,898, group 4 up to 18,773, group 8 up to 36,522, and so on"),
        ("auto:4096", f"{INSIDE}, group 4 up to 9,557, group 8 up to 15,018, and so on"),
        ("auto:9000", "ga_w is 9000; it must be below the trained context of 8192 tokens"),
        ("auto:-1", ""),
        ("4:1024", "reaches 29,696 tokens"),
        ("yarn:2", "stretches 8,192 to 16,384 tokens"),
        ("plain", ""),
    ],
)  # fmt: skip
def test_what_a_setting_means(setting: str, text: str) -> None:
    """Limits of groups by the authors' rule, W + G * (2/3 * L - W)."""
    assert setting_text(setting, Subject("a.gguf", 1, 8192, "F16", "F16")) == text


def test_auto_on_the_page(tmp_path: Path) -> None:
    page = report(tmp_path, scenes.passkey(("plain", "auto:1024", "4:1024")))
    assert "auto:1024" in page.words and "a group that follows the length" in page.words
    assert summary_of(tmp_path)["settings"] == ["plain", "auto:1024", "4:1024"]
    alone = report(tmp_path / "alone", scenes.passkey(("plain", "4:1024")))
    assert "a group that follows the length" not in alone.words


def test_labels_tell_models_apart() -> None:
    def subject(size: int, type_v: str = "F16") -> Subject:
        return Subject("a.gguf", size, 8192, "F16", type_v)

    assert list(labels([subject(1)]).values()) == ["a"]
    assert list(labels([subject(1), subject(2000)]).values()) == ["a (1 bytes)", "a (2,000 bytes)"]
    assert list(labels([subject(1), subject(1, "Q8_0")]).values()) == ["a, F16 cache", "a, K F16, V Q8_0 cache"]


# Plots


def colours(png: bytes) -> dict[tuple[int, int, int], int]:
    """How many pixels have each colour."""
    pixels = np.round(imread(io.BytesIO(png))[..., :3] * 255).astype(int).reshape(-1, 3)
    found, counts = np.unique(pixels, axis=0, return_counts=True)
    return {tuple(colour): int(n) for colour, n in zip(found.tolist(), counts, strict=True)}


def rgb(colour: Any) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in matplotlib.colors.to_rgb(colour))


def panel(cells: list[Cell], title: str = "", **fields: Any) -> Panel:
    return Panel(title, cells, N_CTX_TRAIN, **fields)


def test_a_heat_map_has_the_colours_of_its_numbers() -> None:
    results = [
        result("passkey", {"n_tokens": n, "depth": depth, "sample": sample}, score=float(sample < right))
        for n, depth, right in ((4096, 0.0, 4), (4096, 1.0, 3), (16384, 0.0, 1), (16384, 1.0, 0))
        for sample in range(4)
    ]
    results.append(result("passkey", {"n_tokens": 32768, "depth": 1.0, "sample": 0}, error="too long"))
    found = colours(heat_maps("", [panel(aggregate(prepare(results), ("n_tokens", "depth")))], "accuracy"))
    cividis = matplotlib.colormaps["cividis"]
    area = {value: found.get(rgb(cividis(value)), 0) for value in (0.0, 0.25, 0.75, 1.0)}
    assert min(area.values()) > 1000 and found[rgb(FAILED["facecolor"])] > 500
    assert max(area.values()) < 1.5 * min(area.values())  # the numbers and the window's line take some of it
    assert found.get(rgb(cividis(0.5)), 0) < 100  # only in the scale beside it


def test_bright_is_good_in_perplexities_as_well() -> None:
    results = [r for r in scenes.perplexity(("2:512", "2:1024", "4:512", "4:1024")) if r.axes["n_tokens"] == 4096]
    values = {"2:512": 10.0, "2:1024": 20.0, "4:512": 15.0, "4:1024": 12.0}
    results = [replace(r, nll=256 * math.log(values[r.setting])) for r in results]
    found = colours(sweep_maps("", [panel(aggregate(prepare(results), ("n_tokens",)), n_tokens=4096)], "perplexity"))
    cividis = matplotlib.colormaps["cividis"]
    assert found[rgb(cividis(1.0))] > 1000 and found[rgb(cividis(0.0))] > 1000


def test_recommended_pairs() -> None:
    sizes, windows = (2, 3, 4, 8, 16), (0, 512, 1024, 2048, 4096)
    for n_tokens in (4096, 12288, 32768):
        for share in RULE:
            expected = {(g, w) for g in sizes for w in windows if w + (n_tokens - w) / g < float(share) * N_CTX_TRAIN}
            assert set(recommended(sizes, windows, N_CTX_TRAIN, n_tokens, share)) == expected
    assert (4, 1024) in recommended(sizes, windows, N_CTX_TRAIN, 16384, RULE[1])  # 4,864 of 5,461
    assert (4, 1024) not in recommended(sizes, windows, N_CTX_TRAIN, 16384, RULE[0])  # of 4,096


@pytest.mark.parametrize("seed", range(20))
def test_an_outline_is_the_border(seed: int) -> None:
    rng = random.Random(seed)
    cells = {(x, y) for x in range(6) for y in range(5) if rng.random() < 0.6}
    grid = np.zeros((8, 7), dtype=int)
    for x, y in cells:
        grid[x + 1, y + 1] = 1
    perimeter = np.abs(np.diff(grid, axis=0)).sum() + np.abs(np.diff(grid, axis=1)).sum()
    assert sum(math.dist(a, b) for a, b in outline(cells, 0.0)) == pytest.approx(perimeter)
    # Moved inwards it is closed still: every corner belongs to an even number of pieces, and no corner is outside.
    ends: dict[tuple[float, float], int] = defaultdict(int)
    for piece in outline(cells, 0.1):
        for x, y in piece:
            ends[round(x, 6), round(y, 6)] += 1
            assert (math.floor(x + 0.5), math.floor(y + 0.5)) in cells
    assert all(n % 2 == 0 for n in ends.values())


def test_grids_of_pairs() -> None:
    assert is_grid({(2, 512), (2, 1024), (4, 512), (4, 1024)})
    assert not is_grid({(2, 512), (4, 1024), (8, 512)})
    assert not is_grid({(2, 512), (2, 1024), (2, 2048)})


def test_styles_differ() -> None:
    found = styles(["plain", *map(str, range(STYLES_MAX))])
    assert len({style.colour for style in found.values()}) == len({s.marker for s in found.values()}) == STYLES_MAX + 1


def test_lines_are_drawn_in_the_colours_of_settings() -> None:
    cells = aggregate(prepare(scenes.passkey()), ("n_tokens",))
    style = styles(scenes.SETTINGS)
    found = colours(lines("", [panel(cells)], "n_tokens", style, "accuracy", "length"))
    assert all(found[rgb(style[setting].colour)] > 300 for setting in scenes.SETTINGS)


def test_bars_are_as_long_as_their_values() -> None:
    results = [
        result("ruler", {"subtask": subtask, "sample": i}, setting, score=float(i < right))
        for setting, subtask, right in (
            ("plain", "vt", 2),
            ("plain", "cwe", 8),
            ("4:512", "vt", 6),
            ("4:512", "cwe", 4),
        )
        for i in range(8)
    ]
    style = styles(["plain", "4:512"])
    found = colours(bars("", [panel(aggregate(prepare(results), ("subtask",)))], "subtask", style, "accuracy"))
    long, short = (found[rgb(style[s].colour)] for s in ("4:512", "plain"))
    assert long / short == pytest.approx(1.0, abs=0.35)  # 10/8 each; plain's black is that of the letters as well


# The page


def test_the_files(folder: Path) -> None:
    summary = summary_of(folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {"index.html", "summary.json", *summary["plots"]}
    assert {
        "passkey-length.png", "passkey-map-1.png", "passkey-map-2.png", "kv-length.png", "kv-place.png",
        "ruler-length.png", "ruler-subtasks.png", "ppl-length.png",
    } == set(summary["plots"])  # fmt: skip
    page = Page((folder / "index.html").read_text(encoding="utf-8"))
    embedded = [base64.b64decode(image["src"].partition(",")[2]) for image in page.found["img"]]
    assert sorted(embedded) == sorted((folder / name).read_bytes() for name in summary["plots"])
    for image, png in zip(page.found["img"], embedded, strict=True):
        height, width = imread(io.BytesIO(png)).shape[:2]
        assert int(image["width"]) / int(image["height"]) == pytest.approx(width / height, rel=0.01)
        assert 300 < width < 2400 and height < 2800
        assert b"tEXt" not in png and b"tIME" not in png


def test_the_page_explains_itself(folder: Path, everything: list[Result]) -> None:
    page = Page((folder / "index.html").read_text(encoding="utf-8"))
    assert "read prompts of up to 16,384 tokens, trained on windows of 8,192" in page.words
    n_failed = sum(bool(r.error) for r in everything)
    assert f"{len(everything):,} cases, {n_failed} of which failed" in page.words
    for task in ("passkey", "kv", "ruler", "ppl"):
        assert task_text(task).how in page.words
    for number in ("2305.16300", "2307.03172", "2404.06654", "2012.15832", "2401.01325", "2309.00071"):
        assert any(a["href"].endswith(number) for a in page.found["a"])
    assert "2:1024 reaches 15,360 tokens" in page.words and "yarn:2.01 stretches 8,192 to 16,466 tokens" in page.words
    assert "Wilson's 95% interval" in page.words
    for text in (RUN.machine, RUN.version, RUN.build_id, RUN.command, "2025-01-31 12:00"):
        assert text in page.words
    assert "2:1024 reaches 15360 tokens, the case needs 16384" in page.words
    assert "failed all 4 cases" in page.words  # the cell of a perplexity that no window has


def test_a_page_without_log_probabilities_does_not_speak_of_them(folder: Path) -> None:
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert "log prob" not in text and "log_prob" not in (folder / "summary.json").read_text(encoding="utf-8")


def test_the_summary_has_the_page_s_numbers(folder: Path, everything: list[Result]) -> None:
    summary = summary_of(folder)
    assert summary["settings"] == ["plain", "2:1024", "4:1024", "yarn:2.01"]
    assert [model["model"] for model in summary["models"]] == sorted({r.model for r in everything})
    counted = [r for r in everything if r.task == "kv" and r.setting == "yarn:2.01" and r.axes["n_tokens"] == 16384]
    (cell,) = [
        c for c in summary["cells"]
        if c["task"] == "kv" and c["setting"] == "yarn:2.01" and c["axes"] == {"n_tokens": 16384}
    ]  # fmt: skip
    assert cell["value"] == pytest.approx(np.mean([r.score for r in counted]), rel=1e-5)
    assert (cell["n"], cell["n_failed"], cell["measure"]) == (len(counted), 0, "accuracy")
    failed = [c for c in summary["cells"] if c["value"] is None]
    assert failed and all(c["setting"] == "2:1024" and c["axes"]["n_tokens"] == 16384 for c in failed)
    assert sum(f["n"] for f in summary["failures"]) == sum(bool(r.error) for r in everything)
    assert (folder / "summary.json").stat().st_size < 150_000


def test_the_same_results_make_the_same_files(tmp_path: Path, folder: Path, everything: list[Result]) -> None:
    shuffled = [*everything, *everything[::7]]  # with some twice
    random.Random(5).shuffle(shuffled)
    write_report(shuffled, [RUN, RUN], tmp_path)
    assert contents(tmp_path) == contents(folder)


def test_a_process_with_other_hashes_makes_the_same_files(tmp_path: Path) -> None:
    results = [*scenes.passkey(samples=1), *scenes.ruler(("plain", "4:1024"))]
    write_report(results, [RUN], tmp_path / "here")
    code = (
        "import sys; from pathlib import Path; import report_scenes as s\n"
        "from pyselfextend.eval.report import write_report\n"
        "results = [*s.passkey(samples=1), *s.ruler(('plain', '4:1024'))]\n"
        "write_report(results, [s.RUN], Path(sys.argv[1]))"
    )
    environment = {"PYTHONHASHSEED": "77", "PATH": "/usr/bin:/bin", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "there")]
    subprocess.run(command, cwd=Path(__file__).parent, env=environment, check=True, timeout=120)
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}&lt;$\\frac{x}$\x1b[31m\u202e\x00\ud800"


def test_nothing_in_results_is_html(tmp_path: Path) -> None:
    axes = {"n_tokens": 4096, "depth": 0.5, "place": 0.5, "subtask": EVIL, EVIL: EVIL}
    fields: dict[str, Any] = {"model": EVIL, "type_k": EVIL, "references": (EVIL,), "metric": EVIL, "answer": EVIL}
    results = [
        result(EVIL, {**axes, "sample": i}, setting, score=float(i), **fields)
        for i in range(2)
        for setting in (EVIL, "plain")
    ]
    results += [result(EVIL, {**axes, "n_tokens": 99999, "sample": 3}, EVIL, error=EVIL, **fields)]
    run = RunInfo(EVIL, EVIL, EVIL, EVIL, EVIL)
    page = report(tmp_path, results, [run], title=EVIL)
    assert page.text.count("<script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}&lt;") > 20
    assert not set(page.text) & set("\x1b\u202e\x00\ud800")
    assert "\\u001b[31m\\u202e\\u0000\\ud800" in page.text


def test_invisible_characters_are_shown() -> None:
    assert clean("a\tb\nc\x07\u2066") == "a\tb\nc\\u0007\\u2066"


def odd_axes() -> list[Result]:
    """What a file could hold though no task writes it."""
    odd: list[Any] = [None, [1], math.nan, True, 2]
    return [result("new", {"n_tokens": n, "depth": n, "place": n, "x": n}, n_prompt=9, score=0.5) for n in odd]


def two_measures() -> list[Result]:
    """A task without lengths."""
    found = []
    for i, setting in itertools.product(range(3), ("plain", "4:64")):
        found.append(result("short", {"subtask": "choice", "sample": i}, setting, score=1.0))
        found.append(result("short", {"subtask": "ppl", "window": i}, setting, nll=700.0, n_scored=256))
    return found


ANYTHING: dict[str, Callable[[], list[Result]]] = {
    "one": lambda: [result("passkey", {"n_tokens": 4096, "depth": 0.5, "digits": 5, "sample": 0}, score=1.0)],
    "no axes": lambda: [result("passkey", {}, score=1.0)],
    "one window": lambda: [result("ppl", {"n_tokens": 4096}, nll=512.0, n_scored=256)],
    "all failed": lambda: [result("passkey", {"n_tokens": 4096, "depth": 0.0}, error="no memory")],
    "no perplexity": lambda: list(scenes.perplexity(("2:1024",), lengths=(16384, 20480))),
    "no plain": lambda: list(scenes.passkey(("4:1024",))),
    "all beyond": lambda: list(scenes.passkey(("plain",), lengths=(16384, 32768))),
    "unknown task": lambda: [replace(r, task="flight") for r in scenes.kv()],
    "unknown setting": lambda: [replace(r, task="flight") for r in scenes.perplexity(("plain", "x:y"))],
    "unknown window": lambda: [replace(r, n_ctx_train=0) for r in scenes.passkey()],
    "short lengths": lambda: [result("a b", {"n_tokens": n}, score=0.5) for n in (1, 2)],
    "depth alone": lambda: [result("new", {"depth": d}, score=0.5) for d in (0.0, 0.5, "deep")],
    "odd lengths": lambda: [result("new", {"n_tokens": n}, score=0.5) for n in (0, -5, "long", 4096)],
    "odd axes": odd_axes,
    "short": lambda: list(scenes.short()),
    "one log probability": lambda: [result("kv", {"n_tokens": 4096}, score=0.0, gold_log_prob=-9.0, n_gold=3)],
    "no log probability": lambda: [
        result("kv", {"n_tokens": n, "place": 0.5}, score=0.0, gold_log_prob=math.nan, n_gold=3) for n in (4096, 8192)
    ],
    "a sweep of log probabilities": lambda: scenes.blind(
        scenes.passkey(("2:512", "2:1024", "4:512", "4:1024"), samples=1)
    ),
    "two measures": two_measures,
}


@pytest.mark.parametrize("name", ANYTHING)
def test_reports_of_anything(tmp_path: Path, name: str) -> None:
    results = ANYTHING[name]()
    page = report(tmp_path, results, [])
    assert "Not recorded." in page.words
    # Log probabilities are of cases that are there already.
    cells = [cell for cell in summary_of(tmp_path)["headline"] if cell["measure"] != LOG_PROB]
    # Nothing is left out of the headline but lengths that ask the same.
    n_asked = len(once(prepare(results)))
    assert sum(cell["n"] + cell["n_failed"] for cell in cells) == n_asked > 0
    assert sum(cell["n_failed"] for cell in cells) == sum(bool(item.error) for item in once(prepare(results)))


def test_tasks_with_similar_names_keep_their_plots(tmp_path: Path) -> None:
    results = [result(task, {"n_tokens": n}, score=0.5) for task in ("a b", "A-b", "<>") for n in (1024, 2048)]
    report(tmp_path, results)
    assert len(summary_of(tmp_path)["plots"]) == 3


def test_many_settings_share_no_style_in_a_plot(tmp_path: Path) -> None:
    pairs = [f"{g}:{w}" for g in (2, 4, 8) for w in (256, 512, 1024)]
    page = report(tmp_path, scenes.passkey(("plain", *pairs), samples=1))
    assert {"passkey-sweep.png", "passkey-length-1.png", "passkey-length-2.png"} < set(summary_of(tmp_path)["plots"])
    shown = [image["alt"] for image in page.found["img"] if "over the length" in image["alt"]]
    assert all("plain " in alt for alt in shown)
    assert all(sum(f"{pair} " in alt for alt in shown) == 1 for pair in pairs)


def test_a_shaky_comparison_is_announced(tmp_path: Path) -> None:
    results = list(scenes.passkey(("plain", "4:1024"), samples=1))
    page = report(tmp_path, [*results[:-7], replace(results[0], digest="other")])
    assert "4:1024 (SmolLM2-135M-Instruct.Q4_1), passkey: 33 of 41 cases" in page.words
    assert "1 case has been asked with more than one prompt" in page.words


def test_results_go_through_their_file(tmp_path: Path) -> None:
    results = list(scenes.kv(("plain", "4:1024")))
    with ResultsFile(tmp_path / "results.jsonl") as file:
        file.append(RUN)
        for one in results:
            file.append(one)
    report(tmp_path / "a", *read_results([tmp_path / "results.jsonl"]))
    report(tmp_path / "b", results, [RUN])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_runs_of_one_command_share_a_line(tmp_path: Path) -> None:
    runs = [replace(RUN, date=f"2025-02-0{day}T10:00:00Z") for day in (3, 1, 2)]
    page = report(
        tmp_path, [result("passkey", {"n_tokens": 4096}, score=1.0)], [*runs, replace(RUN, machine="another")]
    )
    assert "2025-02-01 10:00 to 2025-02-03 10:00 3 runs" in page.words
    assert [run["date"][:10] for run in summary_of(tmp_path)["runs"]] == [
        "2025-01-31",
        "2025-02-01",
        "2025-02-02",
        "2025-02-03",
    ]


def test_plots_of_an_earlier_report_go(tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_bytes(b"")
    report(tmp_path, scenes.passkey(samples=1))
    assert (tmp_path / "passkey-map.png").exists()
    report(tmp_path, [result("new", {}, score=1.0)])
    assert {path.name for path in tmp_path.iterdir()} == {"mine.png", "index.html", "summary.json", "new-settings.png"}


@pytest.mark.parametrize("content", ["", "[]", '{"plots": 5}', '{"plots": ["../x.png", "mine.txt", 7]}'])
def test_a_summary_of_something_else_takes_nothing_away(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "report"
    folder.mkdir()
    for path in (tmp_path / "x.png", folder / "mine.txt"):
        path.write_text("")
    (folder / "summary.json").write_text(content)
    report(folder, [result("new", {}, score=1.0)])
    assert (tmp_path / "x.png").exists() and (folder / "mine.txt").exists()


def test_no_results(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="there are no results to report"):
        write_report([], [RUN], tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EvalError, match="file cannot be written"):
        write_report([result("new", {}, score=1.0)], [], tmp_path / "file")


def test_without_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path; import report_scenes as s; from pyselfextend.eval.report import write_report\n"
        f"write_report(s.passkey(), [], Path({str(tmp_path)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60, check=False
    )
    assert "MissingExtraError: this needs matplotlib" in done.stderr and "pyselfextend[eval]" in done.stderr


def test_nothing_heavy_is_imported_early() -> None:
    code = (
        "import pyselfextend.eval.report, sys\n"
        "print({'matplotlib', 'statsmodels', 'scipy', 'jinja2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


def test_every_task_has_a_text() -> None:
    folder = ROOT / "pyselfextend" / "eval" / "tasks"
    names = {path.stem for path in folder.iterdir() if not path.stem.startswith(("_", "."))}
    assert names <= set(TASKS)
