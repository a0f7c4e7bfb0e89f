"""What ``pyselfextend plan`` prints: what the file says, the pairs, and the memory."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..maps import SELF_EXTEND, map_named
from ..model_info import Layer, ModelInfo, Rope
from ..placement import ranges
from ..plan import Memory, Offload, Pair, Plan
from ..screen import result_console
from ..terminal import printable

__all__ = ["show", "size"]


def show(plan: Plan, console: Console | None = None) -> None:
    """Print a plan."""
    console = console or result_console()
    console.print(Text(printable(str(plan.model.path), lines=False), style="bold"), soft_wrap=True)
    console.print(_facts(plan.model))
    console.print()
    for line in _advice(plan):
        console.print(line)
    if plan.pairs:
        console.print()
        console.print(Text(f"Pairs that reach {plan.n_tokens} tokens", style="bold"))
        console.print(_pairs(plan))
    if plan.memory:
        what = "the plain model" if plan.pair is None else f"ga_w={plan.pair.ga_w}"
        console.print()
        console.print(Text(f"Memory for {plan.n_tokens} tokens with {what}", style="bold"))
        console.print(_memory(plan))
        console.print(_notes(plan))
        if plan.offload is not None:
            console.print()
            console.print(Text(f"On the device: {_offloaded(plan.model, plan.offload)}", style="bold"))
            console.print(_device(plan))
            console.print(_device_notes(plan))
    elif not plan.model.has_plain_cache:
        console.print("\nThe cache of this architecture is of another kind; its size is not computed.")


def size(n_bytes: int) -> str:
    """Bytes as people read them."""
    if n_bytes < 2**20:
        return f"{n_bytes / 2**10:.1f} KiB"
    return f"{n_bytes / 2**20:.1f} MiB" if n_bytes < 2**30 else f"{n_bytes / 2**30:.2f} GiB"


#
# what the file says
#


def _facts(model: ModelInfo) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()

    def row(name: str, text: str) -> None:
        table.add_row(f"  {name}", Text(printable(text)))

    types = ", ".join(f"{n} {name}" for name, n in model.tensor_types.items())
    if model.name:
        row("name", " ".join(model.name.split()))
    if len(model.parts) > 1:
        row("parts", f"{len(model.parts)} files")
    row("architecture", model.architecture)
    row("quantization", f"{model.quantization} (tensors: {types})")
    row("weights", f"{size(model.bytes_weights)}, {_millions(model.n_params)} parameters")
    row("trained window", f"{model.n_ctx_train} tokens")
    row("layers", _layers(model.layers))
    row("heads", _heads(model.layers))
    row("RoPE", _rope(model.rope))
    row("SelfExtend", "nothing speaks against it" if model.refused is None else "refused")
    return table


def _millions(n: int) -> str:
    if n < 1e6:
        return str(n)
    return f"{n / 1e6:.1f} million" if n < 1e9 else f"{n / 1e9:.2f} billion"


def _layers(layers: Sequence[Layer]) -> str:
    parts = []
    windowed = [layer for layer in layers if layer.window]
    if windowed:
        parts.append(f"{len(windowed)} with a sliding window of {windowed[0].window} tokens of their own")
    for what, some in (
        ("without RoPE", [layer for layer in layers if not layer.has_rope]),
        ("with the keys of another layer", [layer for layer in layers if not layer.has_cache]),
    ):
        if some:
            parts.append(f"{len(some)} {what}")
    if windowed:
        parts.append(f"{sum(1 for layer in layers if not layer.window)} that see all tokens")
    return "; ".join([str(len(layers)), *parts])


def _heads(layers: Sequence[Layer]) -> str:
    """Of all layers where they are the same, otherwise of each kind."""

    def text(layer: Layer) -> str:
        k, v = layer.n_embd_head_k, layer.n_embd_head_v
        sizes = f"{k}" if k == v else f"{k} (keys) and {v} (values)"
        return f"{layer.n_head} of queries, {layer.n_head_kv} of keys and values, of size {sizes}"

    groups = _groups([text(layer) for layer in layers])
    if len(groups) == 1:
        return next(iter(groups))
    return "\n".join(f"{kind} (layer {ranges(places)})" for kind, places in groups.items())


def _groups(kinds: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for place, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(place)
    return groups


def _rope(rope: Rope) -> str:
    if rope.n_rot == 0:
        return "none"
    parts = [f"base {_number(rope.freq_base)}"]
    if rope.freq_base_swa is not None:
        parts[0] += f" ({_number(rope.freq_base_swa)} in layers with a window)"
    parts.append(f"{rope.n_rot} dimensions")
    if rope.scaling == "none":
        parts.append("no scaling")
    else:
        parts.append(f"{rope.scaling} scaling by {_number(rope.factor)}")
    if rope.n_ctx_orig:
        parts.append(f"{rope.n_ctx_orig} tokens before it")
    if rope.has_freq_factors:
        parts.append("factors for each frequency")
    return ", ".join(parts)


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else f"{value:g}"


#
# the pairs
#


def _advice(plan: Plan) -> Iterator[Text]:
    yield Text(f"For {plan.n_tokens} tokens", style="bold")
    if plan.model.refused is not None:
        yield Text(f"  The plain model only: {plan.why}.")
    elif plan.recommended is None:
        yield Text(f"  The plain model (ga_n=1) is recommended: {plan.why}.")
    else:
        pair = plan.recommended
        yield Text(f"  {_name(plan, pair)} is recommended: {plan.why}.")
        yield Text(f"  {_position(pair, plan.model.n_ctx_train)}; the pair reaches {pair.n_ctx_reach} tokens.")
    if plan.auto:
        yield Text(f"  {_auto(plan)}")
    asked = plan.asked
    if asked is None or asked == plan.recommended:
        return
    if asked.reaches:
        text = f"reaches, up to {asked.n_ctx_reach} tokens. {_position(asked, plan.model.n_ctx_train)}; "
        text += f"it keeps the authors' rule (< {asked.rule})." if asked.rule else "it does not keep the authors' rule."
    else:
        text = f"does not reach: {asked.n_ctx_reach} tokens at most."
    yield Text(f"  {_name(plan, asked)} {text}")


def _name(plan: Plan, pair: Pair) -> str:
    by = "" if plan.ga_map == SELF_EXTEND.name else f"ga_map={plan.ga_map}, "
    return f"{by}ga_n={pair.ga_n}, ga_w={pair.ga_w}"


def _auto(plan: Plan) -> str:
    """What ``ga_n="auto"`` does."""
    plain = map_named(plan.ga_map).unit
    limits = [f"{'plain' if each.ga_n == plain else each.ga_n} up to {each.n_tokens}" for each in plan.auto]
    if len(limits) == 1 and plan.auto[0].ga_n == plain:
        return f"auto: {limits[0]} tokens"
    source = "; as tune has measured" if plan.is_measured else ""
    return f"auto: ga_n={plan.auto[-1].ga_n} for {plan.n_tokens} tokens ({', '.join(limits)}{source})"


def _position(pair: Pair, n_ctx_train: int) -> str:
    return f"The largest relative position is {pair.pos_rel_max}, {pair.share:.0%} of {n_ctx_train}"


def _pairs(plan: Plan) -> Table:
    table = Table()
    for heading in ("ga_w", "ga_n", "reach"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=max(5, len(heading)))  # what it is about
    for heading in ("largest\nposition", "of the\nwindow", "authors'\nrule"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    previous: Hashable = None
    for pair in plan.pairs:
        if previous not in (None, pair.ga_w):
            table.add_section()
        previous = pair.ga_w
        table.add_row(
            str(pair.ga_w),
            str(pair.ga_n),
            str(pair.n_ctx_reach),
            str(pair.pos_rel_max),
            f"{pair.share:.0%}",
            f"< {pair.rule}" if pair.rule else "not kept",
            "recommended" if pair == plan.recommended else "",
        )
    return table


#
# the memory
#


def _memory(plan: Plan) -> Table:
    table = Table()
    table.add_column("K, V", no_wrap=True)
    headings = [heading for heading, _ in _parts(plan, plan.memory[0])]
    for heading in (*headings, "in all" if plan.offload is None else "in main\nmemory", "fits"):
        table.add_column(heading, justify="right")
    for memory in plan.memory:
        table.add_row(
            _types(memory),
            *(size(n_bytes) for _, n_bytes in _parts(plan, memory)),
            size(memory.n_bytes),
            "yes" if memory.holds else "no",
        )
    return table


def _types(memory: Memory) -> str:
    cache = memory.cache
    return cache.type_k if cache.type_k == cache.type_v else f"{cache.type_k}, {cache.type_v}"


def _parts(plan: Plan, memory: Memory) -> Iterator[tuple[str, int]]:
    yield ("cache" if plan.pair is None else "far"), memory.cache.bytes_far
    if plan.pair is not None:
        yield "near", memory.cache.bytes_near
    if plan.model.windowed:
        yield "windows", memory.cache.bytes_swa


def _notes(plan: Plan) -> Text:
    compute = size(max(memory.bytes_compute for memory in plan.memory))
    what = f"In all: {size(plan.model.bytes_weights)} of weights, the cache"
    if plan.offload is not None:
        what = f"In main memory: {size(plan.offload.bytes_weights_rest)} of weights, the cache of the layers there"
    lines = [
        f"{what}, and up to {compute} for computing up to {plan.n_ubatch} tokens at once. The program itself is not "
        "counted.",
        f"Free: {size(plan.free.n_bytes)} of this {plan.free.limit}'s main memory.",
    ]
    if any(memory.cache.flash_attn for memory in plan.memory):
        lines.append("Values of a quantized type need flash_attn=True.")
    reasons = [reason.replace(f" of type {name}", "") for name, reason in plan.impossible.items()]
    for reason, places in _groups(reasons).items():
        names = [list(plan.impossible)[place] for place in places]
        lines.append(f"Not possible: {', '.join(names)} ({reason}).")
    return Text("\n".join(lines))


#
# a device's memory
#


def _offloaded(model: ModelInfo, offload: Offload) -> str:
    n_layer = len(model.layers)
    layers = (
        f"layers {ranges(offload.layers)} of {n_layer} and the output layer" if offload.layers else "the output layer"
    )
    if len(offload.layers) == n_layer:
        layers = f"all {n_layer} layers"
    return f"{layers}, {size(offload.bytes_weights)} of weights"


def _device(plan: Plan) -> Table:
    """With each way of computing the attention: which one it is depends on the device."""
    table = Table()
    table.add_column("K, V", no_wrap=True)
    table.add_column("cache", justify="right")
    ways = dict.fromkeys(way.way for memory in plan.memory for way in memory.ways)
    for way in ways:
        table.add_column(f"{way}:\ncomputing", justify="right")
        table.add_column("\nin all", justify="right")
    for memory in plan.memory:
        cells = [_types(memory), size(memory.bytes_cache_device)]
        found = {way.way: way for way in memory.ways}
        for name in ways:
            cells += [size(found[name].bytes_compute), size(found[name].n_bytes)]
        table.add_row(*cells)
    return table


def _device_notes(plan: Plan) -> Text:
    lines = ["What the device's own libraries take is not counted."]
    if plan.pair is not None:
        text = "pyselfextend doctor says which devices offer the fused attention"
        has_fused = any(way.way == "fused" for memory in plan.memory for way in memory.ways)
        lines.insert(0, f"{text}; it needs flash_attn=True." if has_fused else f"{text}, with flash_attn=True.")
    return Text("\n".join(lines))
