"""What a file says about its model: refusals in the engine's words, tables against llama.cpp's source."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import more_models
import numpy as np
import pytest
import unsupported
from test_abi import source  # noqa: F401
from test_gguf_file import write
from test_plan import engine

from pyselfextend import architectures, gguf_file
from pyselfextend.errors import ModelFileError, SettingError
from pyselfextend.model_info import model_info
from pyselfextend.plan import make_plan

#
# what the engine refuses
#


def answer(path: Path) -> str | None:
    """What the engine says to a context with SelfExtend; None: it makes one."""
    try:
        engine(path, n_ctx=64, ga_n=2, ga_w=8).close()
    except SettingError as error:
        return str(error)
    return None


@pytest.mark.parametrize("arch", unsupported.LAYERS)
def test_refused_in_the_engines_words(tmp_path: Path, arch: str) -> None:
    path = unsupported.make(tmp_path / "model.gguf", arch)
    plan = make_plan(path)
    assert plan.model.refused == plan.why == answer(path)
    assert plan.model.refused is not None
    assert arch in plan.model.refused
    assert (plan.recommended, plan.asked, plan.pairs, plan.pair) == (None, None, (), None)
    assert plan.n_tokens == unsupported.N_CTX_TRAIN
    assert bool(plan.memory) == (arch not in ("mamba", "jamba", "deepseek2"))


def test_not_refused(tiny_models: dict[str, Path]) -> None:
    for path in tiny_models.values():
        assert model_info(path).refused is None
        assert answer(path) is None


@pytest.mark.parametrize("name", more_models.MODELS)
def test_more_answers(tmp_path: Path, name: str) -> None:
    path = more_models.make(tmp_path / "model.gguf", name)
    assert model_info(path).refused == answer(path)


def test_an_architecture_that_llama_cpp_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(unsupported.make(path, "gpt2").read_bytes().replace(b"gpt2", b"gpt9"))
    plan = make_plan(path)
    assert plan.model.refused == "architecture 'gpt9' is not known to this version of llama.cpp"
    assert plan.memory == ()
    with pytest.raises(ValueError, match="unknown model architecture: 'gpt9'"):
        engine(path)


#
# what is read from the file
#


def test_what_a_model_says_of_itself(tiny_models: dict[str, Path]) -> None:
    info = model_info(tiny_models["gemma3-linear"])
    assert (info.architecture, info.name, info.quantization) == ("gemma3", "tiny-gemma3-linear", "mostly F32")
    assert [layer.window for layer in info.layers] == [150, 0, 150, 0]
    assert (info.rope.freq_base, info.rope.freq_base_swa) == (10000.0, 1000.0)
    assert (info.rope.scaling, info.rope.factor, info.rope.n_rot) == ("linear", 4.0, 32)
    yarn = model_info(tiny_models["llama-yarn"]).rope
    assert (yarn.scaling, yarn.factor, yarn.n_ctx_orig) == ("yarn", 4.0, 128)
    assert model_info(tiny_models["llama-3"]).rope.has_freq_factors
    assert model_info(tiny_models["phi4-mini"]).rope.has_freq_factors
    assert not yarn.has_freq_factors
    assert [layer.has_rope for layer in model_info(tiny_models["smollm3"]).layers] == [True, True, True, False, True]
    assert [layer.window for layer in model_info(tiny_models["olmo3"]).layers] == [48, 0, 48]
    assert (info.n_params, info.bytes_weights) == (info.bytes_weights // 4, info.n_params * 4)


WHOLE = {"context_length": 64, "block_count": 1, "attention.head_count": 4}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "is not a language model: it has no llama.context_length"),
        ({"general.type": "adapter"}, "not a language model: it is of type 'adapter' and has no llama.context_length"),
        (WHOLE | {"context_length": 0}, "llama.context_length is 0; it must be an integer from 1 to 2147483647"),
        (WHOLE | {"context_length": 2**31}, "llama.context_length is 2147483648; it must be an integer"),
        (WHOLE | {"context_length": 1.5}, "llama.context_length is 1.5; it must be an integer"),
        (WHOLE | {"block_count": 513}, "llama.block_count is 513; it must be an integer from 1 to 512"),
        (WHOLE | {"attention.head_count": 0}, "it has no attention: llama.attention.head_count is 0"),
        (WHOLE | {"attention.head_count": [4, 4]}, "llama.attention.head_count has 2 values, the model 1 layers"),
        (
            {"context_length": 64, "block_count": 1},
            "it has no llama.attention.head_count, which its architecture needs",
        ),
        (
            WHOLE | {"rope.scaling.type": "dynamic"},
            "llama.rope.scaling.type is 'dynamic'; it must be one of none, linear, yarn, longrope",
        ),
        (WHOLE | {"rope.freq_base": float("nan")}, "llama.rope.freq_base is nan; it must be a positive number"),
        (
            WHOLE | {"nextn_predict_layers": 1},
            "llama.nextn_predict_layers is 1; it must be an integer from 0 to 0",
        ),
    ],
)
def test_metadata_that_are_not_those_of_a_model(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_embedding_length(32)
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
    for key, value in keys.items():
        add[type(value)](key if key.startswith("general.") else f"llama.{key}", value)
    writer.add_tensor("t", np.zeros(8, dtype=np.float32))
    write(writer)
    with pytest.raises(ModelFileError) as caught:
        make_plan(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


#
# tables, against the source that the library was built from
#


class Source:
    """Facts of llama.cpp's source, by the names that files use for architectures."""

    def __init__(self, folder: Path) -> None:
        self.arch = (folder / "src/llama-arch.cpp").read_text()
        self.model = (folder / "src/llama-model.cpp").read_text()
        self.names = dict(re.findall(r"\{ (LLM_ARCH_\w+), +\"([^\"]+)\"", self.arch))
        del self.names["LLM_ARCH_UNKNOWN"]
        # each model's load_arch_hparams, by the class that llama_model_mapping names
        self.hparams = {}
        for file in (folder / "src/models").glob("*.cpp"):
            for name, body in re.findall(
                r"^void llama_model_(\w+)::load_arch_hparams\(.*?\) \{\n(.*?)^\}",
                file.read_text(),
                re.DOTALL | re.MULTILINE,
            ):
                self.hparams[name] = re.sub(r"//[^\n]*", "", body)
        self.classes = dict(re.findall(r"case (LLM_ARCH_\w+):\s+return new llama_model_(\w+)\(params\);", self.model))

    def function(self, text: str, head: str) -> str:
        """The body of a function that begins with a line."""
        found = re.search(rf"^{re.escape(head)}[^\n]*\{{\n(.*?)^\}}", text, re.DOTALL | re.MULTILINE)
        assert found is not None, head
        return found[1]

    def cases(self, body: str, end: str) -> frozenset[str]:
        """The architectures of the first cases of a switch, before its first ``end``."""
        return frozenset(self.names[case] for case in re.findall(r"case (LLM_ARCH_\w+):", body.partition(end)[0]))

    def classes_with(self, pattern: str) -> dict[str, re.Match[str]]:
        """The architectures whose hyperparameters match."""
        found = {}
        for case, name in self.names.items():
            match = re.search(pattern, self.hparams.get(self.classes.get(case, ""), ""))
            if match is not None:
                found[name] = match
        return found


@pytest.fixture(scope="module")
def llama_cpp(source: Path) -> Source:  # noqa: F811
    return Source(source)


def test_known_architectures(llama_cpp: Source) -> None:
    assert frozenset(llama_cpp.names[case] for case in llama_cpp.classes) == architectures.KNOWN
    assert set(llama_cpp.names) - set(llama_cpp.classes) == {"LLM_ARCH_GPTJ"}  # has a name and no more
    assert len(llama_cpp.hparams) > 100


def test_architectures_without_attention(llama_cpp: Source) -> None:
    for name, table in (("recurrent", architectures.RECURRENT), ("hybrid", architectures.HYBRID)):
        body = llama_cpp.function(llama_cpp.arch, f"bool llm_arch_is_{name}(const llm_arch & arch)")
        assert llama_cpp.cases(body, "return true") == table


def test_architectures_without_rope(llama_cpp: Source) -> None:
    body = llama_cpp.function(llama_cpp.model, "llama_rope_type llama_model_rope_type(const llama_model * model)")
    assert llama_cpp.cases(body, "return LLAMA_ROPE_TYPE_NONE") == architectures.NO_ROPE
    always = llama_cpp.classes_with(r"^ {4}hparams\.f_max_alibi_bias = 8\.0f;|\n {4}hparams\.f_max_alibi_bias = 8\.0f;")
    assert frozenset(always) == architectures.ALIBI
    assert set(llama_cpp.classes_with(r"LLM_KV_ATTENTION_MAX_ALIBI_BIAS")) == {"mpt", "jais"}
    assert set(llama_cpp.classes_with(r"\n {8}hparams\.f_max_alibi_bias = 8\.0f;")) == {"baichuan"}


def test_architectures_with_other_caches(llama_cpp: Source) -> None:
    body = llama_cpp.function(llama_cpp.model, "llama_memory_i * llama_model::create_memory(")
    assert llama_cpp.cases(body, "res = nullptr") == architectures.NO_CACHE
    special = llama_cpp.cases(body, "default:") - architectures.NO_CACHE
    assert special - architectures.HYBRID - architectures.DRAFT == architectures.OTHER_CACHE


def test_architectures_with_windows(llama_cpp: Source) -> None:
    """Which layers have one, where a file does not say."""
    with_windows = llama_cpp.classes_with(r"swa_type\s*= LLAMA_SWA_TYPE_(STANDARD|CHUNKED|SYMMETRIC)")
    assert set(with_windows) - architectures.HYBRID - architectures.DRAFT - {"dots3note"} == set(architectures.WINDOWS)
    patterns = llama_cpp.classes_with(r"load_swa_pattern\(ml, (\d+)(?:, (?:/\*dense_first=\*/)?(true|false))?\)")
    required = llama_cpp.classes_with(r"get_key\(LLM_KV_ATTENTION_SLIDING_WINDOW, *hparams\.n_swa\)")
    arrays = llama_cpp.classes_with(r"get_arr\(LLM_KV_ATTENTION_SLIDING_WINDOW_PATTERN, hparams\.is_swa_impl\)")
    for name, windows in architectures.WINDOWS.items():
        assert windows.required == (name in required), name
        assert (windows.every == 0) == (name in arrays), name
        if windows.every:
            assert (windows.every, windows.first) == (int(patterns[name][1]), patterns[name][2] == "true"), name
    fixed = {name: match[1] for name, match in llama_cpp.classes_with(r"hparams\.n_swa\s*= ([1-9]\d*);").items()}
    assert fixed == {"exaone-moe": "128", "exaone4": "4096", "gemma2": "4096", "llama4": "8192", "smallthinker": "4096"}


def test_patterns_of_windows(llama_cpp: Source, tmp_path: Path) -> None:
    """A pattern of the file goes before the architecture's, as a number or for each layer."""
    for pattern, expected in (
        (None, [16, 16, 16, 0]),
        (2, [16, 0, 16, 0]),
        ([True, False, False, True], [16, 0, 0, 16]),
    ):
        path = tmp_path / "model.gguf"
        keys: dict[str, Any] = {"attention.sliding_window": 16}
        if pattern is not None:
            keys["attention.sliding_window_pattern"] = pattern
        more_models.write(path, "cohere2", [unsupported.LAYERS["cohere2"][0]] * 4, {**keys, "logit_scale": 1.0})
        assert [layer.window for layer in model_info(path).layers] == expected
        assert model_info(path).refused == answer(path)
    more_models.write(path, "cohere2", [unsupported.LAYERS["cohere2"][0]] * 4, {**keys, "logit_scale": 1.0,
                      "attention.sliding_window_pattern": 1})  # fmt: skip
    with pytest.raises(ModelFileError, match="gives no layer the sliding window that the file names"):
        model_info(path)


def test_size_of_the_feed_forward_network(tiny_models: dict[str, Path]) -> None:
    """The widest matrix: of one for both gates, of the experts that a token uses."""
    for name, n_ff in (("llama", 192), ("phi4-mini", 2 * 192), ("qwen3moe", 2 * 64)):
        assert model_info(tiny_models[name]).n_ff == n_ff


def test_weights_by_their_place(tiny_models: dict[str, Path], smollm2: Path) -> None:
    """All of them lie before the layers, in a layer, or in the output layer; shared embeddings in two places."""
    for path in (*tiny_models.values(), smollm2):
        file, model = gguf_file.read(path), model_info(path)
        sizes = {tensor.name: tensor.n_bytes for tensor in file.tensors}
        assert len(model.bytes_blocks) == len(model.layers)
        shared = 0 if "output.weight" in sizes else sizes["token_embd.weight"]
        assert model.bytes_output == sizes.get("output.weight", 0) + sizes["output_norm.weight"] + shared + (
            sizes.get("output_norm.bias", 0) + sizes.get("output.bias", 0)
        )
        assert model.bytes_input + sum(model.bytes_blocks) + model.bytes_output - shared == model.bytes_weights
        assert model.bytes_blocks[1] == sum(size for name, size in sizes.items() if name.startswith("blk.1."))
