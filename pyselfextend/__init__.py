"""Longer contexts for language models at inference time: exact SelfExtend inside llama.cpp (arXiv 2401.01325).

Importing the package makes sure that llama_cpp, whenever it is imported, loads our build of llama.cpp; that library
itself is loaded and verified when ``Llama`` is first used. ``config``, ``errors`` and ``positions`` never load it.
"""

from . import _interrupt as _interrupt  # isort: skip  # before all else: it is about the imports that follow

from typing import TYPE_CHECKING, Any

from . import _native
from .config import SelfExtendConfig
from .errors import (
    BenchError,
    ContextFullError,
    DemoError,
    EvalError,
    GrammarError,
    MissingExtraError,
    ModelFileError,
    NativeLibraryError,
    NotAnIntegerError,
    SelfExtendError,
    ServerError,
    SettingError,
    ShiftError,
    StaleStreamError,
    StateError,
    UnknownArgumentError,
    UsageError,
    WrongTypeError,
)
from .info import SelfExtendInfo

if TYPE_CHECKING:
    from .llama import Llama as Llama

    __version__: str

__all__ = [
    "BenchError",
    "ContextFullError",
    "DemoError",
    "EvalError",
    "GrammarError",
    "Llama",
    "MissingExtraError",
    "ModelFileError",
    "NativeLibraryError",
    "NotAnIntegerError",
    "SelfExtendConfig",
    "SelfExtendError",
    "SelfExtendInfo",
    "ServerError",
    "SettingError",
    "ShiftError",
    "StaleStreamError",
    "StateError",
    "UnknownArgumentError",
    "UsageError",
    "WrongTypeError",
    "__version__",
]

_native.claim()


def __getattr__(name: str) -> Any:
    if name == "Llama":
        from .llama import Llama

        return Llama
    if name == "__version__":
        from importlib.metadata import version

        return version("pyselfextend")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
