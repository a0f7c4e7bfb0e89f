"""Finds, loads and verifies the native library; the one place that knows where it is.

There must be one llama.cpp in the process, and it must be ours, of this build. llama_cpp reads ``LLAMA_CPP_LIB_PATH``
once, when it is first imported, and loads the ``libllama`` in the folder that it names. So ``claim()`` points it at our
folder when the package is imported, and ``load()`` imports llama_cpp and checks what really happened. The variable
stays set, so that ``import llama_cpp`` works after ``import pyselfextend`` and in child processes.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import NativeLibraryError
from .info import SelfExtendInfo
from .maps import MAPS, SELF_EXTEND, map_named
from .placement import Attention, DeviceMemory, group

__all__ = ["ATTN", "Info", "Layer", "Library", "Memory", "Params", "claim", "given_lib_path", "lib_dir", "load"]

#: Where llama_cpp takes libllama from, and where its multimodal chat handlers take libmtmd from.
LIB_PATH_VARIABLE = "LLAMA_CPP_LIB_PATH"
MTMD_PATH_VARIABLE = "MTMD_CPP_LIB"

#: What the variable named before the package set it; doctor reports it.
given_lib_path = os.environ.get(LIB_PATH_VARIABLE)

#: enum llama_self_extend_attn
ATTN = {"auto": 0, "fused": 1, "composed": 2}

#: LLAMA_SELF_EXTEND_GA_W_DEFAULT
GA_W_DEFAULT = 2**32 - 1

#: LLAMA_MAX_LAYERS
N_LAYER_MAX = 512

REINSTALL = "reinstall pyselfextend (in a clone: make clean setup)"


class Params(ctypes.Structure):
    """struct llama_self_extend_params"""

    _fields_ = [
        ("ga_n", ctypes.c_uint32),
        ("ga_n_max", ctypes.c_uint32),
        ("ga_w", ctypes.c_uint32),
        ("attn", ctypes.c_int),
        ("map", ctypes.c_int),
    ]


class Info(ctypes.Structure):
    """struct llama_self_extend_info"""

    _fields_ = [
        ("ga_n", ctypes.c_uint32),
        ("ga_n_max", ctypes.c_uint32),
        ("ga_w", ctypes.c_uint32),
        ("n_ctx_train", ctypes.c_uint32),
        ("n_layer_fused", ctypes.c_uint32),
        ("n_layer_composed", ctypes.c_uint32),
        ("n_ctx_reach", ctypes.c_uint64),
        ("n_bytes_far", ctypes.c_uint64),
        ("n_bytes_near", ctypes.c_uint64),
        ("map", ctypes.c_int),
    ]


class Layer(ctypes.Structure):
    """struct llama_self_extend_layer"""

    _fields_ = [
        ("attn", ctypes.c_int),
        ("device", ctypes.c_char_p),
    ]


class Memory(ctypes.Structure):
    """struct llama_self_extend_memory"""

    _fields_ = [
        ("device", ctypes.c_char_p),
        ("n_bytes_model", ctypes.c_uint64),
        ("n_bytes_cache", ctypes.c_uint64),
        ("n_bytes_compute", ctypes.c_uint64),
    ]


class Library:
    """The functions of ``llama-self-extend.h``, on the handle that llama_cpp uses too."""

    def __init__(self, cdll: ctypes.CDLL, path: Path) -> None:
        self.cdll = cdll
        self.path = path
        self._set_next = _function(cdll, "set_next", ctypes.c_bool, Params)
        self._last_error = _function(cdll, "last_error", ctypes.c_char_p)
        self._get_info = _function(cdll, "get_info", ctypes.c_bool, ctypes.c_void_p, ctypes.POINTER(Info))
        self._get_group = _function(cdll, "get_group", ctypes.c_uint32, ctypes.c_void_p, ctypes.c_int32)
        self._set_group = _function(cdll, "set_group", ctypes.c_bool, ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint32)
        self._get_layer = _function(
            cdll, "get_layer", ctypes.c_bool, ctypes.c_void_p, ctypes.c_int32, ctypes.POINTER(Layer)
        )
        self._get_memory = _function(
            cdll, "get_memory", ctypes.c_int32, ctypes.c_void_p, ctypes.POINTER(Memory), ctypes.c_int32
        )
        self._guard_begin = _function(cdll, "guard_begin", None)
        self._guard_end = _function(cdll, "guard_end", ctypes.c_char_p)
        self._plain_shift_fault = _function(cdll, "plain_shift_fault", ctypes.c_char_p, ctypes.c_void_p)
        self._apply_shifts = _function(cdll, "apply_shifts", None, ctypes.c_void_p)
        self._device_is_fused = _function(cdll, "device_is_fused", ctypes.c_bool, ctypes.c_char_p)
        self._sampler_init_grammar = _function(
            cdll, "sampler_init_grammar", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p
        )
        self._grammar_error = _function(cdll, "grammar_error", ctypes.c_char_p, ctypes.POINTER(ctypes.c_int64))
        self._build_info = _function(cdll, "build_info", ctypes.c_char_p)
        self._kernel_isa = _function(cdll, "kernel_isa", ctypes.c_char_p)

    def set_next(
        self,
        ga_n: int,
        ga_w: int | None = None,
        attn: str = "auto",
        ga_n_max: int = 0,
        ga_map: str = SELF_EXTEND.name,
    ) -> bool:
        """Set what the calling thread's next llama_init_from_model() creates. False: ``last_error`` says why not.

        ga_n_max: to which groups are raised that no longer reach; 0: they are not.
        """
        window = GA_W_DEFAULT if ga_w is None else ga_w
        return bool(self._set_next(Params(ga_n, ga_n_max, window, ATTN[attn], map_named(ga_map).number)))

    def get_group(self, ctx: Any, seq_id: int = 0) -> int:
        """The group size of a sequence of a ``llama_context *``; 0 if it is plain, or has no such sequence."""
        return int(self._get_group(ctx, seq_id))

    def set_group(self, ctx: Any, seq_id: int, ga_n: int) -> bool:
        """Set it: keys are turned with the next tokens. False: ``last_error`` says why not."""
        return bool(self._set_group(ctx, seq_id, ga_n))

    def last_error(self) -> str:
        """Why the calling thread's last set_next(), set_group() or llama_init_from_model() failed; empty if not for
        SelfExtend.
        """
        return str(self._last_error().decode("utf-8"))

    @contextmanager
    def guarded(self) -> Iterator[list[str]]:
        """While this thread loads a model, makes a context or reads a state: what would end the process makes it fail.

        Yields:
            The errors that llama.cpp has logged in this thread, when it has been left.
        """
        errors: list[str] = []
        self._guard_begin()
        try:
            yield errors
        finally:
            errors += filter(None, self._guard_end().decode("utf-8", "replace").splitlines())

    def get_info(self, ctx: Any) -> SelfExtendInfo | None:
        """What is in force in a ``llama_context *``. None: the context is plain."""
        info = Info()
        if not self._get_info(ctx, ctypes.byref(info)):
            return None
        return SelfExtendInfo(
            ga_n=self.get_group(ctx),
            ga_n_max=info.ga_n_max,
            ga_w=info.ga_w,
            ga_map=next(each.name for each in MAPS.values() if each.number == info.map),
            n_ctx_train=info.n_ctx_train,
            n_ctx_reach=info.n_ctx_reach,
            bytes_far=info.n_bytes_far,
            bytes_near=info.n_bytes_near,
            attention=self.get_attention(ctx),
            memory=self.get_memory(ctx),
        )

    def get_attention(self, ctx: Any) -> tuple[Attention, ...]:
        """How the attention of each extended layer of a ``llama_context *`` is computed; empty if it is plain."""
        return group(self._layers(ctx))

    def _layers(self, ctx: Any) -> Iterator[tuple[int, str, str]]:
        names = {value: name for name, value in ATTN.items()}
        layer = Layer()
        for number in range(N_LAYER_MAX):
            if self._get_layer(ctx, number, ctypes.byref(layer)):
                yield number, names[layer.attn], layer.device.decode("utf-8")

    def get_memory(self, ctx: Any) -> tuple[DeviceMemory, ...]:
        """What a ``llama_context *``, also a plain one, and its model have taken on each device, by device name."""
        n_devices = self._get_memory(ctx, None, 0)
        devices = (Memory * n_devices)()
        self._get_memory(ctx, devices, n_devices)
        found = (
            DeviceMemory(
                device=memory.device.decode("utf-8"),
                bytes_model=memory.n_bytes_model,
                bytes_cache=memory.n_bytes_cache,
                bytes_compute=memory.n_bytes_compute,
            )
            for memory in devices
        )
        return tuple(sorted(found, key=lambda memory: memory.device))

    def plain_shift_fault(self, ctx: Any) -> str:
        """Why llama.cpp's shift of a plain ``llama_context *`` is not exact, or ends the process; empty if it is."""
        return str(self._plain_shift_fault(ctx).decode("utf-8"))

    def apply_shifts(self, ctx: Any) -> None:
        """Turn the keys of a ``llama_context *``, also a plain one, whose positions have been shifted, now and not with
        the next tokens: llama.cpp saves a state with the new positions, and the keys as they are.
        """
        self._apply_shifts(ctx)

    def device_is_fused(self, device: str | None = None) -> bool:
        """Whether a device, by ggml's name, offers the fused attention, of the shapes that it supports.

        None: whether any does for whose sake flash attention should be on; the CPU fuses without.
        """
        return bool(self._device_is_fused(None if device is None else device.encode("utf-8")))

    def init_grammar(self, vocab: Any, grammar: bytes, root: bytes) -> int | None:
        """A ``llama_sampler *`` that its owner frees, for a ``llama_vocab *``. None: ``grammar_error`` says why not."""
        sampler: int | None = self._sampler_init_grammar(vocab, grammar, root)
        return sampler

    def grammar_error(self) -> tuple[str, int | None]:
        """What went wrong with a grammar in this thread since the last call, and the offset in its text in bytes.

        Empty: nothing. None: it is not at one place.
        """
        offset = ctypes.c_int64(-1)
        message = str(self._grammar_error(ctypes.byref(offset)).decode("utf-8", "replace"))
        return message, None if offset.value < 0 else offset.value

    def build_info(self) -> dict[str, str]:
        """What the library was built from.

        version, build_id, llama_cpp_python, llama_cpp_sha256, llama_cpp_commit, patches (names, separated by spaces),
        patches_sha256.
        """
        return dict(json.loads(self._build_info()))

    def kernel_isa(self) -> str:
        """The instructions that fused attention uses on this processor: avx512, avx2, neon or portable."""
        return str(self._kernel_isa().decode("ascii"))


def _function(cdll: ctypes.CDLL, name: str, restype: Any, *argtypes: Any) -> Any:
    function = getattr(cdll, f"llama_self_extend_{name}")
    function.restype = restype
    function.argtypes = argtypes
    return function


def lib_dir() -> Path:
    """The folder of the native libraries.

    CMake installs it next to the ``_build.py`` that it generates; in an editable install this file lies elsewhere.
    """
    return Path(_build().__file__).resolve().parent / "lib"


def _build() -> Any:
    try:
        return importlib.import_module("pyselfextend._build")
    except ModuleNotFoundError as error:
        raise NativeLibraryError(
            f"pyselfextend in {Path(__file__).parent} has no native library because it was not built; "
            "install it with pip (in a clone: make setup) and import it from there"
        ) from error
    except (SyntaxError, ValueError) as error:  # ValueError: null bytes
        file = getattr(error, "filename", None) or "pyselfextend/_build.py"
        raise NativeLibraryError(f"{file} is damaged: {error}; {REINSTALL}") from error


def _lib_file() -> Path:
    """Our libllama, under the name that llama_cpp looks for first."""
    names = {"win32": ("llama.dll", "libllama.dll"), "darwin": ("libllama.so", "libllama.dylib")}
    folder = lib_dir()
    for name in names.get(sys.platform, ("libllama.so",)):
        if (folder / name).is_file():
            return folder / name
    raise NativeLibraryError(f"there is no libllama in {folder}; {REINSTALL}")


def claim() -> None:
    """Make a later ``import llama_cpp`` load our library; called when the package is imported.

    Does nothing if the package has not been built: what is pure in it works without.

    Raises:
        NativeLibraryError: llama_cpp is imported already, with another library.
    """
    try:
        ours = _lib_file()
    except NativeLibraryError:
        return
    os.environ[LIB_PATH_VARIABLE] = os.environ[MTMD_PATH_VARIABLE] = str(ours.parent)
    if "llama_cpp.llama_cpp" in sys.modules:
        _check_handle(sys.modules["llama_cpp.llama_cpp"], ours)


@functools.cache
def load() -> Library:
    """Load the library through llama_cpp and verify it. Cached once it has succeeded.

    Raises:
        NativeLibraryError: what the process holds is not our library, of this build, alone. The message names the
            files and says what to do.
    """
    build = _build()
    ours = _lib_file()
    os.environ[LIB_PATH_VARIABLE] = os.environ[MTMD_PATH_VARIABLE] = str(ours.parent)
    try:
        bindings = importlib.import_module("llama_cpp.llama_cpp")
        version = importlib.import_module("llama_cpp").__version__
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise NativeLibraryError(f"llama_cpp could not be imported with {ours}: {error}; {REINSTALL}") from error

    _check_handle(bindings, ours)
    try:
        library = Library(bindings._lib, ours)
    except AttributeError as error:
        raise NativeLibraryError(f"{ours} is not a library of pyselfextend: {error}; {REINSTALL}") from error
    _check_alone(ours)

    info = library.build_info()
    if info["build_id"] != build.BUILD_ID:
        raise NativeLibraryError(
            f"{ours} is of build {info['build_id']}, but {build.__file__} is of build {build.BUILD_ID}; {REINSTALL}"
        )
    if info["llama_cpp_python"] != version:
        raise NativeLibraryError(
            f"{ours} was built for llama-cpp-python {info['llama_cpp_python']}, but {bindings.__file__} is of version "
            f"{version}; install llama-cpp-python=={info['llama_cpp_python']}"
        )
    return library


def _check_handle(bindings: Any, ours: Path) -> None:
    """llama_cpp's handle must be our file."""
    theirs = Path(bindings._lib._name)
    if not theirs.exists() or not theirs.samefile(ours):
        raise NativeLibraryError(
            f"llama_cpp has loaded {theirs} instead of {ours}; import pyselfextend before llama_cpp, in a fresh process"
        )


def _check_alone(ours: Path) -> None:
    """No other llama.cpp or ggml may be in the process: the dynamic linker could bind our calls to it."""
    folder = ours.parent.resolve()
    others = sorted({path for path in loaded_libraries() if _STOCK.fullmatch(path.name) and path.parent != folder})
    if others:
        raise NativeLibraryError(
            f"{ours} is not alone in this process, {', '.join(map(str, others))} is loaded too; "
            "use a process that does not import the package which loads that"
        )


#: File names of llama.cpp's shared libraries, on any platform and with any version.
_STOCK = re.compile(r"(lib)?(llama|ggml|mtmd)([-.].*)?\.(so|dylib|dll)([.\d]*)", re.IGNORECASE)


def loaded_libraries() -> Iterator[Path]:
    """Every shared library in this process, with symbolic links resolved."""
    found = {"darwin": _loaded_macos, "win32": _loaded_windows}.get(sys.platform, _loaded_linux)
    return (Path(name).resolve() for name in found())


def _loaded_linux() -> Iterator[str]:
    maps = Path("/proc/self/maps")
    if not maps.exists():  # a system without procfs; llama_cpp's handle has been checked
        return
    for line in maps.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=5)  # address, permissions, offset, device, inode, path
        if len(fields) == 6 and fields[5].startswith("/"):
            yield fields[5].removesuffix(" (deleted)")


def _loaded_macos() -> Iterator[str]:
    dyld = ctypes.CDLL(None)
    dyld._dyld_get_image_name.restype = ctypes.c_char_p
    for index in range(dyld._dyld_image_count()):
        name = dyld._dyld_get_image_name(index)
        if name is not None:
            yield os.fsdecode(name)


def _loaded_windows() -> Iterator[str]:
    kernel32 = ctypes.CDLL("kernel32")
    kernel32.GetCurrentProcess.restype = ctypes.c_void_p
    modules = (ctypes.c_void_p * 4096)()
    n_bytes = ctypes.c_uint32()
    process = ctypes.c_void_p(kernel32.GetCurrentProcess())
    if not kernel32.K32EnumProcessModules(process, modules, ctypes.sizeof(modules), ctypes.byref(n_bytes)):
        return
    name = ctypes.create_unicode_buffer(32768)
    for module in modules[: min(n_bytes.value // ctypes.sizeof(ctypes.c_void_p), len(modules))]:
        if kernel32.GetModuleFileNameW(ctypes.c_void_p(module), name, len(name)):
            yield name.value
