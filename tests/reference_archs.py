"""What architectures compute around the scores of attention, in NumPy, from a GGUF file. Follows llama.cpp's graphs.

reference.py adds the attention. Whatever a file's tensors and metadata say is taken from them; what they leave open is
in ARCHS.
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


@dataclass(frozen=True)
class Arch:
    """What the tensors and the metadata of a GGUF file leave open."""

    neox: bool  # RoPE pairs (i, i + n_rot/2) instead of (2i, 2i + 1)
    interleaved: bool = False  # the sections of M-RoPE take turns
    no_rope_every: int = 0  # every nth layer has no RoPE
    norm_after_rope: bool = False  # of q and k
    global_every: int = 0  # every nth layer is global and the others have a window, where the file does not say which
    window_base: float = 0.0  # RoPE base of layers with a window, where the file has none; 0 is that of the others
    window_scaled: bool = True  # RoPE scaling holds for layers with a window too
    layer_norm: bool = False  # LayerNorm instead of RMSNorm
    ffn_norm: str = "ffn_norm"  # name of the norm before the FFN
    gelu: bool = False  # GELU (tanh form) instead of SiLU
    clamped: bool = False  # the clamped activation of gpt-oss
    scale_embd: bool = False  # embeddings times sqrt(n_embd)


ARCHS = {
    "llama": Arch(neox=False),
    "qwen2": Arch(neox=True),
    "qwen2vl": Arch(neox=True),
    "qwen3": Arch(neox=True),
    "qwen3vl": Arch(neox=True, interleaved=True),
    "qwen3moe": Arch(neox=True),
    "stablelm": Arch(neox=True, layer_norm=True),
    "phi2": Arch(neox=True, layer_norm=True, gelu=True),
    "phi3": Arch(neox=True),  # llama.cpp ignores its sliding window
    "gemma": Arch(neox=True, gelu=True, scale_embd=True),
    "gemma2": Arch(neox=True, gelu=True, scale_embd=True, global_every=2),
    "gemma3": Arch(
        neox=True, gelu=True, scale_embd=True, global_every=6, window_base=10000.0, window_scaled=False
    ),
    "glm4": Arch(neox=False),
    "granite": Arch(neox=False),
    "hunyuan-dense": Arch(neox=True, norm_after_rope=True),
    "olmo2": Arch(neox=True, global_every=4, window_scaled=False),  # and OLMo 3, which has the windows
    "smollm3": Arch(neox=False, no_rope_every=4),
    "gpt-oss": Arch(neox=True, global_every=2, ffn_norm="post_attention_norm", clamped=True),
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """What the attention of one layer depends on."""

    block: str  # in front of its tensors' names
    window: int  # how many tokens a query sees, its own and those before it; 0 is all, in a global layer
    freqs: Array  # radians per position of each rotated pair, [n_rot/2]
    magnitude: float  # of the rotation


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def clamped_swiglu(gate: Array, up: Array) -> Array:
    """gpt-oss: both are cut off at 7, the gate is x sigmoid(1.702 x), and up counts from -1."""
    gate, up = np.minimum(gate, 7.0), np.clip(up, -7.0, 7.0)
    return gate / (1 + np.exp(-1.702 * gate)) * (up + 1)


def softmax(x: Array) -> Array:
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


class Model:
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
        self._tensors: dict[str, Array] = {}
        for t in reader.tensors:
            name, kind = t.name.replace(self.arch.ffn_norm, "ffn_norm").rsplit(".", 1)
            values = dequantize(t.data, t.tensor_type).astype(self.dtype, copy=False)
            if name.endswith("_exps"):
                self._tensors |= {f"{name}.{i}.{kind}": expert for i, expert in enumerate(values)}
            else:
                self._tensors[f"{name}.{kind}"] = values

        self.n_layer = int(self._meta("block_count"))
        self.n_embd = int(self._meta("embedding_length"))
        self.n_head = int(self._meta("attention.head_count"))
        self.n_head_kv = int(self._meta("attention.head_count_kv", self.n_head))
        self.head_size = int(self._meta("attention.key_length", self.n_embd // self.n_head))
        self.n_rot = int(self._meta("rope.dimension_count", self.head_size))
        self.n_ctx_train = int(self._meta("context_length"))
        self.n_vocab = len(self._tensors["token_embd.weight"])
        self.n_window = int(self._meta("attention.sliding_window", 0)) if self.arch.global_every else 0
        self.n_expert_used = int(self._meta("expert_used_count", 0))
        kind = "layer_norm_epsilon" if self.arch.layer_norm else "layer_norm_rms_epsilon"
        self.eps = float(self._meta(f"attention.{kind}"))
        self.kq_scale = float(self._meta("attention.scale", 1 / sqrt(self.head_size)))
        self.kq_soft_cap = float(self._meta("attn_logit_softcapping", 0.0))
        self.logit_soft_cap = float(self._meta("final_logit_softcapping", 0.0))
        self.residual_scale = float(self._meta("residual_scale", 1.0))

    def _meta(self, key: str, default: Any = None) -> Any:
        field = self._fields.get(f"{self.name}.{key}")
        if field is None and default is None:
            raise ValueError(f"the file has no {self.name}.{key}")
        return default if field is None else field.contents()

    # windows and RoPE

    def layer(self, il: int, n_ctx: int) -> Layer:
        """Layer il in a context of n_ctx tokens."""
        block, window = f"blk.{il}", self._window(il)
        if self.arch.no_rope_every and (il + 1) % self.arch.no_rope_every == 0:
            return Layer(block, window, np.zeros(self.n_rot // 2), 1.0)
        base = float(self._meta("rope.freq_base", 10000.0))
        if window:
            base = float(self._meta("rope.freq_base_swa", self.arch.window_base or base))
        i = np.arange(self.n_rot // 2)
        freqs = base ** (-2.0 * i / self.n_rot) / self._frequency_factors(n_ctx)
        freqs[self._turned_by_fourth(i)] = 0.0
        if window and not self.arch.window_scaled:
            return Layer(block, window, freqs, 1.0)
        return Layer(block, window, *self._scaled(freqs, base))

    def _window(self, il: int) -> int:
        if self.n_window == 0:
            return 0
        pattern = self._meta("attention.sliding_window_pattern", self.arch.global_every)
        has_window = pattern[il] if isinstance(pattern, list) else il % pattern < pattern - 1
        return self.n_window if has_window else 0

    def _frequency_factors(self, n_ctx: int) -> Array:
        """What frequencies are divided by: as in Llama 3, or by the size of the context (LongRoPE, 2402.13753)."""
        n_ctx = -(-n_ctx // 256) * 256  # llama.cpp rounds a context up
        is_long = n_ctx > int(self._meta("rope.scaling.original_context_length", self.n_ctx_train))
        by_length = f"rope_factors_{'long' if is_long else 'short'}.weight"
        factors = self._tensors.get("rope_freqs.weight", self._tensors.get(by_length, np.ones(1)))
        return factors.astype(np.float64)

    def _turned_by_fourth(self, i: Array) -> Array:
        """Which of the pairs i turn by the fourth position of M-RoPE, [n_rot/2]: in text it is 0, not the token's."""
        sections = np.array(self._meta("rope.dimension_sections", [1, 0, 0, 0]))
        i = i % sections.sum()
        return i >= 3 * sections[i % 3] if self.arch.interleaved else i >= sections[:3].sum()

    def _scaled(self, freqs: Array, base: float) -> tuple[Array, float]:
        """Frequencies after RoPE scaling, and the magnitude."""
        kind = self._meta("rope.scaling.type", "linear")
        factor = float(self._meta("rope.scaling.factor", 1.0))
        magnitude = float(self._meta("rope.scaling.attn_factor", 1.0))
        if kind == "none":
            return freqs, magnitude
        if kind == "linear":
            return freqs / factor, magnitude
        if kind != "yarn":
            raise ValueError(f"RoPE scaling {kind!r} is not one of none, linear, yarn")

        # YaRN, arXiv 2309.00071: fast pairs as trained, slow pairs interpolated, a ramp between
        n_ctx = int(self._meta("rope.scaling.original_context_length", self.n_ctx_train))

        def pair_that_turns(n: float) -> float:  # the pair that makes n turns within the original context
            return self.n_rot * log(n_ctx / (n * 2 * pi)) / (2 * log(base))

        low = max(0, floor(pair_that_turns(32.0)))
        high = min(self.n_rot - 1, ceil(pair_that_turns(1.0)))
        keep = 1 - np.clip((np.arange(len(freqs)) - low) / max(0.001, high - low), 0, 1)
        return freqs / factor * (1 - keep) + freqs * keep, magnitude * (0.1 * log(factor) + 1.0)

    # tensors

    def _has(self, name: str) -> bool:
        return f"{name}.weight" in self._tensors

    def _matmul(self, x: Array, weight: str) -> Array:
        """Rows of x times a weight matrix, in dtype. Overridden by tests that round x."""
        return x.astype(self.dtype) @ self._tensors[weight].T

    def _linear(self, name: str, x: Array) -> Array:
        y = self._matmul(x, f"{name}.weight").astype(np.float64)
        bias = self._tensors.get(f"{name}.bias")
        return y if bias is None else y + bias

    def _norm(self, name: str, x: Array) -> Array:
        """Norm over the last axis; x itself where the file has no such norm, bias only where it has one."""
        if not self._has(name):
            return x
        if self.arch.layer_norm:
            x = x - x.mean(axis=-1, keepdims=True)
        y = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.eps) * self._tensors[f"{name}.weight"]
        bias = self._tensors.get(f"{name}.bias")
        return y if bias is None else y + bias

    # the parts of a layer

    def _heads(self, x: Array, n_head: int) -> Array:
        return x.reshape(len(x), n_head, self.head_size).transpose(1, 0, 2)

    def _head_norm(self, name: str, x: Array) -> Array:
        """Norm of [n_head, n_tokens, head_size], if the file has it."""
        rows = x.transpose(1, 0, 2)
        if self._has(name) and self._tensors[f"{name}.weight"].shape == (rows[0].size,):
            y = self._norm(name, rows.reshape(len(rows), -1)).reshape(rows.shape)  # over all heads together (OLMo 2)
        else:
            y = self._norm(name, rows)  # weights for all heads (Qwen3) or for each (StableLM 2): both broadcast
        return y.transpose(1, 0, 2)

    def _qkv(self, block: str, x: Array) -> tuple[Array, Array, Array]:
        """Queries [n_head, n_tokens, head_size], keys and values [n_head_kv, n_tokens, head_size], not yet rotated."""
        if self._has(f"{block}.attn_qkv"):
            n_q, n_kv = self.n_head * self.head_size, self.n_head_kv * self.head_size
            q, k, v = np.split(self._linear(f"{block}.attn_qkv", x), [n_q, n_q + n_kv], axis=1)
        else:
            q, k, v = (self._linear(f"{block}.attn_{c}", x) for c in "qkv")
        q, k, v = self._heads(q, self.n_head), self._heads(k, self.n_head_kv), self._heads(v, self.n_head_kv)
        return (q, k, v) if self.arch.norm_after_rope else (*self._qk_norm(block, q, k), v)

    def _qk_norm(self, block: str, q: Array, k: Array) -> tuple[Array, Array]:
        return self._head_norm(f"{block}.attn_q_norm", q), self._head_norm(f"{block}.attn_k_norm", k)

    def _ffn(self, block: str, x: Array) -> Array:
        return self._moe(block, x) if self._has(f"{block}.ffn_gate_inp") else self._dense(block, x)

    def _dense(self, block: str, x: Array, expert: str = "") -> Array:
        """A dense FFN, or one expert of a mixture."""
        up, down = f"{block}.ffn_up{expert}", f"{block}.ffn_down{expert}"
        y = self._linear(up, x)
        if self._has(f"{block}.ffn_gate{expert}"):
            y = self._gated(self._linear(f"{block}.ffn_gate{expert}", x), y)
        elif y.shape[1] == 2 * self._tensors[f"{down}.weight"].shape[1]:
            y = self._gated(*np.split(y, 2, axis=1))
        else:
            y = gelu(y) if self.arch.gelu else silu(y)
        return self._linear(down, y)

    def _gated(self, gate: Array, up: Array) -> Array:
        if self.arch.clamped:
            return clamped_swiglu(gate, up)
        return (gelu(gate) if self.arch.gelu else silu(gate)) * up

    def _moe(self, block: str, x: Array) -> Array:
        """The best experts of each token, weighted by a softmax over the router's logits of these."""
        logits = self._linear(f"{block}.ffn_gate_inp", x)  # [n_tokens, n_expert]
        best = np.argsort(-logits, axis=1)[:, : self.n_expert_used]
        weights = np.zeros(logits.shape)
        np.put_along_axis(weights, best, softmax(np.take_along_axis(logits, best, axis=1)), axis=1)
        out = np.zeros(x.shape)
        for expert in range(logits.shape[1]):
            chosen = np.flatnonzero(weights[:, expert])
            out[chosen] += weights[chosen, expert, None] * self._dense(block, x[chosen], f"_exps.{expert}")
        return out

    # before the first layer and after the last

    def _embed(self, tokens: Any) -> Array:
        x = self._tensors["token_embd.weight"][np.asarray(tokens)].astype(np.float64)
        return x * (sqrt(self.n_embd) if self.arch.scale_embd else float(self._meta("embedding_scale", 1.0)))

    def _head(self, x: Array) -> Array:
        y = self._matmul(self._norm("output_norm", x), f"{'output' if self._has('output') else 'token_embd'}.weight")
        y = (y + self._tensors.get("output.bias", self.dtype.type(0))) / float(self._meta("logit_scale", 1.0))
        return self.logit_soft_cap * np.tanh(y / self.logit_soft_cap) if self.logit_soft_cap else y
