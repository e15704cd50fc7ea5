"""What the worker should have done, worked out from the input topic alone: one series, one step, one after the other.

Knows the contract (design.md) and nothing of the worker: the event-time rules are written down once more, as simply
as they can be. Gaps are refused rather than filled: the chaos tests send readings on the grid, without holes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from service.model import Model

Place = tuple[int, int]  # partition, offset


@dataclass(frozen=True, slots=True)
class Record:
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes]

    @property
    def place(self) -> Place:
        return self.partition, self.offset


class Fate(Enum):
    FORECAST = "a forecast"
    DEAD = "a dead letter"
    NOTHING = "nothing"  # late, or a duplicate


@dataclass(slots=True)
class Series:
    """What of one series was stepped; the lists are parallel."""

    partition: int
    offsets: list[int] = field(default_factory=list)
    ts: list[int] = field(default_factory=list)  # ms
    x: list[list[float]] = field(default_factory=list)  # [steps][features], NaN = missing
    row: int = 0  # of its first step in the arrays of LinearRun


class LinearRun:
    """The model over the whole input, in the order of its offsets.

    Attributes:
        fates: what should become of each record.
        series: key -> its steps.
        rows: partition and offset of a reading -> its row in the arrays below.
        y: [readings, horizon, targets, quantiles].
        score: [readings, diagnostics].
        states: [readings, state], after each step.
        steps: [readings], how many steps the series had then, this one counted.

    Raises:
        ValueError: a series has a gap, or lies in two partitions.
    """

    def __init__(self, model: Model, readings: Sequence[Record]) -> None:
        self.fates: dict[Place, Fate] = {}
        self.series: dict[bytes, Series] = {}
        self._features, self._step_ms = model.spec.features, model.spec.step_ms
        for record in sorted(readings, key=lambda r: r.place):
            self.fates[record.place] = self._take(record)
        self.rows: dict[Place, int] = {}
        for one in self.series.values():
            one.row = len(self.rows)
            for i, offset in enumerate(one.offsets):
                self.rows[one.partition, offset] = one.row + i
        self._run(model)

    def _take(self, record: Record) -> Fate:
        parsed = self._parse(record)
        if parsed is None or not record.key:
            return Fate.DEAD
        ts, x = parsed
        one = self.series.setdefault(record.key, Series(record.partition))
        where = f"{record.key!r} at {record.partition}-{record.offset}"
        if one.partition != record.partition:
            raise ValueError(f"{where}: the series was in partition {one.partition} before")
        if one.ts and ts <= one.ts[-1]:
            return Fate.NOTHING
        if one.ts and ts - one.ts[-1] != self._step_ms:
            raise ValueError(f"{where}: {ts - one.ts[-1]} ms after the reading before; the verifier knows no gaps")
        one.offsets.append(record.offset)
        one.ts.append(ts)
        one.x.append(x)
        return Fate.FORECAST

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

    def _run(self, model: Model) -> None:
        """Step k of all series in one call: rows of a batch do not know of each other."""
        spec, n = model.spec, len(self.rows)
        self.y = np.empty((n, spec.horizon, len(spec.targets), len(spec.quantiles)), np.float32)
        self.score = np.empty((n, len(spec.diagnostics)), np.float32)
        self.states = np.empty((n, spec.state_size), np.float32)
        self.steps = np.empty(n, np.int64)
        ordered = sorted(self.series.values(), key=lambda s: -len(s.ts))
        state = np.repeat(model.initial_state[np.newaxis], len(ordered), axis=0)
        for k in range(max((len(s.ts) for s in ordered), default=0)):
            while len(ordered[-1].ts) <= k:
                ordered.pop()
            x = np.array([s.x[k] for s in ordered], np.float32)
            ts = np.array([s.ts[k] for s in ordered], np.int64)
            rows = np.array([s.row + k for s in ordered])
            self.y[rows], state, self.score[rows] = model.step(x, ts, state[: len(ordered)])
            self.states[rows], self.steps[rows] = state, k + 1
