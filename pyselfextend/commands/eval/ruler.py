"""``pyselfextend eval ruler``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .._command import option
from .._options import CommaSeparated, seed
from ._run import eval_command, lengths, samples

if TYPE_CHECKING:
    from ...eval.tasks.ruler import Ruler

SUBTASKS = ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe")


@eval_command(
    "pyselfextend eval ruler model.gguf",
    "pyselfextend eval ruler model.gguf --subtasks vt,fwe --lengths 8192,16384 --samples 20",
)
@lengths("4096,8192,16384")
@option("--subtasks", type=CommaSeparated(click.Choice(SUBTASKS)), default=",".join(SUBTASKS), metavar="NAME,...",
        section="Task", help="Which of them.")  # fmt: skip
@samples(3, "Different prompts for each length and subtask.")
@seed("the prompts", "Task")
def command(lengths: tuple[int, ...], subtasks: tuple[str, ...], samples: int, seed: int) -> Ruler:
    """The six tasks of RULER that need no corpus (arXiv 2404.06654).

    Needles in filler and among other needles, a chain of variables, the most frequent words of a list and of a text.
    """
    from ...eval.tasks.ruler import Ruler

    return Ruler(lengths, subtasks, samples, seed)
