"""native/cmake/objects.cmake: objects of elsewhere are linked if they fit, and only then. Here without CUDA."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path
from shutil import copyfile, which

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "native" / "cmake"
CMAKE = which("cmake", path=sysconfig.get_path("scripts")) or "cmake"
NINJA = which("ninja", path=sysconfig.get_path("scripts")) or "ninja"

PROJECT = """
cmake_minimum_required(VERSION 3.21)
project(example LANGUAGES CXX)
foreach(module fetch apply objects)
    include({scripts}/${{module}}.cmake)
endforeach()
set(GGML_CUDA_GRAPHS ON CACHE BOOL "")
set(STORE "" CACHE PATH "")
add_subdirectory(ggml)
pyselfextend_take_objects("${{STORE}}")
"""

LIBRARY = """
add_library(ggml-cuda SHARED src/ggml-cuda/one.cu src/ggml-cuda/more/two.cu)
set_source_files_properties(src/ggml-cuda/one.cu src/ggml-cuda/more/two.cu PROPERTIES LANGUAGE CXX)
set_source_files_properties(src/ggml-cuda/one.cu src/ggml-cuda/more/two.cu PROPERTIES COMPILE_OPTIONS "-xc++")
"""


class Project:
    """A source tree, built into any folder; returns which of its sources a build compiled."""

    def __init__(self, folder: Path) -> None:
        self.source, self.folder = folder / "source", folder
        files = {
            "CMakeLists.txt": PROJECT.format(scripts=SCRIPTS),
            "ggml/CMakeLists.txt": LIBRARY,
            "ggml/src/ggml-cuda/common.cuh": "#define N 1\n",
            "ggml/src/ggml-cuda/one.cu": '#include "common.cuh"\nextern "C" int one() { return N; }\n',
            "ggml/src/ggml-cuda/more/two.cu": '#include "../common.cuh"\nextern "C" int two() { return 2 * N; }\n',
        }
        for name, text in files.items():
            self.write(name, text)

    def write(self, name: str, text: str) -> None:
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def build(self, name: str, store: Path | None = None, *options: str) -> set[str]:
        build = self.folder / name
        define = [f"-DSTORE={store or ''}", f"-DCMAKE_MAKE_PROGRAM={NINJA}", *options]
        run(CMAKE, "-S", str(self.source), "-B", str(build), "-G", "Ninja", *define)
        out = run(CMAKE, "--build", str(build), "--verbose")
        assert list(build.glob("**/libggml-cuda.*"))
        return {source for source in ("one", "two") if f"{source}.cu.o -c" in out}

    def keep(self, name: str, store: Path) -> None:
        """As native/tools/gpu-check.sh does."""
        first, *objects = (self.folder / name / "generated" / "cuda-objects.txt").read_text().splitlines()
        store.mkdir()
        (store / "headers").write_text(first + "\n")
        for line in objects:
            path, kept = line.split(" ")
            copyfile(path, store / kept)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_what_fits_is_taken(project: Project, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert project.build("here") == {"one", "two"}
    project.keep("here", store)
    project.source = project.source.rename(tmp_path / "elsewhere")
    assert project.build("there", store) == set()

    project.write("ggml/src/ggml-cuda/one.cu", 'extern "C" int one() { return 7; }\n')
    assert project.build("changed", store) == {"one"}
    project.write("ggml/src/ggml-cuda/common.cuh", "#define N 2\n")
    assert project.build("headers", store) == {"one", "two"}


def test_other_options_take_nothing(project: Project, tmp_path: Path) -> None:
    store = tmp_path / "store"
    project.build("here")
    project.keep("here", store)
    assert project.build("there", store, "-DGGML_CUDA_GRAPHS=OFF") == {"one", "two"}
    assert project.build("typed", store, "-DCMAKE_BUILD_TYPE=Debug") == {"one", "two"}
    assert project.build("without", tmp_path / "no store") == {"one", "two"}
