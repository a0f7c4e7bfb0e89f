"""Evaluate a matrix: models, types of cache, settings, cases."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from .. import _native
from ..errors import EvalError, SelfExtendError
from ..fingerprint import fingerprint
from ..machine import describe
from ..model_info import ModelInfo, model_info
from .cases import Case, Choose, Generate, Score, Task, Tokens
from .metrics import METRICS
from .model import EvalModel
from .results import Result, RunInfo
from .room import check_room
from .settings import Rope, Setting
from .sharing import Reading, cost, n_read, plan_readings

__all__ = ["Column", "Model", "Options", "Watcher", "evaluate", "run_info"]


@dataclass(frozen=True)
class Model:
    """A model file."""

    path: Path
    label: str
    """The file's name, with that of its folder where two have the same."""

    n_bytes: int
    digest: str
    info: ModelInfo
    rope: Rope


@dataclass(frozen=True)
class Column:
    """A model under one setting, with one type of cache: what is open at a time."""

    model: Model
    setting: Setting
    type_k: str
    type_v: str


@dataclass(frozen=True)
class Options:
    """How models are opened. Nothing here changes what is asked, except ``chat``."""

    n_threads: int | None = None
    """None for llama_cpp's default."""

    n_gpu_layers: int = 0
    flash_attn: bool = True
    chat: bool | None = None
    """Whether prompts stand in the model's chat template, if it has one. None: as each task is defined."""


class Watcher(Protocol):
    """Is told how a run goes. Costs are in the units of ``sharing.cost``."""

    def begin(self, column: Column, n_cases: int, total: float, later: float) -> None:
        """A column is opened; ``total`` is the cost of the cases that are left in it, ``later`` about that of all
        columns after it."""

    def advance(self, done: float) -> None:
        """Some more of it has been done."""


@dataclass(frozen=True)
class _Plan:
    """What is left to do in a column."""

    column: Column
    n_ctx: int
    cases: list[Case]
    readings: list[Reading]
    error: str
    """Why none of it can be done; empty if it can."""

    @property
    def total(self) -> float:
        return sum(_cost(case, reading) for case, reading in zip(self.cases, self.readings, strict=True))


def evaluate(
    models: Sequence[Path],
    tasks: Sequence[Task],
    settings: Sequence[Setting],
    caches: Sequence[tuple[str, str]] = (("F16", "F16"),),
    *,
    options: Options | None = None,
    done: Collection[tuple[str, ...]] = frozenset(),
    watcher: Watcher | None = None,
) -> Iterator[Result]:
    """Ask every case of every task under every setting, and yield the results as they come.

    All settings and types of cache of a model get the same prompts; so do models with the same tokenizer. A case that
    fails yields a result with ``error``, and the others go on.

    Args:
        models: GGUF files.
        tasks: what to ask.
        settings: as parsed; windows that are left open are the default of the model, factors fit the longest case.
        caches: types of K and V.
        options: how models are opened.
        done: identities of results (``Result.identity``) that are there already: these cases are left out.
        watcher: is told of the progress.

    Raises:
        ModelFileError: a file is not a model that llama.cpp can load.
        EvalError: a task cannot make its cases for a model.
    """
    options = options or Options()
    opened = _models(models)
    cases = [_cases(model, tasks, options) for model in opened]  # what cannot be asked is said before anything runs
    seen = set(done)
    plans = [
        _plan(model, setting, cache, asked, seen)
        for model, asked in zip(opened, cases, strict=True)
        for cache in caches
        for setting in settings
    ]
    totals = [plan.total for plan in plans]
    for i, plan in enumerate(plans):
        if watcher is not None:
            watcher.begin(plan.column, len(plan.cases), totals[i], sum(totals[i + 1 :]))
        yield from _carry_out(plan, options, watcher)


def run_info(command: str = "") -> RunInfo:
    """This machine and this version, now: what a report states beside results.

    Args:
        command: the command line; empty when called from Python.
    """
    return RunInfo(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        version=metadata.version("pyselfextend"),
        build_id=_native.load().build_info()["build_id"],
        machine=describe(),
        command=command,
    )


def _models(paths: Sequence[Path]) -> list[Model]:
    """The models of some files, each file once."""
    paths = list({path.resolve(): path for path in paths}.values())
    names = Counter(path.name for path in paths)
    found = []
    for path in paths:
        info = model_info(path)
        label = path.name if names[path.name] == 1 else f"{path.resolve().parent.name}/{path.name}"
        found.append(Model(path, label, path.stat().st_size, fingerprint(path), info, Rope.of(info)))
    return found


def _cases(model: Model, tasks: Sequence[Task], options: Options) -> list[Case]:
    """The cases for a model's tokenizer."""
    with EvalModel(model.path, Setting("plain"), model.rope, 64) as opened:  # for its tokenizer alone
        cases = [
            case
            for task in tasks
            for case in task.cases(opened.tokenizer(task.chat if options.chat is None else options.chat))
        ]
    if not cases:
        raise EvalError(f"there is nothing to ask of {model.path}: no case")
    return cases


def _plan(
    model: Model,
    setting: Setting,
    cache: tuple[str, str],
    cases: Sequence[Case],
    seen: set[tuple[str, ...]],
) -> _Plan:
    n_ctx, error = max(case.query.n_ctx for case in cases), ""
    try:
        setting = setting.resolve(model.rope, n_ctx)
        n_ctx = min(n_ctx, setting.n_ctx_max(model.rope) or n_ctx)
    except SelfExtendError as refused:
        error = str(refused)
    column = Column(model, setting, *cache)
    left = []
    for case in cases:
        if (identity := _blank(column, case).identity) not in seen:
            seen.add(identity)
            left.append(case)
    groups = None if error else [setting.group(model.rope, _n_read(case)) for case in left]
    return _Plan(column, n_ctx, left, plan_readings([_prompt(case) for case in left], groups), error)


def _carry_out(plan: _Plan, options: Options, watcher: Watcher | None) -> Iterator[Result]:
    if not plan.cases:
        return
    column, error, model = plan.column, plan.error, None
    try:
        if not error:
            is_extended = column.setting.group(column.model.rope, plan.n_ctx) > 1
            check_room(
                column.model.info, plan.n_ctx, column.setting.ga_w if is_extended else None,
                type_k=column.type_k, type_v=column.type_v, n_gpu_layers=options.n_gpu_layers,
                flash_attn=options.flash_attn,
            )  # fmt: skip
            model = EvalModel(
                column.model.path, column.setting, column.model.rope, plan.n_ctx,
                type_k=column.type_k, type_v=column.type_v, n_threads=options.n_threads,
                n_gpu_layers=options.n_gpu_layers, flash_attn=options.flash_attn,
                progress=None if watcher is None else lambda n, n_past: watcher.advance(cost(n, n_past)),
            )  # fmt: skip
    except SelfExtendError as refused:
        error = str(refused)
    try:
        for case, reading in zip(plan.cases, plan.readings, strict=True):
            yield _result(model, column, case, reading, error)
    finally:
        if model is not None:
            model.close()


def _prompt(case: Case) -> Tokens:
    """What is read before anything is asked."""
    query = case.query
    return query.text[: -query.n_scored] if isinstance(query, Score) else query.prompt


def _n_read(case: Case) -> int:
    query, n_prompt = case.query, len(_prompt(case))
    if isinstance(query, Generate):
        return n_read(n_prompt, query.n_predict)
    return n_read(n_prompt, n_scored=query.n_ctx - n_prompt)  # with the longest choice


def _cost(case: Case, reading: Reading) -> float:
    query = case.query
    n_prompt = len(_prompt(case))
    found = cost(n_prompt - reading.n_shared, reading.n_shared)
    if isinstance(query, Generate):
        return found + cost(query.n_predict, n_prompt) + cost(max(0, len(query.gold) - 1), n_prompt)
    if isinstance(query, Score):
        return found + cost(query.n_scored, n_prompt)
    return found + sum(cost(len(choice), n_prompt) for choice in query.choices)


def _blank(column: Column, case: Case) -> Result:
    """A result that says only whose it is."""
    return Result(
        model=column.model.path.name,
        model_bytes=column.model.n_bytes,
        model_digest=column.model.digest,
        n_ctx_train=column.model.rope.n_ctx_train,
        setting=str(column.setting),
        type_k=column.type_k,
        type_v=column.type_v,
        task=case.task,
        key=case.key,
        digest=case.digest,
        axes=dict(case.axes),
        n_prompt=sum(map(len, case.query.tokens)),
        seconds=0.0,
    )


def _result(model: EvalModel | None, column: Column, case: Case, reading: Reading, error: str) -> Result:
    blank = _blank(column, case)
    if model is None:
        return replace(blank, error=error)
    reach = column.setting.n_ctx_max(column.model.rope)
    if reach is not None and case.query.n_ctx > reach:
        what = str(column.setting) if column.setting.kind == "pair" else "a model with learned positions"
        return replace(blank, error=f"{what} reaches {reach} tokens, the case needs {case.query.n_ctx}")
    started = time.monotonic()
    try:
        asked = _ask(model, case, reading)
    except (SelfExtendError, MemoryError, RuntimeError, ValueError) as failed:
        return replace(blank, seconds=round(time.monotonic() - started, 3), error=str(failed) or type(failed).__name__)
    return replace(blank, seconds=round(time.monotonic() - started, 3), **asked)


def _ask(model: EvalModel, case: Case, reading: Reading) -> dict[str, Any]:
    """The fields of a result."""
    query = case.query
    if isinstance(query, Generate):
        answer = model.answer(query.prompt, query.n_predict, query.stop, reading.n_keep, query.gold)
        score = METRICS[query.metric](answer.text, query.references, query.options)
        found = {"score": score, "answer": answer.text, "references": query.references, "metric": query.metric}
        gold = math.fsum(answer.gold)
        if answer.gold and math.isfinite(gold):
            found |= {"gold_log_prob": gold, "n_gold": len(answer.gold)}
        return found
    if isinstance(query, Score):
        n = len(query.text) - query.n_scored
        nll = -float(model.log_probs(query.text[:n], query.text[n:], reading.n_keep).values.sum())
        if not math.isfinite(nll):
            raise EvalError("the probability of a token is 0")
        return {"nll": nll, "n_scored": query.n_scored}
    return {"score": float(_choice(model, query, reading) == query.gold), "metric": "acc_bytes"}


def _choice(model: EvalModel, query: Choose, reading: Reading) -> int:
    """The index of the choice with the largest log probability for each byte."""
    means = []
    for i, (choice, n_bytes) in enumerate(zip(query.choices, query.n_bytes, strict=True)):
        again = i + 1 < len(query.choices)
        means.append(float(model.log_probs(query.prompt, choice, reading.n_keep, again).values.sum()) / n_bytes)
    return means.index(max(means))
