"""models/make_random.py: models that are only fast or slow, but load, and say numbers."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from pyselfextend import Llama
from pyselfextend.model_info import model_info
from pyselfextend.plan import make_plan

SCRIPT = Path(__file__).resolve().parent.parent / "models" / "make_random.py"
SMALL = ("--layers", "2", "--vocab", "512")


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def make(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("shape", "kind"), [("135m", "F16"), ("135m", "Q4_0"), ("135m", "Q8_0"), ("270m", "Q4_0"), ("1.7b", "Q4_0")]
)
def test_a_model_is_extended_and_its_logits_are_finite(tmp_path: Path, shape: str, kind: str) -> None:
    path = tmp_path / "random.gguf"
    options = ["--layers", 6] if shape == "270m" else []  # the sixth is the first without a window
    done = make(shape, *SMALL, *options, "--type", kind, "--out", path)
    assert done.returncode == 0, done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["random.gguf"]
    assert model_info(path).quantization == kind
    plan = make_plan(path, 16384)
    assert plan.recommended is not None, plan.why

    llm = Llama(str(path), n_ctx=1024, ga_n=4, ga_w=64, logits_all=True, verbose=False)
    llm.eval(np.random.default_rng(0).integers(3, 512, 300).tolist())
    logits = np.array(llm.scores[: llm.n_tokens])
    assert logits.shape == (300, 512)
    assert np.isfinite(logits).all()
    assert 0.1 < logits.std() < 10


def test_a_file_is_the_same_wherever_it_is_made(tmp_path: Path) -> None:
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        assert make("1b", *SMALL, "--seed", seed, "--out", tmp_path / name).returncode == 0
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_the_shape_is_the_one_that_is_named(tmp_path: Path) -> None:
    """Heads, widths and bytes of Llama 3 8B, which in Q4_0 is 4.5 bits for each of its 8 billion weights."""
    path = tmp_path / "8b.gguf"
    assert make("8b", "--layers", "1", "--vocab", "512", "--out", path).returncode == 0
    sizes = {tensor.name: tensor.shape.tolist() for tensor in gguf.GGUFReader(path).tensors}
    assert sizes["blk.0.attn_k.weight"] == [4096, 1024]
    assert sizes["blk.0.ffn_down.weight"] == [14336, 4096]
    assert sizes["output.weight"] == [4096, 512]
    info = model_info(path)
    assert info.n_ctx_train == 8192


def test_what_is_interrupted_leaves_no_file(tmp_path: Path) -> None:
    with subprocess.Popen(
        command("8b", "--out", tmp_path / "8b.gguf"), stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:  # fmt: skip
        began = time.monotonic()
        while not list(tmp_path.iterdir()) and time.monotonic() - began < 60:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip() == f"interrupted: {tmp_path / '8b.gguf'} was not written"
    assert list(tmp_path.iterdir()) == []


def test_a_vocabulary_too_small_is_refused(tmp_path: Path) -> None:
    done = make("1b", "--vocab", "10", "--out", tmp_path / "x.gguf")
    assert done.returncode == 2
    assert "--vocab must be at least" in done.stderr
