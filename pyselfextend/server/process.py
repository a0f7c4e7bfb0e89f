"""A server as a process: started, waited for, and ended."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ..config import integer
from ..errors import ServerError
from ..maps import SELF_EXTEND
from .programs import SERVER, program
from .setting import ServerSetting, make_setting

__all__ = ["LOOPBACK", "Server", "launch", "run", "start"]

LOOPBACK = "127.0.0.1"

#: What the server writes when it has its port.
LISTENING = re.compile(rb"listening on (http://\S+)")

N_LINES = 8  # of what it has written, in an error
PAUSE = 0.05  # seconds between two looks
PATIENCE = 10.0  # seconds that it has to end by itself


class Server:
    """A running ``llama-server``, as ``start`` gives it. A context manager that ends it."""

    url: str
    """Where it listens, such as ``http://127.0.0.1:41234``; OpenAI's protocol is at ``/v1`` below it."""

    def __init__(self, command: Sequence[str], log: Path | None = None) -> None:
        self._own = log is None
        self._log = Path(tempfile.mkstemp(prefix="pyselfextend-server-", suffix=".log")[1]) if log is None else log
        with open(self._log, "wb") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment()
            )
        atexit.register(self.close)

    @property
    def log(self) -> Path:
        """The file that it writes its log to, which goes when it is closed, unless it was asked for."""
        return self._log

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the model is loaded.

        Raises:
            ServerError: the process has ended, or ``timeout`` seconds have passed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._is_ready():
            if not self.is_running:
                raise ServerError(f"the server has ended with status {self._process.returncode}: {self.last_lines()}")
            if deadline is not None and time.monotonic() > deadline:
                raise ServerError(f"the server was not ready after {timeout:g} seconds: {self.last_lines()}")
            time.sleep(PAUSE)

    def _is_ready(self) -> bool:
        if not hasattr(self, "url"):
            found = LISTENING.search(self._log.read_bytes())
            if found is None:
                return False
            self.url = found[1].decode("ascii", "replace")
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):  # it is loading
            return False

    def join(self) -> None:
        """Wait until it has ended."""
        self._process.wait()

    def last_lines(self) -> str:
        """What it has written last, in one line: errors, if there are any."""
        lines = [line.strip() for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines()]
        chosen = [line for line in lines if "error" in line.lower()] or list(filter(None, lines))
        return " | ".join(chosen[-N_LINES:]) or "it has written nothing"

    def close(self) -> None:
        """End the process, if it has not ended. Can be called again."""
        atexit.unregister(self.close)
        if self.is_running:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._own:
            with contextlib.suppress(OSError):
                os.unlink(self._log)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def environment() -> dict[str, str]:
    """Of a program that says why it ends, without the stack of calls behind it, unless that is asked for."""
    return {"GGML_NO_BACKTRACE": "1", **os.environ}


def run(command: Sequence[str]) -> int:
    """Run a program in this terminal, in the place of this process where that is possible. Returns its exit status."""
    if sys.platform != "win32":
        os.execve(command[0], list(command), environment())
    process = subprocess.Popen(command, env=environment())
    while True:  # Ctrl-C is the program's
        with contextlib.suppress(KeyboardInterrupt):
            return process.wait()


def launch(
    setting: ServerSetting,
    host: str,
    port: int,
    options: Sequence[Any],
    log: Path | None = None,
    timeout: float | None = None,
) -> Server:
    """``start`` with what has been checked."""
    server = Server([os.fspath(program(SERVER)), *setting.server_arguments(host, port), *map(str, options)], log)
    try:
        server.wait(timeout)
    except BaseException:
        server.close()
        raise
    return server


def start(
    model: str | os.PathLike[str],
    *,
    n_ctx: int | None = None,
    ga_n: int | Literal["auto"] = "auto",
    ga_w: int | None = None,
    ga_map: str = SELF_EXTEND.name,
    n_parallel: int = 1,
    host: str = LOOPBACK,
    port: int = 0,
    options: Sequence[Any] = (),
    log: str | os.PathLike[str] | None = None,
    timeout: float | None = None,
) -> Server:
    """Start a server, and wait until its model is loaded.

    Args:
        model: the GGUF file.
        n_ctx: tokens of a slot: a chat with its answers. None: what memory holds and the model reads well, see
            ``default_n_ctx``.
        ga_n: group size; "auto" follows the length of the text, 1 is the plain model.
        ga_w: neighbour window in tokens; None: an eighth of the trained context, at most 2048.
        ga_map: the map of positions, a name from ``maps.MAPS``.
        n_parallel: slots, each with a context of its own.
        host: where it listens; other addresses than the default let other machines in, see ``--api-key``.
        port: 0: one that is free.
        options: further ones of ``llama-server``, such as ``["--api-key", "secret"]``.
        log: a file for its log; None: one that goes with it.
        timeout: seconds that it may take; None: no limit.

    Raises:
        ModelFileError: the file cannot be read, llama.cpp cannot load what it says, or it has no tokenizer.
        SettingError: a value is not allowed, or the model does not reach ``n_ctx`` with it.
        ServerError: the package was built without the server, it has ended, or the time is over.
    """
    setting = make_setting(model, n_ctx, ga_n=ga_n, ga_w=ga_w, ga_map=ga_map, n_parallel=n_parallel)
    port = integer("port", port, 0, 65535)
    return launch(setting, host, port, options, None if log is None else Path(log), timeout)
