"""A worker process as its owner sees it: requests, replies, and its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from .._native import LIB_PATH_VARIABLE, MTMD_PATH_VARIABLE
from ..closing import Closing
from ..errors import BenchError, ModelFileError, SettingError

__all__ = ["Worker"]

SCRIPT = Path(__file__).with_name("worker.py")

ERRORS = {"model": ModelFileError, "setting": SettingError, "bench": BenchError}

N_ERROR = 2000  # characters of what a dead worker wrote


class Worker(Closing):
    """A process that runs ``worker.py`` with the libllama in the folder ``lib``.

    It is ended when the context manager is left, and ends by itself if this process does.
    """

    def __init__(self, name: str, lib: Path) -> None:
        self.name = name
        self.lib = lib
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 -- open as long as the worker lives
        environment = {**os.environ, LIB_PATH_VARIABLE: str(lib), MTMD_PATH_VARIABLE: str(lib)}
        try:
            self._process = subprocess.Popen(
                [sys.executable, str(SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=environment,
                start_new_session=True,  # Ctrl-C is ours
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except BaseException:
            self._stderr.close()
            raise
        self.process = psutil.Process(self._process.pid)

    def close(self) -> None:
        """End the process now, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            assert pipe is not None
            with contextlib.suppress(OSError):  # what a dead worker did not read
                pipe.close()

    def request(self, do: str, on_reply: Callable[[dict[str, Any]], None] | None = None, **arguments: Any) -> Any:
        """Send a request and wait for what it answers. ``on_reply`` gets the replies on the way.

        Raises:
            ModelFileError, SettingError, BenchError: the worker cannot do it, and says why.
            BenchError: the worker has died; the message ends with what it wrote.
        """
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._died() from None
        for line in self._process.stdout:
            reply = json.loads(line)
            if "error" in reply:
                raise ERRORS[reply["kind"]](f"{self.name}: {reply['error']}")
            if "done" in reply:
                return reply["done"]
            if on_reply is not None:
                on_reply(reply)
        raise self._died()

    def _died(self) -> BenchError:
        status = self._process.wait()
        self._stderr.seek(0)
        written = self._stderr.read().decode(errors="replace").strip()[-N_ERROR:]
        how = f"with exit status {status}"
        if status < 0:
            how = f"by signal {signal.Signals(-status).name}"
        if status == -9:
            how += " (has the memory run out?)"
        return BenchError(f"the worker of {self.name} ended {how}" + (f":\n{written}" if written else ""))
