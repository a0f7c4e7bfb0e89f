"""The wheel: what is in it, and that it works in a clean environment.

One is built, in build/wheel, which stays, so that the next run builds only what changed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent

GENERATE = """
import itertools, json, sys
import pyselfextend
from pyselfextend import _native

prompt = list(range(40, 80)) * 15  # 600 tokens, beyond the model's trained window of 512
with pyselfextend.Llama(sys.argv[1], n_ctx=1024, ga_n=4, ga_w=64, verbose=False) as llm:
    tokens = list(itertools.islice(llm.generate(prompt, temp=0.0), 8))
    print(json.dumps({
        "package": pyselfextend.__file__,
        "version": pyselfextend.__version__,
        "lib": str(_native.lib_dir()),
        "ga": [llm.self_extend.ga_n, llm.self_extend.ga_w],
        "generated": llm.detokenize(tokens).decode(errors="replace"),
        "n_tokens": llm.n_tokens,
    }))
"""


def run(*command: object, **env: str) -> str:
    """Standard output of a command that must succeed."""
    environment = {**os.environ, "CCACHE_BASEDIR": str(ROOT), "PIP_DISABLE_PIP_VERSION_CHECK": "1", **env}
    environment.pop("PYTHONPATH", None)
    result = subprocess.run([*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's wheel with the default backends."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "-Cbuild-dir=build/wheel", "--wheel-dir", folder]
    options.append("-Ccmake.define.PYSELFEXTEND_BUILD_SERVER=OFF")  # which takes as long again
    run(sys.executable, "-m", "pip", "wheel", *options, ROOT, CMAKE_ARGS="")
    (found,) = folder.glob("pyselfextend-*.whl")
    return found


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of llama-cpp-python without its own llama.cpp, from the pinned archive."""
    cmake = shutil.which("cmake", path=str(Path(sys.executable).parent)) or "cmake"
    script = ROOT / "native" / "cmake" / "fetch.cmake"
    pin = ROOT / "native" / "LLAMA_CPP_PIN"
    sdist = run(cmake, f"-DPIN={pin}", f"-DPYTHON={sys.executable}", "-P", script).splitlines()[-1]
    folder = tmp_path_factory.mktemp("bindings")
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    run(sys.executable, "-m", "pip", "wheel", *options, sdist, CMAKE_ARGS="-DLLAMA_BUILD=OFF")
    (found,) = folder.glob("*.whl")
    return found


LICENSES = ("llama.cpp", "llamafile-sgemm", "miniaudio", "rotate-bits", "sha256", "stb", "subprocess", "xxhash", "yarn")


def metadata(wheel: Path, name: str) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [n for n in archive.namelist() if n.endswith(f".dist-info/{name}")]
        return Parser().parsestr(archive.read(path).decode())


def test_libraries(names: list[str]) -> None:
    """libllama and libmtmd under the names that llama_cpp looks for, ggml under names of its own, nothing else."""
    prefix, suffix = {"win32": ("", ".dll"), "darwin": ("lib", ".dylib")}.get(sys.platform, ("lib", ".so"))
    parts = {"ggml-pyselfextend", "ggml-base-pyselfextend", "ggml-cpu-pyselfextend", "llama", "mtmd"}
    if sys.platform == "darwin":
        parts |= {"ggml-metal-pyselfextend", "ggml-blas-pyselfextend"}
    expected = {f"pyselfextend/lib/{prefix}{part}{suffix}" for part in parts}
    assert {name for name in names if name.startswith("pyselfextend/lib/")} == expected


def test_python_files(names: list[str]) -> None:
    """Every module of the source tree, the type information and what the build wrote."""
    package = ROOT / "pyselfextend"
    files = [*package.rglob("*.py"), *package.rglob("*.pyi"), package / "py.typed"]
    sources = {file.relative_to(ROOT).as_posix() for file in files}
    assert sources | {"pyselfextend/_build.py"} <= set(names)


def test_nothing_of_upstream_but_the_libraries(wheel: Path, names: list[str]) -> None:
    assert {name.split("/")[0] for name in names} == {"pyselfextend", wheel.name.split("-py3")[0] + ".dist-info"}
    ours = {name for name in names if name.startswith("pyselfextend/native/")}
    scripts = {f"cmake/{script}.cmake" for script in ("apply", "compiler", "fetch", "libraries", "options")}
    files = {"LLAMA_CPP_PIN", "build-options.json", "stock/CMakeLists.txt"} | scripts
    assert {name.removeprefix("pyselfextend/native/") for name in ours} == files
    others = set(names) - ours
    assert not [name for name in others if name.endswith((".h", ".hpp", ".cpp", ".a", ".lib", ".cmake", ".pc"))]
    with zipfile.ZipFile(wheel) as archive:
        links = [i.filename for i in archive.infolist() if stat.S_ISLNK(i.external_attr >> 16)]
    assert links == []


def test_licenses(wheel: Path, names: list[str]) -> None:
    """Ours, and those of what the libraries contain, as the metadata lists them."""
    found = metadata(wheel, "METADATA")
    assert found["License-Expression"] == "MIT"
    files = found.get_all("License-File") or []
    parts = {f"native/licenses/{name}.txt" for name in LICENSES}
    assert set(files) == {"LICENSE"} | parts
    info = wheel.name.split("-py3")[0] + ".dist-info"
    assert {f"{info}/licenses/{file}" for file in files} <= set(names)


def test_metadata(wheel: Path) -> None:
    pin = re.search(r"^llama-cpp-python==\S+", (ROOT / "native/LLAMA_CPP_PIN").read_text(), re.MULTILINE)
    assert pin
    required = metadata(wheel, "METADATA").get_all("Requires-Dist") or []
    assert pin[0] in required
    assert metadata(wheel, "WHEEL")["Root-Is-Purelib"] == "false"
    tag = metadata(wheel, "WHEEL")["Tag"]
    assert tag.startswith("py3-none-") and not tag.endswith("-any")


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF")
def test_no_library_can_be_taken_for_a_stock_one(wheel: Path, tmp_path: Path) -> None:
    """The dynamic linker goes by SONAME: no stock name is offered or asked for, and the search starts at $ORIGIN."""
    readelf = shutil.which("readelf")
    assert readelf, "readelf is needed: it comes with the compiler, in binutils"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    libraries = list((tmp_path / "pyselfextend" / "lib").iterdir())
    assert len(libraries) == 5
    for library in libraries:
        dynamic = run(readelf, "--dynamic", "--wide", library)
        assert re.findall(r"\(SONAME\).*\[(.*)\]", dynamic) == [library.name]
        needed = [name for name in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic) if "ggml" in name or "llama" in name]
        assert all(name.endswith("-pyselfextend.so") or name == "libllama.so" for name in needed)
        assert re.findall(r"\(R(?:UN)?PATH\).*\[(.*)\]", dynamic) == ["$ORIGIN"]


def test_clean_environment(wheel: Path, bindings: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Installed beside the bindings alone, it generates beyond the trained window, from its own files only."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    scripts = environment / ("Scripts" if sys.platform == "win32" else "bin")
    run(scripts / "python", "-m", "pip", "install", bindings, wheel)

    out = json.loads(run(scripts / "python", "-I", "-c", GENERATE, tiny_model).splitlines()[-1])
    assert Path(out["package"]).is_relative_to(environment)
    assert Path(out["lib"]) == Path(out["package"]).parent / "lib"
    assert out["version"] == wheel.name.split("-")[1]
    assert out["ga"] == [4, 64]
    assert out["n_tokens"] == 607  # the eighth token was not read
    assert out["generated"]
    assert "demo" in run(scripts / "pyselfextend", "--help")
    found = json.loads(run(scripts / "pyselfextend", "doctor", tiny_model, "--json", LLAMA_CPP_LIB_PATH=""))
    assert (found["is_well"], found["problems"]) == (True, [])
    assert Path(found["library"]).parent == Path(out["lib"])
    assert found["answers"][0]["attention"] == [{"way": "fused", "device": "CPU", "layers": [0, 1]}]
    assert "For 1024 tokens" in run(scripts / "pyselfextend", "plan", tiny_model)
