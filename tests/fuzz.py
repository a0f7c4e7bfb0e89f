"""Damaged model files, adapters, grammars, states and session files, through what reads them, in other processes.

    python tests/fuzz.py            # 10,000 model files, and 2,000 of each other kind
    python tests/fuzz.py models --n 500 --seed 7

Every input comes from a seed, which is printed when it ends its process, hangs, asks for too much memory, or raises
something else than an exception of the package; ``--n 1 --seed S`` runs it again. The status is 1 then.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fuzz_worker

LIMIT_S = 60.0  # for one input; the machine may be busy
BEGUN, DONE = "begun", "done"


@dataclass(frozen=True)
class Fault:
    """An input that did harm, by its seed."""

    kind: str
    seed: int
    what: str


class Worker:
    """A process that goes through inputs and says of each that it has begun, and what came of it."""

    def __init__(self, kind: str, folder: Path, seeds: range) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed in stop()
        command = [sys.executable, fuzz_worker.__file__, kind, str(folder), str(seeds.start), str(seeds.stop)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.errors, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert self.process.stdout is not None
        self.out = self.process.stdout
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.out:
            self.lines.put(line)
        self.lines.put(None)

    def messages(self) -> Iterator[tuple[str, int, str]]:
        """What it says, until it ends. Raises ``queue.Empty`` when it says nothing for too long."""
        while (line := self.lines.get(timeout=LIMIT_S)) is not None:
            yield json.loads(line)

    def stop(self, patience: float = 0.0) -> str:
        """How it ended, given some seconds, and its last words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        self.process.kill()  # nothing happens if it has ended
        status = self.process.wait()
        self.reader.join()
        self.out.close()
        self.errors.seek(0)
        words = self.errors.read().decode("utf-8", "replace").strip().splitlines()
        self.errors.close()
        return f"status {status}: {words[-1][:300] if words else 'without a word'}"


def run(
    kind: str, folder: Path, seeds: range, progress: Callable[[int], None] = lambda n: None
) -> Iterator[Fault | str]:
    """What came of each input, in order."""
    left = seeds
    while left:
        worker = Worker(kind, folder, left)
        begun = None
        try:
            for message, seed, what in worker.messages():
                if message == BEGUN:
                    begun = seed
                else:
                    begun = None
                    left = range(seed + 1, seeds.stop)
                    progress(seed - seeds.start + 1)
                    yield Fault(kind, seed, what) if what.startswith(fuzz_worker.UNEXPECTED) else what
            ended = worker.stop(LIMIT_S)  # the crash may still be written down
        except queue.Empty:
            ended = f"it hangs, for {LIMIT_S:.0f} s; {worker.stop()}"
        finally:
            if worker.process.returncode is None:  # the caller has gone
                worker.stop()
        if begun is None:
            if left:
                raise RuntimeError(f"the worker ended between inputs, {ended}")
            return
        left = range(begun + 1, seeds.stop)
        yield Fault(kind, begun, ended)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kinds", nargs="*", help="default: all")
    parser.add_argument("--n", type=int, help="inputs of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the first")
    args = parser.parse_args()
    if unknown := set(args.kinds) - set(fuzz_worker.KINDS):
        parser.error(f"no kind is called {', '.join(sorted(unknown))}; there are {', '.join(fuzz_worker.KINDS)}")
    folder = Path(tempfile.mkdtemp(prefix="pyselfextend-fuzz-"))
    n_faults = 0
    try:
        fuzz_worker.make_models(folder)
        for kind in args.kinds or fuzz_worker.KINDS:
            n = args.n or (10000 if kind == "models" else 2000)
            n_faults += _report(kind, folder, range(args.seed, args.seed + n))
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(folder)
    return int(n_faults > 0)


def _report(kind: str, folder: Path, seeds: range) -> int:
    """Run a kind with its progress; returns how many did harm."""
    begin = last = time.monotonic()

    def progress(n: int) -> None:
        nonlocal last
        if time.monotonic() - last > 10:
            last = time.monotonic()
            print(f"{kind}: {n} of {len(seeds)}, {last - begin:.0f} s", file=sys.stderr, flush=True)

    results: Counter[str] = Counter()
    n_faults = 0
    for result in run(kind, folder, seeds, progress):
        if isinstance(result, Fault):
            n_faults += 1
            print(f"{kind} --n 1 --seed {result.seed}: {result.what}", flush=True)
        else:
            results[result] += 1
    counts = ", ".join(f"{n} {what}" for what, n in results.most_common())
    print(f"{kind}: {len(seeds)} from seed {seeds.start}: {counts}; {n_faults} did harm", flush=True)
    return n_faults


if __name__ == "__main__":
    sys.exit(main())
