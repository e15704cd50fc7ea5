"""After a restore: what was answered before is not answered again, and what a state holds is not applied again."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from tidecast.service.pipeline.batch import BatchWork
from tidecast.service.pipeline.policy import Outcome
from tidecast.service.state.store import SeriesStore


class ReplayFilter:
    """The partitions that are being read again, for one pipeline."""

    def __init__(self, store: SeriesStore) -> None:
        self._store = store
        self._answered_until: dict[int, int] = {}  # partition -> offset up to which all is answered already
        self._newest_applied: dict[int, int] = {}  # partition -> the last offset that a restored state holds

    def begin(self, partition: int, until: int) -> None:
        """The partition's states are in the store; readings before `until` were answered by an earlier process."""
        mine = self._store.partitions == partition
        self._answered_until[partition] = until
        self._newest_applied[partition] = int(self._store.offsets[mine].max(initial=-1))

    def answer_all(self, partition: int) -> None:
        """From the next record on, the partition's readings are answered."""
        self._answered_until.pop(partition, None)

    def revoke(self, partitions: Collection[int]) -> None:
        """These are others' now."""
        for partition in partitions:
            self._answered_until.pop(partition, None)
            self._newest_applied.pop(partition, None)

    def mark(self, work: BatchWork) -> None:
        """Set the outcome of what is read again."""
        for partition, until in list(self._answered_until.items()):
            rows = work.partitions == partition
            work.replayed |= rows & (work.offsets < until)
            if rows.any() and int(work.offsets[rows].max()) >= until - 1:
                del self._answered_until[partition]
        for partition, last in list(self._newest_applied.items()):
            rows = np.flatnonzero((work.partitions == partition) & (work.offsets <= last) & (work.slots >= 0))
            rows = rows[work.offsets[rows] <= self._store.offsets[work.slots[rows]]]
            work.outcome[rows] = Outcome.APPLIED
            work.replayed[rows] = True
            for record in rows.tolist() if work.rejected else ():
                work.rejected.pop(record, None)
            mine = work.offsets[work.partitions == partition]
            if len(mine) and int(mine.max()) >= last:
                del self._newest_applied[partition]
