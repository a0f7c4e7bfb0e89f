"""What prompts share: the plan is carried out by a simulation that knows nothing of how it was made."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pyselfextend.eval.cases import Tokens
from pyselfextend.eval.sharing import N_SLICE, plan_readings, shared_prefix

#: Prompts as places where they leave a common trunk, and their lengths.
PROMPTS = st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 4000)), max_size=6)


def prompt(leaves: int, n: int, branch: int) -> Tokens:
    return tuple(range(min(leaves, n))) + (-1 - branch,) * max(0, n - leaves)


@given(PROMPTS)
@settings(max_examples=300, deadline=None)
def test_a_plan_can_be_carried_out(places: list[tuple[int, int]]) -> None:
    prompts = [prompt(leaves, n, i) for i, (leaves, n) in enumerate(places)]
    kept: Tokens = ()
    for tokens, reading in zip(prompts, plan_readings(prompts), strict=True):
        assert reading.n_shared % N_SLICE == reading.n_keep % N_SLICE == 0
        assert reading.n_shared < len(tokens)
        assert reading.n_keep < len(tokens)
        if reading.n_shared:
            assert kept == tokens[: reading.n_shared]
        if reading.n_keep:
            assert reading.n_keep > reading.n_shared  # it is passed on the way
            kept = tokens[: reading.n_keep]


@given(PROMPTS)
@settings(max_examples=300, deadline=None)
def test_prompts_in_order_are_evaluated_once_where_they_are_the_same(places: list[tuple[int, int]]) -> None:
    prompts = [prompt(leaves, n + 3000, i) for i, (leaves, n) in enumerate(sorted(places))]
    readings = plan_readings(prompts)
    for i in range(1, len(prompts)):
        shared = shared_prefix(prompts[i - 1], prompts[i])
        assert readings[i].n_shared == min(shared, len(prompts[i - 1]) - 1, len(prompts[i]) - 1) // N_SLICE * N_SLICE


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_shared_prefix(a: list[int], b: list[int]) -> None:
    n = shared_prefix(a, b)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]
