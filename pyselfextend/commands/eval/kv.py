"""``pyselfextend eval kv``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._command import option
from .._options import FRACTION, CommaSeparated, seed
from ._run import eval_command, lengths, samples

if TYPE_CHECKING:
    from ...eval.tasks.kv import KeyValue


@eval_command(
    "pyselfextend eval kv model.gguf",
    "pyselfextend eval kv model.gguf --lengths 16384 --places 0,0.1,0.2,0.4,0.6,0.8,1 --samples 10",
)
@lengths("4096,8192,16384")
@option("--places", type=CommaSeparated(FRACTION), default="0,0.25,0.5,0.75,1", metavar="F,...", section="Task",
        help="Which pair is asked for: 0 is the first one, 1 the last one.")  # fmt: skip
@samples(3, "Different sets of pairs for each length.")
@seed("the pairs", "Task")
def command(lengths: tuple[int, ...], places: tuple[float, ...], samples: int, seed: int) -> KeyValue:
    """Ask for the value of one key among many, UUIDs all of them: lost in the middle (arXiv 2307.03172)."""
    from ...eval.tasks.kv import KeyValue

    return KeyValue(lengths, places, samples, seed)
