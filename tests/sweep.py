"""Calls of every public method of Llama with every argument being each of many values, in processes that may die.

``run`` is called by the tests; ``python tests/sweep.py MODEL WHAT FIRST`` is the process: it prints each case before
and after it is tried, as a line of JSON, so that the one that ends it is known.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

TIMEOUT = 300  # seconds, for one method


class Mine(Exception):
    """What a callback of the sweep raises; it is to reach the caller."""


def fail(*_: Any, **__: Any) -> Any:
    raise Mine


#: Of every type, and of every range.
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, -2, 7, 2**31 - 1, 2**31, -(2**31), 2**32, 2**63, 2**64, 10**30, -(10**30)),
    *(1.0, 0.5, -1.5, 1e308, -1e308, 1e-320, math.nan, math.inf, -math.inf, 1 + 2j),
    *("", "x", "7", "é" * 5, "\ud800", "\0", "x" * 5000, b"", b"x", b"\xff"),
    *([], [1], [0], [-1], [10**9], ["x"], [""], [None], [1.5], [5] * 3000, (), {}, {"a": 1}, {1, 2}, range(3)),
    *({5: math.nan}, {5: 1.0}, {5: -math.inf}, {10**9: 1.0}, {"x": 1}, {"5": 1.0}, [{}], [{"role": "user"}]),
    *([{"role": 1, "content": 2}], [{"role": "user", "content": None}], {"type": "json_object", "schema": 5}),
    *(object(), fail, np.int64(3), np.float32(1.5), np.array([1, 2]), np.array(2), np.array([1.5]), np.array([[1]])),
]

MESSAGES = [{"role": "user", "content": "a"}]

#: The methods, with arguments that are right.
METHODS: dict[str, dict[str, Any]] = {
    "tokenize": {"text": b"ab"},
    "detokenize": {"tokens": [5, 6]},
    "set_cache": {"cache": None},
    "set_seed": {"seed": 3},
    "reset": {},
    "eval": {"tokens": [5, 6], "n_expected": 3},
    "sample": {},
    "generate": {"tokens": [5, 6]},
    "create_embedding": {"input": "ab"},
    "embed": {"input": "ab"},
    "create_completion": {"prompt": "ab", "max_tokens": 3},
    "__call__": {"prompt": "ab", "max_tokens": 3},
    "create_chat_completion": {"messages": MESSAGES, "max_tokens": 3},
    "save_state": {},
    "load_state": {},
    "context_shift": {"n_keep": 0, "n_discard": 1},
    "n_ctx": {},
    "n_embd": {},
    "n_vocab": {},
    "tokenizer": {},
    "token_eos": {},
    "token_bos": {},
    "token_nl": {},
    "pooling_type": {},
}

WITHOUT_ARGUMENTS = {"reset", "save_state", *(name for name in METHODS if name.startswith(("n_", "token_")))}
WITHOUT_ARGUMENTS |= {"tokenizer", "pooling_type"}

#: Not of an instance, or of another package: NumPy's own errors, the hub's, openai's.
NOT_SWEPT = {
    "logits_to_logprobs",
    "longest_token_prefix",
    "from_pretrained",
    "create_chat_completion_openai_v1",
    "close",
}

QUIET: dict[str, Any] = {"verbose": False, "n_threads": 1, "n_threads_batch": 1, "n_ctx": 512}
PROMPT = [1, 40, 41, 42, 50, 60]


def constructor_arguments() -> list[str]:
    from pyselfextend import Llama

    return [name for name in inspect.signature(Llama).parameters if name != "kwargs"]


def run(model: Path, what: str) -> list[dict[str, Any]]:
    """All cases of a method, or of the constructor: what was given, what came, and whether that is all right."""
    found: list[dict[str, Any]] = []
    first = 0
    while True:
        command = [sys.executable, __file__, str(model), what, str(first)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        found += [line for line in lines if "ok" in line]
        if done.returncode == 0:
            return found
        begun = [line["begun"] for line in lines if "begun" in line]
        if not begun:
            raise AssertionError(f"the process of the sweep could not begin: {done.stderr}")
        found.append({"ok": False, "case": begun[-1], "came": f"the process ended with {done.returncode}"})
        first = begun[-1] + 1


def cases(what: str) -> Iterator[tuple[str | None, Any, int]]:
    """Argument, value, ga_n."""
    import llama_cpp

    from pyselfextend import Llama

    if what == "constructor":
        names = constructor_arguments()
    else:
        method = getattr(llama_cpp.Llama, what, None) or getattr(Llama, what)
        names = [name for name in inspect.signature(method).parameters if name not in ("self", "kwargs")]
    for ga_n in (1, 4):
        yield None, None, ga_n
        for name in names:
            for value in VALUES:
                yield name, value, ga_n


class Sweep:
    """The process that tries cases."""

    def __init__(self, model: str, what: str) -> None:
        self.model, self.what = model, what
        self.opened: dict[int, Any] = {}
        self.expected: list[int] = []

    def tried(self, name: str | None, value: Any, ga_n: int) -> str:
        """What came of a case; empty if it is all right."""
        from pyselfextend import SelfExtendError

        try:
            if self.what == "constructor":
                self.open_and_ask(name, value, ga_n)
            else:
                self.call(name, value, ga_n)
        except (SelfExtendError, Mine):
            pass
        except Exception as error:
            if not self.is_allowed(error):
                return f"{type(error).__name__}: {error}"[:300]
        return self.after(ga_n)

    @staticmethod
    def is_allowed(error: Exception) -> bool:
        """Of others: a chat format that nobody knows, which lists those that are known."""
        return type(error).__name__ == "LlamaChatCompletionHandlerNotFoundException" and "valid formats" in str(error)

    def open_and_ask(self, name: str | None, value: Any, ga_n: int) -> None:
        from pyselfextend import Llama

        given = {"model_path": self.model, "ga_n": ga_n, **QUIET, **({name: value} if name else {})}
        with Llama(**given) as llm:
            if not given.get("vocab_only"):
                llm.create_completion("ab", max_tokens=2)
                llm.create_chat_completion(MESSAGES, max_tokens=2)  # type: ignore[arg-type]

    def call(self, name: str | None, value: Any, ga_n: int) -> None:
        llm = self.llm(ga_n)
        given = {**METHODS[self.what], **({name: value} if name else {})}
        if self.what == "load_state" and name is None:
            given["state"] = llm.save_state()
        if self.what in ("sample", "context_shift", "save_state"):
            llm.reset()
            llm.eval([5, 6, 7])
        answer = getattr(llm, self.what)(**given)
        if hasattr(answer, "send"):
            for i, _ in enumerate(answer):
                if i > 4:
                    break
            answer.close()

    def llm(self, ga_n: int) -> Any:
        from pyselfextend import Llama

        if ga_n not in self.opened:
            is_embedding = "embed" in self.what
            self.opened[ga_n] = Llama(self.model, ga_n=ga_n, embedding=is_embedding, **QUIET)
        return self.opened[ga_n]

    def after(self, ga_n: int) -> str:
        """Whether an instance still answers as it did."""
        if self.what == "constructor" or "embed" in self.what:
            return ""
        llm = self.llm(ga_n)
        llm.set_cache(None)
        llm.reset()
        steps = llm.generate(PROMPT, temp=0.0)
        found = [next(steps) for _ in range(4)]
        steps.close()
        self.expected = self.expected or found
        return "" if found == self.expected else f"then it answers {found}, not {self.expected}"


def main(model: str, what: str, first: str) -> None:
    warnings.simplefilter("ignore")
    one = Sweep(model, what)
    if what != "constructor":
        with contextlib.suppress(Exception):
            one.after(1)
    for i, (name, value, ga_n) in enumerate(cases(what)):
        if i < int(first):
            continue
        print(json.dumps({"begun": i}), flush=True)
        came = one.tried(name, value, ga_n)
        print(json.dumps({"ok": not came, "given": f"{name}={value!r:.60}, ga_n={ga_n}", "came": came}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
