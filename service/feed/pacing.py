"""Sends readings at the pace of their event times: computes when each is due, and waits until then or until stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import Protocol

from tidecast.service.datafiles.readings import Reading
from tidecast.service.errors import UsageError
from tidecast.service.stop_flag import StopFlag

BATCH = 500  # readings handed to the producer at once


class PacingClock(Protocol):
    """The clock that the pacing uses; a test passes one that needs no real time."""

    def now_ms(self) -> float:
        """Milliseconds since the epoch."""

    def wait(self, seconds: float) -> bool:
        """Wait; True = stop now."""


class SystemClock:
    """Real time. `stop` ends every wait; it may be called from a signal handler or another thread."""

    def __init__(self) -> None:
        self._stopped = StopFlag()
        # Monotonic from now on: a change of the system's clock must not stall the stream.
        self._offset = time.time() - time.monotonic()

    def now_ms(self) -> float:
        """Milliseconds since the epoch."""
        return (time.monotonic() + self._offset) * 1_000

    def wait(self, seconds: float) -> bool:
        """Wait; True = `stop` was called."""
        return self._stopped.wait(max(0.0, seconds))

    def stop(self) -> None:
        """End the present and every later wait."""
        self._stopped.set()


def parse_speed(text: str) -> float:
    """Seconds of event time per second: "1", "3600", or "max" for infinity.

    Raises:
        UsageError: neither a positive number nor "max".
    """
    try:
        speed = math.inf if text.strip().lower() == "max" else float(text)
    except ValueError:
        speed = math.nan
    if not speed > 0:
        raise UsageError("--speed is a positive number or max", got=text, do="--speed 3600 sends an hour per second.")
    return speed


def paced(readings: Iterable[Reading], speed: float, clock: PacingClock) -> Iterator[list[Reading]]:
    """Readings in lists of at most `BATCH`, each when it is due. Ends early when the clock is stopped.

    The first reading is due at once. Overdue readings are sent without waiting.
    """
    due: list[Reading] = []
    start_ms = clock.now_ms()
    first_ts: int | None = None
    for reading in readings:
        if first_ts is None:
            first_ts = reading.ts
        # At infinite speed the division is 0: always due.
        wait_s = (start_ms + (reading.ts - first_ts) / speed - clock.now_ms()) / 1_000
        if due and (wait_s > 0 or len(due) >= BATCH):
            yield due
            due = []
            if clock.wait(0):
                return
            wait_s = (start_ms + (reading.ts - first_ts) / speed - clock.now_ms()) / 1_000
        if wait_s > 0 and clock.wait(wait_s):
            return
        due.append(reading)
    if due:
        yield due
