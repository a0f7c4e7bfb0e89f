"""What the type of the KV cache costs, with SelfExtend and without, on real text beyond the trained window.

    python tests/cache_types.py MODEL.gguf

Evaluates the text, the language reference that comes with Python, once for each type, and prints a Markdown table of
mean KL divergence and top-1 agreement, both against the F16 cache, over the tokens behind the trained window. The plain
model is lost there, and SelfExtend is what it is for; the table tells whether rounding hurts it more.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from context import Context, open_model
from reference import Array, kl_divergence

from pyselfextend.prompts import prose

TYPES = {"F16": 1, "BF16": 30, "Q8_0": 8, "Q5_1": 7, "Q4_0": 2}
N_BATCH = 512


class Row(NamedTuple):
    """What a cache type does to one model."""

    kl: float  # mean, nats
    error: float  # standard error of the mean
    agreement: float  # share of tokens with the same most probable next token


def tokenize(model: Any, text: str, n_tokens: int) -> list[int]:
    import llama_cpp

    data = text.encode()
    ids = (llama_cpp.llama_token * (len(data) + 8))()
    n = llama_cpp.llama_tokenize(llama_cpp.llama_model_get_vocab(model), data, len(data), ids, len(ids), True, False)
    if n < n_tokens:
        raise SystemExit(f"the text has {n} tokens, {n_tokens} are needed")
    return list(ids[:n_tokens])


def evaluate(model: Any, tokens: list[int], n_skip: int, ga_n: int, ga_w: int, types: tuple[str, str]) -> Array:
    """Logits of the tokens behind the first n_skip, [n_tokens - n_skip, n_vocab]."""
    type_k, type_v = (TYPES[name] for name in types)
    found = []
    options: dict[str, Any] = {"n_ctx": len(tokens), "n_batch": N_BATCH, "n_ubatch": N_BATCH, "n_threads": 2}
    with Context(model, ga_n, ga_w, flash_attn_type=1, type_k=type_k, type_v=type_v, **options) as ctx:
        for begin in range(0, len(tokens), N_BATCH):
            batch = [(token, begin + i, 0) for i, token in enumerate(tokens[begin : begin + N_BATCH])]
            status, logits = ctx.decode(batch, logits=begin >= n_skip)
            assert status == 0, status
            if begin >= n_skip:
                found.append(logits)
    return np.concatenate(found)


def measure(
    model: Any, tokens: list[int], n_skip: int, ga_n: int, ga_w: int, types: list[str]
) -> dict[tuple[str, str], Row]:
    pairs = [("F16", "F16"), *((k, v) for k in types for v in ("F16", k))]
    rows, exact = {}, np.empty(0)
    for pair in pairs:
        start = time.monotonic()
        logits = evaluate(model, tokens, n_skip, ga_n, ga_w, pair)
        exact = logits if pair == ("F16", "F16") else exact
        same = (logits.argmax(axis=1) == exact.argmax(axis=1)).mean()
        kl = kl_divergence(exact, logits)
        rows[pair] = Row(float(kl.mean()), float(kl.std() / np.sqrt(len(kl))), float(same))
        print(f"ga_n={ga_n} K {pair[0]} V {pair[1]}: {rows[pair]}, {time.monotonic() - start:.0f} s", file=sys.stderr)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--n-tokens", type=int, default=9216, help="length of the text (%(default)s)")
    parser.add_argument(
        "--n-skip", type=int, default=8192, help="trained window: tokens that are not compared (%(default)s)"
    )
    parser.add_argument("--ga-n", type=int, default=3, help="group size (%(default)s)")
    parser.add_argument("--ga-w", type=int, default=1024, help="neighbour window (%(default)s)")
    rounded = [name for name in TYPES if name != "F16"]
    parser.add_argument("--types", nargs="+", choices=rounded, default=rounded, help="cache types (all)")
    args = parser.parse_args()
    with open_model(args.model) as model:
        tokens = tokenize(model, "\n\n".join(prose()), args.n_tokens)
        ours = measure(model, tokens, args.n_skip, args.ga_n, args.ga_w, args.types)
        plain = measure(model, tokens, args.n_skip, 1, 0, args.types)
    print("| K | V | SelfExtend: mean KL | top-1 | plain: mean KL | top-1 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for pair, row in ours.items():
        cells = [f"{r.kl:.5f} ± {r.error:.5f} | {r.agreement:.1%}" for r in (row, plain[pair])]
        print(f"| {pair[0]} | {pair[1]} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
