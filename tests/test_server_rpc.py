"""One model on several machines: workers in network namespaces of their own, each with its own address.

Needs root on Linux, and ``ip``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from serving import NEEDS_SERVER, call, complete, serving, short_model, text
from test_server_load import SECONDS, is_idle, read_all, stream, until

from pyselfextend.server import program


def can_make_namespaces() -> bool:
    """Containers may not."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("ss") is None:
        return False
    name = f"se{os.getpid() % 100000}-probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return made


pytestmark = [
    NEEDS_SERVER,
    pytest.mark.skipif(
        not can_make_namespaces(), reason="network namespaces cannot be made: needs root on Linux, and ip"
    ),
]

PORT = 50052


def ip(*words: str, **given: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, **given)


class Machine:
    """A network namespace with a worker, and a cable to this one."""

    def __init__(self, number: int, log: Path) -> None:
        self.log = log
        self.name = f"se{os.getpid() % 100000}-{number}"
        self.cable = f"{self.name}h"
        net = f"10.{200 + os.getpid() % 50}.{number}"
        self.address = f"{net}.2"
        ip("netns", "add", self.name)
        ip("link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("addr", "add", f"{net}.1/24", "dev", self.cable)
        ip("link", "set", self.cable, "up")
        ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            ip("-n", self.name, "link", "set", device, "up")
        worker = [str(program("ggml-rpc-server")), "-H", self.address, "-p", str(PORT), "-t", "1"]
        with open(log, "wb") as output:
            inside = ["ip", "netns", "exec", self.name, *worker]
            self.worker = subprocess.Popen(inside, stdout=output, stderr=subprocess.STDOUT)
        until(lambda: f":{PORT}" in ip("netns", "exec", self.name, "ss", "-ltn").stdout)

    @property
    def endpoint(self) -> str:
        return f"{self.address}:{PORT}"

    def pull_the_cable(self) -> None:
        """What is sent goes nowhere, and nobody says so, as if the machine had been switched off."""
        ip("-n", self.name, "link", "set", "eth0", "down")

    def close(self) -> None:
        self.worker.kill()
        self.worker.wait()
        ip("link", "del", self.cable)
        ip("netns", "del", self.name)


@contextmanager
def machines(folder: Path) -> Iterator[list[Machine]]:
    with ExitStack() as stack:
        found = []
        for number in (1, 2):
            found.append(Machine(number, folder / f"worker-{number}"))
            stack.callback(found[-1].close)
        yield found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return short_model(tmp_path_factory.mktemp("rpc"))


def on(workers: list[Machine]) -> list[str]:
    return [
        "--slots",
        "--rpc",
        ",".join(worker.endpoint for worker in workers),
        "--gpu-layers",
        "99",
        "--tensor-split",
        "1,1",
    ]


def test_the_answers_are_those_of_one_machine(model: Path, tmp_path: Path) -> None:
    prompts = [text(n_tokens, n_tokens) for n_tokens in (40, 300, 700)]
    with serving(model) as server:
        expected = [complete(server, prompt)["content"] for prompt in prompts]
    with machines(tmp_path) as workers, serving(model, *on(workers)) as server:
        assert [complete(server, prompt)["content"] for prompt in prompts] == expected
        assert call(server, "/props")["self_extend"]["n_layer_composed"] == 2  # a stock worker knows no node of ours
        for worker in workers:
            assert "Accepted client connection" in worker.log.read_text()


@pytest.mark.parametrize("how", ["killed", "gone"])
def test_a_worker_that_dies(model: Path, how: str, tmp_path: Path) -> None:
    """The stream ends, and so does the server, which says why: it has lost a part of the model."""
    with machines(tmp_path) as workers, serving(model, *on(workers)) as server:
        assert complete(server, text(40))["content"]
        with stream(server, text(40), 900) as connection:
            until(lambda: not is_idle(server))
            if how == "killed":
                workers[1].worker.send_signal(signal.SIGKILL)
            else:
                workers[1].pull_the_cable()
            begun = time.monotonic()
            with suppress(ConnectionError):
                read_all(connection)
            until(lambda: not server.is_running, 2 * SECONDS)
            assert time.monotonic() - begun < 2 * SECONDS
        assert "RPC server" in server.last_lines()
