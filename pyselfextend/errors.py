"""The exceptions of the package.

::

    SelfExtendError                       everything below
    ├── SettingError(ValueError)          a setting that is not allowed, by itself or with this model
    │   ├── NotAnIntegerError(TypeError)  a setting that is not an integer
    │   ├── WrongTypeError(TypeError)     an argument that is not of a type that is taken
    │   ├── UnknownArgumentError          an argument that does not exist; a TypeError as well
    │   └── GrammarError                  a grammar that cannot be used, or that no token of the model continues
    ├── ContextFullError(ValueError)      tokens that do not fit into the context
    ├── StateError(RuntimeError)          a saved state that is not one of this instance, or not whole
    ├── ShiftError(RuntimeError)          a context that cannot be shifted
    ├── StaleStreamError(RuntimeError)    a stream that is continued after another call on the same instance
    ├── UsageError(RuntimeError)          a call at a time when it cannot be answered
    ├── NativeLibraryError(ImportError)   the native library is missing, not of this build, or not the one in use
    ├── MissingExtraError(ImportError)    an optional dependency is not installed
    ├── ModelFileError(ValueError)        a file that is not GGUF, is damaged, or cannot be loaded as a model
    ├── EvalError(RuntimeError)           an evaluation cannot run: its texts, lengths or results do not fit
    ├── BenchError(RuntimeError)          a benchmark cannot run
    ├── ServerError(RuntimeError)         a server cannot be started, or has ended
    └── DemoError(RuntimeError)           the demo cannot run: no model, or a model that cannot be loaded

Each message is one sentence or two: what was given, and what is allowed or what to do.
"""

from __future__ import annotations

__all__ = [
    "BenchError",
    "ContextFullError",
    "DemoError",
    "EvalError",
    "GrammarError",
    "MissingExtraError",
    "ModelFileError",
    "NativeLibraryError",
    "NotAnIntegerError",
    "SelfExtendError",
    "ServerError",
    "SettingError",
    "ShiftError",
    "StaleStreamError",
    "StateError",
    "UnknownArgumentError",
    "UsageError",
    "WrongTypeError",
]


class SelfExtendError(Exception):
    """Base class of every exception that this package raises on purpose."""


class SettingError(SelfExtendError, ValueError):
    """A setting is not allowed, by itself or together with the model and the context.

    Also what a model whose architecture is not supported raises; the message names the architecture.
    """


class NotAnIntegerError(SettingError, TypeError):
    """A setting is not an integer. It is a ``ValueError`` like every other bad value, and a ``TypeError`` as well."""


class WrongTypeError(SettingError, TypeError):
    """An argument is not of a type that is taken."""


class UnknownArgumentError(SettingError, TypeError):
    """An argument does not exist. The message names those that are spelt like it."""


class GrammarError(SettingError):
    """A grammar cannot be used, or the model has no token that continues the text as the grammar wants it.

    The message says where in the grammar. The instance stays usable.
    """


class ContextFullError(SelfExtendError, ValueError):
    """Tokens do not fit into what is left of the context. Nothing was evaluated; the instance stays usable."""


class StateError(SelfExtendError, RuntimeError):
    """A saved state is of another model, another setting or another kind of cache, is damaged, or does not fit.

    The message says which. The instance keeps what it had.
    """


class ShiftError(SelfExtendError, RuntimeError):
    """The model's keys cannot be moved to other positions without loss. Nothing was changed."""


class StaleStreamError(SelfExtendError, RuntimeError):
    """A stream is continued after another call on its instance: what it had evaluated is no longer there."""


class UsageError(SelfExtendError, RuntimeError):
    """A call at a time when it cannot be answered: the instance is closed, was opened before a fork, is within a
    callback of its own, or has no logits yet."""


class NativeLibraryError(SelfExtendError, ImportError):
    """The native library is missing, was not built with this package, or another llama.cpp is in the process."""


class MissingExtraError(SelfExtendError, ImportError):
    """An optional dependency is not installed. The message names the extra that brings it."""


class ModelFileError(SelfExtendError, ValueError):
    """A file is not GGUF, is truncated or damaged, or cannot be loaded as a model. The message says which."""


class EvalError(SelfExtendError, RuntimeError):
    """An evaluation cannot run as asked for: a text or a length is too short, a results file is something else."""


class BenchError(SelfExtendError, RuntimeError):
    """A benchmark cannot run, for example because the stock build failed. The message says where its log is."""


class ServerError(SelfExtendError, RuntimeError):
    """A server was not built, cannot be started, or has ended. The message ends with what it wrote last."""


class DemoError(SelfExtendError, RuntimeError):
    """The demo cannot run, for example because there is no model file."""
