"""What is reserved when a context is created is what it uses: no batch of any size, at any depth, takes more."""

from __future__ import annotations

from pathlib import Path

import pytest
from context import ATTN, Context, open_model
from test_reference import some_tokens

N_CTX, N_UBATCH = 1024, 512

# tokens that fill the context up to its end. 475 tokens are cut into more pieces for each token than 512 are
SIZES = (512, 475, 384, 383, 300, 193, 191, 97, 65, 33, 16, 15, 8, 7, 3, 2, 1, 511)


def reserved(ctx: Context) -> int:
    return sum(memory.bytes_compute for memory in ctx.library.get_memory(ctx.ctx))


def evaluate(ctx: Context, n_tokens: int, pos: int, seqs: tuple[int, ...] = (0,)) -> None:
    """n_tokens of each sequence."""
    tokens = [(int(token), pos + i, seq) for seq in seqs for i, token in enumerate(some_tokens(n_tokens))]
    status, _ = ctx.decode(tokens, logits=n_tokens % 2 > 0)
    assert status == 0, (status, n_tokens, pos)


# with heads of 64, three query heads for each KV head, one KV head, windows, more positions for each token
MODELS = ["llama", "llama-64", "smollm3-64", "gemma", "gemma3", "qwen2vl"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("attn", [0, *ATTN])
@pytest.mark.parametrize("flash_attn", [0, 1])
def test_batches_of_one_sequence(tiny_models: dict[str, Path], name: str, attn: int, flash_attn: int) -> None:
    """attn: 0 is the plain model here."""
    pair = (4, 200) if attn else (1, 0)
    params = {"n_ctx": N_CTX, "n_ubatch": N_UBATCH, "flash_attn_type": flash_attn, "type_k": 8 if flash_attn else 1}
    with open_model(tiny_models[name]) as model, Context(model, *pair, attn=attn, **params) as ctx:
        before = reserved(ctx)
        evaluate(ctx, N_CTX, 0)
        for n in SIZES:
            assert ctx.remove(0, N_CTX - n)
            evaluate(ctx, n, N_CTX - n)
            assert reserved(ctx) == before, n
        for n in (17, 1, 300):  # from the beginning again
            assert ctx.remove(0, 0)
            evaluate(ctx, n, 0)
            assert reserved(ctx) == before, n


@pytest.mark.parametrize("name", ["smollm3-64", "gemma3"])
@pytest.mark.parametrize("attn", ATTN)
@pytest.mark.parametrize("unified", [True, False])
def test_batches_of_several_sequences(tiny_models: dict[str, Path], name: str, attn: int, unified: bool) -> None:
    params = {"n_ctx": N_CTX if unified else 3 * N_CTX, "n_ubatch": N_UBATCH, "n_seq_max": 3, "kv_unified": unified}
    room = N_CTX // 3 if unified else N_CTX
    with open_model(tiny_models[name]) as model, Context(model, 4, 100, attn=attn, **params) as ctx:
        before = reserved(ctx)
        for seqs in [(0,), (0, 1, 2), (1, 2), (2,)]:
            for n in (room, 330, 158, 40, 5, 1):
                n = min(n, room, 1024 // len(seqs))
                for seq in seqs:
                    assert ctx.remove(seq, 0)
                    for pos in range(0, room - n, 300):
                        evaluate(ctx, min(300, room - n - pos), pos, (seq,))
                evaluate(ctx, n, room - n, seqs)
                assert reserved(ctx) == before, (seqs, n)


@pytest.mark.parametrize("cache", [1, 8])
def test_a_shift_of_a_long_context(tiny_models: dict[str, Path], cache: int) -> None:
    """All keys of a layer at once, in F32, would be more than a batch takes."""
    n_ctx = 8192
    params = {"n_ctx": n_ctx, "n_ubatch": 64, "type_k": cache}
    with open_model(tiny_models["llama"]) as model, Context(model, 32, 64, **params) as ctx:
        before = reserved(ctx)
        for pos in range(0, n_ctx, 1024):
            evaluate(ctx, 1024, pos)
        assert ctx.remove(0, 4, 104)
        ctx.shift(0, 104, -1, -100)
        evaluate(ctx, 100, n_ctx - 100)
        assert reserved(ctx) == before
