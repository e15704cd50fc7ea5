"""The newest readings and forecasts of each series, within a memory limit."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from tidecast.service.watch.health import SeriesHealth
from tidecast.service.watch.judging import judge
from tidecast.service.watch.messages import Forecast, Measurement


def words_of(text: str) -> list[str]:
    """What a search or a filter looks for."""
    return text.casefold().split()


def holds(folded: str, words: list[str]) -> bool:
    """Whether a name, in `casefold`, holds all of the words, in any order."""
    return all(word in folded for word in words)


@dataclass(slots=True)
class SeriesHistory:
    """One series, oldest first. The totals only grow, so a viewer knows what it has not been sent yet."""

    name: str
    epoch: int  # changes when what was sent before is no longer valid
    readings: deque[Measurement] = field(default_factory=deque)
    forecasts: deque[Forecast] = field(default_factory=deque)
    readings_total: int = 0
    forecasts_total: int = 0
    arrived: float = 0.0  # the caller's clock
    health: SeriesHealth = field(default_factory=SeriesHealth)

    @property
    def warm(self) -> bool:
        """Whether its newest forecast can be trusted."""
        return bool(self.forecasts) and self.forecasts[-1].warm


class Store:
    """All known series. Every method may be called from any thread.

    Args:
        max_series: beyond that the least recently updated is evicted.
        points: most readings, and most forecasts, kept of a series.
        max_bytes: approximate limit for all of them together. Beyond it the number kept of each series is halved.
    """

    def __init__(self, *, max_series: int, points: int, max_bytes: int) -> None:
        self._max_series, self._points, self._max_bytes = max_series, points, max_bytes
        self._series: OrderedDict[str, SeriesHistory] = OrderedDict()
        self._lock = threading.RLock()
        self._epochs = 0
        self.bytes = 0

    @property
    def lock(self) -> threading.RLock:
        """Hold it while you read a series that `get` returned."""
        return self._lock

    @property
    def points(self) -> int:
        """How many readings of a series are kept at present."""
        return self._points

    def __len__(self) -> int:
        return len(self._series)

    def get(self, name: str) -> SeriesHistory | None:
        """One series; read it under `lock`."""
        return self._series.get(name)

    def all(self) -> list[SeriesHistory]:
        """All series, the least recently updated first; read them under `lock`."""
        return list(self._series.values())

    def add_reading(self, name: str, reading: Measurement, now: float) -> bool:
        """Returns False where it is late or a duplicate: then no forecast will answer it."""
        with self._lock:
            one = self._of(name, now)
            if one.readings and reading.ts <= one.readings[-1].ts:
                return False
            one.readings.append(reading)
            one.readings_total += 1
            self.bytes += reading.bytes
            self._trim(one)
            return True

    def add_forecast(self, name: str, forecast: Forecast, now: float) -> bool:
        """Returns False for a repeated one, which at-least-once delivery allows."""
        with self._lock:
            one = self._of(name, now)
            if one.forecasts and forecast.ts <= one.forecasts[-1].ts:
                if any(forecast.ts == other.ts for other in one.forecasts) or forecast.ts > one.forecasts[0].ts:
                    return False
                # A worker never answers readings older than the series' last: the series was restarted.
                self._clear(one)
            judge(one.health, one.readings, one.forecasts, forecast)
            one.forecasts.append(forecast)
            one.forecasts_total += 1
            self.bytes += forecast.bytes
            self._trim(one)
            return True

    def forget(self, name: str) -> None:
        """Drop a series, as its tombstone has arrived."""
        with self._lock:
            if (one := self._series.pop(name, None)) is not None:
                self._clear(one)

    def search(self, text: str, limit: int) -> tuple[int, list[str]]:
        """How many names contain all words of `text` in any case, and the first of them, by name.

        Names that start with the text come before the others.
        """
        wanted = text.casefold()
        words = words_of(text)
        with self._lock:
            names = list(self._series)
        found = [(name.casefold(), name) for name in names] if words else [("", name) for name in names]
        found = [pair for pair in found if holds(pair[0], words)]
        found.sort(key=lambda pair: (not pair[0].startswith(wanted), pair[0], pair[1]))
        return len(found), [name for _, name in found[:limit]]

    def _of(self, name: str, now: float) -> SeriesHistory:
        one = self._series.get(name)
        if one is None:
            self._epochs += 1
            one = self._series[name] = SeriesHistory(name, self._epochs)
            if len(self._series) > self._max_series:
                self._clear(self._series.popitem(last=False)[1])
        else:
            self._series.move_to_end(name)
        one.arrived = now
        return one

    def _clear(self, one: SeriesHistory) -> None:
        self.bytes -= sum(r.bytes for r in one.readings) + sum(f.bytes for f in one.forecasts)
        one.readings.clear()
        one.forecasts.clear()
        one.health = SeriesHealth()
        self._epochs += 1
        one.epoch = self._epochs

    def _trim(self, one: SeriesHistory) -> None:
        self._cut(one)
        while self.bytes > self._max_bytes and self._points > 1:
            self._points //= 2
            for other in self._series.values():
                self._cut(other)
        while self.bytes > self._max_bytes and len(self._series) > 1:
            self._clear(self._series.popitem(last=False)[1])

    def _cut(self, one: SeriesHistory) -> None:
        while len(one.readings) > self._points:
            self.bytes -= one.readings.popleft().bytes
        while len(one.forecasts) > self._points:
            self.bytes -= one.forecasts.popleft().bytes
