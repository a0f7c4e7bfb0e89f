"""What the pinned llama.cpp makes of an architecture where the metadata of a file do not say: tables, and nothing else.

From ``llama-arch.cpp``, ``llama_model_rope_type``, ``llama_model::create_memory`` and the ``load_arch_hparams`` of each
model; a test reads them from that source and compares.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "ALIBI",
    "DRAFT",
    "HYBRID",
    "KNOWN",
    "NO_CACHE",
    "NO_ROPE",
    "OTHER_CACHE",
    "RECURRENT",
    "ROPE_IN_WINDOWS_ONLY",
    "WINDOWS",
    "Windows",
]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Every architecture that it loads.
KNOWN = _names(
    """
    clip llama llama4 deci falcon grok gpt2 gptneox mpt baichuan starcoder refact bert modern-bert nomic-bert
    nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert bloom stablelm qwen qwen2 qwen2moe qwen2vl qwen3
    qwen3moe qwen3next qwen3vl qwen3vlmoe qwen35 qwen35moe qwen4exp phi2 phi3 phimoe plamo plamo2 plamo3 codeshell
    orion internlm2 minicpm minicpm3 gemma gemma2 gemma3 gemma3n gemma4 gemma4-assistant gemma-embedding starcoder2
    mamba mamba2 maple jamba falcon-h1 xverse command-r cohere2 cohere2moe dbrx olmo olmo2 olmoe muse-glimmer
    openelm arctic deepseek deepseek2 deepseek2-ocr deepseek32 deepseek4 chatglm glm4 glm4moe glm-dsa bitnet t5
    t5encoder jais jais2 nemotron nemotron_h nemotron_h_moe exaone exaone4 exaone-moe rwkv6 rwkv6qwen2 rwkv7 arwkv7
    granite granitemoe granitehybrid graniteswitch granite_swa chameleon wavtokenizer-dec plm bailingmoe bailingmoe2
    bailingmoe3 dots1 dots3note arcee afmoe laguna ernie4_5 ernie4_5-moe hunyuan-moe hunyuan-dense hunyuan_vl hy_v3
    hy_v4 smollm3 gpt-oss lfm2 lfm2moe dream smallthinker llada llada-moe seed_oss grovemoe apertus minimax-01
    hrm_text minimax-m2 minimax-m3 cogvlm rnd1 pangu-embedded mistral3 eagle3 dflash mistral4 paddleocr mimo2 step35
    spark2_5 llama-embed maincoder kimi-linear kimi-k3 glm5-next talkie mellum nanbeige qwen3tts pockettts
    """
)

RECURRENT = _names("mamba mamba2 rwkv6 rwkv6qwen2 rwkv7 arwkv7")

#: Attention and recurrent layers.
HYBRID = _names(
    """
    jamba falcon-h1 plamo2 granitehybrid lfm2 lfm2moe nemotron_h nemotron_h_moe qwen3next kimi-linear bailingmoe3
    kimi-k3 glm5-next qwen35 qwen35moe qwen4exp deepseek4 minimax-01
    """
)

#: Positions by a bias of the scores, whatever the metadata say; in others by ``attention.max_alibi_bias``.
ALIBI = _names("bloom refact jina-bert-v2")

NO_ROPE = _names(
    """
    clip gpt2 gptj mpt refact bloom mamba mamba2 jamba jina-bert-v2 t5 t5encoder jais rwkv6 rwkv6qwen2 rwkv7 arwkv7
    wavtokenizer-dec nemotron_h nemotron_h_moe kimi-linear kimi-k3 glm5-next
    """
)

#: Encoders and diffusion models: they keep no keys.
NO_CACHE = _names(
    """
    bert jina-bert-v2 jina-bert-v3 nomic-bert nomic-bert-moe neo-bert eurobert wavtokenizer-dec modern-bert
    gemma-embedding dream llada llada-moe rnd1
    """
)

#: Attention that looks up which keys to see: the cache holds an index besides.
OTHER_CACHE = _names("minimax-m3 glm-dsa deepseek32 hy_v4 dots3note")

DRAFT = _names("dflash eagle3")

#: All dimensions of a head are turned, or llama.cpp refuses the model.
WHOLE_ROPE = _names("llama deci falcon llama-embed")

#: With windows: layers without one have no RoPE.
ROPE_IN_WINDOWS_ONLY = _names("cohere2 exaone-moe exaone4 muse-glimmer")


@dataclass(frozen=True)
class Windows:
    """Which layers of an architecture have a sliding window, if the file names a size for it."""

    every: int
    """One layer of so many has none, unless the file says otherwise. 0: the file has to say."""

    first: bool = False
    """It is the first of them, otherwise the last."""

    required: bool = False
    """The file has to name the size."""

    default: int = 0
    """Size where the file names none; 0: then there are no windows."""

    fixed: int = 0
    """Size whatever the file says, if it has windows."""

    n_layer: int = 0
    """Windows in models of so many layers only; 0: in all."""


WINDOWS = {
    "afmoe": Windows(4),
    "cohere2": Windows(4, required=True),
    "cohere2moe": Windows(4, first=True, required=True),
    "exaone-moe": Windows(4, required=True),
    "exaone4": Windows(4, default=4096, n_layer=64),
    "gemma-embedding": Windows(6, required=True),
    "gemma2": Windows(2, default=4096),
    "gemma3": Windows(6),
    "gemma3n": Windows(5, required=True),
    "gemma4": Windows(0, required=True),
    "gemma4-assistant": Windows(0, required=True),
    "gpt-oss": Windows(2, required=True),
    "granite_swa": Windows(0, required=True),
    "laguna": Windows(4, first=True),
    "llama4": Windows(4, default=8192, fixed=8192),
    "maple": Windows(0, required=True),
    "mellum": Windows(4),
    "mimo2": Windows(0, required=True),
    "modern-bert": Windows(3, first=True),
    "muse-glimmer": Windows(4, required=True),
    "olmo2": Windows(4),
    "plamo3": Windows(8),
    "smallthinker": Windows(4, first=True, fixed=4096),
    "spark2_5": Windows(0, required=True),
    "step35": Windows(0, required=True),
}
