"""A storm over readings that come in parts: one value in a record, some out of order, doubled, late or lost.

What the workers should make of them is worked out here once more, one part after the other, and then judged like any
readings. A record may close several readings, so each has a place of its own: its record's offset times `ROOM`, and
which of the record's readings it is.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tests.chaos.feed import BAD, DUPLICATE, LATE, MISSING, START_MS
from tests.chaos.readings import Fate, Place, Readings, Record, Series
from tests.chaos.storm import Storm
from tidecast.service.model.spec import ModelSpec

TOLERANCE_MS, DEADLINE_MS = 2_000, 120_000
TABLE = """
[input]
time = "at"
name = "metric"
value = "reading"
join = { tolerance = "2s", deadline = "2min" }
"""
ROOM = 128
NO_PARTS = (
    *(b"{", b"\xff\xfe", b"\0\0\0\0\1x"),
    b'{"at": "soon", "metric": "value", "reading": 1}',
    b'{"metric": "value", "reading": 1}',
    b'{"at": 1700000000000, "metric": "value", "reading": "much"}',
)
LOST, HELD = 30, 15  # one part in so many never comes; comes after the next reading's


def parts(spec: ModelSpec, series: int, seed: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of records, without end: each series sends a part in its turn. One in `BAD` is none."""
    rng = random.Random(seed)
    names = [f"series-{i}" for i in range(series)]
    base = rng.randrange(1_000) * 86_400_000 + START_MS - 1_000 * 86_400_000

    def part(feature: str, at: int) -> bytes:
        value = None if rng.randrange(MISSING) == 0 else rng.randrange(100)
        return json.dumps({"at": base + at, "metric": feature, "reading": value}).encode()

    def one() -> Iterator[bytes]:
        """The parts of one series."""
        step, held = 0, []
        while True:
            features = rng.sample(spec.features, len(spec.features))
            if rng.randrange(LOST) == 0:
                features.pop()
            now = []
            for feature in features:
                at = step * spec.step_ms + rng.randrange(TOLERANCE_MS - 500)
                now.append(part(feature, at))
                if rng.randrange(DUPLICATE) == 0:
                    now.append(part(feature, at))  # with another value
            later = [now.pop()] if len(now) > 1 and rng.randrange(HELD) == 0 else []
            yield from now
            yield from held
            held = later
            if step and rng.randrange(LATE) == 0:
                yield part(rng.choice(spec.features), rng.randrange(step) * spec.step_ms)
            if rng.randrange(BAD) == 0:
                yield rng.choice(NO_PARTS)
            step += 1

    all_of_them = {name: one() for name in names}
    while True:
        rng.shuffle(names)
        for name in names:
            yield name.encode(), next(all_of_them[name])


@dataclass(slots=True)
class _Waiting:
    """Of one series."""

    groups: list[tuple[int, dict[str, float]]] = field(default_factory=list)  # ms of the first part, values
    newest: int | None = None  # ms, of the last reading answered
    offsets: list[int] = field(default_factory=list)  # of the parts that were taken


class JoinedReadings(Readings):
    """The readings that the parts make."""

    def __init__(self, spec: ModelSpec, records: Sequence[Record]) -> None:
        self._waiting: dict[bytes, _Waiting] = {}
        self._places: dict[tuple[Place, object], Place] = {}
        self._after: dict[Place, tuple[bytes, int, list[tuple[int, str]] | None]] = {}
        super().__init__(spec, records)

    def _take(self, record: Record) -> Fate:
        self._slack = TOLERANCE_MS
        parsed = self._part(record)
        if parsed is None or not record.key:
            return Fate.DEAD
        ts, name, value = parsed
        one = self._waiting.setdefault(record.key, _Waiting())
        if one.newest is not None and ts <= one.newest + TOLERANCE_MS:
            return Fate.NOTHING
        near = [group for group in one.groups if abs(group[0] - ts) <= TOLERANCE_MS]
        if near:
            group = min(near, key=lambda each: abs(each[0] - ts))
        else:
            group = (ts, {})
            one.groups = sorted([*one.groups, group], key=lambda each: each[0])
        if name in group[1]:
            return Fate.NOTHING
        group[1][name] = value
        whole = len(group[1]) == len(self._features)
        due = [(whole and each is group) or ts - each[0] >= DEADLINE_MS for each in one.groups]
        count = max((nth for nth, is_due in enumerate(due, start=1) if is_due), default=0)
        for nth, (at, values) in enumerate(one.groups[:count]):
            reading = replace(record, offset=record.offset * ROOM + nth)
            self.keys[reading.place] = record.key
            self._places[record.place, at] = reading.place
            self._put(reading, at, [values.get(each, np.nan) for each in self._features])
            one.newest = at
        del one.groups[:count]
        one.offsets.append(record.offset)
        answered = len(self.series[record.key].ts) if record.key in self.series else 0
        waits = [(at, repr(values)) for at, values in one.groups] or None
        self._after[record.place] = record.key, answered - 1, waits
        return Fate.NOTHING

    def _part(self, record: Record) -> tuple[int, str, float] | None:
        try:
            found = json.loads(record.value or b"")
            at, value = found["at"], found["reading"]
            return (at, found["metric"], np.nan if value is None else float(value)) if type(at) is int else None
        except (ValueError, KeyError, TypeError):
            return None

    def place(self, source: Place, ts: object) -> Place:
        return self._places.get((source, ts), source)

    def after(self, place: Place) -> tuple[Series, int] | None:
        if place not in self._after:
            return None
        key, answered, _ = self._after[place]
        one = self.series.get(key) or Series(key, place[0])
        return one, answered

    def waits(self, place: Place) -> object:
        return self._after[place][2]

    def changes(self, one: Series) -> list[int]:
        return self._waiting[one.key].offsets


class JoinStorm(Storm):
    """The workers join the parts."""

    _read = JoinedReadings

    def _flags(self) -> list[str]:
        table = self.folder / "input.toml"
        table.write_text(TABLE)
        return [*super()._flags(), f"--input={table}"]

    def _feed(self) -> None:
        s = self.scenario
        self.feed_too(parts(self.models[0].spec, s.series, s.seed), s.rate)
