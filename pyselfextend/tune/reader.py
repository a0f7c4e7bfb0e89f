"""A model that reads a text once, with one group, and is asked on the way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import EvalError
from ..eval.cases import Tokens
from ..eval.model import N_SLICE_LOGITS, EvalModel, LogProbs, scored
from ..eval.sharing import N_SLICE

import llama_cpp  # isort: skip  # after ..eval.model, which makes it load our library

__all__ = ["Reader"]


class Reader(EvalModel):
    """An ``EvalModel`` whose cache is that of one text, which goes on."""

    def begin(self, ga_n: int) -> None:
        """Forget everything, and read what comes with this group."""
        self._begin(ga_n)

    def read(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens behind those that have been read."""
        for start in range(0, len(tokens), N_SLICE):
            self._last = self._decode(tokens[start : start + N_SLICE], 1)[-1].copy()

    def score(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """Evaluate tokens, at least one, behind those that have been read, and score them.

        Returns:
            The natural logarithms of their probabilities, given all before, [n_tokens].
        """
        found = []
        for start in range(0, len(tokens), N_SLICE_LOGITS):
            part = tokens[start : start + N_SLICE_LOGITS]
            assert self._last is not None
            rows = self._decode(part, len(part))
            found.append(scored(np.concatenate([self._last[None], rows[:-1]]), part).values)
            self._last = rows[-1].copy()
        return np.concatenate(found)

    def ask(self, question: Tokens, answer: Tokens) -> LogProbs:
        """Score an answer to a question behind what has been read, and take both off the cache again.

        Raises:
            EvalError: the cache cannot be cut there.
        """
        n_read = len(self._tokens)
        rows = self._decode(question + answer[:-1], len(answer))
        if not llama_cpp.llama_memory_seq_rm(self._memory, 0, n_read, -1):
            raise EvalError("llama.cpp cannot take a question off the cache of this model")
        del self._tokens[n_read:]
        return scored(rows, answer)
