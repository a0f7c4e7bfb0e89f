"""Where a context lies: which way each layer's attention is computed, on which device, and the memory there.

Pure: imports nothing native.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Attention", "DeviceMemory", "attention_from", "describe", "group", "ranges"]


@dataclass(frozen=True)
class Attention:
    """Extended layers whose attention is computed in one way on one device."""

    way: str
    """``fused``: in one kernel over both parts of the cache; ``composed``: from stock ggml operators."""

    device: str
    """ggml's name of the device, such as CPU or CUDA0."""

    layers: tuple[int, ...]
    """Numbers of the layers, ascending."""


@dataclass(frozen=True)
class DeviceMemory:
    """What a model and a context have taken of a device's memory."""

    device: str
    """ggml's name of the device. Main memory is CPU, whichever device it was allocated for."""

    bytes_model: int
    """Weights, in bytes. In main memory these may be pages of the model's file, with whatever lies between two tensors
    of it."""

    bytes_cache: int
    """All parts of the cache, in bytes."""

    bytes_compute: int
    """Buffers for what is computed, in bytes."""

    @property
    def n_bytes(self) -> int:
        """All of it."""
        return self.bytes_model + self.bytes_cache + self.bytes_compute


def group(layers: Iterable[tuple[int, str, str]]) -> tuple[Attention, ...]:
    """Layers with the same way and device together, in order of the first layer.

    Args:
        layers: number, way and device of each, with ascending numbers.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for number, way, device in layers:
        groups.setdefault((way, device), []).append(number)
    return tuple(Attention(way, device, tuple(numbers)) for (way, device), numbers in groups.items())


def attention_from(records: Iterable[Mapping[str, Any]]) -> tuple[Attention, ...]:
    """What JSON holds of ``Attention`` records."""
    return tuple(Attention(**{**record, "layers": tuple(record["layers"])}) for record in records)


def describe(attention: Sequence[Attention]) -> str:
    """In words: "fused on CPU (30 layers)", or "fused on CPU (layers 0-9), composed on RPC0 (layers 10-29)"."""
    if len(attention) == 1:
        (only,) = attention
        return f"{only.way} on {only.device} ({_counted(len(only.layers))})"
    parts = []
    for i, each in enumerate(attention):
        way = "" if i and attention[i - 1].way == each.way else f"{each.way} "
        some = "layer" if len(each.layers) == 1 else "layers"
        parts.append(f"{way}on {each.device} ({some} {ranges(each.layers)})")
    return ", ".join(parts)


def ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers with runs drawn together: 0-3, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _counted(n: int) -> str:
    return f"{n} layer{'' if n == 1 else 's'}"
