"""Positions arithmetic: which relative position the model sees. Pure integers, no native code.

The same functions, under the same names, as ``llama_self_extend_*`` in ``llama-self-extend.h``; a test sweeps both
against each other.

Source: Jin et al., "LLM Maybe LongLM: Self-Extend LLM Context Window Without Tuning" (arXiv 2401.01325), section 3.
Every division is a floor, so that prefill and decode agree also when ``ga_n`` does not divide ``ga_w``.

Throughout: ``ga_n`` is the group size (at least 1), ``ga_w`` the neighbour window in tokens (at least 0),
``n_ctx_train`` the trained context in tokens (above ``ga_w``); positions count from 0. Anything else raises
``SettingError``, a ``ValueError``.
"""

from __future__ import annotations

from .config import integer
from .errors import SettingError

__all__ = ["GA_N_MAX", "ga_n_min", "ga_n_raised", "n_ctx_reach", "pos_k", "pos_q", "pos_rel", "pos_rel_max"]

#: The largest group size that the C API can express (``uint32_t``).
GA_N_MAX = 2**32 - 1


def pos_q(pos: int, ga_n: int, ga_w: int) -> int:
    """The position at which a query is rotated to look at far keys: ``pos // ga_n + ga_w - ga_w // ga_n``."""
    pos = integer("pos", pos, 0)
    ga_n, ga_w = _pair(ga_n, ga_w)
    return pos // ga_n + ga_w - ga_w // ga_n


def pos_k(pos: int, ga_n: int) -> int:
    """The position at which a far key is rotated: ``pos // ga_n``."""
    return integer("pos", pos, 0) // integer("ga_n", ga_n, 1, GA_N_MAX)


def pos_rel(pos_query: int, pos_key: int, ga_n: int, ga_w: int) -> int:
    """The relative position at which a query sees a key that is not after it.

    ``pos_query - pos_key`` when that is below ``ga_w`` (near), otherwise
    ``pos_q(pos_query, ga_n, ga_w) - pos_k(pos_key, ga_n)`` (far).
    """
    pos_query = integer("pos_query", pos_query, 0)
    pos_key = integer("pos_key", pos_key, 0, pos_query)
    ga_n, ga_w = _pair(ga_n, ga_w)
    if pos_query - pos_key < ga_w:
        return pos_query - pos_key
    return pos_q(pos_query, ga_n, ga_w) - pos_k(pos_key, ga_n)


def pos_rel_max(n_tokens: int, ga_n: int, ga_w: int) -> int:
    """The largest relative position among ``n_tokens`` tokens.

    ``n_tokens - 1`` while they all fit into the neighbour window, otherwise
    ``(n_tokens - 1) // ga_n + ga_w - ga_w // ga_n``: the last query looking at the first key.
    """
    n_tokens = integer("n_tokens", n_tokens, 1)
    ga_n, ga_w = _pair(ga_n, ga_w)
    return n_tokens - 1 if n_tokens <= ga_w else pos_q(n_tokens - 1, ga_n, ga_w)


def n_ctx_reach(n_ctx_train: int, ga_n: int, ga_w: int) -> int:
    """The longest sequence, in tokens, whose relative positions all stay below ``n_ctx_train``.

    ``(n_ctx_train - ga_w + ga_w // ga_n) * ga_n``, which is the paper's ``(L - W) * G + W`` where ``ga_n`` divides
    ``ga_w``. It does not always grow with ``ga_n``: with ``n_ctx_train`` 10 and ``ga_w`` 9 it is 12 for ``ga_n`` 4, but
    10 for ``ga_n`` 5.
    """
    ga_n, ga_w = _pair(ga_n, ga_w)
    n_ctx_train = _trained(n_ctx_train, ga_w)
    return (n_ctx_train - ga_w + ga_w // ga_n) * ga_n


def ga_n_min(n_ctx_train: int, ga_w: int, n_tokens: int) -> int:
    """The smallest ``ga_n`` whose reach is at least ``n_tokens``, or 0 if no ``ga_n`` up to ``GA_N_MAX`` has it.

    Larger ones need not have it: see ``n_ctx_reach``.
    """
    ga_w = integer("ga_w", ga_w, 0)
    n_ctx_train = _trained(n_ctx_train, ga_w)
    n_tokens = integer("n_tokens", n_tokens, 1)
    if n_tokens <= n_ctx_train:
        return 1

    # The reach is at most (n_ctx_train - ga_w) * ga_n + ga_w, so no ga_n below the first one here can do. From there on
    # go by runs of ga_n with the same ga_w // ga_n: the reach grows inside a run, and there are at most 2 * sqrt(ga_w).
    n_far = n_ctx_train - ga_w
    ga_n = max(1, -(-(n_tokens - ga_w) // n_far))
    while ga_n <= GA_N_MAX:
        n_groups = ga_w // ga_n
        candidate = max(ga_n, -(-n_tokens // (n_far + n_groups)))
        if n_groups == 0 or candidate <= ga_w // n_groups:
            return candidate if candidate <= GA_N_MAX else 0
        ga_n = ga_w // n_groups + 1
    return 0


def ga_n_raised(n_ctx_train: int, ga_n: int, ga_n_max: int, ga_w: int, n_tokens: int) -> int:
    """The group size of a sequence that had ``ga_n`` and has grown to ``n_tokens``.

    The same while that reaches, else the smallest power of two above it that does, and no more than ``ga_n_max``. 0 if
    ``ga_n_max`` does not reach.
    """
    ga_n, ga_w = _pair(ga_n, ga_w)
    n_ctx_train = _trained(n_ctx_train, ga_w)
    ga_n_max = integer("ga_n_max", ga_n_max, ga_n, GA_N_MAX)
    n_tokens = integer("n_tokens", n_tokens, 1)
    while n_ctx_reach(n_ctx_train, ga_n, ga_w) < n_tokens:
        if ga_n == ga_n_max:
            return 0
        ga_n = min(1 << ga_n.bit_length(), ga_n_max)
    return ga_n


def _pair(ga_n: int, ga_w: int) -> tuple[int, int]:
    return integer("ga_n", ga_n, 1, GA_N_MAX), integer("ga_w", ga_w, 0)


def _trained(n_ctx_train: int, ga_w: int) -> int:
    n_ctx_train = integer("n_ctx_train", n_ctx_train, 1)
    if ga_w >= n_ctx_train:
        raise SettingError(f"ga_w is {ga_w}; it must be below the trained context of {n_ctx_train} tokens")
    return n_ctx_train
