"""After a restore: no record is answered a second time, and none is applied to a state that already includes it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from tidecast.service.broker.port import Batch
from tidecast.service.pipeline.batch import BatchWork
from tidecast.service.pipeline.policy import Outcome
from tidecast.service.state.store import SeriesStore


class ReplayFilter:
    """The partitions that one pipeline is replaying."""

    def __init__(self, store: SeriesStore) -> None:
        self._store = store
        self._answered_until: dict[int, int] = {}  # partition -> every record before this offset was answered
        self._newest_applied: dict[int, int] = {}  # partition -> the last offset that a restored state includes

    def begin(self, partition: int, until: int) -> None:
        """The partition's states are in the store; records before the offset `until` were answered earlier."""
        mine = self._store.partitions == partition
        self._answered_until[partition] = until
        self._newest_applied[partition] = int(self._store.offsets[mine].max(initial=-1))

    def end(self, partition: int) -> None:
        """Answer the partition's records from the next one on."""
        self._answered_until.pop(partition, None)

    def revoke(self, partitions: Collection[int]) -> None:
        """Forget partitions that another worker has now."""
        for partition in partitions:
            self._answered_until.pop(partition, None)
            self._newest_applied.pop(partition, None)

    def new_records(self, batch: Batch) -> NDArray[np.bool_] | None:
        """[records] False where one was answered before; None = none of them was, as nearly always."""
        if not self._answered_until:
            return None
        until = [self._answered_until.get(partition, 0) for partition in batch.partitions]
        return np.array(batch.offsets, dtype=np.int64) >= np.array(until, dtype=np.int64)

    def mark(self, work: BatchWork) -> None:
        """Mark the records of a batch that were answered or applied before."""
        for partition, until in list(self._answered_until.items()):
            rows = work.partitions == partition
            work.replayed |= rows & (work.offsets < until)
            if rows.any() and int(work.offsets[rows].max()) >= until - 1:
                del self._answered_until[partition]
        for partition, last in list(self._newest_applied.items()):
            mine = work.partitions == partition
            rows = np.flatnonzero(mine & (work.offsets <= last) & (work.slots >= 0))
            rows = rows[work.offsets[rows] <= self._store.offsets[work.slots[rows]]]
            work.outcome[rows] = Outcome.APPLIED
            work.replayed[rows] = True
            for record in rows.tolist() if work.rejected else ():
                work.rejected.pop(record, None)
            if int(work.offsets[mine].max(initial=-1)) >= last:
                del self._newest_applied[partition]
