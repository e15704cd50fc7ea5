"""When Python looks for garbage that refers to itself: once a second and between two batches, instead of amid them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

_SECONDS = 1.0


class GcPacer:
    """For a process that is about to do the same thing again and again; call `turn` as often as it likes.

    A batch is tens of thousands of objects, all of which go again without help: at its default
    threshold, 700, it would look at each of them several times, which costs more than the model does. But it is
    needed: errors that kafka-python deals with by itself keep their stacks alive, and with these whole answers of
    Kafka, megabytes each, so that a threshold of objects says little about memory.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = clock()

    def begin(self) -> None:
        """What is there by now stays, and is looked at no more."""
        gc.collect()
        gc.freeze()
        gc.disable()

    def turn(self) -> None:
        """Look for garbage where it is time to."""
        now = self._clock()
        if now - self._at >= _SECONDS:
            self._at = now
            gc.collect()
