"""Contexts with the parameters of the process, and the group chosen for a text: the C API that servers use.

What is chosen is held against the policy of ``ga_n="auto"`` in Python.
"""

from __future__ import annotations

import ctypes
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import unsupported
from architectures import make_tiny
from context import Context, load, open_model

from pyselfextend._native import Info, Params
from pyselfextend.groups import GroupPolicy, default_ga_w, ga_n_auto
from pyselfextend.maps import MAPS

L = 64  # the trained context of the tiny models that are opened here, by an override
DEFAULT = AUTO = 2**32 - 1


class Step(ctypes.Structure):
    _fields_ = [("n_tokens", ctypes.c_int64), ("ga_n", ctypes.c_uint32)]


class Api:
    """The functions, and llama_context_params."""

    def __init__(self) -> None:
        import llama_cpp

        self.library, self.llama = load(), llama_cpp
        cdll = self.library.cdll
        self.set_default = cdll.llama_self_extend_set_default
        self.set_default.restype = ctypes.c_bool
        self.set_default.argtypes = [ctypes.POINTER(Params), ctypes.POINTER(Step), ctypes.c_int32]
        self.init = cdll.llama_self_extend_init_from_model
        self.init.restype = ctypes.c_void_p
        self.init.argtypes = [ctypes.c_void_p, llama_cpp.llama_context_params]
        self.follow = cdll.llama_self_extend_follow
        self.follow.restype = ctypes.c_int32
        self.follow.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int64]
        self.ga_n_auto = cdll.llama_self_extend_ga_n_auto
        self.ga_n_auto.restype = ctypes.c_uint32
        self.ga_n_auto.argtypes = [ctypes.c_uint32, ctypes.c_uint32, ctypes.c_int64, ctypes.c_int]

    def default(
        self, ga_n: int = 1, ga_n_max: int = AUTO, ga_w: int = DEFAULT, ga_map: int = 0, steps: Sequence[Any] = ()
    ) -> str:
        """Set the default. Returns why it was refused; empty: it was not."""
        given = (Step * len(steps))(*(Step(*step) for step in steps))
        ok = self.set_default(ctypes.byref(Params(ga_n, ga_n_max, ga_w, 0, ga_map)), given, len(steps))
        assert ok == (not self.library.last_error())
        return self.library.last_error()

    def context(self, model: Any, n_ctx: int, **params: Any) -> int:
        given = self.llama.llama_context_default_params()
        for name, value in {"n_ctx": n_ctx, "n_batch": 256, "n_ubatch": 64, "n_threads": 1, **params}.items():
            setattr(given, name, value)
        ctx = self.init(model, given)
        assert ctx
        return int(ctx)

    def info(self, ctx: int) -> Info | None:
        info = Info()
        return info if self.library._get_info(ctx, ctypes.byref(info)) else None

    def decode(self, ctx: int, tokens: Sequence[int], pos: int = 0, seq: int = 0) -> Any:
        """The logits of the last one."""
        batch = self.llama.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, pos + i, 1, i + 1 == len(tokens)
            batch.seq_id[i][0] = seq
        assert self.llama.llama_decode(ctypes.c_void_p(ctx), batch) == 0
        self.llama.llama_batch_free(batch)
        row = self.llama.llama_get_logits_ith(ctypes.c_void_p(ctx), -1)
        vocab = self.llama.llama_model_get_vocab(self.llama.llama_get_model(ctypes.c_void_p(ctx)))
        return np.ctypeslib.as_array(row, shape=(self.llama.llama_vocab_n_tokens(vocab),)).copy()


@pytest.fixture
def api() -> Iterator[Api]:
    api = Api()
    yield api
    assert api.set_default(None, None, 0)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny model with a trained context of L tokens."""
    return lambda name: make_tiny().make(tmp_path_factory.mktemp("short") / "model.gguf", name, L)


def close(api: Api, ctx: int) -> None:
    api.llama.llama_free(ctypes.c_void_p(ctx))


#
# the rule, and what is chosen
#


@pytest.mark.parametrize("ga_map", MAPS)
def test_the_rule_is_that_of_python(api: Api, ga_map: str) -> None:
    number, rng = MAPS[ga_map].number, random.Random(0)
    for _ in range(4000):
        n_ctx_train = rng.choice([1, 2, 8, 64, 1000, 4096, 8192, 131072])
        has_window = MAPS[ga_map].has_window
        ga_w = rng.choice([0, n_ctx_train // 8, rng.randrange(n_ctx_train)]) if has_window else 0
        n_tokens = rng.randrange(1, 40 * n_ctx_train + 2)
        asked = n_ctx_train, ga_w, n_tokens
        assert api.ga_n_auto(*asked, number) == ga_n_auto(*asked, ga_map), asked
    assert api.ga_n_auto(64, 64, 100, number) == 0


STEPS = [(), ((96, 2), (200, 3), (300, 3)), ((100, 8), (300, 4))]


@pytest.mark.parametrize("steps", STEPS)
def test_the_group_of_a_text(api: Api, short: Callable[[str], Path], steps: tuple[tuple[int, int], ...]) -> None:
    """What is kept and what is handed over, at random, on two sequences with a buffer each."""
    ga_w, n_ctx, rng = default_ga_w(L), 512, random.Random(1)
    policy = GroupPolicy(L, ga_w, n_ctx, steps)
    with open_model(short("llama")) as model:
        assert not api.default(steps=steps)
        ctx = api.context(model, 2 * n_ctx, n_seq_max=2)
        info = api.info(ctx)
        assert info is not None and (info.ga_n, info.ga_w, info.ga_n_max) == (1, ga_w, policy.ga_n_max)
        kept = [0, 0]
        for _ in range(60):
            seq = rng.randrange(2)
            n_kept = rng.choice([kept[seq], rng.randint(0, kept[seq]), 0, min(ga_w, kept[seq])])
            n_new = rng.choice([3, 40, rng.randrange(1, n_ctx)])
            n_tokens = min(n_ctx, n_kept + n_new)
            before = [api.library.get_group(ctx, each) for each in range(2)]
            if n_kept == 0:
                before[seq] = 1  # a buffer whose last token is removed begins anew
            assert api.follow(ctx, seq, n_kept, n_tokens) == n_kept
            expected = policy.resume(before[seq], n_kept, n_tokens)
            assert api.library.get_group(ctx, seq) == expected, (n_kept, n_tokens)
            assert api.library.get_group(ctx, 1 - seq) == before[1 - seq]
            memory = api.llama.llama_get_memory(ctypes.c_void_p(ctx))
            assert api.llama.llama_memory_seq_pos_max(memory, seq) == n_kept - 1  # the others are removed
            if n_tokens > n_kept:
                n_now = min(n_tokens, n_kept + 60)
                api.decode(ctx, [5 + i % 40 for i in range(n_kept, n_now)], n_kept, seq)
                kept[seq] = n_now
            else:
                kept[seq] = n_kept
        close(api, ctx)


def test_sequences_that_share_a_buffer(api: Api, short: Callable[[str], Path]) -> None:
    """One does not take the group away that the other one needs."""
    with open_model(short("llama")) as model:
        assert not api.default()
        ctx = api.context(model, 512, n_seq_max=2, kv_unified=True)
        api.follow(ctx, 0, 0, 300)
        api.decode(ctx, list(range(5, 45)) * 3)
        large = api.library.get_group(ctx, 0)
        assert large == ga_n_auto(L, default_ga_w(L), 300) > 1
        assert api.follow(ctx, 1, 0, 20) == 0
        assert api.library.get_group(ctx, 1) == large
        close(api, ctx)


def test_keys_that_cannot_be_turned_are_evaluated_again(api: Api, short: Callable[[str], Path]) -> None:
    with open_model(short("hunyuan-dense")) as model:
        assert not api.default()
        ctx = api.context(model, 256)
        assert api.follow(ctx, 0, 0, 40) == 0
        api.decode(ctx, list(range(5, 45)))
        assert api.follow(ctx, 0, 40, 50) == 40  # it keeps its group
        assert api.follow(ctx, 0, 40, 200) == 0
        assert api.library.get_group(ctx, 0) == ga_n_auto(L, default_ga_w(L), 200)
        assert api.llama.llama_memory_seq_pos_max(api.llama.llama_get_memory(ctypes.c_void_p(ctx)), 0) == -1
        close(api, ctx)


def test_a_context_whose_group_is_given_does_not_follow(api: Api, short: Callable[[str], Path]) -> None:
    with open_model(short("llama")) as model:
        assert not api.default(4, 0)
        ctx = api.context(model, 200)
        assert api.follow(ctx, 0, 0, 20) == 0 and api.library.get_group(ctx, 0) == 4
        assert api.follow(ctx, 7, 5, 20) == 5  # no such sequence
        close(api, ctx)
        ctx = api.context(model, L)  # asked for by name, it is extended where it need not be
        assert api.info(ctx) is not None
        close(api, ctx)
    assert api.follow(None, 0, 5, 20) == 5


#
# which contexts are extended
#


def test_the_result_is_that_of_a_context_of_its_own(api: Api, short: Callable[[str], Path]) -> None:
    tokens = [5 + (7 * i) % 40 for i in range(150)]
    with open_model(short("llama")) as model:
        assert not api.default()
        ctx = api.context(model, 256)
        api.follow(ctx, 0, 0, 150)
        ga_n = api.library.get_group(ctx, 0)
        got = api.decode(ctx, tokens)
        close(api, ctx)
        with Context(model, ga_n, default_ga_w(L), n_ctx=256, n_batch=256) as own:
            expected = own.logits(tokens)[-1]
    assert ga_n > 1
    np.testing.assert_allclose(got, expected, atol=1e-5)  # as many outputs are computed in other ways


def test_plain_where_it_need_not_be_extended(api: Api, short: Callable[[str], Path]) -> None:
    with open_model(short("llama")) as model:
        assert not api.default()
        for n_ctx, n_seq_max, unified, is_extended in [
            (0, 1, False, False), (L, 1, False, False), (2 * L, 2, False, False), (2 * L, 2, True, True),
            (L + 256, 1, False, True),
        ]:  # fmt: skip
            ctx = api.context(model, n_ctx, n_seq_max=n_seq_max, kv_unified=unified)
            assert (api.info(ctx) is not None) == is_extended, (n_ctx, n_seq_max, unified)
            assert not api.library.last_error()
            close(api, ctx)


def test_plain_without_a_default(api: Api, short: Callable[[str], Path]) -> None:
    with open_model(short("llama")) as model:
        for given in (None, 1):
            if given:
                assert not api.default(1, 0)
            ctx = api.context(model, 256)
            assert api.info(ctx) is None
            close(api, ctx)


def test_plain_where_the_caller_scales_positions(api: Api, short: Callable[[str], Path]) -> None:
    with open_model(short("llama")) as model:
        assert not api.default()
        for name, value in [("rope_freq_scale", 0.5), ("rope_freq_base", 2e4), ("rope_scaling_type", 2),
                            ("yarn_orig_ctx", 32), ("yarn_ext_factor", 1.0)]:  # fmt: skip
            ctx = api.context(model, 256, **{name: value})
            assert api.info(ctx) is None, name
            assert "scaling of its positions" in api.library.last_error()
            close(api, ctx)


def test_plain_where_the_model_cannot_be_extended(api: Api, tmp_path: Path) -> None:
    """A default with a group of its own is refused there."""
    with open_model(unsupported.make(tmp_path / "mamba.gguf", "mamba")) as model:
        assert not api.default()
        ctx = api.context(model, 2 * api.llama.llama_model_n_ctx_train(model))
        assert api.info(ctx) is None
        assert "recurrent" in api.library.last_error()
        assert api.follow(ctx, 0, 3, 2000) == 3
        close(api, ctx)
        assert not api.default(16, 0)
        given = api.llama.llama_context_default_params()
        assert not api.init(model, given)
        assert "recurrent" in api.library.last_error()


def test_the_default_is_that_of_all_threads_and_set_next_that_of_one(api: Api, short: Callable[[str], Path]) -> None:
    found: list[Any] = []
    with open_model(short("llama")) as model:
        assert not api.default()

        def create() -> None:
            ctx = api.context(model, 256)
            found.append(api.info(ctx))
            close(api, ctx)

        thread = threading.Thread(target=create)
        thread.start()
        thread.join()
        assert found[0] is not None and found[0].ga_n == 1
        with Context(model, 3, 8, n_ctx=128) as own:  # llama_init_from_model
            assert own.group() == 3


#
# what is refused
#


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ga_n": 0, "ga_n_max": 0}, "ga_n is 0"),
        ({"ga_n": 2}, "ga_n is 2, it must be 1, the plain model's"),
        ({"ga_map": 9}, "map is 9"),
        ({"ga_map": 5}, "group size cannot change"),
        ({"ga_n": 1, "ga_map": 4}, "64"),
        ({"ga_n": 4, "ga_n_max": 0, "steps": [(100, 2)]}, "there are steps"),
        ({"steps": [(100, 0)]}, "ga_n of a step is 0"),
        ({"steps": [(0, 2)]}, "n_tokens of a step is 0"),
        ({"steps": [(100, 2), (100, 4)]}, "above that of the step before, 100"),
        ({"steps": [(100, 2), (-5, 4)]}, "n_tokens of a step is -5"),
    ],
)
def test_what_is_wrong_for_every_model(api: Api, short: Callable[[str], Path], given: Any, words: str) -> None:
    assert not api.default(4, 0)
    assert words in api.default(**given)
    with open_model(short("llama")) as model:  # nothing has changed
        ctx = api.context(model, 200)
        info = api.info(ctx)
        assert info is not None and info.ga_n == 4
        close(api, ctx)


def test_a_window_that_the_model_does_not_have(api: Api, short: Callable[[str], Path]) -> None:
    with open_model(short("llama")) as model:
        assert not api.default(ga_w=L)
        ctx = api.context(model, 256)  # left to the length: a plain one
        assert api.info(ctx) is None
        assert f"ga_w is {L}" in api.library.last_error()
        close(api, ctx)
