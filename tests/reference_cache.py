"""The reference with a cache: what a context is to compute after its tokens were removed or moved.

The cache holds what a model made of each token once, keys not rotated and values, and the token's position of now. A
token that moves keeps both: it is what a K-shift is to do, written without rotating anything twice.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
from reference import Array, Reference
from reference_archs import Layer


class CachedReference(Reference):
    """One sequence of a model with SelfExtend; ga_n = 1 is the plain model."""

    def __init__(self, path: str | Path, ga_n: int, ga_w: int, n_ctx: int = 1024, ga_map: str = "self-extend") -> None:
        super().__init__(path)
        self.ga_map = ga_map
        self.ga_n, self.ga_w, self.n_ctx = ga_n, ga_w, n_ctx
        self.pos = np.zeros(0, dtype=np.int64)
        self._kv: dict[str, tuple[Array, Array]] = {}  # by layer: [n_head_kv, n_cached, head_size] each

    def extend(self, tokens: Any) -> Array:
        """Append tokens behind the last position. Returns their logits, [n_tokens, n_vocab]."""
        first = self.pos.max() + 1 if len(self.pos) else 0
        self.pos = np.concatenate([self.pos, np.arange(first, first + len(tokens))])
        return self.logits(tokens, self.ga_n, self.ga_w, n_ctx=self.n_ctx)

    def fork(self, p1: int = 1 << 30) -> CachedReference:
        """Another sequence with the same model and this one's tokens at positions below p1."""
        other = copy.copy(self)
        other._kv = dict(self._kv)
        other.remove(p1, 1 << 30)
        return other

    def remove(self, p0: int, p1: int) -> None:
        """Forget the tokens at positions p0 .. p1 - 1."""
        keep = (self.pos < p0) | (self.pos >= p1)
        self.pos = self.pos[keep]
        self._kv = {block: (k[:, keep], v[:, keep]) for block, (k, v) in self._kv.items()}

    def shift(self, p0: int, p1: int, delta: int) -> None:
        """Move the tokens at positions p0 .. p1 - 1 by delta."""
        self.pos = np.where((self.pos >= p0) & (self.pos < p1), self.pos + delta, self.pos)

    def _attention(self, layer: Layer, x: Array, ga_n: int, ga_w: int, by_pairs: bool) -> Array:
        q, k, v = self._qkv(layer.block, x)
        if layer.block in self._kv:
            k, v = (np.concatenate(pair, axis=1) for pair in zip(self._kv[layer.block], (k, v), strict=True))
        self._kv[layer.block] = k, v

        pos_k, pos_q = self.pos, self.pos[-len(x) :]
        distance = pos_q[:, None] - pos_k[None, :]
        scores = self._scores_frames(layer, q, k, pos_q, pos_k, 1 if layer.window else ga_n, ga_w)
        scores *= self.kq_scale
        if self.kq_soft_cap:
            scores = self.kq_soft_cap * np.tanh(scores / self.kq_soft_cap)
        scores[:, (distance < 0) | (distance >= (layer.window or distance.max() + 1))] = -np.inf

        probs = self._softmax(layer, scores).reshape(self.n_head_kv, -1, len(pos_k))
        mixed = (probs @ v).reshape(self.n_head, len(x), self.head_size)
        return self._linear(f"{layer.block}.attn_output", mixed.transpose(1, 0, 2).reshape(len(x), -1))
