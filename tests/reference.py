"""SelfExtend in NumPy: the specification as a full forward pass of a GGUF model.

Jin et al., "LLM Maybe LongLM: Self-Extend LLM Context Window Without Tuning", arXiv 2401.01325. A query at position q
sees a key at position k <= q at the relative position

    q - k                                     if q - k <  ga_w   (near)
    (q // ga_n + ga_w - ga_w // ga_n) - k // ga_n   otherwise    (far)

with one softmax over both. Written to be read, and to share nothing with the engine: no cache, no batches, angles in
float64. What the architectures compute around the attention follows llama.cpp's graphs.

    logits = Reference("model.gguf").logits(tokens, ga_n=4, ga_w=64)    # [n_tokens, n_vocab]
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log, pi, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray

Array = NDArray[Any]

QUERY_BLOCK = 256  # queries per block of the score matrix: bounds memory, changes nothing


@dataclass(frozen=True)
class Arch:
    """What the tensors and the metadata of a GGUF file leave open."""

    neox: bool  # RoPE pairs (i, i + n_rot/2) instead of (2i, 2i + 1)
    layer_norm: bool = False  # LayerNorm instead of RMSNorm
    gelu: bool = False  # GELU (tanh form) instead of SiLU
    scale_embd: bool = False  # embeddings times sqrt(n_embd)


ARCHS = {
    "llama": Arch(neox=False),
    "qwen2": Arch(neox=True),
    "qwen2vl": Arch(neox=True),  # text only: the sections of M-RoPE all carry the same position
    "qwen3": Arch(neox=True),
    "stablelm": Arch(neox=True, layer_norm=True),
    "phi2": Arch(neox=True, layer_norm=True, gelu=True),
    "gemma": Arch(neox=True, gelu=True, scale_embd=True),
}


def relative_position(q: Array, k: Array, ga_n: int, ga_w: int) -> Array:
    """The rule, pair by pair, for integer positions q >= k of any broadcastable shapes."""
    far = (q // ga_n + ga_w - ga_w // ga_n) - k // ga_n
    return np.where(q - k < ga_w, q - k, far) if ga_n > 1 else q - k


def far_frames(pos: Array, ga_n: int, ga_w: int) -> tuple[Array, Array]:
    """Positions at which far queries and far keys are rotated; their difference is the far relative position."""
    return pos // ga_n + ga_w - ga_w // ga_n, pos // ga_n


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))


def softmax(x: Array) -> Array:
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def log_softmax(logits: Array) -> Array:
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def kl_divergence(logits_p: Array, logits_q: Array) -> Array:
    """KL(p || q) in nats at every position, [n_tokens], from two arrays of logits [n_tokens, n_vocab]."""
    if logits_p.shape != logits_q.shape:
        raise ValueError(f"shapes {logits_p.shape} and {logits_q.shape} differ")
    out = np.empty(len(logits_p))
    for i in range(0, len(out), QUERY_BLOCK):
        p, q = (log_softmax(x[i : i + QUERY_BLOCK]) for x in (logits_p, logits_q))
        out[i : i + QUERY_BLOCK] = (np.exp(p) * (p - q)).sum(axis=-1)
    return out


class Reference:
    """A GGUF model, read into memory and dequantized.

    dtype is the precision of the weights and of the matrix products; angles, norms, softmax and the residual
    stream are float64 always. Raises ValueError for an architecture or a RoPE scaling that is not written here.
    """

    def __init__(self, path: str | Path, dtype: Any = np.float64) -> None:
        self.dtype = np.dtype(dtype)
        reader = GGUFReader(path)
        self._fields = reader.fields
        self.name = str(self._fields["general.architecture"].contents())
        if self.name not in ARCHS:
            raise ValueError(f"architecture {self.name!r} is not one of {', '.join(ARCHS)}")
        self.arch = ARCHS[self.name]
        self._tensors = {t.name: dequantize(t.data, t.tensor_type).astype(self.dtype) for t in reader.tensors}

        self.n_layer = int(self._meta("block_count"))
        self.n_embd = int(self._meta("embedding_length"))
        self.n_head = int(self._meta("attention.head_count"))
        self.n_head_kv = int(self._meta("attention.head_count_kv", self.n_head))
        self.head_size = int(self._meta("attention.key_length", self.n_embd // self.n_head))
        self.n_rot = int(self._meta("rope.dimension_count", self.head_size))
        self.n_ctx_train = int(self._meta("context_length"))
        self.n_vocab = len(self._tensors["token_embd.weight"])
        kind = "layer_norm_epsilon" if self.arch.layer_norm else "layer_norm_rms_epsilon"
        self.eps = float(self._meta(f"attention.{kind}"))
        self.freqs, self.magnitude = self._rope_frequencies()

    def _meta(self, key: str, default: Any = None) -> Any:
        field = self._fields.get(f"{self.name}.{key}")
        if field is None and default is None:
            raise ValueError(f"the file has no {self.name}.{key}")
        return default if field is None else field.contents()

    def _rope_frequencies(self) -> tuple[Array, float]:
        """Radians per position of each rotated pair, [n_rot/2], and the magnitude of the rotation (YaRN)."""
        base = float(self._meta("rope.freq_base", 10000.0))
        i = np.arange(self.n_rot // 2)
        extrapolated = base ** (-2.0 * i / self.n_rot)
        factors = self._tensors.get("rope_freqs.weight")  # Llama 3
        if factors is not None:
            extrapolated = extrapolated / factors.astype(np.float64)

        kind = self._meta("rope.scaling.type", "linear")
        factor = float(self._meta("rope.scaling.factor", 1.0))
        if kind == "none":
            return extrapolated, 1.0
        if kind == "linear":
            return extrapolated / factor, 1.0
        if kind != "yarn":
            raise ValueError(f"RoPE scaling {kind!r} is not one of none, linear, yarn")

        # YaRN, arXiv 2309.00071: fast pairs as trained, slow pairs interpolated, a ramp between
        n_ctx = int(self._meta("rope.scaling.original_context_length", self.n_ctx_train))

        def pair_that_turns(n: float) -> float:  # the pair that makes n turns within the original context
            return self.n_rot * log(n_ctx / (n * 2 * pi)) / (2 * log(base))

        low = max(0, floor(pair_that_turns(32.0)))
        high = min(self.n_rot - 1, ceil(pair_that_turns(1.0)))
        keep = 1 - np.clip((i - low) / max(0.001, high - low), 0, 1)
        attn_factor = float(self._meta("rope.scaling.attn_factor", 1.0))
        freqs = extrapolated / factor * (1 - keep) + extrapolated * keep
        return freqs, attn_factor * (0.1 * log(factor) + 1.0)

    # the two definitions of a score: a test compares them

    def _scores_frames(self, q: Array, k: Array, start: int, ga_n: int, ga_w: int) -> Array:
        """Scores of queries at start.. against keys at 0.., [n_head, n_q, n_k]: rotate q and k, then multiply."""
        pos_q, pos_k = np.arange(start, start + q.shape[1]), np.arange(k.shape[1])
        near = self._products(self._rotate(q, pos_q), self._rotate(k, pos_k))
        if ga_n == 1:
            return near
        frame_q, frame_k = self.far_frames(pos_q, ga_n, ga_w)[0], self.far_frames(pos_k, ga_n, ga_w)[1]
        far = self._products(self._rotate(q, frame_q), self._rotate(k, frame_k))
        return np.where(pos_q[:, None] - pos_k[None, :] < ga_w, near, far)

    def _scores_pairs(self, q: Array, k: Array, start: int, ga_n: int, ga_w: int) -> Array:
        """The same by definition: for every pair, turn by its relative position and multiply. Slow."""
        pos_q, pos_k = np.arange(start, start + q.shape[1]), np.arange(k.shape[1])
        rel = relative_position(pos_q[:, None], pos_k[None, :], ga_n, ga_w)
        angle = rel[:, :, None] * self.freqs  # [n_q, n_k, n_rot/2]
        cos, sin = np.cos(angle) * self.magnitude**2, np.sin(angle) * self.magnitude**2
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

    def far_frames(self, pos: Array, ga_n: int, ga_w: int) -> tuple[Array, Array]:
        """Overridden by tests that need another rule."""
        return far_frames(pos, ga_n, ga_w)

    def _split(self, x: Array) -> tuple[Array, Array, Array]:
        """First and second members of the rotated pairs, and what is not rotated, of [..., head_size]."""
        if self.arch.neox:
            first, second = x[..., : self.n_rot // 2], x[..., self.n_rot // 2 : self.n_rot]
        else:
            first, second = x[..., 0 : self.n_rot : 2], x[..., 1 : self.n_rot : 2]
        return first, second, x[..., self.n_rot :]

    def _rotate(self, x: Array, pos: Array) -> Array:
        """RoPE of [n_head, n_tokens, head_size] at pos [n_tokens]. Pairs are left unzipped: only products are used."""
        first, second, rest = self._split(x)
        angle = pos[:, None] * self.freqs
        cos, sin = np.cos(angle) * self.magnitude, np.sin(angle) * self.magnitude
        return np.concatenate([first * cos - second * sin, first * sin + second * cos, rest], axis=-1)

    def _products(self, q: Array, k: Array) -> Array:
        """q k^T per query head, [n_head, n_q, n_k]; consecutive query heads share a KV head."""
        n_group = self.n_head // self.n_head_kv
        q = q.reshape(self.n_head_kv, n_group * q.shape[1], self.head_size).astype(self.dtype)
        out = q @ k.astype(self.dtype).transpose(0, 2, 1)
        return out.reshape(self.n_head, -1, k.shape[1]).astype(np.float64)

    # the model around it

    def _matmul(self, x: Array, weight: str) -> Array:
        """Rows of x times a weight matrix, in dtype. Overridden by tests that round x."""
        return x.astype(self.dtype) @ self._tensors[weight].T

    def _linear(self, name: str, x: Array) -> Array:
        y = self._matmul(x, f"{name}.weight").astype(np.float64)
        bias = self._tensors.get(f"{name}.bias")
        return y if bias is None else y + bias

    def _norm(self, name: str, x: Array) -> Array:
        """Norm over the last axis; bias only where the file has one."""
        if self.arch.layer_norm:
            x = x - x.mean(axis=-1, keepdims=True)
        y = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.eps) * self._tensors[f"{name}.weight"]
        bias = self._tensors.get(f"{name}.bias")
        return y if bias is None else y + bias

    def _heads(self, x: Array, n_head: int) -> Array:
        return x.reshape(len(x), n_head, self.head_size).transpose(1, 0, 2)

    def _qkv(self, block: str, x: Array) -> tuple[Array, Array, Array]:
        """Queries [n_head, n_tokens, head_size], keys and values [n_head_kv, n_tokens, head_size], not yet rotated."""
        if f"{block}.attn_qkv.weight" in self._tensors:
            n_q, n_kv = self.n_head * self.head_size, self.n_head_kv * self.head_size
            q, k, v = np.split(self._linear(f"{block}.attn_qkv", x), [n_q, n_q + n_kv], axis=1)
        else:
            q, k, v = (self._linear(f"{block}.attn_{c}", x) for c in "qkv")
        q, k, v = self._heads(q, self.n_head), self._heads(k, self.n_head_kv), self._heads(v, self.n_head_kv)
        if f"{block}.attn_q_norm.weight" in self._tensors:
            q = self._head_norm(f"{block}.attn_q_norm", q)
            k = self._head_norm(f"{block}.attn_k_norm", k)
        return q, k, v

    def _head_norm(self, name: str, x: Array) -> Array:
        # one weight vector for all heads (Qwen3) or one per head (StableLM 2): both broadcast
        return self._norm(name, x.transpose(1, 0, 2)).transpose(1, 0, 2)

    def _attention(self, block: str, x: Array, ga_n: int, ga_w: int, by_pairs: bool) -> Array:
        q, k, v = self._qkv(block, x)
        scores_of = self._scores_pairs if by_pairs else self._scores_frames
        n_group, n_tokens = self.n_head // self.n_head_kv, len(x)
        out = np.empty((n_tokens, self.n_head, self.head_size))
        for start in range(0, n_tokens, QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, n_tokens)
            scores = scores_of(q[:, start:end], k[:, :end], start, ga_n, ga_w) / sqrt(self.head_size)
            scores[:, np.arange(start, end)[:, None] < np.arange(end)[None, :]] = -np.inf
            probs = softmax(scores).astype(self.dtype).reshape(self.n_head_kv, n_group * (end - start), end)
            mixed = probs @ v[:, :end].astype(self.dtype)
            out[start:end] = mixed.reshape(self.n_head, end - start, self.head_size).transpose(1, 0, 2)
        return self._linear(f"{block}.attn_output", out.reshape(n_tokens, -1))

    def _ffn(self, block: str, x: Array) -> Array:
        gated = f"{block}.ffn_gate.weight" in self._tensors
        h = self._linear(f"{block}.ffn_gate" if gated else f"{block}.ffn_up", x)
        h = gelu(h) if self.arch.gelu else h / (1 + np.exp(-h))
        return self._linear(f"{block}.ffn_down", h * self._linear(f"{block}.ffn_up", x) if gated else h)

    def logits(self, tokens: Any, ga_n: int = 1, ga_w: int = 0, *, by_pairs: bool = False) -> Array:
        """Logits at every position, [n_tokens, n_vocab] of dtype, of one sequence that starts at position 0.

        ga_n = 1 is the plain model. by_pairs computes every score from the definition, for short sequences.
        """
        if ga_n < 1 or ga_w < 0:
            raise ValueError(f"ga_n is {ga_n} and ga_w {ga_w}; ga_n must be at least 1 and ga_w at least 0")
        x = self._tensors["token_embd.weight"][np.asarray(tokens)].astype(np.float64)
        if self.arch.scale_embd:
            x *= sqrt(self.n_embd)
        for il in range(self.n_layer):
            block = f"blk.{il}"
            normed = self._norm(f"{block}.attn_norm", x)
            x = x + self._attention(block, normed, ga_n, ga_w, by_pairs)
            # without a norm of its own the FFN runs beside the attention, on the same input (Phi 2, StableLM 2 12B)
            parallel = f"{block}.ffn_norm.weight" not in self._tensors
            x = x + self._ffn(block, normed if parallel else self._norm(f"{block}.ffn_norm", x))
        tied = "output.weight" not in self._tensors
        y = self._matmul(self._norm("output_norm", x), "token_embd.weight" if tied else "output.weight")
        bias = self._tensors.get("output.bias")
        return y if bias is None else y + bias
