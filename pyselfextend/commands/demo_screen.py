"""The table at the end of the demo."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from ..info import SelfExtendInfo
from ..prompts import Fact
from ..screen import mib

__all__ = ["Run", "result_table"]


@dataclass(frozen=True)
class Run:
    """How a model did."""

    name: str
    answer: str
    is_right: bool
    n_tokens: int
    seconds_reading: float
    seconds_answering: float


def result_table(fact: Fact, info: SelfExtendInfo, plain: Run, extended: Run) -> Table:
    """The summary, one column for each model. ``info`` is what was in force in the extended one."""
    table = Table(
        title=f"a text of {extended.n_tokens} tokens, a trained window of {info.n_ctx_train}; the fact: {fact.number}"
    )
    for heading in ("", "plain model", f"SelfExtend, {extended.name}"):
        table.add_column(heading)
    runs = (plain, extended)
    far, both = mib(info.bytes_far), mib(info.bytes_far + info.bytes_near)
    table.add_row("answer", *(" ".join(run.answer.split()) or "(nothing)" for run in runs))
    table.add_row("holds the fact", *("yes" if run.is_right else "no" for run in runs))
    table.add_row("reading", *(f"{run.seconds_reading:.0f} s ({speed(run):.0f} tokens/s)" for run in runs))
    table.add_row("answering", *(f"{run.seconds_answering:.1f} s" for run in runs))
    table.add_row("KV cache", far, f"{both} (far {far}, near {mib(info.bytes_near)})")
    return table


def speed(run: Run) -> float:
    """Tokens read per second."""
    return run.n_tokens / max(run.seconds_reading, 1e-9)
