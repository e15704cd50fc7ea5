"""Removes series that have had no reading for longer than the time to live."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from tidecast.service.pipeline.batch import BatchWork
from tidecast.service.state.store import SeriesStore

_SWEEPS_PER_TTL = 8


class TtlSweeper:
    """Removes series that had no reading for longer than `ttl` [ms]; 0 = never. For one pipeline.

    Idle time is measured against the newest record of the series' own partition, since another partition may be hours
    ahead of this one. The store is searched a few times per `ttl`.
    """

    def __init__(self, store: SeriesStore, ttl: int) -> None:
        self._store, self._ttl = store, ttl
        self._times: dict[int, tuple[int, int]] = {}  # partition -> ms of its newest record, now and at the last search

    def sweep(self, work: BatchWork) -> None:
        """Remove the series that are expired by the time of this batch, and count them."""
        if self._ttl <= 0:
            return
        for partition in np.unique(work.partitions).tolist():
            newest = int(work.timestamps[work.partitions == partition].max())
            before, swept = self._times.get(partition, (newest, newest))
            newest = max(newest, before)
            if newest - swept >= self._ttl // _SWEEPS_PER_TTL:
                swept = newest
                work.counts.resets["expired"] += self._store.remove_idle(partition, newest - self._ttl)
            self._times[partition] = newest, swept

    def revoke(self, partitions: Collection[int]) -> None:
        """Forget partitions that another worker has now."""
        for partition in partitions:
            self._times.pop(partition, None)

    def take_over(self, partition: int, older: TtlSweeper) -> None:
        """Continue with the partition where `older` is now."""
        if partition in older._times:
            self._times[partition] = older._times[partition]
