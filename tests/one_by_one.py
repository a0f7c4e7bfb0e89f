"""Run tests one by one, each in a process of its own that has a time limit: none can stop or spoil the others.

    python tests/one_by_one.py --limit 300 tests/test_devices.py

A test on a device may hang in a native call that Python cannot interrupt, or abort the process. Then its processes are
killed, all of its session, and what it wrote is printed, with the Python stacks of where it hung; the others go on.
What follows the options is handed to pytest. The exit status is 0 if every test passed or was skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Lock

STACKS_AT = 0.7  # of the limit, which counts from the start of Python
LAST_WORDS = 15.0  # seconds that killed processes get to end: in a driver that hangs even SIGKILL waits
POLL = 0.05  # seconds between looks at a test
N_PRINTED = 6000  # characters of what a failed test wrote
OK = ("passed", "skipped")
INSIDE = re.compile(r'^  File ".*(/_pytest/|/pluggy/|/pytest/__main__|<frozen runpy>).*\n', re.MULTILINE)  # of a stack


@dataclass
class Outcome:
    """What became of a test."""

    test: str
    outcome: str  # passed, failed, skipped, timed out, died, not run
    seconds: float = 0.0
    reason: str = ""
    output: str = ""


def collect(arguments: Sequence[str]) -> list[str]:
    """The names of the tests, as pytest takes them. Ends the program if it finds none, or cannot read them."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--color=no", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        sys.exit(f"pytest found no tests to run:\n{done.stdout}{done.stderr}")
    names, _, _ = done.stdout.partition("\n\n")
    return [line for line in names.splitlines() if "::" in line]


def run(test: str, limit: float, stopped: Event) -> Outcome:
    """Run one test in a session of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "--color=no", "-p", "no:cacheprovider"]
    command += ["-o", f"faulthandler_timeout={max(1.0, STACKS_AT * limit):g}", test]
    began = time.monotonic()
    with tempfile.TemporaryFile() as file:  # not a pipe, which those that outlive the test could hold open
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        while process.poll() is None and time.monotonic() - began < limit and not stopped.is_set():
            time.sleep(POLL)
        ended = process.poll() is not None
        reason = "" if ended else "interrupted" if stopped.is_set() else f"had not ended after {limit:.0f} s"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it started, too
        try:
            status = process.wait(LAST_WORDS)
        except subprocess.TimeoutExpired:
            status, reason = -signal.SIGKILL, f"{reason}, and could not be killed"
        seconds = time.monotonic() - began
        file.seek(0)
        output = file.read().decode(errors="replace")
    if not ended:
        outcome = "timed out"
    elif status < 0:
        outcome, reason = "died", f"of {signal.Signals(-status).name}"
    elif status == 0:
        outcome = "skipped" if re.search(r"^SKIPPED ", output, re.MULTILINE) else "passed"
    else:
        outcome = "failed"
        found = re.search(r"^(?:FAILED|ERROR) .*? - (.*)$", output, re.MULTILINE)
        reason = found[1] if found else f"pytest exited with {status}"
    return Outcome(test, outcome, seconds, reason, output)


def line(result: Outcome) -> str:
    """A test in a line."""
    reason = f": {result.reason}" if result.reason else ""
    return f"{result.outcome:9} {result.seconds:7.1f} s  {result.test}{reason}"


def say(results: Sequence[Outcome], seconds: float) -> None:
    """Which tests are not well, by name, and how many there are of each kind."""
    print("\n" + "\n".join(line(result) for result in results if result.outcome not in OK))
    kinds = {
        kind: sum(result.outcome == kind for result in results) for kind in dict.fromkeys(r.outcome for r in results)
    }
    print(f"{', '.join(f'{n} {kind}' for kind, n in kinds.items()) or 'no tests'} in {seconds:.1f} s", flush=True)


def write(path: Path, results: Sequence[Outcome]) -> None:
    """Keep them, whole or not at all."""
    with _writing:
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n", encoding="utf-8")
        partial.replace(path)


_writing = Lock()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=float, default=300.0, metavar="S", help="seconds for each test (%(default)g)")
    parser.add_argument("--total", type=float, metavar="S", help="seconds for all: what is left then is not run")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="tests at a time (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write names, outcomes, seconds and outputs")
    args, arguments = parser.parse_known_args()

    began = time.monotonic()
    outcomes: dict[str, Outcome] = {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what runs is killed, and what was found is said
    tests = collect(arguments)

    def run_in_time(test: str) -> None:
        left = float("inf") if args.total is None else began + args.total - time.monotonic()
        if left < 1 or stopped.is_set():
            return
        result = run(test, min(args.limit, left), stopped)
        outcomes[test] = result
        printed = "" if result.outcome in OK else f"\n{INSIDE.sub('', result.output)[-N_PRINTED:]}"
        print(f"{line(result)}{printed}", flush=True)
        if args.json:
            write(args.json, list(outcomes.values()))

    stopped = Event()
    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            for _ in pool.map(run_in_time, tests):
                pass
        except KeyboardInterrupt:
            stopped.set()
    reason = "interrupted" if stopped.is_set() else "the time for all tests was over"
    results = [outcomes.get(test) or Outcome(test, "not run", reason=reason) for test in tests]
    say(results, time.monotonic() - began)
    if args.json:
        write(args.json, results)
    return 0 if all(result.outcome in OK for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
