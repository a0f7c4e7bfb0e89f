"""Runs a plan: a worker process for each configuration, one measurement at a time.

What else could disturb a comparison, and what is done about it. Workers that wait use no CPU: they wait for a pipe, and
OpenMP's threads sleep when they have had nothing to do for some milliseconds, which each measurement lets pass before
it begins. The model file's pages are shared by all. Every process has one context, so that its peak memory is its own.
How busy other processes kept the cores is measured along, so that a disturbed run is seen.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from .. import _native
from ..cache_size import cache_size
from ..errors import BenchError, SettingError
from ..memory import free_memory
from ..model_info import model_info
from .plan import Configuration, Plan, Step, ggml_type
from .process import Worker
from .records import Change, Measurement, Memory, Record, opened_from
from .remaining import Remaining
from .stock import lib_file

__all__ = ["OnProgress", "Progress", "run"]

PAUSE = 0.05  # seconds before a measurement: OpenMP's threads of the worker before spin for a while


@dataclass(frozen=True)
class Progress:
    """Where a benchmark stands."""

    text: str
    """What is being done."""

    seconds: float
    """Since it began."""

    seconds_left: float | None
    """Until it ends. None: not known yet."""


OnProgress = Callable[[Progress], None]


def run(plan: Plan, stock: Path | None = None, on_progress: OnProgress | None = None) -> Generator[Record]:
    """Measure what is planned. Yields an ``Opened`` for each configuration, a ``Measurement`` for each counted one, a
    ``Memory`` for each configuration at the end of each depth, and before the last of these a ``Change`` for each round
    of ``plan.changed()``, unless the model's keys cannot be turned.

    Nothing is measured before all configurations are open. Closing the generator ends all processes; so does Ctrl-C.

    Args:
        plan: see ``make_plan``.
        stock: the folder of the stock libllama, see ``stock_lib``; needed if the plan has the stock build.
        on_progress: called now and then.

    Raises:
        ModelFileError: the model cannot be loaded.
        SettingError: a configuration is refused by the engine.
        NativeLibraryError: the package was not built.
        BenchError: there is not enough memory, or a worker has died; the message has what it wrote.
    """
    return _Run(plan, stock, on_progress or (lambda _: None)).records()


class _Run:
    def __init__(self, plan: Plan, stock: Path | None, on_progress: OnProgress) -> None:
        if stock is None and any(configuration.is_stock for configuration in plan.configurations):
            raise SettingError("the plan has the stock build, but its folder is not given")
        if stock is not None:
            lib_file(stock)
        self.plan, self.stock, self.on_progress = plan, stock, on_progress
        self.todo = deque(plan.steps())
        self.remaining = Remaining()
        self.seconds_reading: defaultdict[Configuration, float] = defaultdict(float)
        self.started = time.monotonic()

    def records(self) -> Generator[Record]:
        _check_memory(self.plan)
        with contextlib.ExitStack() as stack:
            workers: dict[Configuration, Worker] = {}
            for i, configuration in enumerate(self.plan.configurations):
                self._tell(f"loading the model {i + 1}/{len(self.plan.configurations)}: {configuration}")
                lib = self.stock if configuration.is_stock else _native.lib_dir()
                assert lib is not None
                workers[configuration] = stack.enter_context(Worker(str(configuration), lib))
                opened = workers[configuration].request("open", **_arguments(self.plan, configuration, lib))
                yield opened_from({**opened, "configuration": configuration})

            while self.todo:
                step = self.todo.popleft()
                worker = workers[step.configuration]
                if step.phase == "fill":
                    self._fill(worker, step)
                elif (measurement := self._measure(worker, step)).round > 0:
                    yield measurement
                if not self.todo:
                    yield from self._changes(workers)
                if step.phase != "fill" and (not self.todo or self.todo[0].phase == "fill"):
                    for configuration, worker in workers.items():
                        yield Memory(configuration, step.depth, **worker.request("memory"))

    def _fill(self, worker: Worker, step: Step) -> None:
        at, start = step.depth, time.monotonic()
        then = start

        def on_reply(reply: Mapping[str, Any]) -> None:
            nonlocal at, then
            now = time.monotonic()
            n_tokens = reply["at"] - at
            if n_tokens > 0:  # it has not begun anew
                part = Step(step.configuration, "fill", at, n_tokens, step.threads)
                self.remaining.learn(part, n_tokens, now - then)
            at, then = reply["at"], now
            rest = Step(step.configuration, "fill", at, step.depth + step.n_tokens - at, step.threads)
            self._tell(f"filling the cache to {step.depth + step.n_tokens}, at {at}: {step.configuration}", rest)

        ga_n = self._group(step.configuration, step.depth + step.n_tokens)
        worker.request("fill", on_reply, depth=step.depth, n_tokens=step.n_tokens, threads=step.threads, ga_n=ga_n)
        self.seconds_reading[step.configuration] += time.monotonic() - start

    def _group(self, configuration: Configuration, depth: int) -> int | None:
        """The group size to set at a depth. None: it stays as it is."""
        return self.plan.group(configuration, depth) if configuration.is_auto else None

    def _changes(self, workers: Mapping[Configuration, Worker]) -> Iterator[Change]:
        """The group of all tokens at the last depth is doubled, and taken back, in each round."""
        depth, threads = self.plan.depths[-1], max(self.plan.threads)
        for number in range(1, self.plan.n_rounds + 1):
            for each in self.plan.changed():
                self._tell(f"changing the group at {depth}, round {number}/{self.plan.n_rounds}: {each}")
                time.sleep(PAUSE)
                ga_n = self.plan.group(each, depth)
                done = workers[each].request("change", depth=depth, threads=threads, ga_n=ga_n, ga_n_new=2 * ga_n)
                if done is not None:
                    yield Change(
                        each, depth, threads, number, ga_n, 2 * ga_n, done["seconds"], self.seconds_reading[each]
                    )

    def _measure(self, worker: Worker, step: Step) -> Measurement:
        which = f"round {step.round}/{self.plan.n_rounds}" if step.round else "warm-up"
        self._tell(f"{step.phase} at {step.depth}, {which}: {step.configuration}", step)
        time.sleep(PAUSE)
        began = time.monotonic()
        busy, own = _busy_seconds(), _cpu_seconds(worker)
        done = worker.request(
            "measure", depth=step.depth, phase=step.phase, n_tokens=step.n_tokens, threads=step.threads,
            ga_n=self._group(step.configuration, step.depth),
        )  # fmt: skip
        wall = time.monotonic() - began
        others = (_busy_seconds() - busy - (_cpu_seconds(worker) - own)) / wall
        if done["n_tokens"] != step.n_tokens:
            raise BenchError(f"{step.configuration} evaluated {done['n_tokens']} tokens instead of {step.n_tokens}")
        self.remaining.learn(step, step.n_tokens, wall + PAUSE)
        return Measurement(
            step.configuration, step.phase, step.depth, step.threads, step.round, step.n_tokens,
            seconds=done["seconds"], cpu_seconds=done["cpu_seconds"], other_cores=max(0.0, others),
            started=began - self.started, ga_n=done["ga_n"] or step.configuration.ga_n,
        )  # fmt: skip

    def _tell(self, text: str, *now: Step) -> None:
        left = self.remaining.seconds([*now, *self.todo])
        self.on_progress(Progress(text, time.monotonic() - self.started, left))


def _arguments(plan: Plan, configuration: Configuration, lib: Path) -> dict[str, Any]:
    return {
        "lib": str(lib),
        "model": str(plan.model),
        "n_ctx": plan.n_ctx,
        "n_batch": plan.n_batch,
        "n_gpu_layers": plan.n_gpu_layers,
        "swa_full": plan.swa_full,
        "ga_n": configuration.ga_n,
        "ga_n_max": configuration.ga_n_max,
        "ga_w": configuration.ga_w,
        "attn": configuration.attn,
        "flash": configuration.flash,
        "type_k": ggml_type(configuration.type_k),
        "type_v": ggml_type(configuration.type_v),
    }


def _check_memory(plan: Plan) -> None:
    """All caches exist at the same time, and the weights once."""
    info = model_info(plan.model)
    if plan.n_gpu_layers or not info.has_plain_cache:
        return
    needed = info.bytes_weights
    for each in plan.configurations:
        needed += cache_size(
            info.layers,
            plan.n_ctx,
            ga_w=each.ga_w if each.is_extended else None,
            type_k=each.type_k,
            type_v=each.type_v,
            n_ubatch=plan.n_batch,
            swa_full=plan.swa_full,
            flash_attn=each.flash,
        ).n_bytes
    free = free_memory().n_bytes
    if needed > free:
        raise BenchError(
            f"{len(plan.configurations)} configurations with a context of {plan.n_ctx} tokens need about "
            f"{needed / 2**20:.0f} MiB, of which {free / 2**20:.0f} MiB are free; take fewer, or smaller depths"
        )


def _busy_seconds() -> float:
    """CPU time that the cores of this process have given to anyone, or lost to other virtual machines."""
    times = psutil.cpu_times(percpu=True)
    process = psutil.Process()
    cores = process.cpu_affinity() if hasattr(process, "cpu_affinity") else range(len(times))
    idle = ("idle", "iowait", "guest", "guest_nice")  # guests are part of user and nice
    busy = (value for core in cores or () for name, value in times[core]._asdict().items() if name not in idle)
    return float(sum(busy))


def _cpu_seconds(worker: Worker) -> float:
    try:
        times = worker.process.cpu_times()
    except psutil.Error:  # it has died; the request that follows says so
        return 0.0
    return float(times.user + times.system)
