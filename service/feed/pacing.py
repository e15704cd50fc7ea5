"""Readings at the pace of their event times: when each is due, and waiting for it in a way that can be stopped."""

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
    """Time as the pacing sees it, so that a test needs no time at all."""

    def now_ms(self) -> float:
        """Milliseconds since the epoch."""

    def wait(self, seconds: float) -> bool:
        """Wait; True = stop, somebody asked for it."""


class SystemClock:
    """Real time; `stop` may be called from a signal handler or another thread and ends every wait."""

    def __init__(self) -> None:
        self._stopped = StopFlag()
        # Wall time as of now, then monotonic: a step of the system's clock must not stall the stream.
        self._offset = time.time() - time.monotonic()

    def now_ms(self) -> float:
        """Milliseconds since the epoch."""
        return (time.monotonic() + self._offset) * 1_000

    def wait(self, seconds: float) -> bool:
        """Wait; True = `stop` was called."""
        return self._stopped.wait(max(0.0, seconds))

    def stop(self) -> None:
        """End the present wait and every later one."""
        self._stopped.set()


def parse_speed(text: str) -> float:
    """Event seconds for each second: "1", "3600", or "max" for infinity.

    Raises:
        UsageError: neither a positive number nor "max".
    """
    try:
        speed = math.inf if text.strip().lower() == "max" else float(text)
    except ValueError:
        speed = math.nan
    if not speed > 0:
        raise UsageError("--speed is a positive number or max", got=text, do="--speed 3600 sends an hour each second.")
    return speed


def paced(readings: Iterable[Reading], speed: float, clock: PacingClock) -> Iterator[list[Reading]]:
    """Readings in lists, each list when it is due; at most `BATCH` at once. Ends early when the clock says stop.

    The first reading is due at once. A stream that has fallen behind sends what is overdue without waiting.
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
