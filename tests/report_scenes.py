"""Results that a run could have given, made up: for the tests of reports."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from pyselfextend.eval.cases import Axis, key_of
from pyselfextend.eval.results import Result, RunInfo
from pyselfextend.positions import n_ctx_reach

N_CTX_TRAIN = 8192
LENGTHS = (4096, 8192, 12288, 16384)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
SETTINGS = ("plain", "3:1024", "4:1024", "yarn:2.01")
MODELS = (("SmolLM2-135M-Instruct.Q4_1.gguf", 98_000_000, N_CTX_TRAIN),)
RULER = ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe")

RUN = RunInfo(
    date="2025-01-31T12:00:00Z",
    version="0.1.0",
    build_id="0123456789abcdef",
    machine="AMD EPYC 9R14, 2 cores, 7.6 GiB, Linux 6.1, Python 3.11.7",
    command="pyselfextend eval passkey SmolLM2-135M-Instruct.Q4_1.gguf --setting plain,3:1024,4:1024,yarn",
)


def result(task: str, axes: dict[str, Axis], setting: str = "plain", *, n_prompt: int = 0, **fields: object) -> Result:
    """A result; what is not given is as for SmolLM2."""
    key = key_of(axes)
    n_tokens = axes.get("n_tokens", 1000)
    model, model_bytes, n_ctx_train = MODELS[0]
    values: dict[str, object] = {
        "model": model,
        "model_bytes": model_bytes,
        "n_ctx_train": n_ctx_train,
        "type_k": "F16",
        "type_v": "F16",
        "digest": f"{random.Random(ascii((task, key))).getrandbits(64):016x}",
        "n_prompt": n_prompt or (n_tokens if isinstance(n_tokens, int) else 1000),
        "seconds": 1.5,
    }
    values |= fields
    values.setdefault("model_digest", f"{random.Random(ascii(values['model'])).getrandbits(64):016x}")
    return Result(setting=setting, task=task, key=key, axes=axes, **values)  # type: ignore[arg-type]


def skill(setting: str, n_tokens: int, n_ctx_train: int) -> float:
    """How likely a right answer is."""
    if setting == "plain":
        return 0.97 if n_tokens <= n_ctx_train else 0.0
    if ":" in setting and setting[0].isdigit():
        ga_n, ga_w = map(int, setting.split(":"))
        share = (ga_w + (n_tokens - ga_w) / ga_n) / n_ctx_train
        return max(0.05, min(0.96, 1.5 - share) - 0.01 * ga_n)
    if setting.startswith("auto"):
        return 0.95
    return 0.9 if n_tokens <= n_ctx_train else 0.45


def unreached(setting: str, n_tokens: int, n_ctx_train: int) -> str:
    """Why a case fails, empty if it does not."""
    if setting[0].isdigit():
        reach = n_ctx_reach(n_ctx_train, *map(int, setting.split(":")))
        if n_tokens > reach:
            return f"{setting} reaches {reach} tokens, the case needs {n_tokens}"
    return ""


def answered(
    task: str,
    axes: dict[str, Axis],
    setting: str,
    model: tuple[str, int, int],
    caches: tuple[str, str] = ("F16", "F16"),
) -> Result:
    """A case of a retrieval."""
    name, n_bytes, n_ctx_train = model
    n_tokens = int(axes.get("n_tokens", 6000))
    rng = random.Random(f"{task} {setting} {key_of(axes)} {name} {caches}")
    number = str(random.Random(key_of(axes)).randrange(10000, 99999))
    right = rng.random() < skill(setting, n_tokens, n_ctx_train)
    fields: dict[str, object] = {
        "model": name, "model_bytes": n_bytes, "n_ctx_train": n_ctx_train, "type_k": caches[0], "type_v": caches[1],
        "n_prompt": n_tokens, "seconds": n_tokens / 150,
    }  # fmt: skip
    if error := unreached(setting, n_tokens, n_ctx_train):
        return result(task, axes, setting, error=error, **fields)
    answer = f" {number}." if right else f" {number[::-1]}, and the grass is green. The sky is blue."
    return result(
        task, axes, setting, score=float(right), answer=answer, references=(number,), metric="contains_all", **fields
    )


def passkey(
    settings: Sequence[str] = SETTINGS,
    models: Sequence[tuple[str, int, int]] = MODELS,
    lengths: Sequence[int] = LENGTHS,
    samples: int = 2,
    caches: Sequence[tuple[str, str]] = (("F16", "F16"),),
) -> Iterator[Result]:
    """Length x depth x digits."""
    everything = itertools.product(models, caches, settings, lengths, DEPTHS, (5, 10), range(samples))
    for model, cache, setting, n_tokens, depth, digits, sample in everything:
        axes: dict[str, Axis] = {"n_tokens": n_tokens, "depth": depth, "digits": digits, "sample": sample}
        yield answered("passkey", axes, setting, model, cache)


def scored(results: Iterable[Result]) -> Iterator[Result]:
    """Answers with the log probabilities of right ones, which are the better the likelier a right answer is."""
    for one in results:
        if one.error:
            yield one
            continue
        rng = random.Random(f"{one.key} {one.model}")
        n_gold, case = rng.randrange(5, 11), rng.gauss(0, 0.3)
        mean = -0.2 - 3 * (1 - skill(one.setting, int(one.axes.get("n_tokens", 6000)), one.n_ctx_train)) - abs(case)
        mean *= math.exp(random.Random(f"{one.key} {one.setting}").gauss(0, 0.1))
        yield replace(one, gold_log_prob=mean * n_gold, n_gold=n_gold)


def blind(results: Iterable[Result]) -> list[Result]:
    """The same where no greedy answer is right."""
    return [r if r.error else replace(r, score=0.0) for r in scored(results)]


def kv(settings: Sequence[str] = SETTINGS, models: Sequence[tuple[str, int, int]] = MODELS) -> Iterator[Result]:
    """Length x place."""
    for model, setting, n_tokens, place, sample in itertools.product(models, settings, LENGTHS, DEPTHS, range(6)):
        yield answered("kv", {"n_tokens": n_tokens, "place": place, "sample": sample}, setting, model)


def ruler(settings: Sequence[str] = SETTINGS, models: Sequence[tuple[str, int, int]] = MODELS) -> Iterator[Result]:
    """Length x subtask."""
    for model, setting, n_tokens, subtask, sample in itertools.product(models, settings, LENGTHS, RULER, range(5)):
        yield answered("ruler", {"subtask": subtask, "n_tokens": n_tokens, "sample": sample}, setting, model)


def short(
    settings: Sequence[str] = ("plain", "4:1024"), lengths: Sequence[int] = (512, 1024, 2048)
) -> Iterator[Result]:
    """Perplexity and choices."""
    for one in perplexity(settings, lengths=lengths):
        axes: dict[str, Axis] = {"subtask": "ppl", **one.axes}
        yield result("short", axes, one.setting, nll=one.nll, n_scored=one.n_scored)
    for sample, n, setting in itertools.product(range(16), lengths, settings):
        axes = {"subtask": "choice", "n_tokens": n, "sample": sample}
        right = random.Random(f"{sample} {setting if n > 1024 else ''}").random() < 0.6
        yield result("short", axes, setting, n_prompt=n + 120, score=float(right), metric="acc_bytes")


def perplexity(
    settings: Sequence[str] = SETTINGS,
    models: Sequence[tuple[str, int, int]] = MODELS,
    lengths: Sequence[int] = (1024, 2048, *LENGTHS),
    task: str = "ppl",
    windows: int = 4,
) -> Iterator[Result]:
    """Length x window."""
    for (name, n_bytes, n_ctx_train), setting, n, window in itertools.product(
        models, settings, lengths, range(windows)
    ):
        axes: dict[str, Axis] = {"n_tokens": n, "stride": 256, "window": window}
        fields: dict[str, object] = {"model": name, "model_bytes": n_bytes, "n_ctx_train": n_ctx_train}
        if error := unreached(setting, n, n_ctx_train):
            yield result(task, axes, setting, error=error, **fields)
            continue
        text = random.Random(window).gauss(0, 0.12)
        mean = (
            2.9
            - 0.07 * math.log2(min(n, n_ctx_train) / 1024)
            + text
            + random.Random(f"{setting} {n} {window}").gauss(0, 0.01)
        )
        if n > n_ctx_train:
            mean += 2.5 * math.log2(n / n_ctx_train) if setting == "plain" else 0.0
        mean += 0.03 if setting != "plain" else 0.0
        yield result(task, axes, setting, nll=mean * 256, n_scored=256, **fields)
