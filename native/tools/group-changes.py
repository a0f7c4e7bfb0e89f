"""What changes of a group cost: rounding of keys that are turned, and time.

    python native/tools/group-changes.py MODEL [--n-tokens 6000] [--n-more 512] [--threads 2]

A text is read plain, and its keys are turned to the same group in one, two and three steps. How far the logits of the
tokens that follow are from those of an F32 cache, where turning does not round, is what that costs, beside what the
type of cache costs without a change. Prints two tables in Markdown. The cache in F32 takes twice that of F16.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from pyselfextend import Llama, _native
from pyselfextend.prompts import prose

library = _native.load()

TYPES = {"F32": 0, "F16": 1, "Q8_0": 8, "Q4_0": 2}
STEPS = {0: [], 1: [8], 2: [2, 8], 3: [2, 4, 8]}  # all of them end with the same group


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--n-tokens", type=int, default=6000, help="that are read and turned (%(default)s)")
    parser.add_argument("--n-more", type=int, default=512, help="whose logits are compared (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    exact: dict[bool, Any] = {}  # of the F32 cache, whether or not it was turned
    rows, times = [], []
    for name, number in TYPES.items():
        with opened(args.model, args.n_tokens + args.n_more, number, args.threads) as llm:
            tokens = llm.tokenize("\n\n".join(prose()).encode())[: args.n_tokens + args.n_more]
            assert len(tokens) == args.n_tokens + args.n_more, "the text is too short for that many tokens"
            costs = []
            for n_changes, groups in STEPS.items():
                seconds_read, seconds = read(llm, tokens[: args.n_tokens], groups)
                times += [(name, each / seconds_read) for each in seconds]
                logits = continued(llm, tokens[args.n_tokens :])
                log_probs = log_softmax(logits)
                exact.setdefault(n_changes > 0, log_probs)
                costs.append(kl(exact[n_changes > 0], log_probs))
            rows.append((name, costs))

    print(f"{args.model.name}: mean KL in nats over {args.n_more} tokens behind {args.n_tokens}, from an F32 cache\n")
    print("| cache | no change | one | two | three |\n| --- | --- | --- | --- | --- |")
    for name, costs in rows:
        print(f"| {name} | {' | '.join(f'{cost:.2e}' for cost in costs)} |")
    print(f"\nTime of a change, by that of reading the {args.n_tokens} tokens\n")
    print("| cache | median | from | to |\n| --- | --- | --- | --- |")
    for name in TYPES:
        found = [share for each, share in times if each == name]
        print(f"| {name} | {statistics.median(found):.2%} | {min(found):.2%} | {max(found):.2%} |")


def opened(model: Path, n_ctx: int, cache: int, n_threads: int) -> Llama:
    """The model with groups that are set here; its window is at the default."""
    with contextlib.redirect_stderr(io.StringIO()):
        return Llama(
            model, n_ctx=n_ctx, ga_n=8, type_k=cache, type_v=cache, flash_attn=True, n_batch=512, logits_all=False,
            n_threads=n_threads, n_threads_batch=n_threads, verbose=False,
        )  # fmt: skip


def read(llm: Llama, tokens: list[int], groups: list[int]) -> tuple[float, list[float]]:
    """Read a text plain, then turn its keys to each of some groups. Seconds of reading, and of each change."""
    llm.reset()
    llm._ctx.kv_cache_clear()
    assert library.set_group(llm.ctx, 0, 1)
    start = time.perf_counter()
    llm.eval(tokens)
    seconds_read, seconds = time.perf_counter() - start, []
    for ga_n in groups:
        start = time.perf_counter()
        assert library.set_group(llm.ctx, 0, ga_n)
        library.apply_shifts(llm.ctx)
        seconds.append(time.perf_counter() - start)
    return seconds_read, seconds


def continued(llm: Llama, tokens: list[int]) -> Any:
    """Logits behind each token, [n_tokens, n_vocab]."""
    rows = []
    for token in tokens:
        llm.eval([token])
        rows.append(np.array(llm._ctx.get_logits_ith(-1)[: llm.n_vocab()], dtype=np.float64))
    return np.array(rows)


def log_softmax(logits: Any) -> Any:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def kl(p: Any, q: Any) -> float:
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


if __name__ == "__main__":
    main()
