"""``pyselfextend eval leval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .._command import option
from .._options import Integer
from ._run import data, eval_command, lengths, limit

if TYPE_CHECKING:
    from ...eval.tasks.leval import LEval


@eval_command(
    "pyselfextend eval leval model.gguf --data LEval-data",
    "pyselfextend eval leval model.gguf --data LEval-data --datasets coursera,gsm100 --lengths 4096,16384",
)
@data("DATASET.jsonl, there or in Closed-ended-tasks and Open-ended-tasks")
@lengths("16384", "The longest prompts, in tokens: the document in a longer one is cut.")
@limit(5, "Documents")
@option("--n-predict", type=Integer(1), default=512, metavar="N", section="Task", help="The longest answer, in tokens.")
@option("--truncation", type=click.Choice(["middle", "published"]), default="middle", section="Task",
        help="What a long document loses: its middle, or its end as published (its beginning in codeU).")  # fmt: skip
@option("--rouge", type=click.Choice(["1", "2", "l"]), default="l", section="Task",
        help="Which ROUGE scores summaries.")  # fmt: skip
def command(
    data: Path, datasets: tuple[str, ...] | None, lengths: tuple[int, ...], limit: int, n_predict: int,
    truncation: str, rouge: str,
) -> LEval:  # fmt: skip
    """L-Eval (arXiv 2307.11088) from its published files, with its prompts and its metrics. Nothing is downloaded.

    What a model would have to judge is left out.
    """
    from ...eval.tasks.leval import LEval

    return LEval(data, datasets or (), lengths, limit, n_predict, truncation, rouge)
