"""A short run of ``fuzz``: damaged files and states do not end the process, hang it, or eat its memory."""

from __future__ import annotations

from pathlib import Path

import fuzz
import fuzz_worker
import numpy as np
import pytest

#: Of the results, those that show that it has not only been refused.
TAKEN = {
    "models": "opened",
    "adapters": "opened",
    "grammars": "completed",
    "states": "loaded",
    "plain-states": "loaded",
    "sessions": "loaded",
    "plain-sessions": "loaded",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    fuzz_worker.make_models(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "n"),
    [
        ("models", 200),
        ("adapters", 100),
        ("grammars", 500),
        ("states", 200),
        ("plain-states", 100),
        ("sessions", 100),
        ("plain-sessions", 100),
    ],
)
def test_damaged_inputs(folder: Path, kind: str, n: int) -> None:
    results = list(fuzz.run(kind, folder, range(1000, 1000 + n)))
    assert [result for result in results if isinstance(result, fuzz.Fault)] == []
    assert len(results) == n
    assert 0 < results.count(TAKEN[kind]) < n


@pytest.mark.parametrize("name", fuzz_worker.MODELS)
def test_whole_models_open(folder: Path, name: str) -> None:
    """What is damaged is whole before: a walk over its header ends where its tensors begin."""
    from pyselfextend import Llama, gguf_file

    path = folder / f"{name}.gguf"
    data = path.read_bytes()
    header = fuzz_worker.Header(data)
    n_bytes = gguf_file.read(path).n_bytes
    assert header.end + n_bytes <= len(data) < header.end + n_bytes + 32 * 100
    with Llama(str(path), n_ctx=64, n_threads=1, verbose=False) as llm:
        assert llm.detokenize(llm.tokenize(b"then", add_bos=False)).strip() == b"then"


def test_a_death_and_a_hang_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A worker that ends, hangs or fails at some inputs: each is named, and the others are gone through."""
    program = tmp_path / "worker.py"
    program.write_text(
        "import json, os, sys, time\n"
        "for seed in range(int(sys.argv[3]), int(sys.argv[4])):\n"
        "    print(json.dumps(['begun', seed, '']), flush=True)\n"
        "    if seed == 2: os.abort()\n"
        "    if seed == 5: time.sleep(60)\n"
        "    print(json.dumps(['done', seed, 'unexpected KeyError: 1' if seed == 7 else 'fine']), flush=True)\n"
    )
    monkeypatch.setattr(fuzz_worker, "__file__", str(program))
    monkeypatch.setattr(fuzz, "LIMIT_S", 2.0)
    results = list(fuzz.run("models", folder, range(10)))
    faults = {result.seed: result.what for result in results if isinstance(result, fuzz.Fault)}
    assert set(faults) == {2, 5, 7}
    assert "status -6" in faults[2]
    assert "it hangs" in faults[5]
    assert faults[7] == "unexpected KeyError: 1"
    assert results.count("fine") == 7


def test_damage_comes_from_the_seed(folder: Path) -> None:
    data = (folder / "llama.gguf").read_bytes()
    inputs = [fuzz_worker.damage_model(data, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert inputs[0] == inputs[1] != inputs[2]
    assert data not in inputs
