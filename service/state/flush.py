"""The rolling flush: which states are written to the changelog with the next commit.

A state can be computed again from the input, so it need not be written at every commit. Each changed state is written
once per `seconds`, the one that has waited longest first, so the cost scales with the number of series and not with the
message rate. `bytes_per_second` is an upper limit; when it is reached, the flush takes longer, and a restore has more
to replay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tidecast.service.broker.port import Headers, OutgoingBatch
from tidecast.service.state.codec import Codec
from tidecast.service.state.store import SeriesStore

T = TypeVar("T")
_LOOK_AHEAD = 1 / 8  # of the dirty states: the share that is sorted at a time
_AT_ONCE = 5_000  # states encoded together: each takes its memory four times during that
_WORTH_BYTES, _WORTH_SECONDS = 64 << 10, 1.0  # from this size or age on, states are worth writing on their own
GROUP_HEADER = "group"  # record header with the owner, so that two groups do not mix their states in one changelog


class RollingFlush:
    """Chooses and encodes the changelog records of a store."""

    def __init__(
        self,
        store: SeriesStore,
        codec: Codec,
        *,
        topic: str,
        group: str,
        seconds: float,
        bytes_per_second: float,
        clock: Callable[[], float],
    ) -> None:
        self._store, self._codec, self._topic = store, codec, topic
        self._seconds, self._bytes_per_second, self._clock = seconds, bytes_per_second, clock
        self._headers: Headers = [(GROUP_HEADER, group.encode())]
        self._flushed_at = clock()
        self._next = np.empty(0, dtype=np.int64)  # slots in the order in which to write them; some may be clean by then

    def due(self, everything_of: Collection[int] = (), without: Collection[int] = ()) -> Iterator[OutgoingBatch]:
        """Tombstones of removed series, then the states due, in parts; everything yielded counts as flushed.

        Args:
            everything_of: partitions of which all dirty states are due, so that others can continue without a replay.
            without: partitions of which nothing is due: during their replay, what is committed must not change.
        """
        store = self._store
        out = OutgoingBatch(topic=self._topic)
        for key, partition in store.pending_tombstones:
            if partition not in without:
                out.append(key, None, partition=partition, headers=self._headers)
        store.pending_tombstones = [
            (key, partition) for key, partition in store.pending_tombstones if partition in without
        ]
        if len(out):
            yield out
        slots = self._slots(everything_of, without)
        for at in range(0, len(slots), _AT_ONCE):
            yield self._states(slots[at : at + _AT_ONCE])

    def _states(self, slots: NDArray[np.int64]) -> OutgoingBatch:
        store, n = self._store, len(slots)
        values = self._codec.encode(
            store.offsets[slots], store.last_ts[slots], store.steps[slots], store.seen_ms[slots], store.states[slots],
            _of_rows(store.ahead, slots), _of_rows(store.waiting, slots),
        )  # fmt: skip
        store.dirty_since[slots] = -1
        return OutgoingBatch(
            topic=self._topic,
            partitions=store.partitions[slots].tolist(),
            keys=[store.key_of(slot) for slot in slots.tolist()],
            values=[*values],
            headers=[self._headers] * n,
            timestamps=[None] * n,
        )

    def worthwhile(self) -> bool:
        """True where enough is due, or has been due for long enough, to be worth a request of its own."""
        passed = self._clock() - self._flushed_at
        due = len(self._store) * self._codec.record_bytes * passed / self._seconds
        return (
            due >= _WORTH_BYTES
            or passed >= min(_WORTH_SECONDS, self._seconds / 10)
            or bool(self._store.pending_tombstones)
        )

    def anything_due(self, without: Collection[int] = ()) -> bool:
        """True where a state has changed since it was last written, except in the partitions `without`."""
        return any(p not in without for _, p in self._store.pending_tombstones) or bool(self._dirty(without).any())

    def snapshot_offsets(self, offsets: Mapping[int, int]) -> dict[int, int]:
        """`partition -> offset` before which all readings are in flushed states, given each partition's next offset."""
        store = self._store
        since = store.dirty_since.view(np.uint64)  # so that -1, a clean state, is higher than every offset
        highest = max([*offsets, int(store.partitions.max(initial=-1))])
        # [partition], the last one is for free slots, partition -1
        oldest = np.full(highest + 2, np.iinfo(np.uint64).max, dtype=np.uint64)
        np.minimum.at(oldest, store.partitions, since)
        return {partition: min(offset, int(oldest[partition])) for partition, offset in offsets.items()}

    def _dirty(self, without: Collection[int]) -> NDArray[np.bool_]:
        """[capacity]"""
        dirty = self._store.dirty_since >= 0
        return dirty & ~np.isin(self._store.partitions, list(without)) if without else dirty

    def _slots(self, everything_of: Collection[int], without: Collection[int]) -> NDArray[np.int64]:
        store, now = self._store, self._clock()
        passed, self._flushed_at = now - self._flushed_at, now
        dirty = self._dirty(without)
        whole, rest = np.empty(0, dtype=np.int64), dirty
        if everything_of:
            leaving = np.isin(store.partitions, list(everything_of))
            whole, rest = np.flatnonzero(dirty & leaving), dirty & ~leaving
        count = int(np.count_nonzero(rest))
        budget = max(1, int(self._bytes_per_second * min(passed, self._seconds) / self._codec.record_bytes))
        wanted = min(count, budget, math.ceil(count * min(1.0, passed / self._seconds)))
        self._next = self._next[rest[self._next]]
        if len(self._next) < wanted:
            self._next = self._longest_waiting(rest, max(wanted / count, _LOOK_AHEAD))
        chosen, self._next = self._next[:wanted], self._next[wanted:]
        return np.concatenate([whole, chosen])

    def _longest_waiting(self, among: NDArray[np.bool_], share: float) -> NDArray[np.int64]:
        """A `share` of the slots `among` [capacity], of each partition alike, those with the oldest changes first.

        Any number of slots from the front takes about the same share of each partition.
        """
        slots = np.flatnonzero(among)
        owners, since = self._store.partitions[slots], self._store.dirty_since[slots]
        found, places = [], []
        for partition in np.flatnonzero(np.bincount(owners)):
            mine = np.flatnonzero(owners == partition)
            n = min(len(mine), math.ceil(share * len(mine)))
            if n < len(mine):
                mine = mine[np.argpartition(since[mine], n - 1)[:n]]
            found.append(slots[mine[np.argsort(since[mine])]])
            places.append(np.arange(1, n + 1) / n)
        return np.concatenate(found)[np.argsort(np.concatenate(places), kind="stable")]


def _of_rows(found: Mapping[int, T], slots: NDArray[np.int64]) -> dict[int, T]:
    """What is known by slot, by row instead."""
    return {row: found[slot] for row, slot in enumerate(slots.tolist()) if slot in found} if found else {}
