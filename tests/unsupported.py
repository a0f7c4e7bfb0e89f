"""Writes tiny GGUF models of architectures that SelfExtend refuses: zero weights, no vocabulary.

They can be loaded, but not evaluated; llama.cpp aborts when it is to tokenize without a vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

N_EMBD, N_HEAD, N_FF, N_VOCAB, N_CTX_TRAIN = 32, 2, 32, 32, 64
HEAD = N_EMBD // N_HEAD
N_INNER, N_STATE, N_CONV, N_RANK = 2 * N_EMBD, 4, 4, 2  # of a Mamba layer
N_LORA_Q, N_LORA_KV, N_ROT = 8, 16, 8  # of multi-head latent attention

Shapes = dict[str, tuple[int, ...]]  # as in llama.cpp: the fastest-running dimension first


def affine(**shapes: tuple[int, ...]) -> Shapes:
    """Weights with a bias for each; a bias is as long as its weight's last dimension."""
    weights = {f"{name}.weight": shape for name, shape in shapes.items()}
    return weights | {f"{name}.bias": shape[-1:] for name, shape in shapes.items()}


def weights(**shapes: tuple[int, ...]) -> Shapes:
    return {f"{name}.weight": shape for name, shape in shapes.items()}


FFN = weights(ffn_norm=(N_EMBD,), ffn_gate=(N_EMBD, N_FF), ffn_up=(N_EMBD, N_FF), ffn_down=(N_FF, N_EMBD))
QKV = weights(attn_q=(N_EMBD, N_EMBD), attn_k=(N_EMBD, N_EMBD), attn_v=(N_EMBD, N_EMBD), attn_output=(N_EMBD, N_EMBD))
MAMBA = (
    weights(attn_norm=(N_EMBD,), ssm_in=(N_EMBD, 2 * N_INNER), ssm_x=(N_INNER, N_RANK + 2 * N_STATE))
    | affine(ssm_conv1d=(N_CONV, N_INNER), ssm_dt=(N_RANK, N_INNER))
    | weights(ssm_out=(N_INNER, N_EMBD))
    | {"ssm_a": (N_STATE, N_INNER), "ssm_d": (N_INNER,)}
)
GPT = affine(
    attn_norm=(N_EMBD,),
    attn_qkv=(N_EMBD, 3 * N_EMBD),
    attn_output=(N_EMBD, N_EMBD),
    ffn_norm=(N_EMBD,),
    ffn_up=(N_EMBD, N_FF),
    ffn_down=(N_FF, N_EMBD),
)

GEMMA = (
    QKV
    | FFN
    | weights(attn_norm=(N_EMBD,), attn_q_norm=(HEAD,), attn_k_norm=(HEAD,))
    | weights(post_attention_norm=(N_EMBD,), post_ffw_norm=(N_EMBD,))
)

#: By architecture: the tensors of each layer.
LAYERS: dict[str, list[Shapes]] = {
    "gemma3": [GEMMA],
    "gemma4": [GEMMA] * 4,
    "cohere2": [QKV | {name: FFN[name] for name in FFN if "norm" not in name} | weights(attn_norm=(N_EMBD,))] * 4,
    "gpt2": [GPT],
    "bloom": [GPT],
    "mamba": [MAMBA],
    "jamba": [
        MAMBA | FFN | weights(ssm_dt_norm=(N_RANK,), ssm_b_norm=(N_STATE,), ssm_c_norm=(N_STATE,)),
        QKV | FFN | weights(attn_norm=(N_EMBD,)),
    ],
    "deepseek2": [
        FFN
        | weights(attn_norm=(N_EMBD,), attn_q_a_norm=(N_LORA_Q,), attn_kv_a_norm=(N_LORA_KV,))
        | weights(attn_q_a=(N_EMBD, N_LORA_Q), attn_q_b=(N_LORA_Q, N_HEAD * HEAD), attn_output=(N_HEAD * HEAD, N_EMBD))
        | weights(attn_kv_a_mqa=(N_EMBD, N_LORA_KV + N_ROT))
        | weights(attn_k_b=(HEAD - N_ROT, N_LORA_KV, N_HEAD), attn_v_b=(N_LORA_KV, HEAD, N_HEAD))
    ],
}

#: Words of the message that say why.
REASONS = {
    "gemma3": "all of its layers have a window of their own",
    "gemma4": "layer 2 attends with the keys of another layer",
    "cohere2": "layers without a window of their own do not use RoPE",
    "gpt2": "does not use RoPE",
    "bloom": "ALiBi",
    "mamba": "recurrent",
    "jamba": "recurrent",
    "deepseek2": "MLA",
}


def metadata(arch: str) -> Iterable[tuple[str, Any]]:
    """Keys of one architecture, without its name in front."""
    if arch in ("gemma3", "gemma4", "cohere2"):
        yield "attention.sliding_window", 16
    if arch == "gemma4":
        yield "attention.sliding_window_pattern", [True, False, True, False]
        yield "attention.shared_kv_layers", 2
        yield "attention.key_length_swa", HEAD
        yield "attention.value_length_swa", HEAD
        yield "embedding_length_per_layer_input", 0
        yield "final_logit_softcapping", 30.0
    if arch == "cohere2":
        yield "logit_scale", 1.0
    if arch in ("mamba", "jamba"):
        yield "ssm.conv_kernel", N_CONV
        yield "ssm.inner_size", N_INNER
        yield "ssm.state_size", N_STATE
        yield "ssm.time_step_rank", N_RANK
    if arch == "deepseek2":
        yield "leading_dense_block_count", 1
        yield "attention.q_lora_rank", N_LORA_Q
        yield "attention.kv_lora_rank", N_LORA_KV
        yield "attention.key_length", N_LORA_KV + N_ROT
        yield "attention.value_length", N_LORA_KV
        yield "attention.key_length_mla", HEAD
        yield "attention.value_length_mla", HEAD
        yield "rope.dimension_count", N_ROT
        yield "expert_feed_forward_length", N_FF
        yield "expert_shared_count", 1


def make(path: Path, arch: str, vocabulary: list[tuple[str, float, int]] | None = None) -> Path:
    """Write the model to path. With a vocabulary, as that of the tiny models, it can be asked."""
    n_vocab = N_VOCAB if vocabulary is None else len(vocabulary)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(N_CTX_TRAIN)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(len(LAYERS[arch]))
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    n_head_kv: dict[str, int | list[int]] = {"jamba": [0, N_HEAD], "deepseek2": 1}
    writer.add_head_count_kv(n_head_kv.get(arch, N_HEAD))
    writer.add_layer_norm_eps(1e-5)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(n_vocab)
    writer.add_tokenizer_model("no_vocab" if vocabulary is None else "llama")
    if vocabulary is not None:
        writer.add_token_list([text for text, _, _ in vocabulary])
        writer.add_token_scores([score for _, score, _ in vocabulary])
        writer.add_token_types([kind for _, _, kind in vocabulary])
    for key, value in metadata(arch):
        add = {float: writer.add_float32, list: writer.add_array}.get(type(value), writer.add_uint32)
        add(f"{arch}.{key}", value)

    tensors = weights(token_embd=(N_EMBD, n_vocab)) | affine(output_norm=(N_EMBD,))
    if arch == "gpt2":
        tensors |= weights(position_embd=(N_EMBD, N_CTX_TRAIN))
    if arch == "gemma4":
        tensors |= weights(rope_freqs=(HEAD // 2,))
    if arch == "bloom":
        tensors |= affine(token_embd_norm=(N_EMBD,))
    if arch not in ("gpt2", "bloom"):
        del tensors["output_norm.bias"]
    for layer, shapes in enumerate(LAYERS[arch]):
        tensors |= {f"blk.{layer}.{name}": shape for name, shape in shapes.items()}
    for name, shape in tensors.items():
        writer.add_tensor(name, np.zeros(shape[::-1], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
