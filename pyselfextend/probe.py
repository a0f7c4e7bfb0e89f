"""``python -m pyselfextend.probe [MODEL]``: loads the native library and says what it finds, for ``doctor``.

It runs in a process of its own, because a library that is broken, or built for another processor, may end the process.
Each finding is a line of JSON that is written at once, so that those before the end are not lost.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import io
import json
import sys
from typing import Any

__all__ = ["main"]

#: enum ggml_backend_dev_type
DEVICE_TYPES = ("CPU", "GPU", "IGPU", "ACCEL", "META")


def main(model_path: str | None = None) -> None:
    """Write findings to standard output: library, system_info, backends, devices and model, or error."""
    from . import _native
    from .errors import NativeLibraryError

    try:
        library = _native.load()
    except NativeLibraryError as error:
        say(error=str(error))
        return
    say(library={"path": str(library.path), **library.build_info()})
    say(kernel_isa=library.kernel_isa())

    import llama_cpp

    say(system_info=llama_cpp.llama_print_system_info().decode(errors="replace"))
    ggml = Ggml(library)
    say(backends=ggml.backends())
    devices = ggml.devices()
    say(devices=[{**device, "is_fused": library.device_is_fused(device["name"])} for device in devices])
    if model_path is not None:
        has_gpu = any(device["type"] in ("GPU", "IGPU", "META") for device in devices)
        # flash attention, because devices fuse with no other layout of V; on the CPU either is fused
        settings = [(0, False), (-1, True)] if has_gpu else [(0, False)]
        say(model=[try_model(model_path, *setting) for setting in settings])


def say(**finding: Any) -> None:
    """Write one finding."""
    print(json.dumps(finding), flush=True)


def try_model(model_path: str, n_gpu_layers: int, flash_attn: bool) -> dict[str, Any]:
    """What the engine answers to a context of one token with ga_n=2: layers by their attention, or why not."""
    from .errors import SettingError
    from .llama import Llama

    result: dict[str, Any] = {"n_gpu_layers": n_gpu_layers, "flash_attn": flash_attn}
    log = io.StringIO()
    try:
        with (
            contextlib.redirect_stderr(log),
            Llama(model_path, n_ctx=1, n_gpu_layers=n_gpu_layers, flash_attn=flash_attn, ga_n=2, verbose=True) as llm,
        ):
            return {**result, "attention": [dataclasses.asdict(each) for each in llm.self_extend.attention]}
    except SettingError as error:
        return {**result, "refused": str(error)}
    except (MemoryError, OSError, RuntimeError, ValueError) as error:
        _, _, reason = log.getvalue().partition("error loading model: ")
        return {**result, "error": reason.partition("\n")[0].strip() or str(error)}


class Ggml:
    """What ggml says of its backends and devices; llama_cpp has no names for these functions."""

    def __init__(self, library: Any) -> None:
        folder, suffix = library.path.parent, library.path.suffix
        prefix = "" if sys.platform == "win32" else "lib"
        self.registry = ctypes.CDLL(str(folder / f"{prefix}ggml-pyselfextend{suffix}"))
        self.base = ctypes.CDLL(str(folder / f"{prefix}ggml-base-pyselfextend{suffix}"))

    def call(self, name: str, restype: Any, *arguments: Any) -> Any:
        """Call a function of either library."""
        library = self.registry if hasattr(self.registry, name) else self.base
        function = getattr(library, name)
        function.restype = restype
        return function(*arguments)

    def text(self, name: str, *arguments: Any) -> str:
        """Call a function that returns text."""
        value = self.call(name, ctypes.c_char_p, *arguments)
        return str(value.decode("utf-8", errors="replace")) if value else ""

    def backends(self) -> list[str]:
        """Names of the backends that are built in, or have registered themselves."""
        count = self.call("ggml_backend_reg_count", ctypes.c_size_t)
        pointers = (self.call("ggml_backend_reg_get", ctypes.c_void_p, ctypes.c_size_t(i)) for i in range(count))
        return [self.text("ggml_backend_reg_name", ctypes.c_void_p(pointer)) for pointer in pointers]

    def devices(self) -> list[dict[str, Any]]:
        """Name, description, type, backend, and memory in bytes of each device."""
        devices = []
        for i in range(self.call("ggml_backend_dev_count", ctypes.c_size_t)):
            device = ctypes.c_void_p(self.call("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t(i)))
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            self.call("ggml_backend_dev_memory", None, device, ctypes.byref(free), ctypes.byref(total))
            registry = ctypes.c_void_p(self.call("ggml_backend_dev_backend_reg", ctypes.c_void_p, device))
            kind = self.call("ggml_backend_dev_type", ctypes.c_int, device)
            devices.append(
                {
                    "name": self.text("ggml_backend_dev_name", device),
                    "description": self.text("ggml_backend_dev_description", device),
                    "type": DEVICE_TYPES[kind] if 0 <= kind < len(DEVICE_TYPES) else str(kind),
                    "backend": self.text("ggml_backend_reg_name", registry),
                    "bytes_free": free.value,
                    "bytes_total": total.value,
                }
            )
        return devices


if __name__ == "__main__":
    main(*sys.argv[1:2])
