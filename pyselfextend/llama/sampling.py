"""Callbacks of the caller's while a token is sampled.

They run within llama.cpp, called through ctypes, which prints what they raise, Ctrl-C as well, and goes on. Here it is
kept until llama.cpp has returned, and raised then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import SettingError
from .guard import Guard

__all__ = ["Callbacks", "bias_processor"]


class Callbacks:
    """What callbacks of an instance have raised while it sampled.

    Args:
        guard: of the instance; while a callback runs, none that changes the instance may call it.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._error: BaseException | None = None

    def keep(self, apply: Callable[[Any], None]) -> Callable[[Any], None]:
        """A callback for ctypes that raises nothing: the first error is kept."""

        def run(candidates: Any) -> None:
            if self._error is not None:
                return
            try:
                with self._guard.callback():
                    apply(candidates)
            except BaseException as error:  # Ctrl-C as well
                self._error = error

        return run

    def raise_kept(self) -> None:
        """Raise what was kept, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error


def processor(process: Callable[[Any, Any], Any], tokens: Callable[[], Any]) -> Callable[[Any, Any], Any]:
    """A logits processor of the caller's, of which the result is looked at: [n_vocab] numbers, none NaN or infinite.

    Args:
        process: the caller's.
        tokens: those that the logits are of: without drafts that may be dropped.
    """

    def run(_: Any, logits: Any) -> Any:
        given = np.asarray(process(tokens(), logits), dtype=np.single)
        if given.shape != logits.shape:
            raise SettingError(
                f"a logits processor returned numbers of shape {given.shape}; they must be of shape {logits.shape}"
            )
        if np.isnan(given).any() or np.isposinf(given).any() or np.isneginf(given).all():
            raise SettingError(
                "a logits processor returned NaN, infinity, or minus infinity for all tokens; "
                "each must be a number or minus infinity, and one a number"
            )
        return given

    return run


def bias_processor(biases: Mapping[int, float]) -> Callable[[Any, Any], Any]:
    """The logits processor that adds biases to tokens' logits."""
    tokens = np.fromiter(biases, dtype=np.intp, count=len(biases))
    values = np.fromiter(biases.values(), dtype=np.single, count=len(biases))

    def process(_: Any, logits: Any) -> Any:
        biased = logits.copy()
        biased[tokens] += values
        return biased

    return process


def processors_of(
    found: Sequence[Callable[[Any, Any], Any]] | None, biases: Mapping[int, float] | None
) -> list[Callable[[Any, Any], Any]] | None:
    """The caller's processors, and then the bias; None where there is neither."""
    all_of = [*(found or []), *([bias_processor(biases)] if biases else [])]
    return all_of or None
