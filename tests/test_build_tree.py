"""How the build gets the source of llama.cpp: fetch, verify, unpack, apply. The real scripts, on a small sdist."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "native" / "cmake"

CONTEXT = "int n_ctx = 512;\nint n_batch = 64;\nint n_seq = 1;\n"
GRAPH = "int n_nodes = 0;\nint n_leafs = 0;\nint n_ops = 0;\n"
FILES = {
    "CMakeLists.txt": "project(llama)\n",
    "LICENSE": "MIT\n",
    "cmake/common.cmake": "\n",
    "ggml/ggml.c": "int ggml;\n",
    "include/llama.h": "int llama(void);\n",
    "src/llama-context.cpp": CONTEXT,
    "src/llama-graph.cpp": GRAPH,
    "vendor/hash.h": "\n",
    "common/common.cpp": "int common;\n",
    "licenses/LICENSE-json": "MIT\n",
    "scripts/ui-assets.cmake": "\n",
    "tools/cli/cli.cpp": "int cli;\n",
    "tools/mtmd/mtmd.cpp": "int mtmd;\n",
    "tools/rpc/rpc-server.cpp": "int rpc;\n",
    "tools/server/server.cpp": "int server;\n",
    "tools/ui/package.json": "{}\n",
    "tools/quantize/quantize.cpp": "int not_needed;\n",
}

# A build backend without requirements, in the sdist itself: `pip download` asks for the metadata.
BACKEND = """
from pathlib import Path

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    info = Path(metadata_directory, "llama_cpp_python-9.9.9.dist-info")
    info.mkdir()
    (info / "METADATA").write_text(Path("PKG-INFO").read_text())
    (info / "WHEEL").write_text("Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    return info.name

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    raise NotImplementedError
"""


Result: TypeAlias = "subprocess.CompletedProcess[str]"


def patch(file: str, old: str, before: str, after: str) -> str:
    """A git diff that replaces the line `before` of a file of three lines."""
    lines = [f"-{line}\n+{after}" if line == before else f" {line}" for line in old.splitlines()]
    return f"diff --git a/{file} b/{file}\n--- a/{file}\n+++ b/{file}\n@@ -1,3 +1,3 @@\n" + "\n".join(lines) + "\n"


P_CONTEXT = patch("src/llama-context.cpp", CONTEXT, "int n_batch = 64;", "int n_batch = 128;")
P_GRAPH = patch("src/llama-graph.cpp", GRAPH, "int n_leafs = 0;", "int n_leafs = 7;")


def cmake() -> str:
    found = shutil.which("cmake", path=str(Path(sys.executable).parent)) or shutil.which("cmake")
    assert found, "cmake is needed: pip install cmake"
    return found


def run_script(script: Path, env: dict[str, str] | None = None, **variables: object) -> Result:
    defines = [f"-D{name}={value}" for name, value in variables.items()]
    return subprocess.run(
        [cmake(), *defines, "-P", str(script)], capture_output=True, text=True, env={**os.environ, **(env or {})}
    )


def said(result: Result) -> str:
    """What a failed script said, without CMake's line breaks."""
    assert result.returncode != 0, result.stdout + result.stderr
    return re.sub(r"\s+", " ", result.stderr)


@dataclass
class Tree:
    """An sdist, its pin, a series and the folder they are prepared in."""

    root: Path

    def __post_init__(self) -> None:
        self.sdist = self.root / "llama_cpp_python-9.9.9.tar.gz"
        self.unpacked = self.root / "llama_cpp_python-9.9.9"
        self.pin = self.root / "PIN"
        self.patches = self.root / "patches"
        self.build = self.root / "build"
        self.patched = self.build / "llama.cpp"
        self.stock = self.build / "llama.cpp-stock"
        self.patches.mkdir()
        self.build.mkdir()
        for name, text in FILES.items():
            file = self.unpacked / "vendor" / "llama.cpp" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        (self.unpacked / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 9.9.9\n")
        (self.unpacked / "backend.py").write_text(BACKEND)
        (self.unpacked / "pyproject.toml").write_text(
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        )
        with tarfile.open(self.sdist, "w:gz") as archive:
            archive.add(self.unpacked, self.unpacked.name)
        self.write_pin(hashlib.sha256(self.sdist.read_bytes()).hexdigest())

    def write_pin(self, sha256: str) -> None:
        self.pin.write_text(f"# a comment\nllama-cpp-python==9.9.9 --hash=sha256:{sha256}\n")

    def write_series(self, **series: str) -> None:
        for old in self.patches.iterdir():
            old.unlink()
        for name, text in series.items():
            (self.patches / f"{name}.patch").write_text(text)

    def prepare(self, sdist: Path | None = None, env: dict[str, str] | None = None, **variables: object) -> Result:
        return run_script(
            SCRIPTS / "apply.cmake",
            env=env,
            PIN=self.pin,
            SDIST=sdist or self.sdist,
            PATCH_DIR=self.patches,
            DESTINATION=self.build,
            **variables,
        )

    def context(self) -> str:
        return (self.patched / "src" / "llama-context.cpp").read_text()

    def graph(self) -> str:
        return (self.patched / "src" / "llama-graph.cpp").read_text()

    def times(self) -> dict[str, int]:
        files = (f for f in self.patched.rglob("*") if f.is_file())
        return {f.relative_to(self.patched).as_posix(): f.stat().st_mtime_ns for f in files}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def ok(result: Result) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("tool", ["git", "patch"])
def test_series_is_applied_in_order(tree: Tree, tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool} on this machine")
    second = patch("src/llama-context.cpp", CONTEXT.replace("64", "128"), "int n_batch = 128;", "int n_batch = 256;")
    tree.write_series(**{"0002-b": second, "0001-a": P_CONTEXT})
    other: dict[str, Any] = {"PYSELFEXTEND_PATCH" if tool == "git" else "PYSELFEXTEND_GIT": ""}
    ok(tree.prepare(**other))

    assert tree.context() == CONTEXT.replace("64", "256")
    assert tree.graph() == GRAPH
    assert (tree.stock / "src" / "llama-context.cpp").read_text() == CONTEXT
    assert {f.name for f in tree.patched.iterdir()} == {name.split("/")[0] for name in FILES}
    assert sorted(f.name for f in (tree.patched / "tools").iterdir()) == ["cli", "mtmd", "rpc", "server", "ui"]


@pytest.mark.parametrize("in_hook", [False, True])
def test_below_another_repository(tree: Tree, in_hook: bool) -> None:
    """There, plain `git apply` exits 0 and changes nothing; a hook of that repository also names it in GIT_DIR."""
    if shutil.which("git") is None:
        pytest.skip("no git on this machine")
    subprocess.run(["git", "init", "--quiet", str(tree.root)], check=True)
    tree.write_series(a=P_CONTEXT)
    hook = {"GIT_DIR": str(tree.root / ".git"), "GIT_WORK_TREE": str(tree.root)} if in_hook else {}
    ok(tree.prepare(env=hook))
    assert "n_batch = 128" in tree.context()


def test_a_second_run_does_nothing(tree: Tree) -> None:
    tree.write_series(a=P_CONTEXT, b=P_GRAPH)
    ok(tree.prepare())
    before = tree.times()
    assert "Applying" not in ok(tree.prepare())
    assert tree.times() == before


def test_a_changed_series_touches_only_what_differs(tree: Tree) -> None:
    new_file = "--- /dev/null\n+++ b/src/new.cpp\n@@ -0,0 +1,1 @@\n+int added;\n"
    tree.write_series(a=P_CONTEXT, b=new_file)
    ok(tree.prepare())
    before = tree.times()
    assert "src/new.cpp" in before

    tree.write_series(a=P_CONTEXT, b=P_GRAPH)
    ok(tree.prepare())
    after = tree.times()
    assert "n_batch = 128" in tree.context()
    assert "n_leafs = 7" in tree.graph()
    assert "src/new.cpp" not in after
    assert {name for name in after if after[name] != before[name]} == {"src/llama-graph.cpp"}

    tree.write_series()
    ok(tree.prepare())
    assert (tree.context(), tree.graph()) == (CONTEXT, GRAPH)


def test_a_patch_that_does_not_apply(tree: Tree) -> None:
    stale = patch("src/llama-graph.cpp", GRAPH.replace("leafs", "leaves"), "int n_leaves = 0;", "int n_leaves = 7;")
    tree.write_series(**{"0001-fine": P_CONTEXT, "0002-stale": stale})
    message = said(tree.prepare())
    assert "0002-stale.patch does not apply" in message
    assert "native/README.md" in message
    assert not tree.patched.exists()

    tree.write_series(**{"0001-fine": P_CONTEXT})
    ok(tree.prepare())
    assert "n_batch = 128" in tree.context()


def test_a_patch_that_changes_nothing(tree: Tree) -> None:
    tree.write_series(idle=patch("src/llama-context.cpp", CONTEXT, "int n_batch = 64;", "int n_batch = 64;"))
    assert "left src/llama-context.cpp as it was" in said(tree.prepare())


def test_neither_git_nor_patch(tree: Tree) -> None:
    tree.write_series(a=P_CONTEXT)
    assert "Neither `git` nor `patch` was found" in said(tree.prepare(PYSELFEXTEND_GIT="", PYSELFEXTEND_PATCH=""))


def test_another_archive_is_refused(tree: Tree) -> None:
    tree.write_pin("0" * 64)
    message = said(tree.prepare())
    assert "is not the pinned sdist" in message
    assert hashlib.sha256(tree.sdist.read_bytes()).hexdigest() in message
    assert "0" * 64 in message
    assert not tree.stock.exists()


def test_an_unpacked_sdist(tree: Tree) -> None:
    tree.write_series(a=P_CONTEXT)
    ok(tree.prepare(sdist=tree.unpacked))
    assert "n_batch = 128" in tree.context()

    (tree.unpacked / "vendor/llama.cpp/src/llama-graph.cpp").write_text("int edited;\n")
    ok(tree.prepare(sdist=tree.unpacked))
    assert tree.graph() == "int edited;\n"
    assert "n_batch = 128" in tree.context()

    (tree.unpacked / "PKG-INFO").write_text("Version: 9.9.8\n")
    assert "names 9.9.9" in said(tree.prepare(sdist=tree.unpacked))
    assert "is not an unpacked sdist" in said(tree.prepare(sdist=tree.patches))


def test_a_pin_of_another_form_is_refused(tree: Tree) -> None:
    tree.pin.write_text("llama-cpp-python==9.9.9\n")
    assert "must hold one line" in said(tree.prepare())


def test_what_the_library_says_of_its_source(tree: Tree) -> None:
    """The commit that the pin names, and the series."""
    tree.write_series(**{"0002-b": P_GRAPH, "0001-a": P_CONTEXT})
    patches = sorted(tree.patches.iterdir())
    script = tree.root / "identity.cmake"
    script.write_text(
        f'include("{SCRIPTS}/apply.cmake")\ninclude("{SCRIPTS}/identity.cmake")\n'
        f'pyselfextend_read_commit("{tree.pin}" commit)\n'
        f"pyselfextend_describe_series(names sha256 {' '.join(map(str, patches))})\n"
        'execute_process(COMMAND "${CMAKE_COMMAND}" -E echo "${commit}, ${names}, ${sha256}")\n'
    )
    assert "must hold a line `# llama.cpp commit: COMMIT`" in said(run_script(script))
    tree.pin.write_text("# llama.cpp commit: 0123abcd\n" + tree.pin.read_text())
    hashes = "".join(f"{hashlib.sha256(patch.read_bytes()).hexdigest()} {patch.name}\n" for patch in patches)
    expected = hashlib.sha256(hashes.encode()).hexdigest()
    assert ok(run_script(script)) == f"0123abcd, 0001-a 0002-b, {expected}\n"


def fetch(tree: Tree, links: Path, python: str = sys.executable) -> Result:
    env = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links), "PIP_NO_CACHE_DIR": "1"}
    return run_script(SCRIPTS / "fetch.cmake", env=env, PIN=tree.pin, CACHE_DIR=tree.root / "cache", PYTHON=python)


def test_download_once(tree: Tree, tmp_path: Path) -> None:
    cached = tmp_path / "cache" / tree.sdist.name
    first = ok(fetch(tree, tree.root))
    assert first.splitlines()[-1] == str(cached)
    assert cached.read_bytes() == tree.sdist.read_bytes()
    assert [f.name for f in cached.parent.iterdir()] == [cached.name]

    (nothing := tmp_path / "nothing").mkdir()
    assert ok(fetch(tree, nothing)).splitlines() == [str(cached)]

    cached.write_bytes(b"damaged")
    assert "damaged" in ok(fetch(tree, tree.root))
    assert cached.read_bytes() == tree.sdist.read_bytes()


def test_download_of_something_else(tree: Tree, tmp_path: Path) -> None:
    tree.write_pin("0" * 64)
    message = said(fetch(tree, tree.root))
    assert "could not download llama-cpp-python 9.9.9" in message
    assert "PYSELFEXTEND_LLAMA_CPP_SDIST" in message
    assert list((tmp_path / "cache").iterdir()) == []


def add_stock(tree: Tree, file: str) -> Result:
    """The stock library of a series that changes this file."""
    series = tree.patches / "series.patch"
    series.write_text(patch(file, CONTEXT, "int n_seq = 1;", "int n_seq = 2;"))
    script = tree.root / "stock.cmake"
    script.write_text(
        f'include("{SCRIPTS}/apply.cmake")\ninclude("{SCRIPTS}/stock.cmake")\n'
        f'function(add_library name type)\nmessage(FATAL_ERROR "${{name}} of ${{ARGN}}.")\nendfunction()\n'
        f'pyselfextend_add_stock("{series}")\n'
    )
    return run_script(script, LLAMA_CPP_STOCK_DIR="stock")


@pytest.mark.parametrize(
    "file", ["src/llama-context.h", "src/models/llama.cpp", "ggml/src/ggml.c", "ggml/src/ggml-cpu/ops.cpp"]
)
def test_stock_library_needs_a_series_of_sources(tree: Tree, file: str) -> None:
    assert "changes src/*.cpp only" in said(add_stock(tree, file))


@pytest.mark.parametrize("backend", ["cuda", "vulkan"])
def test_stock_library_leaves_devices_alone(tree: Tree, backend: str) -> None:
    """Their libraries are linked as they are: nothing of them is compiled again, as a source of libllama is."""
    assert "stock/src/llama-context.cpp" in said(add_stock(tree, "src/llama-context.cpp"))
    message = said(add_stock(tree, f"ggml/src/ggml-{backend}/ggml-{backend}.cpp"))
    assert "llama-stock of" in message
    assert f"ggml-{backend}.cpp" not in message


@pytest.mark.parametrize("option", ["GGML_BACKEND_DL=ON", "GGML_CPU=OFF", "LLAMA_USE_SYSTEM_GGML=ON"])
def test_unsupported_options_are_refused(tmp_path: Path, option: str) -> None:
    command = [cmake(), "-S", str(ROOT), "-B", str(tmp_path), f"-D{option}"]
    result = subprocess.run(command, capture_output=True, text=True)
    name = option.split("=")[0]
    assert re.search(rf"{name}\S* is not supported", said(result))


def test_bindings_are_of_the_pinned_version() -> None:
    pin = re.search(r"^llama-cpp-python==(\S+) ", (ROOT / "native/LLAMA_CPP_PIN").read_text(), re.MULTILINE)
    required = re.search(r'"llama-cpp-python==([^"]+)"', (ROOT / "pyproject.toml").read_text())
    assert pin and required
    assert pin[1] == required[1]
