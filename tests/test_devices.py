"""SelfExtend on a device that is not the CPU: ggml's RPC backend over loopback, which says yes to every op.

Whatever node it is handed and computes wrongly would show here as wrong logits, or as a lost connection.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from reference import Reference
from runner import Job, evaluate_all
from test_reference import some_tokens
from yardstick import F32, N_TOKENS, PAIRS, Distance


@pytest.fixture(scope="module")
def rpc(engine_lib: Path) -> Iterator[str]:
    """The endpoint of a server that runs as long as the tests of this file."""
    assert any(engine_lib.glob("*ggml-rpc*")), f"{engine_lib} was built without -DGGML_RPC=ON"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("rpc_server.py")), str(engine_lib), endpoint],
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


@pytest.mark.parametrize("offload_kqv", [True, False])
@pytest.mark.parametrize("flash", ["on", "off", "auto"])
def test_all_layers_on_a_device(
    tiny_model: Path,
    engine_lib: Path,
    rpc: str,
    reference: Reference,
    yardstick: Distance,
    flash: str,
    offload_kqv: bool,
) -> None:
    """With the cache on the device the layers are composed of stock ops; with the cache on the CPU they are fused."""
    tokens = some_tokens(N_TOKENS)
    base = replace(F32, flash=flash, calls="600,50,1", offload_kqv=offload_kqv)
    jobs = [replace(base, ga_n=ga_n, ga_w=ga_w) for ga_n, ga_w in PAIRS]
    for result in evaluate_all(engine_lib, tiny_model, tokens, jobs, rpc=rpc):
        assert (result.info["n_layer_composed"] > 0) == offload_kqv
        assert (result.info["n_layer_fused"] > 0) != offload_kqv
        yardstick.check(result.logits, reference.logits(tokens, result.info["ga_n"], result.info["ga_w"]))


def test_some_layers_on_a_device(
    tiny_model: Path, engine_lib: Path, rpc: str, reference: Reference, yardstick: Distance
) -> None:
    """One layer on the device: both ways of computing the attention in one graph."""
    tokens = some_tokens(N_TOKENS)
    job = replace(F32, ga_n=3, ga_w=100, calls="600,50,1")
    (result,) = evaluate_all(engine_lib, tiny_model, tokens, [job], rpc=rpc, n_gpu_layers=2)
    assert result.info["n_layer_composed"] > 0
    assert result.info["n_layer_fused"] > 0
    yardstick.check(result.logits, reference.logits(tokens, 3, 100))


def test_the_kernel_is_refused_for_a_cache_elsewhere(tiny_model: Path, engine_lib: Path, rpc: str) -> None:
    with pytest.raises(RuntimeError, match="the cache of layer 0 is not in CPU memory"):
        evaluate_all(engine_lib, tiny_model, some_tokens(8), [Job(ga_n=4, ga_w=64, attn="fused")], rpc=rpc)
