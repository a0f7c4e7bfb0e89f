"""``pyselfextend serve`` and ``chat`` as processes: what they say, what they hand on, and how they end."""

from __future__ import annotations

import gzip
import os
import pty
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from serving import NEEDS_PAGE, NEEDS_SERVER, ONE_THREAD, short_model

pytestmark = NEEDS_SERVER

INTERRUPTIBLE = [sys.executable, str(Path(__file__).with_name("interruptible.py"))]
PATIENCE = 120.0


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return short_model(tmp_path_factory.mktemp("commands"))


class Running:
    """A command whose output, a file, is looked at while it goes on."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self.output = folder / "output.txt"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*INTERRUPTIBLE, *words], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )

    def wait_for(self, pattern: str) -> str:
        """The first group of a pattern, as soon as it is there."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            text = self.output.read_text(encoding="utf-8", errors="replace")
            if found := re.search(pattern, text):
                return found[1]
            assert self.process.poll() is None, text
            time.sleep(0.05)
        raise AssertionError(text)


@contextmanager
def running(words: list[str], folder: Path) -> Iterator[Running]:
    command = Running(words, folder)
    try:
        yield command
    finally:
        if command.process.poll() is None:
            for child in psutil.Process(command.process.pid).children(recursive=True):
                child.kill()
            command.process.kill()
        command.process.wait()


def read(url: str) -> tuple[int, str, str]:
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept-Encoding": "gzip"}), timeout=30) as answer:
        body = answer.read()
        if answer.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        return answer.status, answer.headers["Content-Type"], body.decode("utf-8", "replace")


def test_serve(short: Path, tmp_path: Path) -> None:
    words = ["serve", str(short), "--ctx", "1024", "--parallel", "2", "--port", "0", "--alias", "mine", *ONE_THREAD]
    with running(words, tmp_path) as command:
        url = command.wait_for(r"listening on (http://\S+)")
        command.wait_for(r"(model loaded)")
        text = command.output.read_text()
        assert text.startswith("model.gguf: trained on 256 tokens, 2 slots, each of 1,024\nbeyond the trained window")
        assert '"mine"' in read(f"{url}/v1/models")[2]
        assert len(re.findall(r'"n_ctx":\s*1024\b', read(f"{url}/slots")[2])) == 2
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(60) == 0


def test_what_serve_is_given_wrongly_is_said_by_whom_it_concerns(short: Path, tmp_path: Path) -> None:
    for words, status, said in [
        ([str(short), "--ctx", "0"], 2, "0 is not at least 1"),
        ([str(tmp_path / "missing.gguf")], 2, "missing.gguf"),
        ([str(short), "--nonsense"], 1, "invalid argument: --nonsense"),
        (["--api-key", "secret", str(short)], 2, "--api-key stands where the model file belongs"),
        ([str(short), "--ctx", "9000", "--ga-n", "2"], 2, "n_ctx is 9000, but ga_n=2"),
    ]:
        done = subprocess.run([*INTERRUPTIBLE, "serve", *words], capture_output=True, text=True, timeout=PATIENCE)
        assert (done.returncode, said in done.stderr) == (status, True), (words, done)


@NEEDS_PAGE
def test_chat_on_a_page(short: Path, tmp_path: Path) -> None:
    words = ["chat", str(short), "--ctx", "900", "--port", "0", "--no-browser", *ONE_THREAD]
    with running(words, tmp_path) as command:
        url = command.wait_for(r"(http://\S+)  \(Ctrl-C ends it\)")
        status, kind, page = read(url)
        assert status == 200 and kind.startswith("text/html") and "<script" in page
        (server,) = psutil.Process(command.process.pid).children()
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(60) == 0
        assert not server.is_running()
        assert "Traceback" not in command.output.read_text()


@NEEDS_PAGE
def test_a_second_chat_has_another_port(short: Path, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    words = ["chat", str(short), "--ctx", "300", "--no-browser", *ONE_THREAD]
    with running([*words, "--port", "0"], tmp_path) as first:
        port = first.wait_for(r"http://\S+:(\d+)  \(Ctrl-C")
        with running([*words, "--port", port], tmp_path / "second") as second:
            assert second.wait_for(r"http://\S+:(\d+)  \(Ctrl-C") != port
            assert f"port {port} is taken, so this page has no chats of before" in second.output.read_text()


@NEEDS_PAGE
def test_a_server_that_ends_by_itself_is_said(short: Path, tmp_path: Path) -> None:
    with running(["chat", str(short), "--ctx", "300", "--port", "0", "--no-browser", *ONE_THREAD], tmp_path) as command:
        command.wait_for(r"(Ctrl-C ends it)")
        psutil.Process(command.process.pid).children()[0].kill()
        assert command.process.wait(60) == 2
        assert "the server has ended" in command.output.read_text()


def test_chat_in_the_terminal(short: Path) -> None:
    ours, theirs = pty.openpty()
    words = ["chat", str(short), "--terminal", "--ctx", "900", "-n", "8", *ONE_THREAD]
    process = subprocess.Popen([*INTERRUPTIBLE, *words], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    output, asked, deadline = b"", False, time.monotonic() + PATIENCE
    try:
        while time.monotonic() < deadline and (piece := os.read(ours, 4096)):
            output += piece
            if not asked and b"\n> " in output:
                os.write(ours, b"hello\n")
                asked = True
            elif asked and output.count(b"\n> ") >= 2:
                os.write(ours, b"/exit\n")
    except OSError:  # it has ended
        pass
    finally:
        os.close(ours)
    assert process.wait(60) == 0, output[-2000:]
    assert b"trained on 256 tokens" in output and output.count(b"hello") >= 1
