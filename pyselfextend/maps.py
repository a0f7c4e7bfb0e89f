"""Maps of positions: the relative position at which a far key is seen. Pure integers, no native code.

Near pairs are exact in all of them, and the smallest group is the plain model. Far queries and keys are rotated in
frames of their own, ``pos_q`` and ``pos_k``, so that a map is a difference of a function of the query's position and
one of the key's. ``docs/maps.md`` has the formulas and what was measured; the same maps are in
``llama-self-extend.h``.
"""

from __future__ import annotations

from fractions import Fraction

from .errors import SettingError

__all__ = ["GA_N_MAX", "MAPS", "POS_MAX", "SELF_EXTEND", "Map", "map_named"]

#: The largest group size that the C API can express (``uint32_t``).
GA_N_MAX = 2**32 - 1

#: The largest position: llama.cpp counts them in 32-bit signed integers.
POS_MAX = 2**31 - 1


class Map:
    """SelfExtend (Jin et al., arXiv 2401.01325, section 3): ``(q // G + W - W // G) - k // G``.

    Every division is a floor, so that prefill and decode agree also when ``ga_n`` does not divide ``ga_w``. ``G`` is
    ``ga_n / unit``.

    The arguments of all methods are checked already: see ``positions``.
    """

    def __init__(self, name: str, number: int, unit: int = 1) -> None:
        self.name = name
        self.number = number
        """enum llama_self_extend_map_type"""
        self.unit = unit
        """The group size of the plain model: ``ga_n`` is counted in parts of a token, of which there are so many."""

    has_window = True
    """Whether there are near keys."""

    follows = True
    """Whether the group of a sequence can change."""

    fills = False
    """Whether a group that follows the length is the smallest that reaches, not one that keeps the authors' rule."""

    def pos_q(self, pos: int, ga_n: int, ga_w: int) -> int:
        """Where a query is rotated to look at far keys, in units of ``1 / pos_den``."""
        return self.pos_k(pos, ga_n) + ga_w - self.pos_k(ga_w, ga_n)

    def pos_k(self, pos: int, ga_n: int) -> int:
        """Where a far key is rotated, in units of ``1 / pos_den``."""
        return pos * self.unit // ga_n

    def pos_den(self, ga_n: int) -> int:
        """In how many parts a position is counted."""
        return 1

    def end(self, n_tokens: int, ga_n: int, ga_w: int) -> Fraction:
        """About the largest relative position among ``n_tokens`` tokens: without floors, and at least the window."""
        return ga_w + Fraction((n_tokens - ga_w) * self.unit, ga_n)

    def ga_n_within(self, room: Fraction, ga_w: int, n_tokens: int) -> int:
        """The smallest group size with ``end`` below ``room`` positions; 0 if there is none."""
        return self._above(Fraction((n_tokens - ga_w) * self.unit), room - ga_w)

    def n_ctx_reach(self, n_ctx_train: int, ga_n: int, ga_w: int) -> int:
        """The longest sequence whose relative positions all stay below ``n_ctx_train``, in tokens."""
        return -(-(n_ctx_train - ga_w + self.pos_k(ga_w, ga_n)) * ga_n // self.unit)

    def ga_n_min(self, n_ctx_train: int, ga_w: int, n_tokens: int) -> int:
        """The smallest group size whose reach is at least ``n_tokens``; 0 if none up to ``GA_N_MAX`` has it."""
        # The reach is below n_far * ga_n / unit + ga_w + 1, so no ga_n below the first one here can do. From there on
        # go by runs of ga_n with the same ga_w // ga_n: the reach grows inside a run, and there are at most
        # 2 * sqrt(ga_w * unit).
        n_far, unit = n_ctx_train - ga_w, self.unit
        ga_n = max(unit, (n_tokens - 1 - ga_w) * unit // n_far + 1)
        while ga_n <= GA_N_MAX:
            n_groups = self.pos_k(ga_w, ga_n)
            candidate = max(ga_n, (unit * (n_tokens - 1)) // (n_far + n_groups) + 1)
            if n_groups == 0 or candidate <= ga_w * unit // n_groups:
                return candidate if candidate <= GA_N_MAX else 0
            ga_n = ga_w * unit // n_groups + 1
        return 0

    def fault(self, ga_n: int) -> str | None:
        """What a group size must be that ``ga_n`` is not; None: it is one."""
        if ga_n >= self.unit:
            return None
        return (
            f"at least {self.unit}: the map {self.name} counts it in parts of a token, {self.unit} is the plain model"
        )

    def _above(self, numerator: Fraction, room: Fraction) -> int:
        """The smallest group size above a quotient."""
        return max(self.unit, numerator // room + 1) if room > 0 else 0


class JetLong(Map):
    """Jet-Long (arXiv 2607.07740): ``q // G - k // G``, without an offset: far keys are seen nearer than the window.

    Its authors choose ``ceil(N / L)`` for a text of ``N`` tokens.
    """

    fills = True

    def pos_q(self, pos: int, ga_n: int, ga_w: int) -> int:
        return self.pos_k(pos, ga_n)

    def end(self, n_tokens: int, ga_n: int, ga_w: int) -> Fraction:
        return max(Fraction(ga_w), Fraction(n_tokens, ga_n))

    def ga_n_within(self, room: Fraction, ga_w: int, n_tokens: int) -> int:
        return self._above(Fraction(n_tokens), room) if room > ga_w else 0

    def n_ctx_reach(self, n_ctx_train: int, ga_n: int, ga_w: int) -> int:
        return n_ctx_train * ga_n

    def ga_n_min(self, n_ctx_train: int, ga_w: int, n_tokens: int) -> int:
        return _filling(n_ctx_train, n_tokens)


class ReRoPE(Map):
    """ReRoPE (Su, https://kexue.fm/archives/9708): ``W``, the same for all far keys and for every ``G`` above 1."""

    fills = True

    def pos_q(self, pos: int, ga_n: int, ga_w: int) -> int:
        return pos if ga_n == 1 else ga_w

    def pos_k(self, pos: int, ga_n: int) -> int:
        return pos if ga_n == 1 else 0

    def end(self, n_tokens: int, ga_n: int, ga_w: int) -> Fraction:
        return Fraction(n_tokens if ga_n == 1 else ga_w)

    def ga_n_within(self, room: Fraction, ga_w: int, n_tokens: int) -> int:
        return 2 if room > ga_w else 0

    def n_ctx_reach(self, n_ctx_train: int, ga_n: int, ga_w: int) -> int:
        return n_ctx_train if ga_n == 1 else POS_MAX

    def ga_n_min(self, n_ctx_train: int, ga_w: int, n_tokens: int) -> int:
        return 1 if n_tokens <= n_ctx_train else 2 if n_tokens <= POS_MAX else 0


class Leaky(Map):
    """Leaky ReRoPE (Su, the same): ``W + (q - k - W) / G``, a real number. ``G`` is a power of two, so that positions
    in different groups are counted in the same parts.
    """

    def pos_q(self, pos: int, ga_n: int, ga_w: int) -> int:
        return pos + ga_w * (ga_n - 1)

    def pos_k(self, pos: int, ga_n: int) -> int:
        return pos

    def pos_den(self, ga_n: int) -> int:
        return ga_n

    def ga_n_within(self, room: Fraction, ga_w: int, n_tokens: int) -> int:
        return _power(super().ga_n_within(room, ga_w, n_tokens))

    def n_ctx_reach(self, n_ctx_train: int, ga_n: int, ga_w: int) -> int:
        return (n_ctx_train - ga_w) * ga_n + ga_w

    def ga_n_min(self, n_ctx_train: int, ga_w: int, n_tokens: int) -> int:
        ga_n = _power(max(1, -(-(n_tokens - ga_w) // (n_ctx_train - ga_w))))
        return ga_n if ga_n <= GA_N_MAX else 0

    def fault(self, ga_n: int) -> str | None:
        return super().fault(ga_n) or (f"a power of two with the map {self.name}" if ga_n & (ga_n - 1) else None)


class MrRoPE(Leaky):
    """MrRoPE-Pro (arXiv 2601.22181): all keys at ``q - k``, at frequencies for a context ``G`` times as long.

    Fast pairs of dimensions keep their frequency, slow ones have it divided by ``G``. There are no near keys, and the
    group of a sequence does not change. A peer to compare with, as YaRN is.
    """

    has_window = False
    follows = False
    fills = True

    def ga_n_within(self, room: Fraction, ga_w: int, n_tokens: int) -> int:
        return self._above(Fraction(n_tokens), room)

    def ga_n_min(self, n_ctx_train: int, ga_w: int, n_tokens: int) -> int:
        return _filling(n_ctx_train, n_tokens)

    def fault(self, ga_n: int) -> str | None:
        return Map.fault(self, ga_n)


def _filling(n_ctx_train: int, n_tokens: int) -> int:
    """``ceil(N / L)``, or 0 if there is no such group size."""
    ga_n = -(-n_tokens // n_ctx_train)
    return ga_n if ga_n <= GA_N_MAX else 0


def _power(ga_n: int) -> int:
    """The smallest power of two that is not below; 0 stays 0."""
    return 1 << (ga_n - 1).bit_length() if ga_n else 0


SELF_EXTEND = Map("self-extend", 0)

#: By name. ``lampe`` is SelfExtend's with ``G`` in 64ths of a token (the rational ratio of LaMPE, arXiv 2508.02308).
MAPS = {
    each.name: each
    for each in (
        SELF_EXTEND,
        JetLong("jet-long", 1),
        ReRoPE("rerope", 2),
        Leaky("leaky", 3),
        Map("lampe", 4, unit=64),
        MrRoPE("mrrope", 5),
    )
}


def map_named(name: str) -> Map:
    """The map of that name.

    Raises:
        SettingError: there is none.
    """
    try:
        return MAPS[name]
    except (KeyError, TypeError):
        raise SettingError(f"ga_map is {name!r}; it must be one of {', '.join(MAPS)}") from None
