"""Positions arithmetic: Python against the rule written out pair by pair, and against C."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable
from fractions import Fraction
from itertools import product

import pytest

from pyselfextend import positions
from pyselfextend.errors import NotAnIntegerError, SettingError
from pyselfextend.maps import MAPS

I64, U32 = ctypes.c_int64, ctypes.c_uint32

#: Without the map, which is the last argument of all.
SIGNATURES = {
    "pos_q": (I64, (I64, U32, U32)),
    "pos_k": (I64, (I64, U32)),
    "pos_den": (U32, (U32,)),
    "pos_rel": (I64, (I64, I64, U32, U32)),
    "pos_rel_max": (I64, (I64, U32, U32)),
    "n_ctx_reach": (I64, (U32, U32, U32)),
    "ga_n_min": (U32, (U32, U32, I64)),
    "ga_n_raised": (U32, (U32, U32, U32, U32, I64)),
}

SMALL = list(product(range(1, 10), range(13)))  # every (ga_n, ga_w), also where ga_n does not divide ga_w

#: The same with other maps.
OTHERS = [
    *((ga_map, *pair) for ga_map in ("jet-long", "rerope") for pair in product(range(1, 6), (0, 1, 3, 7, 12))),
    *(("leaky", *pair) for pair in product((1, 2, 4, 8), (0, 1, 3, 7, 12))),
    *(("lampe", *pair) for pair in product((64, 65, 96, 100, 127, 128, 200), (0, 1, 3, 7, 12))),
    *(("mrrope", ga_n, 0) for ga_n in range(1, 6)),
]


def rule(q: int, k: int, ga_n: int, ga_w: int, ga_map: str = "self-extend") -> Fraction:
    """The table of the specification, and the formulas of other maps as their sources have them."""
    group = Fraction(ga_n, 64) if ga_map == "lampe" else Fraction(ga_n)
    if q - k < ga_w:
        return Fraction(q - k)
    if ga_map == "jet-long":
        return Fraction(q // group - k // group)
    if ga_map == "rerope":
        return Fraction(q - k if group == 1 else ga_w)
    if ga_map in ("leaky", "mrrope"):
        return ga_w + (q - k - ga_w) / group
    return Fraction((q // group + ga_w - ga_w // group) - k // group)


def largest(n_tokens: int, ga_n: int, ga_w: int, ga_map: str = "self-extend") -> Fraction:
    return max(rule(q, k, ga_n, ga_w, ga_map) for q in range(n_tokens) for k in range(q + 1))


@pytest.fixture(scope="module")
def native() -> dict[str, Callable[..., int]]:
    """The functions of the C API, under their Python names."""
    from pyselfextend import _native

    cdll = _native.load().cdll

    def declared(name: str) -> Callable[..., int]:
        restype, argtypes = SIGNATURES[name]
        function = getattr(cdll, f"llama_self_extend_{name}")
        function.restype, function.argtypes = restype, (*argtypes, ctypes.c_int)

        def call(*arguments: int, ga_map: str = "self-extend") -> int:
            return int(function(*arguments, MAPS[ga_map].number))

        return call

    return {name: declared(name) for name in SIGNATURES}


def test_the_same_functions_in_both_languages() -> None:
    assert set(positions.__all__) - {"GA_N_MAX"} == set(SIGNATURES)


@pytest.mark.parametrize(("ga_n", "ga_w"), SMALL)
def test_every_pair_of_a_short_sequence(ga_n: int, ga_w: int) -> None:
    for q in range(40):
        for k in range(q + 1):
            assert positions.pos_rel(q, k, ga_n, ga_w) == rule(q, k, ga_n, ga_w)
            if q - k >= ga_w:
                assert positions.pos_q(q, ga_n, ga_w) - positions.pos_k(k, ga_n) == rule(q, k, ga_n, ga_w)


@pytest.mark.parametrize(("ga_map", "ga_n", "ga_w"), OTHERS)
def test_other_maps(native: dict[str, Callable[..., int]], ga_map: str, ga_n: int, ga_w: int) -> None:
    """Every pair, the largest position and the reach, in both languages."""
    pair, den = (ga_n, ga_w), positions.pos_den(ga_n, ga_map)
    assert native["pos_den"](ga_n, ga_map=ga_map) == den
    far = Fraction(0)
    for q in range(40):
        for k in range(q + 1):
            expected = rule(q, k, *pair, ga_map) * den
            assert positions.pos_rel(q, k, *pair, ga_map) == expected
            assert native["pos_rel"](q, k, *pair, ga_map=ga_map) == expected
            far = max(far, expected)
            if q - k >= ga_w:
                frames = positions.pos_q(q, *pair, ga_map), positions.pos_k(k, ga_n, ga_map)
                assert frames[0] - frames[1] == expected
                assert native["pos_q"](q, *pair, ga_map=ga_map) == frames[0]
                assert native["pos_k"](k, ga_n, ga_map=ga_map) == frames[1]
        assert positions.pos_rel_max(q + 1, *pair, ga_map) == far
        assert native["pos_rel_max"](q + 1, *pair, ga_map=ga_map) == far
    for n_ctx_train in range(ga_w + 1, ga_w + 5):
        reach = positions.n_ctx_reach(n_ctx_train, *pair, ga_map)
        assert native["n_ctx_reach"](n_ctx_train, *pair, ga_map=ga_map) == reach
        if ga_map == "rerope" and ga_n > 1:
            assert reach == 2**31 - 1
            continue
        assert largest(reach, *pair, ga_map) < n_ctx_train <= largest(reach + 1, *pair, ga_map)


@pytest.mark.parametrize("ga_map", MAPS)
def test_smallest_group_of_each_map(native: dict[str, Callable[..., int]], ga_map: str) -> None:
    sizes = [size for size in range(MAPS[ga_map].unit, 40 * MAPS[ga_map].unit) if not MAPS[ga_map].fault(size)]
    for n_ctx_train in range(1, 10):
        for ga_w in range(n_ctx_train if MAPS[ga_map].has_window else 1):
            reach = {size: positions.n_ctx_reach(n_ctx_train, size, ga_w, ga_map) for size in sizes}
            for n_tokens in range(1, 30):
                first = next(size for size, reached in reach.items() if reached >= n_tokens)
                assert positions.ga_n_min(n_ctx_train, ga_w, n_tokens, ga_map) == first
                assert native["ga_n_min"](n_ctx_train, ga_w, n_tokens, ga_map=ga_map) == first


@pytest.mark.parametrize("ga_map", [name for name, each in MAPS.items() if each.follows])
def test_groups_of_each_map_that_are_raised(native: dict[str, Callable[..., int]], ga_map: str) -> None:
    unit = MAPS[ga_map].unit
    sizes = [unit * 2**i for i in range(8)]
    for n_ctx_train, ga_w, n_tokens in product((5, 12), (0, 2, 4), (1, 5, 6, 13, 30, 60)):
        arguments = (n_ctx_train, unit, sizes[-1], ga_w, n_tokens)
        expected = next(size for size in sizes if largest(n_tokens, size, ga_w, ga_map) < n_ctx_train)
        assert positions.ga_n_raised(*arguments, ga_map) == expected
        assert native["ga_n_raised"](*arguments, ga_map=ga_map) == expected


@pytest.mark.parametrize(("ga_n", "ga_w"), SMALL)
def test_largest_relative_position(ga_n: int, ga_w: int) -> None:
    for n_tokens in range(1, 40):
        assert positions.pos_rel_max(n_tokens, ga_n, ga_w) == largest(n_tokens, ga_n, ga_w)


@pytest.mark.parametrize(("ga_n", "ga_w"), SMALL)
def test_reach_is_the_last_length_that_fits(ga_n: int, ga_w: int) -> None:
    for n_ctx_train in range(ga_w + 1, ga_w + 5):
        reach = positions.n_ctx_reach(n_ctx_train, ga_n, ga_w)
        assert largest(reach, ga_n, ga_w) < n_ctx_train
        assert largest(reach + 1, ga_n, ga_w) >= n_ctx_train


def test_smallest_group_is_the_first_that_fits() -> None:
    for n_ctx_train in range(1, 14):
        for ga_w in range(n_ctx_train):
            reach = {ga_n: positions.n_ctx_reach(n_ctx_train, ga_n, ga_w) for ga_n in range(1, 90)}
            for n_tokens in range(1, 80):
                first = next(ga_n for ga_n, reached in reach.items() if reached >= n_tokens)
                assert positions.ga_n_min(n_ctx_train, ga_w, n_tokens) == first


def test_paper() -> None:
    """Where ga_n divides ga_w the reach is (L - W) * G + W, section 3 of the paper; its Llama-2 setting has 7168."""
    assert positions.n_ctx_reach(4096, 2, 1024) == 7168
    assert positions.n_ctx_reach(8192, 4, 1024) == (8192 - 1024) * 4 + 1024


def test_plain_model_is_group_size_1() -> None:
    for ga_w in (0, 1, 7, 99):
        assert positions.n_ctx_reach(100, 1, ga_w) == 100
        assert positions.pos_rel_max(100, 1, ga_w) == 99
        assert all(positions.pos_rel(q, k, 1, ga_w) == q - k for q in range(100) for k in range(q + 1))


def test_reach_can_fall_with_a_larger_group() -> None:
    assert positions.n_ctx_reach(10, 4, 9) == 12
    assert positions.n_ctx_reach(10, 5, 9) == 10
    assert positions.ga_n_min(10, 9, 12) == 3


def test_no_group_size_is_large_enough() -> None:
    longest = positions.n_ctx_reach(10, positions.GA_N_MAX, 9)
    assert positions.ga_n_min(10, 9, longest) == positions.GA_N_MAX
    assert positions.ga_n_min(10, 9, longest + 1) == 0


def test_c_agrees_on_small_values(native: dict[str, Callable[..., int]]) -> None:
    for ga_n, ga_w in SMALL:
        for q in range(40):
            assert native["pos_q"](q, ga_n, ga_w) == positions.pos_q(q, ga_n, ga_w)
            assert native["pos_k"](q, ga_n) == positions.pos_k(q, ga_n)
            assert native["pos_rel_max"](q + 1, ga_n, ga_w) == positions.pos_rel_max(q + 1, ga_n, ga_w)
            for k in range(q + 1):
                assert native["pos_rel"](q, k, ga_n, ga_w) == positions.pos_rel(q, k, ga_n, ga_w)
        for n_ctx_train in range(ga_w + 1, ga_w + 20):
            reach = positions.n_ctx_reach(n_ctx_train, ga_n, ga_w)
            assert native["n_ctx_reach"](n_ctx_train, ga_n, ga_w) == reach
            for n_tokens in (reach - 1, reach, reach + 1):
                smallest = positions.ga_n_min(n_ctx_train, ga_w, max(1, n_tokens))
                assert native["ga_n_min"](n_ctx_train, ga_w, max(1, n_tokens)) == smallest


def raised(n_ctx_train: int, ga_n: int, ga_n_max: int, ga_w: int, n_tokens: int) -> int:
    """By the rule, pair by pair: the first of ga_n and the powers of two above it, the last being ga_n_max."""
    sizes = [ga_n, *(2**i for i in range(10) if ga_n < 2**i < ga_n_max), ga_n_max]
    return next((size for size in sizes if largest(n_tokens, size, ga_w) < n_ctx_train), 0)


def test_a_group_that_is_raised(native: dict[str, Callable[..., int]]) -> None:
    rng = random.Random(5)
    found = set()
    for _ in range(400):
        n_ctx_train, ga_n = rng.randint(2, 12), rng.choice([1, 1, 2, 3, 4, 5])
        ga_n_max, ga_w, n_tokens = rng.randint(ga_n, 12), rng.randrange(n_ctx_train), rng.randint(1, 60)
        arguments = (n_ctx_train, ga_n, ga_n_max, ga_w, n_tokens)
        expected = raised(*arguments)
        assert positions.ga_n_raised(*arguments) == native["ga_n_raised"](*arguments) == expected
        found.add((expected == 0, expected == ga_n, expected == ga_n_max))
    assert len(found) >= 4
    assert positions.ga_n_raised(8192, 1, positions.GA_N_MAX, 1024, 2**40) == 2**28
    assert native["ga_n_raised"](8192, 1, positions.GA_N_MAX, 1024, 2**40) == 2**28


def test_c_agrees_on_large_values(native: dict[str, Callable[..., int]]) -> None:
    """Positions to 2^40, group sizes and windows to 2^31, where 32-bit arithmetic would overflow."""
    rng = random.Random(20240102)

    def some(low: int, bits: int) -> int:
        """About as many values of each length in bits."""
        return max(low, rng.getrandbits(rng.randint(1, bits)))

    for _ in range(20_000):
        ga_n, ga_w, q = some(1, 31), some(0, 31), some(0, 40)
        k = rng.randint(0, q)
        assert native["pos_q"](q, ga_n, ga_w) == positions.pos_q(q, ga_n, ga_w)
        assert native["pos_k"](q, ga_n) == positions.pos_k(q, ga_n)
        assert native["pos_rel"](q, k, ga_n, ga_w) == positions.pos_rel(q, k, ga_n, ga_w)
        assert native["pos_rel_max"](q + 1, ga_n, ga_w) == positions.pos_rel_max(q + 1, ga_n, ga_w)

        n_ctx_train = some(1, 31)
        ga_w = rng.randrange(n_ctx_train)
        reach = positions.n_ctx_reach(n_ctx_train, ga_n, ga_w)
        assert native["n_ctx_reach"](n_ctx_train, ga_n, ga_w) == reach
        assert positions.pos_rel_max(reach, ga_n, ga_w) < n_ctx_train <= positions.pos_rel_max(reach + 1, ga_n, ga_w)

        n_ctx_train = some(1, 20)
        ga_w, n_tokens = rng.randrange(n_ctx_train), some(1, 31)
        smallest = positions.ga_n_min(n_ctx_train, ga_w, n_tokens)
        assert native["ga_n_min"](n_ctx_train, ga_w, n_tokens) == smallest
        assert positions.n_ctx_reach(n_ctx_train, smallest, ga_w) >= n_tokens


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: positions.pos_q(-1, 2, 4), r"pos is -1; it must be an integer of at least 0"),
        (lambda: positions.pos_k(3, 0), r"ga_n is 0; it must be an integer from 1 to 4294967295"),
        (lambda: positions.pos_rel(3, 4, 2, 4), r"pos_key is 4; it must be an integer from 0 to 3"),
        (lambda: positions.pos_rel_max(0, 2, 4), r"n_tokens is 0; it must be an integer of at least 1"),
        (lambda: positions.n_ctx_reach(8, 2, -1), r"ga_w is -1; it must be an integer of at least 0"),
        (lambda: positions.n_ctx_reach(8, 2, 8), r"ga_w is 8; it must be below the trained context of 8 tokens"),
        (lambda: positions.pos_k(3, 5, "leaky"), r"ga_n is 5; it must be a power of two with the map leaky"),
        (lambda: positions.pos_k(3, 5, "lampe"), r"ga_n is 5; it must be at least 64: .*"),
        (lambda: positions.pos_k(3, 5, "other"), r"ga_map is 'other'; it must be one of self-extend, .*"),
        (lambda: positions.ga_n_min(0, 0, 1), r"n_ctx_train is 0; it must be an integer of at least 1"),
    ],
)
def test_out_of_range(call: Callable[[], int], message: str) -> None:
    with pytest.raises(SettingError, match=f"^{message}$"):
        call()


@pytest.mark.parametrize("value", [2.0, "2", None, True])
def test_not_an_integer(value: object) -> None:
    with pytest.raises(NotAnIntegerError, match=r"^ga_n is "):
        positions.pos_k(3, value)  # type: ignore[arg-type]
