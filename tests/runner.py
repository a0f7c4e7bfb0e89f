"""Evaluate tokens with one build of libllama, in a process of its own, and save the logits at every position.

A process can hold only one libllama, and the tests compare several: the engine, and an unpatched build.

    python tests/runner.py --lib DIR --model X.gguf --tokens 1,2,3 --ga-n 4 --ga-w 64 --attn fused --out out.npy

Prints a line of JSON: what is in force, graphs reused, seconds. With ga_n = 1 nothing is called that a stock libllama
lacks. From a test:

    logits, info = evaluate(lib, model, tokens, Job(ga_n=4, ga_w=64))
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ATTN = {"auto": 0, "fused": 1, "composed": 2}
MAPS = {name: i for i, name in enumerate(["self-extend", "jet-long", "rerope", "leaky", "lampe", "mrrope"])}
FLASH = {"auto": -1, "off": 0, "on": 1}
KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}  # ggml_type
TIMEOUT = float(os.environ.get("PYSELFEXTEND_TEST_LIMIT", "540"))  # seconds for a process
CHOICES = {"ga_map": MAPS, "attn": ATTN, "flash": FLASH, "type_k": KV_TYPES, "type_v": KV_TYPES}


@dataclass(frozen=True)
class Job:
    """How to evaluate the tokens. Sizes of 0 stand for the number of tokens."""

    ga_n: int = 1
    ga_n_max: int = 0
    ga_w: int = 0
    ga_map: str = "self-extend"
    attn: str = "auto"  # how SelfExtend computes the attention
    flash: str = "auto"
    type_k: str = "f16"
    type_v: str = "f16"
    n_ctx: int = 0
    n_batch: int = 0
    n_ubatch: int = 512
    offload_kqv: bool = True  # the cache lies where its layer does
    calls: str = ""  # tokens per call: "32" 32 each, "600,1" first 600 and then one by one, "" as many as n_batch
    threads: int = 2
    trace: bool = False  # report where the nodes of our attention and of the cache were computed

    @property
    def is_extended(self) -> bool:
        return max(self.ga_n, self.ga_n_max) > 1


class Result(NamedTuple):
    logits: NDArray[np.float32]  # [n_tokens, n_vocab]
    info: dict[str, Any]


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

    _fields_ = [("attn", ctypes.c_int), ("device", ctypes.c_char_p)]


class Memory(ctypes.Structure):
    """struct llama_self_extend_memory"""

    _fields_ = [
        ("device", ctypes.c_char_p),
        ("n_bytes_model", ctypes.c_uint64),
        ("n_bytes_cache", ctypes.c_uint64),
        ("n_bytes_compute", ctypes.c_uint64),
    ]


# in the process of the test


def evaluate(lib: str | Path, model: str | Path, tokens: Any, job: Job) -> Result:
    """The logits of one job, computed in a fresh process."""
    return evaluate_all(lib, model, tokens, [job])[0]


def evaluate_all(
    lib: str | Path, model: str | Path, tokens: Any, jobs: Sequence[Job], rpc: str = "", n_gpu_layers: int | None = None
) -> list[Result]:
    """The same for several jobs: one process, one model, a context for each.

    n_gpu_layers of the model lie on the device of the RPC server at HOST:PORT, by default all, or without a server on a
    device of the library's own, by default none.

    Raises RuntimeError with the end of what the process wrote if it does not succeed.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, todo = Path(folder, "tokens.npy"), Path(folder, "jobs.json")
        np.save(given, np.asarray(tokens, dtype=np.int32))
        todo.write_text(json.dumps([asdict(job) for job in jobs]))
        options = ["--rpc", rpc] if rpc else []
        options += ["--n-gpu-layers", str((99 if rpc else 0) if n_gpu_layers is None else n_gpu_layers)]
        lines = _spawn(lib, model, "--tokens", given, "--jobs", todo, "--out", folder, *options)
        logits = [np.load(Path(folder, f"{i}.npy")) for i in range(len(jobs))]
        return [Result(array, json.loads(line)) for array, line in zip(logits, lines[-len(jobs) :], strict=True)]


def tokenize(lib: str | Path, model: str | Path, text: str) -> list[int]:
    """Token ids of a text, with what the model puts before it."""
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "text.txt")
        given.write_text(text, encoding="utf-8")
        ids: list[int] = json.loads(_spawn(lib, model, "--text", given)[-1])
        return ids


def _spawn(lib: str | Path, model: str | Path, *options: str | Path) -> list[str]:
    command = [sys.executable, __file__, "--lib", lib, "--model", model, *options]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode != 0:
        raise RuntimeError(f"the runner exited with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout.splitlines()


# in a process of its own


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def log_problems(level: int, text: bytes, _: int) -> None:
    if level in (3, 4):  # GGML_LOG_LEVEL_WARN, _ERROR
        sys.stderr.write(text.decode(errors="replace"))


class Runner:
    """One libllama and one model."""

    def __init__(self, lib: str, model: str, rpc: str = "", n_gpu_layers: int = 0, verbose: bool = False) -> None:
        os.environ["LLAMA_CPP_LIB_PATH"] = str(Path(lib).resolve())
        import llama_cpp

        self.llama = llama_cpp
        self.lib = llama_cpp.llama_cpp._lib
        if not verbose:
            llama_cpp.llama_log_set(ctypes.cast(log_problems, llama_cpp.llama_log_callback), ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        if rpc:
            add_rpc_device(Path(lib), rpc)
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        self.model = llama_cpp.llama_model_load_from_file(model.encode(), params)
        if not self.model:
            raise SystemExit(f"cannot load {model}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)

    def tokenize(self, text: str) -> list[int]:
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 8))()
        n = self.llama.llama_tokenize(self.vocab, data, len(data), ids, len(ids), True, False)
        return list(ids[:n])

    def run(self, tokens: NDArray[np.int32], job: Job, out: Path) -> dict[str, Any]:
        """Save the logits to out. Returns what is worth printing."""
        n_batch = job.n_batch or max(len(tokens), job.n_ubatch)
        places: dict[str, str] = {}
        callback = self._trace(places)
        ctx = self._context(job, job.n_ctx or len(tokens), n_batch, callback if job.trace else None)
        n_vocab = self.llama.llama_vocab_n_tokens(self.vocab)
        logits = np.empty((len(tokens), n_vocab), dtype=np.float32)
        start = time.perf_counter()
        for begin, end in call_ranges(job.calls, len(tokens), n_batch):
            self._decode(ctx, tokens[begin:end], begin)
            got = self.llama.llama_get_logits(ctx)
            logits[begin:end] = np.ctypeslib.as_array(got, shape=(end - begin, n_vocab))
        info = {"n_tokens": len(tokens), "seconds": round(time.perf_counter() - start, 3)}
        info["n_graph_reuse"] = self.llama.llama_perf_context(ctx).n_reused
        if job.is_extended:
            info |= self._self_extend(ctx)
        if job.trace:
            info["places"] = places
        self.llama.llama_free(ctx)
        np.save(out, logits)
        return info

    def _trace(self, places: dict[str, str]) -> Any:
        """A callback that notes in which buffer each node of our attention and of the cache lies."""
        for name in ("ggml_get_name", "ggml_backend_buffer_name"):
            getattr(self.lib, name).argtypes = [ctypes.c_void_p]
            getattr(self.lib, name).restype = ctypes.c_char_p

        @self.llama.ggml_backend_sched_eval_callback
        def note(tensor: int, ask: bool, _: Any) -> bool:
            name = self.lib.ggml_get_name(tensor).decode()
            buffer = ctypes.cast(tensor, ctypes.POINTER(ctypes.c_void_p))[1]  # struct ggml_tensor: type, buffer, ...
            if ask and buffer and ("self_extend" in name or "cache_" in name):
                places[name] = self.lib.ggml_backend_buffer_name(buffer).decode()
            return False

        return note

    def _context(self, job: Job, n_ctx: int, n_batch: int, callback: Any) -> Any:
        params = self.llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, n_batch, job.n_ubatch
        params.n_threads = params.n_threads_batch = job.threads
        params.flash_attn_type = FLASH[job.flash]
        params.offload_kqv = job.offload_kqv
        if callback:
            params.cb_eval = callback
        params.type_k, params.type_v = KV_TYPES[job.type_k], KV_TYPES[job.type_v]
        if job.is_extended:
            if not hasattr(self.lib, "llama_self_extend_set_next"):
                raise SystemExit(f"{self.lib._name} has no SelfExtend; give ga_n 1 or the engine's folder")
            self.lib.llama_self_extend_set_next.argtypes = [Params]
            self.lib.llama_self_extend_set_next.restype = ctypes.c_bool
            self.lib.llama_self_extend_last_error.restype = ctypes.c_char_p
            asked = Params(job.ga_n, job.ga_n_max, job.ga_w, ATTN[job.attn], MAPS[job.ga_map])
            if not self.lib.llama_self_extend_set_next(asked):
                raise SystemExit(self.lib.llama_self_extend_last_error().decode())
        ctx = self.llama.llama_init_from_model(self.model, params)
        if not ctx:
            reason = self.lib.llama_self_extend_last_error().decode() if job.is_extended else ""
            raise SystemExit(reason or f"cannot create a context for {job}")
        return ctx

    def _decode(self, ctx: Any, tokens: NDArray[np.int32], pos: int) -> None:
        batch = self.llama.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens.tolist()):
            batch.token[i] = token
            batch.pos[i] = pos + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = True
        status = self.llama.llama_decode(ctx, batch)
        self.llama.llama_batch_free(batch)
        if status != 0:
            raise SystemExit(f"llama_decode returned {status} for {len(tokens)} tokens at position {pos}")

    def _self_extend(self, ctx: Any) -> dict[str, Any]:
        """What is in force; way and device of each extended layer; model, cache and computation on each device."""
        self.lib.llama_self_extend_get_info.argtypes = [ctypes.c_void_p, ctypes.POINTER(Info)]
        self.lib.llama_self_extend_get_info.restype = ctypes.c_bool
        info = Info()
        if not self.lib.llama_self_extend_get_info(ctx, ctypes.byref(info)):
            raise SystemExit("the context is plain although SelfExtend was asked for")
        names = {value: name for name, value in ATTN.items()}
        layer, memory = Layer(), (Memory * 16)()
        self.lib.llama_self_extend_get_layer.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.POINTER(Layer)]
        self.lib.llama_self_extend_get_layer.restype = ctypes.c_bool
        self.lib.llama_self_extend_get_memory.argtypes = [ctypes.c_void_p, ctypes.POINTER(Memory), ctypes.c_int32]
        layers = {}
        for il in range(self.llama.llama_model_n_layer(self.model)):
            if self.lib.llama_self_extend_get_layer(ctx, il, layer):
                layers[il] = [names[layer.attn], layer.device.decode()]
        n_devices = self.lib.llama_self_extend_get_memory(ctx, memory, len(memory))
        return {
            **{name: getattr(info, name) for name, _ in Info._fields_},
            "layers": layers,
            "memory": {
                each.device.decode(): [each.n_bytes_model, each.n_bytes_cache, each.n_bytes_compute]
                for each in memory[:n_devices]
            },
        }


def add_rpc_device(folder: Path, endpoint: str) -> None:
    """Make an RPC server's device one of this process's, which a model then prefers to the CPU."""
    base, registry, rpc = (
        ctypes.CDLL(str(next(iter(folder.glob(f"*{name}-pyselfextend.*")))))
        for name in ("ggml-base", "libggml", "ggml-rpc")
    )
    base.ggml_backend_reg_dev_count.argtypes = [ctypes.c_void_p]
    base.ggml_backend_reg_dev_count.restype = ctypes.c_size_t
    rpc.ggml_backend_rpc_add_server.argtypes = [ctypes.c_char_p]
    rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    registry.ggml_backend_register.argtypes = [ctypes.c_void_p]
    reg = rpc.ggml_backend_rpc_add_server(endpoint.encode())
    if not reg or base.ggml_backend_reg_dev_count(reg) == 0:
        raise SystemExit(f"no device at {endpoint}")
    registry.ggml_backend_register(reg)


def call_ranges(pattern: str, n_tokens: int, n_batch: int) -> Iterator[tuple[int, int]]:
    """First position of each call and the one behind its last, by the pattern of Job.calls."""
    sizes = [int(size) for size in pattern.split(",")] if pattern else [n_batch]
    begin = 0
    while begin < n_tokens:
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        end = min(begin + size, n_tokens)
        yield begin, end
        begin = end


def parse_tokens(text: str) -> NDArray[np.int32]:
    """Token ids from 1,2,3 or from a .npy file."""
    ids = np.load(text) if text.endswith(".npy") else [int(token) for token in text.split(",")]
    return np.asarray(ids, dtype=np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lib", required=True, metavar="DIR", help="folder that holds libllama")
    parser.add_argument("--model", required=True, metavar="GGUF")
    parser.add_argument("--tokens", metavar="IDS", help="1,2,3 or a .npy file")
    parser.add_argument("--out", type=Path, metavar="NPY", help="the logits, [n_tokens, n_vocab]; a folder with --jobs")
    parser.add_argument("--jobs", type=Path, metavar="JSON", help="a list of jobs instead of the options below")
    parser.add_argument("--text", type=Path, metavar="FILE", help="only tokenize the file and print the ids")
    parser.add_argument("--rpc", default="", metavar="HOST:PORT", help="server of the device for layers")
    parser.add_argument("--n-gpu-layers", type=int, default=0, help="layers on a device, default: %(default)s")
    parser.add_argument("--verbose", action="store_true", help="llama.cpp's log")
    for field in fields(Job):
        if isinstance(field.default, bool):
            parser.add_argument(
                f"--{field.name.replace('_', '-')}", action=argparse.BooleanOptionalAction, default=True
            )
            continue
        kind = type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default,
                            choices=CHOICES.get(field.name), help="default: %(default)s")  # fmt: skip
    args = parser.parse_args()
    if not args.text and not (args.tokens and args.out):
        parser.error("give --tokens and --out, or --text")

    runner = Runner(args.lib, args.model, args.rpc, args.n_gpu_layers, args.verbose)
    if args.text:
        print(json.dumps(runner.tokenize(args.text.read_text(encoding="utf-8"))))
        return
    tokens = parse_tokens(args.tokens)
    if args.jobs:
        for i, options in enumerate(json.loads(args.jobs.read_text())):
            print(json.dumps(runner.run(tokens, Job(**options), args.out / f"{i}.npy")), flush=True)
    else:
        job = Job(**{field.name: getattr(args, field.name) for field in fields(Job)})
        print(json.dumps(runner.run(tokens, job, args.out)))


if __name__ == "__main__":
    main()
