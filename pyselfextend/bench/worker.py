"""Times one configuration: a process with one libllama, one model and one context.

``process.Worker`` runs this file by its path, also for the stock library. So it imports nothing of the package, whose
import would make llama_cpp load ours. Requests come as lines of JSON on standard input, replies go as lines of JSON to
standard output. The end of its input is the end of the process, whatever it is doing: it cannot outlive who started it.

    {"do": "open", ...}: load the model, make the context
    {"do": "fill", "depth", "n_tokens", "threads", "ga_n"}: evaluate tokens; replies {"at": depth} on the way
    {"do": "measure", "depth", "n_tokens", "threads", "phase", "ga_n"}: time tokens
    {"do": "change", "depth", "threads", "ga_n", "ga_n_new"}: time a change of the group, and take it back
    {"do": "memory"}: say what the process has taken

The reply is {"done": ...}, or {"error": text, "kind": "model", "setting" or "bench"}.
"""

from __future__ import annotations

import collections
import ctypes
import json
import os
import queue
import random
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ATTN = {"auto": 0, "fused": 1, "composed": 2}  # enum llama_self_extend_attn
FLASH = {False: 0, True: 1}  # enum llama_flash_attn_type
N_LAYER_MAX = 512  # LLAMA_MAX_LAYERS

#: Tokens that are evaluated one by one, and not counted, before anything is timed: the first batch after the cache was
#: cut restores the near part, and threads and caches are cold after another worker's turn.
N_WARM_UP = 2

ERROR = 4  # enum ggml_log_level

SEED = 1


class Failure(Exception):
    """What the request cannot do, and of what kind that is."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Params(ctypes.Structure):
    """struct llama_self_extend_params"""

    _fields_ = [
        ("ga_n", ctypes.c_uint32),
        ("ga_n_max", ctypes.c_uint32),
        ("ga_w", ctypes.c_uint32),
        ("attn", ctypes.c_int),
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


class Bench:
    """The library, the model and the context. What is evaluated are the first tokens of a fixed text."""

    def __init__(self, request: dict[str, Any]) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        self.lib: Any = llama_cpp.llama_cpp._lib
        if not Path(self.lib._name).parent.samefile(request["lib"]):
            raise Failure("bench", f"llama_cpp has loaded {self.lib._name} instead of the library in {request['lib']}")
        self.log = Log(self.api)
        self.n_batch = int(request["n_batch"])
        self.bytes_base = bytes_peak()  # Python and the library, before the model

        self.api.llama_backend_init()
        self.model = self._load(request)
        self.ctx = self._create(request)
        self.memory = self.api.llama_get_memory(self.ctx)
        n_vocab = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))
        tokens = random.Random(SEED).choices(range(n_vocab), k=request["n_ctx"])
        self.tokens = (ctypes.c_int32 * len(tokens))(*tokens)

        # What cannot be evaluated is known now. And llama.cpp's two counters say 1 where they are at 0.
        self.evaluate(0, 2)
        self.evaluate(2, 1)
        self.cut(0)

    def _load(self, request: dict[str, Any]) -> Any:
        params = self.api.llama_model_default_params()
        params.n_gpu_layers = request["n_gpu_layers"]
        model = self.api.llama_model_load_from_file(os.fsencode(request["model"]), params)
        if not model:
            raise Failure("model", f"{request['model']} could not be loaded: {self.log.reason()}")
        return model

    def _create(self, request: dict[str, Any]) -> Any:
        params = self.api.llama_context_default_params()
        params.n_ctx = request["n_ctx"]
        params.n_batch = params.n_ubatch = self.n_batch
        params.type_k, params.type_v = request["type_k"], request["type_v"]
        params.flash_attn_type = FLASH[request["flash"]]
        params.swa_full = request["swa_full"]
        self.extended = max(request["ga_n"], request["ga_n_max"]) > 1
        if self.extended:
            self.lib.llama_self_extend_set_next.argtypes = [Params]
            self.lib.llama_self_extend_set_next.restype = ctypes.c_bool
            self.lib.llama_self_extend_last_error.restype = ctypes.c_char_p
            self.lib.llama_self_extend_get_group.argtypes = [ctypes.c_void_p, ctypes.c_int32]
            self.lib.llama_self_extend_get_group.restype = ctypes.c_uint32
            self.lib.llama_self_extend_set_group.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint32]
            self.lib.llama_self_extend_set_group.restype = ctypes.c_bool
            self.lib.llama_self_extend_apply_shifts.argtypes = [ctypes.c_void_p]
            self.lib.llama_self_extend_apply_shifts.restype = None
            pair = Params(request["ga_n"], request["ga_n_max"], request["ga_w"], ATTN[request["attn"]])
            if not self.lib.llama_self_extend_set_next(pair):
                raise Failure("setting", self.lib.llama_self_extend_last_error().decode())
        ctx = self.api.llama_init_from_model(self.model, params)
        if not ctx:
            refused = self.lib.llama_self_extend_last_error().decode() if self.extended else ""
            raise Failure("setting", refused or f"llama.cpp made no context: {self.log.reason()}")
        return ctx

    def describe(self) -> dict[str, Any]:
        """What was opened. The stock library says nothing of its build, of ways and of devices."""
        build, attention, memory = {}, [], []
        if hasattr(self.lib, "llama_self_extend_build_info"):
            self.lib.llama_self_extend_build_info.restype = ctypes.c_char_p
            build = json.loads(self.lib.llama_self_extend_build_info())
            attention, memory = self._attention(), self._memory()
        return {
            "library": self.lib._name,
            "build": build,
            "system_info": self.api.llama_print_system_info().decode().strip(),
            "devices": self.log.devices(),
            "cache_mib": self.log.cache_mib(),
            "bytes_base": self.bytes_base,
            "attention": attention,
            "memory": memory,
        }

    def _attention(self) -> list[dict[str, Any]]:
        """Ways, devices and layers, in order of the first layer."""
        get_layer = self.lib.llama_self_extend_get_layer
        get_layer.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.POINTER(Layer)]
        get_layer.restype = ctypes.c_bool
        ways = {value: name for name, value in ATTN.items()}
        groups: dict[tuple[str, str], list[int]] = {}
        layer = Layer()
        for number in range(N_LAYER_MAX):
            if get_layer(self.ctx, number, ctypes.byref(layer)):
                groups.setdefault((ways[layer.attn], layer.device.decode()), []).append(number)
        return [{"way": way, "device": device, "layers": layers} for (way, device), layers in groups.items()]

    def _memory(self) -> list[dict[str, Any]]:
        """What model and context have taken on each device, by device name."""
        get_memory = self.lib.llama_self_extend_get_memory
        get_memory.argtypes = [ctypes.c_void_p, ctypes.POINTER(Memory), ctypes.c_int32]
        get_memory.restype = ctypes.c_int32
        devices = (Memory * get_memory(self.ctx, None, 0))()
        get_memory(self.ctx, devices, len(devices))
        found = [
            {
                "device": each.device.decode(),
                "bytes_model": each.n_bytes_model,
                "bytes_cache": each.n_bytes_cache,
                "bytes_compute": each.n_bytes_compute,
            }
            for each in devices
        ]
        return sorted(found, key=lambda each: each["device"])

    def fill(self, depth: int, n_tokens: int, threads: int, ga_n: int | None = None) -> Iterator[int]:
        """Evaluate ``n_tokens`` at ``depth``; yields how far it is. With ``ga_n``, the group of all tokens.

        Where the keys that are cached cannot be turned to that, from the beginning.
        """
        end = depth + n_tokens
        self.api.llama_set_n_threads(self.ctx, threads, threads)
        self.cut(depth)
        if not self.set_group(ga_n):
            depth = 0
            self.cut(depth, ga_n)
            yield depth
        for at in range(depth, end, self.n_batch):
            n = min(self.n_batch, end - at)
            self.evaluate(at, n)
            yield at + n

    def measure(self, depth: int, n_tokens: int, threads: int, phase: str, ga_n: int | None = None) -> dict[str, Any]:
        """Time ``n_tokens`` at ``depth``, as prompts are read or one by one; returns seconds and what was evaluated."""
        self.cut(depth, ga_n)
        self.api.llama_set_n_threads(self.ctx, threads, threads)
        for i in range(N_WARM_UP):
            self.evaluate(depth + i, 1)
        self.cut(depth, ga_n)
        step = {"prefill": self.n_batch, "decode": 1}[phase]

        n_before = self.n_evaluated()
        cpu_before, start = time.process_time(), time.perf_counter()
        for first in range(0, n_tokens, step):
            self.evaluate(depth + first, min(step, n_tokens - first))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_before
        n_evaluated = self.n_evaluated() - n_before
        return {"seconds": seconds, "cpu_seconds": cpu, "n_tokens": n_evaluated, "ga_n": self.group()}

    def change(self, depth: int, threads: int, ga_n: int, ga_n_new: int) -> dict[str, Any] | None:
        """Time a change of the group of ``depth`` tokens, and take it back. None: their keys cannot be turned."""
        self.cut(depth, ga_n)
        self.api.llama_set_n_threads(self.ctx, threads, threads)
        self.apply_shifts()
        start = time.perf_counter()
        if not self.set_group(ga_n_new):
            return None
        self.apply_shifts()
        seconds = time.perf_counter() - start
        self.set_group(ga_n)
        self.apply_shifts()
        return {"seconds": seconds}

    def group(self) -> int:
        """The group size in force; 0: the context is plain."""
        return int(self.lib.llama_self_extend_get_group(self.ctx, 0)) if self.extended else 0

    def set_group(self, ga_n: int | None) -> bool:
        """Set it for all tokens. None: it stays as it is. Returns whether that can be."""
        n_errors = len(self.log.errors)
        done = ga_n in (None, self.group()) or self.lib.llama_self_extend_set_group(self.ctx, 0, ga_n)
        del self.log.errors[n_errors:]  # a refusal is not what goes wrong later
        return bool(done)

    def apply_shifts(self) -> None:
        """Turn the keys to the group that was set."""
        n_errors = len(self.log.errors)
        self.lib.llama_self_extend_apply_shifts(self.ctx)
        self.api.llama_synchronize(self.ctx)
        if len(self.log.errors) > n_errors:
            raise Failure("bench", f"the keys could not be turned: {self.log.errors[n_errors].strip()}")

    def cut(self, depth: int, ga_n: int | None = None) -> None:
        """Forget what stands at ``depth`` and after it; with ``ga_n``, set the group, which an empty cache forgets."""
        if not self.api.llama_memory_seq_rm(self.memory, 0, depth, -1) or self.n_past() != depth:
            raise Failure(
                "bench", f"the cache of this model cannot go back to {depth} tokens; try it with a full one (swa_full)"
            )
        if not self.set_group(ga_n):
            raise Failure("bench", self.lib.llama_self_extend_last_error().decode())

    def evaluate(self, pos: int, n_tokens: int) -> None:
        """Evaluate the tokens at ``pos`` and wait for the logits of the last one."""
        first = ctypes.cast(ctypes.byref(self.tokens, 4 * pos), ctypes.POINTER(ctypes.c_int32))
        status = self.api.llama_decode(self.ctx, self.api.llama_batch_get_one(first, n_tokens))
        self.api.llama_synchronize(self.ctx)
        if status != 0:
            raise Failure(
                "bench", f"llama_decode returned {status} for {n_tokens} tokens at {pos}: {self.log.reason()}"
            )

    def n_past(self) -> int:
        """Tokens in the cache."""
        return int(self.api.llama_memory_seq_pos_max(self.memory, 0)) + 1

    def n_evaluated(self) -> int:
        """Tokens that the library says it has evaluated."""
        perf = self.api.llama_perf_context(self.ctx)
        return int(perf.n_p_eval + perf.n_eval)


class Log:
    """What llama.cpp logs: the last part of it, problems also to standard error."""

    def __init__(self, api: Any) -> None:
        self.errors: list[str] = []
        self.lines: collections.deque[str] = collections.deque(maxlen=20000)
        self._callback = api.llama_log_callback(self._note)  # must live as long as the library
        api.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _note(self, level: int, text: bytes, _: Any) -> None:
        line = text.decode(errors="replace")
        self.lines.append(line)
        if level == ERROR:
            self.errors.append(line)
            sys.stderr.write(line)
            sys.stderr.flush()

    def reason(self) -> str:
        """What went wrong first; what follows are consequences."""
        return re.sub(r"^\w+: ", "", self.errors[0].strip()) if self.errors else "llama.cpp gives no reason"

    def devices(self) -> list[str]:
        """Devices that the model uses, beside the CPU."""
        return re.findall(r"using device (.*?) - \d+ MiB free", "".join(self.lines))

    def cache_mib(self) -> float:
        """All parts of the cache, in MiB, as the library says it when it makes them: two decimals each."""
        return sum(float(size) for size in re.findall(r"KV buffer size = +([\d.]+) MiB", "".join(self.lines)))


def bytes_peak() -> int:
    """The largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # not ru_maxrss, which goes on counting from what forked this process
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        assert found
        return int(found[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def requests() -> Iterator[dict[str, Any]]:
    """Requests as they come. A thread reads them, and ends the process at the end of input."""
    waiting: queue.Queue[dict[str, Any]] = queue.Queue()

    def read() -> None:
        # Without a buffer, whose lock this thread would hold when Python ends on an error: it aborts then.
        with open(0, "rb", buffering=0, closefd=False) as lines:
            for line in lines:
                waiting.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield waiting.get()


def answer(bench: Bench | None, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The replies to a request."""
    assert bench is not None
    what = request.pop("do")
    if what == "open":
        yield {"done": bench.describe()}
    elif what == "fill":
        for at in bench.fill(**request):
            yield {"at": at}
        yield {"done": None}
    elif what == "measure":
        yield {"done": bench.measure(**request)}
    elif what == "change":
        yield {"done": bench.change(**request)}
    else:
        yield {"done": {"bytes_peak": bytes_peak()}}


def main() -> None:
    """Answer requests until the input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no reply
    bench = None
    for request in requests():
        try:
            if request["do"] == "open":
                bench = Bench(request)
            for reply in answer(bench, request):
                print(json.dumps(reply), file=replies, flush=True)
        except Failure as failure:
            print(json.dumps({"error": str(failure), "kind": failure.kind}), file=replies, flush=True)


if __name__ == "__main__":
    own = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != own]  # names here hide others
    main()
