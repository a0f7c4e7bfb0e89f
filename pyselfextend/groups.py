"""Which group size a text is read with: the authors' rule, and the policy of ``ga_n="auto"``. Imports nothing native.

The authors' rule (README of LongLM, https://github.com/datamllab/LongLM): ``(1/2 .. 2/3) * L > W + (N - W) / G``, where
``L`` is ``n_ctx_train``, ``W`` ``ga_w``, ``G`` ``ga_n`` and ``N`` the length in tokens. The right side is close to the
largest relative position that the model sees, and positions near ``L`` are under-trained.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from . import positions
from .maps import SELF_EXTEND, map_named

__all__ = [
    "N_ANSWER",
    "RULE",
    "GroupPolicy",
    "GroupTable",
    "auto_limit",
    "choose_ga_n",
    "default_ga_w",
    "ga_n_auto",
    "ga_n_by_rule",
    "rule_share",
]

#: The ends of the authors' rule: shares of the trained context, the cautious one first.
RULE = (Fraction(1, 2), Fraction(2, 3))

#: The largest default window: near keys are kept twice, and a text is seldom repeated word by word further away.
GA_W_MAX = 2048

#: Groups that were measured (``measured``): lengths in tokens, ascending, each with the group of texts of that length,
#: which reaches it.
GroupTable = tuple[tuple[int, int], ...]

#: Tokens that an answer is expected to have where nobody has said it.
N_ANSWER = 256


def default_ga_w(n_ctx_train: int, ga_map: str = SELF_EXTEND.name) -> int:
    """The neighbour window where none is asked for: an eighth of the trained context, at most 2048 tokens.

    0 with a map that has none.
    """
    return min(n_ctx_train // 8, GA_W_MAX) if map_named(ga_map).has_window else 0


def rule_share(n_ctx_train: int, ga_n: int, ga_w: int, n_tokens: int, ga_map: str = SELF_EXTEND.name) -> Fraction:
    """``(W + (N - W) / G) / L``: a pair keeps the authors' rule where that is below a share from ``RULE``.

    With other maps, what they show the first key at in place of ``W + (N - W) / G``.
    """
    return map_named(ga_map).end(n_tokens, ga_n, ga_w) / n_ctx_train


def ga_n_by_rule(n_ctx_train: int, ga_w: int, n_tokens: int, share: Fraction, ga_map: str = SELF_EXTEND.name) -> int:
    """The smallest group size that keeps the authors' rule with this share; 0 if the window alone takes as much."""
    return map_named(ga_map).ga_n_within(share * n_ctx_train, ga_w, n_tokens)


def choose_ga_n(n_ctx_train: int, ga_w: int, n_tokens: int, ga_map: str = SELF_EXTEND.name) -> int:
    """The smallest group size above the plain model's that keeps relative positions within two thirds of the trained
    context.

    That is the upper end of the authors' rule. Where the window alone takes that much, the smallest group size that
    reaches ``n_tokens``; so with maps whose authors take that.
    """
    by = map_named(ga_map)
    ga_n = 0 if by.fills else ga_n_by_rule(n_ctx_train, ga_w, n_tokens, RULE[1], ga_map)
    return max(by.unit + 1, ga_n or positions.ga_n_min(n_ctx_train, ga_w, n_tokens, ga_map))


def ga_n_auto(n_ctx_train: int, ga_w: int, n_tokens: int, ga_map: str = SELF_EXTEND.name) -> int:
    """The group size of a text of ``n_tokens`` tokens: 1 inside the trained context, beyond it a power of two.

    The smallest that is not below ``choose_ga_n``, and reaches. Other maps than ``self-extend`` take ``choose_ga_n`` as
    it is.
    """
    by = map_named(ga_map)
    if n_tokens <= n_ctx_train:
        return by.unit
    ga_n = choose_ga_n(n_ctx_train, ga_w, n_tokens, ga_map)
    if by is SELF_EXTEND:
        ga_n = 1 << (ga_n - 1).bit_length()
    return positions.ga_n_raised(n_ctx_train, ga_n, positions.GA_N_MAX, ga_w, n_tokens, ga_map)


@dataclass(frozen=True)
class GroupPolicy:
    """The policy of ``ga_n="auto"``: a group is chosen when a text is handed over, for all of it.

    A text that is read with one group from its beginning retrieves better than one whose group changes on the way
    (docs/groups.md).
    """

    n_ctx_train: int
    """The trained context in tokens."""

    ga_w: int
    """Neighbour window in tokens."""

    n_ctx: int
    """The context in tokens."""

    table: GroupTable = ()
    """Groups that were measured on the model; without, the rule is followed."""

    ga_map: str = SELF_EXTEND.name
    """The map of positions."""

    @property
    def ga_n_max(self) -> int:
        """The largest group of any text, to which the engine raises one that no longer reaches: without a table that of
        a text that fills the context."""
        largest = max(self.begin(length) for length in (*(length for length, _ in self.table), self.n_ctx))
        return self._reaching(largest, self.n_ctx)

    def begin(self, n_tokens: int) -> int:
        """The group of a text that is read from its beginning, of ``n_tokens`` tokens with the answer.

        That of the smallest length that was measured and is not below it. Beyond the longest one that of the rule, and
        no smaller one than was measured last: the rule knows nothing of this model. It need not grow with the length
        where that was measured, and always reaches.
        """
        n_tokens = min(n_tokens, self.n_ctx)
        for length, ga_n in self.table:
            if n_tokens <= length:
                return self._reaching(ga_n, n_tokens)
        ga_n = ga_n_auto(self.n_ctx_train, self.ga_w, n_tokens, self.ga_map)
        return self._reaching(max(ga_n, self.table[-1][1]), n_tokens) if self.table else ga_n

    def steps(self, n_tokens: int) -> Iterator[tuple[int, int]]:
        """The groups of texts of up to ``n_tokens``, each with the longest text that it is chosen for, in tokens."""
        length = 1
        while length <= n_tokens:
            ga_n, longest = self.begin(length), self._longest(length)
            while longest < self.n_ctx and self.begin(longest + 1) == ga_n:
                longest = self._longest(longest + 1)
            yield ga_n, longest
            length = longest + 1

    def _longest(self, n_tokens: int) -> int:
        """How long a text may be that has the group of ``n_tokens`` for the same reason."""
        for length, _ in self.table:
            if n_tokens <= length:
                return length
        ga_n, high = self.begin(n_tokens), n_tokens  # beyond the table it grows with the length
        while high < self.n_ctx and self.begin(high) == ga_n:
            high = min(2 * high, self.n_ctx)
        return n_tokens - 1 + bisect_right(range(n_tokens, high + 1), ga_n, key=self.begin)

    def _reaching(self, ga_n: int, n_tokens: int) -> int:
        """A group, raised where it does not reach: it may not where ``ga_w`` is close to the trained context."""
        return positions.ga_n_raised(self.n_ctx_train, ga_n, positions.GA_N_MAX, self.ga_w, n_tokens, self.ga_map)

    def resume(self, ga_n: int, n_kept: int, n_tokens: int) -> int:
        """The group of a text of ``n_tokens`` tokens with the answer, of which ``n_kept`` have been read with ``ga_n``.

        What has been read keeps its group as long as that is enough: an edit does not turn keys back and forth. Where
        no more is kept than fits into the window, the group has not been looked at yet, and the text begins anew.
        """
        chosen = self.begin(n_tokens)
        return chosen if n_kept <= self.ga_w else max(ga_n, chosen)

    def outgrow(self, ga_n: int, n_tokens: int) -> int:
        """The group of a text that has outgrown what was said, and has ``n_tokens``: that of the engine's raise."""
        ga_n_max = max(ga_n, self.ga_n_max)
        return positions.ga_n_raised(self.n_ctx_train, ga_n, ga_n_max, self.ga_w, n_tokens, self.ga_map)


def auto_limit(n_ctx_train: int, ga_w: int, ga_n: int) -> int:
    """The longest text, in tokens, that ``ga_n_auto`` reads with no more than ``ga_n``, a power of two."""
    if ga_n == 1:
        return n_ctx_train
    reach = positions.n_ctx_reach(n_ctx_train, ga_n, ga_w)
    room = RULE[1] * n_ctx_train - ga_w  # as in ga_n_by_rule
    within = reach if room <= 0 else min(reach, ga_w + math.ceil(ga_n * room) - 1)
    return max(n_ctx_train, within)
