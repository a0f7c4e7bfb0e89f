"""Compares settings beyond the trained window, and in it: perplexity, and the right answers' log probability.

    python native/tools/compare-maps.py MODEL --out FILE.jsonl [--settings auto,4:,jet-long,...] [--lengths N,...]

Each text is read once with each group of each map, and asked for its keys on the way: numbers in prose, as those of
``pyselfextend tune``, and the values of a JSON object, as in ``pyselfextend eval kv``. A setting whose group follows
the length is put together from the readings of its groups, which is what it is: a text is read with one group from its
beginning. So settings share readings. The same command goes on where it was. Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pyselfextend.eval.cases import Tokenizer
from pyselfextend.eval.prompt import question, right_answer
from pyselfextend.eval.settings import Rope, Setting
from pyselfextend.eval.tasks.kv import HEAD, QUESTION, Pairs, random_uuid
from pyselfextend.tune import make_plan
from pyselfextend.tune.choice import mean
from pyselfextend.tune.plan import Plan
from pyselfextend.tune.reader import Reader
from pyselfextend.tune.run import Task, read
from pyselfextend.tune.texts import Key, Passage, Place, passages

SETTINGS = "auto,2:,4:,8:1024,jet-long,lampe,leaky,rerope,mrrope:4,yarn:4"
KINDS = ("prose", "kv")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="readings, a line of JSON each")
    parser.add_argument("--settings", default=SETTINGS)
    parser.add_argument("--lengths", help="by default those of pyselfextend tune, to four times the trained context")
    parser.add_argument("--samples", type=int, default=1, help="texts of each kind")
    parser.add_argument("--keys", type=int, default=12, help="that are asked for at each length")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    lengths = [int(length) for length in args.lengths.split(",")] if args.lengths else None
    plan = make_plan(args.model, lengths=lengths, samples=args.samples, keys=args.keys)
    rope, longest = Rope.of(plan.model), plan.lengths[-1]
    settings = [Setting.parse(text).resolve(rope, longest) for text in args.settings.split(",")]
    kinds = args.kinds.split(",")

    # how far each group of each opened model has to read
    needs: dict[str, dict[int, int]] = {}
    openers: dict[str, Setting] = {}
    for setting in settings:
        opener = opened_with(setting)
        openers[str(opener)] = opener
        for length, ga_n in groups(setting, rope, plan):
            groups_of = needs.setdefault(str(opener), {})
            groups_of[ga_n] = max(length, groups_of.get(ga_n, 0))

    found = (
        {key_of(row): row for row in map(json.loads, args.out.read_text().splitlines())} if args.out.exists() else {}
    )
    with Reader(args.model, Setting("plain"), rope, 64) as reader:
        texts = {
            "prose": passages(plan, reader.tokenizer(chat=False)),
            "kv": [objects(plan, reader.tokenizer(), sample) for sample in range(plan.samples)],
        }
    for name, opener in openers.items():
        tasks = [
            (kind, Task(ga_n, sample, passage, tuple(place for place in passage.places if place.n_tokens <= furthest)))
            for kind in kinds
            for sample, passage in enumerate(texts[kind])
            for ga_n, furthest in sorted(needs[name].items())
        ]
        tasks = [(kind, task) for kind, task in tasks if (name, kind, task.ga_n, task.passage.digest) not in found]
        if not tasks:
            continue
        n_ctx = max(longest, plan.model.n_ctx_train + 1)
        with Reader(args.model, opener, rope, n_ctx, n_threads=args.threads) as reader, args.out.open("a") as out:
            for kind, task in tasks:
                row = {"model": args.model.name, "opener": name, "kind": kind, **asdict(read(reader, task))}
                found[key_of(row)] = row
                print(json.dumps(row), file=out, flush=True)
                print(f"{name} ga_n={task.ga_n} {kind} {task.sample}: {row['seconds']:.0f} s", flush=True)

    for kind in kinds:
        digests = [passage.digest for passage in texts[kind]]
        show(kind, plan, rope, settings, digests, found)


def key_of(row: dict[str, Any]) -> tuple[str, str, int, str]:
    return row["opener"], row["kind"], row["ga_n"], row["digest"]


def opened_with(setting: Setting) -> Setting:
    """A setting whose context has groups that can be set to those of this one."""
    if setting.kind in ("auto", "pair"):
        return Setting("auto", ga_w=setting.ga_w, ga_map=setting.ga_map)
    return setting


def groups(setting: Setting, rope: Rope, plan: Plan) -> Iterator[tuple[int, int]]:
    """The lengths that a setting reaches, and the group that it reads each with."""
    reach = setting.n_ctx_max(rope)
    for length in plan.lengths:
        if reach is None or length <= reach:
            yield length, setting.group(rope, length)


def objects(plan: Plan, tokenizer: Tokenizer, sample: int) -> Passage:
    """A JSON object of UUIDs that is asked for its values, as in Lost in the Middle (arXiv 2307.03172, section 3).

    At a length it ends behind the pair that has been read.
    """
    pairs = Pairs(random.Random(f"maps {plan.seed} {sample}"), random_uuid, random_uuid)

    def asked(i: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        key, value = pairs.first(i + 1)[i]
        tail = QUESTION.format(key=key)
        return tokenizer.plain('"}') + question(tokenizer, tail), right_answer(tokenizer, tail, "", value)

    n_room = 16 + max(sum(map(len, asked(i))) for i in range(32))
    tokens = tokenizer.before + tokenizer.plain(HEAD + "{")
    starts, ends = [], []
    while len(tokens) < plan.lengths[-1]:
        key, value = pairs.first(len(starts) + 1)[-1]
        starts.append(len(tokens))
        tokens += tokenizer.plain(('",\n "' if len(starts) > 1 else '"') + f'{key}": "{value}')
        ends.append(len(tokens))
    keys = [Key(start, end - start, *asked(i)) for i, (start, end) in enumerate(zip(starts, ends, strict=True))]
    places = []
    for length in plan.lengths:
        n_pairs = sum(end <= length - n_room for end in ends)
        if n_pairs < plan.keys:
            raise SystemExit(f"{length} tokens hold {n_pairs} pairs; ask for fewer keys or give longer lengths")
        n_read = ends[n_pairs - 1]
        chosen = tuple(sorted({(2 * i + 1) * n_pairs // (2 * plan.keys) for i in range(plan.keys)}))
        places.append(Place(length, n_read, max(0, n_read - plan.window), chosen))
    return Passage(tokens, (False,) + (True,) * (len(tokens) - 1), tuple(keys), tuple(places))


def show(
    kind: str,
    plan: Plan,
    rope: Rope,
    settings: list[Setting],
    digests: list[str],
    found: dict[tuple[str, str, int, str], dict[str, Any]],
) -> None:
    """Two tables: log probability with its interval, and perplexity."""
    header = (
        "| "
        + " | ".join(["", *(f"{length:,}" for length in plan.lengths)])
        + " |\n|"
        + " --- |" * (len(plan.lengths) + 1)
    )
    answers, perplexities = [header], [header]
    for setting in settings:
        by_length = dict(groups(setting, rope, plan))
        cells: list[tuple[str, str]] = []
        for length in plan.lengths:
            if length not in by_length:
                cells.append(("", ""))
                continue
            name = str(opened_with(setting))
            rows = [found[name, kind, by_length[length], digest] for digest in digests]
            stops = [stop for row in rows for stop in row["stops"] if stop["n_tokens"] == length]
            values = np.array([answer["log_p"] for stop in stops for answer in stop["answers"]])
            n_right = sum(answer["is_right"] for stop in stops for answer in stop["answers"])
            spread_of = mean(values)
            nll = math.fsum(stop["nll"] for stop in stops) / sum(stop["n_scored"] for stop in stops)
            cells.append((
                f"{spread_of.value:.2f} ({spread_of.low:.2f} to {spread_of.high:.2f}), {n_right}/{len(values)}",
                f"{math.exp(nll):.2f}",
            ))  # fmt: skip
        answers.append(f"| {setting} | {' | '.join(cell for cell, _ in cells)} |")
        perplexities.append(f"| {setting} | {' | '.join(cell for _, cell in cells)} |")
    print(f"\n{kind}: log p of the right answer in nats, mean with 95% interval, and how many are right\n")
    print("\n".join(answers))
    if kind != "kv":  # UUIDs are not to be foreseen
        print(f"\n{kind}: perplexity of the last {plan.window} tokens\n")
        print("\n".join(perplexities))


if __name__ == "__main__":
    main()
