"""Run tests one after another, each in a process of its own that has a time limit: none can stop or spoil the others.

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
from dataclasses import asdict, dataclass
from pathlib import Path

STACKS_AT = 0.7  # of the limit, which counts from the start of Python
LAST_WORDS = 15.0  # seconds that killed processes get to end: in a driver that hangs even SIGKILL waits
N_PRINTED = 6000  # characters of what a failed test wrote
OK = ("passed", "skipped")


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


def run(test: str, limit: float) -> Outcome:
    """Run one test in a session of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "--color=no", "-p", "no:cacheprovider"]
    command += ["-o", f"faulthandler_timeout={max(1.0, STACKS_AT * limit):g}", test]
    began = time.monotonic()
    with tempfile.TemporaryFile() as file:  # not a pipe, which those that outlive the test could hold open
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        ended, reason = True, ""
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            ended, reason = False, f"had not ended after {limit:g} s"
        finally:
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=float, default=300.0, metavar="S", help="seconds for each test (%(default)g)")
    parser.add_argument("--total", type=float, metavar="S", help="seconds for all: what is left then is not run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write names, outcomes, seconds and outputs")
    args, arguments = parser.parse_known_args()

    began = time.monotonic()
    results: list[Outcome] = []
    tests = collect(arguments)
    try:
        for test in tests:
            left = float("inf") if args.total is None else began + args.total - time.monotonic()
            if left < 1:
                results.append(Outcome(test, "not run", reason="the time for all tests was over"))
                continue
            result = run(test, min(args.limit, left))
            results.append(result)
            print(line(result), flush=True)
            if result.outcome not in OK:
                print(result.output[-N_PRINTED:], flush=True)
            if args.json:
                args.json.write_text(json.dumps([asdict(each) for each in results], indent=1) + "\n")
    except KeyboardInterrupt:
        tested = {result.test for result in results}
        results += [Outcome(test, "not run", reason="interrupted") for test in tests if test not in tested]
    say(results, time.monotonic() - began)
    if args.json:
        args.json.write_text(json.dumps([asdict(each) for each in results], indent=1) + "\n")
    return 0 if all(result.outcome in OK for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
