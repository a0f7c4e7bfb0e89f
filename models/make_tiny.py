"""Write tiny random GGUF models: one for each way in which an architecture differs where SelfExtend touches it.

    python models/make_tiny.py --out build/tiny              # all of them, 0.6 to 3 MB each
    python models/make_tiny.py --out build/tiny llama qwen3  # some

Weights are F32 and come from a seed, so a file is the same wherever it is made. They are scaled so that attention is
sharp and its output weighs as much as the residual stream: a wrong position changes the logits by far more than
rounding. The tokenizer is a real one (bytes and printable ASCII), so that the models also tokenize and generate.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import log, sqrt
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
    sharp: float = 1.6  # gain of q and of k: at 1.6 scores have a standard deviation of about 2.5
    tied: bool = False
    qkv_bias: bool = False
    fused_qkv: bool = False
    fused_gate: bool = False  # gate and up are one tensor
    qk_norm: bool = False
    whole_qk_norm: bool = False  # one norm over all heads together, as in OLMo 2
    layer_norm: bool = False
    parallel: bool = False  # no FFN norm: the FFN runs beside the attention
    pre_norms: bool = True
    post_norms: bool = False  # of what attention and FFN add to the residual stream
    ffn_norm: str = "ffn_norm"  # the name of its tensor
    gated: bool = True
    n_expert: int = 0
    n_expert_used: int = 0
    ffn_gain: float = 1.0  # of gate and up
    other_biases: bool = False  # of the attention output, the FFN and the router
    head_bias: bool = False
    sinks: bool = False  # attention sinks
    rope_freqs: bool = False  # frequency factors, as in Llama 3
    long_rope: bool = False  # frequency factors for short and for long contexts, and a magnitude
    yarn_factor: float = 0.0
    sections: tuple[int, ...] = ()  # of M-RoPE
    metadata: Mapping[str, Any] = field(default_factory=dict)  # other keys, without the architecture in front


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
                 gated=False, other_biases=True, head_bias=True),
    "gemma": Tiny("gemma", "one KV head, head size 64, q scaled after RoPE, scaled embeddings",
                  n_head_kv=1, head_size=64, n_rot=64, tied=True),
    "llama-linear": Tiny("llama", "positions scaled by 1/4", sharp=2.5,
                         metadata={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    "phi4-mini": Tiny("phi3", "LongRoPE on 24 of 32, q scaled after RoPE, fused qkv, fused gate",
                      n_rot=24, fused_qkv=True, fused_gate=True, long_rope=True),
    "glm4": Tiny("glm4", "NORM pairing, partial rotary (16 of 32), norms before and after, fused gate",
                 n_rot=16, sharp=2.0, qkv_bias=True, post_norms=True, fused_gate=True),
    "granite": Tiny("granite", "scores, embeddings, residual stream and logits scaled by numbers of the file",
                    metadata={"attention.scale": 0.25, "embedding_scale": 4.0, "residual_scale": 0.7,
                              "logit_scale": 1.5}),
    "hunyuan-dense": Tiny("hunyuan-dense", "QK-norm after RoPE", qk_norm=True),
    "smollm3": Tiny("smollm3", "every fourth layer without RoPE", n_layer=5, n_embd=64, tied=True),
    "smollm3-64": Tiny("smollm3", "every fourth layer without RoPE, head size 64",
                       n_layer=5, n_embd=64, head_size=64, n_rot=64, tied=True),
    "qwen3vl": Tiny("qwen3vl", "interleaved M-RoPE; llama.cpp leaves two pairs unrotated on text, as in the real one",
                    n_embd=64, qk_norm=True, sections=(8, 4, 4, 0)),
    "qwen3moe": Tiny("qwen3moe", "a mixture of experts",
                     n_embd=64, n_ff=64, qk_norm=True, n_expert=4, n_expert_used=2),
    "gemma2": Tiny("gemma2", "sliding window of 32 in every other layer, soft-caps of scores and logits",
                   n_layer=3, sharp=2.0, post_norms=True, tied=True,
                   metadata={"attention.sliding_window": 32, "attn_logit_softcapping": 8.0,
                             "final_logit_softcapping": 8.0}),
    "gemma3": Tiny("gemma3", "sliding window of 40 in two layers of three, with a RoPE base of its own, QK-norm",
                   n_layer=4, sharp=1.8, post_norms=True, tied=True, qk_norm=True, freq_base=100000.0,
                   metadata={"attention.sliding_window": 40, "attention.sliding_window_pattern": 3}),
    "gemma3-linear": Tiny("gemma3", "sliding window of 150, positions scaled by 1/4 in global layers only",
                          n_layer=4, sharp=2.0, post_norms=True, tied=True, qk_norm=True,
                          metadata={"attention.sliding_window": 150, "attention.sliding_window_pattern": 2,
                                    "rope.freq_base_swa": 1000.0, "rope.scaling.type": "linear",
                                    "rope.scaling.factor": 4.0}),
    "olmo3": Tiny("olmo2", "sliding window of 48 but in layer 1, which alone has YaRN; one QK-norm for all heads",
                  n_layer=3, pre_norms=False, post_norms=True, qk_norm=True, whole_qk_norm=True, yarn_factor=4.0,
                  metadata={"attention.sliding_window": 48, "attention.sliding_window_pattern": (True, False, True)}),
    "gpt-oss": Tiny("gpt-oss", "attention sinks, sliding window of 128 in every other layer, YaRN, experts, biases",
                    n_layer=4, n_ff=64, qkv_bias=True, other_biases=True, sinks=True, freq_base=150000.0,
                    yarn_factor=4.0, ffn_norm="post_attention_norm", n_expert=4, n_expert_used=2, ffn_gain=3.0,
                    metadata={"attention.sliding_window": 128}),
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

    def matrix(name: str, n_out: int, n_in: int, gain: float = 1.0, n: tuple[int, ...] = ()) -> None:
        """n of them, for inputs of unit variance: outputs of variance gain squared."""
        tensors[f"{name}.weight"] = rng.normal(0.0, gain / np.sqrt(n_in), (*n, n_out, n_in)).astype(np.float32)

    def norm(name: str, n: int, mean: float = 1.0, bias: bool | None = None) -> None:
        tensors[f"{name}.weight"] = rng.normal(mean, 0.1, n).astype(np.float32)
        if tiny.layer_norm if bias is None else bias:
            vector(f"{name}.bias", n, 0.1)

    def vector(name: str, shape: int | tuple[int, ...], std: float, mean: float = 0.0) -> None:
        tensors[name] = rng.normal(mean, std, shape).astype(np.float32)

    def fuse(parts: list[str], name: str) -> None:
        for suffix in ("weight", "bias"):
            if f"{parts[0]}.{suffix}" in tensors:
                tensors[f"{name}.{suffix}"] = np.concatenate([tensors.pop(f"{part}.{suffix}") for part in parts])

    n_q, n_kv = tiny.n_head * tiny.head_size, tiny.n_head_kv * tiny.head_size
    experts, ffn = ((tiny.n_expert,), "ffn_{}_exps") if tiny.n_expert else ((), "ffn_{}")
    # the model multiplies its embeddings by this: they have unit variance after it
    scale = sqrt(tiny.n_embd) if tiny.arch.startswith("gemma") else tiny.metadata.get("embedding_scale", 1.0)
    embd = np.sqrt(tiny.n_embd) / scale
    matrix("token_embd", n_vocab, tiny.n_embd, embd)
    for il in range(tiny.n_layer):
        block = f"blk.{il}"
        if tiny.pre_norms:
            norm(f"{block}.attn_norm", tiny.n_embd)
        for c, n, gain in (("q", n_q, tiny.sharp), ("k", n_kv, tiny.sharp), ("v", n_kv, 1.0)):
            matrix(f"{block}.attn_{c}", n, tiny.n_embd, 1.0 if tiny.qk_norm else gain)
            if tiny.qkv_bias:
                vector(f"{block}.attn_{c}.bias", n, 0.5)
            if tiny.qk_norm and c != "v":
                norm(f"{block}.attn_{c}_norm", n if tiny.whole_qk_norm else tiny.head_size, tiny.sharp, bias=False)
        matrix(f"{block}.attn_output", tiny.n_embd, n_q, 1.5)
        if tiny.pre_norms and not tiny.parallel:
            norm(f"{block}.{tiny.ffn_norm}", tiny.n_embd)
        gate, up, down = (f"{block}.{ffn.format(part)}" for part in ("gate", "up", "down"))
        if tiny.gated:
            matrix(gate, tiny.n_ff, tiny.n_embd, tiny.ffn_gain, experts)
        matrix(up, tiny.n_ff, tiny.n_embd, tiny.ffn_gain, experts)
        matrix(down, tiny.n_embd, tiny.n_ff, 1.0 / tiny.ffn_gain**2, experts)
        if tiny.other_biases:
            vector(f"{block}.attn_output.bias", tiny.n_embd, 0.1)
            if tiny.gated:
                vector(f"{gate}.bias", (*experts, tiny.n_ff), 0.1)
            vector(f"{up}.bias", (*experts, tiny.n_ff), 0.1)
            vector(f"{down}.bias", (*experts, tiny.n_embd), 0.1)
        if tiny.n_expert:
            matrix(f"{block}.ffn_gate_inp", tiny.n_expert, tiny.n_embd, 4.0)  # choices are clear: few are near a tie
            if tiny.other_biases:
                vector(f"{block}.ffn_gate_inp.bias", tiny.n_expert, 0.5)
        if tiny.post_norms:
            norm(f"{block}.post_attention_norm", tiny.n_embd, 2.0)
            norm(f"{block}.post_ffw_norm", tiny.n_embd, 0.2)
        if tiny.sinks:  # near the logarithm of the sum of exponentials over a window
            vector(f"{block}.attn_sinks.weight", tiny.n_head, 2.0, 7.0)
        if tiny.fused_qkv:
            fuse([f"{block}.attn_{c}" for c in "qkv"], f"{block}.attn_qkv")
        if tiny.fused_gate:
            fuse([gate, up], up)
    # a tied head meets the embedding of the token itself in the residual stream: keep that logit near the others
    norm("output_norm", tiny.n_embd, 1.2 / embd if tiny.tied and not tiny.post_norms else 3.0)
    if not tiny.tied:
        matrix("output", n_vocab, tiny.n_embd)
    if tiny.head_bias:
        vector("output.bias", n_vocab, 0.1)
    if tiny.rope_freqs:
        tensors["rope_freqs.weight"] = np.geomspace(1.0, 8.0, tiny.n_rot // 2).astype(np.float32)
    if tiny.long_rope:
        for name, largest in (("short", 1.5), ("long", 8.0)):
            factors = np.geomspace(1.0, largest, tiny.n_rot // 2)
            tensors[f"rope_factors_{name}.weight"] = factors.astype(np.float32)
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
    if tiny.long_rope:  # the long factors are for contexts of more than half the trained one
        n_short = n_ctx_train // 2
        w.add_rope_scaling_orig_ctx_len(n_short)
        w.add_rope_scaling_attn_factors(sqrt(1 + log(n_ctx_train / n_short) / log(n_short)))
    if tiny.sections:
        w.add_rope_dimension_sections(tiny.sections)
    if tiny.n_expert:
        w.add_expert_count(tiny.n_expert)
        w.add_expert_used_count(tiny.n_expert_used)
        w.add_expert_feed_forward_length(tiny.n_ff)
    add: dict[type, Callable[[str, Any], None]] = {
        int: w.add_uint32, float: w.add_float32, str: w.add_string, tuple: w.add_array
    }  # fmt: skip
    for key, value in tiny.metadata.items():
        add[type(value)](f"{tiny.arch}.{key}", value)

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
        epilog="models:\n" + "\n".join(f"  {name:15}{tiny.about}" for name, tiny in MODELS.items()),
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
