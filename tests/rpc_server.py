"""A ggml RPC server on the CPU, on the loopback interface: a device that is not the CPU's, on any machine.

    python tests/rpc_server.py DIR HOST:PORT

DIR holds the ggml libraries of a build with -DGGML_RPC=ON. Serves until it is killed.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path


def library(folder: Path, name: str) -> ctypes.CDLL:
    """The library libNAME*.so of a folder."""
    return ctypes.CDLL(str(next(iter(sorted(folder.glob(f"*{name}-pyselfextend.*"))))))


def main() -> None:
    folder, endpoint = Path(sys.argv[1]), sys.argv[2]
    base, cpu, rpc = (library(folder, name) for name in ("ggml-base", "ggml-cpu", "ggml-rpc"))

    cpu.ggml_backend_cpu_reg.restype = ctypes.c_void_p
    base.ggml_backend_reg_dev_get.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    base.ggml_backend_reg_dev_get.restype = ctypes.c_void_p
    devices = (ctypes.c_void_p * 1)(base.ggml_backend_reg_dev_get(cpu.ggml_backend_cpu_reg(), 0))

    rpc.ggml_backend_rpc_start_server.argtypes = [
        ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p,
    ]  # fmt: skip
    rpc.ggml_backend_rpc_start_server(endpoint.encode(), None, 1, 1, devices)


if __name__ == "__main__":
    main()
