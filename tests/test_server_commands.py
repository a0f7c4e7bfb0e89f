"""``pyselfextend serve`` and ``chat`` as processes: what they say, what they hand on, and how they end."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from serving import NEEDS_PAGE, NEEDS_SERVER, ONE_THREAD, short_model

pytestmark = NEEDS_SERVER

INTERRUPTIBLE = [sys.executable, str(Path(__file__).with_name("interruptible.py"))]
PATIENCE = 60.0


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


class Terminal:
    """A chat in a terminal of its own."""

    def __init__(self, *words: str) -> None:
        self.end, theirs = pty.openpty()
        command = [*INTERRUPTIBLE, "chat", *words, *ONE_THREAD]
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=self.take
        )
        os.close(theirs)
        self.output = ""

    @staticmethod
    def take() -> None:
        """Make it the terminal of the process: Ctrl-C goes there."""
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """What comes next and is like a pattern; what was before is forgotten."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.output)):
            assert time.monotonic() < deadline, self.output
            if not select.select([self.end], [], [], 1.0)[0]:
                continue
            try:
                piece = os.read(self.end, 4096)
            except OSError:  # it has ended
                piece = b""
            assert piece, self.output
            self.output += piece.decode("utf-8", "replace")
        self.output = self.output[found.end() :]
        return found

    def write(self, text: str) -> None:
        os.write(self.end, text.encode())

    def ended(self) -> int:
        with suppress(OSError):
            while os.read(self.end, 4096):
                pass
        return self.process.wait(60)

    def close(self) -> None:
        for child in psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []:
            child.kill()
        self.process.kill()
        self.process.wait()
        os.close(self.end)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    with ExitStack() as stack:

        def open_one(*words: str) -> Terminal:
            found = Terminal(*words)
            stack.callback(found.close)
            return found

        yield open_one


def test_chat_in_the_terminal(short: Path, tmp_path: Path, terminal: Callable[..., Terminal]) -> None:
    """With a text as an argument; the line with which one is asked says how far the context is filled."""
    (tmp_path / "notes.txt").write_text("one two three four five six. " * 20)
    chat = terminal(str(short), str(tmp_path / "notes.txt"), "--terminal", "--ctx", "1024", "-n", "8")
    chat.wait_for("trained on 256 tokens, one slot of 1,024")
    chat.wait_for("Loaded text from .*notes.txt")
    chat.wait_for("\n> ")
    chat.write("hello\n")
    n_used, n_beyond, ga_n = map(int, chat.wait_for(
        r"\[(\d+) of 1,024 tokens, (\d+) beyond the trained 256, group size (\d+)\]\s+> ").groups())  # fmt: skip
    assert n_used - n_beyond == 256 and ga_n > 1
    chat.write("more\n")
    assert int(chat.wait_for(r"\[(\d+) of 1,024 tokens,")[1]) > n_used
    chat.write("/clear\n")
    chat.wait_for("> ")
    chat.write("/exit\n")
    assert chat.ended() == 0


def test_inside_the_window_the_gauge_says_where_it_ends(short: Path, terminal: Callable[..., Terminal]) -> None:
    chat = terminal(str(short), "--terminal", "--ctx", "1024", "-n", "8")
    chat.wait_for("\n> ")
    chat.write("hello\n")
    chat.wait_for(r"\[\d+ of 1,024 tokens, trained on 256\]")
    chat.write("/exit\n")
    assert chat.ended() == 0


def test_ctrl_c_stops_an_answer_and_a_second_one_ends_it(short: Path, terminal: Callable[..., Terminal]) -> None:
    chat = terminal(str(short), "--terminal", "--ctx", "1024", "--ignore-eos")
    chat.wait_for("\n> ")
    chat.write("hello\n")
    chat.wait_for("hello")
    chat.wait_for(r"\S{3}")  # of the answer
    chat.write("\x03")
    chat.wait_for(r"\[ Prompt: [^\]]*\][^>]*> ")
    chat.write("\x03")
    assert chat.ended() in (0, 130)


@pytest.mark.parametrize(
    ("content", "words"), [(b"%PDF-1.4 \xff\xfe", "is no text in UTF-8"), (None, "cannot be read")]
)
def test_files_that_are_no_text(short: Path, tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "file.pdf").write_bytes(content)
    command = [*INTERRUPTIBLE, "chat", str(short), str(tmp_path / "file.pdf"), "--terminal"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2 and words in done.stderr


def test_what_does_not_go_together(short: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "taken").write_text("x")
    for words, said in [
        (["chat", str(short), "--terminal", "--keep", str(tmp_path)], "--keep is for the page"),
        (["chat", str(short), str(tmp_path / "notes.txt")], "files are for --terminal"),
        (["serve", str(short), "--keep", str(tmp_path / "taken" / "x")], "cannot be made"),
    ]:
        done = subprocess.run([*INTERRUPTIBLE, *words], capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 2 and said in done.stderr, done


def test_what_is_kept(short: Path, tmp_path: Path) -> None:
    """A second run goes on from what the first has read."""
    kept = tmp_path / "kept"
    words = ["serve", str(short), "--ctx", "1024", "--port", "0", "--keep", str(kept), *ONE_THREAD]
    body = json.dumps({"prompt": list(range(40, 80)) * 10, "n_predict": 2}).encode()
    n_cached = []
    for run in range(2):
        (folder := tmp_path / str(run)).mkdir()
        with running(words, folder) as command:
            url = command.wait_for(r"listening on (http://\S+)")
            command.wait_for(r"(model loaded)")
            with urllib.request.urlopen(f"{url}/completion", body, timeout=60) as answer:
                n_cached.append(json.loads(answer.read())["timings"]["cache_n"])
            command.process.send_signal(signal.SIGTERM)
            assert command.process.wait(60) == 0
    assert n_cached == [0, 399]
    assert [file.name for file in kept.iterdir()] == ["model.slot-0"]


def test_a_server_that_anybody_may_use_is_said(short: Path, tmp_path: Path) -> None:
    words = ["serve", str(short), "--ctx", "300", "--port", "0", "--host", "0.0.0.0", *ONE_THREAD]
    with running(words, tmp_path) as command:
        command.wait_for(r"(whoever reaches 0.0.0.0 can use it and read its chats: --api-key)")
