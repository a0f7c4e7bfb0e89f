"""What ``pyselfextend bench`` shows: where it stands, and its results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress
from rich.table import Table

from ..bench import Memory, Opened, Results, Row, Spread, busy_others, summarize, summarize_changes
from ..bench import Progress as Stand
from ..placement import describe
from ..screen import PlainColumn, clock, mib

__all__ = ["build_bar", "run_bar", "show", "tell_depth"]

#: Cores that others may keep busy without a word about it.
BUSY_OTHERS = 0.1

EXPLANATION = """
vs stock: speed as a multiple of the baseline's, the stock build with flash attention on or off, whichever is faster
there. Ratios are formed in each round. All are medians, with quartiles. Peak memory is that of the configuration's
process, with Python and the pages of the model file that it has read; cache is the library's word, and so is what
weights, cache and computation take on each device, which the stock build does not say."""


@contextmanager
def build_bar(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for the stock build. It is given what is being done, and how many of how many files are done."""
    with _progress(console) as progress:
        task = progress.add_task("", total=None, note="")
        told = ""

        def tell(what: str, n: int, n_all: int) -> None:
            nonlocal told
            if what != told and not console.is_terminal:
                console.print(what)
            told = what
            note = f"{n} of {n_all} files" if n_all else ""
            progress.update(task, description=what, completed=n, total=n_all or None, note=note)

        yield tell


@contextmanager
def run_bar(console: Console) -> Iterator[Callable[[Stand], None]]:
    """A progress bar for the measurements, by time. It is drawn between them: nothing runs beside a measurement."""
    with _progress(console, auto_refresh=False) as progress:
        task = progress.add_task("", total=None, note="")

        def tell(stand: Stand) -> None:
            left = stand.seconds_left
            total = None if left is None else stand.seconds + left
            note = "" if left is None else f"{clock(left)} left"
            progress.update(task, description=stand.text, completed=stand.seconds, total=total, note=note, refresh=True)

        yield tell


def _progress(console: Console, auto_refresh: bool = True) -> Progress:
    columns = (PlainColumn("{task.description}"), BarColumn(), PlainColumn("{task.fields[note]}"))
    is_shown = console.is_terminal
    return Progress(*columns, console=console, disable=not is_shown, transient=True, auto_refresh=auto_refresh)


def tell_depth(console: Console, rows: Sequence[Row]) -> None:
    """A line for each configuration at the depth that was finished last."""
    last = [row for row in rows if row.depth == rows[-1].depth]
    for (configuration, threads), some in _grouped(last, lambda row: (row.configuration, row.threads)):
        speeds = ", ".join(f"{row.phase} {_number(row.speed.median)}" for row in some)
        console.print(f"depth {last[0].depth}: {configuration}, {_threads(threads)}: {speeds} tokens/s", soft_wrap=True)


def show(console: Console, results: Results) -> None:
    """Print what was measured: the machine, speeds, memory."""
    for line in _facts(results):
        console.print(line, soft_wrap=True)
    rows = summarize(results.records)
    for (phase, threads, cache), some in _grouped(rows, lambda row: (row.phase, row.threads, row.configuration.cache)):
        title = f"{phase.capitalize()}, {some[0].n_tokens} tokens, {_threads(threads)}, {cache} cache"
        console.print()
        console.print(_speeds(title, some, has_stock=any(row.baseline for row in rows)))
    if results.of(Memory):
        console.print()
        console.print(_memory(results))
    for line in _changes(results):
        console.print(line, soft_wrap=True)
    console.print(" ".join(EXPLANATION.split()))
    busy = busy_others(results.records)
    if busy > BUSY_OTHERS:
        console.print(f"Other processes kept {busy:.1f} cores busy meanwhile: measure again when the machine is quiet.")


def _facts(results: Results) -> Iterator[str]:
    machine, plan = results.machine, results.plan
    opened = results.of(Opened)
    yield f"{plan.model.name}: {plan.about}, trained on {plan.n_ctx_train} tokens"
    cores = f"{machine.n_cores} of {machine.n_cores_all} cores"
    yield f"{machine.date}, {machine.cpu}, {cores}, {mib(machine.memory_bytes)}, {machine.os}, Python {machine.python}"
    flags = " ".join(filter(None, [machine.build_type, machine.cpu_flags]))
    yield f"compiled by {' and '.join(dict.fromkeys(machine.compilers.values()))}, {flags}"
    for build in [each.build for each in opened if each.build][:1]:
        yield (
            f"pyselfextend {build['version']}, build {build['build_id']}; llama.cpp {build['llama_cpp_commit']} "
            f"of llama-cpp-python {build['llama_cpp_python']}"
        )
    if machine.openmp:
        yield "environment: " + ", ".join(f"{name}={value}" for name, value in machine.openmp.items())
    for devices in dict.fromkeys(each.devices for each in opened if each.devices):
        yield f"devices: {'; '.join(devices)}"
    for info in dict.fromkeys(each.system_info for each in opened):
        names = dict.fromkeys(each.configuration.library for each in opened if each.system_info == info)
        yield f"{' and '.join(names)}: {info}"
    for attention in dict.fromkeys(each.attention for each in opened if each.attention):
        kinds = dict.fromkeys(each.configuration.kind for each in opened if each.attention == attention)
        yield f"{' and '.join(kinds)}: attention {describe(attention)}"
    batches = f"context of {plan.n_ctx} tokens, batches of {plan.n_batch}"
    yield f"{batches}, {plan.n_rounds} rounds, {_number(busy_others(results.records))} cores busy with other processes"


def _speeds(title: str, rows: Sequence[Row], has_stock: bool) -> Table:
    table = _table(title)
    table.add_column("depth", justify="right")
    table.add_column("configuration")
    table.add_column("flash")
    for heading in ("tokens/s", "quartiles") + (("vs stock", "quartiles") if has_stock else ()):
        table.add_column(heading, justify="right")
    for depth, some in _grouped(rows, lambda row: row.depth):
        for i, row in enumerate(some):
            cells = [_number(row.speed.median), _quartiles(row.speed)]
            if row.configuration == row.baseline:
                cells += ["baseline", ""]
            elif row.ratio:
                cells += [_number(row.ratio.median), _quartiles(row.ratio)]
            first = ["" if i else str(depth), row.kind, "on" if row.configuration.flash else "off"]
            table.add_row(*first, *cells, end_section=i + 1 == len(some))
    return table


def _memory(results: Results) -> Table:
    opened = {each.configuration: each for each in results.of(Opened)}
    devices = sorted({memory.device for each in opened.values() for memory in each.memory})
    last = {each.configuration: each for each in results.of(Memory)}
    depth = max((each.depth for each in last.values()), default=0)
    table = _table(f"Memory, up to a depth of {depth}")
    table.add_column("configuration")
    table.add_column("peak", justify="right")
    table.add_column("cache", justify="right")
    for device in devices:
        table.add_column(f"on {device}", justify="right")
    for configuration, each in last.items():
        about = opened[configuration]
        taken = {memory.device: mib(memory.n_bytes) for memory in about.memory}
        cells = [mib(each.bytes_peak), f"{about.cache_mib:.1f} MiB", *(taken.get(device, "") for device in devices)]
        table.add_row(str(configuration), *cells)
    return table


def _changes(results: Results) -> Iterator[str]:
    for row in summarize_changes(results.records):
        yield (
            f"{row.configuration}: changing the group of {row.depth} tokens from {row.ga_n} to {row.ga_n_new} takes "
            f"{_number(1000 * row.seconds.median)} ms (quartiles "
            f"{_number(1000 * row.seconds.low)}-{_number(1000 * row.seconds.high)}), {row.share:.2%} of the "
            f"{_number(row.seconds_reading)} s that reading them took"
        )


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )


def _grouped(rows: Sequence[Row], key: Callable[[Row], Any]) -> Iterator[tuple[Any, list[Row]]]:
    """Rows with the same key together, in the order of their first."""
    order = list(dict.fromkeys(map(key, rows)))
    for value, some in groupby(sorted(rows, key=lambda row: order.index(key(row))), key):
        yield value, list(some)


def _number(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _quartiles(spread: Spread) -> str:
    return f"{_number(spread.low)}-{_number(spread.high)}"


def _threads(n: int) -> str:
    return f"{n} thread{'' if n == 1 else 's'}"
