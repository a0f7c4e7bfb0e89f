"""Saved states: loaded they give the same logits, and what is not whole or not ours is refused without a loss."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile
from typing import Any

import gguf
import numpy as np
import pytest
from context import Context, open_model, rounding_of_batches
from test_reference import some_tokens

GA_N, GA_W = 4, 64
PARTIAL_ONLY, ON_DEVICE = 1, 2  # llama_state_seq_flags
TOKENS = some_tokens(700).tolist()
N = 500  # of them are in the states


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[Any]:
    with open_model(tiny_model) as model:
        yield model


@pytest.fixture(scope="module")
def bound(model: Any) -> float:
    """How far logits may be from those of the same tokens in other batches, with an F16 cache."""
    return max(0.02, 2.5 * rounding_of_batches(model, GA_N, GA_W, TOKENS))


CACHES = {"f16 flash": (1, 1, 1), "f16 no flash": (1, 1, 0), "q8_0": (8, 8, 1), "q4_0": (2, 2, 1)}


@pytest.mark.parametrize("seq", [None, 0])
@pytest.mark.parametrize("cache", CACHES)
def test_a_state_gives_the_same_logits(model: Any, tmp_path: Path, cache: str, seq: int | None) -> None:
    """Bit for bit: a state holds the window as it was."""
    type_k, type_v, flash = CACHES[cache]
    options: dict[str, Any] = {"type_k": type_k, "type_v": type_v, "flash_attn_type": flash}
    with Context(model, GA_N, GA_W, **options) as ctx:
        ctx.logits(TOKENS[:N])
        data = ctx.save(seq)
        ctx.save_file(tmp_path / "state", TOKENS[:N], seq)
        exact = ctx.logits(TOKENS[N:600], N)
    for source in (data, tmp_path / "state"):
        with Context(model, GA_N, GA_W, **options) as ctx:
            ctx.logits(TOKENS[100:300])  # goes
            if isinstance(source, bytes):
                assert ctx.load(source, seq)
            else:
                assert ctx.load_file(source, seq) == TOKENS[:N]
            assert (ctx.pos_min(), ctx.pos_max()) == (0, N - 1)
            assert np.array_equal(ctx.logits(TOKENS[N:600], N), exact)


def test_a_state_goes_into_a_larger_or_smaller_context(model: Any, bound: float) -> None:
    """As long as its tokens fit. A smaller near part takes less: the window is made again."""
    with Context(model, GA_N, GA_W, n_ubatch=512) as ctx:
        ctx.logits(TOKENS[:N])
        whole, one = ctx.save(), ctx.save(0)
        exact = ctx.logits(TOKENS[N:600], N)
    for n_ctx, n_ubatch in [(1792, 512), (1024, 32), (768, 32), (512 + 256, 256)]:
        for data, seq in [(whole, None), (one, 0)]:
            with Context(model, GA_N, GA_W, n_ctx=n_ctx, n_ubatch=n_ubatch) as ctx:
                assert ctx.load(data, seq), (n_ctx, n_ubatch)
                assert np.abs(ctx.logits(TOKENS[N:600], N) - exact).max() < bound
    with Context(model, GA_N, GA_W, n_ctx=256) as ctx:
        exact = ctx.logits(TOKENS[:100])
        assert ctx.remove(0, 90)
        for data, seq in [(whole, None), (one, 0)]:
            assert not ctx.load(data, seq)
            assert ctx.library.last_error() == "the state has 500 tokens, this context has room for 256"
            assert ctx.pos_max() == 89
        assert np.abs(ctx.logits(TOKENS[90:100], 90) - exact[90:]).max() < bound


@pytest.mark.parametrize("unified", [True, False])
def test_a_state_goes_beside_other_sequences(model: Any, unified: bool, bound: float) -> None:
    with Context(model, GA_N, GA_W, n_seq_max=4, kv_unified=unified) as ctx:
        for seq in (0, 1):
            ctx.logits(TOKENS[: N + seq], seq=seq)
        one, whole = ctx.save(1), ctx.save()
        exact = [ctx.logits(TOKENS[N + seq : 600], N + seq, seq) for seq in (0, 1)]
        for seq in (2, 3):
            assert ctx.load(one, seq)
            assert np.abs(ctx.logits(TOKENS[N + 1 : 600], N + 1, seq) - exact[1]).max() < bound
        assert ctx.load(whole)
        assert [ctx.pos_max(seq) for seq in range(4)] == [N - 1, N, -1, -1]
        for seq in (0, 1):
            assert np.abs(ctx.logits(TOKENS[N + seq : 600], N + seq, seq) - exact[seq]).max() < bound


def another_model(path: Path, to: Path) -> Path:
    """The same model but for one matrix, as after tuning."""
    copyfile(path, to)
    reader = gguf.GGUFReader(to, "r+")
    tensor = next(t for t in reader.tensors if t.name == "blk.1.attn_k.weight")
    tensor.data[:] *= np.float32(1.001)
    reader.data.flush()
    return to


@pytest.fixture(scope="module")
def states(model: Any, tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """States that a context with (4, 64) and an F16 cache has to refuse, by the reason it has to give."""

    def save(model: Any, ga_n: int = GA_N, ga_w: int = GA_W, **options: Any) -> bytes:
        with Context(model, ga_n, ga_w, **options) as ctx:
            ctx.logits(TOKENS[:N])
            return ctx.save(0)

    folder = tmp_path_factory.mktemp("states")
    with open_model(another_model(tiny_models["llama"], folder / "other.gguf")) as other:
        tuned = save(other)
    good = save(model)
    reasons = {
        "the state was saved with ga_n = 3 and ga_w = 64, this context has ga_n = 4 and ga_w = 64": save(model, 3),
        "the state was saved with ga_n = 4 and ga_w = 65, this context has ga_n = 4 and ga_w = 64": save(model, 4, 65),
        "the state was not saved with SelfExtend": save(model, 1),
        "the state was saved with another model, or with other RoPE settings": tuned,
        "the state was saved with a q8_0/q8_0 cache, this context has a f16/f16 cache": save(model, type_k=8, type_v=8),
        "the state was saved with a f16/f16 cache without flash attention, this context has a f16/f16 cache": save(
            model, flash_attn_type=0
        ),
        "the state was saved with 2 streams of sequences, this context has 1 (n_seq_max, kv_unified)": save(
            model, n_seq_max=2, kv_unified=False
        ),
        "the state is truncated": good[: len(good) // 2],
        "the state is damaged: its bytes are not those that were saved": good[:-1000] + b"\x55" + good[-999:],
        "the state is damaged: its header is not the one that was saved": good[:70] + b"\x55" + good[71:],
    }
    assert all(isinstance(data, bytes) for data in reasons.values())
    return reasons


def test_what_is_refused_changes_nothing(model: Any, states: dict[str, bytes]) -> None:
    with Context(model, GA_N, GA_W, flash_attn_type=1) as ctx, Context(model, GA_N, GA_W, flash_attn_type=1) as same:
        for context in (ctx, same):
            context.logits(TOKENS[:300])
        for reason, data in states.items():
            assert not ctx.load(data, 0), reason
            assert ctx.library.last_error() == reason
            assert (ctx.pos_min(), ctx.pos_max()) == (0, 299)
        assert np.array_equal(ctx.logits(TOKENS[300:400], 300), same.logits(TOKENS[300:400], 300))


@pytest.mark.parametrize("seq", [None, 0])
def test_any_damage_is_seen(model: Any, tmp_path: Path, seq: int | None) -> None:
    """One bit anywhere, or any number of bytes missing, in memory and in a file."""
    rng = random.Random(0)
    with Context(model, GA_N, GA_W) as ctx, Context(model, GA_N, GA_W) as same:
        for context in (ctx, same):
            context.logits(TOKENS[:50])
        data = same.save(seq)
        same.save_file(tmp_path / "state", TOKENS[:50], seq)
        file = (tmp_path / "state").read_bytes()
        for context in (ctx, same):
            context.logits(TOKENS[50:100], 50)
        # before the state come the architecture's name (4 + 5 bytes), or a magic number and a sequence id (4 + 4)
        head = range(4, 9) if seq is None else range(4)
        for i in [*head, *range(9, 120), *rng.sample(range(120, len(data)), 60)]:
            damaged = bytearray(data)
            damaged[i] ^= 1 << rng.randrange(8)
            assert not ctx.load(bytes(damaged), seq), i
        for n in [0, 1, 7, 9, 20, 120, *rng.sample(range(120, len(data)), 20), len(data) - 1]:
            assert not ctx.load(data[:n], seq), n
        n_before = 12 + 4 * 50  # magic number, version, number of tokens, tokens
        for i in [*range(8), *rng.sample(range(n_before + 9, len(file)), 40)]:
            (tmp_path / "damaged").write_bytes(file[:i] + bytes([file[i] ^ (1 << rng.randrange(8))]) + file[i + 1 :])
            assert ctx.load_file(tmp_path / "damaged", seq) is None, i
        for n in [0, 5, 12, 100, *rng.sample(range(n_before, len(file)), 20), len(file) - 1]:
            (tmp_path / "short").write_bytes(file[:n])
            assert ctx.load_file(tmp_path / "short", seq) is None, n
        assert (ctx.pos_min(), ctx.pos_max()) == (0, 99)
        assert np.array_equal(ctx.logits(TOKENS[100:150], 100), same.logits(TOKENS[100:150], 100))


def test_a_state_with_other_rope_settings_is_refused(model: Any) -> None:
    """Its keys are rotated otherwise."""
    with Context(model, GA_N, GA_W, rope_freq_base=20000.0) as ctx:
        ctx.logits(TOKENS[:50])
        data = ctx.save()
    with Context(model, GA_N, GA_W) as ctx:
        assert not ctx.load(data)
        assert "RoPE settings" in ctx.library.last_error()


def test_a_state_does_not_depend_on_how_weights_are_packed(tiny_model: Path, tmp_path: Path) -> None:
    """Backends pack quantized matrices in ways of their own."""
    import llama_cpp

    quantized = tmp_path / "q4_0.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    assert llama_cpp.llama_model_quantize(str(tiny_model).encode(), str(quantized).encode(), ctypes.byref(params)) == 0
    with open_model(quantized) as packed, open_model(quantized, use_extra_bufts=False) as plain:
        with Context(plain, GA_N, GA_W) as ctx:
            ctx.logits(TOKENS[:50])
            data = ctx.save()
        with Context(packed, GA_N, GA_W) as ctx:
            assert ctx.load(data), ctx.library.last_error()


def test_a_sequence_that_is_not_there_is_refused(model: Any, bound: float) -> None:
    with Context(model, GA_N, GA_W, n_seq_max=4, kv_unified=True) as ctx:
        ctx.logits(TOKENS[:50], seq=3)
        data = ctx.save()
    with Context(model, GA_N, GA_W, n_seq_max=2, kv_unified=True) as ctx:
        exact = ctx.logits(TOKENS[:100], seq=1)
        assert not ctx.load(data)
        assert ctx.library.last_error() == "the state has sequences up to 3, this context has room for 2 (n_seq_max)"
        assert ctx.remove(1, 50)
        assert np.abs(ctx.logits(TOKENS[50:100], 50, 1) - exact[50:]).max() < bound


@pytest.mark.parametrize("name", ["gemma3", "gpt-oss"])
def test_states_of_windows_only_and_of_all_are_told_apart(tiny_models: dict[str, Path], name: str) -> None:
    """Servers keep what only layers with a window forget; that is no whole state, and a whole one is not that."""
    with open_model(tiny_models[name]) as model, Context(model, GA_N, GA_W, type_k=0, type_v=0) as ctx:
        ctx.logits(TOKENS[:300])
        partial, whole = ctx.save(0, flags=PARTIAL_ONLY), ctx.save(0)
        exact = ctx.logits(TOKENS[300:350], 300)
        assert len(partial) < len(whole)
        for data, flags in [(partial, 0), (whole, PARTIAL_ONLY)]:
            assert not ctx.load(data, 0, flags=flags)
            assert ctx.library.last_error().startswith("the state was saved with other flags")
        assert (ctx.pos_min(), ctx.pos_max()) == (0, 349)
        assert ctx.remove(0, 300)
        assert ctx.load(partial, 0, flags=PARTIAL_ONLY)
        assert np.abs(ctx.logits(TOKENS[300:350], 300) - exact).max() < 1e-3


def test_a_state_that_is_kept_on_the_device(model: Any, bound: float) -> None:
    """Taken back when the near part has less room than it had."""
    with Context(model, GA_N, GA_W, n_seq_max=3, kv_unified=True) as ctx:
        ctx.logits(TOKENS[:N])
        kept = ctx.save(0, flags=ON_DEVICE)
        exact = ctx.logits(TOKENS[N:600], N)
        assert ctx.remove(0, -1)
        for seq in (1, 2):
            ctx.logits(TOKENS[:600], seq=seq)
        assert ctx.load(kept, 0, flags=ON_DEVICE)
        assert np.abs(ctx.logits(TOKENS[N:600], N) - exact).max() < bound


def test_loading_while_a_copy_is_pending(model: Any, bound: float) -> None:
    """Copies between streams are carried out by the next batch: before what is loaded, not over it."""
    with Context(model, GA_N, GA_W, n_seq_max=2, kv_unified=False) as ctx:
        exact = ctx.logits(TOKENS[:600])
        assert ctx.remove(0, N)
        data = ctx.save(0)
        for target in (0, 1):
            assert ctx.remove(0, 0)
            ctx.logits(TOKENS[100:300])
            ctx.copy(0, 1)
            assert ctx.load(data, target)
            assert np.abs(ctx.logits(TOKENS[N:600], N, target) - exact[N:]).max() < bound


def test_states_are_written_after_a_rollback_and_a_copy(model: Any, bound: float) -> None:
    """What is pending is carried out first: copies between streams, windows that have to be made again."""
    with Context(model, GA_N, GA_W, n_seq_max=2, kv_unified=False) as ctx:
        exact = ctx.logits(TOKENS[:N])
        ctx.copy(0, 1)
        data = ctx.save(1)
        assert ctx.remove(0, 200)
        whole = ctx.save()
    with Context(model, GA_N, GA_W, n_seq_max=2, kv_unified=False) as ctx:
        assert ctx.load(whole)
        assert np.abs(ctx.logits(TOKENS[200:280], 200) - exact[200:280]).max() < bound
        assert ctx.load(data, 0)
        assert ctx.remove(0, 400)
        assert np.abs(ctx.logits(TOKENS[400:480], 400) - exact[400:480]).max() < bound
