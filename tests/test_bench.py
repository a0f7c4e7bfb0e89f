"""The benchmark: its order, its statistics, its processes and what it writes. Nothing here depends on speed."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import runner
import unsupported
from architectures import make_tiny

from pyselfextend import BenchError, Llama, ModelFileError, SettingError, _native, bench, positions
from pyselfextend.bench import worker as bench_worker
from pyselfextend.bench.plan import Configuration, Plan, Step, ggml_type
from pyselfextend.bench.process import Worker
from pyselfextend.bench.remaining import Remaining
from pyselfextend.bench.worker import N_WARM_UP
from pyselfextend.cache_size import CACHE_TYPES, cache_size
from pyselfextend.commands import bench_screen
from pyselfextend.llama import CACHE_TYPES as ENGINE_TYPES
from pyselfextend.model_info import model_info
from pyselfextend.placement import Attention

SMALL = {"n_prefill": 48, "n_decode": 5, "n_rounds": 2, "n_batch": 32, "threads": [1]}

STOCK = Configuration("stock")
PLAIN = Configuration("pyselfextend")
FUSED = Configuration("pyselfextend", 4, 64, "fused")
AUTO = Configuration("pyselfextend", 1, 64, "fused", ga_n_max=4)


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose trained window is longer than what is measured by default."""
    return make_tiny().make(tmp_path_factory.mktemp("long") / "long.gguf", "llama", 16384)


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert psutil.Process().children() == []


def small_plan(model: Path, **options: object) -> Plan:
    return bench.make_plan(model, **{"depths": [0, 100], "pairs": [(4, 64)], **SMALL, **options})  # type: ignore[arg-type]


# -- what is measured, and in which order


def test_order(tiny_model: Path) -> None:
    """Each round has every configuration once; rounds go there and back; caches are filled once, before their use."""
    made = small_plan(tiny_model, threads=[1, 2] if plan_cores() > 1 else [1], n_rounds=3, depths=[100, 0, 300])
    assert made.depths == (0, 100, 300)
    steps = list(made.steps())
    assert len(steps) == 4 * (2 + 3 * len(made.threads) * 4 * 2)

    blocks = [
        list(group)
        for _, group in itertools.groupby(steps, lambda step: (step.phase, step.depth, step.round, step.threads))
    ]
    forward = list(made.configurations)
    for block in blocks:
        order = [step.configuration for step in block]
        phase, number = block[0].phase, block[0].round
        assert order == (forward if phase == "fill" or number % 2 else forward[::-1])

    at: Counter[Configuration] = Counter()
    for step in steps:
        assert step.depth == at[step.configuration]
        if step.phase == "fill":
            at[step.configuration] += step.n_tokens
    assert set(at.values()) == {300}

    counted = Counter((s.configuration, s.phase, s.depth, s.threads) for s in steps if s.phase != "fill" and s.round)
    assert set(counted.values()) == {3}
    assert [s.round for s in steps if s.phase == "prefill" and s.depth == 0 and s.threads == 1] == [0] * 4 + [1] * 4 + [
        2
    ] * 4 + [3] * 4


def plan_cores() -> int:
    return len(os.sched_getaffinity(0))


def test_configurations(tiny_model: Path) -> None:
    made = small_plan(
        tiny_model,
        pairs=[(4, 64), (8, 32)],
        attn=["fused", "composed"],
        flash=[True, False],
        caches=["f16", "Q8_0", "Q8_0:F16"],
    )
    names = [str(each) for each in made.configurations]
    assert len(set(names)) == len(names)
    ours = [each for each in made.configurations if not each.is_stock]
    both = ["F16", "Q8_0:F16"]  # a quantized V exists with flash attention only
    assert [(each.cache, each.flash) for each in made.configurations if each.is_stock] == [
        ("F16", True), ("F16", False), ("Q8_0", True), ("Q8_0:F16", True), ("Q8_0:F16", False)
    ]  # fmt: skip
    expected = {
        (cache, flash, kind)
        for cache in ["F16", "Q8_0", "Q8_0:F16"]
        for flash in ([True, False] if cache in both else [True])
        for kind in ["plain", "4:64 fused", "4:64 composed", "8:32 fused", "8:32 composed"]
    }
    assert {(each.cache, each.flash, each.kind) for each in ours} == expected
    assert len(ours) == len(expected)

    made = small_plan(tiny_model, caches=["F16", "Q8_0"], stock_flash=[True])
    stock = [(each.cache, each.flash) for each in made.configurations if each.is_stock]
    assert stock == [("F16", True), ("Q8_0", True)]
    with pytest.raises(SettingError, match="Q8_0 for V needs flash attention"):
        small_plan(tiny_model, caches=["Q8_0"], stock_flash=[False])


def test_defaults(tiny_model: Path, long_model: Path) -> None:
    """Auto beside the plain model and stock; depths end where given pairs do."""
    for model, n_ctx_train in ((tiny_model, 512), (long_model, 16384)):
        made = bench.make_plan(model)
        assert made.depths == (0, 1024, 4096, 8192)
        assert made.n_ctx == 8192 + 512
        assert [each.kind for each in made.configurations] == [
            "stock",
            "stock",
            "plain",
            f"auto:{n_ctx_train // 8} fused",
        ]
        auto = made.configurations[-1]
        assert auto.ga_n == 1
        assert auto.ga_n_max == {512: 32, 16384: 2}[n_ctx_train]  # 16 reaches (512 - 64 + 4) * 16, 7232 tokens
        assert made.threads == (plan_cores(),)
        assert [each.name for each in made.configurations if each.is_stock] == ["stock, flash on", "stock, flash off"]
    assert bench.make_plan(tiny_model, pairs=[(4, 64)]).depths == (0, 1024)
    made = bench.make_plan(tiny_model, pairs=[("auto", None), (4, None), ("auto", 100)])
    assert made.depths == (0, 1024)
    assert [each.kind for each in made.configurations[3:]] == ["auto:64 fused", "4:64 fused", "auto:100 fused"]


def test_groups_of_auto(tiny_model: Path) -> None:
    """At each depth what ``Llama`` chooses for a text of the tokens there and those that are measured."""
    made = bench.make_plan(
        tiny_model, pairs=[("auto", 64), (4, 64)], depths=[0, 464, 465, 570, 571, 1200], n_prefill=48
    )
    _, _, plain, auto, pair = made.configurations
    found = []
    with contextlib.redirect_stderr(io.StringIO()):  # the context is longer than the trained one
        llm = Llama(str(tiny_model), n_ctx=2000, ga_n="auto", ga_w=64, n_threads=1, verbose=False)
    with llm:
        for depth in made.depths:
            llm.n_tokens = 0
            llm.eval([5] * (depth + 48))
            found.append(llm.self_extend.ga_n)
    assert found == [1, 1, 2, 2, 4, 8]
    assert [made.group(auto, depth) for depth in made.depths] == found
    assert {made.group(pair, depth) for depth in made.depths} == {4}
    assert {made.group(plain, depth) for depth in made.depths} == {1}

    assert made.changed() == (auto,)
    assert bench.make_plan(tiny_model, depths=[0, 464], n_prefill=48).changed() == ()
    assert bench.make_plan(tiny_model, depths=[0], n_prefill=900).changed() == ()  # there is nothing to turn


def test_a_depth_beyond_the_reach(tiny_model: Path) -> None:
    """It is refused before anything is loaded, and what the message allows is allowed."""
    reach = (512 - 64 + 64 // 4) * 4
    with pytest.raises(
        SettingError, match=f"a depth of {reach - 47} and 48 tokens more are beyond what 4:64 reaches"
    ) as caught:
        small_plan(tiny_model, depths=[0, reach - 47])
    allowed, smallest = map(
        int, re.findall(r"depths up to (\d+), or a group size of at least (\d+)$", str(caught.value))[0]
    )
    assert allowed == reach - 48
    assert smallest == positions.ga_n_min(512, 64, reach + 1)
    assert small_plan(tiny_model, depths=[0, allowed]).n_ctx == reach
    assert small_plan(tiny_model, depths=[0, reach - 47], pairs=[(smallest, 64)]).n_ctx == reach + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": []}, "no depth"),
        ({"depths": [-1]}, "depth is -1; it must be an integer from 0"),
        ({"depths": [1.5]}, "depth is 1.5"),
        ({"pairs": [(1, 64)]}, "ga_n is 1; it must be an integer of at least 2"),
        ({"pairs": [("auto", 512)]}, "ga_w is 512; it must be below the trained context of 512 tokens"),
        ({"pairs": [("Auto", 64)]}, "or 'auto'"),
        ({"pairs": [(4, 512)]}, "ga_w is 512; it must be below the trained context of 512 tokens"),
        ({"pairs": [(2, 500)], "n_prefill": 800}, "beyond what 2:500 reaches on this model, 524 tokens; give a group"),
        ({"attn": ["fast"]}, "attn is 'fast'; it must be one of auto, fused, composed"),
        ({"caches": ["F17"]}, "F17"),
        ({"caches": ["F16:"]}, "no type of cache"),
        ({"caches": ["Q8_0"], "flash": [False]}, "a cache of type Q8_0 for V needs flash attention"),
        ({"threads": [0]}, "threads is 0; it must be an integer from 1 to"),
        ({"threads": [100000]}, "threads is 100000"),
        ({"n_prefill": 0}, "n_prefill is 0"),
        ({"n_decode": 0}, "n_decode is 0"),
        ({"n_rounds": 0}, "n_rounds is 0"),
        ({"n_batch": 1}, "n_batch is 1; it must be an integer from 32"),
        ({"n_gpu_layers": -1}, "n_gpu_layers is -1"),
        ({"pairs": [], "plain": False, "stock": False}, "nothing to measure"),
    ],
)  # fmt: skip
def test_bad_options(tiny_model: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=re.escape(message)):
        small_plan(tiny_model, **options)


def test_types_and_structs_are_the_engine_s() -> None:
    assert {name: ggml_type(name) for name in CACHE_TYPES} == {name: value for value, name in ENGINE_TYPES.items()}
    for theirs in (bench_worker, runner):
        for name in ("Params", "Layer", "Memory"):
            assert getattr(theirs, name)._fields_ == getattr(_native, name)._fields_
        assert theirs.ATTN == _native.ATTN
    assert bench_worker.N_LAYER_MAX == _native.N_LAYER_MAX


# -- statistics


def test_spread() -> None:
    random = np.random.default_rng(1)
    for n in (2, 3, 4, 5, 10, 31):
        values = [float(value) for value in random.lognormal(size=n)]
        found = bench.Spread.of(values)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        assert (found.low, found.median, found.high) == pytest.approx((low, median, high), rel=1e-12)
        assert found.median == pytest.approx(statistics.median(values), rel=1e-12)
        assert (found.n, found.least, found.most) == (n, min(values), max(values))
    assert bench.Spread.of([3.0]) == bench.Spread(1, 3.0, 3.0, 3.0, 3.0, 3.0)


def measurement(configuration: Configuration, number: int, seconds: float, **fields: object) -> bench.Measurement:
    values = {"phase": "decode", "depth": 0, "threads": 1, "n_tokens": 100, **fields}
    return bench.Measurement(
        configuration, round=number, seconds=seconds, cpu_seconds=seconds, other_cores=0.0, started=0.0,
        ga_n=configuration.ga_n, **values,  # type: ignore[arg-type]
    )  # fmt: skip


def test_ratios_are_formed_in_rounds() -> None:
    """The machine slows down from round to round, all alike: ratios do not see it."""
    slow = dataclasses.replace(STOCK, flash=False)
    times = {STOCK: [1.0, 2.0, 4.0], slow: [2.0, 4.0, 8.0], FUSED: [0.5, 1.0, 1.0]}
    records = [measurement(each, i + 1, seconds) for each, some in times.items() for i, seconds in enumerate(some)]
    rows = {row.configuration: row for row in bench.summarize(records)}
    assert {row.baseline for row in rows.values()} == {STOCK}
    assert rows[FUSED].speed.median == 100.0
    ratio = rows[FUSED].ratio
    assert ratio and (ratio.n, ratio.least, ratio.median, ratio.most) == (3, 2.0, 2.0, 4.0)
    assert rows[slow].ratio == bench.Spread.of([0.5] * 3)
    assert rows[STOCK].ratio == bench.Spread.of([1.0] * 3)


def test_the_baseline_is_the_faster_one_at_each_place() -> None:
    off = dataclasses.replace(STOCK, flash=False)
    quantized = dataclasses.replace(STOCK, type_k="Q8_0", type_v="Q8_0")
    records = [
        measurement(configuration, 1, seconds, depth=depth, threads=threads)
        for (configuration, depth, threads), seconds in {
            (STOCK, 0, 1): 1.0, (off, 0, 1): 2.0, (PLAIN, 0, 1): 1.0,
            (STOCK, 9, 1): 2.0, (off, 9, 1): 1.0, (PLAIN, 9, 1): 1.0,
            (STOCK, 0, 2): 0.1, (quantized, 0, 1): 0.1, (quantized, 9, 1): 0.1,
            (dataclasses.replace(PLAIN, type_k="Q8_0"), 0, 1): 1.0,
        }.items()
    ]  # fmt: skip
    rows = bench.summarize(records)
    found = {(row.depth, row.baseline) for row in rows if row.configuration == PLAIN}
    assert found == {(0, STOCK), (9, off)}
    assert [(row.baseline, row.ratio) for row in rows if row.configuration.type_k != row.configuration.type_v] == [
        (None, None)
    ]


def test_an_unfinished_round() -> None:
    """A configuration that has a round which the baseline has not: the ratio has what both have, or nothing."""
    records = [measurement(STOCK, 1, 1.0), measurement(FUSED, 1, 0.5), measurement(FUSED, 2, 0.1)]
    (ratio,) = [row.ratio for row in bench.summarize(records) if row.configuration == FUSED]
    assert ratio == bench.Spread.of([2.0])
    (ratio,) = [row.ratio for row in bench.summarize([records[0], records[2]]) if row.configuration == FUSED]
    assert ratio is None
    assert bench.summarize([]) == []


def test_changes_are_a_share_of_the_reading() -> None:
    other = dataclasses.replace(AUTO, ga_w=32)
    records: list[bench.Record] = [measurement(AUTO, 1, 9.0)]
    records += [bench.Change(AUTO, 900, 1, i, 4, 8, seconds, 50.0) for i, seconds in enumerate((3.0, 1.0, 2.0), 1)]
    records += [bench.Change(other, 900, 1, 1, 4, 8, 5.0, 20.0)]
    rows = bench.summarize_changes(records)
    assert [(row.configuration, row.depth, row.ga_n, row.ga_n_new, row.share) for row in rows] == [
        (AUTO, 900, 4, 8, 0.04), (other, 900, 4, 8, 0.25)
    ]  # fmt: skip
    assert rows[0].seconds == bench.Spread.of([3.0, 1.0, 2.0])
    assert bench.summarize_changes(records[:1]) == []


def test_time_left() -> None:
    """A token that costs a + b * depth is learned from two depths, for each configuration and number of threads."""

    def step(configuration: Configuration, phase: str, depth: int, n_tokens: int, threads: int = 1) -> Step:
        return Step(configuration, phase, depth, n_tokens, threads)

    def cost(each: Step) -> float:
        a, b = {"fill": (2.0, 0.1), "prefill": (2.0, 0.1), "decode": (30.0, 0.5)}[each.phase]
        return sum(a + b * (each.depth + i + 0.5) for i in range(each.n_tokens)) / each.threads

    remaining = Remaining()
    fill = step(PLAIN, "fill", 0, 100)
    assert remaining.seconds([fill]) is None
    assert remaining.seconds([]) == 0
    for each in (fill, step(PLAIN, "prefill", 100, 50)):
        remaining.learn(each, each.n_tokens, cost(each))
    later = [step(PLAIN, "fill", 150, 1000), step(PLAIN, "prefill", 4000, 10)]
    assert remaining.seconds(later) == pytest.approx(sum(map(cost, later)))
    assert remaining.seconds([step(STOCK, "fill", 150, 1000)]) == pytest.approx(cost(later[0]))  # like the one it knows
    assert remaining.seconds([step(PLAIN, "decode", 0, 1)]) is None
    remaining.learn(step(PLAIN, "decode", 10, 4), 4, 4 * 7.0)
    assert remaining.seconds([step(PLAIN, "decode", 900, 10)]) == pytest.approx(70.0)  # one depth is all it knows
    remaining.learn(step(PLAIN, "prefill", 100, 50, 2), 50, 50 * 3.0)
    assert remaining.seconds([step(PLAIN, "prefill", 900, 10, 2)]) == pytest.approx(30.0)


# -- the whole of it, on a tiny model


@pytest.fixture(scope="module")
def measured(tiny_model: Path, stock_lib: Path) -> bench.Results:
    made = small_plan(
        tiny_model, attn=["fused", "composed"], flash=[True, False], pairs=[(4, 64), ("auto", None)],
        depths=[0, 100, 500, 700],
    )  # fmt: skip
    progress: list[bench.Progress] = []
    records = tuple(bench.run(made, stock_lib, progress.append))
    assert [each.seconds for each in progress] == sorted(each.seconds for each in progress)
    assert progress[-1].seconds_left is not None
    return bench.Results(bench.this_machine(), made, records)


def test_everything_planned_was_measured(measured: bench.Results) -> None:
    expected = [step for step in measured.plan.steps() if step.phase != "fill" and step.round]
    found = measured.of(bench.Measurement)
    assert [(m.configuration, m.phase, m.depth, m.n_tokens, m.threads, m.round) for m in found] == [
        (s.configuration, s.phase, s.depth, s.n_tokens, s.threads, s.round) for s in expected
    ]
    assert all(0 < m.seconds < 60 and m.cpu_seconds > 0 and m.other_cores >= 0 for m in found)
    assert [m.started for m in found] == sorted(m.started for m in found)
    configurations = list(measured.plan.configurations)
    assert [record.configuration for record in measured.of(bench.Opened)] == configurations
    assert [(record.depth, record.configuration) for record in measured.of(bench.Memory)] == list(
        itertools.product(measured.plan.depths, configurations)
    )
    assert [type(record) for record in measured.records[: len(configurations)]] == [bench.Opened] * len(configurations)


def test_groups_in_force(measured: bench.Results) -> None:
    """As the engine says after each measurement: no batch has raised it on the way."""
    groups: dict[tuple[str, int], set[int]] = {}
    for each in measured.of(bench.Measurement):
        groups.setdefault((each.configuration.kind.split(":")[0], each.depth), set()).add(each.ga_n)
    depths = (0, 100, 500, 700)
    for kind, expected in {"stock": [1] * 4, "plain": [1] * 4, "4": [4] * 4, "auto": [1, 1, 2, 4]}.items():
        assert [groups[kind, depth] for depth in depths] == [{ga_n} for ga_n in expected]
    rows = [row for row in bench.summarize(measured.records) if row.configuration.is_auto]
    assert {(row.depth, row.kind.removesuffix(row.configuration.attn)) for row in rows} == {
        (0, "auto 1:64 "), (100, "auto 1:64 "), (500, "auto 2:64 "), (700, "auto 4:64 ")
    }  # fmt: skip
    assert all(row.baseline and row.baseline.is_stock and row.ratio for row in rows)


def test_changes_of_the_group(measured: bench.Results) -> None:
    """Each round of each that follows the length, at the last depth, before its memory is asked for."""
    found = measured.of(bench.Change)
    auto = [each for each in measured.plan.configurations if each.is_auto]
    assert len(auto) == 4
    assert [(each.round, each.configuration) for each in found] == list(itertools.product([1, 2], auto))
    assert {(each.depth, each.ga_n, each.ga_n_new, each.threads) for each in found} == {(700, 4, 8, 1)}
    assert all(0 < each.seconds < each.seconds_reading < 60 for each in found)
    kinds = [type(record) for record in measured.records]
    assert kinds[-len(measured.plan.configurations) - len(found) :][: len(found)] == [bench.Change] * len(found)


def test_cache_and_memory(measured: bench.Results, tiny_model: Path) -> None:
    """The cache is as large as the formula says; the peak has it, and grows."""
    peaks: dict[Configuration, int] = {}
    for record in measured.of(bench.Memory):
        assert record.bytes_peak >= peaks.get(record.configuration, 0)
        peaks[record.configuration] = record.bytes_peak
    for record in measured.of(bench.Opened):
        each = record.configuration
        expected = cache_size(
            model_info(tiny_model).layers, measured.plan.n_ctx, ga_w=64 if ":" in each.kind else None,
            n_ubatch=measured.plan.n_batch, flash_attn=each.flash,
        )  # fmt: skip
        assert record.cache_mib == pytest.approx(expected.n_bytes / 2**20, abs=0.03)
        assert peaks[each] > record.bytes_base + expected.n_bytes


def test_attention_and_devices(measured: bench.Results) -> None:
    for record in measured.of(bench.Opened):
        each = record.configuration
        assert record.attention == ((Attention(each.attn, "CPU", (0, 1)),) if ":" in each.kind else ())
        if each.is_stock:
            assert record.memory == ()
            continue
        (memory,) = record.memory
        assert memory.device == "CPU"
        assert memory.bytes_cache / 2**20 == pytest.approx(record.cache_mib, abs=0.03)
        assert min(memory.bytes_model, memory.bytes_compute) > 0


def test_libraries(measured: bench.Results, stock_lib: Path, engine_lib: Path) -> None:
    for record in measured.of(bench.Opened):
        ours = not record.configuration.is_stock
        assert Path(record.library).parent.samefile(_native.lib_dir() if ours else stock_lib)
        assert record.build == (_native.load().build_info() if ours else {})
        assert "CPU : " in record.system_info
    assert len({record.system_info for record in measured.of(bench.Opened)}) == 1


def test_json(measured: bench.Results, tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    measured.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["speed.json"]
    assert bench.Results.from_json(path.read_text()) == measured

    document = json.loads(path.read_text())
    assert document["format"] == "pyselfextend-bench"
    samples = [record for record in document["records"] if record["record"] == "measurement"]
    speeds: dict[tuple[str, str, int], list[float]] = {}
    for sample in samples:
        configuration = document["plan"]["configurations"][sample["configuration"]]
        key = (json.dumps(configuration), sample["phase"], sample["depth"])
        speeds.setdefault(key, []).append(sample["n_tokens"] / sample["seconds"])
    rows = bench.summarize(measured.records)
    assert len(rows) == len(speeds)
    for row in rows:
        key = (json.dumps(dataclasses.asdict(row.configuration)), row.phase, row.depth)
        assert row.speed.median == pytest.approx(statistics.median(speeds[key]))


def test_json_of_an_earlier_version(measured: bench.Results) -> None:
    """Version 2 did not know of groups that change, version 1 neither of ways and devices."""
    document = json.loads(measured.to_json())
    assert document["version"] == 3
    numbers = [i for i, each in enumerate(measured.plan.configurations) if not each.is_auto]
    old = [record for record in measured.records if measured.plan.configurations.index(record.configuration) in numbers]
    document["records"] = [record for record in document["records"] if record["configuration"] in numbers]
    for configuration in document["plan"]["configurations"]:
        del configuration["ga_n_max"]
    for record in document["records"]:
        record.pop("ga_n", None)
    for version in (2, 1):
        document["version"] = version
        if version == 1:
            for record in document["records"]:
                if record["record"] == "opened":
                    del record["attention"], record["memory"]
            old = [dataclasses.replace(e, attention=(), memory=()) if isinstance(e, bench.Opened) else e for e in old]
        assert list(bench.Results.from_json(json.dumps(document)).records) == old
    published = sorted(Path(__file__).parents[1].glob("docs/results/speed*.json"))
    assert published
    for path in published:
        results = bench.Results.from_json(path.read_text())
        assert bench.Results.from_json(results.to_json()) == results
    document["version"] = 4
    with pytest.raises(BenchError, match=r"^it is pyselfextend-bench 4, not pyselfextend-bench 3$"):
        bench.Results.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "other", "version": 1}', '{"format": 1'])
def test_json_of_something_else(text: str) -> None:
    with pytest.raises(BenchError):
        bench.Results.from_json(text)


def test_machine(measured: bench.Results) -> None:
    machine = measured.machine
    assert machine.memory_bytes == psutil.virtual_memory().total
    assert machine.n_cores == plan_cores()
    assert machine.cpu in Path("/proc/cpuinfo").read_text()
    assert machine.compilers["CXX"] in machine.compilers.values()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", machine.date)


def test_plot(measured: bench.Results, tmp_path: Path) -> None:
    """Both panels are labelled, and every configuration of ours has its line beside the baseline's."""
    from matplotlib import image

    bench.save_plot(measured, tmp_path / "speed.svg")
    texts = re.findall(r"<!-- (.*?) -->", (tmp_path / "speed.svg").read_text())
    assert "Prefill, 48 tokens (1 thread, F16 cache)" in texts
    assert "Decode, 5 tokens (1 thread, F16 cache)" in texts
    assert texts.count("depth (tokens in the cache)") == texts.count("tokens/s (median, quartiles)") == 2
    lines = {each.name for each in measured.plan.configurations if not each.is_stock}
    assert lines | {"stock, flash on or off, the faster one"} <= set(texts)

    bench.save_plot(measured, tmp_path / "speed.png")
    pixels = image.imread(tmp_path / "speed.png")
    assert pixels.shape[0] > 500 and pixels.shape[1] > 1000 and pixels.std() > 0.05


def test_plots_that_cannot_be(measured: bench.Results, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"its name must end in one of .*\.png"):
        bench.check_plot(tmp_path / "speed.txt")
    bench.check_plot(tmp_path / "speed.PNG")
    with pytest.raises(BenchError, match="cannot be written"):
        bench.save_plot(measured, tmp_path / "nowhere" / "speed.png")
    with pytest.raises(BenchError, match="nothing was measured"):
        bench.save_plot(dataclasses.replace(measured, records=()), tmp_path / "speed.png")


@pytest.mark.parametrize("swa_full", [True, False])
def test_sliding_windows(tiny_models: dict[str, Path], stock_lib: Path, swa_full: bool) -> None:
    """Deep behind the model's own window, and back to the same depth for each measurement."""
    made = small_plan(tiny_models["gemma3"], depths=[0, 300], n_prefill=32, swa_full=swa_full)
    records = list(bench.run(made, stock_lib))
    assert len([record for record in records if isinstance(record, bench.Measurement)]) == 4 * 2 * 2 * 2
    for record in records:
        if isinstance(record, bench.Opened) and not record.configuration.is_stock:
            each = record.configuration
            expected = cache_size(
                model_info(tiny_models["gemma3"]).layers, made.n_ctx, ga_w=each.ga_w if each.ga_n > 1 else None,
                n_ubatch=32, flash_attn=each.flash, swa_full=swa_full,
            )  # fmt: skip
            assert record.cache_mib == pytest.approx(expected.n_bytes / 2**20, abs=0.05)


def test_keys_that_cannot_be_turned(tmp_path: Path) -> None:
    """They are read anew with the group of the depth, as ``Llama`` does; there is no change to be timed."""
    path = make_tiny().make(tmp_path / "model.gguf", "hunyuan-dense", 64)
    made = small_plan(path, depths=[40, 60, 150], n_prefill=20, pairs=[("auto", 16)], plain=False, stock=False)
    progress: list[bench.Progress] = []
    records = list(bench.run(made, on_progress=progress.append))
    groups = {each.depth: each.ga_n for each in records if isinstance(each, bench.Measurement)}
    assert groups == {40: 1, 60: 4, 150: 8}
    assert made.changed()
    assert not any(isinstance(each, bench.Change) for each in records)
    assert "filling the cache to 150, at 0: auto:16 fused, flash on, cache F16" in [each.text for each in progress]


def test_a_depth_of_nothing_beyond_the_trained_context(tiny_model: Path) -> None:
    """An empty cache forgets its group; it is set again before each measurement."""
    made = small_plan(tiny_model, depths=[0], n_prefill=700, pairs=[("auto", 64)], plain=False, stock=False)
    assert {each.ga_n for each in bench.run(made) if isinstance(each, bench.Measurement)} == {4}


def test_the_deepest_depth_can_be_measured(tiny_model: Path) -> None:
    made = small_plan(tiny_model, depths=[(512 - 64 + 16) * 4 - 48], plain=False, stock=False, n_rounds=1)
    assert [record.depth for record in bench.run(made) if isinstance(record, bench.Memory)] == list(made.depths)


# -- processes


@pytest.fixture
def opened(tiny_model: Path) -> Iterator[Worker]:
    with Worker("a test", _native.lib_dir()) as worker:
        worker.request("open", **request(tiny_model, _native.lib_dir()))
        yield worker


def request(model: Path, lib: Path, **fields: object) -> dict[str, object]:
    return {
        "lib": str(lib), "model": str(model), "n_ctx": 1024, "n_batch": 64, "n_gpu_layers": 0, "swa_full": True,
        "ga_n": 1, "ga_n_max": 0, "ga_w": 0, "attn": "", "flash": True, "type_k": 1, "type_v": 1, **fields,
    }  # fmt: skip


TURNS = """
import ctypes, json, sys
import numpy as np
from pyselfextend.bench.worker import Bench

bench = Bench(json.loads(sys.argv[1]))

def keys():
    "The state of the sequence, keys and values as they are, as F32; the few numbers before them are none."
    n_bytes = bench.api.llama_state_seq_get_size(bench.ctx, 0)
    state = (ctypes.c_uint8 * n_bytes)()
    assert bench.api.llama_state_seq_get_data(bench.ctx, state, n_bytes, 0) == n_bytes
    return np.frombuffer(bytes(state)[: n_bytes // 4 * 4], np.float32)

list(bench.fill(0, 300, 1, 1))
seen = []
apply_shifts = bench.apply_shifts
bench.apply_shifts = lambda: (apply_shifts(), seen.append((bench.group(), keys())))
done = bench.change(300, 1, 1, 4)
assert done["seconds"] > 0
groups, (before, turned, after) = zip(*seen)
assert turned.shape == before.shape == after.shape
differ = lambda a, b: int(np.sum((a.view(np.int32) != b.view(np.int32)) & ~(np.abs(a - b) < 1e-4)))
print(json.dumps([groups, differ(turned, before), differ(after, before), bench.group(), bench.n_past()]))
"""


def test_a_change_turns_the_keys(tiny_model: Path) -> None:
    """In both layers, and back to what they were; the values and the rest of the state stay as they are."""
    fields = request(tiny_model, _native.lib_dir(), ga_n_max=4, ga_w=64, attn="fused", type_k=0, type_v=0)
    words = [sys.executable, "-c", TURNS, json.dumps(fields)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    groups, n_turned, n_left, group, n_past = json.loads(done.stdout)
    assert (groups, group, n_past) == ([1, 4, 1], 1, 300)
    n_keys = 300 * sum(layer.n_head_kv * layer.n_embd_head_k for layer in model_info(tiny_model).layers)
    assert 0.5 * n_keys < n_turned < 1.1 * n_keys  # the slow dimensions turn by little
    assert n_left < 0.01 * n_turned


def mapped(pid: int) -> set[str]:
    """The shared libraries of llama.cpp that a process has."""
    paths = {line.split()[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()}
    return {path for path in paths if re.search(r"/lib(llama|ggml)[^/]*\.so", path)}


def test_each_worker_has_one_library(opened: Worker, tiny_model: Path, stock_lib: Path) -> None:
    ours = mapped(opened.process.pid)
    assert {Path(path).parent for path in ours} == {_native.lib_dir()}
    with Worker("stock", stock_lib) as worker:
        worker.request("open", **request(tiny_model, stock_lib))
        stock = mapped(worker.process.pid)
        assert str((stock_lib / "libllama.so").resolve()) in stock
        assert stock.isdisjoint(ours)


def test_tokens_that_are_evaluated(opened: Worker) -> None:
    """More than asked for are: the warm-up. What is counted is what is timed."""
    opened.request("fill", depth=0, n_tokens=150, threads=1)
    for phase, n_tokens in (("prefill", 1), ("prefill", 64), ("prefill", 200), ("decode", 1), ("decode", 7)):
        done = opened.request("measure", depth=150, n_tokens=n_tokens, threads=1, phase=phase)
        assert done["n_tokens"] == n_tokens
        assert 0 < done["seconds"] < 60
    assert N_WARM_UP > 0


def test_progress_of_a_fill(opened: Worker) -> None:
    replies: list[dict[str, int]] = []
    opened.request("fill", replies.append, depth=0, n_tokens=150, threads=1)
    assert replies == [{"at": 64}, {"at": 128}, {"at": 150}]
    opened.request("fill", replies.append, depth=150, n_tokens=10, threads=1)
    assert replies[3:] == [{"at": 160}]


def test_a_worker_that_waits_uses_no_cpu(opened: Worker) -> None:
    opened.request("measure", depth=0, n_tokens=20, threads=min(2, plan_cores()), phase="decode")
    time.sleep(0.5)
    before = opened.process.cpu_times()
    time.sleep(1.0)
    after = opened.process.cpu_times()
    assert (after.user + after.system) - (before.user + before.system) <= 0.02


def test_a_worker_that_dies(tiny_model: Path, stock_lib: Path) -> None:
    running = bench.run(small_plan(tiny_model, n_rounds=1000), stock_lib)
    for record in running:
        if isinstance(record, bench.Measurement):
            break
    victim = psutil.Process().children()[1]
    victim.kill()
    with pytest.raises(BenchError, match="the worker of stock, flash off, cache F16 ended by signal SIGKILL"):
        for _ in running:
            pass
    assert not victim.is_running()
    assert psutil.Process().children() == []


def test_a_worker_that_dies_tells_what_it_wrote(opened: Worker) -> None:
    with pytest.raises(BenchError, match=r"the worker of a test ended with exit status 1:\n(?s:.*)TypeError"):
        opened.request("measure", nonsense=1)


def test_closing_early_ends_all(tiny_model: Path, stock_lib: Path) -> None:
    running = bench.run(small_plan(tiny_model), stock_lib)
    next(running)
    assert len(psutil.Process().children()) == 1
    running.close()
    assert psutil.Process().children() == []


ORPHANS = """
import sys, threading
from pathlib import Path
from pyselfextend import bench

plan = bench.make_plan(sys.argv[1], depths=[30000], pairs=[(80, 64)], stock=False, threads=[1], n_batch=512)
for record in bench.run(plan, on_progress=lambda progress: print(progress.text, flush=True)):
    pass
"""


def test_workers_do_not_outlive_their_parent(tiny_model: Path) -> None:
    """Killed without a chance to clean up, while a worker is busy."""
    with subprocess.Popen([sys.executable, "-c", ORPHANS, tiny_model], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        for line in parent.stdout:
            if line.startswith("filling"):
                break
        workers = psutil.Process(parent.pid).children()
        assert len(workers) == 2
        parent.kill()
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert alive == []


# -- what cannot be measured


def test_bad_models(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="there is no file"):
        bench.make_plan(tmp_path / "none.gguf")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_model.read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match="truncated"):
        bench.make_plan(broken)


def test_a_model_that_llama_cpp_does_not_load(tiny_model: Path, tmp_path: Path) -> None:
    """Its file is whole, but a tensor has the name of none."""
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(tiny_model.read_bytes().replace(b"blk.0.attn_k.weight", b"blk.0.attn_x.weight"))
    with pytest.raises(ModelFileError, match=r"^plain, flash on, cache F16: .*odd\.gguf could not be loaded: .*attn_k"):
        list(bench.run(small_plan(odd, stock=False)))


def test_a_model_that_is_not_supported(tmp_path: Path) -> None:
    path = unsupported.make(tmp_path / "mamba.gguf", "mamba")
    with pytest.raises(SettingError, match=r"^4:16 fused, flash on, cache F16: architecture 'mamba' is not supp"):
        list(
            bench.run(
                bench.make_plan(path, pairs=[(4, 16)], depths=[0], n_prefill=32, plain=False, stock=False, threads=[1])
            )
        )


def test_a_stock_folder_without_a_library(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=f"there is no libllama in {tmp_path}"):
        bench.run(small_plan(tiny_model), tmp_path)
    with pytest.raises(SettingError, match="its folder is not given"):
        bench.run(small_plan(tiny_model))


def test_too_little_memory(long_model: Path) -> None:
    made = bench.make_plan(long_model, depths=[2**30], pairs=[], stock=False)
    with pytest.raises(BenchError, match=r"1 configurations with a context of .* need about .* MiB are free"):
        next(bench.run(made))


# -- the command


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "pyselfextend", "bench", *map(str, words)]


SMALL_OPTIONS = ("--pairs", "auto,4:64", "--threads", "1", "--prefill", "40", "--decode", "4", "--rounds", "2")


def test_command(tiny_model: Path, stock_lib: Path, tmp_path: Path) -> None:
    outputs = ["--json", tmp_path / "s.json", "--plot", tmp_path / "s.png"]
    done = subprocess.run(
        command(tiny_model, "--stock", stock_lib, "--depths", "0,600", *SMALL_OPTIONS, *outputs),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "\N{HORIZONTAL ELLIPSIS}" not in done.stdout  # nothing was cut off
    results = bench.Results.from_json((tmp_path / "s.json").read_text())
    assert (tmp_path / "s.png").stat().st_size > 10_000

    for title in (
        "Prefill, 40 tokens, 1 thread, F16 cache",
        "Decode, 4 tokens, 1 thread, F16 cache",
        "Memory, up to a depth of 600",
    ):
        assert title in done.stdout
    for row in bench.summarize(results.records):
        shown = bench_screen._number(row.speed.median)
        assert any(shown in line and row.kind in line for line in done.stdout.splitlines())
    assert {row.kind for row in bench.summarize(results.records) if row.configuration.is_auto} == {
        "auto 1:64 fused", "auto 4:64 fused"
    }  # fmt: skip
    changes = results.of(bench.Change)
    seconds, reading = statistics.median(each.seconds for each in changes), changes[0].seconds_reading
    (line,) = [line for line in done.stdout.splitlines() if "changing the group" in line]
    assert line.startswith("auto:64 fused, flash on, cache F16: changing the group of 600 tokens from 4 to 8 takes ")
    assert f"takes {bench_screen._number(1000 * seconds)} ms (quartiles " in line
    assert f"), {100 * seconds / reading:.2f}% of the " in line
    assert results.machine.cpu in done.stdout
    assert "\nauto:64 fused and 4:64 fused: attention fused on CPU (2 layers)\n" in done.stdout
    (header,) = [line for line in done.stdout.splitlines() if " peak " in line and " cache " in line]
    assert header.split()[-2:] == ["on", "CPU"]
    for record in results.of(bench.Opened):
        (row,) = [line for line in done.stdout.splitlines() if line.strip().startswith(f"{record.configuration}  ")]
        cells = re.split("  +", row.strip())
        assert cells[3:] == [f"{memory.n_bytes / 2**20:.1f} MiB" for memory in record.memory]
    assert _native.load().build_info()["build_id"] in done.stdout
    assert done.stdout.count("baseline") == 5  # four, and the explanation
    assert len(re.findall(r"^depth \d+: .* tokens/s$", done.stderr, re.MULTILINE)) == 2 * 5


def test_an_interrupted_command(tiny_model: Path, stock_lib: Path, tmp_path: Path) -> None:
    """It shows and keeps what has been measured, and leaves nothing running."""
    words = command(
        tiny_model, "--stock", stock_lib, "--depths", "0,64,1000", *SMALL_OPTIONS, "--json", tmp_path / "s.json",
        "--decode", 400,
    )  # fmt: skip
    words[1:3] = [str(Path(__file__).with_name("interruptible.py"))]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        line = process.stderr.readline()
        assert line.startswith("depth 0: ")
        workers = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.endswith("pyselfextend bench: interrupted\n")
    assert "Traceback" not in err
    results = bench.Results.from_json((tmp_path / "s.json").read_text())
    measured = results.of(bench.Measurement)
    assert len([each for each in measured if each.depth == 0]) == 5 * 2 * 2
    assert {each.depth for each in measured} <= {0, 64}
    assert "Prefill, 40 tokens" in out
    assert len(workers) == 5
    assert psutil.wait_procs(workers, timeout=30)[1] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pairs", "4"], "'4' is not G:W"),
        (["--pairs", "1:64"], "'1:64' is not G:W, a group size of at least 2"),
        (["--pairs", "auto:"], "'auto:' is not G:W, a group size of at least 2 and a neighbour window, or auto"),
        (["--pairs", "auto:512"], "bench: ga_w is 512; it must be below the trained context of 512 tokens"),
        (["--depths", "0,-5"], "-5 is not at least 0"),
        (["--depths", "0,5000", "--pairs", "4:64"], "bench: a depth of 5000 and 512 tokens more are beyond"),
        (["--cache", "F99"], "F99"),
        (["--stock", "somewhere", "--no-stock"], "--stock and --no-stock exclude each other"),
        (["--pairs", "4:64", "--no-pairs"], "--pairs and --no-pairs exclude each other"),
        (["--json", "nowhere/s.json"], "nowhere/s.json cannot be written"),
        (["--plot", "speed.doc", "--no-stock"], "no plot can be written to speed.doc"),
        (["--no-plain", "--no-pairs", "--no-stock"], "there is nothing to measure"),
    ],
)  # fmt: skip
def test_bad_words(tiny_model: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    from pyselfextend.cli import main

    assert main(["bench", str(tiny_model), *words]) == 2
    captured = capsys.readouterr()
    assert message in " ".join(captured.err.split())
    assert captured.out == ""
