"""The policy of ``ga_n="auto"``, written out."""

from __future__ import annotations

from fractions import Fraction

import pytest

from pyselfextend import SettingError, positions
from pyselfextend.groups import GroupPolicy, default_ga_w, ga_n_auto


def by_the_rule(n_ctx_train: int, ga_w: int, n_tokens: int) -> int:
    """1 inside the trained context; beyond it the smallest power of two with W + (N - W)/G < 2/3 L."""
    if n_tokens <= n_ctx_train:
        return 1
    return next(
        2**i for i in range(1, 30) if ga_w + Fraction(n_tokens - ga_w, 2**i) < Fraction(2 * n_ctx_train, 3)
    )  # fmt: skip


@pytest.mark.parametrize("n_ctx_train", [512, 2048, 8192, 131072])
def test_the_group_of_a_length(n_ctx_train: int) -> None:
    ga_w = default_ga_w(n_ctx_train)
    assert ga_w == min(n_ctx_train / 8, 2048)
    lengths = [n_ctx_train * i // 16 + j for i in range(8, 300, 3) for j in (-1, 0, 1)]
    groups = [ga_n_auto(n_ctx_train, ga_w, n) for n in lengths]
    assert groups == [by_the_rule(n_ctx_train, ga_w, n) for n in lengths]
    assert set(groups) >= {1, 2, 4, 8, 16, 32}
    for n, ga_n in zip(lengths, groups, strict=True):
        assert positions.n_ctx_reach(n_ctx_train, ga_n, ga_w) >= n


def test_a_window_that_takes_as_much_as_the_rule_leaves() -> None:
    """Then it is the smallest power of two that reaches."""
    for n_tokens, ga_n in [(512, 1), (513, 2), (624, 2), (625, 4), (848, 4), (849, 8)]:
        assert ga_n_auto(512, 400, n_tokens) == ga_n


def test_what_has_been_read_keeps_its_group() -> None:
    policy = GroupPolicy(n_ctx_train=8192, ga_w=1024, n_ctx=65536)
    assert (policy.ga_n_max, policy.begin(8192), policy.begin(8193), policy.begin(20000)) == (16, 1, 2, 8)
    assert policy.begin(10**9) == policy.begin(65536)  # what does not fit is refused elsewhere
    assert policy.resume(8, n_kept=5000, n_tokens=6000) == 8  # an edit
    assert policy.resume(2, n_kept=5000, n_tokens=20000) == 8  # a chat that grows
    assert policy.resume(8, n_kept=1024, n_tokens=6000) == 1  # the group has not been looked at yet
    assert policy.resume(8, n_kept=1025, n_tokens=6000) == 8
    assert policy.outgrow(1, 8192) == 1  # the engine's raise
    assert policy.outgrow(1, 8193) == 2
    assert policy.outgrow(2, 15361) == 4
    assert policy.outgrow(3, 40000) == 8
    assert policy.outgrow(100, 60000) == 100


def test_no_window_beyond_the_trained_context() -> None:
    with pytest.raises(SettingError, match="ga_w is 512; it must be below the trained context of 512 tokens"):
        ga_n_auto(512, 512, 1000)
