"""Whatever is done to the sequences of a context, what is evaluated next gets the logits of its own tokens alone.

Sequences are grown, cut, copied, removed, saved and loaded at random, and each result is compared with the same tokens
evaluated in one go in a context of their own.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import Array

from pyselfextend import _native

N_TEXT = 700
GA_N = 4

# F16 cache, 64-token batches against one: rounding. Wrong keys in a window differ by 1 and more.
BOUND = 0.02


class Context:
    """A llama_context with SelfExtend, through the low-level bindings."""

    def __init__(self, model: Any, ga_w: int, *, n_seq_max: int = 1, unified: bool = False, n_ubatch: int = 64) -> None:
        self.library = _native.load()
        import llama_cpp

        self.api = llama_cpp
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 1024 * n_seq_max, 1024, n_ubatch
        params.n_seq_max, params.kv_unified = n_seq_max, unified
        params.n_threads = params.n_threads_batch = 1
        assert self.library.set_next(GA_N, ga_w), self.library.last_error()
        self.ctx = llama_cpp.llama_init_from_model(model, params)
        assert self.ctx, self.library.last_error()
        self.memory = llama_cpp.llama_get_memory(self.ctx)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        self.api.llama_free(self.ctx)

    def decode(self, tokens: Sequence[tuple[int, int, int]]) -> tuple[int, Array]:
        """Status and logits of (token, position, sequence) in one batch."""
        batch = self.api.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, (token, pos, seq) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, pos, 1, True
            batch.seq_id[i][0] = seq
        status = self.api.llama_decode(self.ctx, batch)
        self.api.llama_batch_free(batch)
        rows = [self.api.llama_get_logits_ith(self.ctx, i) for i in range(len(tokens) if status == 0 else 0)]
        return status, np.array([np.ctypeslib.as_array(row, shape=(self.n_vocab,)).copy() for row in rows])

    def pos_max(self, seq: int) -> int:
        return int(self.api.llama_memory_seq_pos_max(self.memory, seq))

    def remove(self, seq: int, p0: int, p1: int = -1) -> bool:
        return bool(self.api.llama_memory_seq_rm(self.memory, seq, p0, p1))

    def copy(self, source: int, target: int, p1: int = -1) -> None:
        self.api.llama_memory_seq_cp(self.memory, source, target, -1, p1)

    def save(self, seq: int) -> bytes:
        size = self.api.llama_state_seq_get_size(self.ctx, seq)
        data = (ctypes.c_uint8 * size)()
        assert self.api.llama_state_seq_get_data(self.ctx, data, size, seq) == size
        return bytes(data)

    def load(self, data: bytes, seq: int) -> bool:
        buffer = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        return bool(self.api.llama_state_seq_set_data(self.ctx, buffer, len(data), seq) == len(data))


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[Any]:
    _native.load()
    import llama_cpp

    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(tiny_model).encode(), llama_cpp.llama_model_default_params())
    yield model
    llama_cpp.llama_model_free(model)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Refusals are part of these tests: keep llama.cpp's log to ourselves."""
    _native.load()
    import llama_cpp

    @llama_cpp.llama_log_callback
    def drop(level: int, text: bytes, data: int) -> None: ...

    llama_cpp.llama_log_set(drop, ctypes.c_void_p(0))
    yield
    from llama_cpp._logger import llama_log_callback

    llama_cpp.llama_log_set(llama_log_callback, ctypes.c_void_p(0))


@pytest.fixture(scope="module", params=[0, 1, 64, 100])
def ga_w(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def texts(model: Any, ga_w: int) -> list[tuple[list[int], Array]]:
    """Three texts and their logits, each evaluated in one batch in a context of its own."""
    result = []
    for seed in range(3):
        tokens = np.random.default_rng(seed).integers(3, 200, N_TEXT).tolist()
        with Context(model, ga_w, n_ubatch=512) as ctx:
            status, logits = ctx.decode([(token, pos, 0) for pos, token in enumerate(tokens)])
        assert status == 0
        result.append((tokens, logits))
    return result


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_random_edits(model: Any, ga_w: int, texts: list[tuple[list[int], Array]], unified: bool, seed: int) -> None:
    rng = random.Random(seed)
    n_seq = 3
    held: dict[int, tuple[int, int]] = {}  # sequence -> (text, length)
    done: dict[str, int] = {}

    with Context(model, ga_w, n_seq_max=n_seq, unified=unified) as ctx:

        def grow(sequences: Sequence[int], n: int) -> None:
            batch, exact = [], []
            for seq in sequences:
                text, length = held.get(seq, (rng.randrange(3), 0))
                end = min(length + n, N_TEXT)
                held[seq] = (text, end)
                tokens, logits = texts[text]
                batch += [(tokens[pos], pos, seq) for pos in range(length, end)]
                exact += [logits[pos] for pos in range(length, end)]
            if batch:
                status, logits = ctx.decode(batch)
                assert status == 0
                assert np.abs(logits - np.array(exact)).max() < BOUND, (sequences, held)

        for _ in range(40):
            seq, other = rng.randrange(n_seq), rng.randrange(n_seq)
            what = rng.choices(["grow", "together", "cut", "remove", "copy", "state"], [6, 3, 4, 1, 1, 1])[0]
            if what == "grow":
                grow([seq], rng.choice([1, 1, 5, 40, 100, 300]))
            elif what == "together":
                grow(sorted(held), rng.choice([1, 4, 50]))
            elif what == "cut" and held.get(seq, (0, 0))[1] > 1:
                text, length = held[seq]
                keep = max(1, length - rng.choice([1, 3, 20, 70, 150, 400]))
                if ctx.remove(seq, keep):
                    held[seq] = (text, keep)
                else:
                    what = "cut refused"
            elif what == "remove":
                assert ctx.remove(seq, -1)
                held.pop(seq, None)
            elif what == "copy" and seq in held and other not in held:
                ctx.copy(seq, other)
                held[other] = held[seq]
            elif what == "state" and seq in held:
                grow([seq], 1)  # copies between streams are carried out by the next batch
                if ctx.load(ctx.save(seq), other):
                    held[other] = held[seq]
                else:
                    held.pop(other, None)
                    what = "state refused"
            done[what] = done.get(what, 0) + 1
            assert all(ctx.pos_max(s) == held.get(s, (0, 0))[1] - 1 for s in range(n_seq)), (what, held)
    assert done["grow"] > 5 and done.get("cut", 0) + done.get("cut refused", 0) > 1


def test_a_batch_is_cut_after_a_rollback(model: Any, texts: list[tuple[list[int], Array]], ga_w: int) -> None:
    """A later ubatch pushes keys out of the window that an earlier one of the same batch still needs."""
    tokens, exact = texts[0]
    for length, keep in [(276, 106), (300, 120), (500, 350)]:
        with Context(model, ga_w) as ctx:
            assert ctx.decode([(tokens[pos], pos, 0) for pos in range(length)])[0] == 0
            if not ctx.remove(0, keep):
                keep = length
            status, logits = ctx.decode([(tokens[pos], pos, 0) for pos in range(keep, keep + 200)])
            assert status == 0
            assert np.abs(logits - exact[keep : keep + 200]).max() < BOUND


def test_a_rollback_too_deep_is_refused_and_changes_nothing(
    model: Any, texts: list[tuple[list[int], Array]], ga_w: int
) -> None:
    tokens, exact = texts[0]
    with Context(model, ga_w) as ctx:
        assert ctx.decode([(tokens[pos], pos, 0) for pos in range(600)])[0] == 0
        refused = not ctx.remove(0, 200)
        assert refused == (ga_w > 1)  # a token that sees no other key in the near part needs none there
        start = 600 if refused else 200
        assert ctx.pos_max(0) == start - 1
        status, logits = ctx.decode([(tokens[pos], pos, 0) for pos in range(start, start + 80)])
        assert status == 0
        assert np.abs(logits - exact[start : start + 80]).max() < BOUND


def test_a_copy_without_its_window_is_not_evaluated(
    model: Any, texts: list[tuple[list[int], Array]], ga_w: int
) -> None:
    tokens, exact = texts[0]
    with Context(model, ga_w, n_seq_max=2, unified=True) as ctx:
        assert ctx.decode([(tokens[pos], pos, 0) for pos in range(600)])[0] == 0
        ctx.copy(0, 1, 150)
        assert ctx.pos_max(1) == 149
        status, logits = ctx.decode([(tokens[150], 150, 1)])
        if ga_w > 1:
            assert status == 1
            assert ctx.remove(1, -1)
            status, logits = ctx.decode([(tokens[600], 600, 0)])
            assert np.abs(logits - exact[600]).max() < BOUND
        else:
            assert np.abs(logits - exact[150]).max() < BOUND
        assert status == 0


def test_a_state_of_another_pair_is_refused(model: Any, texts: list[tuple[list[int], Array]], ga_w: int) -> None:
    tokens, exact = texts[0]
    with Context(model, ga_w + 1) as ctx:
        assert ctx.decode([(tokens[pos], pos, 0) for pos in range(50)])[0] == 0
        data = ctx.save(0)
    with Context(model, ga_w) as ctx:
        assert not ctx.load(data, 0)
        assert not ctx.load(data[: len(data) // 2], 0)
        status, logits = ctx.decode([(tokens[pos], pos, 0) for pos in range(80)])
        assert status == 0
        assert np.abs(logits - exact[:80]).max() < BOUND


def test_a_position_beyond_the_reach_is_refused(model: Any, ga_w: int, texts: list[tuple[list[int], Array]]) -> None:
    """Several sequences may share a buffer that is longer than the reach; none of them may be."""
    reach = 512 * GA_N - ga_w * GA_N + ga_w // GA_N * GA_N
    with Context(model, ga_w, n_seq_max=3, unified=True) as ctx:
        assert ctx.decode([(5, reach - 1, 0)])[0] == 0
        assert ctx.decode([(5, reach, 0)])[0] == 1
