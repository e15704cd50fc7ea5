"""From records to series: a batch cut into stretches of readings, each with the slot of its series.

Between two stretches, series are forgotten: by a tombstone, after their time to live, or to make room for others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tidecast.service.pipeline.batch import Work
from tidecast.service.pipeline.policy import Fate, Policy
from tidecast.service.pipeline.waves import MAX_SERIES
from tidecast.service.state.store import SeriesTable

Int64 = NDArray[np.int64]

# A stretch is held in memory as steps, so it has an end even where a batch has none (a replay of a file).
_MAX_STRETCH = min(100_000, MAX_SERIES)


@dataclass(slots=True)
class Stretch:
    """Readings between which no series is forgotten, so that their waves may run in any order across series."""

    records: Int64  # [readings] rows of the batch
    slots: Int64  # [readings]


def stretches(table: SeriesTable, policy: Policy, work: Work) -> Iterator[Stretch]:
    """Find each reading's slot, and forget series where their time has come, between stretches: nearly always one.

    Where the batch has no tombstone, all its series have room, and none has been idle for long, nothing can be
    forgotten, and all is done by columns.
    """
    if np.count_nonzero(work.fate):
        records = ((work.fate != Fate.DEAD) & (work.fate != Fate.APPLIED)).nonzero()[0]
        slots, arrived = work.slots[records], work.arrived[records]
    else:  # so are nearly all batches
        records, slots, arrived = np.arange(len(work.fate)), work.slots, work.arrived
    new = (slots < 0).nonzero()[0]
    firsts: dict[bytes, int] = {}  # key of a new series -> its first record
    for record in records[new].tolist():
        firsts.setdefault(work.batch.keys[record], record)
    if (
        (work.readings.tombstones and (work.fate[records] == Fate.TOMBSTONE).any())
        or len(table) + len(firsts) > table.max_series
        or _may_expire(table, policy.series_ttl_ms, slots, arrived)
    ):
        yield from _walk(table, policy.series_ttl_ms, work, records)
        return
    if len(new):
        table.add_all(list(firsts), [work.batch.partitions[record] for record in firsts.values()])
        slots = slots.copy()
        slots[new] = table.find_all([work.batch.keys[record] for record in records[new].tolist()])
    table.touch(slots)
    table.seen_ms[slots] = arrived
    for start in range(0, len(records), _MAX_STRETCH):
        part = slice(start, start + _MAX_STRETCH)
        yield Stretch(records[part], slots[part])


def _may_expire(table: SeriesTable, ttl: int, slots: Int64, arrived: Int64) -> bool:
    """Could some series have been idle for too long before one of these readings? Rather once too often."""
    if ttl <= 0 or not len(slots):
        return False
    known = slots >= 0
    idle = (arrived - table.seen_ms[slots])[known]
    new = arrived[~known]
    # Between two readings of one series lies no more than between any two here.
    return bool(idle.max(initial=0) - idle.min(initial=0) > ttl or (len(new) and int(new.max()) - int(new.min()) > ttl))


def _walk(table: SeriesTable, ttl: int, work: Work, live: Int64) -> Iterator[Stretch]:
    """As `stretches`, where series are to be forgotten on the way: record by record.

    A series with readings in the pending stretch may only be forgotten after these have been stepped.
    """
    counts = work.counts
    batch, fates, arrived = work.batch, work.fate.tolist(), work.arrived.tolist()
    records: list[int] = []
    slots: list[int] = []
    pending: dict[int, int] = {}  # slot -> ms, when it was last seen

    def finish() -> Iterator[Stretch]:
        if records:
            table.seen_ms[list(pending)] = list(pending.values())
            yield Stretch(np.array(records, dtype=np.int64), np.array(slots, dtype=np.int64))
            records.clear()
            slots.clear()
            pending.clear()

    for record in live.tolist():
        key = batch.keys[record]
        assert key is not None
        slot = table.find(key)
        if slot is not None:
            reason = "tombstone" if fates[record] == Fate.TOMBSTONE else None
            if ttl > 0 and arrived[record] - pending.get(slot, int(table.seen_ms[slot])) > ttl:
                reason = reason or "expired"
            if reason is not None:
                if slot in pending:
                    yield from finish()
                table.forget(key)
                counts.resets[reason] += 1
                slot = None
        if fates[record] == Fate.TOMBSTONE:
            continue
        if slot is not None:
            table.touch_one(slot)
        else:
            if table.full:
                if table.find(table.oldest()) in pending:
                    yield from finish()
                table.forget(table.oldest())
                counts.resets["evicted"] += 1
            slot = table.add(key, batch.partitions[record])
        records.append(record)
        slots.append(slot)
        pending[slot] = arrived[record]
        if len(records) >= _MAX_STRETCH:
            yield from finish()
    yield from finish()
