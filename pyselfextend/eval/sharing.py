"""What prompts that come after one another share, so that it is evaluated once. Pure.

Prompts are evaluated in slices of ``N_SLICE`` tokens counted from their beginning. Only whole slices are shared: then a
prompt is evaluated in the same pieces whether it shares anything or not, and its answer is the same bit by bit. What
has been read with another group size (``Setting.group``) is not shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .cases import Tokens

__all__ = ["N_SLICE", "Reading", "cost", "n_read", "plan_readings", "shared_prefix"]

#: Tokens that are evaluated at once.
N_SLICE = 512

#: The depth, in tokens, at which a token takes about twice as long as at the beginning of a prompt.
N_DOUBLE = 4096


@dataclass(frozen=True)
class Reading:
    """How a prompt is read."""

    n_shared: int
    """Tokens of its beginning that are taken from a prompt before it."""

    n_keep: int
    """Tokens of its beginning that are kept for those after it. 0: what is kept already stays."""


def shared_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    n = min(len(a), len(b))
    different = np.nonzero(np.asarray(a[:n]) != np.asarray(b[:n]))[0]
    return int(different[0]) if len(different) else n


def n_read(n_prompt: int, n_predict: int = 0, n_scored: int = 0) -> int:
    """How long a text is that a model reads, in tokens.

    Args:
        n_prompt: tokens of the prompt.
        n_predict: the longest answer; all of it counts, as in ``Llama``.
        n_scored: tokens of a continuation; of the last one only the probability is asked for, it is not read.
    """
    return n_prompt + n_predict + max(0, n_scored - 1)


def plan_readings(prompts: Sequence[Tokens], groups: Sequence[int] | None = None) -> list[Reading]:
    """How to read prompts one after another, where one beginning can be kept at a time.

    Args:
        prompts: in their order.
        groups: the group size that each is read with. None: the same for all.
    """
    readings = []
    kept = 0  # of the prompt that is looked at
    for i, prompt in enumerate(prompts):
        is_near = i + 1 < len(prompts) and (groups is None or groups[i] == groups[i + 1])
        shared = shared_prefix(prompt, prompts[i + 1]) if is_near else 0
        # The last token of a prompt is always evaluated: its logits are what is asked for.
        ahead = min(shared, len(prompt) - 1, len(prompts[i + 1]) - 1 if shared else 0) // N_SLICE * N_SLICE
        n_keep = ahead if ahead > kept else 0
        readings.append(Reading(kept, n_keep))
        kept = max(n_keep, kept) if shared >= kept else n_keep
        if i + 1 < len(prompts) and kept >= len(prompts[i + 1]):
            kept = 0
    return readings


def cost(n_tokens: int, n_past: int) -> float:
    """About how long it takes to evaluate tokens behind others, in units of a token at the beginning.

    Only progress bars use it.
    """
    return n_tokens * (1 + (n_past + n_tokens / 2) / N_DOUBLE)
