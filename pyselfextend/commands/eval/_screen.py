"""Goes through an evaluation: progress while it runs, results into their file, tables and the report at the end."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ...eval.cases import Task
from ...eval.results import Result, ResultsFile, RunInfo
from ...eval.run import Column, Options, evaluate, run_info
from ...eval.settings import Setting
from ...screen import CaseBar, case_bar, clock, progress_console, result_console
from ...terminal import printable
from ._report import check_report, show_report

__all__ = ["Request", "run_and_show"]

#: The name of the results in a run's folder.
RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    models: tuple[Path, ...]
    task: Task
    settings: tuple[Setting, ...]
    caches: tuple[tuple[str, str], ...]
    folder: Path
    report: bool
    retry: bool
    options: Options


def run_and_show(request: Request) -> int:
    """Run it, and return the exit status."""
    started = time.monotonic()
    path = request.folder / RESULTS
    if request.report:
        check_report()  # what it needs is missed now, not after hours
    with ResultsFile(path, retry_failed=request.retry) as file:
        if file.done:
            note = f"{path} holds {len(file.done)} results, which are not repeated"
            progress_console().print(note, markup=False, soft_wrap=True)
        info: RunInfo = run_info(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))
        if file.builds - {info.build_id}:
            note = "some of them were made with another build of the engine; another --out asks everything again"
            progress_console().print(note, markup=False, soft_wrap=True)
        is_said = False
        with case_bar(progress_console()) as bar:
            for result in evaluate(
                request.models,
                [request.task],
                request.settings,
                request.caches,
                options=request.options,
                done=file.done,
                watcher=_Watcher(bar),
            ):
                if not is_said:
                    file.append(info)
                    is_said = True
                file.append(result)
                bar.finish(_line(result))
    console = result_console()
    if request.report:
        show_report([path], request.folder, console)
    console.print(f"results in {path}, took {clock(time.monotonic() - started)} minutes", markup=False, soft_wrap=True)
    return int(bool(file.failed))


class _Watcher:
    """Hands on to a bar."""

    def __init__(self, bar: CaseBar) -> None:
        self._bar = bar

    def begin(self, column: Column, n_cases: int, total: float, later: float) -> None:
        """See ``run.Watcher``."""
        cache = column.type_k if column.type_k == column.type_v else f"{column.type_k}:{column.type_v}"
        self._bar.begin(f"{column.model.label} {column.setting} {cache}", n_cases, total, later)

    def advance(self, done: float) -> None:
        """See ``run.Watcher``."""
        self._bar.advance(done)


def _line(result: Result) -> str:
    """A result in a line."""
    if result.error:
        outcome = f"failed: {result.error}"
    elif result.nll is not None:
        outcome = f"{result.nll / result.n_scored:.4f} nats a token"
    else:
        outcome = f"score {result.score:.2f}"
        if result.answer:
            outcome += f" {' '.join(printable(result.answer).split())[:60]!r}"
        if result.gold_mean is not None:
            outcome += f", right answer {result.gold_mean:.4f} nats a token"
    return f"{result.task} {result.key}: {outcome} ({result.seconds:.1f} s)"
