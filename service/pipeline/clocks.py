"""A series whose clock was wrong: one reading far ahead makes all true ones late. N true readings end that.

A series is ahead where its newest reading jumped forward by more than the gap limit, to more than the gap limit after
the time of its own record. Later readings contradict it if they
  - are late by more than the gap limit, but after the newest reading before the jump,
  - are at most the gap limit away from the times of their own records,
  - follow one another within the gap limit, with no reading between them that was answered.
At the N-th of these the series starts again, from the initial state. Old readings that are sent again are not taken for
that: they are far from the times of their records, or their series is not ahead. What counts is a function of the
records alone, except where a record has no timestamp; it is kept with the state, so no crash changes it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tidecast.service.pipeline.batch import BatchWork
from tidecast.service.pipeline.policy import Policy
from tidecast.service.pipeline.waves import first_of_series
from tidecast.service.state.record import AheadClock
from tidecast.service.state.store import SeriesStore
from tidecast.service.timestamps import NEVER

Int64 = NDArray[np.int64]
Mask = NDArray[np.bool_]

_LIMIT_WITHOUT_STEP_MS = 3_600_000  # the gap limit of a model whose readings have no fixed step


class ClockRecovery:
    """Finds the readings at which series start again. For one pipeline.

    `limit`: the gap limit, ms. No reading that is late by less starts a series again.
    """

    def __init__(self, store: SeriesStore, policy: Policy, step_ms: int) -> None:
        self._store, self._needed, self._dated = store, policy.late_recovery_readings, policy.records_are_dated
        self.limit = (policy.max_gap_steps + 1) * step_ms or _LIMIT_WITHOUT_STEP_MS

    def find(self, work: BatchWork, records: Int64, slots: Int64, ts: Int64, previous: Int64) -> Mask | None:
        """[readings] True where a series starts again; None = nowhere, as nearly always.

        Args:
            work: the batch.
            records: [readings] rows of the batch, sorted by series, and within a series in the order of arrival.
            slots: [readings].
            ts: [readings] ms.
            previous: [readings] ms, see `newest_before`; changed where a series starts again, and after that.
        """
        ahead, limit = self._store.ahead, self.limit
        if not self._needed or (not ahead and self._dated and work.furthest_ahead <= limit):
            return None
        # What is not dated counts as arrived at its own time, so only the jump tells.
        lead = ts - work.arrived_at[records] if self._dated else np.zeros_like(ts)
        walk = (ts - previous > limit) & ((lead > limit) if self._dated else (previous > NEVER))
        if ahead:
            known = np.fromiter(map(ahead.__contains__, slots.tolist()), dtype=np.bool_, count=len(slots))
            in_time = (ts > previous) & (lead <= limit) & self._dated
            walk |= known & ((previous - ts > limit) | in_time)
        if not walk.any():
            return None
        again = np.zeros(len(ts), dtype=np.bool_)
        starts = np.append(np.flatnonzero(first_of_series(slots)), len(ts))
        for series in np.unique(np.searchsorted(starts, np.flatnonzero(walk), side="right") - 1).tolist():
            rows = slice(int(starts[series]), int(starts[series + 1]))
            columns = ts[rows], lead[rows], work.offsets[records[rows]]
            self._walk(int(slots[rows.start]), *columns, previous[rows], again[rows])
        return again if again.any() else None

    def _walk(self, slot: int, ts: Int64, lead: Int64, offsets: Int64, previous: Int64, again: Mask) -> None:
        """The readings of one series, one after the other; writes `previous` and `again`."""
        store, limit = self._store, self.limit
        clock, newest, answered = store.ahead.pop(slot, None), int(previous[0]), int(store.offsets[slot])
        for row, (t, early, offset) in enumerate(zip(ts.tolist(), lead.tolist(), offsets.tolist(), strict=True)):
            previous[row] = newest
            if t > newest:
                if t - newest > limit and ((early > limit) if self._dated else (newest > NEVER)):
                    clock = clock or AheadClock(before=newest)
                elif early <= limit and self._dated:
                    clock = None
                newest, answered = t, offset
            elif clock and newest - t > limit and t > clock.before and abs(early) <= limit and offset > clock.offset:
                running = clock.late if clock.offset > answered else 0
                if running and -limit <= t - clock.late_ts <= 0:
                    continue  # out of order among the true readings, or sent twice
                follows = running and t - clock.late_ts <= limit and t > clock.late_ts
                clock = clock._replace(late=running + 1 if follows else 1, late_ts=t, offset=offset)
                if clock.late >= self._needed:
                    again[row], previous[row] = True, NEVER
                    clock, newest, answered = None, t, offset
        if clock is not None:
            store.ahead[slot] = clock
