"""``pyselfextend eval longbench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .._command import option
from ._run import data, eval_command, lengths, limit

if TYPE_CHECKING:
    from ...eval.tasks.longbench import LongBench


@eval_command(
    "pyselfextend eval longbench model.gguf --data LongBench/data",
    "pyselfextend eval longbench model.gguf --data LongBench/data --datasets hotpotqa,lcc --lengths 4096,16384",
)
@data("DATASET.jsonl, there or in its folder data")
@lengths("16384", "The longest prompts, in tokens: longer ones lose their middle.")
@limit(20, "Records")
@option("--e", is_flag=True, section="Task", show_default=False, help="LongBench-E, whose lengths are spread evenly.")
def command(data: Path, datasets: tuple[str, ...] | None, lengths: tuple[int, ...], limit: int, e: bool) -> LongBench:
    """LongBench (arXiv 2308.14508) from its published files, with its prompts and metrics. Nothing is downloaded."""
    from ...eval.tasks.longbench import LongBench

    return LongBench(data, datasets or (), lengths, limit, e)
