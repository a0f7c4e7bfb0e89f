"""A command whose output goes to a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def run_at_terminal(command: Sequence[str | Path], **variables: str) -> tuple[int, str]:
    """Exit status of a command, and what a terminal is sent.

    Args:
        command: program and arguments.
        variables: of the environment, beside those of this process.
    """
    ours, theirs = pty.openpty()
    environment: Mapping[str, str] = {**os.environ, **variables}
    child = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=Path(__file__).parent, env=environment
    )
    os.close(theirs)
    output = b""
    try:
        while piece := os.read(ours, 4096):
            output += piece
    except OSError:  # the terminal is closed
        pass
    os.close(ours)
    return child.wait(120), output.decode()
