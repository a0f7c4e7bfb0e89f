"""``pyselfextend plan``: which settings reach a length on a model, and what they take. Nothing is loaded."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from ..cache_size import CACHE_TYPES
from ..config import SETTING_MAX
from ..maps import MAPS, SELF_EXTEND
from ..plan import Plan, make_plan
from ._command import Command, option
from ._options import GGUF_FILE, GroupSize, Integer, window

_Function = TypeVar("_Function", bound=Callable[..., Any])

EPILOG = """The recommendation is what ga_n="auto" chooses: for N tokens beyond the trained window the smallest power of
two with which ga_w + (N - ga_w) / ga_n stays below 2/3 of it. That is the authors' rule; they name 1/2 to 2/3.
Where 'pyselfextend tune' has measured the model with this window, it is what reads best there.

With --json, one object. model: path, parts, architecture, name, quantization, tensor_types, n_params, bytes_weights,
bytes_input, bytes_blocks, bytes_output, n_ctx_train, n_embd, n_vocab, has_tokenizer, n_ff, rope,
has_learned_positions, layers (n_head, n_head_kv, n_embd_head_k, n_embd_head_v, window, has_rope, has_cache),
has_plain_cache, refused (why SelfExtend refuses it, or null). n_tokens, n_ctx (cells).
recommended, asked, pair (which memory is for) and each of pairs: ga_n, ga_w, n_ctx_reach, reaches, pos_rel_max,
share, rule ("1/2", "2/3" or null); null is the plain model. why. auto: each ga_n that texts up to n_tokens are read
with, and the longest text of each (n_tokens); is_measured: by tune. memory, for each type of cache: cache (type_k,
type_v, flash_attn, cells_far, cells_near, cells_swa, bytes_far, bytes_near, bytes_swa), bytes_compute and n_bytes in
main memory, holds, bytes_cache_device, ways of the device (way, bytes_compute, n_bytes). impossible (types of cache,
and why). n_ubatch. offload: layers, bytes_weights on the device, bytes_weights_rest; null without layers there. ga_map.
free: n_bytes, limit. Sizes are in bytes, lengths in tokens.
"""


def _cache_type(name: str, what: str) -> Callable[[_Function], _Function]:
    return option(
        name,
        type=click.Choice(list(CACHE_TYPES), case_sensitive=False),
        metavar="TYPE",
        section="Cache",
        show_default="a table of all types",
        help=f"Type of the cached {what}: {', '.join(CACHE_TYPES)}.",
    )


@click.command(
    cls=Command,
    epilog=EPILOG,
    examples=[
        "pyselfextend plan model.gguf",
        "pyselfextend plan model.gguf --ctx 32768 --type-k Q8_0 --type-v Q8_0",
        "pyselfextend plan model.gguf --ctx 32768 --gpu-layers -1",
        "pyselfextend plan model.gguf --ctx 32768 --ga-n 8 --ga-w 2048 --json",
    ],
)
@click.argument("model", type=GGUF_FILE)
@option("--ctx", type=Integer(1), metavar="N", show_default="twice the trained window", help="Length in tokens.")
@option("--ga-n", type=GroupSize(1), metavar="G", show_default="auto", help="A group size to look at.")
@window("A neighbour window to look at, in tokens.")
@option(
    "--ga-map",
    type=click.Choice(list(MAPS)),
    metavar="MAP",
    default=SELF_EXTEND.name,
    help=f"The map of positions: {', '.join(MAPS)}. With lampe G counts 64ths of a token.",
)
@option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@_cache_type("--type-k", "keys")
@_cache_type("--type-v", "values")
@option(
    "--flash-attn/--no-flash-attn",
    default=None,
    section="Cache",
    show_default="where the type of the values needs it, and with layers on a device",
    help="Whether flash attention is on.",
)
@option(
    "--swa-full/--no-swa-full",
    default=True,
    section="Cache",
    help="Whether layers with a sliding window of their own keep all tokens.",
)
@option(
    "--n-ubatch",
    type=Integer(1, SETTING_MAX),
    default=512,
    metavar="N",
    section="Cache",
    help="Tokens that are computed at once.",
)
@option(
    "--gpu-layers",
    type=Integer(-1, SETTING_MAX),
    default=0,
    metavar="N",
    section="Devices",
    help="Layers on a device, the output layer first; -1: all.",
)
def command(
    model: Path,
    ctx: int | None,
    ga_n: int | Literal["auto"] | None,
    ga_w: int | None,
    ga_map: str,
    as_json: bool,
    type_k: str | None,
    type_v: str | None,
    flash_attn: bool | None,
    swa_full: bool,
    n_ubatch: int,
    gpu_layers: int,
) -> None:
    """Say which group sizes and windows reach a length on MODEL, and what they take.

    Reads the metadata of the GGUF file MODEL and nothing else: its trained window, layers and heads; the pairs of ga_n
    and ga_w that reach a length, and what ga_n="auto" reads it with; the bytes of weights, cache and
    computation, in main memory and on a device, and whether they fit into the free memory of this machine.
    """
    plan = make_plan(
        model,
        ctx,
        ga_n=ga_n,
        ga_w=ga_w,
        ga_map=ga_map,
        type_k=type_k,
        type_v=type_v,
        n_ubatch=n_ubatch,
        swa_full=swa_full,
        flash_attn=flash_attn,
        n_gpu_layers=gpu_layers,
    )
    if as_json:
        click.echo(json.dumps(as_dict(plan), indent=2, default=str))
        return
    from .plan_screen import show

    show(plan)


def as_dict(plan: Plan) -> dict[str, Any]:
    """What ``--json`` prints: the fields of ``Plan``, by their names. Paths are text."""
    return dataclasses.asdict(plan)
