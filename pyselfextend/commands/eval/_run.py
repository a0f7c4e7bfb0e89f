"""What the tasks' commands have in common: options for models, caches and settings, and going through the cases."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .._command import Command, option
from .._options import FRACTION, GGUF_FILE, LENGTH_MAX, CommaSeparated, Integer, NamedPath, prose, threads

if TYPE_CHECKING:
    from ...eval.cases import Task
    from ...eval.settings import Setting

__all__ = ["COUNT_MAX", "data", "depths", "eval_command", "lengths", "limit", "samples", "text"]

_Function = Callable[..., Any]

#: All prompts of a task are made before anything is asked, and a mistaken number would take all memory.
COUNT_MAX = 10_000  # samples of a kind, or windows


class SettingType(click.ParamType["Setting"]):
    """``plain``, ``auto``, ``G:W``, ``yarn``, ``linear`` or ``ntk``."""

    name = "setting"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Setting:
        """Parse it."""
        from ...errors import SettingError
        from ...eval.settings import Setting

        if isinstance(value, Setting):
            return value
        try:
            return Setting.parse(value)
        except SettingError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """The kinds that name themselves, and the maps."""
        from ...eval.settings import FOLLOWING, KINDS

        names = (*KINDS, *FOLLOWING)
        return [click.shell_completion.CompletionItem(name) for name in names if name.startswith(incomplete)]


class CacheType(click.ParamType[tuple[str, str]]):
    """A type of K and V, or two with a colon between them."""

    name = "type"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Check it."""
        from ...cache_size import CACHE_TYPES

        if isinstance(value, tuple):
            return value
        type_k, _, type_v = value.upper().partition(":")
        found = (type_k, type_v or type_k)
        for name in found:
            if name not in CACHE_TYPES:
                self.fail(f"{name!r} is not one of {', '.join(CACHE_TYPES)}", param, ctx)
        return found

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """The names of the types."""
        from ...cache_size import CACHE_TYPES

        return [
            click.shell_completion.CompletionItem(name) for name in CACHE_TYPES if name.startswith(incomplete.upper())
        ]


def eval_command(*examples: str) -> Callable[[_Function], click.Command]:
    """Make a task's command of a function that takes the task's own options and returns the task.

    Args:
        examples: lines for a shell.
    """
    shared: list[Callable[[_Function], _Function]] = [
        click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=GGUF_FILE),
        option(
            "--setting", "settings", type=CommaSeparated(SettingType()), metavar="S,...", section="What is compared",
            help="plain; auto, a group that follows the length, also with a neighbour window (auto:1024); G:W, a group "
            "size and a neighbour window (4: has the model's); another map of positions, jet-long, rerope, leaky or "
            "lampe, also with a window or a pair; yarn, linear, ntk or mrrope, also with a factor (yarn:4).  "
            "[default: plain and auto, or plain and 2:W where all prompts fit into the trained window]",
        ),
        option(
            "--sweep", type=(CommaSeparated(Integer(2)), CommaSeparated(Integer(0))), metavar="G,... W,...",
            section="What is compared", help="All pairs of these group sizes and neighbour windows as well.",
        ),
        option(
            "--cache", "caches", type=CommaSeparated(CacheType()), default="F16", metavar="T,...",
            section="What is compared", help="Types of the KV cache, or of K and V apart (Q8_0:F16).",
        ),
        option(
            "--out", type=NamedPath(file_okay=False), metavar="DIR", section="Results",
            help="Folder of the results and of the report. If it has results of the same run, that is gone on with.  "
            "[default: eval-TASK]",
        ),
        option("--report/--no-report", default=True, section="Results", help="Make the report at the end."),
        option(
            "--retry", is_flag=True, section="Results", show_default=False,
            help="Ask cases that have failed before once more.",
        ),
        option(
            "--chat/--no-chat", default=None, section="Running",
            help="Put prompts in the model's chat template, if it has one.  [default: as the task is defined]",
        ),
        threads("Running"),
        option(
            "--gpu-layers", type=Integer(-1), default=0, metavar="N", section="Running",
            help="Layers on the GPU; -1 is all.",
        ),
        option(
            "--flash-attn/--no-flash-attn", default=True, section="Running",
            help="llama.cpp's flash attention. A quantized V needs it.",
        ),
    ]  # fmt: skip

    def decorate(make_task: _Function) -> click.Command:
        @functools.wraps(make_task)
        def run(
            models: tuple[Path, ...],
            settings: tuple[Setting, ...] | None,
            sweep: tuple[tuple[int, ...], tuple[int, ...]] | None,
            caches: tuple[tuple[str, str], ...],
            out: Path | None,
            report: bool,
            retry: bool,
            chat: bool | None,
            threads: int,
            gpu_layers: int,
            flash_attn: bool,
            **options: Any,
        ) -> int:
            from ...eval.run import Options
            from ._screen import Request, run_and_show

            task: Task = make_task(**options)
            request = Request(
                models=models,
                task=task,
                settings=_settings(settings, sweep, models, task),
                caches=caches,
                folder=Path(f"eval-{task.name}") if out is None else out,
                report=report,
                retry=retry,
                options=Options(threads, gpu_layers, flash_attn, chat),
            )
            return run_and_show(request)

        statuses = {0: "done", 1: "done, but some cases failed; the report says which"}
        decorated: _Function = run
        for decorate_option in reversed(shared):
            decorated = decorate_option(decorated)
        make: Callable[[_Function], click.Command] = click.command(
            cls=Command, examples=examples, exit_statuses=statuses
        )
        command = make(decorated)
        command.params = command.params[len(shared) :] + command.params[: len(shared)]  # help begins with the task's
        return command

    return decorate


def _settings(
    settings: tuple[Setting, ...] | None,
    sweep: tuple[tuple[int, ...], tuple[int, ...]] | None,
    models: Sequence[Path],
    task: Task,
) -> tuple[Setting, ...]:
    """What was asked for, each once, in its order."""
    from ...eval.settings import Rope, Setting
    from ...groups import default_ga_w

    found = list(settings or ())
    if sweep is not None:
        found += [Setting("pair", ga_n, ga_w) for ga_n, ga_w in itertools.product(*sweep)]
    if not found:
        n_ctx_train = Rope.of(models[0]).n_ctx_train
        is_longer = task.n_ctx > n_ctx_train
        found = [Setting("plain"), Setting("auto") if is_longer else Setting("pair", 2, default_ga_w(n_ctx_train))]
    return tuple(dict.fromkeys(found))


def lengths(default: str, what: str = "Lengths of the prompts, in tokens.") -> Callable[[_Function], _Function]:
    """The lengths of a task."""
    return option(
        "--lengths",
        type=CommaSeparated(Integer(1, LENGTH_MAX)),
        default=default,
        metavar="N,...",
        section="Task",
        help=what,
    )


def samples(default: int, what: str) -> Callable[[_Function], _Function]:
    """How many cases of a kind."""
    return option("--samples", type=Integer(1, COUNT_MAX), default=default, metavar="N", section="Task", help=what)


def depths(what: str) -> Callable[[_Function], _Function]:
    """Where something stands in a text."""
    return option(
        "--depths", type=CommaSeparated(FRACTION), default="0,0.25,0.5,0.75,1", metavar="F,...", section="Task",
        help=f"Where {what} stands: 0 is the beginning of the text, 1 its end.",
    )  # fmt: skip


def data(what: str) -> Callable[[_Function], _Function]:
    """The folder of published files, and which of them."""

    def decorate(function: _Function) -> _Function:
        decorated: _Function = option(
            "--datasets", type=CommaSeparated(click.STRING), metavar="NAME,...", section="Task",
            help="Which datasets.  [default: all that the folder holds]",
        )(function)  # fmt: skip
        decorated = option(
            "--data", type=NamedPath(file_okay=False), required=True, metavar="DIR", section="Task",
            help=f"Folder of the published files: {what}.",
        )(decorated)  # fmt: skip
        return decorated

    return decorate


def limit(default: int, what: str) -> Callable[[_Function], _Function]:
    """How much of each dataset."""
    return option(
        "--limit", type=Integer(1), default=default, metavar="N", section="Task",
        help=f"{what} of each dataset, from the first one.",
    )  # fmt: skip


#: The prose of a task; hands on a ``Text``.
text = prose("Task")
