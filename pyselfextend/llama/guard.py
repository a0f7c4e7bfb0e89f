"""One call at a time on an instance, in the process that opened it, and streams that know when they are out of date.

llama.cpp's context is for one thread. llama_cpp has no lock; a stream of it that is continued after another call goes
on with what that call has left in the cache, and a child of ``fork`` has none of the threads that llama.cpp waits for.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from ..errors import StaleStreamError, UsageError

__all__ = ["FORKED", "Gone", "Guard", "Stream", "check_process"]

T = TypeVar("T")

FORKED = "this Llama was opened before a fork, by another process; open one in this process"


class Gone:
    """In place of what has been freed: llama_cpp would hand the stale pointers to llama.cpp, which ends the process."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __getattr__(self, name: str) -> Any:
        raise UsageError(self._reason)


class Guard:
    """Of one instance: who may call it now.

    Args:
        forked: called in a child of ``fork``, before anything else can use the instance there.
    """

    def __init__(self, forked: Callable[[], None]) -> None:
        self.lock = threading.RLock()
        self.turn: object = None  # of what last changed what is evaluated
        self._n_callbacks = 0  # of the user's, that are running
        self._depth = 0  # of calls within each other
        self._is_forked = False
        self._forked = weakref.WeakMethod(forked)  # the instance has the guard: no circle, so that it is freed at once
        _guards.add(self)
        global _is_used
        _is_used = True

    def call(self, action: Callable[[], T], *, changes: bool, name: str) -> T:
        """What a call of a method returns, when it is its turn.

        Not a context manager of Python's: Ctrl-C between its two halves would leave it begun.

        Args:
            action: the method with its arguments.
            changes: whether it changes what is evaluated, so that streams that were begun cannot go on.
            name: of the method.

        Raises:
            UsageError: it changes that, and is made by a callback of a call that goes on.
        """
        with self.lock:
            self._begin(changes, name)
            try:
                return action()
            finally:
                self._depth -= 1

    def call_back(self, callback: Callable[..., T], *arguments: Any, **more: Any) -> T:
        """What a callback of the user's returns. It cannot change the instance meanwhile."""
        self._n_callbacks += 1
        try:
            return callback(*arguments, **more)
        finally:
            self._n_callbacks -= 1

    def _begin(self, changes: bool, name: str) -> None:
        if self._depth == 0:
            self._n_callbacks = 0
        if changes and self._n_callbacks:
            raise UsageError(
                f"{name}() was called by a callback of the same Llama, which is in the midst of another call; "
                "use a second Llama, or wait until the call has ended"
            )
        if changes and self._depth == 0:
            self.turn = object()
        self._depth += 1

    def check_turn(self, turn: object, name: str) -> None:
        """Before a step of a stream.

        Args:
            turn: of its last step; None at its first.
            name: of the method that made it.

        Raises:
            StaleStreamError: another call has changed what is evaluated since its last step.
            UsageError: this is a child of the process that began it.
        """
        if self._is_forked:
            raise UsageError(FORKED)
        if turn is not None and turn is not self.turn:
            raise StaleStreamError(
                f"the stream of {name}() cannot be continued: another call has been made on the same Llama since"
            )

    def after_fork(self) -> None:
        self.lock = threading.RLock()  # a thread that is not here may have had it
        self._depth = self._n_callbacks = 0
        self._is_forked = True
        if (forked := self._forked()) is not None:
            forked()


class Stream(Generator[Any, Any, None]):
    """A generator of which each step is a call.

    Args:
        guard: of the instance.
        steps: the generator.
        name: of the method that made it.
    """

    def __init__(self, guard: Guard, steps: Generator[Any, Any, None], name: str) -> None:
        self._guard, self._steps, self._name = guard, steps, name
        self._turn: object = None

    def send(self, value: Any) -> Any:
        return self._step(self._steps.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._steps.throw, *error)

    def close(self) -> None:
        with self._guard.lock:  # frees its sampler
            self._steps.close()

    def _step(self, step: Callable[..., Any], *arguments: Any) -> Any:
        guard = self._guard
        with guard.lock:
            try:
                guard.check_turn(self._turn, self._name)
            except StaleStreamError:
                self._steps.close()
                raise
            return guard.call(lambda: self._taken(step, *arguments), changes=self._turn is None, name=self._name)

    def _taken(self, step: Callable[..., Any], *arguments: Any) -> Any:
        self._turn = self._guard.turn
        return step(*arguments)


def check_process() -> None:
    """Before an instance is opened.

    Raises:
        UsageError: one was opened before this process was forked. It would wait for ever for threads: they are
            OpenMP's, which has none in a child.
    """
    if _is_child:
        raise UsageError(
            "llama.cpp was used before this process was forked, and cannot be used in it; start processes by "
            'multiprocessing.get_context("spawn"), or fork before a Llama is opened'
        )


_guards: weakref.WeakSet[Guard] = weakref.WeakSet()
_is_used = _is_child = False


def _after_fork() -> None:
    global _is_child
    _is_child = _is_used
    for guard in list(_guards):
        guard.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
