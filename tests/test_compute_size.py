"""What computing takes, against what the engine reports: never below, and how far above."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyselfextend import _native
from pyselfextend.cache_size import CACHE_TYPES, cache_size
from pyselfextend.compute_size import COMPOSED, FUSED, PLAIN, compute_size
from pyselfextend.llama import CACHE_TYPES as ENGINE_TYPES
from pyselfextend.model_info import ModelInfo, model_info

import llama_cpp  # isort: skip  # after pyselfextend

TYPES = {name: number for number, name in ENGINE_TYPES.items()}

CACHES = [  # type_k, type_v, flash_attn
    ("F16", "F16", False),
    ("F16", "F16", True),
    ("F32", "F32", False),
    ("F32", "F32", True),
    ("BF16", "F16", True),
    ("Q8_0", "Q8_0", True),
    ("Q8_0", "F16", False),
]


class Model:
    """One model, in which contexts are made."""

    def __init__(self, path: Path) -> None:
        self.info: ModelInfo = model_info(path)
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        assert self.model

    def close(self) -> None:
        llama_cpp.llama_model_free(self.model)

    def sizes(
        self, n_ctx: int, n_ubatch: int, cache: tuple[str, str, bool], way: str, swa_full: bool = True
    ) -> tuple[int, int]:
        """What is estimated for a context, and what the engine says that it has."""
        type_k, type_v, flash_attn = cache
        ga_w = self.info.n_ctx_train // 8
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.swa_full = n_ctx, n_ubatch, n_ubatch, swa_full
        params.type_k, params.type_v, params.flash_attn_type = TYPES[type_k], TYPES[type_v], int(flash_attn)
        library = _native.load()
        if way != PLAIN:
            assert library.set_next(8, ga_w, way)
        ctx = llama_cpp.llama_init_from_model(self.model, params)
        assert ctx, library.last_error()
        (memory,) = library.get_memory(ctx)
        llama_cpp.llama_free(ctx)

        size = cache_size(
            self.info.layers, n_ctx, ga_w=None if way == PLAIN else ga_w, type_k=type_k, type_v=type_v,
            n_ubatch=n_ubatch, swa_full=swa_full, flash_attn=flash_attn,
        )  # fmt: skip
        assert size.n_bytes == memory.bytes_cache
        return compute_size(self.info, size, min(n_ubatch, n_ctx), way), memory.bytes_compute


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Model]:
    """Without llama.cpp's log, which thousands of contexts would fill."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.closing(Model(path)) as model:
        yield model


def check(estimated: int, found: int, most: float, about: Any) -> None:
    assert found <= estimated <= most * found, (estimated / found, estimated, found, about)


def test_tiny_models(tiny_models: dict[str, Path]) -> None:
    """One for each way in which architectures differ. For a single token they need so little that constants count."""
    for name, path in tiny_models.items():
        with opened(path) as model:
            for n_ctx in (600, 3000):
                for n_ubatch in (1, 32, 512):
                    for cache in CACHES:
                        for way in (PLAIN, FUSED, COMPOSED):
                            estimated, found = model.sizes(n_ctx, n_ubatch, cache, way)
                            most = {1: 12.0, 32: 1.8, 512: 1.8}[n_ubatch]
                            check(estimated, found, most, (name, n_ctx, n_ubatch, cache, way))


@pytest.mark.parametrize(("name", "n_ctx"), [("smollm2", 16384), ("gemma3", 40000)])
def test_real_models(request: pytest.FixtureRequest, name: str, n_ctx: int) -> None:
    with opened(request.getfixturevalue(name)) as model:
        for n_ubatch in (64, 512):
            for cache in CACHES:
                for way in (PLAIN, FUSED, COMPOSED):
                    check(*model.sizes(n_ctx, n_ubatch, cache, way), 4 / 3, (n_ubatch, cache, way))
        if model.info.windowed:
            check(*model.sizes(n_ctx, 512, CACHES[0], FUSED, swa_full=False), 4 / 3, "swa_full")


def test_what_the_ways_take_grows_with(smollm2: Path) -> None:
    """Scores grow with the cache and the batch; the fused way on the CPU has none, on a device copies in F16."""
    info = model_info(smollm2)
    layer = info.layers[0]

    def size(n_ctx: int, n_ubatch: int, way: str, name: str = "F16", **kwargs: Any) -> int:
        cache = cache_size(info.layers, n_ctx, ga_w=1024, n_ubatch=512, type_k=name, type_v=name, flash_attn=True)
        return compute_size(info, cache, n_ubatch, way, **kwargs)

    scores = 4 * layer.n_head * 512 * (65536 - 32768)
    grown = size(65536, 512, COMPOSED) - size(32768, 512, COMPOSED)
    assert 2 * scores <= grown < 2.2 * scores
    assert size(65536, 512, FUSED) - size(32768, 512, FUSED) < 0.2 * scores  # the mask

    n_kv = 65536 + 1536
    rows = layer.n_head_kv * (layer.n_embd_head_k + layer.n_embd_head_v)
    for name in CACHE_TYPES:
        there = size(65536, 1, FUSED, name, is_cpu=False) - size(65536, 1, FUSED, is_cpu=False)
        assert there == pytest.approx(0 if name == "F16" else 2 * rows * n_kv, rel=0.03)
    assert size(65536, 512, FUSED, layers=(), has_output=False) < size(65536, 512, FUSED, layers=(0,), has_output=False)
