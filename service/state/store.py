"""The states of all series in memory, as columns.

Each series has a slot: the same row of every array. `seen` numbers the slots in the order in which their series were
last seen; the least recently seen series is searched for only when the store is full.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from tidecast.service.model.spec import StateSlice
from tidecast.service.state.codec import Snapshots
from tidecast.service.state.key_index import KeyIndex
from tidecast.service.state.record import AheadClock
from tidecast.service.state.waiting import Waiting
from tidecast.service.timestamps import NEVER

_FREE: Any = object()  # the "key" of a free slot; not equal to any key of a record
_FIRST_CAPACITY = 64
_INDEX_FROM_SERIES = 2_000  # the key index is used from this many series
_INDEX_FROM_KEYS = 32  # and for at least this many keys in one call
_LOOK_AHEAD = 1 / 16  # of all series: how many of the least recently seen ones one search finds


def named_slices(state: NDArray[np.float32], slices: Iterable[StateSlice]) -> dict[str, Any]:
    """The state ([state]) as nested lists of numbers, by the model's names for its parts.

    Converted by orjson, which writes a float32 with its own few digits instead of a float64's; NaN becomes None.
    """
    found = {}
    for part in slices:
        numbers = state[part.start : part.start + int(np.prod(part.shape))].reshape(part.shape)
        found[part.name] = orjson.loads(orjson.dumps(np.ascontiguousarray(numbers), option=orjson.OPT_SERIALIZE_NUMPY))
    return found


class SeriesStore:
    """The states of at most `max_series` series. One thread writes; `snapshot` may be called from another one."""

    def __init__(self, initial_state: NDArray[np.float32], max_series: int, slices: Sequence[StateSlice] = ()) -> None:
        self.initial_state = initial_state  # [state]
        self.max_series = max_series
        self.slices = tuple(slices)
        capacity = min(_FIRST_CAPACITY, max_series)
        # [max_series, state], or [capacity, state] where the system does not grant that much memory
        self.states = _reserved(max_series, capacity, len(initial_state))
        self.last_ts = np.full(capacity, NEVER, dtype=np.int64)  # [capacity] ms, of the newest reading applied
        self.steps = np.zeros(capacity, dtype=np.int64)  # [capacity] since the initial state, imputed ones too
        self.offsets = np.full(capacity, -1, dtype=np.int64)  # [capacity] of the last reading, or part, applied
        self.partitions = np.full(capacity, -1, dtype=np.int32)  # [capacity] -1 = the slot is free
        self.seen_ms = np.zeros(capacity, dtype=np.int64)  # [capacity] record time of the last reading, applied or not
        # [capacity] offset of the first reading that no flushed state includes, -1 = the changelog is up to date
        self.dirty_since = np.full(capacity, -1, dtype=np.int64)
        self.ahead: dict[int, AheadClock] = {}  # slot -> of a series whose newest reading was ahead of its record
        self.waiting: dict[int, Waiting] = {}  # slot -> of a series of which parts of readings wait for others
        self.dropped_parts = 0  # that waited while their series was removed, since somebody last counted them
        self.pending_tombstones: list[tuple[bytes, int]] = []  # (key, partition) of series removed since the last flush
        self.seen = np.zeros(capacity, dtype=np.int64)  # [capacity] higher = seen later
        self._next_seen = 0  # higher than all of these
        self._oldest: list[tuple[int, int]] = []  # (slot, seen) of the least recently seen series, the oldest last
        self._slots: dict[bytes, int] = {}
        self._index: KeyIndex | None = None  # once there are many series
        self._keys: list[bytes] = [_FREE] * capacity  # slot -> key
        self._free: list[int] = list(range(capacity - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, key: bytes) -> bool:
        return key in self._slots

    def __iter__(self) -> Iterator[bytes]:
        """The keys, least recently seen first."""
        return iter(self._in_order(np.flatnonzero(self.partitions >= 0)))

    @property
    def full(self) -> bool:
        """True where a series must be removed before another one can be added."""
        return len(self._slots) >= self.max_series

    def find(self, key: bytes) -> int | None:
        """The slot of the series, None where it is unknown."""
        return self._slots.get(key)

    def find_all(self, keys: Sequence[bytes | None]) -> NDArray[np.int64]:
        """The slots of the series [keys], -1 where one is unknown."""
        if len(self._slots) < _INDEX_FROM_SERIES or len(keys) < _INDEX_FROM_KEYS:
            return self._looked_up(keys)
        if self._index is None or self._index.slots < len(self._keys):
            self._index = KeyIndex(len(self._keys))
        return self._index.find(keys, self._looked_up)

    def _looked_up(self, keys: Sequence[bytes | None]) -> NDArray[np.int64]:
        return np.fromiter(map(self._slots.get, keys, repeat(-1)), dtype=np.int64, count=len(keys))  # type: ignore[arg-type]

    def mark_seen(self, slots: NDArray[np.int64]) -> None:
        """These series [n] have just been seen, in this order."""
        self.seen[slots] = np.arange(
            self._next_seen, self._next_seen + len(slots)
        )  # where a slot occurs twice, the last one counts
        self._next_seen += len(slots)

    def mark_seen_one(self, slot: int) -> None:
        """The series has just been seen: it becomes the most recent one."""
        self.seen[slot] = self._next_seen
        self._next_seen += 1

    def least_recent(self) -> bytes:
        """The least recently seen series. The store must not be empty."""
        while True:
            while self._oldest:
                slot, seen = self._oldest[-1]
                if self.seen[slot] == seen and self.partitions[slot] >= 0:
                    return self._keys[slot]
                self._oldest.pop()
            # Every series that is seen or added from now on is more recent than all of these.
            slots = np.flatnonzero(self.partitions >= 0)
            count = max(1, int(_LOOK_AHEAD * len(slots)))
            if count < len(slots):
                slots = slots[np.argpartition(self.seen[slots], count - 1)[:count]]
            slots = slots[np.argsort(self.seen[slots])[::-1]]
            self._oldest = list(zip(slots.tolist(), self.seen[slots].tolist(), strict=True))

    def add(self, key: bytes, partition: int) -> int:
        """Add a series in the initial state, seen just now; returns its slot. The store must not be full."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._slots[key], self._keys[slot] = slot, key
        self._begin(slot, partition)
        self.mark_seen_one(slot)
        return slot

    def add_all(self, keys: Sequence[bytes], partitions: Sequence[int]) -> NDArray[np.int64]:
        """Like `add` for each of these unique keys, in order; there is room for all. Returns the slots [keys]."""
        slots = self._occupy(keys)
        self._begin(slots, partitions)
        self.mark_seen(slots)
        return slots

    def _begin(self, slots: int | NDArray[np.int64], partitions: int | Sequence[int]) -> None:
        """Put these slots into the initial state."""
        self.states[slots] = self.initial_state
        self.last_ts[slots] = NEVER
        self.steps[slots] = 0
        self.offsets[slots] = -1
        self.partitions[slots] = partitions
        self.dirty_since[slots] = -1

    def _occupy(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Assign free slots to new series; returns them [keys]."""
        if len(self._free) < len(keys):
            self._grow(len(self._slots) + len(keys))
        left = len(self._free) - len(keys)
        taken = self._free[: left - 1 if left else None : -1]
        del self._free[left:]
        self._slots.update(zip(keys, taken, strict=True))
        for slot, key in zip(taken, keys, strict=True):
            self._keys[slot] = key
        return np.array(taken, dtype=np.int64)

    def restore(self, keys: Sequence[bytes], partition: int, snapshots: Snapshots) -> None:
        """Put in series from the changelog, unique keys; beyond `max_series` the least recently seen are dropped."""
        first = max(0, len(keys) - self.max_series)
        rows = slice(first, None)
        keys = keys[rows]
        slots = self._looked_up(keys)
        known = slots >= 0
        self.mark_seen(slots[known])
        for _ in range(len(self._slots) + int(np.count_nonzero(~known)) - self.max_series):
            self._drop(self.least_recent())  # none of `keys`: they were marked as seen just now
        slots[~known] = self._occupy([keys[i] for i in np.flatnonzero(~known).tolist()])
        self.mark_seen(slots)  # in the order of `keys`
        self.states[slots] = snapshots.states[rows]
        self.last_ts[slots], self.steps[slots] = snapshots.last_ts[rows], snapshots.steps[rows]
        self.offsets[slots], self.seen_ms[slots] = snapshots.offsets[rows], snapshots.seen_ms[rows]
        self.partitions[slots], self.dirty_since[slots] = partition, -1
        if self.ahead or self.waiting:
            for slot in slots.tolist():
                self.ahead.pop(slot, None)
                self.waiting.pop(slot, None)
        self.ahead |= {int(slots[row - first]): clock for row, clock in snapshots.ahead.items() if row >= first}
        self.waiting |= {int(slots[row - first]): parts for row, parts in snapshots.waiting.items() if row >= first}

    def key_of(self, slot: int) -> bytes:
        """The key of an occupied slot."""
        return self._keys[slot]

    def mark_dirty(self, slots: NDArray[np.int64], offsets: NDArray[np.int64]) -> None:
        """The states of these slots [n] change; `offsets` are of the first reading of each series in the batch."""
        dirty = self.dirty_since[slots]
        self.dirty_since[slots] = np.where(dirty < 0, offsets, dirty)

    def remove(self, key: bytes) -> bool:
        """Remove a series, with a tombstone for the changelog; False where it is unknown."""
        slot = self._slots.get(key)
        if slot is None:
            return False
        self.pending_tombstones.append((key, int(self.partitions[slot])))
        if slot in self.waiting:
            self.dropped_parts += self.waiting[slot].parts
        self._drop(key)
        return True

    def drop_waiting(self, partition: int) -> int:
        """Forget the parts that wait in this partition; returns how many there were."""
        slots = [slot for slot in self.waiting if self.partitions[slot] == partition]
        dropped = sum(self.waiting.pop(slot).parts for slot in slots)
        self.dropped_parts += dropped
        return dropped

    def discard(self, key: bytes) -> None:
        """Remove a series of which the changelog has a tombstone already."""
        if key in self._slots:
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        slot = self._slots.pop(key)
        if self._index is not None:
            self._index.remove(slot)
        self.partitions[slot] = -1
        self.dirty_since[slot] = -1
        self.ahead.pop(slot, None)
        self.waiting.pop(slot, None)
        self._keys[slot] = _FREE
        self._free.append(slot)

    def keys_of_partition(self, partition: int) -> list[bytes]:
        """The keys of its series, least recently seen first."""
        return self._in_order(np.flatnonzero(self.partitions == partition))

    def _in_order(self, slots: NDArray[np.int64]) -> list[bytes]:
        """The keys of these slots, least recently seen first."""
        return [self._keys[slot] for slot in slots[np.argsort(self.seen[slots])].tolist()]

    def revoke(self, partitions: Collection[int]) -> int:
        """Drop all series of partitions that another worker has now; returns how many there were."""
        self.pending_tombstones = [(key, p) for key, p in self.pending_tombstones if p not in partitions]
        slots = np.flatnonzero(np.isin(self.partitions, list(partitions)) & (self.partitions >= 0))
        for slot in slots.tolist():
            self._drop(self._keys[slot])
        return len(slots)

    def remove_idle(self, partition: int, before_ms: int) -> int:
        """Remove the partition's series whose last record is older than `before_ms`; returns how many."""
        slots = np.flatnonzero((self.partitions == partition) & (self.seen_ms < before_ms))
        for slot in slots.tolist():
            self.remove(self._keys[slot])
        return len(slots)

    def state_of(self, key: bytes) -> NDArray[np.float32] | None:
        """A copy of the state [state] of one series; None where it is unknown."""
        slot = self._slots.get(key)
        return None if slot is None else self.states[slot].copy()

    def snapshot(self, key: bytes) -> dict[str, object] | None:
        """What is known of one series, its state by the model's names; None where it is unknown."""
        slot = self._slots.get(key)
        if slot is None:
            return None
        state = self.states[slot].copy()
        last_ts = int(self.last_ts[slot])
        found: dict[str, object] = {
            "series": key.decode("utf-8", "replace"),
            "partition": int(self.partitions[slot]),
            "offset": int(self.offsets[slot]),
            "ts": None if last_ts == NEVER else last_ts,
            "steps": int(self.steps[slot]),
            "state": named_slices(state, self.slices),
        }
        if slot in self.waiting:
            found["waiting"] = [{"ts": group.ts, "values": dict(group.values)} for group in self.waiting[slot].groups]
        # The writing thread may have given the slot to another series during the copy.
        return found if self._slots.get(key) == slot else None

    def _grow(self, wanted: int = 0) -> None:
        """Double the capacity at least, to `wanted` or more, up to `max_series`."""
        old = len(self._keys)
        new = min(max(2 * old, wanted), self.max_series)
        for name in ("states", "last_ts", "steps", "offsets", "partitions", "seen_ms", "dirty_since", "seen"):
            column = getattr(self, name)
            if len(column) >= new:
                continue
            grown = np.zeros((new, *column.shape[1:]), dtype=column.dtype)
            grown[:old] = column
            setattr(self, name, grown)
        self.partitions[old:] = -1
        self.dirty_since[old:] = -1
        self._keys.extend([_FREE] * (new - old))
        self._free.extend(range(new - 1, old - 1, -1))


def _reserved(rows: int, fewer: int, columns: int) -> NDArray[np.float32]:
    """[rows, columns] zeros, or [fewer, columns].

    They take no memory until they are written to. A store that moved all its states in order to grow would need memory
    for them twice.
    """
    try:
        return np.zeros((rows, columns), dtype=np.float32)
    except (MemoryError, ValueError):
        return np.zeros((fewer, columns), dtype=np.float32)
