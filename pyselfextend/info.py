"""What is in force in a context. Pure: imports nothing native."""

from __future__ import annotations

from dataclasses import dataclass

from .maps import SELF_EXTEND
from .placement import Attention, DeviceMemory, describe
from .positions import n_ctx_reach

__all__ = ["SelfExtendInfo"]


@dataclass(frozen=True)
class SelfExtendInfo:
    """What is in force in a context, read back from the engine.

    For the plain model ``ga_n`` and ``ga_n_max`` are 1, ``n_ctx_reach`` is ``n_ctx_train``, ``attention`` is empty and
    the other numbers are 0, because nothing of SelfExtend exists in such a context; ``memory`` is what llama.cpp says
    of it.
    """

    ga_n: int
    """Group size, of the moment where it follows the length."""

    ga_n_max: int
    """To what it is raised where it no longer reaches; ``ga_n`` where it stays as it is."""

    ga_w: int
    """Neighbour window in tokens."""

    n_ctx_train: int
    """The context the model was trained with, in tokens."""

    n_ctx_reach: int
    """The longest sequence whose relative positions all stay below ``n_ctx_train`` with ``ga_n_max``, in tokens."""

    bytes_far: int
    """Memory of the far part of the KV cache, in bytes. It holds the whole context, so it is what a plain cache of the
    same ``n_ctx`` takes."""

    bytes_near: int
    """Memory of the near part of the KV cache, in bytes: what SelfExtend costs on top of the plain cache."""

    attention: tuple[Attention, ...]
    """Which way the attention of each extended layer is computed, and where, in order of the first layer. Layers with a
    window of their own are llama.cpp's, and not in it."""

    memory: tuple[DeviceMemory, ...]
    """What model and context had taken on each device when this was first read."""

    ga_map: str = SELF_EXTEND.name
    """The map of positions, a name from ``maps.MAPS``."""

    is_measured: bool = False
    """Whether the group follows the length as ``pyselfextend tune`` has measured it on this model, not by the rule."""

    @property
    def n_ctx_next(self) -> int:
        """The longest sequence for which ``ga_n`` is enough, in tokens: the next limit, where it follows the length."""
        return n_ctx_reach(self.n_ctx_train, self.ga_n, self.ga_w, self.ga_map)

    @property
    def n_layer_fused(self) -> int:
        """How many layers compute their attention in one kernel over both parts."""
        return self._n_layer("fused")

    @property
    def n_layer_composed(self) -> int:
        """How many layers compute their attention from stock ggml operators."""
        return self._n_layer("composed")

    def _n_layer(self, way: str) -> int:
        return sum(len(each.layers) for each in self.attention if each.way == way)

    def __str__(self) -> str:
        memory = ", ".join(f"{_mib(each.n_bytes)} on {each.device}" for each in self.memory)
        if self.ga_n_max == 1:
            return f"plain model (ga_n=1), trained context {self.n_ctx_train} tokens, memory {memory}"
        is_last = self.ga_n >= self.ga_n_max
        follows = "" if is_last else f" (beyond {self.n_ctx_next} tokens up to {self.ga_n_max})"
        by = "" if self.ga_map == SELF_EXTEND.name else f" ga_map={self.ga_map}"
        source = ", groups as measured by tune" if self.is_measured else ""
        return (
            f"SelfExtend{by} ga_n={self.ga_n}{follows} ga_w={self.ga_w}{source}, "
            f"trained context {self.n_ctx_train} tokens, reach {self.n_ctx_reach} tokens, "
            f"KV cache {_mib(self.bytes_far)} far + {_mib(self.bytes_near)} near, "
            f"attention {describe(self.attention)}, memory {memory}"
        )


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.1f} MiB"
