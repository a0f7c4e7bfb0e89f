"""The server under load, and when things go wrong around it: nothing hangs, and memory comes back."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from serving import N_CTX, NEEDS_SERVER, call, complete, serving, short_model, text

from pyselfextend import ServerError
from pyselfextend.server import Server

pytestmark = NEEDS_SERVER

N_STREAMS = 200
SECONDS = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return short_model(tmp_path_factory.mktemp("load"))


def process(server: Server) -> psutil.Process:
    return psutil.Process(server._process.pid)


def until(is_so: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """What it gives as soon as that is something."""
    deadline = time.monotonic() + seconds
    while not (found := is_so()):
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)
    return found


def is_idle(server: Server) -> bool:
    return not any(slot["is_processing"] for slot in call(server, "/slots"))


@contextmanager
def stream(server: Server, prompt: list[int], n_predict: int, **given: Any) -> Iterator[socket.socket]:
    """A connection on which a stream has begun."""
    host, port = server.url.removeprefix("http://").split(":")
    body = {"prompt": prompt, "n_predict": n_predict, "stream": True, "temperature": 0, "ignore_eos": True, **given}
    data = json.dumps(body).encode()
    with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
        head = f"POST /completion HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        yield connection


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def events(answer: bytes) -> list[dict[str, Any]]:
    """The JSON of a stream's events."""
    lines = [
        line.removeprefix(b"data: ")
        for line in answer.replace(b"\r\n", b"\n").split(b"\n")
        if line.startswith(b"data: {")
    ]
    return [json.loads(line) for line in lines]


#
# many, slow and vanishing clients
#


def test_many_streams_at_once(model: Path) -> None:
    """Each gets what it gets alone, and what they took is given back."""
    prompts = [text(40 + i % 7 * 60, i % 7) for i in range(N_STREAMS)]  # inside the window and beyond
    with serving(model, "--slots", n_parallel=4) as server:

        def one(i: int) -> str:
            with stream(server, prompts[i], 12, cache_prompt=False) as connection:
                found = events(read_all(connection))
            assert found[-1]["stop"] and found[-1]["tokens_predicted"] == 12
            return "".join(event["content"] for event in found)

        alone = [one(i) for i in range(7)]
        with ThreadPoolExecutor(N_STREAMS) as pool:
            list(pool.map(one, range(N_STREAMS)))  # memory is taken once
            before, n_before = process(server).memory_info().rss, process(server).num_threads()
            for _ in range(2):
                assert list(pool.map(one, range(N_STREAMS))) == [alone[i % 7] for i in range(N_STREAMS)]
        assert is_idle(server)
        until(lambda: process(server).num_threads() <= n_before)
        assert process(server).memory_info().rss < before + 30 * 2**20


def test_clients_that_vanish(model: Path) -> None:
    """While they wait, while their prompt is read, and in the middle of the answer: the slots are free soon after."""
    with serving(model, "--slots", n_parallel=2) as server:
        usual = complete(server, text(40))["content"]
        for n_bytes in (0, 1, 2000):
            for _ in range(3):
                connections = [stream(server, text(600, i), 400) for i in range(10)]
                for connection in connections:
                    opened = connection.__enter__()
                    if n_bytes:
                        opened.settimeout(0.5)
                        with suppress(TimeoutError):  # it waits for a slot
                            opened.recv(n_bytes)
                for connection in connections:
                    connection.__exit__(None, None, None)
            until(lambda: is_idle(server))
        assert complete(server, text(40))["content"] == usual


def test_a_client_that_does_not_read(model: Path) -> None:
    """The others go on, and it is answered once it reads."""
    with serving(model, "--slots", n_parallel=2) as server:
        usual = complete(server, text(40))["content"]
        with stream(server, text(40, 1), 900, n_probs=50) as slow:  # more than the sockets' buffers hold
            time.sleep(1)
            for _ in range(5):
                assert complete(server, text(40))["content"] == usual
            assert events(read_all(slow))[-1]["tokens_predicted"] == 900


def test_a_client_that_never_ends_its_request(model: Path) -> None:
    with serving(model, "--slots", "--timeout", "2") as server:
        host, port = server.url.removeprefix("http://").split(":")
        waiting = [socket.create_connection((host, int(port)), timeout=SECONDS) for _ in range(50)]
        for connection in waiting:
            connection.sendall(b"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        assert complete(server, text(40))["content"]
        for connection in waiting:  # they are told, or hung up on
            assert b" 200 " not in connection.recv(100)
            connection.close()


#
# its end
#


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("n_tokens", [40, 900])
def test_told_to_end_while_it_answers(model: Path, number: signal.Signals, n_tokens: int) -> None:
    """Streams end with a reason, it ends by itself and with status 0, soon."""
    for delay in (0.0, 0.02, 0.2):
        with serving(model, "--slots", n_parallel=2) as server, ThreadPoolExecutor(4) as pool:

            def one(i: int, server: Server = server) -> bytes:
                with stream(server, text(n_tokens, i), 10_000) as connection:
                    return read_all(connection)

            answers = [pool.submit(one, i) for i in range(4)]
            until(lambda server=server: not is_idle(server))
            time.sleep(delay)
            begun = time.monotonic()
            server._process.send_signal(number)
            assert server._process.wait(SECONDS) == 0
            assert time.monotonic() - begun < 10
            for answer in answers:
                told(answer.result())


def told(answer: bytes) -> None:
    """Whether a client that was cut off learnt why."""
    found = events(answer)
    if found and found[-1].get("stop"):
        return  # it was done
    body = answer.partition(b"\r\n\r\n")[2]
    assert b"shutting down" in body, answer[-300:]


#
# slot files
#


@contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[Path]:
    """A folder on a disk of its own, in memory."""
    folder.mkdir()
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("only root mounts disks, on Linux")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a disk cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(model: Path, tmp_path: Path) -> None:
    """What does not fit is said, no half file is taken for one, and the slot goes on."""
    with small_disk(tmp_path / "disk", 64 * 1024) as folder, serving(model, "--slot-save-path", f"{folder}/") as server:
        prompt = text(700)
        usual = complete(server, prompt, id_slot=0)["content"]
        answer = call(server, "/slots/0?action=save", {"filename": "full"})
        assert answer["status"] >= 400 and answer["error"]["message"]
        assert call(server, "/slots/0?action=restore", {"filename": "full"})["status"] >= 400
        again = complete(server, prompt, id_slot=0)
        assert again["content"] == usual


@pytest.mark.parametrize("damage", ["cut", "bits", "empty", "other"])
def test_a_damaged_slot_file(model: Path, tmp_path: Path, damage: str) -> None:
    with serving(model, "--slot-save-path", f"{tmp_path}/") as server:
        prompt = text(700)
        usual = complete(server, prompt, id_slot=0)["content"]
        assert call(server, "/slots/0?action=save", {"filename": "saved"})["n_saved"] >= 700
        file = tmp_path / "saved"
        data = bytearray(file.read_bytes())
        if damage == "cut":
            data = data[: len(data) // 2]
        elif damage == "bits":
            for i in range(len(data) // 3, len(data), len(data) // 50):
                data[i] ^= 0x55
        elif damage == "empty":
            data = bytearray()
        else:
            data = bytearray(os.urandom(5000))
        file.write_bytes(data)
        answer = call(server, "/slots/0?action=restore", {"filename": "saved"})
        assert answer["status"] >= 400 and answer["error"]["message"]
        assert complete(server, prompt, id_slot=0)["content"] == usual
        assert complete(server, [*prompt, *text(20, 3)], id_slot=0)["content"]


def test_a_slot_file_of_a_shorter_slot(model: Path, tmp_path: Path) -> None:
    with serving(model, "--slot-save-path", f"{tmp_path}/") as server:
        complete(server, text(N_CTX - 50), id_slot=0)
        call(server, "/slots/0?action=save", {"filename": "long"})
    with serving(model, "--slot-save-path", f"{tmp_path}/", n_ctx=512) as server:
        answer = call(server, "/slots/0?action=restore", {"filename": "long"})
        assert answer["status"] >= 400 and answer["error"]["message"]
        assert complete(server, text(400))["content"]


#
# slots that are kept
#


def test_slots_are_kept(model: Path, tmp_path: Path) -> None:
    """Also in the middle of an answer; a text beyond the window is not read again, and goes on as before."""
    keep = ["--slots", "--slot-save-path", f"{tmp_path}/", "--keep-slots"]
    prompts = [text(700, 1), text(300, 2)]
    turns = [[*prompt, *text(20, 3)] for prompt in prompts]
    with serving(model, "--slots", n_parallel=2) as server:
        expected = []
        for i, (prompt, turn) in enumerate(zip(prompts, turns, strict=True)):
            complete(server, prompt, id_slot=i)
            expected.append(complete(server, turn, id_slot=i)["content"])
    with serving(model, *keep, n_parallel=2) as server:
        for i, prompt in enumerate(prompts):
            complete(server, prompt, id_slot=i)
    assert len(list(tmp_path.iterdir())) == 2
    with serving(model, *keep, n_parallel=2) as server:
        for i, turn in enumerate(turns):
            answer = complete(server, turn, id_slot=i)
            assert answer["content"] == expected[i]
            assert answer["timings"]["cache_n"] >= len(prompts[i])
        with stream(server, [*turns[0], *text(9, 4)], 10_000, id_slot=0) as connection:
            begun = connection.recv(1)
            server.close()
            told(begun + read_all(connection))
    with serving(model, *keep, n_parallel=2) as server:
        assert complete(server, turns[0], id_slot=0)["content"] == expected[0]


def test_kept_slots_that_are_damaged_or_of_another_model(model: Path, tmp_path: Path) -> None:
    """They are left out, and the server goes on without them."""
    keep = ["--slots", "--slot-save-path", f"{tmp_path}/", "--keep-slots"]
    with serving(model, *keep) as server:
        usual = complete(server, text(300))["content"]
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1000])
    with serving(model, *keep) as server:
        answer = complete(server, text(300))
        assert (answer["content"], answer["timings"]["cache_n"]) == (usual, 0)


def test_kept_slots_want_a_folder(model: Path) -> None:
    with pytest.raises(ServerError, match="--keep-slots needs --slot-save-path"), serving(model, "--keep-slots"):
        pass
