"""Writes a tiny GGUF model whose positions are learned, as in GPT-2: there are 512 of them, and no more."""

from __future__ import annotations

from pathlib import Path

import architectures
import gguf
import numpy as np

N_POS, N_EMBD, N_FF, N_LAYER = 512, 64, 128, 2


def make(path: Path) -> Path:
    """Write the model to path."""
    vocabulary = architectures.make_tiny().vocabulary()
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(N_POS)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _, _ in vocabulary])
    writer.add_token_scores([score for _, score, _ in vocabulary])
    writer.add_token_types([kind for _, _, kind in vocabulary])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(vocabulary), N_EMBD),
        "position_embd.weight": (N_POS, N_EMBD),
        "output.weight": (len(vocabulary), N_EMBD),
        **affine("output_norm", N_EMBD),
    }
    for il in range(N_LAYER):
        for name, shape in {
            "attn_norm": (N_EMBD,),
            "attn_qkv": (3 * N_EMBD, N_EMBD),
            "attn_output": (N_EMBD, N_EMBD),
            "ffn_norm": (N_EMBD,),
            "ffn_up": (N_FF, N_EMBD),
            "ffn_down": (N_EMBD, N_FF),
        }.items():
            shapes |= affine(f"blk.{il}.{name}", *shape)
    rng = np.random.default_rng(1)
    for name, shape in shapes.items():
        writer.add_tensor(name, (rng.standard_normal(shape) * 0.1).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def affine(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    """A weight and its bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
