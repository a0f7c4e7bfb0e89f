"""Callbacks of the caller's while a token is sampled.

They run within llama.cpp, called through ctypes, which prints what they raise, Ctrl-C as well, and goes on. Here it is
kept until llama.cpp has returned, and raised then.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import llama_cpp
import numpy as np

from ..errors import SettingError
from .guard import Guard

__all__ = ["Callbacks", "insert", "processor", "processors_of"]

_TOKEN_DATA = np.dtype([("id", np.intc), ("logit", np.single), ("p", np.single)], align=True)


class Callbacks:
    """What callbacks of an instance have raised while it sampled.

    Args:
        guard: of the instance; while a callback runs, none that changes the instance may call it.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._error: BaseException | None = None

    def add_to(self, sampler: Any, processors: Sequence[Callable[[Any], Any]]) -> None:
        """Put logits processors at the beginning of a chain.

        llama_cpp frees its own by hand: after Ctrl-C, llama.cpp frees what is Python's. These are llama.cpp's.

        Args:
            sampler: llama_cpp's ``LlamaSampler``.
            processors: each given the logits [n_vocab] and returning others.
        """

        def run(_: Any, candidates: Any) -> None:
            try:
                if self._error is None:
                    self._guard.call_back(apply, candidates.contents, processors)
            except BaseException as error:  # Ctrl-C as well
                self._error = error

        interface = llama_cpp.llama_sampler_i()
        interface.apply = llama_cpp.llama_sampler_i_apply(run)
        sampler.kept = interface  # as long as the chain
        insert(sampler.sampler, llama_cpp.llama_sampler_init(ctypes.byref(interface), None), 0)

    def clear(self) -> None:
        """Before a token is sampled: what was kept when Ctrl-C came is of another call."""
        self._error = None

    def raise_kept(self) -> None:
        """Raise what was kept, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error


def apply(candidates: Any, processors: Sequence[Callable[[Any], Any]]) -> None:
    """Let processors change llama.cpp's ``llama_token_data_array``, whose tokens are in their order yet."""
    address = ctypes.addressof(candidates.data.contents)
    data = (llama_cpp.llama_token_data * candidates.size).from_address(address)
    logits = np.frombuffer(data, dtype=_TOKEN_DATA)["logit"]
    for process in processors:
        logits[:] = process(logits)


def insert(chain: Any, sampler: Any, place: int) -> None:
    """Put a sampler into a chain, which then frees it."""
    n_behind = llama_cpp.llama_sampler_chain_n(chain) - place
    behind = [llama_cpp.llama_sampler_chain_remove(chain, place) for _ in range(n_behind)]
    for each in (sampler, *behind):
        llama_cpp.llama_sampler_chain_add(chain, each)


def processor(process: Callable[[Any, Any], Any], tokens: Callable[[], Any]) -> Callable[[Any], Any]:
    """A logits processor of the caller's, of which the result is looked at: [n_vocab] numbers, none NaN or infinite.

    Args:
        process: the caller's.
        tokens: those that the logits are of: without drafts that may be dropped.
    """

    def run(logits: Any) -> Any:
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
