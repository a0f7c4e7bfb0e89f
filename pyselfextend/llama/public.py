"""What every public method does before it begins: look at its arguments, and wait for its turn."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Mapping
from typing import Any, TypeVar

from .arguments import METHODS, Check, bound, check
from .guard import Stream

__all__ = ["public"]

F = TypeVar("F", bound=Callable[..., Any])


def public(
    *, changes: bool, like: Callable[..., Any] | None = None, checks: Mapping[str, Check] | None = None
) -> Callable[[F], F]:
    """Make a public method of a method of ``Llama``.

    Its arguments are checked by their names, calls of other threads are waited for, and a generator that it returns
    takes its turn with each step.

    Args:
        changes: whether it changes what is evaluated.
        like: llama_cpp's method that it takes the place of: the signature that its arguments are checked by.
        checks: of arguments that are something else here than in other methods.
    """

    def decorate(method: F) -> F:
        name = method.__name__
        all_checks = {**METHODS, **(checks or {})}
        signature = inspect.signature(like or method)

        @functools.wraps(like or method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            arguments = bound(signature, f"{name}()", (self, *args), kwargs)
            del arguments["self"]
            arguments = check(arguments, all_checks)
            if inspect.isgeneratorfunction(method):
                return Stream(self._guard, method(self, **arguments), name)
            answer = self._guard.call(lambda: method(self, **arguments), changes=changes, name=name)
            is_stream = isinstance(answer, Generator) and not isinstance(answer, Stream)
            return Stream(self._guard, answer, name) if is_stream else answer

        return call  # type: ignore[return-value]

    return decorate
