"""Series that nobody reads of any more: their slots become free once in a while."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from tidecast.service.pipeline.batch import BatchWork
from tidecast.service.state.store import SeriesStore

_SWEEPS_PER_TTL = 8


class TtlSweeper:
    """Removes series that had no reading for longer than `ttl` [ms]; 0 = never.

    Idle time is measured against the newest record of the series' own partition, since another partition may be hours
    ahead of this one. The store is searched a few times per `ttl`.
    """

    def __init__(self, store: SeriesStore, ttl: int) -> None:
        self._store, self._ttl = store, ttl
        self._newest: dict[int, int] = {}  # partition -> ms, the newest record seen
        self._swept: dict[int, int] = {}  # partition -> ms, that `_newest` at the last look

    def sweep(self, work: BatchWork) -> None:
        """Let go of those whose time has come with this batch, and count them."""
        if self._ttl <= 0:
            return
        for partition in np.unique(work.partitions).tolist():
            newest = max(int(work.timestamps[work.partitions == partition].max()), self._newest.get(partition, 0))
            self._newest[partition] = newest
            if newest - self._swept.setdefault(partition, newest) >= self._ttl // _SWEEPS_PER_TTL:
                self._swept[partition] = newest
                work.counts.resets["expired"] += self._store.remove_idle(partition, newest - self._ttl)

    def revoke(self, partitions: Collection[int]) -> None:
        """These are others' now."""
        for partition in partitions:
            self._newest.pop(partition, None)
            self._swept.pop(partition, None)

    def take_over(self, partition: int, older: TtlSweeper) -> None:
        """Go on with the partition where `older` stands now."""
        for mine, theirs in ((self._newest, older._newest), (self._swept, older._swept)):
            if partition in theirs:
                mine[partition] = theirs[partition]
