"""``pyselfextend demo``: ask a model about a text longer than its trained window, without SelfExtend and with it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from ..config import AUTO
from ..default_model import MODEL_DISTRIBUTION
from ._command import Command, option
from ._options import FRACTION, GGUF_FILE, GroupSize, Integer, seed, threads, window

__all__ = ["command"]


@click.command(
    "demo",
    cls=Command,
    examples=[
        "pyselfextend demo",
        "pyselfextend demo --model model.gguf --tokens 40000 --depth 0.5",
    ],
    exit_statuses={0: "the extended model knows the fact", 1: "it does not"},
)
@option(
    "--model",
    type=GGUF_FILE,
    metavar="GGUF",
    show_default=f"the one in the package {MODEL_DISTRIBUTION}",
    help="Model file.",
)
@option(
    "--tokens",
    type=Integer(1),
    default=12_000,
    metavar="N",
    section="Text",
    help="Length in the model's tokens.",
)
@option(
    "--depth",
    type=FRACTION,
    default=0.1,
    metavar="F",
    section="Text",
    help="Where the fact stands, from 0 (the beginning) to 1 (the end).",
)
@seed("the fact", "Text")
@option(
    "--ga-n",
    type=GroupSize(2, note="the plain model is shown anyway"),
    default=AUTO,
    metavar="G",
    section="SelfExtend",
    help="Group size; auto chooses it for the length of the text.",
)
@window("Neighbour window in tokens.", "SelfExtend")
@threads("Running")
def command(
    model: Path | None,
    tokens: int,
    depth: float,
    seed: int,
    ga_n: int | Literal["auto"],
    ga_w: int | None,
    threads: int,
) -> int:
    """Show a model answering from beyond its trained window.

    A fact is hidden early in a text that is longer than the window that the model was trained on. First the plain model
    is asked for it, then the same model with SelfExtend.
    """
    from .demo_run import Arguments, run

    return run(Arguments(model, tokens, depth, seed, ga_n, ga_w, threads))
