"""Decodes records of both topics into what the page needs. A record that cannot be decoded is None, never an error."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

from tidecast.service.input.mapping import MappedBatch
from tidecast.service.input.rejected import RecordRejected, check_key
from tidecast.service.timestamps import MAX_TS_MS, MIN_TS_MS, parse_time

MAX_FIELDS = 64  # of one reading; more are not shown
MAX_NUMBERS = 20_000  # of one forecast: horizon * targets * quantiles; a larger one is not shown
_NAN = math.nan
_DECODE_ERRORS = (msgspec.DecodeError, ValueError, TypeError, KeyError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured at `ts`."""

    ts: int  # ms
    names: tuple[str, ...]
    values: array[float]  # [names], NaN = missing

    def value(self, name: str) -> float:
        """One field; NaN where there is none."""
        return self.values[self.names.index(name)] if name in self.names else _NAN

    @property
    def bytes(self) -> int:
        """Approximate memory use, bytes."""
        return 200 + 8 * len(self.values)


@dataclass(frozen=True, slots=True)
class Shape:
    """What all forecasts of a model share. At most five quantiles are kept: two intervals and the middle."""

    model: str
    step_ms: int  # 0 = irregular
    targets: tuple[str, ...]
    quantiles: tuple[str, ...]  # ascending
    horizon: int

    @property
    def middle(self) -> int:
        """Index of the quantile that is nearest to the median."""
        return min(range(len(self.quantiles)), key=lambda i: abs(quantile_percent(self.quantiles[i]) - 50))

    @property
    def level(self) -> float:
        """Nominal coverage of the widest interval, such as 0.9; 0 where there is only one quantile."""
        return round((quantile_percent(self.quantiles[-1]) - quantile_percent(self.quantiles[0])) / 100, 6)


@dataclass(frozen=True, slots=True)
class Forecast:
    """A forecast made from the reading at `ts`."""

    ts: int
    warm: bool
    shape: Shape
    values: array[float]  # [targets * quantiles * horizon]
    scored: tuple[str, ...]  # names of its scores
    scores: array[float]  # [scored]

    def quantile(self, target: int, quantile: int) -> array[float]:
        """[horizon] of one target and quantile."""
        begin = (target * len(self.shape.quantiles) + quantile) * self.shape.horizon
        return self.values[begin : begin + self.shape.horizon]

    def at(self, target: int, quantile: int, ahead: int) -> float:
        """One number, `ahead` steps ahead (from 1)."""
        return self.values[(target * len(self.shape.quantiles) + quantile) * self.shape.horizon + ahead - 1]

    @property
    def bytes(self) -> int:
        """Approximate memory use, bytes."""
        return 300 + 4 * len(self.values) + 8 * len(self.scores)


class _ForecastRecord(msgspec.Struct):
    ts: int
    step_ms: int = 0
    model: str = ""
    warm: bool = True
    source: str = ""
    targets: dict[str, dict[str, list[float]]] = {}
    score: dict[str, float | None] = {}


_decode_reading = msgspec.json.Decoder().decode
_decode_forecast = msgspec.json.Decoder(_ForecastRecord).decode


def series_name(key: bytes | None) -> str | None:
    """The series of a record; None where its key is not a series name."""
    try:
        check_key(key)
    except RecordRejected:
        return None
    return key.decode() if key is not None else None


def decode_measurement(value: bytes) -> Measurement | None:
    """A record of the input topic."""
    try:
        found = _decode_reading(value)
        ts = parse_time(found["ts"])
        names = tuple(name for name, v in found.items() if name != "ts" and (v is None or _is_number(v)))[:MAX_FIELDS]
        values = array("d", [_or_nan(found[name]) for name in names])
    except (*_DECODE_ERRORS, AttributeError):
        return None
    return Measurement(ts, _interned(names), values)


def mapped_measurements(mapped: MappedBatch) -> list[Measurement | None]:
    """[rows] what an [input] table makes of records of the input topic; None for what is refused."""
    readings, found = mapped.readings, []
    refused = {*readings.rejected, *readings.tombstones}
    for row, (ts, values) in enumerate(zip(readings.ts.tolist(), readings.x, strict=True)):
        there = np.flatnonzero(~np.isnan(values))[:MAX_FIELDS]
        names = _interned(tuple(mapped.features[column] for column in there.tolist()))
        one = Measurement(ts, names, array("d", values[there].tolist()))
        found.append(None if row in refused else one)
    return found


def decode_forecast(value: bytes) -> tuple[Forecast, str] | None:
    """A record of the output topic, and the source of the reading that it answers, `topic-partition-offset`.

    Also None for a record of a classifier, which forecasts no number.
    """
    try:
        made = _decode_forecast(value)
        if not MIN_TS_MS <= made.ts <= MAX_TS_MS or made.step_ms < 0 or not made.targets:
            return None
        first = next(iter(made.targets.values()))
        names = _drawn_quantiles(tuple(first))
        horizon = len(first[names[0]])
        shape = _shape(made.model, made.step_ms, tuple(made.targets), names, horizon)
        values = array("f")
        for quantiles in made.targets.values():
            for name in names:
                values.extend(quantiles[name])
    except (*_DECODE_ERRORS, IndexError):
        return None
    if not 1 <= len(values) <= MAX_NUMBERS or len(values) != horizon * len(names) * len(shape.targets):
        return None
    scored = _interned(tuple(made.score)[: MAX_FIELDS * 8])
    scores = array("d", [_or_nan(made.score[name]) for name in scored])
    return Forecast(made.ts, made.warm, shape, values, scored, scores), made.source


def answered_reading(source: str, topic: str) -> tuple[int, int] | None:
    """(partition, offset) of the reading with this source; None where it is of another topic."""
    name, _, rest = source.rpartition("-")
    name, _, partition = name.rpartition("-")
    if name != topic or not (rest.isdecimal() and partition.isdecimal()):
        return None
    return int(partition), int(rest)


def quantile_percent(quantile: str) -> float:
    """ "p97.5" -> 97.5.

    Raises:
        ValueError: it is not the name of a quantile.
    """
    if not quantile.startswith("p") or not 0 <= (found := float(quantile[1:])) <= 100:
        raise ValueError(quantile)
    return found


# Nearly all records have the same names: one copy is kept. Bounded, as writers to the topics are not trusted.
@lru_cache(maxsize=1024)
def _interned(names: tuple[str, ...]) -> tuple[str, ...]:
    return names


@lru_cache(maxsize=1024)
def _shape(model: str, step_ms: int, targets: tuple[str, ...], quantiles: tuple[str, ...], horizon: int) -> Shape:
    return Shape(model, step_ms, targets, quantiles, horizon)


@lru_cache(maxsize=1024)
def _drawn_quantiles(names: tuple[str, ...]) -> tuple[str, ...]:
    """The outermost two, the two nearest to the quartiles, and the middle, ascending."""
    ordered = sorted(names, key=quantile_percent)
    near = [min(ordered, key=lambda name, to=to: abs(quantile_percent(name) - to)) for to in (25.0, 50.0, 75.0)]  # type: ignore[misc]
    return tuple(sorted({ordered[0], ordered[-1], *near}, key=quantile_percent))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _or_nan(value: Any) -> Any:
    return _NAN if value is None else value
