"""Writes more tiny GGUF models with zero weights: what metadata say about their layers takes some reading.

Like those of ``unsupported`` they can be loaded, but not evaluated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from unsupported import FFN, HEAD, N_CTX_TRAIN, N_EMBD, N_FF, N_HEAD, N_VOCAB, QKV, Shapes, affine, weights

NORM = weights(attn_norm=(N_EMBD,))


def attention(n_head_kv: int, n_head: int = N_HEAD) -> Shapes:
    """Grouped-query attention of one layer."""
    return weights(
        attn_q=(N_EMBD, n_head * HEAD),
        attn_k=(N_EMBD, n_head_kv * HEAD),
        attn_v=(N_EMBD, n_head_kv * HEAD),
        attn_output=(n_head * HEAD, N_EMBD),
    )


STARCODER = affine(
    attn_norm=(N_EMBD,),
    attn_qkv=(N_EMBD, 3 * N_EMBD),
    attn_output=(N_EMBD, N_EMBD),
    ffn_norm=(N_EMBD,),
    ffn_up=(N_EMBD, N_FF),
    ffn_down=(N_FF, N_EMBD),
)
EXAONE = (
    QKV
    | {name: FFN[name] for name in FFN if "norm" not in name}
    | weights(attn_q_norm=(HEAD,), attn_k_norm=(HEAD,), post_attention_norm=(N_EMBD,), post_ffw_norm=(N_EMBD,))
)

#: By name: architecture, the tensors of each layer, keys without the architecture in front.
MODELS: dict[str, tuple[str, list[Shapes], dict[str, Any]]] = {
    "heads of each layer": (
        "deci",
        [attention(n_head_kv, n_head) | FFN | NORM for n_head_kv, n_head in ((2, 2), (1, 2), (4, 4))],
        {"attention.head_count": [2, 2, 4], "attention.head_count_kv": [2, 1, 4]},
    ),
    "layers without attention": (
        "deci",
        [attention(2) | FFN | NORM, NORM | weights(attn_output=(N_EMBD, N_EMBD)) | FFN, attention(1) | FFN | NORM],
        {"attention.head_count": [2, 2, 2], "attention.head_count_kv": [2, 0, 1]},
    ),
    "layers used twice": ("nanbeige", [QKV | FFN | NORM] * 2, {"num_loops": 2}),
    "windows by the number of layers": ("exaone4", [EXAONE] * 64, {"attention.sliding_window": 16}),
    "no windows by the number of layers": ("exaone4", [EXAONE] * 2, {"attention.sliding_window": 16}),
    "ALiBi by the number of layers": ("baichuan", [QKV | FFN | NORM] * 40, {}),
    "RoPE by the number of layers": ("baichuan", [QKV | FFN | NORM] * 32, {}),
    "no RoPE by the number of layers": ("baichuan", [QKV | FFN | NORM] * 2, {}),
    "learned positions": ("starcoder", [STARCODER], {}),
    "a window that is not used": (
        "phi3",
        [weights(attn_qkv=(N_EMBD, 3 * N_EMBD), attn_output=(N_EMBD, N_EMBD), ffn_norm=(N_EMBD,),
                 ffn_up=(N_EMBD, 2 * N_FF), ffn_down=(N_FF, N_EMBD)) | NORM],
        {"attention.sliding_window": 16},
    ),
}  # fmt: skip


def make(path: Path, name: str) -> Path:
    """Write the model MODELS[name] to path."""
    return write(path, *MODELS[name])


def write(path: Path, arch: str, layers: list[Shapes], keys: dict[str, Any]) -> Path:
    """Write a model of these layers to path. keys: without the architecture in front."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(N_CTX_TRAIN)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(len(layers))
    writer.add_feed_forward_length(N_FF)
    if "attention.head_count" not in keys:
        writer.add_head_count(N_HEAD)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_eps(1e-5)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(N_VOCAB)
    writer.add_tokenizer_model("no_vocab")
    for key, value in keys.items():
        add = {float: writer.add_float32, list: writer.add_array}.get(type(value), writer.add_uint32)
        add(f"{arch}.{key}", value)

    tensors = weights(token_embd=(N_EMBD, N_VOCAB), output_norm=(N_EMBD,))
    if arch != "cohere2":  # whose head is always that of the embeddings
        tensors |= weights(output=(N_EMBD, N_VOCAB))
    if arch == "starcoder":
        tensors |= weights(position_embd=(N_EMBD, N_CTX_TRAIN)) | {"output_norm.bias": (N_EMBD,)}
    for layer, shapes in enumerate(layers):
        tensors |= {f"blk.{layer}.{tensor}": shape for tensor, shape in shapes.items()}
    for tensor, shape in tensors.items():
        writer.add_tensor(tensor, np.zeros(shape[::-1], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
