"""``pyselfextend eval niah``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._options import seed
from ._run import depths, eval_command, lengths, samples, text

if TYPE_CHECKING:
    from ...eval.tasks.niah import Niah
    from ...eval.text import Text


@eval_command(
    "pyselfextend eval niah model.gguf",
    "pyselfextend eval niah model.gguf --text book.txt --lengths 16384,32768 --samples 3",
)
@lengths("4096,8192,16384")
@depths("the sentence")
@samples(1, "Different sentences for each length and depth.")
@seed("the sentences", "Task")
@text
def command(lengths: tuple[int, ...], depths: tuple[float, ...], samples: int, seed: int, text: Text) -> Niah:
    """Hide a sentence in prose, and ask for what it says: a needle in a haystack."""
    from ...eval.tasks.niah import Niah

    return Niah(text, lengths, depths, samples, seed)
