"""The work of ``pyselfextend tune``: readings into their file as they come, and what they say at the end."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

from .. import measured
from ..errors import EvalError
from ..eval.run import run_info
from ..screen import CaseBar, case_bar, clock, progress_console, result_console
from ..terminal import printable
from ..tune.choice import choose, table
from ..tune.document import Document, Reading, ResultFile
from ..tune.plan import Plan
from ..tune.run import Task, carry_out, left, texts_of
from .tune_screen import show

__all__ = ["Request", "run"]


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    plan: Plan
    output: Path | None
    """None: where ``auto`` finds it."""

    plot: Path | None
    as_json: bool
    n_threads: int
    n_gpu_layers: int


def run(request: Request) -> None:
    """Measure what is not there yet, keep it, and show it.

    Raises:
        EvalError: it cannot run, or be written.
        KeyboardInterrupt: Ctrl-C; it has been said how to go on.
    """
    started = time.monotonic()
    plan, console = request.plan, progress_console()
    if request.plot is not None:
        from ..tune.plot import check_plot

        check_plot(request.plot)
    file = ResultFile(_place(request))
    document = file.load(Document.of(plan))
    texts = texts_of(plan)
    tasks = left(plan, texts, document)
    console.print(_about(plan, tasks, document), soft_wrap=True)
    if tasks:
        info = run_info(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))
        document = replace(document, runs=(*document.runs, info))
    try:
        with case_bar(console) as bar:
            bar.begin(plan.model.path.name, len(tasks), sum(task.cost for task in tasks), 0)
            for reading in carry_out(
                plan, tasks, n_threads=request.n_threads, n_gpu_layers=request.n_gpu_layers, watcher=_Watcher(bar)
            ):
                document = replace(document, readings=(*document.readings, reading))
                file.keep(document)
                bar.finish(_line(reading))
    except KeyboardInterrupt:
        if file.unfinished.exists():
            note = f"what has been measured is in {file.unfinished}; the same command goes on there"
            console.print(f"\n{printable(note, lines=False)}", soft_wrap=True)
        raise

    digests = {text.digest for text in texts}
    readings = [each for each in document.readings if each.digest in digests and each.ga_n in plan.groups]
    choices = choose(readings, plan.model.n_ctx_train, plan.ga_w)
    document = replace(document, readings=tuple(readings), groups=table(choices))
    file.finish(document)
    try:
        if request.plot is not None:
            from ..tune.plot import save_plot

            save_plot(choices, document, request.plot)
    finally:  # the result is there
        if request.as_json:
            click.echo(document.to_json(), nl=False)
        else:
            show(result_console(), plan, choices, file.path, is_found=request.output is None)
    console.print(f"took {clock(time.monotonic() - started)} minutes")


def _place(request: Request) -> Path:
    if request.output is not None:
        return request.output
    place = measured.place(request.plan.digest, request.plan.ga_w)
    if place is None:
        raise EvalError("there is no data folder: set PYSELFEXTEND_DATA_DIR, or give --output FILE")
    return place


class _Watcher:
    """Hands on to a bar."""

    def __init__(self, bar: CaseBar) -> None:
        self._bar = bar

    def advance(self, done: float) -> None:
        """See ``tune.run.Watcher``."""
        self._bar.advance(done)


def _about(plan: Plan, tasks: Sequence[Task], document: Document) -> str:
    """What is going to be measured."""
    name = printable(plan.model.path.name, lines=False)
    groups = ", ".join(
        f"{ga_n} up to {max(task.places[-1].n_tokens for task in tasks if task.ga_n == ga_n)}"
        for ga_n in dict.fromkeys(task.ga_n for task in tasks)
    )
    done = len(plan.groups) * plan.samples - len(tasks)
    there = f"; {done} {'is' if done == 1 else 'are'} there already" if done else ""
    if not tasks:
        return f"{name}: nothing is left to measure"
    n_tokens = sum(task.places[-1].n_tokens for task in tasks)
    return (
        f"{name}: {len(tasks)} reading{'s' if len(tasks) > 1 else ''}, {n_tokens} tokens in all, of a text with the "
        f"group sizes {groups} tokens{there}"
    )


def _line(reading: Reading) -> str:
    """A reading in a line."""
    last = reading.stops[-1]
    log_p = math.fsum(answer.log_p for answer in last.answers) / len(last.answers)
    return (
        f"group {reading.ga_n}, text {reading.sample + 1}: at {last.n_tokens} tokens log p {log_p:.2f}, perplexity "
        f"{math.exp(last.nll / last.n_scored):.2f} ({reading.seconds:.1f} s)"
    )
