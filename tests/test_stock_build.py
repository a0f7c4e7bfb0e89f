"""The stock build that the benchmark compares with: made on demand, kept, and the same code as ours.

Most of it is tested with a source of one file in the place of llama.cpp; all that handles it is the real thing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from runner import Job, evaluate
from test_reference import some_tokens

from pyselfextend import BenchError, MissingExtraError, _native, bench
from pyselfextend.bench import stock

ROOT = Path(__file__).resolve().parent.parent

PROJECT = """
cmake_minimum_required(VERSION 3.21)
project(llama C)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
add_library(llama SHARED src/llama.c)
set_target_properties(llama PROPERTIES VERSION 1.2 SOVERSION 1)
"""
SLOWLY = """
add_custom_target(slow COMMAND sh -c "echo compiling >> $ENV{COUNT_FILE}; sleep $ENV{SECONDS}" VERBATIM)
add_dependencies(llama slow)
"""
CODE = "int answer(void) { return 42; }\n"

CHILD = """
import signal
import sys
from pathlib import Path
from pyselfextend.bench import stock

signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
stock.native_dir = lambda: Path(sys.argv[1])
print(stock.stock_lib(lambda *stand: print(*stand, flush=True)))
"""


@dataclass
class Small:
    """A pinned source of one file, in a cache folder, and what belongs to a build of it."""

    native: Path
    cache: Path

    def write(self, project: str = PROJECT, code: str = CODE) -> None:
        """Make the archive and pin it."""
        root = self.native.parent / "llama_cpp_python-9.9.9" / "vendor" / "llama.cpp"
        (root / "src").mkdir(parents=True, exist_ok=True)
        (root / "CMakeLists.txt").write_text(project)
        (root / "src" / "llama.c").write_text(code)
        tools = [f"tools/{name}/x" for name in ("cli", "mtmd", "rpc", "server", "ui")]
        others = [
            "LICENSE",
            "cmake/x",
            "common/x",
            "ggml/x",
            "include/x",
            "licenses/x",
            "scripts/ui-assets.cmake",
            "vendor/x",
        ]
        for name in (*others, *tools):  # what is unpacked
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        archive = self.cache / "llama_cpp_python-9.9.9.tar.gz"
        with tarfile.open(archive, "w:gz") as file:
            file.add(self.native.parent / "llama_cpp_python-9.9.9", "llama_cpp_python-9.9.9")
        self.pin(hashlib.sha256(archive.read_bytes()).hexdigest())

    def pin(self, digest: str, version: str = "9.9.9") -> None:
        (self.native / "LLAMA_CPP_PIN").write_text(f"llama-cpp-python=={version} --hash=sha256:{digest}\n")

    def options(self, **options: str) -> None:
        """Change what our own build was configured with."""
        file = self.native / "build-options.json"
        record = json.loads(file.read_text())
        record["options"].update(options)
        file.write_text(json.dumps(record))

    @property
    def builds(self) -> list[Path]:
        return sorted(path for path in (self.cache / "stock").glob("*") if path.is_dir())


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    made = Small(tmp_path / "native", tmp_path / "cache")
    shutil.copytree(stock.native_dir(), made.native)
    made.cache.mkdir()
    made.write()
    monkeypatch.setenv("PYSELFEXTEND_CACHE_DIR", str(made.cache))
    monkeypatch.setattr(stock, "native_dir", lambda: made.native)
    return made


# -- what it takes


def test_record_of_our_build() -> None:
    """It has what CMake remembers of it, and the compiler's own words."""
    cache = dict(
        re.findall(r"^([^#/\s:]+):[A-Z]+=(.*)$", (ROOT / "build/dev/CMakeCache.txt").read_text(), re.MULTILINE)
    )
    record = stock.build_options()
    options = record["options"]
    assert {name: cache[name] for name in options} == options
    assert {"GGML_NATIVE", "GGML_OPENMP", "GGML_RPC", "GGML_CUDA", "CMAKE_BUILD_TYPE", "CMAKE_CXX_FLAGS"} <= set(
        options
    )
    for language in ("C", "CXX"):
        command = [options[f"CMAKE_{language}_COMPILER"], "-dumpfullversion", "-dumpversion"]
        version = subprocess.check_output(command, text=True).strip()
        assert record["compilers"][language].split()[1] == version
    assert record["cpu_flags"] in ("-march=native", "-march=native -mno-amx-int8")


def test_amx_is_off_where_the_compiler_gets_it_wrong(tmp_path: Path) -> None:
    """GCC bug 114098: what is stored in a tile configuration gets lost before it is loaded."""
    record = stock.build_options()
    source = tmp_path / "tile.cpp"
    source.write_text(
        "#include <immintrin.h>\n"
        "void load() { alignas(64) unsigned char c[64] = {1}; c[48] = 119; _tile_loadconfig(c); }\n"
    )
    command = [record["options"]["CMAKE_CXX_COMPILER"], "-O3", "-mamx-tile", "-S", "-o", "-", source]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        pytest.skip("the compiler has no AMX")
    lost = "119" not in made.stdout
    assert ("-mno-amx-int8" in record["cpu_flags"].split()) == lost


# -- where it is kept


@pytest.mark.parametrize(
    "variables",
    [
        {"PYSELFEXTEND_CACHE_DIR": "a", "XDG_CACHE_HOME": "b", "HOME": "c"},
        {"XDG_CACHE_HOME": "b", "LOCALAPPDATA": "l", "HOME": "c"},
        {"LOCALAPPDATA": "l", "HOME": "c"},
        {"PYSELFEXTEND_CACHE_DIR": "", "XDG_CACHE_HOME": "", "HOME": "c"},
    ],
)
def test_cache_folder(variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the one that the scripts of the build use."""
    for name in ("PYSELFEXTEND_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value) if value else "")
    script = tmp_path / "ask.cmake"
    script.write_text(
        f'include("{stock.native_dir() / "cmake/fetch.cmake"}")\n'
        'llama_cpp_default_cache_dir(folder "fallback")\nfile(WRITE "${CMAKE_ARGV3}" "${folder}")\n'
    )
    answer = tmp_path / "answer"
    subprocess.run([stock._tool("cmake"), "-P", script, answer], check=True)
    assert Path(answer.read_text()) == stock.cache_dir()


def test_no_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYSELFEXTEND_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BenchError, match="set PYSELFEXTEND_CACHE_DIR"):
        stock.cache_dir()


# -- made once


def test_build(small: Small, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is made with progress, works where it lies, and is found again without a tool or a source."""
    stands: list[tuple[str, int, int]] = []
    folder = stock.stock_lib(lambda *stand: stands.append(stand))
    assert stands[0] == ("fetching llama.cpp", 0, 0)
    assert stands[-1][0] == "compiling the stock build" and stands[-1][1] == stands[-1][2] > 0
    assert folder.parent == small.builds[0]
    assert stock.lib_file(folder).is_file()
    assert sorted(path.name for path in folder.parent.iterdir()) == [
        "build.json", "build.log", "compile_commands.json", "lib"
    ]  # fmt: skip
    assert [path.suffix for path in small.builds[0].parent.iterdir() if path.is_file()] == [".lock"]
    call = f"import ctypes; print(ctypes.CDLL({str(stock.lib_file(folder))!r}).answer())"
    assert subprocess.check_output([sys.executable, "-c", call], text=True) == "42\n"

    (small.cache / "llama_cpp_python-9.9.9.tar.gz").unlink()
    monkeypatch.setattr(stock, "_tool", lambda name: pytest.fail(f"{name} is not needed"))
    assert stock.stock_lib(lambda *stand: pytest.fail("there is nothing to do")) == folder


def test_another_source_or_option_is_another_build(small: Small) -> None:
    folders = [stock.stock_lib()]
    small.write(code=CODE.replace("42", "43"))
    folders.append(stock.stock_lib())
    small.options(CMAKE_C_FLAGS="-DANSWER")
    folders.append(stock.stock_lib())
    assert len(set(folders)) == 3 == len(small.builds)
    commands = json.loads((folders[2].parent / "compile_commands.json").read_text())
    assert "-DANSWER" in commands[0]["command"]
    assert "-O3" in commands[0]["command"]  # as our own build


def test_what_is_left_of_a_killed_build(small: Small) -> None:
    """Half a build is not taken for a whole one, and does not disturb the next."""
    folder = stock.stock_lib()
    place = folder.parent
    shutil.rmtree(place / "lib")
    (place / "build.json").unlink()
    place.with_suffix(".build").mkdir()
    (place.with_suffix(".build") / "CMakeCache.txt").write_text("nonsense\n")
    place.with_suffix(".new").mkdir()
    assert stock.stock_lib() == folder
    assert stock.lib_file(folder).is_file()
    assert small.builds == [place]


def test_an_interrupted_build(small: Small, tmp_path: Path) -> None:
    """It ends with its compilers, and leaves nothing that could be taken for a build."""
    small.write(PROJECT + SLOWLY)
    environment = {**os.environ, "COUNT_FILE": str(tmp_path / "count"), "SECONDS": "60"}
    command = [sys.executable, "-c", CHILD, str(small.native)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as child:
        while not (tmp_path / "count").exists():
            assert child.poll() is None
            time.sleep(0.05)
        compilers = psutil.Process(child.pid).children(recursive=True)
        assert len(compilers) >= 2
        child.send_signal(signal.SIGINT)
        child.wait(timeout=30)
    assert psutil.wait_procs(compilers, timeout=10)[1] == []
    assert small.builds == []
    environment["SECONDS"] = "0"
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    assert len(small.builds) == 1


def test_two_at_once(small: Small, tmp_path: Path) -> None:
    """One builds, the other waits for it."""
    small.write(PROJECT + SLOWLY)
    environment = {**os.environ, "COUNT_FILE": str(tmp_path / "count"), "SECONDS": "2"}
    command = [sys.executable, "-c", CHILD, str(small.native)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    outputs = [child.communicate(timeout=120)[0].splitlines() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert outputs[0][-1] == outputs[1][-1] == str(small.builds[0] / "lib")
    assert (tmp_path / "count").read_text() == "compiling\n"
    waited = ["waiting for another process that makes the stock build 0 0" in lines for lines in outputs]
    assert sorted(waited) == [False, True]


# -- what goes wrong


def test_code_that_does_not_compile(small: Small) -> None:
    small.write(code="int answer(void) { return nothing; }\n")
    with pytest.raises(
        BenchError, match=r"^the stock build failed: .*; its log is .*\.log; name an existing"
    ) as caught:
        stock.stock_lib()
    message = str(caught.value)
    assert "\n" not in message
    log = Path(re.findall(r"its log is (.*?);", message)[0])
    assert "error: " in log.read_text() and "nothing" in log.read_text()
    assert "error: " in message
    assert small.builds == []
    small.write()
    assert stock.lib_file(stock.stock_lib()).is_file()


def test_a_project_that_cannot_be_configured(small: Small) -> None:
    small.write(PROJECT + 'message(FATAL_ERROR "this machine is too small")\n')
    with pytest.raises(BenchError, match=r"^the stock build failed: this machine is too small; its log is"):
        stock.stock_lib()


def test_no_network(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    small.pin("0" * 64, "9.9.8")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(BenchError, match=r"failed: pip could not download llama-cpp-python 9\.9\.8 as .*; its log is"):
        stock.stock_lib()


def test_no_compiler(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    small.options(CMAKE_C_COMPILER="/nowhere/cc", CMAKE_CXX_COMPILER="/nowhere/c++")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BenchError, match=r"^the stock build needs a C compiler, and none was found; name an existing"):
        stock.stock_lib()


def test_another_compiler(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of our build is gone: the one of this machine is taken."""
    small.options(CMAKE_C_COMPILER="/nowhere/cc")
    monkeypatch.delenv("CC", raising=False)
    commands = json.loads((stock.stock_lib().parent / "compile_commands.json").read_text())
    assert commands[0]["command"].split()[0] == shutil.which("cc")


def test_no_tools(small: Small, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    assert compiler
    small.options(CMAKE_C_COMPILER=compiler, CMAKE_CXX_COMPILER=compiler)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(stock.sysconfig, "get_path", lambda name: "/nowhere")  # type: ignore[attr-defined]
    with pytest.raises(
        MissingExtraError, match=r"needs cmake, which is not installed; .*pip install 'pyselfextend\[bench\]'"
    ):
        stock.stock_lib()


def test_a_cache_that_cannot_be_written(small: Small, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PYSELFEXTEND_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(BenchError, match=r"^the stock build in .* failed: "):
        stock.stock_lib()


# -- the real one


def commands_of(database: Path, *replacements: tuple[Path | str, str]) -> dict[str, list[str]]:
    """By source file: its compile command, with folders named alike and without the output."""
    found: dict[str, list[str]] = {}
    for entry in json.loads(database.read_text()):
        words = shlex.split(entry["command"])[1:]
        if "-o" in words:
            del words[words.index("-o") :][:2]
        text = "\n".join([entry["file"], *words])
        for old, new in replacements:
            text = text.replace(str(old), new)
        file, *rest = text.split("\n")
        found[file] = rest
    return found


@pytest.mark.slow
def test_stock_build(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp from the cached archive: found again, compiled with our flags, and bit by bit our plain model."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for archive in stock.cache_dir().glob("llama_cpp_python-*.tar.gz"):
        (cache / archive.name).symlink_to(archive)
    monkeypatch.setenv("PYSELFEXTEND_CACHE_DIR", str(cache))
    monkeypatch.setenv("CCACHE_BASEDIR", str(tmp_path))  # what the package's build has compiled is found again
    folder = bench.stock_lib()
    assert folder.is_relative_to(cache)
    written = stock.lib_file(folder).stat().st_mtime
    assert bench.stock_lib() == folder
    assert stock.lib_file(folder).stat().st_mtime == written

    tokens = some_tokens(300)
    for flash in ("on", "off"):
        job = Job(flash=flash)
        ours, theirs = (evaluate(lib, tiny_model, tokens, job).logits for lib in (_native.lib_dir(), folder))
        assert np.array_equal(ours, theirs)

    assert b"llama_self_extend" not in stock.lib_file(folder).read_bytes()

    stock_commands = commands_of(folder.parent / "compile_commands.json", (f"{folder.parent}.build", "BUILD"))
    our_commands = commands_of(ROOT / "build/dev/compile_commands.json", (ROOT / "build/dev", "BUILD"))
    assert len(stock_commands) > 100
    for file, words in stock_commands.items():
        assert [word for word in our_commands[file] if not word.startswith(f"-I{ROOT / 'native'}")] == words
