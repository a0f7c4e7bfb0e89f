"""``pyselfextend eval short``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._command import option
from .._options import Integer, seed
from ._run import COUNT_MAX, eval_command, lengths, samples, text

if TYPE_CHECKING:
    from ...eval.tasks.short import Short
    from ...eval.text import Text


@eval_command(
    "pyselfextend eval short model.gguf",
    "pyselfextend eval short model.gguf --setting plain,4:1024,4:512,yarn:2 --lengths 1024,4096 --samples 50",
)
@lengths("512,1024,2048", "Lengths in tokens, inside the trained window.")
@option("--stride", type=Integer(1), default=256, metavar="N", section="Task",
        help="How many tokens each window scores for the perplexity.")  # fmt: skip
@option("--windows", type=Integer(1, COUNT_MAX), default=4, metavar="N", section="Task", help="Windows of each length.")
@samples(16, "Multiple-choice questions of each length.")
@seed("the questions", "Task")
@text
def command(lengths: tuple[int, ...], stride: int, windows: int, samples: int, seed: int, text: Text) -> Short:
    """Ask inside the trained window, where nothing needs extending: what does a setting cost there?

    Perplexity, and which of four sentences goes on with a text. The plain model is the measure.
    """
    from ...eval.tasks.short import Short

    return Short(text, lengths, stride, windows, samples, seed)
