"""A server as a process, and what it is asked: for the tests of it. They are skipped where it was not built."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from architectures import make_tiny

from pyselfextend import ServerError
from pyselfextend.server import Server, has_page, program, start

L = 256  # the trained context of the tiny models
N_CTX = 1024
ONE_THREAD = ("--threads", "1", "--threads-batch", "1", "--no-warmup")


def is_built() -> bool:
    try:
        return program("llama-server").is_file()
    except ServerError:
        return False


NEEDS_SERVER = pytest.mark.skipif(not is_built(), reason="the server was not built: make .venv/.server")
NEEDS_PAGE = pytest.mark.skipif(not has_page(), reason="the server was built without its page: it needs npm")


def short_model(folder: Path, n_ctx_train: int = L) -> Path:
    """A tiny model with a short trained context."""
    path: Path = make_tiny().make(folder / "model.gguf", "llama", n_ctx_train)
    return path


@contextmanager
def serving(model: Path, *options: Any, **arguments: Any) -> Iterator[Server]:
    """A server of one thread."""
    with start(model, options=[*ONE_THREAD, *options], timeout=120, **{"n_ctx": N_CTX, **arguments}) as server:
        yield server


def call(server: Server, path: str, body: Any = None) -> Any:
    """The answer to GET, or to POST if there is a body. An error is its JSON, with its status."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            text = answer.read().decode()
            return json.loads(text) if answer.headers["Content-Type"].startswith("application/json") else text
    except urllib.error.HTTPError as error:
        return {"status": error.code, **json.loads(error.read())}


def complete(server: Server, tokens: Sequence[int], n_predict: int = 8, **given: Any) -> Any:
    """The answer to a text of tokens, with the greatest logit each time."""
    body = {"prompt": list(tokens), "n_predict": n_predict, "temperature": 0, "return_tokens": True}
    answer = call(server, "/completion", {**body, **given})
    if "content" in answer:  # llama_cpp leaves out bytes that are no text
        answer["content"] = answer["content"].replace("\ufffd", "")
    return answer


def text(n_tokens: int, seed: int = 0) -> list[int]:
    """Tokens of the tiny models."""
    return [5 + (i * (7 + seed) + i // 11) % 40 for i in range(n_tokens)]
