"""From records to series: splits a batch into segments of readings and finds the slot of each reading's series.

Between two segments series are removed: by a tombstone, after their time to live, or to make room for others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tidecast.service.pipeline.batch import BatchWork
from tidecast.service.pipeline.policy import Outcome
from tidecast.service.pipeline.waves import MAX_SERIES
from tidecast.service.state.store import SeriesStore

Int64 = NDArray[np.int64]

# All steps of a segment are in memory together, so its size is limited, also where a batch is huge (file replay).
MAX_SEGMENT = min(100_000, MAX_SERIES)


@dataclass(slots=True)
class Segment:
    """Readings between which no series is removed, so their steps may run in any order across series."""

    records: Int64  # [readings] rows of the batch
    slots: Int64  # [readings]


def split_into_segments(store: SeriesStore, ttl_ms: int, work: BatchWork) -> Iterator[Segment]:
    """Find each reading's slot, and remove series between segments. Nearly always there is one segment.

    Where the batch has no tombstone, there is room for all its series, and none of them can have expired, no series is
    removed, and whole columns are handled at once. `ttl_ms`: time to live, 0 = never.
    """
    if np.count_nonzero(work.outcome):
        records = ((work.outcome != Outcome.DEAD) & (work.outcome != Outcome.APPLIED)).nonzero()[0]
        slots, arrived = work.slots[records], work.arrived[records]
    else:  # nearly all batches
        records, slots, arrived = np.arange(len(work.outcome)), work.slots, work.arrived
    new = (slots < 0).nonzero()[0]
    firsts: dict[bytes, int] = {}  # key of a new series -> its first record
    for record in records[new].tolist():
        firsts.setdefault(work.batch.keys[record], record)
    if (
        (work.readings.tombstones and (work.outcome[records] == Outcome.TOMBSTONE).any())
        or len(store) + len(firsts) > store.max_series
        or _may_expire(store, ttl_ms, slots, arrived)
    ):
        yield from _walk(store, ttl_ms, work, records)
        return
    if len(new):
        store.add_all(list(firsts), [work.batch.partitions[record] for record in firsts.values()])
        slots = slots.copy()
        slots[new] = store.find_all([work.batch.keys[record] for record in records[new].tolist()])
    store.mark_seen(slots)
    store.seen_ms[slots] = arrived
    for start in range(0, len(records), MAX_SEGMENT):
        part = slice(start, start + MAX_SEGMENT)
        yield Segment(records[part], slots[part])


def _may_expire(store: SeriesStore, ttl_ms: int, slots: Int64, arrived: Int64) -> bool:
    """Whether a series may have expired before one of these readings: never False where one has."""
    if ttl_ms <= 0 or not len(slots):
        return False
    known = slots >= 0
    idle = (arrived - store.seen_ms[slots])[known]
    new = arrived[~known]
    # Two readings of one series are at most as far apart as any two readings here.
    return bool(
        idle.max(initial=0) - idle.min(initial=0) > ttl_ms or (len(new) and int(new.max()) - int(new.min()) > ttl_ms)
    )


def _walk(store: SeriesStore, ttl_ms: int, work: BatchWork, live: Int64) -> Iterator[Segment]:
    """Like `split_into_segments`, record by record, for batches during which series are removed.

    A series with readings in the pending segment may only be removed after these went through the model.
    """
    counts = work.counts
    batch, outcomes, arrived = work.batch, work.outcome.tolist(), work.arrived.tolist()
    records: list[int] = []
    slots: list[int] = []
    pending: dict[int, int] = {}  # slot -> ms, when it was last seen

    def finish() -> Iterator[Segment]:
        if records:
            store.seen_ms[list(pending)] = list(pending.values())
            yield Segment(np.array(records, dtype=np.int64), np.array(slots, dtype=np.int64))
            records.clear()
            slots.clear()
            pending.clear()

    for record in live.tolist():
        key = batch.keys[record]
        assert key is not None
        slot = store.find(key)
        if slot is not None:
            reason = "tombstone" if outcomes[record] == Outcome.TOMBSTONE else None
            if ttl_ms > 0 and arrived[record] - pending.get(slot, int(store.seen_ms[slot])) > ttl_ms:
                reason = reason or "expired"
            if reason is not None:
                if slot in pending:
                    yield from finish()
                store.remove(key)
                counts.resets[reason] += 1
                slot = None
        if outcomes[record] == Outcome.TOMBSTONE:
            continue
        if slot is not None:
            store.mark_seen_one(slot)
        else:
            if store.full:
                if store.find(store.least_recent()) in pending:
                    yield from finish()
                store.remove(store.least_recent())
                counts.resets["evicted"] += 1
            slot = store.add(key, batch.partitions[record])
        records.append(record)
        slots.append(slot)
        pending[slot] = arrived[record]
        if len(records) >= MAX_SEGMENT:
            yield from finish()
    yield from finish()
