"""A flag that a signal handler may set."""

from __future__ import annotations

from contextlib import suppress
from queue import Empty, SimpleQueue


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
