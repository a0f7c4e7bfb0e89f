"""A llama_context with SelfExtend, through the low-level bindings: what a server would do with its sequences.

The environment can put all of it on a device that is not the CPU: PYSELFEXTEND_DEVICE, any word, puts the layers on
the devices of the library, PYSELFEXTEND_LIB names the folder of another library than the installed one, and
PYSELFEXTEND_RPC the endpoint of an RPC server.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from reference import Array
from runner import add_rpc_device

from pyselfextend import _native

CTX_PARAMS = (
    "n_ctx", "n_batch", "n_ubatch", "n_seq_max", "kv_unified", "type_k", "type_v", "flash_attn_type", "swa_full",
    "rope_freq_base", "offload_kqv", "embeddings", "pooling_type",
)  # fmt: skip


ON_DEVICE = bool(os.environ.get("PYSELFEXTEND_DEVICE"))
IS_FUSED = os.environ.get("PYSELFEXTEND_DEVICE") in ("cuda", "vulkan")  # has the attention as one node
#: What logits in F32 may differ by from those of the reference. On Vulkan in software the plain model's do by 0.033.
ROUNDING = 0.1 if IS_FUSED else 5e-3
#: The ways of computing the attention: 0 as the device can, 1 fused, 2 composed.
ATTN = [0, 2] if IS_FUSED else [2] if ON_DEVICE else [1, 2]


@cache
def load() -> _native.Library:
    """The library of the tests, installed or named."""
    given = os.environ.get("PYSELFEXTEND_LIB")
    if not given:
        return _native.load()
    os.environ[_native.LIB_PATH_VARIABLE] = given  # read when llama_cpp is imported for the first time
    import llama_cpp

    found = Path(llama_cpp.llama_cpp._lib._name).parent
    assert found.resolve() == Path(given).resolve(), f"llama_cpp was imported before, with {found}"
    if endpoint := os.environ.get("PYSELFEXTEND_RPC"):
        add_rpc_device(Path(given), endpoint)
    return _native.Library(llama_cpp.llama_cpp._lib, Path(given))


@contextmanager
def open_model(path: Path, **options: Any) -> Iterator[Any]:
    """A loaded model; options are those of llama_model_params.

    llama.cpp's log is kept to ourselves meanwhile: refusals are part of the tests.
    """
    load()
    import llama_cpp

    llama_cpp.llama_backend_init()
    _log(False)
    params = llama_cpp.llama_model_default_params()
    for name, value in {"n_gpu_layers": 99 if ON_DEVICE else 0, **options}.items():
        setattr(params, name, value)
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model, path
    yield model
    llama_cpp.llama_model_free(model)
    _log(True)


_n_silent = 0


def _log(on: bool) -> None:
    """llama_cpp's log, off as long as any model is open."""
    global _n_silent
    import llama_cpp
    from llama_cpp._logger import llama_log_callback

    _n_silent += -1 if on else 1
    callback = ctypes.cast(_drop, llama_cpp.llama_log_callback) if _n_silent else llama_log_callback
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _drop(level: int, text: bytes, data: int) -> None: ...


class Context:
    """A context of a model; tokens are (token, position, sequence).

    ga_n = 1 is a plain one, unless ga_n_max is more. attn: 0 auto, 1 fused, 2 composed. Further parameters are those of
    llama_context_params.
    """

    def __init__(
        self,
        model: Any,
        ga_n: int,
        ga_w: int,
        *,
        ga_n_max: int = 0,
        ga_map: str = "self-extend",
        attn: int = 0,
        n_threads: int = 1,
        **params: Any,
    ) -> None:
        self.library = load()
        import llama_cpp

        self.api = llama_cpp
        given = llama_cpp.llama_context_default_params()
        defaults = {"n_ctx": 1024 * params.get("n_seq_max", 1), "n_batch": 1024, "n_ubatch": 64}
        for name, value in {**defaults, **params}.items():
            assert name in CTX_PARAMS, name
            setattr(given, name, value)
        given.n_threads = given.n_threads_batch = n_threads
        ways = ["auto", "fused", "composed"]
        assert self.library.set_next(ga_n, ga_w, ways[attn], ga_n_max, ga_map), self.library.last_error()
        self.ctx = llama_cpp.llama_init_from_model(model, given)
        assert self.ctx, self.library.last_error()
        if max(ga_n, ga_n_max) > 1 and given.offload_kqv:
            info = self.library.get_info(self.ctx)
            assert info is not None
            is_fused = not ON_DEVICE or (IS_FUSED and given.flash_attn_type != 0)  # 0: off
            assert (info.n_layer_composed > 0) == (attn == 2 or not is_fused), info
        self.memory = llama_cpp.llama_get_memory(self.ctx)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        self.api.llama_free(self.ctx)

    def decode(self, tokens: Sequence[tuple[int, int, int]], *, logits: bool = True) -> tuple[int, Array]:
        """Status, and logits [n_tokens, n_vocab] if they are wanted, of one batch."""
        batch = self.api.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, (token, pos, seq) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, pos, 1, logits
            batch.seq_id[i][0] = seq
        status = self.api.llama_decode(self.ctx, batch)
        self.api.llama_batch_free(batch)
        rows = [self.api.llama_get_logits_ith(self.ctx, i) for i in range(len(tokens) if logits and status == 0 else 0)]
        return status, np.array([np.ctypeslib.as_array(row, shape=(self.n_vocab,)).copy() for row in rows])

    def logits(self, tokens: Sequence[int], pos: int = 0, seq: int = 0) -> Array:
        """Logits [n_tokens, n_vocab] of tokens of one sequence, the first of them at pos."""
        status, logits = self.decode([(int(token), pos + i, seq) for i, token in enumerate(tokens)])
        assert status == 0, status
        return logits

    def group(self, seq: int = 0) -> int:
        return self.library.get_group(self.ctx, seq)

    def set_group(self, seq: int, ga_n: int) -> bool:
        return self.library.set_group(self.ctx, seq, ga_n)

    def pos_min(self, seq: int = 0) -> int:
        return int(self.api.llama_memory_seq_pos_min(self.memory, seq))

    def pos_max(self, seq: int = 0) -> int:
        return int(self.api.llama_memory_seq_pos_max(self.memory, seq))

    def remove(self, seq: int, p0: int, p1: int = -1) -> bool:
        return bool(self.api.llama_memory_seq_rm(self.memory, seq, p0, p1))

    def copy(self, source: int, target: int, p1: int = -1) -> None:
        self.api.llama_memory_seq_cp(self.memory, source, target, -1, p1)

    def keep(self, seq: int) -> None:
        self.api.llama_memory_seq_keep(self.memory, seq)

    def can_shift(self) -> bool:
        return bool(self.api.llama_memory_can_shift(self.memory))

    def shift(self, seq: int, p0: int, p1: int, delta: int) -> None:
        self.api.llama_memory_seq_add(self.memory, seq, p0, p1, delta)

    def n_evaluated(self) -> int:
        """Tokens that the model has evaluated."""
        perf = self.api.llama_perf_context(self.ctx)
        return int(perf.n_p_eval + perf.n_eval)

    def save(self, seq: int | None = None, *, flags: int = 0) -> bytes:
        """State of a sequence, or of the whole context."""
        if seq is None:
            data = (ctypes.c_uint8 * self.api.llama_state_get_size(self.ctx))()
            size = self.api.llama_state_get_data(self.ctx, data, len(data))
        else:
            data = (ctypes.c_uint8 * self.api.llama_state_seq_get_size_ext(self.ctx, seq, flags))()
            size = self.api.llama_state_seq_get_data_ext(self.ctx, data, len(data), seq, flags)
        assert size == len(data) > 0
        return bytes(data)

    def load(self, data: bytes, seq: int | None = None, *, flags: int = 0) -> bool:
        """Whether it was accepted."""
        buffer = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        if seq is None:
            n_read = self.api.llama_state_set_data(self.ctx, buffer, len(data))
        else:
            n_read = self.api.llama_state_seq_set_data_ext(self.ctx, buffer, len(data), seq, flags)
        return bool(n_read == len(data) > 0)

    def save_file(self, path: Path, tokens: Sequence[int], seq: int | None = None) -> None:
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        if seq is None:
            assert self.api.llama_state_save_file(self.ctx, str(path).encode(), ids, len(tokens))
        else:
            assert self.api.llama_state_seq_save_file(self.ctx, str(path).encode(), seq, ids, len(tokens)) > 0

    def load_file(self, path: Path, seq: int | None = None) -> list[int] | None:
        """The tokens that were saved with it, None if it was refused."""
        ids, n = (ctypes.c_int32 * 4096)(), ctypes.c_size_t()
        if seq is None:
            done = self.api.llama_state_load_file(self.ctx, str(path).encode(), ids, len(ids), ctypes.byref(n))
        else:
            done = self.api.llama_state_seq_load_file(self.ctx, str(path).encode(), seq, ids, len(ids), ctypes.byref(n))
        return list(ids[: n.value]) if done else None


def rounding_of_batches(model: Any, ga_n: int, ga_w: int, tokens: Sequence[int], **params: Any) -> float:
    """How far logits are from those of the same tokens in batches of one, at most.

    Next to nothing on the CPU, which is not asked. CUDA multiplies F32 matrices in TF32, with 10 bits, for more than
    three tokens, and in F32 for fewer, so that the same token has other logits in another batch.
    """
    if not ON_DEVICE:
        return 0.0
    logits = []
    for n_ubatch in (512, 1):
        with Context(model, ga_n, ga_w, n_ubatch=n_ubatch, **params) as ctx:
            logits.append(ctx.logits(tokens))
    return float(np.abs(logits[0] - logits[1]).max())
