"""Write tiny random GGUF models: one for each way in which an architecture differs where SelfExtend touches it.

    python models/make_tiny.py --out build/tiny              # all of them, a few hundred kB each
    python models/make_tiny.py --out build/tiny llama qwen3  # some

Weights are F32 and come from a seed, so a file is the same wherever it is made. They are scaled so that attention is
sharp and its output weighs as much as the residual stream: a wrong position changes the logits by far more than
rounding. The tokenizer is a real one (bytes and printable ASCII), so that the models also tokenize and generate.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

N_CTX_TRAIN = 512  # above the largest neighbour window that the tests use


@dataclass(frozen=True)
class Tiny:
    arch: str
    about: str
    n_layer: int = 2
    n_embd: int = 128
    n_head: int = 4
    n_head_kv: int = 2
    head_size: int = 32  # a multiple of 32: a row of a quantized cache
    n_rot: int = 32
    n_ff: int = 192
    freq_base: float = 10000.0
    tied: bool = False
    qkv_bias: bool = False
    fused_qkv: bool = False
    qk_norm: bool = False
    layer_norm: bool = False
    parallel: bool = False  # no FFN norm: the FFN runs beside the attention
    gated: bool = True
    other_biases: bool = False  # of the attention output, the FFN and the head
    rope_freqs: bool = False  # frequency factors, as in Llama 3
    yarn_factor: float = 0.0
    sections: tuple[int, ...] = ()  # of M-RoPE


MODELS = {
    "llama": Tiny("llama", "NORM pairing, grouped-query, untied head"),
    "llama-mha": Tiny("llama", "NORM pairing, multi-head, tied head", n_layer=3, n_head_kv=4, tied=True),
    "llama-3": Tiny("llama", "NORM pairing, frequency factors, base 500000", rope_freqs=True, freq_base=500000.0),
    "llama-yarn": Tiny("llama", "NORM pairing, YaRN: frequencies by pair and a magnitude", yarn_factor=4.0),
    "llama-64": Tiny("llama", "NORM pairing, head size 64, three query heads per KV head",
                     n_embd=192, n_head=3, n_head_kv=1, head_size=64, n_rot=64, tied=True),
    "qwen2": Tiny("qwen2", "NEOX pairing, biases on q, k and v", qkv_bias=True, freq_base=1000000.0),
    "qwen2vl": Tiny("qwen2vl", "M-RoPE, here on text alone", qkv_bias=True, sections=(4, 6, 6, 0)),
    "qwen3": Tiny("qwen3", "NEOX pairing, QK-norm, heads wider than the embedding",
                  n_embd=64, qk_norm=True, tied=True, freq_base=1000000.0),
    "stablelm": Tiny("stablelm", "NEOX pairing, partial rotary (8 of 32), LayerNorm",
                     n_head_kv=4, n_rot=8, layer_norm=True, qkv_bias=True),
    "phi2": Tiny("phi2", "partial rotary (16 of 32), q scaled after RoPE, parallel FFN, biases, fused qkv",
                 n_head_kv=4, n_rot=16, layer_norm=True, qkv_bias=True, fused_qkv=True, parallel=True,
                 gated=False, other_biases=True),
    "gemma": Tiny("gemma", "one KV head, head size 64, q scaled after RoPE, scaled embeddings",
                  n_head_kv=1, head_size=64, n_rot=64, tied=True),
}  # fmt: skip

CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def vocabulary() -> list[tuple[str, float, int]]:
    """Text, score and type of each token of an SPM vocabulary with byte fallback."""
    kind = gguf.TokenType
    vocab = [("<unk>", 0.0, kind.UNKNOWN), ("<s>", 0.0, kind.CONTROL), ("</s>", 0.0, kind.CONTROL)]
    vocab += [(f"<0x{byte:02X}>", 0.0, kind.BYTE) for byte in range(256)]
    pieces = ["\u2581"] + [chr(c) for c in range(33, 127)] + ["th", "he", "\u2581t", "in", "an", "\u2581a"]
    vocab += [(piece, -1.0 - i, kind.NORMAL) for i, piece in enumerate(pieces)]
    return [(text, score, int(k)) for text, score, k in vocab]


def weights(tiny: Tiny, n_vocab: int, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a model by GGUF name, F32, matrices as [n_out, n_in]."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray[Any, Any]] = {}

    def matrix(name: str, n_out: int, n_in: int, gain: float = 1.0) -> None:
        """For inputs of unit variance: outputs of variance gain squared."""
        tensors[f"{name}.weight"] = rng.normal(0.0, gain / np.sqrt(n_in), (n_out, n_in)).astype(np.float32)

    def norm(name: str, n: int, mean: float = 1.0, bias: bool | None = None) -> None:
        tensors[f"{name}.weight"] = rng.normal(mean, 0.1, n).astype(np.float32)
        if tiny.layer_norm if bias is None else bias:
            vector(f"{name}.bias", n, 0.1)

    def vector(name: str, n: int, std: float) -> None:
        tensors[name] = rng.normal(0.0, std, n).astype(np.float32)

    n_q, n_kv = tiny.n_head * tiny.head_size, tiny.n_head_kv * tiny.head_size
    sharp = 1.6  # of q and of k: scores have a standard deviation of about 2.5
    embd = np.sqrt(tiny.n_embd) if tiny.arch != "gemma" else 1.0  # gemma scales its embeddings itself
    matrix("token_embd", n_vocab, tiny.n_embd, embd)
    for il in range(tiny.n_layer):
        block = f"blk.{il}"
        norm(f"{block}.attn_norm", tiny.n_embd)
        for c, n, gain in (("q", n_q, sharp), ("k", n_kv, sharp), ("v", n_kv, 1.0)):
            matrix(f"{block}.attn_{c}", n, tiny.n_embd, 1.0 if tiny.qk_norm else gain)
            if tiny.qkv_bias:
                vector(f"{block}.attn_{c}.bias", n, 0.5)
            if tiny.qk_norm and c != "v":
                norm(f"{block}.attn_{c}_norm", tiny.head_size, sharp, bias=False)
        matrix(f"{block}.attn_output", tiny.n_embd, n_q, 1.5)
        if not tiny.parallel:
            norm(f"{block}.ffn_norm", tiny.n_embd)
        if tiny.gated:
            matrix(f"{block}.ffn_gate", tiny.n_ff, tiny.n_embd)
        matrix(f"{block}.ffn_up", tiny.n_ff, tiny.n_embd)
        matrix(f"{block}.ffn_down", tiny.n_embd, tiny.n_ff)
        if tiny.other_biases:
            vector(f"{block}.attn_output.bias", tiny.n_embd, 0.1)
            vector(f"{block}.ffn_up.bias", tiny.n_ff, 0.1)
            vector(f"{block}.ffn_down.bias", tiny.n_embd, 0.1)
        if tiny.fused_qkv:
            for suffix in ("weight", "bias"):
                parts = [tensors.pop(f"{block}.attn_{c}.{suffix}") for c in "qkv"]
                tensors[f"{block}.attn_qkv.{suffix}"] = np.concatenate(parts)
    # a tied head meets the embedding of the token itself in the residual stream: keep that logit near the others
    norm("output_norm", tiny.n_embd, 1.2 / embd if tiny.tied else 3.0)
    if not tiny.tied:
        matrix("output", n_vocab, tiny.n_embd)
    if tiny.other_biases:
        vector("output.bias", n_vocab, 0.1)
    if tiny.rope_freqs:
        tensors["rope_freqs.weight"] = np.geomspace(1.0, 8.0, tiny.n_rot // 2).astype(np.float32)
    return tensors


def make(path: Path, name: str, n_ctx_train: int = N_CTX_TRAIN) -> Path:
    """Write the model MODELS[name] to path."""
    tiny, vocab = MODELS[name], vocabulary()
    w = gguf.GGUFWriter(path, tiny.arch)
    w.add_name(f"tiny-{name}")
    w.add_context_length(n_ctx_train)
    w.add_embedding_length(tiny.n_embd)
    w.add_block_count(tiny.n_layer)
    w.add_feed_forward_length(tiny.n_ff)
    w.add_head_count(tiny.n_head)
    w.add_head_count_kv(tiny.n_head_kv)
    w.add_key_length(tiny.head_size)
    w.add_value_length(tiny.head_size)
    w.add_rope_dimension_count(tiny.n_rot)
    w.add_rope_freq_base(tiny.freq_base)
    if tiny.layer_norm:
        w.add_layer_norm_eps(1e-5)
        w.add_parallel_residual(tiny.parallel)
    else:
        w.add_layer_norm_rms_eps(1e-5)
    if tiny.yarn_factor:
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(tiny.yarn_factor)
        w.add_rope_scaling_orig_ctx_len(n_ctx_train // int(tiny.yarn_factor))
    if tiny.sections:
        w.add_rope_dimension_sections(tiny.sections)

    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list([text for text, _, _ in vocab])
    w.add_token_scores([score for _, score, _ in vocab])
    w.add_token_types([kind for _, _, kind in vocab])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    w.add_add_bos_token(True)
    w.add_add_eos_token(False)
    w.add_chat_template(CHAT_TEMPLATE)

    for tensor_name, tensor in weights(tiny, len(vocab), seed=zlib.crc32(name.encode())).items():
        w.add_tensor(tensor_name, tensor)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def make_all(out: Path, names: Iterable[str] = MODELS, n_ctx_train: int = N_CTX_TRAIN) -> dict[str, Path]:
    """Write the named models to the folder out, as tiny-NAME.gguf. Returns their paths by name."""
    out.mkdir(parents=True, exist_ok=True)
    return {name: make(out / f"tiny-{name}.gguf", name, n_ctx_train) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="models:\n" + "\n".join(f"  {name:12}{tiny.about}" for name, tiny in MODELS.items()),
    )
    parser.add_argument("names", nargs="*", metavar="MODEL", help="which models to write; all if none is named")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--n-ctx-train", type=int, default=N_CTX_TRAIN, help="trained context (%(default)s)")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in MODELS]
    if unknown:
        parser.error(f"no model is called {', '.join(unknown)}; there are {', '.join(MODELS)}")
    for path in make_all(args.out, args.names or MODELS, args.n_ctx_train).values():
        print(path)


if __name__ == "__main__":
    main()
