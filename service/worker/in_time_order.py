"""Reads several partitions in the order of their records' timestamps.

A consumer returns what it has fetched, perhaps an hour of one partition before a minute of another. A series that is
spread over partitions would then have most of its readings late. So records wait here until each partition that has
more to read has come as far.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidecast.service.broker.port import Batch, Consumer
from tidecast.service.errors import BrokerError

PATIENCE_SECONDS = 2.0  # a partition that has more, and of which nothing comes, holds the others back for so long


class InTimeOrder:
    """A consumer of a group, as the worker uses it. What `poll` has not returned yet is in no `next_offsets`.

    Within a partition the order stays as it is; a record that is older than one before it counts as being of its time.
    One from the future counts as of now, or its partition would wait until then.

    Args:
        consumer: the one that reads.
        clock: seconds, monotonic.
        wall: seconds since the epoch.
    """

    def __init__(
        self, consumer: Consumer, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self._consumer, self._clock, self._wall = consumer, clock, wall
        self._held = Batch("")  # read and not returned, in the order of reading
        self._times: NDArray[np.int64] = np.empty(0, dtype=np.int64)  # [held] ms, never falling within a partition
        self._newest: dict[int, int] = {}  # partition -> the last of these times, also of what was returned
        self._next: dict[int, int] = {}  # partition -> the consumer's position
        self._returned: dict[int, int] = {}  # partition -> ours: all before it was returned
        self._ends: dict[int, int] = {}  # partition -> its end, when it was last resumed
        self._paused: set[int] = set()  # by the worker
        self._full: set[int] = set()  # paused here, since enough of them is held
        self._missed: dict[int, float] = {}  # partition -> since when the others wait for it
        self._more_ready = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def subscribe(
        self, topic: str, on_assigned: Callable[[set[int]], None], on_revoked: Callable[[set[int]], None]
    ) -> None:
        """As the consumer does."""

        def revoked(partitions: set[int]) -> None:
            on_revoked(partitions)
            self._forget(partitions)

        def assigned(partitions: set[int]) -> None:
            self._forget(partitions)
            on_assigned(partitions)

        self._consumer.subscribe(topic, assigned, revoked)

    def poll(self, timeout_s: float, max_records: int) -> Batch:
        """The oldest of what was read, at most `max_records`; waits up to `timeout_s`. May be empty."""
        batch = self._consumer.poll(0.0 if self._more_ready else timeout_s, max_records)
        self._next |= batch.next_offsets
        touched = set(batch.next_offsets)
        if not len(batch) and not len(self._held):
            self._returned |= batch.next_offsets
            return batch
        self._add(batch)
        rows = self._oldest()
        self._more_ready = len(rows) > max_records
        found = self._held.take(rows[:max_records].tolist())
        kept = np.ones(len(self._held), dtype=np.bool_)
        kept[rows[:max_records]] = False
        self._keep(kept)
        self._stop_fetching(max_records)
        firsts = self._held.first_offsets()
        for number in touched | set(found.partitions):
            position = firsts.get(number, self._next[number])
            if position > self._returned.get(number, -1):
                self._returned[number] = found.next_offsets[number] = position
        found.unread = batch.unread
        return found

    def _add(self, batch: Batch) -> None:
        partitions = np.array(batch.partitions, dtype=np.int32)
        times = np.minimum(np.array(batch.timestamps, dtype=np.int64), round(self._wall() * 1_000))
        for number in set(batch.partitions):
            mine = partitions == number
            rising = np.maximum.accumulate(np.maximum(times[mine], self._newest.get(number, 0)))
            times[mine], self._newest[number] = rising, int(rising[-1])
            self._missed.pop(number, None)
        self._times = np.concatenate([self._times, times])
        self._held.topic = batch.topic
        for name in ("partitions", "offsets", "timestamps", "keys", "values", "headers"):
            getattr(self._held, name).extend(getattr(batch, name))

    def _oldest(self) -> NDArray[np.int64]:
        """The held rows that need not wait, in the order of their times."""
        partitions = np.array(self._held.partitions, dtype=np.int32)
        here, now, lag = set(self._held.partitions), self._clock(), self._consumer.lag()
        ready = np.ones(len(partitions), dtype=np.bool_)
        for number in self._next.keys() - self._paused:
            if lag.get(number, 0) <= 0 and self._next[number] >= self._ends.get(number, 0):
                self._missed.pop(number, None)  # there is no more of it
            elif number in here:
                ready &= self._times <= self._newest[number]
            elif now - self._missed.setdefault(number, now) < PATIENCE_SECONDS:
                ready[:] = False
        for number in here & self._paused:
            ready &= partitions != number
        rows = np.flatnonzero(ready)
        return rows[np.argsort(self._times[rows], kind="stable")]

    def _keep(self, kept: NDArray[np.bool_]) -> None:
        self._held = self._held.take(np.flatnonzero(kept).tolist())
        self._times = self._times[kept]

    def _stop_fetching(self, max_records: int) -> None:
        """Fetch no more of a partition of which much is held, until it is less."""
        count = dict(zip(*np.unique(self._held.partitions, return_counts=True), strict=True))
        full = {p for p in self._next if count.get(p, 0) >= (1 if p in self._full else 2) * max_records}
        if more := full - self._full:
            self._consumer.pause(more)
        if fewer := self._full - full - self._paused:
            self._consumer.resume(fewer)
        self._full = full

    def _forget(self, partitions: Collection[int]) -> None:
        """Hold nothing of these any more."""
        self._keep(~np.isin(self._held.partitions, list(partitions)))
        self._full -= set(partitions)
        for known in (self._newest, self._next, self._returned, self._ends, self._missed):
            for number in partitions:
                known.pop(number, None)

    def seek(self, partition: int, offset: int) -> None:
        """The next poll of it starts at `offset`."""
        self._forget([partition])
        self._consumer.seek(partition, offset)
        self._next[partition] = self._returned[partition] = offset

    def pause(self, partitions: Collection[int]) -> None:
        """Return nothing from these until `resume`."""
        self._paused |= set(partitions)
        self._consumer.pause(partitions)

    def resume(self, partitions: Collection[int]) -> None:
        """Undo `pause`, and see how much there is to read."""
        self._paused -= set(partitions)
        with suppress(BrokerError):  # then nobody waits for their first records
            self._ends |= self._consumer.end_offsets(partitions)
        self._consumer.resume(set(partitions) - self._full)

    def lag(self) -> dict[int, int]:
        """Records between the position and the last known end, for each assigned partition; no request is made."""
        firsts = self._held.first_offsets()
        return {
            p: n + self._next.get(p, 0) - firsts.get(p, self._next.get(p, 0)) for p, n in self._consumer.lag().items()
        }
