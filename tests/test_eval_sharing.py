"""What prompts share: the plan is carried out by a simulation that knows nothing of how it was made."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pyselfextend.eval.cases import Tokens
from pyselfextend.eval.sharing import N_SLICE, n_read, plan_readings, shared_prefix

#: Prompts as places where they leave a common trunk, and their lengths.
PROMPTS = st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 4000)), max_size=6)

#: Group sizes that they are read with.
GROUPS = st.lists(st.sampled_from([1, 2]), min_size=6, max_size=6)


def prompt(leaves: int, n: int, branch: int) -> Tokens:
    return tuple(range(min(leaves, n))) + (-1 - branch,) * max(0, n - leaves)


@given(PROMPTS, st.none() | GROUPS)
@settings(max_examples=300, deadline=None)
def test_a_plan_can_be_carried_out(places: list[tuple[int, int]], groups: list[int] | None) -> None:
    prompts = [prompt(leaves, n, i) for i, (leaves, n) in enumerate(places)]
    groups = groups and groups[: len(prompts)]
    kept: Tokens = ()
    kept_group = 0
    for i, (tokens, reading) in enumerate(zip(prompts, plan_readings(prompts, groups), strict=True)):
        group = groups[i] if groups else 0
        assert reading.n_shared % N_SLICE == reading.n_keep % N_SLICE == 0
        assert reading.n_shared < len(tokens)
        assert reading.n_keep < len(tokens)
        if reading.n_shared:
            assert (kept, kept_group) == (tokens[: reading.n_shared], group)
        if reading.n_keep:
            assert reading.n_keep > reading.n_shared  # it is passed on the way
            kept, kept_group = tokens[: reading.n_keep], group


@given(PROMPTS)
@settings(max_examples=300, deadline=None)
def test_prompts_in_order_are_evaluated_once_where_they_are_the_same(places: list[tuple[int, int]]) -> None:
    prompts = [prompt(leaves, n + 3000, i) for i, (leaves, n) in enumerate(sorted(places))]
    readings = plan_readings(prompts)
    for i in range(1, len(prompts)):
        shared = shared_prefix(prompts[i - 1], prompts[i])
        assert readings[i].n_shared == min(shared, len(prompts[i - 1]) - 1, len(prompts[i]) - 1) // N_SLICE * N_SLICE


@given(PROMPTS, PROMPTS)
@settings(max_examples=200, deadline=None)
def test_groups_are_planned_by_themselves(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    """Prompts of two groups, those of one behind those of the other, share as if the others were not there."""
    a, b = [[prompt(leaves, n, i) for i, (leaves, n) in enumerate(places)] for places in (some, others)]
    groups = [2] * len(a) + [4] * len(b)
    assert plan_readings(a + b, groups) == plan_readings(a) + plan_readings(b)


def test_what_is_read() -> None:
    """All of an answer may be; of what is scored, the last token is only predicted."""
    assert n_read(100, 7) == 107
    assert n_read(100, n_scored=7) == 106
    assert n_read(100, n_scored=1) == n_read(100) == 100


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_shared_prefix(a: list[int], b: list[int]) -> None:
    n = shared_prefix(a, b)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]
