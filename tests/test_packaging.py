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

from pyselfextend.server import has_page

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


def built_page() -> Path | None:
    """The page of the server that npm made for the package, which takes minutes; None: there is none."""
    if not has_page():
        return None
    pages = list(ROOT.glob("build/*/upstream/tools/ui/dist/index.html"))
    assert pages, "the server has a page, but it was built in another folder than build/"
    return max(pages, key=lambda page: page.stat().st_mtime).parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's wheel with the default backends."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "-Cbuild-dir=build/wheel", "--wheel-dir", folder]
    page = built_page()
    options.append(f"-Ccmake.define.PYSELFEXTEND_BUILD_PAGE={'ON' if page else 'OFF'}")
    options.append(f"-Ccmake.define.PYSELFEXTEND_PAGE_DIR={page or ''}")
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


SERVE = """
import gzip, json, sys, urllib.request
from pyselfextend.server import start

def get(path):  # the page is compressed
    request = urllib.request.Request(server.url + path, headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return gzip.decompress(answer.read()).decode()

with start(sys.argv[1], n_ctx=1024, options=["--threads", "1"]) as server:
    request = urllib.request.Request(server.url + "/completion", json.dumps({
        "prompt": list(range(40, 80)) * 15, "n_predict": 8, "temperature": 0, "return_tokens": True,
    }).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = json.loads(answer.read())
    has_page = sys.argv[2] == "True"
    print(json.dumps({
        "tokens": found["tokens"],
        "n_evaluated": found["tokens_evaluated"],
        "page": get("/") if has_page else "",
        "licenses": get("/licenses.md") if has_page else "",
    }))
"""

LICENSES = (
    *("big-integer", "cpp-httplib", "decimal.js", "llama.cpp", "llamafile-sgemm", "miniaudio", "nerdamer-prime"),
    *("nlohmann-json", "remark-math", "rotate-bits", "sha256", "stb", "subprocess", "xxhash", "yarn"),
)


def metadata(wheel: Path, name: str) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [n for n in archive.namelist() if n.endswith(f".dist-info/{name}")]
        return Parser().parsestr(archive.read(path).decode())


def test_libraries(names: list[str]) -> None:
    """libllama and libmtmd under the names that llama_cpp looks for, the others under names of their own, no more."""
    prefix, suffix = {"win32": ("", ".dll"), "darwin": ("lib", ".dylib")}.get(sys.platform, ("lib", ".so"))
    ours = ("ggml", "ggml-base", "ggml-cpu", "ggml-rpc", "llama-common", "llama-server-impl", "llama-cli-impl")
    parts = {*(f"{name}-pyselfextend" for name in ours), "llama", "mtmd"}
    if sys.platform == "darwin":
        parts |= {"ggml-metal-pyselfextend", "ggml-blas-pyselfextend"}
    expected = {f"pyselfextend/lib/{prefix}{part}{suffix}" for part in parts}
    assert {name for name in names if name.startswith("pyselfextend/lib/")} == expected


def test_programs(wheel: Path, names: list[str]) -> None:
    """The server, the terminal chat and the worker, which may be run, and the licences of what is in the page."""
    suffix = ".exe" if sys.platform == "win32" else ""
    programs = {f"pyselfextend/bin/{name}{suffix}" for name in ("llama-server", "llama-cli", "ggml-rpc-server")}
    page = {"pyselfextend/bin/page-licenses.md"} if has_page() else set()
    assert {name for name in names if name.startswith("pyselfextend/bin/")} == programs | page
    with zipfile.ZipFile(wheel) as archive:
        assert all(archive.getinfo(name).external_attr >> 16 & 0o111 for name in programs)


@pytest.mark.skipif(not has_page(), reason="the server was built without its page: it needs npm")
def test_licenses_of_the_page(wheel: Path) -> None:
    """Vite lists what it bundles with the text of each licence. Two packages hold none: remark-math.txt has it."""
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read("pyselfextend/bin/page-licenses.md").decode()
    found = dict(re.findall(r"^## (\S+) - \d[^\n]*\n(.*?)(?=^## \S+ - \d|\Z)", text, re.MULTILINE | re.DOTALL))
    imported = {
        "@lucide/svelte",
        "bits-ui",
        "dexie",
        "dompurify",
        "highlight.js",
        "katex",
        "mermaid",
        "pdfjs-dist",
        "svelte",
    }
    assert imported <= set(found)
    assert {name for name, licence in found.items() if len(licence) < 200} == {"rehype-katex", "remark-math"}


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
    assert len(libraries) == 9
    for library in libraries:
        dynamic = run(readelf, "--dynamic", "--wide", library)
        assert re.findall(r"\(SONAME\).*\[(.*)\]", dynamic) == [library.name]
        needed = [name for name in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic) if "ggml" in name or "llama" in name]
        assert all(name.endswith("-pyselfextend.so") or name == "libllama.so" for name in needed)
        assert re.findall(r"\(R(?:UN)?PATH\).*\[(.*)\]", dynamic) == ["$ORIGIN"]
    for program in (tmp_path / "pyselfextend" / "bin").glob("*-server"):
        dynamic = run(readelf, "--dynamic", "--wide", program)
        assert re.findall(r"\(R(?:UN)?PATH\).*\[(.*)\]", dynamic) == ["$ORIGIN:$ORIGIN/.:$ORIGIN/../lib"]


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

    served = json.loads(
        run(scripts / "python", "-I", "-c", SERVE, tiny_model, has_page(), PATH=str(scripts)).splitlines()[-1]
    )
    assert (len(served["tokens"]), served["n_evaluated"]) == (8, 600)
    if has_page():
        assert "<!doctype html" in served["page"].lower()
        assert "svelte" in served["licenses"]
