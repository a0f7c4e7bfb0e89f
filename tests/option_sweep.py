"""Calls commands with values of their options, each in a process of its own: how each ended, and what it said.

Standard input: a JSON list of lists of words. Standard output: for each a JSON line [status, text]; a status below zero
is a signal's number, SIGALRM's after the seconds that are the first argument. Each process is forked from one that has
imported everything and computed nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import tempfile

from pyselfextend.cli import main

BYTES_MAX = 8 * 2**30  # of addresses; a model and its cache take less

PRELOADED = ("llama_cpp", "matplotlib.figure", "statsmodels.api", "scipy.stats", "pyselfextend.llama", "rich.progress",
             "pyselfextend.bench", "pyselfextend.eval.run", "pyselfextend.commands.plan_screen")  # fmt: skip


def call(words: list[str], seconds: int) -> tuple[int, str]:
    with tempfile.TemporaryFile() as output:
        pid = os.fork()
        if pid == 0:
            for number in (1, 2):
                os.dup2(output.fileno(), number)
            signal.alarm(seconds)
            resource.setrlimit(resource.RLIMIT_AS, (BYTES_MAX, BYTES_MAX))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.setpgid(0, 0)
            try:
                status = main(words)
                sys.stdout.flush()
            except BaseException:
                sys.excepthook(*sys.exc_info())
                sys.stderr.flush()
                status = 99
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)  # workers of one that was ended
        output.seek(0)
        return status, output.read().decode(errors="backslashreplace")


def sweep(seconds: int) -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    for words in json.load(sys.stdin):
        sys.stdout.write(json.dumps(call(words, seconds)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sweep(int(sys.argv[1]))
