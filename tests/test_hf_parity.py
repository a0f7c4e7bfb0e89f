"""The engine and the NumPy reference against transformers, whose models and GGUF loader nobody here wrote.

The yardstick is the plain rule: how far stock llama.cpp and the NumPy reference are from transformers without
SelfExtend, on the same model and tokens. SelfExtend may add nothing but rounding. Measured with torch 2.13.0 and
transformers 5.23.0, root mean square over all positions and models: 1e-6 to 2e-5 from either, plain and extended,
but 3e-4 to 7e-4 from llama.cpp with the GELU of the Gemma models, a table of F16 there.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from reference import Array, Reference
from runner import Result, evaluate, evaluate_all
from test_reference import some_tokens
from yardstick import F32, N_TOKENS, PAIRS, WAYS, Distance

pytestmark = pytest.mark.slow

HF_REFERENCE = Path(__file__).with_name("hf_reference.py")

COMPARED = [
    "llama",
    "llama-mha",
    "llama-3",
    "llama-yarn",
    "llama-64",
    "llama-linear",
    "qwen2",
    "qwen3",
    "qwen3moe",
    "stablelm",
    "phi4-mini",
    "glm4",
    "granite",
    "smollm3",
    "smollm3-64",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3-linear",
    "gpt-oss",  # llama.cpp rounds the ends of its YaRN ramp, transformers by default does not; here it does
]

#: Not compared: the loader of transformers does not take these, and calls them by names of its own.
NOT_LOADED = ["qwen2vl", "phi2", "hunyuan-dense", "qwen3vl", "olmo3"]

PLAIN, NEIGHBOUR = (1, 0), (4, 65)
RMS_FACTOR, RMS_FLOOR = 1.2, 3e-6  # of the distance of the plain rule, and rounding, which counts where that is small
MAX_FACTOR, MAX_FLOOR = 2.0, 5e-5  # of one logit in 252,000


@dataclass(frozen=True)
class Theirs:
    """What transformers makes of one file."""

    refused: str  # why it is not taken
    logits: dict[tuple[int, int], Array]
    layers: dict[tuple[int, int], list[int]]  # that were extended


@pytest.fixture(scope="module")
def hf_python() -> str:
    """A Python that has torch and transformers."""
    if given := os.environ.get("PYSELFEXTEND_HF_PYTHON"):
        return given
    missing = [name for name in ("torch", "transformers", "accelerate") if not importlib.util.find_spec(name)]
    if missing:
        pytest.fail(
            f"{', '.join(missing)} not here: pip install torch transformers accelerate (a CPU build of torch will do), "
            "or name a Python that has them and gguf in PYSELFEXTEND_HF_PYTHON"
        )
    return sys.executable


@pytest.fixture(scope="module")
def theirs(hf_python: str, tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Theirs]:
    """All models in one process: importing torch and transformers takes longer than evaluating them."""
    out, pairs = tmp_path_factory.mktemp("hf"), [PLAIN, *PAIRS, NEIGHBOUR]
    np.save(out / "tokens.npy", some_tokens(N_TOKENS))
    options = ["--tokens", out / "tokens.npy", "--pairs", json.dumps(pairs), "--out", out]
    done = subprocess.run(
        [str(word) for word in (hf_python, HF_REFERENCE, *options, *tiny_models.values())],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for (name, path), line in zip(tiny_models.items(), done.stdout.splitlines(), strict=True):
        result = json.loads(line)
        files = () if result["refused"] else (out / f"{path.stem}-{i}.npy" for i in range(len(pairs)))
        logits = dict(zip(pairs, map(np.load, files), strict=False))
        found[name] = Theirs(result["refused"], logits, dict(zip(pairs, result["layers"], strict=False)))
    return found


@dataclass(frozen=True)
class Case:
    """One tiny model, by transformers, by llama.cpp and by the NumPy reference."""

    theirs: Theirs
    stock: Array  # plain
    engine: dict[tuple[int, int, str], Result]
    reference: dict[tuple[int, int], Array]


@pytest.fixture(scope="module", params=COMPARED)
def case(
    request: pytest.FixtureRequest,
    theirs: dict[str, Theirs],
    tiny_models: dict[str, Path],
    stock_lib: Path,
    engine_lib: Path,
) -> Case:
    name: str = request.param
    model, tokens = tiny_models[name], some_tokens(N_TOKENS)
    keys = [(*pair, way) for pair in PAIRS for way in WAYS]
    jobs = [replace(F32, ga_n=ga_n, ga_w=ga_w, attn=way, flash="off") for ga_n, ga_w, way in keys]
    engine = dict(zip(keys, evaluate_all(engine_lib, model, tokens, jobs), strict=True))
    stock = evaluate(stock_lib, model, tokens, replace(F32, flash="off")).logits
    reference = Reference(model)
    return Case(theirs[name], stock, engine, {pair: reference.logits(tokens, *pair) for pair in [PLAIN, *PAIRS]})


def check(found: Distance, plain: Distance) -> None:
    """Fail unless the extended rule is as near as the plain one, but for rounding."""
    print(f"largest {found.largest:.1e} (plain {plain.largest:.1e}), rms {found.rms:.1e} (plain {plain.rms:.1e})")
    assert found.rms <= RMS_FACTOR * plain.rms + RMS_FLOOR, (found, plain)
    assert found.largest <= MAX_FACTOR * plain.largest + MAX_FLOOR, (found, plain)


def test_every_tiny_model_is_listed(tiny_models: dict[str, Path]) -> None:
    assert set(tiny_models) == set(COMPARED) | set(NOT_LOADED)


def test_what_is_not_compared_cannot_be_loaded(theirs: dict[str, Theirs]) -> None:
    refused = {name for name, model in theirs.items() if "is not supported yet" in model.refused}
    assert refused == set(NOT_LOADED)


def test_plain(case: Case) -> None:
    """Nobody's plain model is another's by accident: this is what the bounds below are relative to."""
    exact = case.theirs.logits[PLAIN]
    for logits, rms, largest in ((case.reference[PLAIN], 2e-4, 5e-3), (case.stock, 2e-3, 2e-2)):
        found = Distance.between(logits, exact)
        print(f"largest {found.largest:.1e}, rms {found.rms:.1e}")
        assert found.rms < rms
        assert found.largest < largest


@pytest.mark.parametrize("pair", PAIRS)
def test_reference(case: Case, pair: tuple[int, int]) -> None:
    plain = Distance.between(case.reference[PLAIN], case.theirs.logits[PLAIN])
    check(Distance.between(case.reference[pair], case.theirs.logits[pair]), plain)


@pytest.mark.parametrize("pair", PAIRS)
def test_engine(case: Case, pair: tuple[int, int]) -> None:
    plain = Distance.between(case.stock, case.theirs.logits[PLAIN])
    for way in WAYS:
        result = case.engine[(*pair, way)]
        assert result.info[f"n_layer_{way}"] == len(case.theirs.layers[pair])
        check(Distance.between(result.logits, case.theirs.logits[pair]), plain)


def test_another_rule_is_far_away(case: Case) -> None:
    """What would pass unseen if the bounds were loose: a window that is wider by one."""
    plain = Distance.between(case.stock, case.theirs.logits[PLAIN])
    for way in WAYS:
        wrong = Distance.between(case.engine[(4, 64, way)].logits, case.theirs.logits[NEIGHBOUR])
        print(f"rms {wrong.rms:.1e} (plain {plain.rms:.1e})")
        assert wrong.rms > 100 * (RMS_FACTOR * plain.rms + RMS_FLOOR)
