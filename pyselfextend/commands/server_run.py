"""The work of ``pyselfextend serve`` and ``chat``: what is said before, and the programs of llama.cpp."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import sys
import webbrowser
from collections.abc import Iterator, Sequence

from rich.console import Console

from ..errors import ServerError
from ..screen import progress_console, result_console
from ..server import ServerSetting, has_page, program
from ..server.process import LOOPBACK, launch, run
from ..server.programs import CLI, SERVER

__all__ = ["about", "chat_here", "chat_on_page", "is_open", "serve"]

KEY_VARIABLES = ("LLAMA_API_KEY", "LLAMA_ARG_API_KEY_FILE")


def about(setting: ServerSetting) -> Iterator[str]:
    """What a slot is, in lines."""
    slots = "one slot" if setting.n_parallel == 1 else f"{setting.n_parallel} slots, each"
    n_ctx = min(setting.n_ctx, setting.n_ctx_train) if setting.refused else setting.n_ctx
    yield f"{setting.model.name}: trained on {setting.n_ctx_train:,} tokens, {slots} of {n_ctx:,}"
    if setting.refused:
        yield f"not extended to {setting.n_ctx:,} tokens: {setting.refused}"
    elif setting.n_ctx > setting.n_ctx_train and setting.ga_n == "auto":
        groups = "as they were measured on it" if setting.groups else "that follow the length of the text"
        yield f"beyond the trained window it is read with group sizes {groups}"
    elif setting.ga_n not in (1, "auto"):
        yield f"read with group size {setting.ga_n}"


def serve(setting: ServerSetting, host: str, port: int, options: Sequence[str]) -> int:
    """Run the server until it ends. Returns its exit status."""
    command = [os.fspath(program(SERVER)), *setting.server_arguments(host, port), *options]
    say(result_console(), *about(setting))
    if is_open(host, options):
        say(result_console(), f"whoever reaches {host} can use it and read its chats: --api-key asks for a key")
    return run(command)


def is_open(host: str, options: Sequence[str]) -> bool:
    """Whether other machines may use a server that asks for no key."""
    try:
        is_here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_here = host == "localhost" or host.endswith(".sock")
    keys = ("--api-key", "--api-key-file")
    has_key = any(word.partition("=")[0] in keys for word in options)
    return not is_here and not has_key and not any(os.environ.get(name) for name in KEY_VARIABLES)


def chat_here(setting: ServerSetting, options: Sequence[str]) -> int:
    """Chat in this terminal until it ends. Returns the exit status."""
    command = [os.fspath(program(CLI)), *setting.arguments(), *options]
    say(result_console(), *about(setting))
    return run(command)


def chat_on_page(setting: ServerSetting, port: int, browser: bool, options: Sequence[str]) -> int:
    """Serve the page until Ctrl-C. Returns 0."""
    console = result_console()
    if not has_page():
        say(console, "the server was built without its page, which needs Node.js with npm: chatting here instead")
        return chat_here(setting, options)
    say(console, *about(setting))
    if port and not is_free(port):
        say(console, f"port {port} is taken, so this page has no chats of before: --port chooses another")
        port = 0
    with progress_console().status("loading the model") if sys.stderr.isatty() else contextlib.nullcontext():
        server = launch(setting, LOOPBACK, port, options)
    with server:
        say(console, f"{server.url}  (Ctrl-C ends it)")
        if browser and not webbrowser.open(server.url):
            say(console, "there is no browser to open it in")
        with contextlib.suppress(KeyboardInterrupt):
            server.join()
            raise ServerError(f"the server has ended: {server.last_lines()}")
    return 0


def is_free(port: int) -> bool:
    """Whether nobody listens there on this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def say(console: Console, *lines: str) -> None:
    """Print lines, before a program takes over the terminal."""
    for line in lines:
        console.print(line, soft_wrap=True)
    sys.stdout.flush()
