"""``pyselfextend eval ppl``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._command import option
from .._options import Integer
from ._run import COUNT_MAX, eval_command, lengths, text

if TYPE_CHECKING:
    from ...eval.tasks.ppl import Perplexity
    from ...eval.text import Text


@eval_command(
    "pyselfextend eval ppl model.gguf",
    "pyselfextend eval ppl model.gguf --text book.txt --lengths 8192,32768 --setting plain,8:1024,yarn",
)
@lengths("1024,2048,4096,8192,16384", "Lengths of the windows, in tokens.")
@option("--stride", type=Integer(1), default=256, metavar="N", section="Task",
        help="How far a window moves on; so many of its last tokens are scored.")  # fmt: skip
@option("--windows", type=Integer(1, COUNT_MAX), default=4, metavar="N", section="Task", help="Windows of each length.")
@text
def command(lengths: tuple[int, ...], stride: int, windows: int, text: Text) -> Perplexity:
    """Perplexity with sliding windows of several lengths, each scoring the same tokens of one text.

    Tokens in the overlap with the window before are not scored, and each scored token weighs the same.
    """
    from ...eval.tasks.ppl import Perplexity

    return Perplexity(text, lengths, stride, windows)
