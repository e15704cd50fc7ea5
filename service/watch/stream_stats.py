"""Figures of the whole stream: readings per second, and how many readings wait for their forecast."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

WINDOW_S = 5  # the rate is the mean over this time
MAX_WAITING = 100_000  # of one partition; more are not counted


class StreamStats:
    """Updated by the reader's thread. `now` is monotonic time, s."""

    def __init__(self) -> None:
        self._seconds: deque[list[int]] = deque(maxlen=WINDOW_S + 1)  # [second, readings, forecasts]
        self._waiting: dict[int, deque[tuple[int, int]]] = {}  # partition -> (offset, the record's ms)
        self._answered: dict[int, int] = {}  # partition -> the last offset that a forecast answers
        self.readings = self.forecasts = 0

    def reading(self, partition: int, offset: int, record_ms: int, now: float, *, awaited: bool) -> None:
        """A record of the input topic; `awaited`: a forecast should answer it."""
        self._count(now, 1)
        self.readings += 1
        if awaited and offset > self._answered.get(partition, -1):
            self._waiting.setdefault(partition, deque(maxlen=MAX_WAITING)).append((offset, record_ms))

    def forecast(self, source: tuple[int, int] | None, now: float) -> None:
        """A record of the output topic, with (partition, offset) of the reading it answers. They come in order."""
        self._count(now, 2)
        self.forecasts += 1
        if source is None:
            return
        partition, offset = source
        self._answered[partition] = max(offset, self._answered.get(partition, -1))
        waiting = self._waiting.get(partition, ())
        while waiting and waiting[0][0] <= offset:
            waiting.popleft()

    def restart(self) -> None:
        """The reader has moved to other offsets: what waits there is not known yet."""
        self._waiting.clear()
        self._answered.clear()
        self._seconds.clear()

    def snapshot(self, now: float, wall_ms: float) -> Mapping[str, float]:
        """Readings and forecasts per second, how many readings wait, and for how long the oldest has waited, s."""
        last = int(now)
        full = [each for each in self._seconds if last - WINDOW_S <= each[0] < last]
        oldest = min((waiting[0][1] for waiting in self._waiting.values() if waiting), default=None)
        return {
            "readings_per_s": sum(each[1] for each in full) / WINDOW_S,
            "forecasts_per_s": sum(each[2] for each in full) / WINDOW_S,
            "waiting": sum(map(len, self._waiting.values())),
            "waiting_s": max(0.0, (wall_ms - oldest) / 1000) if oldest is not None else 0.0,
            "readings": self.readings,
            "forecasts": self.forecasts,
        }

    def _count(self, now: float, kind: int) -> None:
        if not self._seconds or self._seconds[-1][0] != int(now):
            self._seconds.append([int(now), 0, 0])
        self._seconds[-1][kind] += 1
