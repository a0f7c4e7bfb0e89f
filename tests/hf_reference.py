"""SelfExtend in transformers: a second reference, whose models, GGUF loader, masks and RoPE nobody here wrote.

Only the attention is ours: it gets queries and keys that the model has rotated, turns them on into the far frame with
the frequencies of the model's own rotary embedding, and puts near and far scores through one softmax.

    python tests/hf_reference.py --tokens tokens.npy --pairs '[[1, 0], [4, 64]]' --out DIR X.gguf ...

Writes DIR/X-0.npy, DIR/X-1.npy, ...: the logits of each pair, [n_tokens, n_vocab], float64. A pair with ga_n = 1 is
the model with the attention of transformers, untouched. Prints a line of JSON for each file: the layers that were
extended by each pair, or why transformers does not take the file. Needs torch, transformers, accelerate and gguf, of
which the package needs only the last, and so runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGUFReader
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM, masking_utils
from transformers import modeling_gguf_pytorch_utils as gguf_loader

NAME = "self_extend"  # of the attention, among those of transformers
DTYPE = torch.float64  # of weights and activations; transformers computes norms and angles in float32 all the same
INTERLEAVED = {"glm4"}  # architectures that pair (2i, 2i + 1) in transformers too; the others pair (i, i + n_rot/2)


class SelfExtend:
    """The attention of one pair, as a function that transformers calls for each layer."""

    def __init__(self, ga_n: int, ga_w: int, rotary: torch.nn.Module, interleaved: bool) -> None:
        self.ga_n, self.ga_w = ga_n, ga_w
        self.rotary, self.interleaved = rotary, interleaved
        self.layers: set[int] = set()  # that it extended: those without a window of their own

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,  # [1, n_head, n_tokens, head_size], rotated at positions 0..
        key: torch.Tensor,  # [1, n_head_kv, n_tokens, head_size], likewise
        value: torch.Tensor,
        attention_mask: torch.Tensor,  # [1, 1, n_tokens, n_tokens], 0 where a query sees a key
        scaling: float,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,  # [n_head]: the logit of each head's sink
        sliding_window: int | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        query, key, value = query.double(), key.double(), value.double()
        n_head, n_tokens = query.shape[1:3]
        key, value = (x.repeat_interleave(n_head // x.shape[1], dim=1) for x in (key, value))
        scores = query @ key.transpose(2, 3)
        if sliding_window is None:
            self.layers.add(int(module.layer_idx))
            if getattr(module, "use_rope", True):
                p = torch.arange(n_tokens)
                far_query = self.rotate(query, p // self.ga_n + self.ga_w - self.ga_w // self.ga_n - p)
                far_key = self.rotate(key, p // self.ga_n - p)
                near = p[:, None] - p[None, :] < self.ga_w
                scores = torch.where(near, scores, far_query @ far_key.transpose(2, 3))
        scores = scores * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(attention_mask != 0, -torch.inf)
        if s_aux is not None:
            sinks = s_aux.double().reshape(1, n_head, 1, 1).expand(1, n_head, n_tokens, 1)
            scores = torch.cat([scores, sinks], dim=3)
        mixed = scores.softmax(dim=3)[..., :n_tokens] @ value
        return mixed.transpose(1, 2).to(DTYPE), None  # [1, n_tokens, n_head, head_size]

    def rotate(self, x: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        """Turn x [..., n_tokens, head_size] on by delta [n_tokens] positions, with magnitude 1 even under YaRN."""
        # radians per position of each pair, [n_rot/2]; read here because LongRoPE sets them when the model is called
        layers = "full_attention_" if hasattr(self.rotary, "full_attention_inv_freq") else ""
        inv_freq = getattr(self.rotary, f"{layers}inv_freq").double()
        angle, n_rot = delta[:, None] * inv_freq, 2 * len(inv_freq)
        turned, pairs = x.clone(), x[..., :n_rot].unflatten(-1, (-1, 2) if self.interleaved else (2, -1))
        axis = -1 if self.interleaved else -2
        first, second = pairs.unbind(axis)
        parts = [first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()]
        turned[..., :n_rot] = torch.stack(parts, axis).flatten(-2)
        return turned


#: Settings that the loader leaves out, or takes from the metadata of some architectures only.
SETTINGS = {
    "attention.key_length": "head_dim",
    "attention.scale": "attention_multiplier",
    "attention.sliding_window": "sliding_window",
    "attention.sliding_window_pattern": "sliding_window_pattern",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "embedding_scale": "embedding_multiplier",
    "expert_feed_forward_length": "moe_intermediate_size",
    "final_logit_softcapping": "final_logit_softcapping",
    "logit_scale": "logits_scaling",
    "residual_scale": "residual_multiplier",
    "rope.dimension_count": None,  # where the loader takes it, then as a head's size
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
}

#: Architectures that are called the same on both sides, so that the loader only has to be told of them, each with one
#: whose tensors it knows and llama.cpp stores in the same way.
SAME_NAMES = {"gemma": "gemma2", "glm4": "qwen2", "granite": "llama", "smollm3": "llama"}


class UnscaledReader(GGUFReader):
    """A file without its RoPE scaling, over which the loader stumbles in gpt-oss and which it ignores elsewhere."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        for key in [key for key in self.fields if ".rope.scaling." in key]:
            del self.fields[key]


def extend_loader() -> None:
    """Add to the loader's own tables what they lack."""
    for arch, like in SAME_NAMES.items():
        gguf_loader.GGUF_SUPPORTED_ARCHITECTURES.append(arch)
        gguf_loader.GGUF_CONFIG_MAPPING[arch] = dict(gguf_loader.GGUF_CONFIG_MAPPING[like])
        if like in gguf_loader.TENSOR_PROCESSORS:
            gguf_loader.TENSOR_PROCESSORS[arch] = gguf_loader.TENSOR_PROCESSORS[like]
    for table in gguf_loader.GGUF_CONFIG_MAPPING.values():
        table.update(SETTINGS)
    gguf.GGUFReader = UnscaledReader  # type: ignore[assignment, misc]


class Model:
    """A GGUF file as a model of transformers. Raises ValueError if the loader does not take the file."""

    def __init__(self, path: Path) -> None:
        reader = GGUFReader(path)
        self.arch = str(reader.fields["general.architecture"].contents())
        self.metadata = {key.removeprefix(f"{self.arch}."): field.contents() for key, field in reader.fields.items()}
        self.tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        self.complete(config)
        self.model, report = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            config=config,
            dtype=DTYPE,
            attn_implementation="eager",
            experts_implementation="eager",  # the only one in float64
            output_loading_info=True,
        )
        filled = self.fill_gpt_oss() if self.arch == "gpt-oss" else set()
        if wrong := {kind: sorted(set(names) - filled) for kind, names in report.items() if set(names) - filled}:
            raise RuntimeError(f"{path.name} was not loaded whole: {wrong}")
        self.model.eval()
        self.rotary = self.model.model.rotary_emb
        if "rope_freqs.weight" in self.tensors:
            self.rotary.inv_freq /= self.tensors["rope_freqs.weight"]

    def complete(self, config: Any) -> None:
        """Set what the loader leaves out, and a table cannot say."""
        config.pad_token_id = None
        head_size = self.metadata["attention.key_length"]
        if hasattr(config, "query_pre_attn_scalar"):
            config.query_pre_attn_scalar = head_size  # not in the file: llama.cpp tells the one exception, 27B, by size
        rope = config.rope_parameters
        rope = rope.get("full_attention", rope)
        rope["partial_rotary_factor"] = self.metadata["rope.dimension_count"] / head_size
        if kind := self.metadata.get("rope.scaling.type"):
            rope["rope_type"], rope["factor"] = kind, self.metadata["rope.scaling.factor"]
        if n_ctx := self.metadata.get("rope.scaling.original_context_length"):
            rope["original_max_position_embeddings"] = config.original_max_position_embeddings = n_ctx
        rope["truncate"] = True  # llama.cpp rounds the ends of YaRN's ramp to whole pairs, gpt-oss's own code does not
        if "rope_factors_long.weight" in self.tensors:
            rope["rope_type"] = "longrope"
            for length in ("short", "long"):
                rope[f"{length}_factor"] = self.tensors[f"rope_factors_{length}.weight"].tolist()

    def fill_gpt_oss(self) -> set[str]:
        """Fill in the sinks and the experts, which the loader does not find. Returns the names of the parameters."""
        names = set()
        for il, layer in enumerate(self.model.model.layers):
            block = {name.removeprefix(f"blk.{il}."): tensor for name, tensor in self.tensors.items()}
            gate, up, down = (block[f"ffn_{part}_exps.weight"].mT for part in ("gate", "up", "down"))
            gate_bias, up_bias, down_bias = (block[f"ffn_{part}_exps.bias"] for part in ("gate", "up", "down"))
            values = {
                "self_attn.sinks": block["attn_sinks.weight"],
                "mlp.experts.gate_up_proj": torch.stack([gate, up], dim=-1).flatten(-2),  # columns take turns
                "mlp.experts.gate_up_proj_bias": torch.stack([gate_bias, up_bias], dim=-1).flatten(-2),
                "mlp.experts.down_proj": down,
                "mlp.experts.down_proj_bias": down_bias,
            }
            for name, value in values.items():
                layer.get_parameter(name).copy_(value)
                names.add(f"model.layers.{il}.{name}")
        return names

    def logits(self, tokens: torch.Tensor, ga_n: int, ga_w: int) -> tuple[torch.Tensor, list[int]]:
        """Logits at every position, [n_tokens, n_vocab], and the layers that were extended."""
        attention = SelfExtend(ga_n, ga_w, self.rotary, self.arch in INTERLEAVED)
        AttentionInterface.register(NAME, attention)
        self.model.set_attn_implementation("eager" if ga_n == 1 else NAME)
        return self.model(tokens[None], use_cache=False).logits[0], sorted(attention.layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", metavar="GGUF")
    parser.add_argument("--tokens", type=Path, required=True, metavar="NPY")
    parser.add_argument("--pairs", type=json.loads, required=True, metavar="JSON", help="a list of [ga_n, ga_w]")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()

    torch.set_grad_enabled(False)
    torch.set_num_threads(1)  # models so small take four times as long with two
    AttentionMaskInterface.register(NAME, masking_utils.eager_mask)  # the masks are the models' own
    extend_loader()
    tokens = torch.from_numpy(np.load(args.tokens)).long()
    for path in args.models:
        result: dict[str, Any] = {"layers": [], "refused": ""}
        try:
            model = Model(path)
        except ValueError as error:
            result["refused"] = str(error)
        else:
            for i, (ga_n, ga_w) in enumerate(args.pairs):
                logits, layers = model.logits(tokens, ga_n, ga_w)
                np.save(args.out / f"{path.stem}-{i}.npy", logits.numpy())
                result["layers"].append(layers)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
