"""``pyselfextend eval passkey``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._command import option
from .._options import CommaSeparated, Integer, seed
from ._run import depths, eval_command, lengths, samples

if TYPE_CHECKING:
    from ...eval.tasks.passkey import Passkey


@eval_command(
    "pyselfextend eval passkey model.gguf",
    "pyselfextend eval passkey Q8_0.gguf Q4_0.gguf --lengths 4096,16384 --setting plain,4:1024,yarn",
    "pyselfextend eval passkey model.gguf --lengths 16384 --sweep 2,4,8 512,1024,2048",
)
@lengths("4096,8192,16384")
@depths("the number")
@option("--digits", type=CommaSeparated(Integer(1, 100)), default="5,10", metavar="N,...", section="Task",
        help="Digits of the number.")  # fmt: skip
@samples(1, "Different numbers for each length, depth and number of digits.")
@seed("the numbers", "Task")
def command(
    lengths: tuple[int, ...], depths: tuple[float, ...], digits: tuple[int, ...], samples: int, seed: int
) -> Passkey:
    """Hide a number among sentences that say nothing, and ask for it (arXiv 2305.16300)."""
    from ...eval.tasks.passkey import Passkey

    return Passkey(lengths, depths, digits, samples, seed)
