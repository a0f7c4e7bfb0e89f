"""llama.cpp's server on our libraries: local chat, and whatever speaks OpenAI's protocol, past the trained window.

    from pyselfextend.server import start

    with start("model.gguf", n_ctx=32768) as server:
        print(server.url)  # http://127.0.0.1:41234; OpenAI's protocol is at /v1

The programs are llama.cpp's own, built from the pinned source; ``docs/server.md`` says what we add.
"""

from .process import Server, start
from .programs import has_page, program
from .setting import ServerSetting, default_n_ctx, make_setting

__all__ = ["Server", "ServerSetting", "default_n_ctx", "has_page", "make_setting", "program", "start"]
