"""llama.cpp's own shift, of contexts with ga_n = 1: what is shifted is exact, what is refused would not have been."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import unsupported
from architectures import make_tiny
from context import Context, load, open_model
from reference_cache import CachedReference
from test_reference import some_tokens

from pyselfextend import Llama, ShiftError

import llama_cpp  # isort: skip  # after pyselfextend
from test_llama import QUIET, last_logits  # isort: skip

F32, F16, Q4_0, Q8_0, BF16 = 0, 1, 2, 8, 30

#: Words of the reason by model; the others are shifted.
FAULTS = {
    "llama-yarn": "magnitude",
    "phi4-mini": "magnitude",
    "hunyuan-dense": "not what RoPE made",
    "smollm3": "in another way",
    "smollm3-64": "in another way",
    "qwen2vl": "several dimensions",
    "qwen3vl": "several dimensions",
    **dict.fromkeys(("gemma2", "gemma3", "gemma3-linear", "olmo3", "gpt-oss"), "sliding window"),
}


def distances(path: Path, type_k: int = F32) -> tuple[float, float]:
    """How far logits are from the reference at most, before any shift and after several."""
    reference = CachedReference(path, 1, 0)
    found = []
    with open_model(path) as model, Context(model, 1, 0, n_ctx=512, type_k=type_k, type_v=F32) as ctx:
        length = 0
        for step, (n_keep, n_left) in enumerate([(10, 250), (100, 10), (60, 100), (200, 3)]):
            tokens = some_tokens(480 - length, seed=step)
            found.append(float(np.abs(ctx.logits(tokens.tolist(), length) - reference.extend(tokens)).max()))
            n_drop = 480 - n_keep - n_left
            assert ctx.remove(0, n_keep, n_keep + n_drop)
            ctx.shift(0, n_keep + n_drop, -1, -n_drop)
            reference.remove(n_keep, n_keep + n_drop)
            reference.shift(n_keep + n_drop, 1 << 30, -n_drop)
            length = n_keep + n_left
    return found[0], max(found[1:])


def fault(path: Path, **params: Any) -> str:
    with open_model(path) as model, Context(model, 1, 0, n_ctx=512, **params) as ctx:
        return load().plain_shift_fault(ctx.ctx)


@pytest.mark.parametrize("name", make_tiny().MODELS)
def test_what_is_shifted_is_exact_and_what_is_refused_is_not(tiny_models: dict[str, Path], name: str) -> None:
    path = tiny_models[name]
    found = fault(path, type_k=F32, type_v=F32)
    assert (FAULTS[name] in found) if name in FAULTS else not found, found
    if "dimensions" not in found:  # llama.cpp ends the process
        before, after = distances(path)
        assert (after > 10 * before) if found else (after < 4 * before + 1e-4), (before, after)


CACHES = [  # model, type of K, whether it is shifted
    ("llama", F16, True),
    ("phi2", F16, True),
    ("llama-64", Q8_0, True),
    ("llama-64", Q4_0, True),
    ("llama", Q8_0, False),  # heads of 32
    ("phi2", Q8_0, False),  # half of a head is turned
    ("glm4", Q4_0, False),
    ("llama-64", BF16, False),
]


@pytest.mark.parametrize(("name", "type_k", "is_shifted"), CACHES)
def test_types_of_the_cache(tiny_models: dict[str, Path], name: str, type_k: int, is_shifted: bool) -> None:
    """Asked for all the same, a shift that is refused ends the process."""
    path = tiny_models[name]
    found = fault(path, type_k=type_k, type_v=F32)
    if is_shifted:
        before, after = distances(path, type_k)
        assert not found
        assert after < 4 * before, (before, after)
    else:
        assert "type of cache" in found
        code = f"from pathlib import Path; import test_plain_shift as t; t.distances(Path({str(path)!r}), {type_k})"
        done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, check=False)
        assert done.returncode < 0, done


@pytest.mark.parametrize(
    ("arch", "words"),
    [("gpt2", "learned"), ("bloom", ""), ("mamba", "cannot forget"), ("jamba", "cannot forget"), ("deepseek2", "")],
)
def test_other_architectures(tmp_path: Path, arch: str, words: str) -> None:
    """With ALiBi a key is the same at all positions; a latent key is turned in its last part, and llama.cpp knows."""
    found = fault(unsupported.make(tmp_path / "model.gguf", arch))
    assert (words in found) if words else not found, found


REFUSED = [
    ("llama", {"rope_scaling_type": llama_cpp.LLAMA_ROPE_SCALING_TYPE_YARN, "rope_freq_scale": 0.5}, "magnitude"),
    ("stablelm", {"type_k": Q8_0}, "type of cache"),
    ("gemma3", {}, "sliding window"),
    ("gemma3", {"swa_full": False}, "sliding window"),
    ("smollm3", {}, "in another way"),
]


@pytest.mark.parametrize(("name", "options", "words"), REFUSED)
def test_a_refusal_changes_nothing(
    tiny_models: dict[str, Path], name: str, options: dict[str, Any], words: str
) -> None:
    tokens = some_tokens(300).tolist()
    path = str(tiny_models[name])
    with Llama(path, n_ctx=512, **QUIET, **options) as llm, Llama(path, n_ctx=512, **QUIET, **options) as same:
        for model in (llm, same):
            model.eval(tokens[:200])
        for _ in range(2):
            with pytest.raises(ShiftError, match=words):
                llm.context_shift(10, 100)
        assert llm.n_tokens == 200
        for model in (llm, same):
            model.eval(tokens[200:])
        assert np.array_equal(last_logits(llm), last_logits(same))
