"""How good is a model at lengths beyond its trained window: tasks, settings, and their results.

    from pathlib import Path
    from pyselfextend.eval import Setting, evaluate, run_info, write_report
    from pyselfextend.eval.tasks.passkey import Passkey

    results = list(evaluate([Path("model.gguf")], [Passkey()], [Setting.parse("plain"), Setting.parse("4:1024")]))
    write_report(results, [run_info()], Path("report"))

A task (``tasks``) makes cases from a seed and a model's tokenizer; ``evaluate`` asks them of every model under every
setting and yields a ``Result`` for each; ``ResultsFile`` keeps them, and ``write_report`` shows them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazily

if TYPE_CHECKING:
    from .cases import Case as Case
    from .report import write_report as write_report
    from .results import Result as Result
    from .results import ResultsFile as ResultsFile
    from .results import RunInfo as RunInfo
    from .results import read_results as read_results
    from .run import Options as Options
    from .run import evaluate as evaluate
    from .run import run_info as run_info
    from .settings import Setting as Setting

#: The module of each name; it is imported when it is used, since some load the native library or matplotlib.
_MODULES = {
    "Case": "cases",
    "Options": "run",
    "Result": "results",
    "ResultsFile": "results",
    "RunInfo": "results",
    "Setting": "settings",
    "evaluate": "run",
    "read_results": "results",
    "run_info": "run",
    "write_report": "report",
}

__all__ = [
    "Case",
    "Options",
    "Result",
    "ResultsFile",
    "RunInfo",
    "Setting",
    "evaluate",
    "read_results",
    "run_info",
    "write_report",
]


__getattr__ = lazily(__name__, _MODULES)


def __dir__() -> list[str]:
    return sorted(__all__)
