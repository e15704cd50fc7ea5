"""Runs Python's garbage collector once a second, between two batches instead of during them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

_SECONDS = 1.0


class GcPacer:
    """For a process that does the same thing again and again; call `between_batches` as often as you like.

    A batch is tens of thousands of objects, all of which are freed without the collector. At its default threshold,
    700, it would look at each of them several times, which costs more than the model does. But it is needed: errors
    that kafka-python handles by itself keep their stacks alive, and with these whole answers of Kafka, megabytes each,
    so a threshold of objects says little about memory.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = clock()

    def begin(self) -> None:
        """What exists by now stays, and is not looked at again."""
        gc.collect()
        gc.freeze()
        gc.disable()

    def between_batches(self) -> None:
        """Collect garbage if a second has passed."""
        now = self._clock()
        if now - self._at >= _SECONDS:
            self._at = now
            gc.collect()
