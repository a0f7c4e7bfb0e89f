"""What is built in and whether it works: the library, processor and devices, the default model, extras, a model.

Nothing native is loaded in this process: ``probe`` does that in one of its own, so that an installation that is broken
is described, whatever is wrong with it. Needs nothing but Python itself, unless a model is named.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import _native, requirements
from .errors import NativeLibraryError, SelfExtendError
from .placement import Attention, attention_from

__all__ = ["Build", "Device", "Diagnosis", "Features", "ModelAnswer", "examine"]

NAME = requirements.NAME
ATTN_VARIABLE = "PYSELFEXTEND_ATTN"  # llama.model.ATTN_VARIABLE, in a module that loads the library
#: Runs the probe of the package that this process has, and not of another one in the current folder.
PROBE = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    f"runpy.run_module('{NAME}.probe', run_name='__main__')"
)

N_SECONDS = 600  # for the probe: a large model may have to be read from a slow disk

#: ggml's name of an instruction set by the kernel's, on x86-64 and AArch64.
CPU_FLAGS = {
    "pni": "SSE3", "ssse3": "SSSE3", "avx": "AVX", "avx_vnni": "AVX_VNNI", "avx2": "AVX2", "f16c": "F16C", "fma": "FMA",
    "bmi2": "BMI2", "avx512f": "AVX512", "avx512vbmi": "AVX512_VBMI", "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16", "amx_int8": "AMX_INT8",
    "asimd": "NEON", "asimdhp": "FP16_VA", "asimddp": "DOTPROD", "i8mm": "MATMUL_INT8", "sve": "SVE", "sme": "SME",
    "sme2": "SME2",
}  # fmt: skip


@dataclass(frozen=True)
class Build:
    """What the installed library was built from."""

    version: str
    """Of the package."""

    build_id: str
    """A hash of the pinned source, the patch series and the project's own sources."""

    llama_cpp_python: str
    """The version of the bindings, in whose archive llama.cpp is."""

    llama_cpp_commit: str
    """llama.cpp's commit."""

    llama_cpp_sha256: str
    """Of that archive."""

    patches: tuple[str, ...]
    """The patch series, in order."""

    patches_sha256: str
    """A hash of the series."""


@dataclass(frozen=True)
class Features:
    """Instruction sets, by ggml's names."""

    built: tuple[str, ...]
    """What the library was compiled for, as ``llama_print_system_info`` says."""

    unused: tuple[str, ...]
    """What this processor has beyond that."""

    missing: tuple[str, ...]
    """What the library was compiled for and this processor lacks: such a library ends the process."""


@dataclass(frozen=True)
class Device:
    """A device that the library sees."""

    name: str
    description: str

    type: str
    """CPU, GPU, IGPU (integrated, in main memory), ACCEL or META."""

    backend: str

    bytes_free: int
    """Memory in bytes, as the device says."""

    bytes_total: int

    is_fused: bool
    """Whether it offers the fused attention, of the shapes that it supports."""


@dataclass(frozen=True)
class ModelAnswer:
    """What the engine answered to a small context with ``ga_n=2``."""

    n_gpu_layers: int
    """Layers on devices that are not the CPU: 0, or -1 for all."""

    flash_attn: bool
    """Whether flash attention was on, without which devices other than the CPU do not fuse."""

    attention: tuple[Attention, ...]
    """Which way the attention of each extended layer is computed, and where. Empty if the model is refused."""

    refused: str | None
    """Why SelfExtend does not support the model, in the engine's words; None: it does."""


@dataclass(frozen=True)
class Diagnosis:
    """An installation as it was found."""

    version: str | None
    """Of the installed package."""

    python: str
    system: str

    package: Path
    """Where the package lies."""

    library: Path | None
    """The library that is used; None if it cannot be."""

    build: Build | None
    """None: the package was not built."""

    backends: tuple[str, ...]
    """ggml's backends in the library."""

    devices: tuple[Device, ...]

    features: Features | None

    kernel_isa: str | None
    """The instructions that the fused kernel uses on this processor: avx512, avx2, neon or portable."""

    attention: str
    """Which way layers will compute their attention, by the devices that they lie on."""

    default_model: Path | None
    """The model that is used where none is named; None: it is not installed."""

    extras: Mapping[str, tuple[str, ...]]
    """By extra: the distributions that it lacks. Complete if there are none."""

    model: Path | None
    """The model that was asked about."""

    answers: tuple[ModelAnswer, ...]
    """The engine's: with layers on the CPU, and with all layers on the other devices if there are any."""

    problems: tuple[str, ...]
    """What is broken, each with what to do about it. Empty: all is well."""

    @property
    def is_well(self) -> bool:
        """Whether nothing is broken, and the model that was asked about is supported."""
        return not self.problems and all(answer.refused is None for answer in self.answers)


def examine(model: str | os.PathLike[str] | None = None) -> Diagnosis:
    """Look at the installation, and at whether SelfExtend supports a model. Raises nothing: what fails is a problem.

    Args:
        model: a GGUF file. It is loaded, with a context of one token.
    """
    problems = [*_environment_problems(), *requirements.missing()]
    path = None if model is None else Path(model)
    if path is not None and (problem := _file_problem(path)) is not None:
        problems.append(problem)
    found, problem = _probe(None if path is None or problem is not None else path)
    if problem is not None:
        problems.append(problem)

    build = _build(found.get("library"))
    version = requirements.installed_version(NAME)
    if build is not None and version not in (None, build.version):
        problems.append(
            f"the package is of version {version}, its library of version {build.version}; {_native.REINSTALL}"
        )
    library = Path(found["library"]["path"]) if "library" in found else None
    if library is not None and not any(library.parent.glob("*mtmd*")):
        problems.append(f"there is no libmtmd in {library.parent}, which chats with images need; {_native.REINSTALL}")
    features = _features(found["system_info"]) if "system_info" in found else None
    if features is not None and features.missing:
        problems.append(
            f"the library was built for {', '.join(features.missing)}, which this processor lacks; {_native.REINSTALL}"
        )
    devices = tuple(Device(**device) for device in found.get("devices", ()))
    answers, failures = _answers(found.get("model", ()), path)
    return Diagnosis(
        version=version,
        python=f"{platform.python_version()} ({sys.executable})",
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        package=Path(__file__).resolve().parent,
        library=library,
        build=build,
        backends=tuple(found.get("backends", ())),
        devices=devices,
        features=features,
        kernel_isa=found.get("kernel_isa"),
        attention=_attention(devices) if library is not None else "unknown: the library cannot be used",
        default_model=_default_model(),
        extras=requirements.extras(),
        model=path,
        answers=answers,
        problems=tuple([*problems, *failures]),
    )


#
# what the probe found
#


def _probe(model: Path | None) -> tuple[dict[str, Any], str | None]:
    """The findings of ``probe`` by name, and what is wrong."""
    flags = {"isolated": "-I", "ignore_environment": "-E", "no_user_site": "-s", "no_site": "-S"}
    command = [sys.executable, *(flag for name, flag in flags.items() if getattr(sys.flags, name))]
    command += ["-c", PROBE, json.dumps(sys.path), *([] if model is None else [str(model)])]
    end = None
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=N_SECONDS, check=False)
        output = done.stdout
        if done.returncode != 0:
            end = _end(done.returncode, done.stderr.decode(errors="replace"))
    except subprocess.TimeoutExpired as expired:
        output, end = expired.stdout or b"", f"has not answered for {N_SECONDS} seconds"
    except OSError as error:
        return {}, f"Python cannot be started to load the library: {error}; {_native.REINSTALL}"

    found: dict[str, Any] = {}
    for line in output.decode(errors="replace").splitlines():
        try:
            found |= json.loads(line)
        except (TypeError, ValueError):
            continue  # something else that a library has printed
    if "error" in found:
        return found, str(found["error"])
    if end is None:
        return found, None
    if model is not None and "devices" in found:  # until then all was well
        advice = "free memory, or name a smaller file" if "SIGKILL" in end else "name another file"
        return found, f"llama.cpp does not survive {model}: it {end}; {advice}"
    advice = _native.REINSTALL
    if "SIGILL" in end:
        advice = "it was built for another processor: build it on this one, or with CMAKE_ARGS=-DGGML_NATIVE=OFF"
    return found, f"the library {end}; {advice}"


def _end(status: int, errors: str) -> str:
    """How a process ended."""
    lines = [" ".join(line.split()) for line in errors.splitlines() if line.strip()]
    if status > 0:
        return f"cannot be loaded: {lines[-1] if lines else f'exit status {status}'}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    reasons = [line for line in lines if "GGML_ASSERT" in line]
    return f"ends the process with {name}{f' ({reasons[-1]})' if reasons else ''}"


def _build(library: Mapping[str, str] | None) -> Build | None:
    """What the library says of itself, otherwise what was installed beside it."""
    facts: Mapping[str, str]
    if library is not None:
        facts = {name.upper(): value for name, value in library.items()}
    else:
        try:
            facts = vars(_native._build())
        except NativeLibraryError:
            return None
    text = {name: str(facts.get(name, "unknown")) for name in (
        "VERSION", "BUILD_ID", "LLAMA_CPP_PYTHON", "LLAMA_CPP_COMMIT", "LLAMA_CPP_SHA256", "PATCHES", "PATCHES_SHA256"
    )}  # fmt: skip
    return Build(
        version=text["VERSION"],
        build_id=text["BUILD_ID"],
        llama_cpp_python=text["LLAMA_CPP_PYTHON"],
        llama_cpp_commit=text["LLAMA_CPP_COMMIT"],
        llama_cpp_sha256=text["LLAMA_CPP_SHA256"],
        patches=tuple(text["PATCHES"].split()),
        patches_sha256=text["PATCHES_SHA256"],
    )


def _features(system_info: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> Features:
    """What the CPU backend was compiled for, against what the kernel says of this processor, where it does."""
    built = tuple(name for name, value in re.findall(r"(\w+) = (\d+)", system_info) if value != "0")
    try:
        lines = cpuinfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        return Features(built, (), ())
    words = re.search(r"^(?:flags|Features)\s*:(.*)$", lines, re.MULTILINE)
    if words is None:
        return Features(built, (), ())
    has = [name for flag, name in CPU_FLAGS.items() if flag in words[1].split()]
    return Features(
        built=built,
        unused=tuple(name for name in has if name not in built),
        missing=tuple(name for name in built if name in CPU_FLAGS.values() and name not in has),
    )


def _attention(devices: tuple[Device, ...]) -> str:
    forced = os.environ.get(ATTN_VARIABLE, "auto")
    if forced in ("fused", "composed"):
        return f"{forced} in all layers: {ATTN_VARIABLE} is set"
    others = [device for device in devices if device.type not in ("CPU", "ACCEL")]
    if not others:
        return "fused in all layers: the only device is the CPU"
    fused = [device.name for device in others if device.is_fused]
    composed = [device.name for device in others if not device.is_fused]
    text = f"fused in layers on {', '.join(['CPU', *fused])}"
    if fused:
        text += f" ({', '.join(fused)}: with flash_attn=True and heads of a size that has a kernel, otherwise composed)"
    if composed:
        text += f"; composed of stock operators in those on {', '.join(composed)}"
    return text


def _answers(found: Any, path: Path | None) -> tuple[tuple[ModelAnswer, ...], list[str]]:
    answers, failures = [], []
    for answer in found:
        if "error" in answer:
            where = "" if answer["n_gpu_layers"] == 0 else " onto the devices"
            failures.append(f"{path} cannot be loaded{where}: {answer['error']}; get the file again, or another one")
        else:
            answers.append(
                ModelAnswer(
                    answer["n_gpu_layers"],
                    answer["flash_attn"],
                    attention_from(answer.get("attention", ())),
                    answer.get("refused"),
                )
            )
    return tuple(answers), failures


#
# what can be seen without it
#


def _environment_problems() -> Iterator[str]:
    given = _native.given_lib_path
    try:
        ours = _native.lib_dir()
    except NativeLibraryError:
        return  # the probe says so
    if given and Path(given).resolve() != ours.resolve():
        yield (
            f"{_native.LIB_PATH_VARIABLE} is set to {given}: a program that imports llama_cpp before {NAME} gets the "
            "library there; unset it"
        )
    attn = os.environ.get(ATTN_VARIABLE, "auto")
    if attn not in _native.ATTN:
        yield f"{ATTN_VARIABLE} is {attn!r}; set it to one of {', '.join(_native.ATTN)}, or unset it"


def _default_model() -> Path | None:
    from .default_model import find_model

    try:
        path = find_model()
    except SelfExtendError:
        return None
    return path if path.is_file() else None


def _file_problem(path: Path) -> str | None:
    """What is wrong with a model's file, as far as its metadata tell."""
    try:
        from .model_info import model_info

        model_info(path)
    except SelfExtendError as error:
        return f"{error}; name another file"
    except ImportError:  # of gguf, which is a problem of its own
        return None
    return None
