"""SelfExtend where layers and cache are not the CPU's.

By default that is ggml's RPC backend over loopback, which says yes to every op: whatever node it is handed and computes
wrongly would show here as wrong logits, or as a lost connection. With PYSELFEXTEND_DEVICE=vulkan or cuda it is that
backend of the library that PYSELFEXTEND_LIB names; `make test-vulkan` and `make test-gpu` do that, and run the tests
of sequences, shifts and states there as well.

A device that has the attention as one node is asked for both ways, any other for the composed one.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from context import IS_FUSED, ON_DEVICE
from reference import Array, Reference, kl_divergence
from runner import TIMEOUT, Job, evaluate_all, tokenize
from test_reference import some_tokens
from yardstick import F32, N_TOKENS, PAIRS, Distance

from pyselfextend.plan import make_plan

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def rpc(engine_lib: Path) -> Iterator[str]:
    """The endpoint of a server that runs as long as the tests of this file; empty on a device of the library's own."""
    if ON_DEVICE:
        yield ""
        return
    assert any(engine_lib.glob("*ggml-rpc*")), f"{engine_lib} was built without -DGGML_RPC=ON"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, str(HERE / "rpc_server.py"), str(engine_lib), endpoint],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(100):
            assert server.poll() is None, f"the RPC server exited with {server.returncode}"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield endpoint
    finally:
        server.kill()
        server.wait()


class Device:
    """Evaluates a model on the device, and knows how far its plain rule is from the plain reference."""

    def __init__(self, engine_lib: Path, rpc: str, model: Path, dtype: Any = np.float64) -> None:
        self.engine_lib, self.rpc, self.model = engine_lib, rpc, model
        self.reference = Reference(model, dtype)
        self.tokens = some_tokens(N_TOKENS)
        # see yardstick.py; the CPU, also behind RPC, does not round so that it would choose other experts
        self.share = 0.5 if ON_DEVICE and self.reference.n_expert_used else 1.0

    def run(self, jobs: list[Job], n_gpu_layers: int = 99) -> list[Any]:
        return evaluate_all(self.engine_lib, self.model, self.tokens, jobs, rpc=self.rpc, n_gpu_layers=n_gpu_layers)

    def yardstick(self, job: Job) -> Distance:
        plain = self.run([replace(job, ga_n=1)])[0]
        return Distance.between(plain.logits, self.reference.logits(self.tokens), self.share)

    def ways(self, flash: str) -> list[str]:
        """How attention can be computed here, the way that is taken by itself first."""
        return ["auto", "composed"] if IS_FUSED and flash != "off" else ["auto"]

    def exact(self, pair: tuple[int, int]) -> Array:
        return self.reference.logits(self.tokens, *pair)


@pytest.fixture(scope="module")
def device(engine_lib: Path, rpc: str, tiny_model: Path) -> Device:
    return Device(engine_lib, rpc, tiny_model)


@pytest.fixture(scope="module")
def rounding(device: Device) -> dict[str, Distance]:
    """Of the plain rule: with flash attention devices round more."""
    return {flash: device.yardstick(replace(F32, flash=flash)) for flash in ("off", "on")}


def check_way(info: dict[str, Any], flash: str, attn: str) -> None:
    """One node where the device has it and is allowed it, stock operators elsewhere."""
    fused = IS_FUSED and flash != "off" and attn == "auto"
    assert (info["n_layer_fused"] > 0) == fused
    assert (info["n_layer_composed"] > 0) != fused


@pytest.mark.parametrize("flash", ["on", "off", "auto"])
def test_all_layers_on_a_device(device: Device, rounding: dict[str, Distance], flash: str) -> None:
    base = replace(F32, flash=flash, calls="600,50,1")
    jobs = [replace(base, ga_n=ga_n, ga_w=ga_w, attn=attn) for attn in device.ways(flash) for ga_n, ga_w in PAIRS]
    for job, result in zip(jobs, device.run(jobs), strict=True):
        check_way(result.info, flash, job.attn)
        fused = result.info["n_layer_fused"] > 0
        rounding["on" if fused else "off"].check(result.logits, device.exact((job.ga_n, job.ga_w)))


@pytest.mark.parametrize("flash", ["on", "off"])
def test_all_layers_on_a_device_but_not_their_cache(device: Device, rounding: dict[str, Distance], flash: str) -> None:
    """With the cache on the CPU they are fused there."""
    base = replace(F32, flash=flash, calls="600,50,1", offload_kqv=False)
    jobs = [replace(base, ga_n=ga_n, ga_w=ga_w) for ga_n, ga_w in PAIRS]
    for job, result in zip(jobs, device.run(jobs), strict=True):
        assert result.info["n_layer_composed"] == 0
        rounding["off"].check(result.logits, device.exact((job.ga_n, job.ga_w)))


@pytest.mark.parametrize("flash", ["off", "on"] if IS_FUSED else ["off"])
@pytest.mark.parametrize("name", ["gemma3", "gpt-oss", "qwen2vl", "smollm3"])
def test_models(engine_lib: Path, rpc: str, tiny_models: dict[str, Path], name: str, flash: str) -> None:
    """Windows, sinks, soft-cap, M-RoPE, layers without RoPE."""
    device = Device(engine_lib, rpc, tiny_models[name])
    base = replace(F32, flash=flash)
    rounding = device.yardstick(base)
    (result,) = device.run([replace(base, ga_n=3, ga_w=100)])
    rounding.check(result.logits, device.exact((3, 100)), device.share)


@pytest.mark.parametrize(
    ("type_k", "type_v", "flash"),
    [
        ("f16", "f16", "off"),
        ("q8_0", "q8_0", "on"),
        ("q8_0", "f16", "off"),
        *([("f16", "f16", "on"), ("bf16", "bf16", "on"), ("q4_0", "q4_0", "on")] if IS_FUSED else []),
    ],
)
def test_rounded_caches(device: Device, type_k: str, type_v: str, flash: str) -> None:
    """Mean KL at most 1.2 times that of the plain rule on the same device."""
    job = Job(type_k=type_k, type_v=type_v, flash=flash, threads=1)
    jobs = [replace(job, ga_n=ga_n, ga_w=ga_w, attn=attn) for attn in device.ways(flash) for ga_n, ga_w in PAIRS]
    # stock operators round as those of plain attention without flash do, which there is not with a quantized V
    operators = replace(job, flash="off" if type_v in ("f16", "bf16") else flash)
    plain = device.run([job, operators])
    yardsticks = [kl_divergence(device.exact((1, 0)), each.logits).mean() for each in plain]
    for job, result in zip(jobs, device.run(jobs), strict=True):
        check_way(result.info, flash, job.attn)
        yardstick = yardsticks[0 if result.info["n_layer_fused"] > 0 else 1]
        assert kl_divergence(device.exact((job.ga_n, job.ga_w)), result.logits).mean() <= 1.2 * yardstick, job


@pytest.mark.parametrize("type_kv", ["f16", "q8_0"])
def test_nothing_of_the_cache_leaves_the_device(device: Device, type_kv: str) -> None:
    """Where the nodes of the attention and of the cache lie, as the scheduler has placed them."""
    job = Job(ga_n=4, ga_w=64, type_k=type_kv, type_v=type_kv, flash="on", calls="600,50,1", trace=True)
    for attn in device.ways("on"):
        places: dict[str, str] = device.run([replace(job, attn=attn)])[0].info["places"]
        parts = ["cache_k", "cache_v", "cache_near_k", "cache_near_v", "kqv_self_extend"]
        if attn == "composed" or not IS_FUSED:
            parts.append("kq_self_extend")
        for part in parts:
            found = {place for name, place in places.items() if name.startswith(part)}
            assert found, (part, places)
            assert not any(place.startswith("CPU") for place in found), (part, found)
        assert all(f"{parts[-1]}-{il}" in places for il in range(device.reference.n_layer))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pairs"), [("smollm2", [(4, 64), (8, 64)]), ("gemma3", [(8, 16), (5, 1)])])
def test_real_models(
    request: pytest.FixtureRequest, engine_lib: Path, rpc: str, prose: str, name: str, pairs: list[tuple[int, int]]
) -> None:
    """Quantized weights, F16 cache: mean KL from the reference at most 1.2 times that of the plain rule on the device,
    and nothing like the distance of the plain rule from SelfExtend's.
    """
    device = Device(engine_lib, rpc, request.getfixturevalue(name), np.float32)
    device.tokens = np.array(tokenize(engine_lib, device.model, prose)[:250])
    flash = "on" if IS_FUSED else "off"
    job = Job(flash=flash, calls="240,1")
    plain, *results = device.run([job, *(replace(job, ga_n=ga_n, ga_w=ga_w) for ga_n, ga_w in pairs)])
    plain_exact = device.exact((1, 0))
    rounding = kl_divergence(plain_exact, plain.logits).mean()
    for pair, result in zip(pairs, results, strict=True):
        check_way(result.info, flash, "auto")
        kl, other = (kl_divergence(exact, result.logits).mean() for exact in (device.exact(pair), plain_exact))
        print(f"{pair} mean KL {kl:.5f}, {kl / rounding:.2f} of the plain rule's; from the plain reference {other:.5f}")
        assert kl <= 1.2 * rounding, pair
        assert other > 2 * kl, pair


def test_some_layers_on_a_device(device: Device, rounding: dict[str, Distance]) -> None:
    """One layer on the device: two devices, and without flash attention two ways, in one graph."""
    for flash in ("off", "on"):
        job = replace(F32, ga_n=3, ga_w=100, calls="600,50,1", flash=flash)
        (result,) = device.run([job], n_gpu_layers=2)
        fused = IS_FUSED and flash == "on"
        assert (result.info["n_layer_composed"] > 0) != fused
        assert result.info["n_layer_fused"] > 0
        rounding["on" if fused else "off"].check(result.logits, device.exact((3, 100)))


def test_one_node_where_there_is_none(device: Device) -> None:
    """Asked for by name it is refused by name, with what the device is called."""
    job = Job(ga_n=4, ga_w=64, attn="fused", flash="off")
    with pytest.raises(
        RuntimeError, match=r"fused attention was asked for, but device '[A-Za-z0-9]+' does not have it"
    ):
        device.run([job])
    if IS_FUSED:
        assert device.run([replace(job, flash="on")])[0].info["n_layer_composed"] == 0


def test_the_rpc_server_is_stock() -> None:
    """The series leaves what a server consists of as it is, so that this is how a stock one answers."""
    series = (HERE.parent / "native" / "patches").glob("*.patch")
    changed = {
        line[6:].strip() for patch in series for line in patch.read_text().splitlines() if line.startswith("+++ b/")
    }
    backends = {name for name in changed if name.startswith("ggml/")}
    backends.remove("ggml/src/ggml-rpc/transport.cpp")  # that sockets ask whether there is anybody
    assert all(name.startswith(("ggml/src/ggml-cuda/", "ggml/src/ggml-vulkan/")) for name in backends), backends


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_what_lies_where(engine_lib: Path, rpc: str, tiny_models: dict[str, Path], name: str) -> None:
    """Way and device of each layer, and what a plan says of the memory there: what the engine has, and not much more.

    Weights on the device and the cache to the byte. Weights in main memory may be pages of the file, and more of it.
    """
    model = tiny_models[name]
    tokens = some_tokens(N_TOKENS)
    base = Job(ga_n=4, ga_w=64, flash="on", calls="600,100", n_ctx=1024)
    for n_gpu_layers in (1, 2, 99):
        jobs = [replace(base, type_k=kind, type_v=kind) for kind in ("f16", "q8_0")]
        results = evaluate_all(engine_lib, model, tokens, jobs, rpc=rpc, n_gpu_layers=n_gpu_layers)
        for job, result in zip(jobs, results, strict=True):
            plan = make_plan(
                model, job.n_ctx, ga_n=4, ga_w=64, type_k=job.type_k, type_v=job.type_v, n_gpu_layers=n_gpu_layers
            )
            (memory,) = plan.memory
            assert plan.offload is not None
            extended = [i for i, layer in enumerate(plan.model.layers) if not layer.window]
            there = [i for i in extended if i in plan.offload.layers]
            found = result.info["layers"]
            assert list(map(int, found)) == extended
            assert [int(i) for i in found if found[i][1] != "CPU"] == there
            devices = {device for _, device in found.values()} - {"CPU"}
            assert len(devices) == bool(there)
            assert all(way == "fused" for way, device in found.values() if device == "CPU")

            (device,) = result.info["memory"].keys() - {"CPU"}
            assert devices <= {device}
            ways = {found[str(i)][0] for i in there} or {"fused"}
            (way,) = [way for way in memory.ways if {way.way} == ways]
            weights, cache, compute = result.info["memory"][device]
            assert (weights, cache) == (plan.offload.bytes_weights, memory.bytes_cache_device)
            if way.way == "composed":  # fused, small problems are cut into as many pieces as the device has cores
                assert compute <= way.bytes_compute < 1.8 * compute
            weights, cache, compute = result.info["memory"]["CPU"]
            assert plan.offload.bytes_weights_rest - 1024 <= weights <= plan.model.bytes_weights
            assert cache == memory.cache.n_bytes - memory.bytes_cache_device
            assert compute <= memory.bytes_compute < 1.8 * compute


@pytest.mark.parametrize(
    "tests",
    [
        "test_sequences.py -k 'llama-64 and (seed0 or rollback or prefix)'",
        "test_shift.py -k 'rounded_caches or rollback or one_sequence or are_saved'",
        "test_state.py -k 'same_logits or larger_or_smaller or rollback'",
        "test_groups.py -k 'not yarn and llama and (beyond or up_and_down or random) or states or wait'",
        "test_maps.py -k 'mrrope_is_shifted or made_again or (up_and_down and (llama-leaky or llama-yarn-jet))'",
    ],
    ids=["sequences", "shifts", "states", "groups", "maps"],
)
def test_sequences_on_a_device(engine_lib: Path, rpc: str, tests: str) -> None:
    """Batches of several sequences, roll-backs, shifts, states, groups and maps: other tests, with all layers there."""
    environment = {
        "PYSELFEXTEND_DEVICE": "rpc",
        "PYSELFEXTEND_RPC": rpc,
        **os.environ,
        "PYSELFEXTEND_LIB": str(engine_lib),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *shlex.split(tests)]
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_places_would_show(device: Device) -> None:
    """The same look at a cache on the CPU finds it there."""
    job = Job(ga_n=4, ga_w=64, flash="on", trace=True, offload_kqv=False)
    places: dict[str, str] = device.run([job])[0].info["places"]
    found = {place for name, place in places.items() if "cache_k" in name}
    assert found
    assert all(place.startswith("CPU") for place in found)
