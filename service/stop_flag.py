"""A flag that a signal's handler may set."""

from __future__ import annotations

from contextlib import suppress
from queue import Empty, SimpleQueue


class StopFlag:
    """Set once, for good, from any thread or from within a signal's handler.

    Not a `threading.Event`: a handler runs in the main thread, wherever that is just then. Where it is inside of the
    event's own lock, as in a part of each `wait`, `set` would wait for ever for the thread that it runs in. `put` of a
    SimpleQueue may be called there.
    """

    def __init__(self) -> None:
        self._set = False
        self._wake: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """End the present waits and every later one."""
        self._set = True
        self._wake.put(None)

    def is_set(self) -> bool:
        """Whether `set` was called."""
        return self._set

    def wait(self, seconds: float) -> bool:
        """Wait, for so long at most; True = it is set."""
        if not self._set:
            with suppress(Empty):
                self._wake.get(timeout=seconds)
                self._wake.put(None)  # for whoever else waits
        return self._set
