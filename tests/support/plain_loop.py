"""What the pipeline does with records, as one plain loop over them: for tests of the pipeline by hypothesis."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field

from hypothesis import strategies as st

from tests.support.models import POISON_FORECAST, POISON_STATE, STEP_MS, CountingReference
from tests.support.streams import WARMUP, Sent
from tidecast.service.pipeline.policy import Policy
from tidecast.service.timestamps import NEVER


@dataclass
class Known:
    """One series as the plain loop knows it."""

    model: CountingReference = field(default_factory=CountingReference)
    last: int | None = None
    steps: int = 0
    seen: int = 0
    before: int | None = None  # its newest reading before it was ahead of its record
    true: list[int] = field(default_factory=list)  # times of the readings in a row that contradict it
    true_at: int = -1  # the record of the last of them: another reading of the same record counts for nothing
    answered_at: int = -1  # the record of the last reading answered
    groups: list[tuple[int, dict[str, float]]] = field(default_factory=list)  # parts that wait to be joined


class PlainLoop:
    """The table "what happens" once more, one record at a time, without arrays."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.series: OrderedDict[bytes, Known] = OrderedDict()
        self.at = 0  # which record this is

    def process(self, sent: Sent) -> tuple[str, object]:
        """The record's fate, and the forecast if it has one."""
        self.at += 1
        known = self.meet(sent)
        return self.answer(known, sent) if isinstance(known, Known) else known

    def meet(self, sent: Sent) -> Known | tuple[str, object]:
        """The reading's series, seen just now; or the record's fate where it is no reading."""
        policy = self.policy
        if not sent.key:
            return "dead", "missing_key" if sent.key is None else "bad_key"
        known = self.series.get(sent.key)
        if sent.value is None:
            self.series.pop(sent.key, None)
            return "tombstone", None
        if sent.x is None:
            return "dead", "not_json"
        if policy.series_ttl_ms and known and sent.timestamp - known.seen > policy.series_ttl_ms:
            known = None
            del self.series[sent.key]
        if known is None:
            if len(self.series) >= policy.max_series:
                self.series.popitem(last=False)
            known = self.series[sent.key] = Known()
        self.series.move_to_end(sent.key)
        known.seen = sent.timestamp
        return known

    def answer(self, known: Known, sent: Sent) -> tuple[str, object]:
        """The reading's fate, and the forecast if it has one."""
        policy = self.policy
        if known.last is not None and sent.ts <= known.last:
            if not self._contradicts(known, sent):
                return ("duplicate", None) if sent.ts == known.last else ("late", None)
            known.model, known.steps, known.last = CountingReference(), 0, None
            known.before, known.true_at = None, -1
        else:
            limit = (policy.max_gap_steps + 1) * STEP_MS
            last = NEVER if known.last is None else known.last
            if sent.ts - sent.timestamp <= limit:
                known.before, known.true_at = None, -1
            elif sent.ts - last > limit and known.before is None:
                known.before = last
        known.true, known.answered_at = [], self.at
        gap = max(math.floor((sent.ts - known.last) / STEP_MS + 0.5) - 1, 0) if known.last is not None else 0
        if gap > policy.max_gap_steps:
            known.model, known.steps, gap = CountingReference(), 0, 0
        for i in range(gap):
            assert known.last is not None
            known.model.step((math.nan, math.nan), known.last + (i + 1) * STEP_MS)
            known.steps += 1
        known.last = sent.ts
        if sent.x[0] in (POISON_STATE, POISON_FORECAST):
            known.model, known.steps = CountingReference(), 0
            return "dead", "non_finite_state"
        y = known.model.step(sent.x, sent.ts)
        known.steps += 1
        return "forecast", (y, known.steps >= WARMUP)

    def _contradicts(self, known: Known, sent: Sent) -> bool:
        """The last of so many readings in a row after which a series whose clock was ahead starts again."""
        assert known.last is not None
        limit, true = (self.policy.max_gap_steps + 1) * STEP_MS, known.true
        if not self.policy.late_recovery_readings or known.before is None or sent.ts <= known.before:
            return False
        if known.last - sent.ts <= limit or abs(sent.ts - sent.timestamp) > limit:
            return False
        if known.true_at == self.at:
            return False
        if known.true_at <= known.answered_at:
            true.clear()
        if true and not true[-1] - limit <= sent.ts <= true[-1] + limit:
            true.clear()
        if not true or sent.ts > true[-1]:
            true.append(sent.ts)
            known.true_at = self.at
        return len(true) >= self.policy.late_recovery_readings


policies = st.builds(
    Policy,
    max_gap_steps=st.sampled_from([0, 1, 3, 24]),
    max_series=st.sampled_from([1, 2, 3, 1000]),
    series_ttl_ms=st.sampled_from([0, 0, 30_000, 100_000]),
    max_future_ms=st.just(0),
    late_recovery_readings=st.sampled_from([0, 1, 2, 5]),
)
