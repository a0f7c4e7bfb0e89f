"""Positions arithmetic: which relative position the model sees. Pure integers, no native code.

The same functions, under the same names, as ``llama_self_extend_*`` in ``llama-self-extend.h``; a test sweeps both
against each other.

Source: Jin et al., "LLM Maybe LongLM: Self-Extend LLM Context Window Without Tuning" (arXiv 2401.01325), section 3, and
those of ``maps`` for other maps than ``self-extend``.

Throughout: ``ga_n`` is the group size (at least 1; what a map allows), ``ga_w`` the neighbour window in tokens (at
least 0), ``n_ctx_train`` the trained context in tokens (above ``ga_w``), ``ga_map`` the name of a map from
``maps.MAPS``; positions count from 0. Anything else raises ``SettingError``, a ``ValueError``.
"""

from __future__ import annotations

from .config import integer
from .errors import SettingError
from .maps import GA_N_MAX, SELF_EXTEND, Map, map_named

__all__ = ["GA_N_MAX", "ga_n_min", "ga_n_raised", "n_ctx_reach", "pos_den", "pos_k", "pos_q", "pos_rel", "pos_rel_max"]


def pos_q(pos: int, ga_n: int, ga_w: int, ga_map: str = SELF_EXTEND.name) -> int:
    """The position at which a query is rotated to look at far keys: ``pos // ga_n + ga_w - ga_w // ga_n``.

    In units of ``1 / pos_den(ga_n, ga_map)``.
    """
    pos = integer("pos", pos, 0)
    by, ga_n, ga_w = _checked(ga_n, ga_w, ga_map)
    return by.pos_q(pos, ga_n, ga_w)


def pos_k(pos: int, ga_n: int, ga_map: str = SELF_EXTEND.name) -> int:
    """The position at which a far key is rotated: ``pos // ga_n``. In units of ``1 / pos_den(ga_n, ga_map)``."""
    pos = integer("pos", pos, 0)
    by, ga_n, _ = _checked(ga_n, 0, ga_map)
    return by.pos_k(pos, ga_n)


def pos_den(ga_n: int, ga_map: str = SELF_EXTEND.name) -> int:
    """In how many parts a position is counted: 1, and ``ga_n`` with the maps ``leaky`` and ``mrrope``."""
    by, ga_n, _ = _checked(ga_n, 0, ga_map)
    return by.pos_den(ga_n)


def pos_rel(pos_query: int, pos_key: int, ga_n: int, ga_w: int, ga_map: str = SELF_EXTEND.name) -> int:
    """The relative position at which a query sees a key that is not after it.

    ``pos_query - pos_key`` when that is below ``ga_w`` (near), otherwise
    ``pos_q(pos_query, ga_n, ga_w) - pos_k(pos_key, ga_n)`` (far). In units of ``1 / pos_den(ga_n, ga_map)``.
    """
    pos_query = integer("pos_query", pos_query, 0)
    pos_key = integer("pos_key", pos_key, 0, pos_query)
    by, ga_n, ga_w = _checked(ga_n, ga_w, ga_map)
    if pos_query - pos_key < ga_w:
        return (pos_query - pos_key) * by.pos_den(ga_n)
    return by.pos_q(pos_query, ga_n, ga_w) - by.pos_k(pos_key, ga_n)


def pos_rel_max(n_tokens: int, ga_n: int, ga_w: int, ga_map: str = SELF_EXTEND.name) -> int:
    """The largest relative position among ``n_tokens`` tokens.

    ``n_tokens - 1`` while they all fit into the neighbour window, otherwise that of the last query looking at the first
    key, or the largest near one: far ones do not fall with the distance. In units of ``1 / pos_den(ga_n, ga_map)``.
    """
    n_tokens = integer("n_tokens", n_tokens, 1)
    by, ga_n, ga_w = _checked(ga_n, ga_w, ga_map)
    near = (min(n_tokens, ga_w) - 1) * by.pos_den(ga_n)
    return near if n_tokens <= ga_w else max(near, by.pos_q(n_tokens - 1, ga_n, ga_w) - by.pos_k(0, ga_n))


def n_ctx_reach(n_ctx_train: int, ga_n: int, ga_w: int, ga_map: str = SELF_EXTEND.name) -> int:
    """The longest sequence, in tokens, whose relative positions all stay below ``n_ctx_train``.

    ``(n_ctx_train - ga_w + ga_w // ga_n) * ga_n``, which is the paper's ``(L - W) * G + W`` where ``ga_n`` divides
    ``ga_w``. It does not always grow with ``ga_n``: with ``n_ctx_train`` 10 and ``ga_w`` 9 it is 12 for ``ga_n`` 4, but
    10 for ``ga_n`` 5.
    """
    by, ga_n, ga_w = _checked(ga_n, ga_w, ga_map)
    n_ctx_train = _trained(n_ctx_train, ga_w)
    return by.n_ctx_reach(n_ctx_train, ga_n, ga_w)


def ga_n_min(n_ctx_train: int, ga_w: int, n_tokens: int, ga_map: str = SELF_EXTEND.name) -> int:
    """The smallest ``ga_n`` whose reach is at least ``n_tokens``, or 0 if no ``ga_n`` up to ``GA_N_MAX`` has it.

    Larger ones need not have it: see ``n_ctx_reach``.
    """
    by = map_named(ga_map)
    ga_w = integer("ga_w", ga_w, 0)
    n_ctx_train = _trained(n_ctx_train, ga_w)
    n_tokens = integer("n_tokens", n_tokens, 1)
    return by.unit if n_tokens <= n_ctx_train else by.ga_n_min(n_ctx_train, ga_w, n_tokens)


def ga_n_raised(
    n_ctx_train: int, ga_n: int, ga_n_max: int, ga_w: int, n_tokens: int, ga_map: str = SELF_EXTEND.name
) -> int:
    """The group size of a sequence that had ``ga_n`` and has grown to ``n_tokens``.

    The same while that reaches, else the smallest power of two above it that does, and no more than ``ga_n_max``. 0 if
    ``ga_n_max`` does not reach.
    """
    by, ga_n, ga_w = _checked(ga_n, ga_w, ga_map)
    n_ctx_train = _trained(n_ctx_train, ga_w)
    ga_n_max = integer("ga_n_max", ga_n_max, ga_n, GA_N_MAX)
    n_tokens = integer("n_tokens", n_tokens, 1)
    while by.n_ctx_reach(n_ctx_train, ga_n, ga_w) < n_tokens:
        if ga_n == ga_n_max:
            return 0
        ga_n = min(1 << ga_n.bit_length(), ga_n_max)
    return ga_n


def _checked(ga_n: int, ga_w: int, ga_map: str) -> tuple[Map, int, int]:
    by = map_named(ga_map)
    ga_n, ga_w = integer("ga_n", ga_n, 1, GA_N_MAX), integer("ga_w", ga_w, 0)
    if fault := by.fault(ga_n):
        raise SettingError(f"ga_n is {ga_n}; it must be {fault}")
    return by, ga_n, ga_w


def _trained(n_ctx_train: int, ga_w: int) -> int:
    n_ctx_train = integer("n_ctx_train", n_ctx_train, 1)
    if ga_w >= n_ctx_train:
        raise SettingError(f"ga_w is {ga_w}; it must be below the trained context of {n_ctx_train} tokens")
    return n_ctx_train
