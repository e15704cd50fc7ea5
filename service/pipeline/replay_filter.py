"""After a restore: what was answered before is not answered again, and what a state holds is not applied again."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from tidecast.service.pipeline.batch import Work
from tidecast.service.pipeline.policy import Fate
from tidecast.service.state.store import SeriesTable


class Replays:
    """The partitions that are being read again, for one pipeline."""

    def __init__(self, table: SeriesTable) -> None:
        self._table = table
        self._silent: dict[int, int] = {}  # partition -> offset up to which all is answered already
        self._held: dict[int, int] = {}  # partition -> the last offset that a restored state holds

    def begin(self, partition: int, until: int) -> None:
        """The partition's states are in the table; readings before `until` were answered by an earlier process."""
        mine = self._table.partitions == partition
        self._silent[partition] = until
        self._held[partition] = int(self._table.offsets[mine].max(initial=-1))

    def answer_all(self, partition: int) -> None:
        """From the next record on, the partition's readings are answered."""
        self._silent.pop(partition, None)

    def forget(self, partitions: Collection[int]) -> None:
        """These are others' now."""
        for partition in partitions:
            self._silent.pop(partition, None)
            self._held.pop(partition, None)

    def mark(self, work: Work) -> None:
        """Set the fate of what is read again."""
        for partition, until in list(self._silent.items()):
            rows = work.partitions == partition
            work.silent |= rows & (work.offsets < until)
            if rows.any() and int(work.offsets[rows].max()) >= until - 1:
                del self._silent[partition]
        for partition, last in list(self._held.items()):
            rows = np.flatnonzero((work.partitions == partition) & (work.offsets <= last) & (work.slots >= 0))
            rows = rows[work.offsets[rows] <= self._table.offsets[work.slots[rows]]]
            work.fate[rows] = Fate.APPLIED
            work.silent[rows] = True
            for record in rows.tolist() if work.letters else ():
                work.letters.pop(record, None)
            mine = work.offsets[work.partitions == partition]
            if len(mine) and int(mine.max()) >= last:
                del self._held[partition]
