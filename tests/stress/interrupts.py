"""Ctrl-C at any moment."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupted(seconds: float) -> Iterator[None]:
    """Raise KeyboardInterrupt in what is within after so long, if that has not come to its end by then; it goes no
    further. In the main thread.
    """
    is_within = True

    def interrupt(*_: object) -> None:
        if is_within:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
        yield
    except KeyboardInterrupt:
        pass
    finally:
        is_within = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
