"""SelfExtend in NumPy: the specification as a full forward pass of a GGUF model.

Jin et al., "LLM Maybe LongLM: Self-Extend LLM Context Window Without Tuning", arXiv 2401.01325. A query at position q
sees a key at position k <= q at the relative position

    q - k                                     if q - k <  ga_w   (near)
    (q // ga_n + ga_w - ga_w // ga_n) - k // ga_n   otherwise    (far)

with one softmax over both; other maps show far keys at other positions. Written to be read, and to share nothing with
the engine: no cache, no batches, angles in float64. What the architectures compute around the attention follows
llama.cpp's graphs.

    logits = Reference("model.gguf").logits(tokens, ga_n=4, ga_w=64)    # [n_tokens, n_vocab]
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from reference_archs import Array, Layer, Model, softmax

QUERY_BLOCK = 256  # queries per block of the score matrix: bounds memory, changes nothing
N_CACHED = 1 << 18  # logits that are compared at a time: they stay in a processor's cache, which is ten times as fast


def relative_position(q: Array, k: Array, ga_n: float, ga_w: int, ga_map: str = "self-extend") -> Array:
    """The rule, pair by pair, for integer positions q >= k of any broadcastable shapes. ga_n is in tokens."""
    if ga_n == 1 or ga_map == "mrrope":
        return q - k
    far = {
        "self-extend": lambda: (q // ga_n + ga_w - ga_w // ga_n) - k // ga_n,
        "lampe": lambda: (q // ga_n + ga_w - ga_w // ga_n) - k // ga_n,
        "jet-long": lambda: q // ga_n - k // ga_n,
        "rerope": lambda: np.full(np.broadcast_shapes(q.shape, k.shape), ga_w),
        "leaky": lambda: ga_w + (q - k - ga_w) / ga_n,
    }[ga_map]()
    return np.where(q - k < ga_w, q - k, far)


def far_frames(pos: Array, ga_n: float, ga_w: int, ga_map: str = "self-extend") -> tuple[Array, Array]:
    """Positions at which far queries and far keys are rotated; their difference is the far relative position."""
    if ga_map == "mrrope":
        return pos, pos
    if ga_map == "jet-long":
        return pos // ga_n, pos // ga_n
    if ga_map == "rerope":
        return np.full(pos.shape, ga_w), np.zeros(pos.shape)
    if ga_map == "leaky":
        return (pos - ga_w) / ga_n + ga_w, pos / ga_n
    return pos // ga_n + ga_w - ga_w // ga_n, pos // ga_n


def log_softmax(logits: Array) -> Array:
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def kl_divergence(logits_p: Array, logits_q: Array) -> Array:
    """KL(p || q) in nats at every position, [n_tokens], from two arrays of logits [n_tokens, n_vocab]."""
    if logits_p.shape != logits_q.shape:
        raise ValueError(f"shapes {logits_p.shape} and {logits_q.shape} differ")
    out = np.empty(len(logits_p))
    block = max(1, N_CACHED // logits_p.shape[-1])
    for i in range(0, len(out), block):
        p, q = (log_softmax(x[i : i + block]) for x in (logits_p, logits_q))
        out[i : i + block] = (np.exp(p) * (p - q)).sum(axis=-1)
    return out


class Reference(Model):
    """A GGUF model with SelfExtend. Layers with a sliding window of their own stay as they are."""

    ga_map = "self-extend"  # or another one, whose ga_n counts 64ths of a token if it is lampe

    # the two definitions of a score: a test compares them

    def _scores_frames(
        self, layer: Layer, q: Array, k: Array, pos_q: Array, pos_k: Array, ga_n: int, ga_w: int
    ) -> Array:
        """Scores of queries at pos_q against keys at pos_k, [n_head, n_q, n_k]: rotate q and k, then multiply."""
        near = self._scores_at(layer, q, k, pos_q, pos_k)
        if ga_n == 1:
            return near
        group = self._group(ga_n)
        frame_q, frame_k = self.far_frames(pos_q, group, ga_w)[0], self.far_frames(pos_k, group, ga_w)[1]
        far = self._scores_at(self._far_layer(layer, ga_n), q, k, frame_q, frame_k)
        return np.where(pos_q[:, None] - pos_k[None, :] < ga_w, near, far)

    def _scores_at(self, layer: Layer, q: Array, k: Array, pos_q: Array, pos_k: Array) -> Array:
        """Scores, [n_head, n_q, n_k], of queries and keys that are rotated at pos_q [n_q] and pos_k [n_k]."""
        q, k = self._rotate(q, pos_q, layer), self._rotate(k, pos_k, layer)
        if self.arch.norm_after_rope:
            q, k = self._qk_norm(layer.block, q, k)
        return self._products(q, k)

    def _scores_pairs(
        self, layer: Layer, q: Array, k: Array, pos_q: Array, pos_k: Array, ga_n: int, ga_w: int
    ) -> Array:
        """The same by definition: for every pair, turn by its relative position and multiply. Slow."""
        if self.arch.norm_after_rope:
            raise ValueError(f"scores of {self.name} depend on more than relative positions: a norm follows RoPE")
        rel = relative_position(pos_q[:, None], pos_k[None, :], self._group(ga_n), ga_w, self.ga_map)
        layer = self._far_layer(layer, ga_n)
        angle = rel[:, :, None] * layer.freqs  # [n_q, n_k, n_rot/2]
        cos, sin = np.cos(angle) * layer.magnitude**2, np.sin(angle) * layer.magnitude**2
        scores = np.empty((self.n_head, len(pos_q), len(pos_k)))
        for head in range(self.n_head):
            q1, q2, q_rest = self._split(q[head])
            k1, k2, k_rest = self._split(k[head // (self.n_head // self.n_head_kv)])
            dot = np.einsum("qi,ki,qki->qk", q1, k1, cos, optimize=True)
            dot += np.einsum("qi,ki,qki->qk", q2, k2, cos, optimize=True)
            dot += np.einsum("qi,ki,qki->qk", q1, k2, sin, optimize=True)
            dot -= np.einsum("qi,ki,qki->qk", q2, k1, sin, optimize=True)
            scores[head] = dot + q_rest @ k_rest.T
        return scores

    def far_frames(self, pos: Array, ga_n: float, ga_w: int) -> tuple[Array, Array]:
        """Overridden by tests that need another rule."""
        return far_frames(pos, ga_n, ga_w, self.ga_map)

    def _group(self, ga_n: int) -> float:
        """The group size in tokens."""
        return ga_n / 64 if self.ga_map == "lampe" else ga_n

    def _far_layer(self, layer: Layer, ga_n: int) -> Layer:
        """The layer with the frequencies of MrRoPE-Pro (arXiv 2601.22181, and its authors' code), if that is the map.

        Pairs that turn more than 32 times over the trained context keep their frequency, those that turn less than once
        have it divided by ga_n, and in between the exponents of ga_n are triangular numbers.
        """
        if self.ga_map != "mrrope":
            return layer
        base = float(self._meta("rope.freq_base", 10000.0))
        low, high = (
            edge(self.n_rot * np.log(self.n_ctx_train / (turns * 2 * np.pi)) / (2 * np.log(base)))
            for edge, turns in ((np.floor, 32), (np.ceil, 1))
        )
        low, high = max(low, 0), min(high, self.n_rot - 1)
        i = np.arange(self.n_rot // 2)
        exponent = np.where(i >= high, 1, (i - low) * (i + 1 - low) / ((high - low) * (high - low + 1)))
        freqs = layer.freqs / ga_n ** np.where(i <= low, 0, exponent)
        return replace(layer, freqs=freqs, magnitude=layer.magnitude * (0.1 * np.log(ga_n) + 1))

    def _split(self, x: Array) -> tuple[Array, Array, Array]:
        """First and second members of the rotated pairs, and what is not rotated, of [..., head_size]: views."""
        if self.arch.neox:
            first, second = x[..., : self.n_rot // 2], x[..., self.n_rot // 2 : self.n_rot]
        else:
            first, second = x[..., 0 : self.n_rot : 2], x[..., 1 : self.n_rot : 2]
        return first, second, x[..., self.n_rot :]

    def _rotate(self, x: Array, pos: Array, layer: Layer) -> Array:
        """RoPE of [n_head, n_tokens, head_size] at pos [n_tokens]."""
        angle = pos[:, None] * layer.freqs
        cos, sin = np.cos(angle) * layer.magnitude, np.sin(angle) * layer.magnitude
        out = x.copy()
        first, second, _ = self._split(x)
        to_first, to_second, _ = self._split(out)
        to_first[...], to_second[...] = first * cos - second * sin, first * sin + second * cos
        return out

    def _products(self, q: Array, k: Array) -> Array:
        """q k^T per query head, [n_head, n_q, n_k]; consecutive query heads share a KV head."""
        n_group = self.n_head // self.n_head_kv
        q = q.reshape(self.n_head_kv, n_group * q.shape[1], self.head_size).astype(self.dtype)
        out = q @ k.astype(self.dtype).transpose(0, 2, 1)
        return out.reshape(self.n_head, -1, k.shape[1]).astype(np.float64)

    # the model around it

    def _attention(self, layer: Layer, x: Array, ga_n: int, ga_w: int, by_pairs: bool) -> Array:
        """Attention of a layer to x, [n_tokens, n_embd]. With a window of its own it is the plain one."""
        q, k, v = self._qkv(layer.block, x)
        scores_of = self._scores_pairs if by_pairs else self._scores_frames
        n_group, n_tokens = self.n_head // self.n_head_kv, len(x)
        n_seen = layer.window or n_tokens
        out = np.empty((n_tokens, self.n_head, self.head_size))
        for start in range(0, n_tokens, QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, n_tokens)
            pos_q, pos_k = np.arange(start, end), np.arange(end)
            scores = scores_of(layer, q[:, start:end], k[:, :end], pos_q, pos_k, 1 if layer.window else ga_n, ga_w)
            scores *= self.kq_scale
            if self.kq_soft_cap:
                scores = self.kq_soft_cap * np.tanh(scores / self.kq_soft_cap)
            distance = pos_q[:, None] - pos_k[None, :]
            scores[:, (distance < 0) | (distance >= n_seen)] = -np.inf
            probs = self._softmax(layer, scores).astype(self.dtype)
            mixed = probs.reshape(self.n_head_kv, n_group * (end - start), end) @ v[:, :end].astype(self.dtype)
            out[start:end] = mixed.reshape(self.n_head, end - start, self.head_size).transpose(1, 0, 2)
        return self._linear(f"{layer.block}.attn_output", out.reshape(n_tokens, -1))

    def _softmax(self, layer: Layer, scores: Array) -> Array:
        """Softmax of [n_head, n_q, n_k] over the keys and the head's sink, if it has one: a score without a key."""
        sinks = self._tensors.get(f"{layer.block}.attn_sinks.weight")
        if sinks is None:
            return softmax(scores)
        sinks = np.broadcast_to(sinks[:, None, None], (*scores.shape[:2], 1))
        return softmax(np.concatenate([scores, sinks], axis=-1))[..., :-1]

    def logits(self, tokens: Any, ga_n: int = 1, ga_w: int = 0, *, n_ctx: int = 0, by_pairs: bool = False) -> Array:
        """Logits at every position, [n_tokens, n_vocab] of dtype, of one sequence that starts at position 0.

        ga_n = 1 is the plain model. n_ctx is the size of the context, that of the sequence if it is 0; LongRoPE depends
        on it. by_pairs computes every score from the definition, for short sequences.
        """
        if ga_n < 1 or ga_w < 0:
            raise ValueError(f"ga_n is {ga_n} and ga_w {ga_w}; ga_n must be at least 1 and ga_w at least 0")
        x = self._embed(tokens)
        for il in range(self.n_layer):
            layer = self.layer(il, n_ctx or len(x))
            block = layer.block
            normed = self._norm(f"{block}.attn_norm", x)
            attended = self._attention(layer, normed, ga_n, ga_w, by_pairs)
            x = x + self.residual_scale * self._norm(f"{block}.post_attention_norm", attended)
            # without a norm of its own the FFN runs beside the attention, on the same input (Phi 2, StableLM 2 12B)
            parallel = not self._has(f"{block}.ffn_norm") and not self._has(f"{block}.post_ffw_norm")
            fed = self._ffn(block, normed if parallel else self._norm(f"{block}.ffn_norm", x))
            x = x + self.residual_scale * self._norm(f"{block}.post_ffw_norm", fed)
        return self._head(x)
