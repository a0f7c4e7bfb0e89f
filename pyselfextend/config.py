"""The settings of SelfExtend and their description. Pure: imports nothing native."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from .errors import NotAnIntegerError, SettingError
from .placement import Attention, DeviceMemory, describe

__all__ = ["SETTING_MAX", "SelfExtendConfig", "SelfExtendInfo", "integer"]

#: The largest group size and neighbour window: llama.cpp counts positions in 32-bit signed integers.
SETTING_MAX = 2**31 - 1


def integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return ``value`` as a plain ``int`` if it is an integer in ``low .. high``.

    Integers are ``int`` and whatever implements ``__index__``, such as NumPy's integers. ``bool`` is not one here:
    ``ga_n=True`` is a mistake, not a group size.

    Raises:
        NotAnIntegerError: ``value`` is not an integer.
        SettingError: ``value`` lies outside the range.
    """
    allowed = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]  # raises TypeError for what is not an integer
    except TypeError:
        raise NotAnIntegerError(f"{name} is {value!r} of type {type(value).__name__}; it must be {allowed}") from None
    if number < low or (high is not None and number > high):
        raise SettingError(f"{name} is {number}; it must be {allowed}")
    return number


@dataclass(frozen=True)
class SelfExtendConfig:
    """Group size and neighbour window as asked for, checked as far as that goes without a model.

    Raises:
        SettingError: a value is out of range; ``NotAnIntegerError`` when it is not an integer.
    """

    ga_n: int = 1
    """Group size, at least 1. 1 is the plain model, for which nothing of SelfExtend is built."""

    ga_w: int | None = None
    """Neighbour window in tokens, at least 0 and below the model's trained context (checked when the model is
    loaded). None stands for an eighth of the trained context. Without effect when ``ga_n`` is 1."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ga_n", integer("ga_n", self.ga_n, 1, SETTING_MAX))
        if self.ga_w is not None:
            object.__setattr__(self, "ga_w", integer("ga_w", self.ga_w, 0, SETTING_MAX))

    @property
    def is_plain(self) -> bool:
        """Whether this is the plain model."""
        return self.ga_n == 1


@dataclass(frozen=True)
class SelfExtendInfo:
    """What is in force in a context, read back from the engine.

    For the plain model ``ga_n`` is 1, ``n_ctx_reach`` is ``n_ctx_train``, ``attention`` is empty and the other numbers
    are 0, because nothing of SelfExtend exists in such a context; ``memory`` is what llama.cpp says of it.
    """

    ga_n: int
    """Group size."""

    ga_w: int
    """Neighbour window in tokens."""

    n_ctx_train: int
    """The context the model was trained with, in tokens."""

    n_ctx_reach: int
    """The longest sequence whose relative positions all stay below ``n_ctx_train``, in tokens."""

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
        if self.ga_n == 1:
            return f"plain model (ga_n=1), trained context {self.n_ctx_train} tokens, memory {memory}"
        return (
            f"SelfExtend ga_n={self.ga_n} ga_w={self.ga_w}, trained context {self.n_ctx_train} tokens, "
            f"reach {self.n_ctx_reach} tokens, KV cache {_mib(self.bytes_far)} far + {_mib(self.bytes_near)} near, "
            f"attention {describe(self.attention)}, memory {memory}"
        )


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.1f} MiB"
