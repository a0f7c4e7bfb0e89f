"""What to choose for a text of a given length, and what it takes, before anything is loaded. Imports nothing native."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

from . import positions
from .cache_size import CACHE_TYPES, CacheSize, cache_size, cache_type, n_ctx_padded
from .compute_size import COMPOSED, FUSED, PLAIN, compute_size
from .config import AUTO, SETTING_MAX, SelfExtendConfig, integer
from .errors import SettingError
from .groups import RULE, GroupPolicy, default_ga_w, ga_n_by_rule, rule_share
from .maps import SELF_EXTEND, map_named
from .measured import groups
from .memory import FreeMemory, free_memory
from .model_info import ModelInfo, model_info

__all__ = [
    "CACHE_TYPES",
    "AutoGroup",
    "Memory",
    "Offload",
    "Pair",
    "Plan",
    "Way",
    "make_plan",
]

#: Windows that are looked at beside the default one: the trained context divided by these.
WINDOWS = (16, 8, 4, 2)


@dataclass(frozen=True)
class Pair:
    """Group size and neighbour window, for a model, a map and a length."""

    ga_n: int
    """Group size; 1 is the plain model."""

    ga_w: int
    """Neighbour window in tokens."""

    n_ctx_reach: int
    """The longest sequence whose relative positions all stay below the trained context, in tokens."""

    reaches: bool
    """Whether that is enough."""

    pos_rel_max: int
    """The largest relative position that the model is shown, rounded up."""

    share: float
    """As a share of the trained context. From 1 on the pair does not reach."""

    rule: str | None
    """The end of the authors' rule that it keeps: "1/2", "2/3", or None for neither."""


@dataclass(frozen=True)
class AutoGroup:
    """What ``ga_n="auto"`` reads a text with."""

    ga_n: int
    """Group size; 1 is the plain model."""

    n_tokens: int
    """The longest text, with the answer, that is read with it, in tokens."""


@dataclass(frozen=True)
class Way:
    """What a device takes that computes the attention of its layers in one way, in bytes."""

    way: str
    """``fused``, where the device offers that, which ``doctor`` says, or ``composed``; ``plain`` without SelfExtend."""

    bytes_compute: int
    """What the computation takes on the device, at most; see ``compute_size``."""

    n_bytes: int
    """Weights, cache and computation on the device together."""


@dataclass(frozen=True)
class Memory:
    """What a context takes with one type of cache, in bytes."""

    cache: CacheSize
    """All of it, wherever it lies."""

    bytes_compute: int
    """What the computation takes in main memory, at most: the CPU's own attention is fused, and needs no scores."""

    n_bytes: int
    """Weights, cache and computation in main memory together."""

    holds: bool
    """Whether this machine's free memory holds that."""

    bytes_cache_device: int
    """How much of the cache lies on the device."""

    ways: tuple[Way, ...]
    """What the device needs, for each way in which it may compute the attention. Empty without one."""


@dataclass(frozen=True)
class Offload:
    """What lies on a device that is not the CPU."""

    layers: tuple[int, ...]
    """Numbers of the layers. The output layer lies there too."""

    bytes_weights: int
    """Their weights, in bytes."""

    bytes_weights_rest: int
    """The weights that stay in main memory, in bytes: the embeddings, which may be in both, and the other layers."""


@dataclass(frozen=True)
class Plan:
    """What a model needs for texts of ``n_tokens`` tokens."""

    model: ModelInfo

    n_tokens: int
    """Length of the text in tokens, with the answer."""

    n_ctx: int
    """Cells that llama.cpp makes for it."""

    recommended: Pair | None
    """What ``ga_n="auto"`` chooses, by the authors' rule or as it was measured. None: the plain model, or nothing, as
    ``why`` says."""

    why: str
    """Why that is recommended, in a sentence."""

    asked: Pair | None
    """The pair that was asked about."""

    auto: tuple[AutoGroup, ...]
    """What ``ga_n="auto"`` reads shorter texts with, and last one of ``n_tokens``, with the window of ``recommended``.
    Empty where the model cannot be extended, and with a map whose group does not follow the length."""

    is_measured: bool
    """Whether these are the groups that ``pyselfextend tune`` has measured on the model, not those of the rule."""

    pairs: tuple[Pair, ...]
    """Pairs that reach it: the recommended one, and for each window the smallest ``ga_n`` that does, and the smallest
    that keep the rule."""

    pair: Pair | None
    """The pair that ``memory`` is for: the one that was asked about if it reaches, otherwise the recommended one. None
    is the plain model."""

    memory: tuple[Memory, ...]
    """For each type of cache. Empty where the architecture has a cache of another kind."""

    impossible: Mapping[str, str]
    """Types of cache that llama.cpp does not make for this model, and why."""

    n_ubatch: int
    """Tokens that are computed at once."""

    offload: Offload | None
    """What lies on a device. None: everything is the CPU's."""

    ga_map: str
    """The map of positions that all of this is about."""

    free: FreeMemory = field(compare=False)
    """This machine's free memory."""


def make_plan(
    path: str | os.PathLike[str],
    n_tokens: int | None = None,
    *,
    ga_n: int | Literal["auto"] | None = None,
    ga_w: int | None = None,
    ga_map: str = SELF_EXTEND.name,
    type_k: str | None = None,
    type_v: str | None = None,
    n_ubatch: int = 512,
    swa_full: bool = True,
    flash_attn: bool | None = None,
    n_gpu_layers: int = 0,
) -> Plan:
    """Say which pairs reach a length on a model, which one ``ga_n="auto"`` chooses, and what each cache takes.

    Args:
        path: the model's GGUF file. Only its metadata are read.
        n_tokens: the length in tokens, text and answer; None: twice the trained context.
        ga_n: a group size to look at, or "auto", which is the default; ga_w: a neighbour window. None: an eighth of the
            trained context, at most 2048.
        ga_map: the map of positions, a name from ``maps.MAPS``.
        type_k: type of the cached keys, such as "Q8_0"; type_v: that of the values. Both None: all types, keys as
            values; one None: F16.
        n_ubatch: tokens that are computed at once.
        swa_full: whether layers with a sliding window keep all tokens, which is llama.cpp's default.
        flash_attn: whether flash attention is on. None: where the type of the values needs it, and with layers on a
            device, which can compute the attention in one kernel only then.
        n_gpu_layers: layers on a device that is not the CPU, as ``Llama`` counts them: the last ones, and of them first
            the output layer. -1: all.

    Raises:
        ModelFileError: the file cannot be read, or llama.cpp cannot load what it says.
        SettingError: a value is not allowed.
    """
    n_ubatch = integer("n_ubatch", n_ubatch, 1, SETTING_MAX)
    n_gpu_layers = integer("n_gpu_layers", n_gpu_layers, -1, SETTING_MAX)
    by = map_named(ga_map)
    asked_for: int | Literal["auto"] = by.unit if ga_n is None and not by.follows else "auto" if ga_n is None else ga_n
    config = SelfExtendConfig(asked_for, ga_w, ga_map)
    types = _types(type_k, type_v)
    model = model_info(path)
    n_ctx_train = model.n_ctx_train
    if n_tokens is None:
        n_tokens = min(SETTING_MAX, n_ctx_train if model.refused else 2 * n_ctx_train)
    n_tokens = integer("n_tokens", n_tokens, 1, SETTING_MAX)
    if config.ga_w is not None and config.ga_w >= n_ctx_train:
        raise SettingError(f"ga_w is {config.ga_w}; it must be below the trained context of {n_ctx_train} tokens")

    window = default_ga_w(n_ctx_train, ga_map) if config.ga_w is None else config.ga_w
    recommended: Pair | None = None
    asked: Pair | None = None
    auto: tuple[AutoGroup, ...] = ()
    pairs: tuple[Pair, ...] = ()
    is_longer = model.refused is None and n_tokens > n_ctx_train
    table = groups(model.path, n_ctx_train, window) if is_longer and ga_map == SELF_EXTEND.name else ()
    policy = GroupPolicy(n_ctx_train, window, SETTING_MAX, table, ga_map)
    if model.refused is None:
        auto = tuple(_auto(policy, n_tokens)) if by.follows else ()
        if is_longer:
            recommended = _pair(n_ctx_train, policy.begin(n_tokens), window, n_tokens, ga_map)
            pairs = _pairs(n_ctx_train, ga_w, n_tokens, ga_map, recommended)
        if ga_n is not None and config.ga_n != AUTO:
            asked = _pair(n_ctx_train, int(config.ga_n), window, n_tokens, ga_map)
        elif (ga_n, ga_w) != (None, None):
            asked = recommended
    pair = asked if asked is not None and asked.reaches else recommended
    if pair is not None and pair.ga_n == by.unit:
        pair = None

    plan = Plan(
        model=model,
        n_tokens=n_tokens,
        n_ctx=n_ctx_padded(n_tokens),
        recommended=recommended,
        why=_why(model, recommended, policy, n_tokens),
        asked=asked,
        auto=auto,
        is_measured=bool(table),
        pairs=pairs,
        pair=pair,
        memory=(),
        impossible={},
        n_ubatch=n_ubatch,
        offload=_offload(model, n_gpu_layers),
        ga_map=ga_map,
        free=free_memory(),
    )
    return _with_memory(plan, types, swa_full, flash_attn) if model.has_plain_cache else plan


def _types(type_k: str | None, type_v: str | None) -> list[tuple[str, str]]:
    if type_k is None and type_v is None:
        return [(name, name) for name in CACHE_TYPES]
    return [(cache_type(type_k or "F16"), cache_type(type_v or "F16"))]


def _pair(n_ctx_train: int, ga_n: int, ga_w: int, n_tokens: int, ga_map: str) -> Pair:
    n_ctx_reach = positions.n_ctx_reach(n_ctx_train, ga_n, ga_w, ga_map)
    pos_rel_max = Fraction(positions.pos_rel_max(n_tokens, ga_n, ga_w, ga_map), positions.pos_den(ga_n, ga_map))
    share = rule_share(n_ctx_train, ga_n, ga_w, n_tokens, ga_map)
    return Pair(
        ga_n=ga_n,
        ga_w=ga_w,
        n_ctx_reach=n_ctx_reach,
        reaches=n_tokens <= n_ctx_reach,
        pos_rel_max=math.ceil(pos_rel_max),
        share=float(pos_rel_max / n_ctx_train),
        rule=next((str(end) for end in RULE if share < end), None),
    )


def _auto(policy: GroupPolicy, n_tokens: int) -> Iterator[AutoGroup]:
    """The groups of texts of up to ``n_tokens``.

    With other maps than SelfExtend's, whose groups may be many, those of the plain model and of ``n_tokens``.
    """
    if policy.ga_map == SELF_EXTEND.name:
        yield from (AutoGroup(*step) for step in policy.steps(n_tokens))
        return
    for length in sorted({policy.n_ctx_train, max(policy.n_ctx_train, n_tokens)}):
        yield AutoGroup(policy.begin(length), length)


def _pairs(n_ctx_train: int, ga_w: int | None, n_tokens: int, ga_map: str, recommended: Pair) -> tuple[Pair, ...]:
    """For each window: the smallest group size that reaches, and the smallest ones that keep the rule."""
    by = map_named(ga_map)
    is_open = ga_w is None and by.has_window
    windows = {recommended.ga_w} | ({n_ctx_train // part for part in WINDOWS} if is_open else set())
    found = []
    for window in sorted(windows):
        sizes = {positions.ga_n_min(n_ctx_train, window, n_tokens, ga_map)}
        sizes |= {ga_n_by_rule(n_ctx_train, window, n_tokens, end, ga_map) for end in RULE}
        if window == recommended.ga_w:
            sizes.add(recommended.ga_n)
        sizes = {ga_n for ga_n in sizes if by.unit < ga_n <= SETTING_MAX}
        pairs = [_pair(n_ctx_train, ga_n, window, n_tokens, ga_map) for ga_n in sorted(sizes)]
        found += [pair for pair in pairs if pair.reaches]
    return tuple(found)


def _why(model: ModelInfo, pair: Pair | None, policy: GroupPolicy, n_tokens: int) -> str:
    n_ctx_train = model.n_ctx_train
    if model.refused is not None:
        return model.refused
    if pair is None:
        return (
            f"{n_tokens} tokens fit into the trained window of {n_ctx_train}, and there the plain model is better than "
            "any group size above 1"
        )
    ga_map, table = policy.ga_map, policy.table
    if map_named(ga_map).fills:
        return f"ga_n={pair.ga_n} is the smallest that reaches"
    if measured := next((length for length, _ in table if n_tokens <= length), None):
        return f"pyselfextend tune has measured on this model that it reads {measured} tokens best with it"
    if table and pair.ga_n == table[-1][1]:
        return f"pyselfextend tune has measured that for {table[-1][0]} tokens, and the authors' rule asks for no more"
    if pair.rule is None:
        return (
            f"with ga_w={pair.ga_w} no ga_n keeps the authors' rule, and ga_n={pair.ga_n} is the smallest power of two "
            "that reaches"
        )
    if ga_map != SELF_EXTEND.name:
        return f"ga_n={pair.ga_n} is the smallest that keeps positions below 2/3 of the trained window"
    part = "an eighth" if pair.ga_w == n_ctx_train // 8 else f"{pair.ga_w / n_ctx_train:.0%}"
    return (
        f"ga_w={pair.ga_w} is {part} of the trained window, and ga_n={pair.ga_n} the smallest power of two that "
        "keeps ga_w + (N - ga_w) / ga_n below 2/3 of it, the authors' rule: positions near its end are under-trained"
    )


def _offload(model: ModelInfo, n_gpu_layers: int) -> Offload | None:
    """``llama_model::load_tensors``: the output layer, and before it the last ones."""
    n_block = len(model.bytes_blocks)
    if n_gpu_layers == 0:
        return None
    first = 0 if n_gpu_layers < 0 else max(0, n_block + 1 - n_gpu_layers)
    return Offload(
        layers=tuple(i for i in range(len(model.layers)) if i % n_block >= first),
        bytes_weights=sum(model.bytes_blocks[first:]) + model.bytes_output,
        bytes_weights_rest=model.bytes_input + sum(model.bytes_blocks[:first]),
    )


def _with_memory(plan: Plan, types: list[tuple[str, str]], swa_full: bool, flash_attn: bool | None) -> Plan:
    """The plan with the memory of each type of cache. A type that is asked for alone must be possible."""
    if flash_attn is None and plan.offload is not None:
        flash_attn = True

    def size(type_k: str, type_v: str, of: Sequence[int] | None = None) -> CacheSize:
        return cache_size(
            plan.model.layers,
            plan.n_tokens,
            ga_w=None if plan.pair is None else plan.pair.ga_w,
            type_k=type_k,
            type_v=type_v,
            n_ubatch=plan.n_ubatch,
            swa_full=swa_full,
            flash_attn=flash_attn,
            of=of,
        )

    memory: list[Memory] = []
    impossible: dict[str, str] = {}
    for type_k, type_v in types:
        try:
            cache = size(type_k, type_v)
        except SettingError as error:
            if len(types) == 1:
                raise
            impossible[type_k] = str(error)
            continue
        on_device = 0 if plan.offload is None else size(type_k, type_v, plan.offload.layers).n_bytes
        memory.append(_memory(plan, cache, on_device))
    return replace(plan, memory=tuple(memory), impossible=impossible)


def _memory(plan: Plan, cache: CacheSize, on_device: int) -> Memory:
    """What main memory and the device need. ``on_device``: bytes of the cache there."""
    model, offload = plan.model, plan.offload
    n_ubatch = min(plan.n_ubatch, plan.n_tokens)
    own = PLAIN if plan.pair is None else FUSED
    if offload is None:
        compute = compute_size(model, cache, n_ubatch, own)
        n_bytes = model.bytes_weights + cache.n_bytes + compute
        return Memory(cache, compute, n_bytes, n_bytes <= plan.free.n_bytes, 0, ())
    rest = [i for i in range(len(model.layers)) if i not in offload.layers]
    compute = compute_size(model, cache, n_ubatch, own, layers=rest, has_output=False)
    n_bytes = offload.bytes_weights_rest + cache.n_bytes - on_device + compute
    possible = [PLAIN] if plan.pair is None else [FUSED, COMPOSED] if cache.flash_attn else [COMPOSED]
    ways = []
    for way in possible:
        there = compute_size(model, cache, n_ubatch, way, is_cpu=False, layers=offload.layers)
        ways.append(Way(way, there, offload.bytes_weights + on_device + there))
    return Memory(cache, compute, n_bytes, n_bytes <= plan.free.n_bytes, on_device, tuple(ways))
