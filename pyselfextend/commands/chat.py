"""``pyselfextend chat``: a page to chat on, or the same in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from ._command import Command, option
from ._server import OTHERS, context_options, keep, keep_options, port, split_files

__all__ = ["command"]

EPILOG = f"""{OTHERS}

The page keeps chats in the browser, by the address of the page: with another --port there are others.
"""


@click.command(
    cls=Command,
    epilog=EPILOG,
    context_settings={"ignore_unknown_options": True},
    examples=[
        "pyselfextend chat model.gguf",
        "pyselfextend chat model.gguf --ctx 65536",
        "pyselfextend chat model.gguf --keep ~/chats",
        "pyselfextend chat model.gguf report.txt notes.md --terminal",
    ],
)
@context_options
@keep
@port(8642, "Port of the page, on this machine only; 0: one that is free.")
@option("--browser/--no-browser", default=True, section="Page", help="Whether to open the page.")
@option("--terminal", is_flag=True, section="Page", help="Chat here instead of on a page.")
def command(
    model: Path,
    options: tuple[str, ...],
    ctx: int | None,
    ga_n: int | Literal["auto"],
    ga_w: int | None,
    ga_map: str,
    keep: Path | None,
    port: int,
    browser: bool,
    terminal: bool,
) -> int:
    """Chat with MODEL about texts longer than it was trained on.

    Opens a page: drop files into it, and see how far they have been read, how much of the context they take, and where
    the trained window ends. Ctrl-C ends it; chats are there again the next time, with --keep without a second reading.

    With --terminal the chat is here: texts may be named behind MODEL, Ctrl-C stops an answer, and a second one ends it.
    """
    from ..server import make_setting
    from .server_run import chat_here, chat_on_page

    files, others = split_files(options)
    if terminal and keep is not None:
        raise click.UsageError("--keep is for the page, not for --terminal")
    if files and not terminal:
        raise click.UsageError(f"{files[0]}: files are for --terminal; drop them on the page, which reads PDF as well")
    setting = make_setting(model, ctx, ga_n=ga_n, ga_w=ga_w, ga_map=ga_map)
    if terminal:
        return chat_here(setting, [*(word for file in files for word in ("--read", str(file))), *others])
    return chat_on_page(setting, port, browser, [*keep_options(keep), *others])
