"""A flag that a signal handler may set, and handlers of Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequested(BaseException):
    """Ctrl-C or SIGTERM came: end early and in order, without an error."""


class StopFlag:
    """Can be set once, from any thread or from a signal handler.

    Not a `threading.Event`: a handler interrupts the main thread at any point. If the thread holds the event's lock at
    that moment, as in part of each `wait`, `set` would deadlock. `SimpleQueue.put` is safe in a handler.
    """

    def __init__(self) -> None:
        self._set = False
        self._wake: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """End all present and later waits."""
        self._set = True
        self._wake.put(None)

    def is_set(self) -> bool:
        """Whether `set` was called."""
        return self._set

    def wait(self, seconds: float) -> bool:
        """Wait for the flag for at most this long; True = it is set."""
        if not self._set:
            with suppress(Empty):
                self._wake.get(timeout=seconds)
                self._wake.put(None)  # for other waiting threads
        return self._set


@contextmanager
def on_signals(handle: Callable[[int], None]) -> Iterator[None]:
    """Call `handle` with the number of each SIGINT and SIGTERM. At the end the earlier handlers are back."""
    before = {each: signal.signal(each, lambda number, frame: handle(number)) for each in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """The first SIGINT or SIGTERM raises `StopRequested`; later ones are ignored, so that they do not cut it short."""

    def stop(number: int) -> NoReturn:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise StopRequested

    with on_signals(stop):
        yield
