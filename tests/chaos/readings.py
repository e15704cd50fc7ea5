"""The input topic, read by its documented rules alone: which record is a reading, and of which series the next.

The event-time rules are written down here once more, as simply as they can be. Gaps are refused rather than filled:
the chaos tests send readings on the grid, without holes. Only a clock may be ahead, by more than the gap limit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from tidecast.service.config import settings
from tidecast.service.model.spec import ModelSpec

Place = tuple[int, int]  # partition, offset


@dataclass(frozen=True, slots=True)
class Record:
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes]
    timestamp: int = -1  # ms

    @property
    def place(self) -> Place:
        return self.partition, self.offset


class Fate(Enum):
    FORECAST = "a forecast"
    DEAD = "a dead letter"
    NOTHING = "nothing"  # late, or a duplicate


@dataclass(slots=True)
class Series:
    """What of one series is to be stepped; the lists are parallel."""

    key: bytes
    partition: int
    offsets: list[int] = field(default_factory=list)
    ts: list[int] = field(default_factory=list)  # ms
    x: list[list[float]] = field(default_factory=list)  # [steps][features], NaN = missing
    row: int = 0  # of its first step in the arrays of Readings
    restarts: list[int] = field(default_factory=list)  # readings, from 0, before which the state is the initial one
    before: int | None = None  # ms, its newest reading before its clock was ahead
    true: list[int] = field(default_factory=list)  # ms, the readings in a row that contradict it
    # late and duplicate readings: offset, ts, x
    passed: list[tuple[int, int, list[float]]] = field(default_factory=list)


class Readings:
    """All readings, in the order of their offsets within each series.

    Attributes:
        keys: of each record.
        fates: what should become of each record.
        series: key -> its steps.
        found: partition and offset of a reading -> its series, and its number there, from 0.
        x: [readings, features], all series one after the other.
        ts: [readings], ms.
        fresh: [readings], whether the state before it is the initial one.

    Raises:
        ValueError: a series has a gap, or lies in two partitions.
    """

    def __init__(self, spec: ModelSpec, records: Sequence[Record]) -> None:
        self.keys: dict[Place, bytes | None] = {record.place: record.key for record in records}
        self.fates: dict[Place, Fate] = {}
        self.series: dict[bytes, Series] = {}
        self._features, self._step_ms = spec.features, spec.step_ms
        self._slack = 0  # ms, how far a reading may be from its step
        self._limit = (settings.default("max_gap_steps") + 1) * spec.step_ms
        for record in sorted(records, key=lambda r: r.place):
            self.fates[record.place] = self._take(record)
        self.found: dict[Place, tuple[Series, int]] = {}
        for one in self.series.values():
            one.row = len(self.found)
            self.found |= {(one.partition, offset): (one, i) for i, offset in enumerate(one.offsets)}
        every = self.series.values()
        self.x = np.array([x for one in every for x in one.x], np.float32).reshape(-1, len(spec.features))
        self.ts = np.array([ts for one in every for ts in one.ts], np.int64)
        self.fresh = np.zeros(len(self.ts), np.bool_)
        self.fresh[[one.row + at for one in every for at in one.restarts]] = True

    def place(self, source: Place, ts: object) -> Place:
        """The reading that a forecast is of, by its record and its time."""
        return source

    def after(self, place: Place) -> tuple[Series, int] | None:
        """The series whose state is new after this record, and the number of its last reading, -1 = none yet."""
        return self.found.get(place)

    def waits(self, place: Place) -> object:
        """What of the series waits after this record, in the form of `states.waiting_of`."""
        return None

    def changes(self, one: Series) -> list[int]:
        """The offsets of the records after which its state is new."""
        return one.offsets

    def _take(self, record: Record) -> Fate:
        parsed = self._parse(record)
        if parsed is None or not record.key:
            return Fate.DEAD
        return self._put(record, *parsed)

    def _put(self, record: Record, ts: int, x: list[float]) -> Fate:
        """A reading of this record's."""
        assert record.key is not None
        one = self.series.setdefault(record.key, Series(record.key, record.partition))
        where = f"{record.key!r} at {record.partition}-{record.offset}"
        if one.partition != record.partition:
            raise ValueError(f"{where}: the series was in partition {one.partition} before")
        late = bool(one.ts) and ts <= one.ts[-1]
        if late and not self._contradicts(one, ts, record.timestamp):
            one.passed.append((record.offset, ts, x))
            return Fate.NOTHING
        ahead = bool(one.ts) and ts - one.ts[-1] > self._limit and ts - record.timestamp > self._limit
        one.true = []
        if late or ahead:
            one.restarts.append(len(one.ts))
            one.before = one.ts[-1] if ahead and one.before is None else one.before if ahead else None
        elif one.ts and abs(ts - one.ts[-1] - self._step_ms) > self._slack:
            raise ValueError(f"{where}: {ts - one.ts[-1]} ms after the reading before; the verifier knows no gaps")
        one.offsets.append(record.offset)
        one.ts.append(ts)
        one.x.append(x)
        return Fate.FORECAST

    def _contradicts(self, one: Series, ts: int, timestamp: int) -> bool:
        """Whether it is the last of the readings in a row after which a series whose clock was ahead starts again."""
        if one.before is None or ts <= one.before or one.ts[-1] - ts <= self._limit:
            return False
        if abs(ts - timestamp) > self._limit:
            return False
        if one.true and abs(ts - one.true[-1]) > self._limit:
            one.true = []
        if not one.true or ts > one.true[-1]:
            one.true.append(ts)
        return len(one.true) >= settings.default("late_recovery_readings")

    def _parse(self, record: Record) -> tuple[int, list[float]] | None:
        """Time and features, None where the record is no reading."""
        try:
            found = json.loads(record.value or b"")
        except ValueError:
            return None
        if not isinstance(found, dict) or type(found.get("ts")) is not int:
            return None
        values = [found.get(name) for name in self._features]
        if any(v is not None and type(v) not in (int, float) for v in values):
            return None
        return found["ts"], [np.nan if v is None else float(v) for v in values]
