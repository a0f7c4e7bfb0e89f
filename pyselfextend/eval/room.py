"""Whether a model and its cache fit into this machine's memory. Imports nothing native."""

from __future__ import annotations

from ..cache_size import cache_size
from ..errors import EvalError
from ..memory import free_memory
from ..model_info import ModelInfo
from .sharing import N_SLICE

__all__ = ["check_room"]


def check_room(
    info: ModelInfo,
    n_ctx: int,
    ga_w: int | None,
    *,
    type_k: str = "F16",
    type_v: str = "F16",
    n_gpu_layers: int = 0,
    flash_attn: bool = True,
) -> None:
    """Refuse a cache that llama.cpp does not make, or that does not fit beside the weights.

    Args:
        n_ctx: context in tokens.
        ga_w: neighbour window in tokens; None for the plain model.

    Raises:
        SettingError: llama.cpp does not make such a cache.
        EvalError: it does not fit.
    """
    if n_gpu_layers or not info.has_plain_cache:
        return
    size = cache_size(
        info.layers, n_ctx, ga_w=ga_w, type_k=type_k, type_v=type_v, n_ubatch=N_SLICE, flash_attn=flash_attn
    )
    needed, free = info.bytes_weights + size.n_bytes, free_memory().n_bytes
    if needed > free:
        raise EvalError(
            f"weights and a cache for {n_ctx} tokens take {needed / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB are free"
        )
