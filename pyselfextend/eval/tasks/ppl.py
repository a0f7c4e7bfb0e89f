"""Perplexity over the length of the context.

Sliding windows (Press et al., arXiv 2012.15832, appendix B; Baevski and Auli, arXiv 1809.10853, section 4.2): each
window moves on by ``stride`` tokens, and only its last ``stride`` tokens are scored; what overlaps the window before is
masked. So each scored token sees at least ``n_tokens - stride`` tokens. Every length scores the same tokens, those
behind the longest window's overlap, so that lengths differ in nothing but the context. The perplexity is
``exp`` of the mean negative log likelihood over all scored tokens: each token weighs the same, whatever its window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...config import integer
from ...errors import EvalError
from ..cases import Axis, Case, Score, Tokenizer, key_of
from ..text import Text

__all__ = ["Perplexity"]


@dataclass(frozen=True)
class Perplexity:
    """Windows of every length over one text."""

    text: Text
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384)
    """Lengths of the windows, in tokens."""

    stride: int = 256
    """How far a window moves on, and how many of its tokens are scored."""

    windows: int = 4
    """How many windows of each length."""

    name: str = "ppl"
    chat: bool = False

    @property
    def n_ctx(self) -> int:
        """The context that the longest case needs, in tokens."""
        return max(self.lengths)

    def cases(self, tokenizer: Tokenizer) -> Iterator[Case]:
        """See ``Task.cases``."""
        for name, value in (("stride", self.stride), ("windows", self.windows), ("lengths", len(self.lengths))):
            integer(name, value, 1)
        least = min(self.lengths)
        if self.stride >= least:
            raise EvalError(f"the stride is {self.stride}; it must be below the shortest length, {least}")
        longest = max(self.lengths)
        n_bos = len(tokenizer.bos)
        text = self.text.tokens(tokenizer, longest - n_bos + self.stride * (self.windows - 1))
        for n_tokens in sorted(self.lengths):
            for window in range(self.windows):
                end = longest - n_bos + self.stride * window
                axes: dict[str, Axis] = {"n_tokens": n_tokens, "stride": self.stride, "window": window}
                tokens = tokenizer.bos + text[end - (n_tokens - n_bos) : end]
                yield Case(self.name, key_of(axes), axes, Score(tokens, self.stride))
