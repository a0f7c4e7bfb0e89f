"""``pyselfextend serve``: llama.cpp's server on our libraries, past the trained window."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from ..server.process import LOOPBACK
from ._command import Command, option
from ._options import Integer
from ._server import OTHERS, context_options, keep, keep_options, port

__all__ = ["command"]

EPILOG = f"""{OTHERS}

OpenAI's protocol is at /v1, Anthropic's at /v1/messages, llama.cpp's own at /completion. /props and /slots say how far
the model is extended, with which group size each slot reads, and why not where it is not. A prompt that is longer than
a slot is refused with status 400; nothing is cut, unless --context-shift is given.
"""


@click.command(
    cls=Command,
    epilog=EPILOG,
    context_settings={"ignore_unknown_options": True},
    examples=[
        "pyselfextend serve model.gguf",
        "pyselfextend serve model.gguf --ctx 65536 --parallel 2 --api-key secret",
        "pyselfextend serve model.gguf --cache-type-k q8_0 --cache-type-v q8_0",
    ],
)
@context_options
@option(
    "--parallel",
    type=Integer(1, 256),
    default=1,
    metavar="N",
    section="Context",
    help="Slots: chats that are answered at once, each with a context of its own.",
)
@option(
    "--host",
    default=LOOPBACK,
    metavar="ADDRESS",
    section="Server",
    help="Where it listens; 0.0.0.0 lets other machines in (see --api-key).",
)
@keep
@port(8080, "Port.")
def command(
    model: Path,
    options: tuple[str, ...],
    ctx: int | None,
    ga_n: int | Literal["auto"],
    ga_w: int | None,
    ga_map: str,
    parallel: int,
    host: str,
    keep: Path | None,
    port: int,
) -> int:
    """Serve MODEL to whatever speaks OpenAI's protocol, with a page to chat on.

    Inside its trained window the model is the plain one. Beyond it, it is read with a group size that follows the
    length of the text, each slot with its own.
    """
    from ..server import make_setting
    from .server_run import serve

    setting = make_setting(model, ctx, ga_n=ga_n, ga_w=ga_w, ga_map=ga_map, n_parallel=parallel)
    return serve(setting, host, port, [*keep_options(keep), *options])
