"""Which llama.cpp is in the process: ours, of this build, alone; otherwise an exception that says what to do."""

from __future__ import annotations

import hashlib
import os
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import pyselfextend
from pyselfextend import _native

SOURCE = Path(pyselfextend.__file__).resolve().parent
LIB = _native.lib_dir()
SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")


def python(code: str, *path: Path, **environment: str) -> str:
    """Run code in a fresh interpreter. Returns what it printed: its last line if it failed, which names the exception.

    With path: the package is taken from there. -S keeps away what an editable install adds to the import system.
    """
    command = [sys.executable, "-c", code]
    variables = {key: value for key, value in os.environ.items() if key != "LLAMA_CPP_LIB_PATH"}
    if path:
        packages = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
        variables["PYTHONPATH"] = os.pathsep.join(map(str, [*path, *dict.fromkeys(packages)]))
        command.insert(1, "-S")
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=variables | environment, cwd=Path(__file__).parent
    )
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with a copy of the package and its libraries in it."""
    package = tmp_path / "copy" / "pyselfextend"
    shutil.copytree(SOURCE, package, ignore=shutil.ignore_patterns("__pycache__", "lib"))
    shutil.copytree(LIB, package / "lib")
    shutil.copy(LIB.parent / "_build.py", package)
    return package.parent


@pytest.fixture
def other_libraries(tmp_path: Path) -> Path:
    """A folder with another libllama and a ggml under its stock name."""
    folder = tmp_path / "other"
    shutil.copytree(LIB, folder)
    shutil.copy(folder / f"libggml-base-pyselfextend{SUFFIX}", folder / f"libggml-base{SUFFIX}")
    return folder


def test_public_names() -> None:
    assert sorted(pyselfextend.__all__) == [
        "BenchError",
        "ContextFullError",
        "DemoError",
        "EvalError",
        "GrammarError",
        "Llama",
        "MissingExtraError",
        "ModelFileError",
        "NativeLibraryError",
        "NotAnIntegerError",
        "SelfExtendConfig",
        "SelfExtendError",
        "SelfExtendInfo",
        "ServerError",
        "SettingError",
        "ShiftError",
        "StaleStreamError",
        "StateError",
        "UnknownArgumentError",
        "UsageError",
        "WrongTypeError",
        "__version__",
    ]
    for name in pyselfextend.__all__:
        assert getattr(pyselfextend, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Lama'"):
        _ = pyselfextend.Lama


def test_build_information() -> None:
    build = sys.modules["pyselfextend._build"]
    assert _native.load().build_info() == {
        "version": build.VERSION,
        "build_id": build.BUILD_ID,
        "llama_cpp_python": build.LLAMA_CPP_PYTHON,
        "llama_cpp_sha256": build.LLAMA_CPP_SHA256,
        "llama_cpp_commit": build.LLAMA_CPP_COMMIT,
        "patches": build.PATCHES,
        "patches_sha256": build.PATCHES_SHA256,
    }


def test_build_information_is_that_of_the_tree() -> None:
    """Pin and series as they lie in the repository."""
    native = Path(__file__).resolve().parent.parent / "native"
    pin = (native / "LLAMA_CPP_PIN").read_text()
    patches = sorted((native / "patches").glob("*.patch"))
    hashes = "".join(f"{hashlib.sha256(patch.read_bytes()).hexdigest()} {patch.name}\n" for patch in patches)
    info = _native.load().build_info()
    assert f"# llama.cpp commit: {info['llama_cpp_commit']}\n" in pin
    assert f"llama-cpp-python=={info['llama_cpp_python']} --hash=sha256:{info['llama_cpp_sha256']}" in pin
    assert info["patches"].split() == [patch.stem for patch in patches]
    assert info["patches_sha256"] == hashlib.sha256(hashes.encode()).hexdigest()


def test_pure_modules_load_nothing_native() -> None:
    code = (
        "import sys; from pyselfextend import _native, config, doctor, errors, plan, positions, prompts\n"
        "libraries = [path.name for path in _native.loaded_libraries() if _native._STOCK.fullmatch(path.name)]\n"
        "print('llama_cpp' in sys.modules, libraries)"
    )
    assert python(code) == "False []"


def test_our_library_is_the_one_in_use() -> None:
    code = (
        "import pyselfextend, llama_cpp; pyselfextend.Llama; from pyselfextend import _native\n"
        "print(llama_cpp.llama_cpp._lib._name)\n"
        "print(*sorted({p.parent for p in _native.loaded_libraries() if _native._STOCK.fullmatch(p.name)}))"
    )
    handle, folders = python(code).splitlines()
    assert Path(handle).parent == LIB
    assert folders == str(LIB)


def test_multimodal_handlers_find_our_library() -> None:
    """libmtmd lies beside our libllama and is linked to it: a stock one would bring its own llama.cpp along."""
    code = (
        "import pyselfextend; pyselfextend.Llama; import llama_cpp.mtmd_cpp as mtmd\n"
        "from pyselfextend import _native\n"
        "print(mtmd._libmtmd._name, mtmd.mtmd_default_marker().decode())\n"
        "print(*sorted({p.parent for p in _native.loaded_libraries() if _native._STOCK.fullmatch(p.name)}))"
    )
    handle, folders = python(code).splitlines()
    assert Path(handle.split()[0]).parent == LIB
    assert handle.endswith("<__media__>")
    assert folders == str(LIB)


def test_a_variable_that_names_another_library_does_not_count(other_libraries: Path) -> None:
    code = "import pyselfextend, llama_cpp; pyselfextend.Llama; print(llama_cpp.llama_cpp._lib._name)"
    assert Path(python(code, LLAMA_CPP_LIB_PATH=str(other_libraries))).parent == LIB


def test_llama_cpp_first_with_our_library() -> None:
    code = "import llama_cpp, pyselfextend; pyselfextend.Llama; print('fine')"
    assert python(code, LLAMA_CPP_LIB_PATH=str(LIB)) == "fine"


def test_llama_cpp_first_with_another_library(other_libraries: Path) -> None:
    message = python("import llama_cpp, pyselfextend", LLAMA_CPP_LIB_PATH=str(other_libraries))
    assert message.startswith("pyselfextend.errors.NativeLibraryError: llama_cpp has loaded ")
    assert str(other_libraries) in message
    assert str(LIB) in message
    assert "import pyselfextend before llama_cpp" in message


def test_another_library_in_between(other_libraries: Path) -> None:
    code = (
        f"import os, pyselfextend; os.environ['LLAMA_CPP_LIB_PATH'] = {str(other_libraries)!r}\n"
        "import llama_cpp; pyselfextend.Llama"
    )
    message = python(code)
    assert message.startswith(f"pyselfextend.errors.NativeLibraryError: llama_cpp has loaded {other_libraries}")


def test_the_exception_is_an_import_error(other_libraries: Path) -> None:
    code = "import llama_cpp\ntry: import pyselfextend\nexcept ImportError as error: print(type(error).__name__)"
    assert python(code, LLAMA_CPP_LIB_PATH=str(other_libraries)) == "NativeLibraryError"


def test_a_stock_ggml_in_the_process(other_libraries: Path) -> None:
    stock = other_libraries / f"libggml-base{SUFFIX}"
    message = python(f"import ctypes; ctypes.CDLL({str(stock)!r}); import pyselfextend; pyselfextend.Llama")
    assert message.startswith("pyselfextend.errors.NativeLibraryError: ")
    assert str(stock) in message
    assert str(LIB) in message
    assert "use a process that does not import the package which loads that" in message


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("libllama.so", True),
        ("libllama.so.0.5.0", True),
        ("libggml-cpu-haswell.so", True),
        ("libggml-base.0.dylib", True),
        ("ggml-base.dll", True),
        ("libllamafile.so", False),
        ("libgguf.so", False),
        ("libllama.py", False),
    ],
)
def test_names_of_libraries(name: str, is_one: bool) -> None:
    assert bool(_native._STOCK.fullmatch(name)) == is_one


def test_a_copy_works(copy: Path) -> None:
    code = "from pyselfextend import Llama, _native; print(_native.load().path)"
    assert Path(python(code, copy)).parent == copy / "pyselfextend" / "lib"


def test_another_build(copy: Path) -> None:
    build = copy / "pyselfextend" / "_build.py"
    build_id = _native.load().build_info()["build_id"]
    build.write_text(build.read_text().replace(build_id, "0123456789abcdef"))
    message = python("from pyselfextend import Llama", copy)
    assert message.startswith("pyselfextend.errors.NativeLibraryError: ")
    assert str(copy / "pyselfextend" / "lib") in message
    assert f"is of build {build_id}" in message
    assert f"{build} is of build 0123456789abcdef" in message
    assert "reinstall pyselfextend" in message


def test_another_library_in_our_place(copy: Path) -> None:
    library = copy / "pyselfextend" / "lib" / f"libllama{SUFFIX}"
    shutil.copy(copy / "pyselfextend" / "lib" / f"libggml-base-pyselfextend{SUFFIX}", library)
    message = python("from pyselfextend import Llama", copy)
    assert message.startswith("pyselfextend.errors.NativeLibraryError: ")
    assert str(library) in message
    assert "reinstall pyselfextend" in message


def test_no_library(copy: Path) -> None:
    (copy / "pyselfextend" / "lib" / f"libllama{SUFFIX}").unlink()
    assert python("from pyselfextend import positions; print(positions.pos_k(9, 2))", copy) == "4"
    message = python("from pyselfextend import Llama", copy)
    assert message.startswith("pyselfextend.errors.NativeLibraryError: there is no libllama in ")
    assert str(copy / "pyselfextend" / "lib") in message


def test_not_built(copy: Path) -> None:
    (copy / "pyselfextend" / "_build.py").unlink()
    assert python("from pyselfextend import positions; print(positions.pos_k(9, 2))", copy) == "4"
    message = python("from pyselfextend import Llama", copy)
    assert message.startswith(f"pyselfextend.errors.NativeLibraryError: pyselfextend in {copy / 'pyselfextend'} ")
    assert "was not built; install it with pip" in message


def test_bindings_of_another_version() -> None:
    code = "import pyselfextend, llama_cpp; llama_cpp.__version__ = '0.3.1'; pyselfextend.Llama"
    message = python(code)
    assert message.startswith("pyselfextend.errors.NativeLibraryError: ")
    assert "version 0.3.1; install llama-cpp-python==" in message
