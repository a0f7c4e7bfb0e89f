"""What is measured, and in which order. Pure: imports nothing native.

Order. A cache grows from depth to depth, so each configuration reads its text once. At a depth all configurations take
turns: a first round that is not counted, then ``n_rounds`` that are, A B, B A, A B, ... Those of a round are
neighbours in time, so that their ratio is not disturbed by what changes slowly, and a drift favours nobody.

Auto. ``ga_n="auto"`` chooses a group for a whole text. At each depth its configuration has the group that is chosen for
the tokens there and those that are measured: it is set before the cache is filled up to the depth. What a change of the
group takes is measured once everything else is, if the last depth is beyond the trained context.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gguf import GGMLQuantizationType

from .. import positions
from ..cache_size import CACHE_TYPES, cache_type
from ..config import AUTO, SETTING_MAX, SelfExtendConfig, integer
from ..errors import SettingError
from ..groups import GroupPolicy, GroupTable, default_ga_w
from ..machine import n_cores
from ..measured import groups_by_window
from ..model_info import model_info
from .worker import ATTN, N_WARM_UP

__all__ = ["DEPTHS", "Configuration", "GivenPair", "Plan", "Step", "make_plan"]

#: What is asked for: a group size, or "auto", and a neighbour window, or None for the default one.
GivenPair = tuple[int | Literal["auto"], int | None]

#: Where speed is measured if nothing is said, as far as the pairs reach.
DEPTHS = (0, 1024, 4096, 8192)

N_BATCH_MIN = 32
N_ROUNDS_MAX = 1000

OURS, STOCK = "pyselfextend", "stock"


@dataclass(frozen=True)
class Configuration:
    """One column of the comparison: a library, and a context in it. Each has a process of its own."""

    library: str
    """``pyselfextend``, or ``stock``, the build of the same source without our patches."""

    ga_n: int = 1
    """Group size; 1 is the plain model, or that with which auto begins."""

    ga_w: int = 0
    """Neighbour window in tokens."""

    attn: str = ""
    """How the attention of an extended model is computed: ``fused``, ``composed``, or ``auto``, in each layer as fits
    its device. Empty for a plain one."""

    flash: bool = True
    """Whether llama.cpp's flash attention is on. For an extended model it decides how V is cached."""

    type_k: str = "F16"
    """The cache's type for keys, by ggml's name."""

    type_v: str = "F16"
    """The cache's type for values."""

    ga_n_max: int = 0
    """To what the group may be raised, which is auto; 0: it stays ``ga_n``."""

    table: GroupTable = ()
    """Of auto: the groups that ``pyselfextend tune`` has measured on the model."""

    @property
    def is_auto(self) -> bool:
        """Whether the group follows the length."""
        return self.ga_n_max > 1

    @property
    def is_extended(self) -> bool:
        """Whether anything of SelfExtend is built."""
        return self.ga_n > 1 or self.is_auto

    @property
    def is_stock(self) -> bool:
        """Whether this is the baseline."""
        return self.library == STOCK

    @property
    def kind(self) -> str:
        """``stock``, ``plain``, or the pair and its way of computing: what is compared."""
        if not self.is_extended:
            return "stock" if self.is_stock else "plain"
        return f"{AUTO if self.is_auto else self.ga_n}:{self.ga_w} {self.attn}"

    def kind_with(self, ga_n: int) -> str:
        """``kind``, with the group that is in force."""
        return f"{AUTO} {ga_n}:{self.ga_w} {self.attn}" if self.is_auto else self.kind

    @property
    def name(self) -> str:
        """What it is called beside others with the same cache."""
        return f"{self.kind}, flash {'on' if self.flash else 'off'}"

    @property
    def cache(self) -> str:
        """The cache's type, or types if K and V differ."""
        return self.type_k if self.type_k == self.type_v else f"{self.type_k}:{self.type_v}"

    def __str__(self) -> str:
        return f"{self.name}, cache {self.cache}"


@dataclass(frozen=True)
class Step:
    """One request to one worker."""

    configuration: Configuration
    phase: str
    """``fill``, ``prefill`` or ``decode``."""

    depth: int
    """Tokens in the cache before it."""

    n_tokens: int
    """Tokens that it evaluates."""

    threads: int
    round: int = 0
    """From 1; 0 is not counted."""


@dataclass(frozen=True)
class Plan:
    """What is measured on a model."""

    model: Path
    about: str
    """What kind of model it is: architecture, quantization, size."""

    n_ctx_train: int
    """The context the model was trained with, in tokens."""

    configurations: tuple[Configuration, ...]
    depths: tuple[int, ...]
    """Tokens in the cache, ascending."""

    threads: tuple[int, ...]
    n_prefill: int = 512
    """Tokens of a prompt that are evaluated at a depth, in batches of ``n_batch``."""

    n_decode: int = 32
    """Tokens that are evaluated one by one at a depth."""

    n_rounds: int = 5
    n_batch: int = 512
    """The largest batch, and the largest physical one, in tokens."""

    n_gpu_layers: int = 0
    swa_full: bool = True
    """Whether layers with a window of their own keep the whole context, as llama-cpp-python's ``Llama`` does."""

    @property
    def n_ctx(self) -> int:
        """The context of every configuration, in tokens."""
        return self.depths[-1] + self.n_room

    @property
    def n_room(self) -> int:
        """Tokens that are evaluated at a depth, at most."""
        return max(self.n_prefill, self.n_decode, N_WARM_UP + 1)

    def group(self, configuration: Configuration, depth: int) -> int:
        """The group size that a configuration has at a depth."""
        if not configuration.is_auto:
            return configuration.ga_n
        n_tokens = depth + self.n_room
        return GroupPolicy(self.n_ctx_train, configuration.ga_w, n_tokens, configuration.table).begin(n_tokens)

    def changed(self) -> tuple[Configuration, ...]:
        """The configurations whose group is changed at the last depth: auto, beyond the trained context."""
        depth = self.depths[-1]
        return tuple(each for each in self.configurations if each.is_auto and depth and self.group(each, depth) > 1)

    def steps(self) -> Iterator[Step]:
        """Everything, in its order."""
        at = 0
        for depth in self.depths:
            if depth > at:
                for configuration in self.configurations:
                    yield Step(configuration, "fill", at, depth - at, max(self.threads))
                at = depth
            for threads in self.threads:
                for number in range(self.n_rounds + 1):
                    order = self.configurations if number % 2 else self.configurations[::-1]
                    for phase, n_tokens in (("prefill", self.n_prefill), ("decode", self.n_decode)):
                        for configuration in order:
                            yield Step(configuration, phase, depth, n_tokens, threads, number)


def make_plan(
    model: str | os.PathLike[str],
    *,
    depths: Sequence[int] | None = None,
    pairs: Sequence[GivenPair] | None = None,
    plain: bool = True,
    stock: bool = True,
    attn: Sequence[str] = ("fused",),
    flash: Sequence[bool] = (True,),
    stock_flash: Sequence[bool] = (True, False),
    caches: Sequence[str] = ("F16",),
    threads: Sequence[int] | None = None,
    n_prefill: int = 512,
    n_decode: int = 32,
    n_rounds: int = 5,
    n_batch: int = 512,
    n_gpu_layers: int = 0,
    swa_full: bool = True,
) -> Plan:
    """A plan, checked against the model as far as that goes without loading it.

    Args:
        model: path of the GGUF file.
        depths: tokens in the cache. None: ``DEPTHS``, as far as the pairs reach.
        pairs: ``(ga_n, ga_w)`` with ``ga_n`` above 1 or "auto", at each depth the group that ``Llama`` would choose;
            ``ga_w`` None: an eighth of the trained context, at most 2048. None: auto alone. Empty: none.
        plain: whether our build is measured with ``ga_n`` 1.
        stock: whether the stock build is.
        attn: ``fused``, ``composed``, ``auto``: how the attention of pairs is computed.
        flash: with flash attention on, off: of our build.
        stock_flash: of the stock build; with both, the faster one is the baseline.
        caches: types of the KV cache, of ``cache_size.CACHE_TYPES``, or of K and V apart (``Q8_0:F16``). A quantized V
            exists with flash attention only.
        threads: numbers of threads. None: as many as there are cores.
        n_prefill, n_decode, n_rounds, n_batch, n_gpu_layers, swa_full: see ``Plan``.

    Raises:
        ModelFileError: the file is not a GGUF model.
        SettingError: a value is not allowed, or a pair does not reach a depth.
    """
    path = Path(model)
    info = model_info(path)
    n_ctx_train = info.n_ctx_train
    counts = {
        "n_prefill": integer("n_prefill", n_prefill, 1, SETTING_MAX),
        "n_decode": integer("n_decode", n_decode, 1, SETTING_MAX),
        "n_rounds": integer("n_rounds", n_rounds, 1, N_ROUNDS_MAX),
        "n_batch": integer("n_batch", n_batch, N_BATCH_MIN, SETTING_MAX),
        "n_gpu_layers": integer("n_gpu_layers", n_gpu_layers, 0, SETTING_MAX),
    }
    n_room = max(n_prefill, n_decode, N_WARM_UP + 1)
    if depths is not None:
        depths = sorted({integer("depth", depth, 0, SETTING_MAX - n_room) for depth in depths})
        if not depths:
            raise SettingError("there is nothing to measure: no depth")
    given: Sequence[GivenPair] = [("auto", None)] if pairs is None else pairs
    found = [_pair(n_ctx_train, ga_n, ga_w) for ga_n, ga_w in given]
    if info.has_learned_positions:
        depths = [depth for depth in DEPTHS if depth + n_room <= n_ctx_train] or [0] if depths is None else depths
        if depths[-1] + n_room > n_ctx_train:
            raise SettingError(
                f"the model has learned positions, {n_ctx_train} of them; a depth of {depths[-1]} and {n_room} tokens "
                "more are beyond that"
            )
    fixed = [(int(ga_n), ga_w) for ga_n, ga_w in found if ga_n != AUTO]
    chosen = _depths(depths, fixed, n_ctx_train, n_room)
    n_ctx = chosen[-1] + n_room
    measured = groups_by_window(info.path, n_ctx_train) if any(ga_n == AUTO for ga_n, _ in found) else {}
    chosen_pairs = [_extended(n_ctx_train, ga_n, ga_w, n_ctx, measured.get(ga_w, ())) for ga_n, ga_w in found]
    plan = Plan(
        path,
        f"{info.architecture} {info.quantization}, {info.n_params / 1e6:.3g} million parameters",
        n_ctx_train,
        tuple(_configurations(chosen_pairs, plain, stock_flash if stock else (), attn, flash, caches)),
        chosen,
        tuple(_threads(threads)),
        swa_full=swa_full,
        **counts,
    )
    if not plan.configurations:
        raise SettingError("there is nothing to measure: no plain model, no pair, no stock build")
    return plan


def _pair(n_ctx_train: int, ga_n: int | Literal["auto"], ga_w: int | None) -> tuple[int | Literal["auto"], int]:
    """A pair as it is asked for, checked, with its window."""
    config = SelfExtendConfig(ga_n, default_ga_w(n_ctx_train) if ga_w is None else ga_w)
    if config.ga_n != AUTO:
        integer("ga_n", config.ga_n, 2)
    assert config.ga_w is not None
    positions.n_ctx_reach(n_ctx_train, 1, config.ga_w)  # a window that is too large is refused
    return config.ga_n, config.ga_w


def _extended(n_ctx_train: int, ga_n: int | Literal["auto"], ga_w: int, n_ctx: int, table: GroupTable) -> Configuration:
    """A pair in our library. Auto is not plain in a short context either: it is measured what short texts cost."""
    if ga_n != "auto":
        return Configuration(OURS, ga_n, ga_w)
    ga_n_max = max(2, GroupPolicy(n_ctx_train, ga_w, n_ctx, table).ga_n_max)
    return Configuration(OURS, 1, ga_w, ga_n_max=ga_n_max, table=table)


def _depths(
    depths: Sequence[int] | None, pairs: Sequence[tuple[int, int]], n_ctx_train: int, n_room: int
) -> tuple[int, ...]:
    """The depths that are asked for, or those of ``DEPTHS`` that all pairs reach; auto reaches any."""
    deepest = max(depths or (0,))
    limit = SETTING_MAX
    for ga_n, ga_w in pairs:
        reach = positions.n_ctx_reach(n_ctx_train, ga_n, ga_w)
        limit = min(limit, reach - n_room)
        if deepest + n_room > reach:
            smallest = positions.ga_n_min(n_ctx_train, ga_w, deepest + n_room)
            allowed = f"depths up to {reach - n_room}, or " if reach >= n_room else ""
            raise SettingError(
                f"a depth of {deepest} and {n_room} tokens more are beyond what {ga_n}:{ga_w} reaches on this model, "
                f"{reach} tokens; give {allowed}a group size of at least {smallest}"
            )
    return tuple(depths or (depth for depth in DEPTHS if depth <= limit))


def _threads(threads: Sequence[int] | None) -> Iterator[int]:
    for number in dict.fromkeys([n_cores()] if threads is None else threads):
        yield integer("threads", number, 1, n_cores())


def _configurations(
    pairs: Sequence[Configuration],
    plain: bool,
    stock_flash: Sequence[bool],
    attn: Sequence[str],
    flash: Sequence[bool],
    caches: Sequence[str],
) -> Iterator[Configuration]:
    for kind in attn:
        if kind not in ATTN:
            raise SettingError(f"attn is {kind!r}; it must be one of {', '.join(ATTN)}")
    for type_k, type_v in dict.fromkeys(_types(cache) for cache in caches):
        n_block, _ = CACHE_TYPES[type_v]
        possible = (True, False) if n_block == 1 else (True,)
        if any(asked and not set(asked) & set(possible) for asked in (flash, stock_flash)):
            raise SettingError(f"a cache of type {type_v} for V needs flash attention")
        for on in (on for on in possible if on in stock_flash):
            yield Configuration(STOCK, flash=on, type_k=type_k, type_v=type_v)
        for on in (on for on in dict.fromkeys(flash) if on in possible):
            if plain:
                yield Configuration(OURS, flash=on, type_k=type_k, type_v=type_v)
            for pair in dict.fromkeys(pairs):
                for kind in dict.fromkeys(attn):
                    yield replace(pair, attn=kind, flash=on, type_k=type_k, type_v=type_v)


def _types(cache: str) -> tuple[str, str]:
    """Types of K and V."""
    type_k, colon, type_v = cache.partition(":")
    return cache_type(type_k), cache_type(type_v if colon else type_k)


def ggml_type(name: str) -> int:
    """ggml's number of a cache type."""
    return int(GGMLQuantizationType[name])
