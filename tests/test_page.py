"""The page of the server in headless Chromium: a text beyond the trained window is dropped into a chat, and read once.

A tiny model answers, so what it says means nothing; what is looked at is what is read, shown and kept.
"""

from __future__ import annotations

import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import NEEDS_PAGE, NEEDS_SERVER, call, serving, short_model

from pyselfextend.server import Server

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [NEEDS_SERVER, NEEDS_PAGE, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]

L, N_CTX = 1024, 8192
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
ANSWER = '[aria-label="Assistant message with actions"]'
QUESTION = '[aria-label="User message with actions"]'
SECONDS = 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return short_model(tmp_path_factory.mktemp("page"), L)


@pytest.fixture(scope="module")
def port() -> int:
    """The same for all servers: browsers keep chats by address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def document(tmp_path: Path) -> Path:
    """About 2,000 tokens, twice the trained window."""
    from pydoc_data.topics import topics

    path = tmp_path / "document.txt"
    path.write_text(topics["assert"] + topics["with"])
    return path


class Chat:
    """A page, and a person before it."""

    def __init__(self, context: Any, server: Server) -> None:
        self.server, self.page = server, context.new_page()
        self.page.set_default_timeout(SECONDS * 1000)
        self.page.goto(server.url)
        self.page.get_by_placeholder("Type a message").wait_for()

    def send(self, words: str, file: Path | None = None) -> None:
        """Ask, and do not wait for the answer."""
        if file is not None:
            self.page.set_input_files('input[type="file"]', file)
            self.page.get_by_text(file.name).first.wait_for()
        self.page.get_by_placeholder("Type a message").fill(words)
        self.page.keyboard.press("Enter")

    def ask(self, words: str, file: Path | None = None) -> None:
        """Ask, and wait until it has been answered."""
        n_answers = self.page.locator(ANSWER).count()
        self.send(words, file)
        self.wait(n_answers + 1)

    def wait(self, n_answers: int) -> None:
        """Until there are so many answers, and the server has nothing to do."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            shown = self.page.locator(ANSWER).count() == n_answers
            if shown and not self.is_busy() and self.page.get_by_role("button", name="Stop", exact=True).count() == 0:
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(self.page.locator("main, body").first.inner_text())

    def is_busy(self) -> bool:
        return any(slot["is_processing"] for slot in call(self.server, "/slots"))

    def n_read(self, i: int = -1) -> int:
        """The tokens that the page says were read for a question: the last one."""
        words = self.page.locator(QUESTION).nth(i).inner_text()
        found = re.search(r"(\d+) tokens\b", words)
        assert found, words
        return int(found[1])

    def gauge(self) -> str:
        """What the gauge says."""
        self.page.mouse.move(0, 0)
        self.page.hover("[data-context-gauge-trigger]")
        note = self.page.locator("[data-trained-window-note]")
        return str(note.inner_text()) if self.page.get_by_text("Context").first.is_visible() and note.count() else ""


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    yield context
    context.close()


def test_a_long_file_is_read_once(browser: Any, context: Any, model: Path, port: int, document: Path) -> None:
    with serving(model, "-n", 24, n_ctx=N_CTX, port=port) as server:
        chat = Chat(context, server)
        chat.ask("hello")
        assert chat.page.locator("[data-context-gauge-trigger] [data-trained-window-mark]").count() == 1
        assert "trained on 1,024 tokens. Beyond them" in chat.gauge()

        chat.ask("what does it say?", document)
        n_document = chat.n_read()
        assert n_document > 1.5 * L
        beyond = re.match(r"([\d,]+) tokens beyond the 1,024 that the model was trained on", chat.gauge())
        assert beyond and int(beyond[1].replace(",", "")) > n_document - L
        assert chat.page.locator("[data-trained-window-beyond]").count() == 1

        chat.ask("and its beginning?")  # a second turn reads only its own tokens
        assert chat.n_read() < 120

        # another answer to the same reads one token
        chat.page.locator(ANSWER).last.hover()
        chat.page.locator(ANSWER).last.get_by_role("button", name="Regenerate").click()
        chat.page.wait_for_timeout(300)
        chat.wait(3)
        assert chat.n_read() <= 2
        assert call(server, "/slots")[0]["self_extend"]["ga_n"] > 1

        # an early message is edited: what stands before it is kept
        question = chat.page.locator(QUESTION).nth(1)
        question.hover()
        question.get_by_role("button", name="Edit").click()
        chat.page.wait_for_timeout(300)
        (editor,) = (each for each in chat.page.locator("textarea").all() if each.input_value() == "what does it say?")
        editor.fill("what does it not say?")
        editor.press("Enter")
        chat.page.wait_for_timeout(300)
        chat.wait(2)
        assert chat.n_read() < 200

        # reload: the chat is there
        chat.page.reload()
        chat.page.locator(ANSWER).nth(1).wait_for()
        assert "what does it not say?" in chat.page.locator(QUESTION).nth(1).inner_text()
        url = chat.page.url
        chat.page.close()

    with serving(model, "-n", 24, n_ctx=N_CTX, port=port) as server:  # tomorrow
        chat = Chat(context, server)
        chat.page.goto(url)
        chat.page.locator(ANSWER).nth(1).wait_for()
        chat.ask("go on")
        assert chat.n_read() > n_document  # all of it, once more


@pytest.mark.slow
def test_an_answer_is_stopped_half_way(context: Any, smollm2: Path, port: int) -> None:
    """Of a model that takes its time."""
    with serving(smollm2, "-n", 6000, "--ignore-eos", n_ctx=N_CTX, port=port) as server:
        chat = Chat(context, server)
        for n_answers in (1, 2):
            chat.send("hello")
            chat.page.get_by_text(re.compile(r"\d+\.\d+ t/s")).last.wait_for()  # it has begun
            chat.page.wait_for_timeout(500)
            chat.page.get_by_role("button", name="Stop", exact=True).click()
            chat.wait(n_answers)
            assert call(server, "/slots")[0]["n_prompt_tokens"] < 2000


def test_progress_is_shown_while_it_reads(context: Any, model: Path, port: int, tmp_path: Path) -> None:
    from pydoc_data.topics import topics

    (tmp_path / "long.txt").write_text("".join(topics.values())[:9000])
    with serving(model, "--batch-size", 32, "--ubatch-size", 32, "-n", 4, n_ctx=32768, port=port) as server:
        chat = Chat(context, server)
        chat.send("what is it about?", tmp_path / "long.txt")
        chat.page.get_by_text(re.compile(r"Processing \d+% \(ETA: \d+s\)")).first.wait_for()
        chat.wait(1)


def test_why_it_is_not_extended(context: Any, model: Path, port: int) -> None:
    with serving(model, "-n", 4, "--rope-freq-scale", 0.5, n_ctx=N_CTX, port=port) as server:
        chat = Chat(context, server)
        chat.ask("hello")
        assert "1,024 tokens: the scaling of its positions is chosen already" in chat.gauge()
        assert chat.page.locator("[data-trained-window-mark]").count() == 0


def test_inside_the_window_there_is_no_mark(context: Any, model: Path, port: int) -> None:
    with serving(model, "-n", 4, n_ctx=L, port=port) as server:
        chat = Chat(context, server)
        chat.ask("hello")
        assert chat.gauge() == "" and chat.page.locator("[data-trained-window-mark]").count() == 0
