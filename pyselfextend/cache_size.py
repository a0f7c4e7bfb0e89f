"""How many bytes the KV cache of a context takes, as the engine and llama.cpp allocate it. Nothing is loaded.

Sources: ``llama_context`` (padding of n_ctx), ``llama_kv_cache`` (rows), ``llama_kv_cache_iswa`` (layers with
a sliding window) of the pinned llama.cpp, and ``llama_kv_cache_self_extend`` (the near part). Tests compare the numbers
with what the engine reports.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .errors import SettingError
from .gguf_file import TENSOR_TYPES
from .model_info import Layer

__all__ = ["CACHE_TYPES", "CacheSize", "cache_size", "cache_type", "n_ctx_padded"]

#: The types that a KV cache can have, by name: elements of a block, bytes of a block. As ``llama.CACHE_TYPES``.
CACHE_TYPES = {
    name: next((n_block, n_bytes) for label, n_block, n_bytes in TENSOR_TYPES.values() if label == name)
    for name in ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL")
}

N_PAD = 256  # cells


@dataclass(frozen=True)
class CacheSize:
    """The KV cache of a context for one sequence."""

    type_k: str
    """Type of the keys, such as Q8_0."""

    type_v: str
    """Type of the values."""

    flash_attn: bool
    """Whether flash attention is on, which a quantized type of values needs."""

    cells_far: int
    """Cells of the far part, which is the plain model's cache for layers that see all tokens."""

    cells_near: int
    """Cells of the near part; 0 for the plain model."""

    cells_swa: int
    """Cells of the cache of layers with a sliding window of their own; 0 if there are none."""

    bytes_far: int
    """Bytes of each part."""

    bytes_near: int

    bytes_swa: int

    @property
    def n_bytes(self) -> int:
        """Bytes of all parts."""
        return self.bytes_far + self.bytes_near + self.bytes_swa


def cache_type(name: str) -> str:
    """The name of a type of cache in capitals.

    Raises:
        SettingError: there is no such type.
    """
    if name.upper() not in CACHE_TYPES:
        raise SettingError(f"{name!r} is no type of cache; it must be one of {', '.join(CACHE_TYPES)}")
    return name.upper()


def n_ctx_padded(n_ctx: int) -> int:
    """The cells that llama.cpp makes for a context of ``n_ctx`` tokens."""
    return _padded(n_ctx)


def cache_size(
    layers: Sequence[Layer],
    n_ctx: int,
    *,
    ga_w: int | None = None,
    type_k: str = "F16",
    type_v: str = "F16",
    n_ubatch: int = 512,
    swa_full: bool = True,
    flash_attn: bool | None = None,
    of: Collection[int] | None = None,
) -> CacheSize:
    """The size of the cache of a context of ``n_ctx`` tokens for one sequence.

    Args:
        layers: those of the model.
        n_ctx: as the model is created with, in tokens.
        ga_w: neighbour window in tokens; None for the plain model.
        type_k: type of the keys, one of ``CACHE_TYPES``; type_v: that of the values.
        n_ubatch: tokens that are computed at once.
        swa_full: whether layers with a sliding window keep all tokens, which is llama.cpp's default.
        flash_attn: whether flash attention is on. None: where the type of the values needs it.
        of: numbers of the layers whose part of the cache is meant. None: all.

    Raises:
        SettingError: there is no such type, or llama.cpp does not make such a cache for this model.
    """
    type_k, type_v = cache_type(type_k), cache_type(type_v)
    is_quantized_v = CACHE_TYPES[type_v][0] > 1
    if flash_attn is None:
        flash_attn = is_quantized_v
    if is_quantized_v and not flash_attn:
        raise SettingError(f"values of type {type_v} need flash attention")
    cached = [layer for layer in layers if layer.has_cache]
    _check_rows(cached, type_k, type_v, flash_attn)

    # without flash attention values are stored transposed, and padded to those of the widest layer
    row_v = max((layer.n_head_kv * layer.n_embd_head_v for layer in layers), default=0)

    def n_bytes(some: Sequence[Layer], cells: int) -> int:
        k = sum(_row(type_k, layer.n_head_kv * layer.n_embd_head_k) for layer in some)
        v = sum(_row(type_v, layer.n_head_kv * layer.n_embd_head_v if flash_attn else row_v) for layer in some)
        return (k + v) * cells

    n_ubatch = min(n_ubatch, n_ctx)
    far = n_ctx_padded(n_ctx)
    near = 0 if ga_w is None else min(far, _padded(min(far, ga_w) + n_ubatch))
    windows = [layer.window for layer in cached if layer.window]
    swa = 0
    if windows:
        swa = far if swa_full else _padded(min(far, max(windows) + n_ubatch))
    meant = [layer for i, layer in enumerate(layers) if layer.has_cache and (of is None or i in of)]
    extended = [layer for layer in meant if not layer.window]
    windowed = [layer for layer in meant if layer.window]
    return CacheSize(
        type_k=type_k,
        type_v=type_v,
        flash_attn=flash_attn,
        cells_far=far,
        cells_near=near,
        cells_swa=swa,
        bytes_far=n_bytes(extended, far),
        bytes_near=n_bytes(extended, near),
        bytes_swa=n_bytes(windowed, swa),
    )


def _check_rows(layers: Sequence[Layer], type_k: str, type_v: str, flash_attn: bool) -> None:
    """Rows of a quantized cache are whole blocks; with flash attention, those of each head are."""
    for what, name, sizes in (
        ("keys", type_k, [(layer.n_embd_head_k, layer.n_head_kv) for layer in layers]),
        ("values", type_v, [(layer.n_embd_head_v, layer.n_head_kv) for layer in layers]),
    ):
        n_block = CACHE_TYPES[name][0]
        for size, n_head_kv in sizes:
            n = size if flash_attn else size * n_head_kv
            if n % n_block:
                row = "heads" if flash_attn else "rows"
                raise SettingError(
                    f"{what} of type {name} are stored in blocks of {n_block}, the model's {row} have {n}"
                )


def _padded(n_cells: int) -> int:
    return -(-n_cells // N_PAD) * N_PAD


def _row(name: str, n: int) -> int:
    n_block, n_bytes = CACHE_TYPES[name]
    return n // n_block * n_bytes
