"""The policy of ``ga_n="auto"``, written out."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyselfextend import SettingError, positions
from pyselfextend.groups import GroupPolicy, auto_limit, default_ga_w, ga_n_auto


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


#
# with groups that were measured
#

TABLE = ((4096, 1), (8192, 2), (12288, 8), (32768, 6))


def with_table(*table: tuple[int, int], n_ctx: int = 200_000) -> GroupPolicy:
    return GroupPolicy(n_ctx_train=8192, ga_w=1024, n_ctx=n_ctx, table=table)


def test_the_group_of_the_smallest_measured_length() -> None:
    policy = with_table(*TABLE)
    for n_tokens, ga_n in [(1, 1), (4096, 1), (4097, 2), (8192, 2), (8193, 8), (12288, 8), (12289, 6), (32768, 6)]:
        assert policy.begin(n_tokens) == ga_n
    assert policy.begin(32769) == ga_n_auto(8192, 1024, 32769) == 8  # beyond it is the rule
    assert ga_n_auto(8192, 1024, 36000) == 8
    assert with_table((32768, 12)).begin(36000) == 12  # but no less than was measured last
    assert with_table((32768, 12)).begin(40000) == ga_n_auto(8192, 1024, 40000) == 16
    assert with_table((4096, 1)).begin(5000) == 1  # measured inside alone
    assert with_table((4096, 1)).begin(20000) == ga_n_auto(8192, 1024, 20000)


def test_the_largest_group_is_that_of_any_text() -> None:
    """Also where the one of a text that fills the context is smaller."""
    assert with_table(*TABLE, n_ctx=32768).begin(32768) == 6
    assert with_table(*TABLE, n_ctx=32768).ga_n_max == 8
    assert with_table(*TABLE, n_ctx=10000).ga_n_max == 8
    assert with_table(*TABLE, n_ctx=200_000).ga_n_max == ga_n_auto(8192, 1024, 200_000)


def test_what_has_been_read_keeps_its_group_with_a_table() -> None:
    policy = with_table(*TABLE)
    assert policy.resume(8, n_kept=5000, n_tokens=20000) == 8  # 6 is better, for a text that begins
    assert policy.resume(2, n_kept=5000, n_tokens=20000) == 6
    assert policy.resume(8, n_kept=1024, n_tokens=20000) == 6
    assert policy.outgrow(6, 8192) == 6
    assert policy.outgrow(2, 16000) == 4  # the engine's raise


def test_steps_of_lengths() -> None:
    assert list(with_table(*TABLE).steps(32768)) == [(1, 4096), (2, 8192), (8, 12288), (6, 32768)]
    assert list(with_table((4096, 1), (8192, 1)).steps(9000)) == [(1, 8192), (2, auto_limit(8192, 1024, 2))]
    assert list(with_table().steps(1)) == [(1, 8192)]
    assert list(with_table((8192, 1), (16384, 4)).steps(17000)) == [(1, 8192), (4, auto_limit(8192, 1024, 4))]


tables = st.lists(
    st.tuples(st.integers(1, 5000), st.integers(1, 40)), max_size=6, unique_by=lambda row: row[0]
).map(lambda rows: tuple(sorted(rows)))  # fmt: skip


@given(st.integers(1, 600), st.data(), tables)
def test_always_reaches(n_ctx_train: int, data: st.DataObject, table: tuple[tuple[int, int], ...]) -> None:
    """Whatever the table says, and the larger group beyond it too."""
    ga_w = data.draw(st.integers(0, n_ctx_train - 1))
    policy = GroupPolicy(n_ctx_train, ga_w, data.draw(st.integers(n_ctx_train, 6000)), table)
    lengths = data.draw(st.lists(st.integers(1, 6000), min_size=1, max_size=20))
    for n_tokens in lengths:
        n = min(n_tokens, policy.n_ctx)
        ga_n = policy.begin(n_tokens)
        assert positions.n_ctx_reach(n_ctx_train, ga_n, ga_w) >= n
        assert ga_n >= next((each for length, each in table if n <= length), ga_n_auto(n_ctx_train, ga_w, n))
        assert policy.resume(1, n, n_tokens) == ga_n or n > ga_w
    assert positions.n_ctx_reach(n_ctx_train, policy.ga_n_max, ga_w) >= policy.n_ctx
    assert policy.ga_n_max >= max(policy.begin(length) for length in (*lengths, *(length for length, _ in table)))


@given(st.integers(1, 300), st.data(), tables)
def test_steps_are_the_policy(n_ctx_train: int, data: st.DataObject, table: tuple[tuple[int, int], ...]) -> None:
    """Length by length, each run of one group once."""
    ga_w = data.draw(st.integers(0, n_ctx_train - 1))
    table = tuple((n, ga_n) for n, ga_n in table if positions.n_ctx_reach(n_ctx_train, ga_n, ga_w) >= n)
    policy = GroupPolicy(n_ctx_train, ga_w, 2**31 - 1, table)
    n_tokens = data.draw(st.integers(1, 800))
    found = list(policy.steps(n_tokens))
    expected = [policy.begin(n) for n in range(1, n_tokens + 1)]
    spread = [ga_n for (ga_n, longest), before in zip(found, [0, *(n for _, n in found)], strict=False)
              for _ in range(before, longest)]  # fmt: skip
    assert spread[:n_tokens] == expected
    assert all(a != b for (a, _), (b, _) in itertools.pairwise(found))
    ga_n, longest = found[-1]
    assert longest >= n_tokens
    assert policy.begin(longest) == ga_n


@given(st.integers(8, 4000), st.data())
def test_steps_of_the_rule(n_ctx_train: int, data: st.DataObject) -> None:
    """Without a table: the limits that ``auto_limit`` computes."""
    ga_w = data.draw(st.integers(0, n_ctx_train // 2))
    for ga_n, longest in GroupPolicy(n_ctx_train, ga_w, 2**31 - 1).steps(data.draw(st.integers(1, 40 * n_ctx_train))):
        assert longest == auto_limit(n_ctx_train, ga_w, ga_n)
