"""Typed access to the metadata of a model: what llama.cpp would not load is found here."""

from __future__ import annotations

import math
from typing import TypeVar

from .config import SETTING_MAX
from .errors import ModelFileError
from .gguf_file import GGUFFile, Skipped, Value, shown

__all__ = ["N_HEAD_MAX", "Keys"]

N_HEAD_MAX = 2**20  # heads, or their size: far more than any has; keeps products of damaged numbers readable

N_NAME_MAX = 64  # characters of an architecture's name

T = TypeVar("T", int, float, bool, str)


class Keys:
    """The metadata of a file, by keys without the architecture in front.

    Raises:
        ModelFileError: in every method: the value is not of its kind or out of range, or it is missing and needed. The
            constructor: the file is not one of a language model.
    """

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        arch = file.metadata.get("general.architecture")
        kind = file.metadata.get("general.type", "model")
        if not isinstance(arch, str) or not arch:
            raise ModelFileError(f"{file.path} is not a language model: it does not name its architecture")
        if len(arch) > N_NAME_MAX or not arch.isprintable():
            raise ModelFileError(f"{file.path} is damaged: {shown(arch)} is no name of an architecture")
        self.architecture = arch
        for key in ("context_length", "block_count", "embedding_length"):
            if self.get(key) is None:
                what = f"it is of type {shown(kind)} and has" if kind != "model" else "it has"
                raise ModelFileError(f"{file.path} is not a language model: {what} no {self.full(key)}")

    def full(self, key: str) -> str:
        return f"{self.architecture}.{key}"

    def problem(self, what: str) -> ModelFileError:
        return ModelFileError(f"{self.file.path} cannot be loaded: {what}")

    def get(self, key: str) -> Value | None:
        return self.file.metadata.get(self.full(key))

    def value(self, key: str, kind: type[T], default: T) -> T:
        value = self.get(key)
        if value is None:
            return default
        if type(value) is not kind:
            raise self.problem(f"{self.full(key)} is {shown(value)}; it must be of type {kind.__name__}")
        return value

    def integer(self, key: str, low: int, high: int = SETTING_MAX, default: int | None = None) -> int:
        """default None: the file must have it."""
        return self._checked(key, self._required(key, default), low, high)

    def positive(self, key: str, default: float) -> float:
        """0 in the file stands for the default, as in llama.cpp."""
        value = self.value(key, float, default) or default
        if not 0.0 < value < math.inf:
            raise self.problem(f"{self.full(key)} is {shown(value)}; it must be a positive number")
        return value

    def per_layer(self, key: str, n: int, default: int | list[int] | None) -> list[int]:
        """A number for each of n layers: the file has an array, or one for all."""
        value = self._required(key, default)
        if isinstance(value, (tuple, list)) and not isinstance(value, Skipped):
            if len(value) != n:
                raise self.problem(f"{self.full(key)} has {len(value)} values, the model {n} layers")
            return [self._checked(key, each, 0, N_HEAD_MAX) for each in value]
        return [self._checked(key, value, 0, N_HEAD_MAX)] * n

    def _required(self, key: str, default: object) -> object:
        value = self.get(key)
        if value is None and default is None:
            raise self.problem(f"it has no {self.full(key)}, which its architecture needs")
        return default if value is None else value

    def _checked(self, key: str, value: object, low: int, high: int) -> int:
        if type(value) is not int or not low <= value <= high:
            raise self.problem(f"{self.full(key)} is {shown(value)}; it must be an integer from {low} to {high}")
        return value
