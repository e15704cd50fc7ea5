"""SeriesStore: each series' state and its place in event time, as columns.

A series has a slot, the same row of every array. `seen` numbers the slots in the order in which their series were last
seen; who is to be forgotten first is only looked for when the store is full.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from tidecast.service.model.spec import StateSlice
from tidecast.service.state.codec import Snapshot, Snapshots
from tidecast.service.state.key_index import KeyIndex
from tidecast.service.timestamps import NEVER

_FREE: Any = object()  # in the place of a free slot's key: equal to nothing that a record may have as its key
_FIRST_CAPACITY = 64
_MANY = 2_000  # series, from which on slots are guessed first
_MANY_AT_ONCE = 32  # keys, likewise
_LOOK_AHEAD = 1 / 16  # of all series: so many of the least recently seen are found at a time


def named_slices(state: NDArray[np.float32], slices: Iterable[StateSlice]) -> dict[str, Any]:
    """The state ([state]) as nested lists of numbers, by the names that the model gives its parts.

    By way of orjson, which gives a float32 as few digits as it has, half of a float64's; NaN becomes None.
    """
    found = {}
    for part in slices:
        numbers = state[part.start : part.start + int(np.prod(part.shape))].reshape(part.shape)
        found[part.name] = orjson.loads(orjson.dumps(np.ascontiguousarray(numbers), option=orjson.OPT_SERIALIZE_NUMPY))
    return found


class SeriesStore:
    """The states of at most `max_series` series. One thread writes; `snapshot` may be called from another."""

    def __init__(self, initial_state: NDArray[np.float32], max_series: int, slices: Sequence[StateSlice] = ()) -> None:
        self.initial_state = initial_state  # [state]
        self.max_series = max_series
        self.slices = tuple(slices)
        capacity = min(_FIRST_CAPACITY, max_series)
        # [max_series, state], or [capacity, state] where the machine does not promise so much
        self.states = _reserved(max_series, capacity, len(initial_state))
        self.last_ts = np.full(capacity, NEVER, dtype=np.int64)  # [capacity] ms, of the newest reading applied
        self.steps = np.zeros(capacity, dtype=np.int64)  # [capacity] since the initial state, silent ones too
        self.offsets = np.full(capacity, -1, dtype=np.int64)  # [capacity] of the last reading applied
        self.partitions = np.full(capacity, -1, dtype=np.int32)  # [capacity] -1 = the slot is free
        self.seen_ms = np.zeros(capacity, dtype=np.int64)  # [capacity] record time of the last reading, applied or not
        # [capacity] offset of the first reading that no flushed state holds, -1 = the changelog has all
        self.dirty_since = np.full(capacity, -1, dtype=np.int64)
        self.pending_tombstones: list[
            tuple[bytes, int]
        ] = []  # (key, partition) of series forgotten since the last flush
        self.seen = np.zeros(capacity, dtype=np.int64)  # [capacity] the higher, the later the series was last seen
        self._turn = 0  # the highest of these, and more
        self._going: list[tuple[int, int]] = []  # (slot, seen) of the least recently seen, these last, while they hold
        self._slots: dict[bytes, int] = {}
        self._index: KeyIndex | None = None  # once there are many
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
        """True when another series needs one to be forgotten first."""
        return len(self._slots) >= self.max_series

    def find(self, key: bytes) -> int | None:
        """The slot of the series, None where it is not known."""
        return self._slots.get(key)

    def find_all(self, keys: Sequence[bytes | None]) -> NDArray[np.int64]:
        """The slots of the series [keys], -1 where one is not known."""
        if len(self._slots) < _MANY or len(keys) < _MANY_AT_ONCE:
            return self._looked_up(keys)
        if self._index is None or self._index.slots < len(self._keys):
            self._index = KeyIndex(len(self._keys))
        return self._index.find(keys, self._looked_up)

    def _looked_up(self, keys: Sequence[bytes | None]) -> NDArray[np.int64]:
        return np.fromiter(map(self._slots.get, keys, repeat(-1)), dtype=np.int64, count=len(keys))  # type: ignore[arg-type]

    def mark_seen(self, slots: NDArray[np.int64]) -> None:
        """These series [n] have just been seen, the last of them last."""
        self.seen[slots] = np.arange(self._turn, self._turn + len(slots))  # of a slot that comes twice, the last counts
        self._turn += len(slots)

    def mark_seen_one(self, slot: int) -> None:
        """The series has just been seen; it becomes the last to be forgotten."""
        self.seen[slot] = self._turn
        self._turn += 1

    def least_recent(self) -> bytes:
        """The least recently seen series. The store must not be empty."""
        while True:
            while self._going:
                slot, seen = self._going[-1]
                if self.seen[slot] == seen and self.partitions[slot] >= 0:
                    return self._keys[slot]
                self._going.pop()
            # Whoever is seen from now on, or is new, comes after all of these.
            slots = np.flatnonzero(self.partitions >= 0)
            count = max(1, int(_LOOK_AHEAD * len(slots)))
            if count < len(slots):
                slots = slots[np.argpartition(self.seen[slots], count - 1)[:count]]
            slots = slots[np.argsort(self.seen[slots])[::-1]]
            self._going = list(zip(slots.tolist(), self.seen[slots].tolist(), strict=True))

    def add(self, key: bytes, partition: int) -> int:
        """A slot for a new series, in the initial state, seen just now. The store must not be full."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._slots[key], self._keys[slot] = slot, key
        self._begin(slot, partition)
        self.mark_seen_one(slot)
        return slot

    def add_all(self, keys: Sequence[bytes], partitions: Sequence[int]) -> NDArray[np.int64]:
        """As `add` of one after the other, each key once; there must be room for all. Returns their slots [keys]."""
        slots = self._occupy(keys)
        self._begin(slots, partitions)
        self.mark_seen(slots)
        return slots

    def _begin(self, slots: int | NDArray[np.int64], partitions: int | Sequence[int]) -> None:
        """These are in the initial state, and have read nothing."""
        self.states[slots] = self.initial_state
        self.last_ts[slots] = NEVER
        self.steps[slots] = 0
        self.offsets[slots] = -1
        self.partitions[slots] = partitions
        self.dirty_since[slots] = -1

    def _occupy(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Free slots for new series."""
        if len(self._free) < len(keys):
            self._grow(len(self._slots) + len(keys))
        left = len(self._free) - len(keys)
        taken = self._free[: left - 1 if left else None : -1]
        del self._free[left:]
        self._slots.update(zip(keys, taken, strict=True))
        for slot, key in zip(taken, keys, strict=True):
            self._keys[slot] = key
        return np.array(taken, dtype=np.int64)

    def restore(self, key: bytes, partition: int, snapshot: Snapshot) -> None:
        """A series as the changelog has it. Beyond `max_series` the first restored are let go."""
        self.restore_many([key], partition, Snapshots.of(snapshot))

    def restore_many(self, keys: Sequence[bytes], partition: int, snapshots: Snapshots) -> None:
        """As `restore` of one after the other; each key may be there once."""
        first = max(0, len(keys) - self.max_series)
        rows = slice(first, None)
        keys = keys[rows]
        slots = self._looked_up(keys)
        known = slots >= 0
        self.mark_seen(slots[known])
        for _ in range(len(self._slots) + int(np.count_nonzero(~known)) - self.max_series):
            self._drop(self.least_recent())  # none of `keys`: these have just been marked
        slots[~known] = self._occupy([keys[i] for i in np.flatnonzero(~known).tolist()])
        self.mark_seen(slots)  # among each other they are in the order of `keys`
        self.states[slots] = snapshots.states[rows]
        self.last_ts[slots], self.steps[slots] = snapshots.last_ts[rows], snapshots.steps[rows]
        self.offsets[slots], self.seen_ms[slots] = snapshots.offsets[rows], snapshots.seen_ms[rows]
        self.partitions[slots], self.dirty_since[slots] = partition, -1

    def key_of(self, slot: int) -> bytes:
        """The key of an occupied slot."""
        return self._keys[slot]

    def mark_dirty(self, slots: NDArray[np.int64], offsets: NDArray[np.int64]) -> None:
        """Readings at these offsets are applied to these slots [n], each the first of its series in a batch."""
        dirty = self.dirty_since[slots]
        self.dirty_since[slots] = np.where(dirty < 0, offsets, dirty)

    def remove(self, key: bytes) -> bool:
        """Let go of the series, for good; False where it is not known."""
        slot = self._slots.get(key)
        if slot is None:
            return False
        self.pending_tombstones.append((key, int(self.partitions[slot])))
        self._drop(key)
        return True

    def discard(self, key: bytes) -> None:
        """Let go of a series of which the changelog knows that it is gone."""
        if key in self._slots:
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        slot = self._slots.pop(key)
        if self._index is not None:
            self._index.remove(slot)
        self.partitions[slot] = -1
        self.dirty_since[slot] = -1
        self._keys[slot] = _FREE
        self._free.append(slot)

    def keys_of_partition(self, partition: int) -> list[bytes]:
        """The keys of its series, least recently seen first."""
        return self._in_order(np.flatnonzero(self.partitions == partition))

    def _in_order(self, slots: NDArray[np.int64]) -> list[bytes]:
        """The keys of these slots, least recently seen first."""
        return [self._keys[slot] for slot in slots[np.argsort(self.seen[slots])].tolist()]

    def revoke(self, partitions: Collection[int]) -> int:
        """Let go of every series of these partitions, which others have now; how many there were."""
        self.pending_tombstones = [(key, p) for key, p in self.pending_tombstones if p not in partitions]
        slots = np.flatnonzero(np.isin(self.partitions, list(partitions)) & (self.partitions >= 0))
        for slot in slots.tolist():
            self._drop(self._keys[slot])
        return len(slots)

    def remove_idle(self, partition: int, before_ms: int) -> int:
        """Let go of the partition's series whose last reading's record is older than `before_ms`; how many."""
        slots = np.flatnonzero((self.partitions == partition) & (self.seen_ms < before_ms))
        for slot in slots.tolist():
            self.remove(self._keys[slot])
        return len(slots)

    def snapshot(self, key: bytes) -> dict[str, object] | None:
        """What is known of one series, the state by its named slices; None where it is not known."""
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
        # The writing thread may have given the slot to another series meanwhile.
        return found if self._slots.get(key) == slot else None

    def _grow(self, wanted: int = 0) -> None:
        """At least double the capacity, to `wanted` or more, up to `max_series`. The states mostly have their room."""
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

    They take no memory before they are written to. A store that grew by moving all its states would need room for them
    twice.
    """
    try:
        return np.zeros((rows, columns), dtype=np.float32)
    except (MemoryError, ValueError):
        return np.zeros((fewer, columns), dtype=np.float32)
