"""What a GGUF file says about its model, as llama.cpp will understand it. Nothing is loaded."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from . import architectures, gguf_file, model_checks
from .gguf_file import Scalar, Tensor, shown
from .metadata import N_HEAD_MAX, Keys

__all__ = ["Layer", "ModelInfo", "Rope", "model_info"]

N_LAYER_MAX = 512  # LLAMA_MAX_LAYERS
FREQ_BASE = 10000.0  # where the file names none
SCALING_TYPES = ("none", "linear", "yarn", "longrope")
BLOCK = re.compile(r"blk\.(\d{1,4})\.")  # a layer's tensors


@dataclass(frozen=True)
class Layer:
    """One layer's attention."""

    n_head: int
    """Query heads."""

    n_head_kv: int
    """Heads of keys and values."""

    n_embd_head_k: int
    """Size of a head of keys, and of queries."""

    n_embd_head_v: int
    """Size of a head of values."""

    window: int
    """The layer's own sliding window in tokens; 0: it sees all tokens, and SelfExtend extends it."""

    has_rope: bool
    """Whether it turns queries and keys by their positions."""

    has_cache: bool
    """Whether it keeps keys and values; False: it attends with those of another layer."""


@dataclass(frozen=True)
class Rope:
    """Rotary positions as the file declares them."""

    freq_base: float
    """The base of the frequencies."""

    freq_base_swa: float | None
    """That of layers with a sliding window, where the file names one."""

    n_rot: int
    """How many dimensions of a head are turned; 0: none."""

    scaling: str
    """none, linear, yarn or longrope."""

    factor: float
    """Of the scaling; 1 where the file names none."""

    n_ctx_orig: int | None
    """The context before the scaling in tokens, where the file names one."""

    has_freq_factors: bool
    """Whether the file holds a factor for each frequency, as Llama 3 and LongRoPE do."""

    has_sections: bool
    """Whether images have positions in several dimensions (M-RoPE)."""


@dataclass(frozen=True)
class ModelInfo:
    """A model by its file's metadata."""

    path: Path
    """The file; of a split model, the first."""

    parts: tuple[Path, ...]
    """All files."""

    architecture: str
    """llama.cpp's name."""

    name: str | None
    """What the file calls the model."""

    quantization: str
    """The type of file, such as Q4_K_M."""

    tensor_types: Mapping[str, int]
    """How many tensors have each type, the most frequent first."""

    n_params: int
    """Number of parameters."""

    bytes_weights: int
    """Size of the weights in bytes."""

    bytes_input: int
    """Those of them that stand before the layers, the embeddings for one."""

    bytes_blocks: tuple[int, ...]
    """Those of each layer, as the file counts layers."""

    bytes_output: int
    """Those of the output layer. Without a matrix of its own it has a copy of the embeddings."""

    n_ctx_train: int
    """The trained context in tokens."""

    n_embd: int
    """Size of an embedding."""

    n_vocab: int
    """Tokens in the vocabulary; 0: unknown."""

    has_tokenizer: bool
    """Whether it can be asked."""

    n_ff: int
    """Size of the widest row that a layer's feed-forward network computes for a token, experts in use together."""

    rope: Rope

    has_learned_positions: bool
    """Whether each position has weights of its own, so that there are none beyond the trained context."""

    layers: tuple[Layer, ...]
    """In order; without layers for the prediction of several tokens, which are not loaded."""

    has_plain_cache: bool
    """Whether llama.cpp gives it one of the caches whose size is known from the layers."""

    refused: str | None
    """Why SelfExtend refuses it, in the engine's words, as far as metadata tell. None: nothing speaks against it."""

    @property
    def extended(self) -> tuple[Layer, ...]:
        """The layers that SelfExtend extends: those that see all tokens."""
        return tuple(layer for layer in self.layers if not layer.window and layer.has_cache)

    @property
    def windowed(self) -> tuple[Layer, ...]:
        """The layers that have a sliding window of their own."""
        return tuple(layer for layer in self.layers if layer.window)


def model_info(path: str | os.PathLike[str], overrides: Mapping[str, Scalar] | None = None) -> ModelInfo:
    """Read what a file says about its model.

    Args:
        path: the file; of a split model, the first.
        overrides: metadata in the place of the file's, by whole keys, as llama.cpp's ``kv_overrides``.

    Raises:
        ModelFileError: the file cannot be read (see ``gguf_file.read``), is not a language model, or its metadata are
            not such that llama.cpp can load it and evaluate a token.
    """
    file = gguf_file.read(path)
    file = replace(file, metadata={**file.metadata, **(overrides or {})})
    keys = Keys(file)
    arch = keys.architecture
    n_block = keys.integer("block_count", 1, N_LAYER_MAX)
    n_ctx_train = keys.integer("context_length", 1)
    n_embd = keys.integer("embedding_length", 1)
    layers = _layers(keys, n_block, n_embd)
    rope = _rope(keys, layers, {tensor.name for tensor in file.tensors})
    model_checks.epsilons(keys)
    has_tokenizer = model_checks.vocabulary(keys)
    embeddings = next((tensor.shape for tensor in file.tensors if tensor.name == "token_embd.weight"), ())
    types = Counter(tensor.type for tensor in file.tensors)
    name = file.metadata.get("general.name")
    return ModelInfo(
        path=file.path,
        parts=file.parts,
        architecture=arch,
        name=name if isinstance(name, str) else None,
        quantization=file.quantization,
        tensor_types=dict(types.most_common()),
        n_params=file.n_elements,
        bytes_weights=file.n_bytes,
        bytes_input=sum(tensor.n_bytes for tensor in file.tensors if not tensor.name.startswith(("blk.", "output"))),
        bytes_blocks=_bytes_blocks(file.tensors, n_block),
        bytes_output=_bytes_output(file.tensors),
        n_ctx_train=n_ctx_train,
        n_embd=n_embd,
        n_vocab=embeddings[1] if len(embeddings) == 2 else 0,
        has_tokenizer=has_tokenizer,
        n_ff=_n_ff(keys, n_block),
        rope=rope,
        has_learned_positions=any(tensor.name == "position_embd.weight" for tensor in file.tensors),
        layers=layers,
        has_plain_cache=not (
            arch in architectures.RECURRENT | architectures.HYBRID | architectures.NO_CACHE | architectures.OTHER_CACHE
            or arch not in architectures.KNOWN
            or arch in ("t5", "t5encoder", "gemma4-assistant")
            or _is_mla(keys)
        ),
        refused=_refused(keys, layers),
    )


def _layers(keys: Keys, n_block: int, n_embd: int) -> tuple[Layer, ...]:
    arch = keys.architecture
    n_head = keys.per_layer("attention.head_count", n_block, 0 if arch in architectures.RECURRENT else None)
    n_head_kv = keys.per_layer("attention.head_count_kv", n_block, n_head)
    if not any(n_head) and arch not in architectures.RECURRENT | architectures.HYBRID:
        raise keys.problem(f"it has no attention: {keys.full('attention.head_count')} is 0")
    size = n_embd // n_head[0] if n_head[0] else 0
    k = keys.integer("attention.key_length", 0, N_HEAD_MAX, size)
    v = keys.integer("attention.value_length", 0, N_HEAD_MAX, size)
    k_swa = keys.integer("attention.key_length_swa", 0, N_HEAD_MAX, k)
    v_swa = keys.integer("attention.value_length_swa", 0, N_HEAD_MAX, v)

    n_layer = n_block - keys.integer("nextn_predict_layers", 0, n_block - 1, 0)
    windows = _windows(keys, n_layer)
    n_cached = n_layer
    if arch == "gemma3n":
        n_cached = 20
    elif arch == "gemma4":
        n_cached = n_block - keys.integer("attention.shared_kv_layers", 0, n_block, 0)
    layers = [
        Layer(
            n_head=n_head[i],
            n_head_kv=n_head_kv[i],
            n_embd_head_k=k_swa if windows[i] else k,
            n_embd_head_v=v_swa if windows[i] else v,
            window=windows[i],
            has_rope=_has_rope(keys, i, windows),
            has_cache=i < n_cached,
        )
        for i in range(n_layer)
    ]
    if arch == "nanbeige":  # goes through its layers several times, with keys for each time
        layers *= keys.integer("num_loops", 1, N_LAYER_MAX // n_layer, 1)
    if arch == "graniteswitch":  # one more, of one head, chooses the adapter of a token
        layers.append(Layer(1, 1, k, v, window=0, has_rope=False, has_cache=True))
    return tuple(layers)


def _n_ff(keys: Keys, n_block: int) -> int:
    n_used = max(1, *keys.per_layer("expert_used_count", n_block, 1))
    return max(
        (
            tensor.shape[1] * (n_used if len(tensor.shape) > 2 else 1)
            for tensor in keys.file.tensors
            if BLOCK.match(tensor.name) and ".ffn" in tensor.name and len(tensor.shape) > 1
        ),
        default=0,
    )


def _bytes_blocks(tensors: Sequence[Tensor], n_block: int) -> tuple[int, ...]:
    n_bytes = [0] * n_block
    for tensor in tensors:
        found = BLOCK.match(tensor.name)
        if found and int(found[1]) < n_block:
            n_bytes[int(found[1])] += tensor.n_bytes
    return tuple(n_bytes)


def _bytes_output(tensors: Sequence[Tensor]) -> int:
    names = {tensor.name for tensor in tensors}
    return sum(
        tensor.n_bytes
        for tensor in tensors
        if tensor.name.startswith("output") or (tensor.name == "token_embd.weight" and "output.weight" not in names)
    )


def _windows(keys: Keys, n_layer: int) -> list[int]:
    """The sliding window of each layer in tokens, 0 for none (``load_swa_pattern``)."""
    known = architectures.WINDOWS.get(keys.architecture)
    if known is None or known.n_layer not in (0, n_layer):
        return [0] * n_layer
    size = keys.integer("attention.sliding_window", 0, default=None if known.required else known.default)
    if size == 0:
        return [0] * n_layer
    size = known.fixed or size

    key = "attention.sliding_window_pattern"
    pattern = keys.get(key)
    if isinstance(pattern, tuple):
        has = [bool(value) for value in pattern[:n_layer]]
        has += [False] * (n_layer - len(has))
    elif known.every == 0:
        raise keys.problem(f"{keys.full(key)} is {shown(pattern)}; it must be an array with a value for each layer")
    else:
        every = keys.integer(key, 0, default=known.every)  # 0: all layers have one
        without = 0 if known.first else every - 1
        has = [every == 0 or i % every != without for i in range(n_layer)]
    if not any(has):
        raise keys.problem(f"{keys.full(key)} gives no layer the sliding window that the file names")
    return [size if yes else 0 for yes in has]


def _has_rope(keys: Keys, i: int, windows: list[int]) -> bool:
    """Whether layer ``i`` turns its keys, as the graphs of the architectures have it."""
    arch, has_windows = keys.architecture, any(windows)
    if arch in architectures.NO_ROPE or arch == "starcoder":
        return False
    if arch in architectures.ROPE_IN_WINDOWS_ONLY:
        return bool(windows[i]) or not has_windows
    if arch == "baichuan":  # by the size of the model, of which the layers tell
        return len(windows) == 32
    if arch == "cohere2moe":
        return bool(windows[i]) or i < keys.integer("leading_dense_block_count", 0, default=0)
    if arch in ("afmoe", "smollm3") or (arch == "llama4" and has_windows):
        return (i + 1) % 4 != 0
    if arch == "smallthinker":
        return i % 4 != 0 or not has_windows
    if arch in ("granite", "graniteswitch"):
        return bool(keys.value("rope.scaling.finetuned", bool, True))
    if arch == "granite_swa":
        pattern = keys.get("attention.rope_pattern")
        return not isinstance(pattern, tuple) or i >= len(pattern) or bool(pattern[i])
    return True


def _is_mla(keys: Keys) -> bool:
    return all(keys.integer(f"attention.{name}_length_mla", 0, default=0) for name in ("key", "value"))


def _rope(keys: Keys, layers: tuple[Layer, ...], tensors: set[str]) -> Rope:
    factor = keys.positive("rope.scaling.factor", keys.positive("rope.scale_linear", 1.0))
    scaling = keys.value("rope.scaling.type", str, "none" if factor == 1.0 else "linear")
    if scaling not in SCALING_TYPES:
        allowed = ", ".join(SCALING_TYPES)
        raise keys.problem(f"{keys.full('rope.scaling.type')} is {shown(scaling)}; it must be one of {allowed}")
    n_ctx_orig = keys.integer("rope.scaling.original_context_length", 0, default=0)
    has_base_swa = keys.get("rope.freq_base_swa") is not None
    factors = {"rope_freqs.weight", "rope_factors_long.weight"}
    return Rope(
        freq_base=keys.positive("rope.freq_base", FREQ_BASE),
        freq_base_swa=keys.positive("rope.freq_base_swa", FREQ_BASE) if has_base_swa else None,
        n_rot=model_checks.n_rot(keys, layers) if any(layer.has_rope for layer in layers) else 0,
        scaling=scaling,
        factor=factor,
        n_ctx_orig=n_ctx_orig or None,
        has_freq_factors=any(name in factors or name.endswith(".rope_freqs.weight") for name in tensors),
        has_sections=keys.get("rope.dimension_sections") is not None,
    )


def _refused(keys: Keys, layers: tuple[Layer, ...]) -> str | None:
    """The engine's answer: of ``check_memory`` in llama-self-extend.cpp, in its order, of the cache, of the graph."""
    arch = keys.architecture
    if arch not in architectures.KNOWN:
        return f"architecture '{arch}' is not known to this version of llama.cpp"
    no, yet = f"architecture '{arch}' is not supported: ", f"architecture '{arch}' is not supported yet: "
    is_alibi = arch in architectures.ALIBI or (arch == "baichuan" and len(layers) == 40)
    if arch in ("mpt", "jais"):
        is_alibi = keys.value("attention.max_alibi_bias", float, 0.0) > 0
    extended = [layer for layer in layers if not layer.window and layer.has_cache]

    if arch in architectures.RECURRENT:
        return no + "it is recurrent and has no KV cache to extend"
    if arch in architectures.HYBRID:
        return yet + "it mixes attention with recurrent layers"
    if _is_mla(keys):
        return yet + "it uses multi-head latent attention (MLA)"
    if is_alibi:
        return no + "it encodes positions with ALiBi, not with RoPE"
    if arch in architectures.NO_ROPE:
        return no + "it does not use RoPE"
    for i, layer in enumerate(layers):
        if not layer.has_cache:
            return yet + f"layer {i} attends with the keys of another layer"
    if arch == "grok":
        return yet + "it scales its attention scores in its own way"
    if arch in architectures.DRAFT:
        return no + "draft models fill the KV cache in their own way"
    if arch in architectures.NO_CACHE | architectures.OTHER_CACHE:
        return yet + "it does not use one of the plain KV caches"
    if not extended:
        return no + "all of its layers have a window of their own"
    if not any(layer.has_rope for layer in extended):
        return no + "its layers without a window of their own do not use RoPE"
    return None
