"""Draft models of the caller's, as llama_cpp needs them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import WrongTypeError
from .guard import Guard

__all__ = ["Drafts"]


class Drafts:
    """A draft model whose answers are looked at.

    Args:
        model: given the tokens so far, returns tokens that may follow.
        guard: of the instance; while the model is asked, it cannot change the instance.
        n_max: as many as are evaluated at once with the token before: of others the logits are gone too early.
    """

    def __init__(self, model: Any, guard: Guard, n_max: int) -> None:
        self.model, self._guard, self._n_max = model, guard, n_max

    def __call__(self, input_ids: Any, /, **kwargs: Any) -> Any:
        given = self._guard.call_back(self.model, input_ids, **kwargs)
        found = np.asarray(given)
        if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
            raise WrongTypeError(
                f"the draft model returned {type(given).__name__} of shape {found.shape}; it must be a list of tokens"
            )
        return found[: self._n_max].astype(np.intc)
