"""How many bytes computing takes beside weights and cache: llama.cpp's compute buffers. Nothing is loaded.

``compute_size`` is an upper estimate, of what a graph for ``n_ubatch`` tokens keeps at the same time. Its inputs live
until the last layer has used them; beside them either a layer's attention, its feed-forward network, or the logits:

- *fused*: the activations. On the CPU, where tiles are few, partial results besides (``n_tokens_pieces`` in
  ``attention/cpu/problem.h``); on another device the partial results of both parts, which CUDA takes from its
  pool, and a copy in F16 of the K and V of one layer that have another type (``llama_self_extend_cuda_n_work``).
- *composed*: the scores of a layer in F32 twice, of each part and side by side (``build_attn_composed``), and V copied
  transposed if flash attention is on, in F32 and once more if it is quantized. On a device that is not the CPU a copy
  of a quantized K in F32 is counted too, which only some make (Vulkan).
- *plain*, which layers with a window of their own always are: with flash attention the F16 copy of an F32 cache,
  otherwise the scores of a layer in F32.

Checked against what the engine reports (``llama_self_extend_get_memory``) on the CPU and on ggml's RPC device, for all
tiny models of the tests, SmolLM2 135M and Gemma 3 270M, both ways and the plain model, several lengths, batches and
types of cache, flash attention on and off (``tests/test_compute_size.py``): never below that, for the real models at
most a third above it. What a fused device takes is CUDA's, and was not measured; Vulkan cuts small problems into
more pieces, a few MiB that are not counted. What else backends allocate for
themselves while they compute is in no buffer of llama.cpp's and not counted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from .cache_size import CACHE_TYPES, CacheSize
from .model_info import Layer, ModelInfo

__all__ = ["COMPOSED", "FUSED", "PLAIN", "compute_size"]

FUSED, COMPOSED, PLAIN = "fused", "composed", "plain"

F32, F16, I64 = 4, 2, 8  # bytes

#: Of the fused kernel on the CPU: rows in fewer are one tile, rows of a tile, pieces that all tiles are cut into.
N_ROWS_FEW, N_ROWS_TILE, N_PIECES = 16, 192, 32

#: Positions, ranges, alignment: what is small and does not grow, and what is small for each token.
N_BYTES_REST, N_BYTES_REST_TOKEN = 16384, 64


def compute_size(
    model: ModelInfo,
    cache: CacheSize,
    n_ubatch: int,
    way: str,
    *,
    is_cpu: bool = True,
    layers: Collection[int] | None = None,
    has_output: bool = True,
) -> int:
    """Bytes that computing ``n_ubatch`` tokens at once takes on a device at most.

    Args:
        model: the model.
        cache: that of the context.
        n_ubatch: tokens that are computed at once, no more than there are in the context.
        way: of the extended layers: ``FUSED`` or ``COMPOSED``; ``PLAIN`` for the plain model.
        is_cpu: whether the device is the CPU.
        layers: numbers of the layers that lie on the device. None: all.
        has_output: whether the output layer does.
    """
    some = [layer for i, layer in enumerate(model.layers) if layers is None or i in layers]
    hidden = F32 * n_ubatch * model.n_embd
    size = _Sizes(model, cache, n_ubatch, way, is_cpu)
    working = [hidden]  # the embeddings
    for layer in dict.fromkeys(some):
        attention = size.attention(layer) if layer.n_head_kv > 0 else 0
        working.append(3 * hidden + max(attention, 3 * F32 * n_ubatch * model.n_ff))
    n_bytes = sum(size.inputs(model.layers if is_cpu else some)) + max(working)  # the CPU makes all of them
    if len(some) < len(model.layers):
        n_bytes += hidden  # handed over
    if has_output:
        n_bytes = max(n_bytes, F32 * n_ubatch * model.n_vocab + 3 * hidden)
    return n_bytes + N_BYTES_REST + N_BYTES_REST_TOKEN * n_ubatch


class _Sizes:
    def __init__(self, model: ModelInfo, cache: CacheSize, n_ubatch: int, way: str, is_cpu: bool) -> None:
        self.cache, self.n_ubatch, self.way, self.is_cpu = cache, n_ubatch, way, is_cpu
        # without flash attention each value has a place of its own, in rows as wide as those of the widest layer
        row_v = max(layer.n_head_kv * layer.n_embd_head_v for layer in model.layers)
        self.n_places = 1 + (1 if cache.flash_attn else row_v)

    def cells(self, layer: Layer) -> int:
        """Cells that a token's scores are computed for."""
        return self.cache.cells_swa if layer.window else self.cache.cells_far + self.cache.cells_near

    def inputs(self, layers: Sequence[Layer]) -> Iterator[int]:
        """Of each kind of layer: masks, the places that new keys and values go to, matrices for a quantized cache."""
        cache, n = self.cache, self.n_ubatch
        for is_windowed in (False, True):
            kind = [layer for layer in layers if bool(layer.window) == is_windowed]
            if not kind:
                continue
            is_extended = self.way != PLAIN and not is_windowed
            yield n * self.cells(kind[0]) * (F16 if is_extended or cache.flash_attn else F32)
            yield n * I64 * self.n_places * (2 if is_extended else 1)
            for name, size in ((cache.type_k, max(layer.n_embd_head_k for layer in kind)), (cache.type_v, 64)):
                if _is_quantized(name):
                    yield F32 * (size & -size) ** 2

    def attention(self, layer: Layer) -> int:
        """Queries, keys, values and result of a layer, in each frame, and what its way takes besides."""
        way = PLAIN if layer.window else self.way
        k, v = layer.n_head_kv * layer.n_embd_head_k, layer.n_head_kv * layer.n_embd_head_v
        q, out = layer.n_head * layer.n_embd_head_k, layer.n_head * layer.n_embd_head_v
        frames = 2 * q + 2 * k if way == PLAIN else 4 * q + 3 * k
        besides = {FUSED: self._fused, COMPOSED: self._composed, PLAIN: self._plain}[way]
        return F32 * self.n_ubatch * (frames + 2 * v + 2 * out) + besides(layer, k, v)

    def _scores(self, layer: Layer) -> int:
        return F32 * self.n_ubatch * layer.n_head * self.cells(layer)

    def _fused(self, layer: Layer, k: int, v: int) -> int:
        cache = self.cache
        if not self.is_cpu:
            rows = (k if cache.type_k != "F16" else 0) + (v if cache.type_v != "F16" else 0)
            partial = 2 * F32 * (layer.n_embd_head_v + 2) * layer.n_head * self.n_ubatch  # of each part
            return F16 * rows * self.cells(layer) + partial
        return F32 * (layer.n_embd_head_v + 2) * layer.n_head * self._tokens_pieces(layer)

    def _tokens_pieces(self, layer: Layer) -> int:
        """Tokens times pieces: the most that a batch of up to ``n_ubatch`` tokens has, a smaller one perhaps."""
        n_gqa = max(1, layer.n_head // layer.n_head_kv)
        n_few = min(self.n_ubatch, (N_ROWS_FEW - 1) // n_gqa)
        found = [n_few * N_PIECES]  # one tile
        n_tile = max(1, N_ROWS_TILE // n_gqa)
        for n_tiles in range(1, -(-self.n_ubatch // n_tile) + 1):
            n_pieces = N_PIECES // (layer.n_head_kv * n_tiles)
            if n_pieces > 1:
                found.append(min(self.n_ubatch, n_tiles * n_tile) * n_pieces)
        return max(found)

    def _composed(self, layer: Layer, k: int, v: int) -> int:
        cache = self.cache
        copies = 0
        if cache.flash_attn:
            copies += 2 * F32 * v if _is_quantized(cache.type_v) else CACHE_TYPES[cache.type_v][1] * v
        if not self.is_cpu and _is_quantized(cache.type_k):
            copies += F32 * k
        return 2 * self._scores(layer) + copies * max(cache.cells_far, cache.cells_near)

    def _plain(self, layer: Layer, k: int, v: int) -> int:
        cache = self.cache
        if not cache.flash_attn:
            return self._scores(layer)
        rows = (k if cache.type_k == "F32" else 0) + (v if cache.type_v == "F32" else 0)
        return F16 * rows * self.cells(layer)


def _is_quantized(name: str) -> bool:
    return CACHE_TYPES[name][0] > 1
