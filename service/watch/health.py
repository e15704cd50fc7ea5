"""What needs attention: a series that leaves its forecasts, repeats itself, or stops.

A surprise is a reading's distance from the median of its forecast, in half-widths of the interval. Running means of
surprises over about `MEMORY` readings are compared with limits, which `benchmarks/fleet.py` measures: a level that
moves shows at the longest number of steps ahead, before the forecasts have followed it; another noise at the shortest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite, nan
from typing import NamedTuple

WINDOW = 16  # readings that are counted; fewer are not judged
MEMORY = 8  # readings, of running means
LARGEST = 2.0  # a larger surprise counts as this in them: one reading is no trend
MOVED = 1.7  # mean with its sign, at the longest number of steps ahead
MOVED_NEXT = 0.75  # the same where the model scores one number of steps ahead alone
ERRATIC_SIZE = 1.0  # mean without its sign, at the shortest; where all have one sign, the level has moved
SPIKE_SIZE = 5.0  # of one reading, at the shortest
STUCK_TIMES, STUCK_RATIO = 16, 3  # equal readings in a row; and so many times as many as ever before
HIGHER, LOWER, ERRATIC, SPIKE, UNUSUAL = "higher", "lower", "erratic", "spike", "unusual"
STUCK, SILENT = "stuck", "silent"
_SEEN = (1 << WINDOW) - 1


class Finding(NamedTuple):
    """Why a series needs attention."""

    kind: str  # higher, lower, erratic, spike, unusual, stuck or silent
    target: str
    since: int  # ms
    times: int  # readings that say so; of a silent series, steps without one
    of: int
    severity: float  # 0.5 at the limit, to 1
    ahead: int = 1  # steps, of the forecasts that it was compared with


@dataclass(slots=True)
class LeadHealth:
    """How the last readings of one target lay in the forecasts made for them so many steps before."""

    ahead: int
    above: int = 0  # a bit for each reading, the newest last: above the interval
    below: int = 0
    judged: int = 0
    signed: float = 0.0  # running means of surprises
    size: float = 0.0

    def judge(self, surprise: float, side: int) -> None:
        """One more reading; `side` of the median: 1 above, -1 below."""
        outside = surprise > 1
        self.above = (self.above << 1 | (outside and side > 0)) & _SEEN
        self.below = (self.below << 1 | (outside and side < 0)) & _SEEN
        self.judged += 1
        taken = min(surprise, LARGEST)
        self.signed += (side * taken - self.signed) / MEMORY
        self.size += (taken - self.size) / MEMORY


@dataclass(slots=True)
class TargetHealth:
    """One target: what its readings say, and whether that is a finding. A finding ends at half of its limit."""

    near: LeadHealth
    far: LeadHealth | None  # None = the model scores one number of steps ahead alone
    kind: str = ""
    since: int = 0  # ms
    spike_left: int = 0  # readings for which a spike is still shown
    alarm_left: int = 0  # likewise an alarm of the model's own anomaly score
    value: float = nan  # the last one
    times: int = 0  # in a row
    most_times: int = 0  # in a row, ever before
    equal_since: int = 0  # ms

    def judge(self, ts: int, step_ms: int, near: float, far: float, sides: tuple[int, int]) -> None:
        """One more reading: its surprises at both leads, NaN = not scored there, and its sides of their medians."""
        if isfinite(near):
            self.near.judge(near, sides[0])
            self.alarm_left = max(0, self.alarm_left - 1)
            self.spike_left = WINDOW if near >= SPIKE_SIZE else max(0, self.spike_left - 1)
        if self.far is not None and isfinite(far):
            self.far.judge(far, sides[1])
        if self.near.judged < WINDOW or (self.kind and self._ratio(self.kind) >= 0.5 and self.kind in (HIGHER, LOWER)):
            return
        found = next((kind for kind in (HIGHER, LOWER, ERRATIC, SPIKE, UNUSUAL) if self._ratio(kind) >= 1), "")
        if found:
            if not self.kind:
                bits = self._bits(found)
                self.since = ts - max(0, bits.bit_length() - 1) * step_ms
            self.kind = found
        elif self.kind and self._ratio(self.kind) < 0.5:
            self.kind = ""

    def alarm(self, ts: int) -> None:
        """The model's own anomaly score says alarm."""
        self.alarm_left = WINDOW + 1
        if not self.kind:
            self.kind, self.since = UNUSUAL, ts

    def repeat(self, value: float, ts: int) -> None:
        """One more reading; a missing value says nothing."""
        if not isfinite(value):
            return
        if value == self.value:
            self.times += 1
            return
        self.most_times = max(self.most_times, self.times)
        self.value, self.times, self.equal_since = value, 1, ts

    def finding(self, target: str) -> Finding | None:
        """What is the matter; None = nothing."""
        if self.most_times and self.times >= max(STUCK_TIMES, STUCK_RATIO * self.most_times):
            return Finding(STUCK, target, self.equal_since, self.times, self.times, 1 - 8 / self.times)
        if not self.kind:
            return None
        lead, at, limit = self._measure(self.kind)
        severity = 0.5 + 0.5 * (at - limit) / (LARGEST - limit) if limit < LARGEST else 0.5
        return Finding(self.kind, target, self.since, self._bits(self.kind).bit_count(), min(lead.judged, WINDOW),
                       min(max(severity, 0.0), 1.0), lead.ahead)  # fmt: skip

    def _bits(self, kind: str) -> int:
        """The readings that say so, a bit for each."""
        lead = self._measure(kind)[0]
        return {HIGHER: lead.above, LOWER: lead.below}.get(kind, lead.above | lead.below)

    def _ratio(self, kind: str) -> float:
        """How far it is, compared with its limit."""
        _, at, limit = self._measure(kind)
        return at / limit

    def _measure(self, kind: str) -> tuple[LeadHealth, float, float]:
        """What a kind of finding is measured by: where, how much, and its limit."""
        near, far = self.near, self.far
        if kind in (SPIKE, UNUSUAL):
            left = self.spike_left if kind == SPIKE else self.alarm_left
            return near, SPIKE_SIZE if left else 0.0, SPIKE_SIZE
        if kind == ERRATIC:
            return near, near.size, ERRATIC_SIZE
        side = 1 if kind == HIGHER else -1
        measured = [(near, side * near.signed, MOVED_NEXT if far is None else ERRATIC_SIZE)]
        if far is not None and far.judged >= MEMORY:
            measured.append((far, side * far.signed, MOVED))
        return max(measured, key=lambda one: one[1] / one[2])


@dataclass(slots=True)
class SeriesHealth:
    """Of all targets of a series."""

    targets: dict[str, TargetHealth] = field(default_factory=dict)

    def finding(self) -> Finding | None:
        """The most severe one."""
        found = [one.finding(target) for target, one in self.targets.items()]
        return max((one for one in found if one is not None), key=lambda one: one.severity, default=None)
