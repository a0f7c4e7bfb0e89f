"""The KV cache of a context before llama.cpp makes it: of types that it cannot have, or larger than the machine."""

from __future__ import annotations

from typing import Any

import psutil

from ..cache_size import cache_size
from ..errors import SettingError
from ..memory import free_memory
from ..model_info import ModelInfo
from .arguments import CACHE_TYPES

__all__ = ["check_cache"]

F16 = 1


def check_cache(
    model: ModelInfo,
    *,
    n_ctx: int = 512,
    type_k: int | None = None,
    type_v: int | None = None,
    flash_attn: bool | None = None,
    n_gpu_layers: int = 0,
    swa_full: bool | None = None,
    **_: Any,
) -> None:
    """Look at the cache that a plain context would have; a pair has more.

    Args:
        model: as read from its file.
        n_ctx: in tokens; 0 is the trained context.
        type_k, type_v, flash_attn, n_gpu_layers, swa_full: as ``llama_cpp.Llama`` takes them.

    Raises:
        SettingError: llama.cpp does not make it, or it is larger than all memory: llama.cpp would ask for it, be given
            it, and the process would be ended when it is filled.
    """
    if not model.has_plain_cache:
        return
    if flash_attn is None and n_gpu_layers == 0:
        flash_attn = False
    size = cache_size(
        model.layers,
        n_ctx or model.n_ctx_train,
        type_k=CACHE_TYPES[F16 if type_k is None else type_k],
        type_v=CACHE_TYPES[F16 if type_v is None else type_v],
        swa_full=swa_full is not False,
        flash_attn=flash_attn,
    )
    free = free_memory()
    most = free.n_bytes if free.limit == "cgroup" else psutil.virtual_memory().total + psutil.swap_memory().total
    if n_gpu_layers == 0 and size.n_bytes > most:
        raise SettingError(
            f"n_ctx is {n_ctx}, for which the cache takes {size.n_bytes / 2**30:.1f} GiB of memory, and there are "
            f"{most / 2**30:.1f}; give a smaller n_ctx, or type_k and type_v that take less"
        )
