"""Where the programs of llama.cpp that are built on our libraries lie."""

from __future__ import annotations

import sys
from pathlib import Path

from .. import _native
from ..errors import ServerError

__all__ = ["CLI", "SERVER", "has_page", "program"]

SERVER, CLI = "llama-server", "llama-cli"


def program(name: str) -> Path:
    """The file of a program, such as ``llama-server``.

    Raises:
        NativeLibraryError: the package has not been built.
        ServerError: it was built without the server.
    """
    path = _native.lib_dir().parent / "bin" / (f"{name}.exe" if sys.platform == "win32" else name)
    if not path.is_file():
        raise ServerError(
            f"there is no {path}: pyselfextend was built without its server; install it with "
            "-Ccmake.define.PYSELFEXTEND_BUILD_SERVER=ON (in a clone: make chat)"
        )
    return path


def has_page() -> bool:
    """Whether the server was built with its page, for which npm is needed."""
    from .._build import HAS_PAGE

    return HAS_PAGE
