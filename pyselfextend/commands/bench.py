"""``pyselfextend bench``: how fast a model reads and writes at depth, against the stock build, and its memory."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from ..cache_size import CACHE_TYPES
from ..config import AUTO
from ..machine import n_cores
from ..output_file import is_stream
from ._command import Command, option
from ._options import GGUF_FILE, CommaSeparated, Integer, NamedPath, output

if TYPE_CHECKING:
    from ..bench.plan import GivenPair

EPILOG = """The stock build is llama.cpp from the same pinned source without our patches, compiled as our library was.
It is built once, into the cache folder (PYSELFEXTEND_CACHE_DIR, or the user's), which takes a C++ compiler and minutes.

Every configuration has a process of its own, and one computes at a time. At each depth they take turns in rounds, A B,
B A, A B, ...; one more round before them is not counted. Ctrl-C ends all and shows what has been measured.

With auto the group follows the length: at each depth it is the one that is chosen for a text of the tokens there and
those that are measured, 1 inside the trained window. If the last depth is beyond that, a change of the group is timed.

With --json, one object. machine; plan (depths, threads and n_* in tokens); records in their order, where configuration
is a number in plan.configurations: opened (library, build, system_info, devices, cache_mib, bytes_base; attention: way,
device and layers; memory: device, bytes_model, bytes_cache, bytes_compute), measurement (phase, depth, threads, round,
n_tokens, seconds, cpu_seconds, other_cores, started, ga_n in force), memory (depth, bytes_peak), change of the group at
the last depth (depth, threads, round, ga_n, ga_n_new, seconds, seconds_reading all tokens there).
"""


class Pair(click.ParamType["GivenPair"]):
    """A group size and a neighbour window, ``G:W``; ``auto`` or ``auto:W``."""

    name = "pair"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> GivenPair:
        """Read it."""
        ga_n, colon, ga_w = value.partition(":")
        if ga_n == AUTO and (ga_w.isdecimal() if colon else True):
            return "auto", int(ga_w) if colon else None
        if not (colon and ga_n.isdecimal() and ga_w.isdecimal()) or int(ga_n) < 2:
            self.fail(f"{value!r} is not G:W, a group size of at least 2 and a neighbour window, or auto", param, ctx)
        return int(ga_n), int(ga_w)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """The word."""
        return [CompletionItem(AUTO)] if AUTO.startswith(incomplete) else []


@click.command(
    cls=Command,
    epilog=EPILOG,
    examples=[
        "pyselfextend bench model.gguf",
        "pyselfextend bench model.gguf --pairs auto,4:1024 --depths 0,16384 --plot speed.png",
        "pyselfextend bench model.gguf --cache F16,Q8_0 --threads 1,4 --no-stock",
    ],
)
@click.argument("model", type=GGUF_FILE)
@option(
    "--pairs",
    type=CommaSeparated(Pair()),
    metavar="G:W,...",
    section="What is compared",
    show_default="auto",
    help="Group sizes and neighbour windows; auto, also auto:W: a group that follows the length.",
)
@option("--no-pairs", is_flag=True, section="What is compared", show_default=False, help="Leave pairs out.")
@option("--plain/--no-plain", default=True, section="What is compared", help="Our build with the plain model.")
@option(
    "--stock",
    type=NamedPath(file_okay=False),
    metavar="DIR",
    section="What is compared",
    show_default="it is built",
    help="Folder of a stock libllama.",
)
@option("--no-stock", is_flag=True, section="What is compared", show_default=False, help="Leave the baseline out.")
@option(
    "--attn",
    type=CommaSeparated(click.Choice(["auto", "fused", "composed"])),
    metavar="KIND,...",
    section="What is compared",
    show_default="fused; with layers on the GPU auto",
    help="How the attention of pairs is computed: fused, composed, or in each layer as fits its device (auto).",
)
@option(
    "--flash-attn",
    "flash",
    type=CommaSeparated(click.Choice(["on", "off"])),
    default="on",
    metavar="on,off",
    section="What is compared",
    help="Flash attention, of our build.",
)
@option(
    "--stock-flash-attn",
    "stock_flash",
    type=CommaSeparated(click.Choice(["on", "off"])),
    default="on,off",
    metavar="on,off",
    section="What is compared",
    help="Of the stock build; with both, the faster one is the baseline.",
)
@option(
    "--cache",
    "caches",
    type=CommaSeparated(click.STRING),
    default="F16",
    metavar="T,...",
    section="What is compared",
    help=f"Types of the KV cache, or of K and V apart (Q8_0:F16): {', '.join(CACHE_TYPES)}.",
)
@option(
    "--threads",
    type=CommaSeparated(Integer(1)),
    metavar="T,...",
    section="What is compared",
    show_default=f"all cores: {n_cores()}",
    help="Numbers of threads.",
)
@option(
    "--depths",
    type=CommaSeparated(Integer(0)),
    metavar="N,...",
    section="What is measured",
    show_default="0,1024,4096,8192 as far as the pairs reach",
    help="Tokens in the cache.",
)
@option("--prefill", type=Integer(1), default=512, metavar="N", section="What is measured", help="Tokens of a prompt.")
@option(
    "--decode", type=Integer(1), default=32, metavar="N", section="What is measured", help="Tokens one after the other."
)
@option("--rounds", type=Integer(1, 1000), default=5, metavar="N", section="What is measured", help="How often.")
@option("--batch", type=Integer(32), default=512, metavar="N", section="Running", help="Largest batch, in tokens.")
@option("--gpu-layers", type=Integer(0), default=0, metavar="N", section="Running", help="Layers on the GPU.")
@option(
    "--swa-full/--no-swa-full",
    default=True,
    section="Running",
    help="Whether layers with a sliding window of their own keep all tokens.",
)
@option(
    "--json",
    "json_path",
    type=NamedPath(),
    metavar="FILE",
    section="Results",
    callback=output,
    help="Write everything that was measured, after each depth; to a device or a FIFO at the end.",
)
@option(
    "--plot",
    "plot_path",
    type=NamedPath(),
    metavar="FILE",
    section="Results",
    callback=output,
    help="Draw speed over depth, for example to a .png.",
)
def command(
    model: Path,
    pairs: tuple[GivenPair, ...] | None,
    no_pairs: bool,
    plain: bool,
    stock: Path | None,
    no_stock: bool,
    attn: tuple[str, ...] | None,
    flash: tuple[str, ...],
    stock_flash: tuple[str, ...],
    caches: tuple[str, ...],
    threads: tuple[int, ...] | None,
    depths: tuple[int, ...] | None,
    prefill: int,
    decode: int,
    rounds: int,
    batch: int,
    gpu_layers: int,
    swa_full: bool,
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Measure how fast MODEL reads and writes at depth, and what memory it takes.

    Tokens per second of a prompt (prefill) and of tokens one after the other (decode), behind a number of tokens in the
    cache: for the plain model and with SelfExtend, beside the stock build of the same source.
    """
    if stock is not None and no_stock:
        raise click.UsageError("--stock and --no-stock exclude each other")
    for path in (json_path, plot_path):
        if path is not None and path.exists() and model.exists() and path.samefile(model):
            raise click.UsageError(f"{path} is the model, and results would replace it; give another file")
    if pairs is not None and no_pairs:
        raise click.UsageError("--pairs and --no-pairs exclude each other")
    from .. import bench
    from ..screen import progress_console, result_console
    from .bench_screen import build_bar, run_bar, show, tell_depth

    plan = bench.make_plan(
        model,
        depths=depths,
        pairs=() if no_pairs else pairs,
        plain=plain,
        stock=not no_stock,
        attn=attn or (["auto"] if gpu_layers else ["fused"]),
        flash=[word == "on" for word in flash],
        stock_flash=[word == "on" for word in stock_flash],
        caches=caches,
        threads=threads,
        n_prefill=prefill,
        n_decode=decode,
        n_rounds=rounds,
        n_batch=batch,
        n_gpu_layers=gpu_layers,
        swa_full=swa_full,
    )
    if plot_path is not None:
        bench.check_plot(plot_path)
    machine = bench.this_machine()
    console = progress_console()
    if stock is None and not no_stock:
        with build_bar(console) as on_build:
            stock = bench.stock_lib(on_build)

    records: list[bench.Record] = []
    try:
        with run_bar(console) as on_progress, contextlib.closing(bench.run(plan, stock, on_progress)) as measuring:
            for record in measuring:
                is_new_depth = isinstance(record, bench.Memory) and not isinstance(records[-1], bench.Memory)
                records.append(record)
                if is_new_depth:
                    tell_depth(console, bench.summarize(records))
                    if json_path is not None and not is_stream(json_path):
                        bench.Results(machine, plan, tuple(records)).save(json_path)
    finally:
        results = bench.Results(machine, plan, tuple(records))
        if results.of(bench.Measurement):
            try:
                if json_path is not None:
                    results.save(json_path)
                if plot_path is not None:
                    bench.save_plot(results, plot_path)
            finally:  # whichever cannot be written, the other is
                show(result_console(), results)
