"""Model files, chat templates and LoRA adapters that cannot be used: the reason, and no harm to the process."""

from __future__ import annotations

import inspect
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_worker
import pytest

from pyselfextend import Llama, ModelFileError, SelfExtendError
from pyselfextend.model_info import model_info

OPTIONS: dict[str, Any] = {"n_ctx": 128, "n_threads": 1, "n_threads_batch": 1, "verbose": False}

Change = Callable[[bytes], bytes]


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def number(key: str, value: float, form: str = "<I") -> Change:
    """Put a number in the place of a key's."""

    def change(data: bytes) -> bytes:
        begin, end = fuzz_worker.Header(data).keys[key]
        at = begin + 8 + len(key) + 4
        assert end - at == struct.calcsize(form)
        return data[:at] + struct.pack(form, value) + data[end:]

    return change


def put(old: bytes, new: bytes) -> Change:
    """Put bytes in the place of as many that are there once."""

    def change(data: bytes) -> bytes:
        assert data.count(old) == 1, data.count(old)
        assert len(old) == len(new)
        return data.replace(old, new)

    return change


SIZE = "it must be even, from 2 to 32, the size of a head"

#: The model, what is done to its file, and what is said. The library alone ends the process at many of them.
READ: dict[str, tuple[str, Change, str]] = {
    "no layers": (
        "llama",
        number("llama.block_count", 0),
        "llama.block_count is 0; it must be an integer from 1 to 512",
    ),
    "many layers": ("llama", number("llama.block_count", 2**31), "llama.block_count is 2147483648; it must be"),
    "two equal tokens": ("llama", put(text("b"), text("a")), "its vocabulary has the token 'a' twice"),
    "two equal tokens, BPE": ("llama-bpe", put(text("he"), text("th")), "its vocabulary has the token 'th' twice"),
    "no tokens": ("llama", put(b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz"), "it has no tokens: .* is None"),
    "no tokenizer": (
        "llama",
        put(b"tokenizer.ggml.model", b"tokenizer.ggml.modem"),
        "does not name the model of its tok",
    ),
    "no rotation": ("qwen2", number("qwen2.rope.dimension_count", 0), f"qwen2.rope.dimension_count is 0; {SIZE}"),
    "an odd rotation": ("qwen2", number("qwen2.rope.dimension_count", 31), f"is 31; {SIZE}"),
    "more rotated than there is": ("qwen2", number("qwen2.rope.dimension_count", 34), f"is 34; {SIZE}"),
    "not the whole head": ("llama", number("llama.rope.dimension_count", 16), "is 16, its heads have 32 dimensions"),
    "a negative epsilon": (
        "llama",
        number("llama.attention.layer_norm_rms_epsilon", -1e-5, "<f"),
        "layer_norm_rms_epsilon is -9.99.*; it must be a number that is not negative",
    ),
    "an epsilon that is none": (
        "stablelm-bpe",
        number("stablelm.attention.layer_norm_epsilon", float("nan"), "<f"),
        "layer_norm_epsilon is nan; it must be",
    ),
    "a name that is not UTF-8": ("llama", put(b"tiny-llama", b"tiny-\xffllam"), "'general.name' is not UTF-8"),
    "an end in the header": ("llama", lambda data: data[:2000], "ends in its header, at byte 2000"),
    "an end in the weights": ("llama", lambda data: data[:-1000], "is truncated"),
    "nothing": ("llama", lambda data: b"", "is empty"),
    "something else": ("llama", lambda data: b"PK" + data, "is not a GGUF file"),
}

#: The same, where the reason is llama.cpp's.
LOADED: dict[str, tuple[str, Change, str]] = {
    "a tensor is missing": (
        "llama",
        put(b"blk.1.attn_q.weight", b"blk.1.attn_x.weight"),
        "cannot be loaded: tensor 'blk.1.attn_q.weight' not found$",
    ),
    "an assertion": (
        "qwen3moe-bpe",
        number("qwen3moe.expert_count", 2**31),
        r"cannot be loaded: llama-model.cpp:\d+: GGML_ASSERT\(hparams.n_expert <= LLAMA_MAX_EXPERTS\) failed$",
    ),
    "an end token that is not UTF-8": (
        "llama",
        put(text("</s>"), struct.pack("<Q", 4) + b"\xff/s>"),
        r"is damaged: a text in it is not UTF-8: b'\\xff/s>'$",
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path]) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    fuzz_worker.make_models(folder)
    return {**tiny_models, **{name: folder / f"{name}.gguf" for name in fuzz_worker.MODELS}}


def changed(models: dict[str, Path], folder: Path, name: str) -> Path:
    model, change, _ = (READ | LOADED)[name]
    path = folder / "changed.gguf"
    path.write_bytes(change(models[model].read_bytes()))
    return path


def opened(path: Path, **options: Any) -> str:
    """What comes of a model: its tokens are evaluated if it opens."""
    try:
        with Llama(str(path), **{**OPTIONS, **options}) as llm:
            llm.eval([1, 5, 7])
            return "opened"
    except SelfExtendError as error:
        return f"{type(error).__name__}: {error}"


def in_a_process(*paths: Path) -> list[list[str]]:
    """For each file what comes of it in a process that opens one after the other, plain and extended."""
    code = f"""
import json, pathlib, test_model_file as t
for path in {[str(path) for path in paths]!r}:
    print(json.dumps([t.opened(pathlib.Path(path), ga_n=ga_n) for ga_n in (1, 4)]), flush=True)
"""
    here = Path(inspect.getfile(opened)).parent
    child = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, timeout=60)
    assert child.returncode == 0, f"after {child.stdout}: {child.stderr[-2000:]}"
    return [json.loads(line) for line in child.stdout.splitlines()]


@pytest.mark.parametrize("name", READ | LOADED)
def test_files_that_cannot_be_loaded(
    models: dict[str, Path], tmp_path: Path, name: str, record_property: Callable[[str, object], None]
) -> None:
    path = changed(models, tmp_path, name)
    (plain, extended), whole = in_a_process(path, models["llama"])
    assert plain == extended
    assert whole == ["opened"] * 2  # the process goes on
    message = plain.removeprefix("ModelFileError: ")
    assert message != plain
    assert message.startswith(str(path))
    assert "\n" not in message
    with pytest.raises(ModelFileError, match=(READ | LOADED)[name][2]):
        raise ModelFileError(message)
    if name in READ:  # as plan says it
        with pytest.raises(ModelFileError) as caught:
            model_info(path)
        assert str(caught.value) == message


def test_what_is_no_file(tmp_path: Path, models: dict[str, Path]) -> None:
    """A FIFO that nobody writes to would be waited for without end."""
    os.mkfifo(tmp_path / "fifo.gguf")
    (tmp_path / "folder.gguf").mkdir()
    names = {"fifo.gguf": "is not a regular file", "folder.gguf": "is a directory", "none.gguf": "there is no file"}
    results = in_a_process(*(tmp_path / name for name in names))
    for (plain, extended), message in zip(results, names.values(), strict=True):
        assert plain == extended
        assert plain.startswith("ModelFileError: ")
        assert message in plain


def test_overrides_are_what_counts(models: dict[str, Path], tmp_path: Path) -> None:
    path = changed(models, tmp_path, "not the whole head")
    assert opened(path, kv_overrides={"llama.rope.dimension_count": 32}) == "opened"
    assert "llama.block_count is 0; it must be" in opened(models["llama"], kv_overrides={"llama.block_count": 0})


def test_a_vocabulary_alone(models: dict[str, Path], tmp_path: Path) -> None:
    data = models["llama"].read_bytes()
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(data[:8] + bytes(8) + data[16 : fuzz_worker.Header(data).end_of_keys])
    with Llama(str(path), vocab_only=True, **OPTIONS) as llm:
        assert llm.detokenize(llm.tokenize(b"Hello")).strip() == b"Hello"
    assert "holds no tensors" in opened(path)


def test_threads_are_told_their_own_reason(models: dict[str, Path], tmp_path: Path) -> None:
    """Through the low-level functions, as llama_cpp's class redirects the output of the whole process."""
    from pyselfextend import _native

    library = _native.load()
    import llama_cpp

    reasons = {"a tensor is missing": "'blk.1.attn_q.weight' not found", "an assertion": "GGML_ASSERT", "whole": ""}
    paths = {}
    for name in reasons:
        (tmp_path / name).mkdir()
        paths[name] = models["llama"] if name == "whole" else changed(models, tmp_path / name, name)
    wrong: list[Any] = []

    def load(name: str) -> None:
        for _ in range(10):
            params = llama_cpp.llama_model_default_params()
            with library.guarded() as errors:
                model = llama_cpp.llama_model_load_from_file(str(paths[name]).encode(), params)
            if bool(model) != (name == "whole") or bool(errors) == bool(model) or reasons[name] not in "".join(errors):
                wrong.append((name, errors))
            if model:
                llama_cpp.llama_model_free(model)

    threads = [threading.Thread(target=load, args=(name,)) for name in reasons]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# -- chat templates

MESSAGES: Any = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize("ga_n", [1, 4])
def test_a_template_with_a_fault_refuses_the_chat_alone(models: dict[str, Path], tmp_path: Path, ga_n: int) -> None:
    path = tmp_path / "template.gguf"
    path.write_bytes(put(b"{% for m in messages %}", b"{% fur m in messages %}")(models["llama"].read_bytes()))
    with Llama(str(path), ga_n=ga_n, **OPTIONS) as llm:
        completion: Any = llm.create_completion("Hello", max_tokens=2)
        assert completion["usage"]["completion_tokens"] > 0
        for stream in (False, True):
            with pytest.raises(
                ModelFileError, match=r"tokenizer.chat_template of .* does not compile: .*unknown tag 'fur'"
            ):
                llm.create_chat_completion(MESSAGES, max_tokens=2, stream=stream)
        assert llm.metadata["tokenizer.chat_template"].startswith("{% fur m")
    with Llama(str(path), ga_n=ga_n, chat_format="chatml", **OPTIONS) as llm:
        answer: Any = llm.create_chat_completion(MESSAGES, max_tokens=2)
        assert answer["choices"][0]["message"]["role"] == "assistant"


def test_a_template_without_a_fault_is_used(models: dict[str, Path]) -> None:
    with Llama(str(models["llama"]), **OPTIONS) as llm:
        assert llm.chat_format == "chat_template.default"
        assert "tokenizer.chat_template" in llm.metadata
        llm.create_chat_completion(MESSAGES, max_tokens=2)


# -- LoRA


def adapted(models: dict[str, Path], path: Path | str, **options: Any) -> str:
    return opened(models["llama"], lora_path=str(path), **options)


@pytest.mark.parametrize("ga_n", [1, 4])
def test_adapters_that_cannot_be_used(models: dict[str, Path], tmp_path: Path, ga_n: int) -> None:
    make, path = fuzz_worker.make_adapter, tmp_path / "lora.gguf"
    assert "there is no file" in adapted(models, path, ga_n=ga_n)
    for options, message in (
        ({"arch": "qwen2"}, "model arch and LoRA arch mismatch"),
        ({"n": 64}, "tensor 'blk.0.attn_q.weight' has incorrect shape"),
        ({"base": "blk.9.attn_q.weight"}, "LoRA tensor 'blk.9.attn_q.weight' does not exist in base model"),
    ):
        result = adapted(models, make(path, **options), ga_n=ga_n)
        assert result.startswith(f"ModelFileError: {path} cannot be loaded as a LoRA adapter of this model: ")
        assert message in result
    assert "expect general.type to be 'adapter'" in adapted(models, models["llama"], ga_n=ga_n)
    assert adapted(models, make(path), ga_n=ga_n) == "opened"


@pytest.mark.parametrize("ga_n", [1, 4])
def test_an_adapter_is_at_work(models: dict[str, Path], tmp_path: Path, ga_n: int) -> None:
    """As llama_cpp's class has it, in the logits; without one they are others."""
    import llama_cpp
    import numpy as np

    path = str(fuzz_worker.make_adapter(tmp_path / "lora.gguf"))

    def logits(kind: Any, **options: Any) -> Any:
        llm = kind(str(models["llama"]), **OPTIONS, logits_all=True, **options)
        llm.eval([5, 6, 7])
        try:
            return llm.scores[2].copy()
        finally:
            llm.close()

    ours = logits(Llama, ga_n=ga_n, ga_w=64, lora_path=path, lora_scale=0.5)
    theirs = logits(llama_cpp.Llama, lora_path=path, lora_scale=0.5)
    if ga_n == 1:
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(ours, theirs, atol=0.01)  # the tokens are near one another
    without = logits(Llama, ga_n=ga_n, ga_w=64)
    assert np.abs(ours - without).max() > 0.1
