"""The model in service and, during a swap, the next one: which of them answers which partition.

Each partition belongs to one of them at any time; a swap hands the partitions over one by one
(`tidecast.service.worker.model_swap`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidecast.service.broker.port import Batch, OutgoingBatch
from tidecast.service.config.settings import Settings
from tidecast.service.model.session import Model
from tidecast.service.pipeline.pipeline import BatchResult
from tidecast.service.state.offset_metadata import Committed
from tidecast.service.state.store import SeriesStore
from tidecast.service.worker.partition import Partitions
from tidecast.service.worker.served_model import ServedModel


class ServedModels:
    """All models of this worker. The loop's thread changes them; other threads ask for single series.

    Args:
        settings: what is in force.
        model: the first one.
        partitions: those assigned.
        clock: seconds, monotonic.
    """

    def __init__(self, settings: Settings, model: Model, partitions: Partitions, clock: Callable[[], float]) -> None:
        self._settings, self._partitions, self._clock = settings, partitions, clock
        self.lock = threading.Lock()  # held while a store changes, or one of its states is copied
        self.current = ServedModel(settings, model, clock)
        self.next: ServedModel | None = None

    @property
    def newest(self) -> ServedModel:
        """The one for partitions whose states no model here has made."""
        return self.next or self.current

    def _all(self) -> Iterator[ServedModel]:
        yield self.current
        if self.next is not None:
            yield self.next

    def owner(self, partition: int) -> ServedModel:
        """The model that answers the partition."""
        known = self._partitions.get(partition)
        return (known.model if known is not None else None) or self.newest

    def choose(self, partition: int, committed: Committed | None) -> ServedModel:
        """Choose who answers a new partition: the model that made its states if it is in service, else the newest."""
        made_by = committed.model if committed is not None else None
        chosen = next((served for served in self._all() if served.spec.id == made_by), self.newest)
        self._partitions[partition].model = chosen
        return chosen

    # The path of a reading -----------------------------------------------------------------------------------

    def process(self, batch: Batch) -> list[BatchResult]:
        """What each model makes of its partitions' records.

        Raises:
            ModelError: as `Pipeline.process`.
        """
        with self.lock:
            if self.next is None:
                return [self.current.pipeline.process(batch)]
            owners = [self.owner(partition) for partition in batch.partitions]
            parts = [(s, [row for row, owner in enumerate(owners) if owner is s]) for s in self._all()]
            return [served.pipeline.process(batch.take(rows)) for served, rows in parts if rows]

    def replay(self, partition: int, until: int) -> None:
        """Its states were restored; readings before `until` were answered by an earlier process."""
        with self.lock:
            self.owner(partition).pipeline.replay(partition, until)

    def revoke(self, partitions: Collection[int]) -> None:
        """Delete the states of these partitions."""
        with self.lock:
            for served in self._all():
                served.pipeline.revoke(partitions)

    # The changelog -------------------------------------------------------------------------------------------

    def due(self, everything_of: Collection[int] = (), without: Collection[int] = ()) -> Iterator[OutgoingBatch]:
        """The changelog records due, see `RollingFlush.due`."""
        for served in self._all():
            for records in served.rolling.due(everything_of, self._others(served).union(without)):
                for partition in set(records.partitions):
                    if partition is not None and partition in self._partitions:
                        self._partitions[partition].changelog_written = True
                yield records

    def worthwhile(self) -> bool:
        """True where enough states are due to be worth requests of their own."""
        return any(served.rolling.worthwhile() for served in self._all())

    def anything_due(self) -> bool:
        """True where some state is newer than the changelog's."""
        return any(served.rolling.anything_due(self._others(served)) for served in self._all())

    def _others(self, served: ServedModel) -> set[int]:
        """Partitions of another model. What `served` knows of them, it is only learning."""
        return {n for n, p in self._partitions.items() if p.model is not None and p.model is not served}

    def offsets_to_commit(self, offsets: Mapping[int, int]) -> dict[int, Committed]:
        """Offsets with their metadata, given the next offset of each partition."""
        found: dict[int, Committed] = {}
        for served in self._all():
            mine = {p: offset for p, offset in offsets.items() if self.owner(p) is served}
            for p, snapshot in served.rolling.snapshot_offsets(mine).items():
                written = self._partitions[p].changelog_written
                found[p] = Committed(mine[p], snapshot, written, served.codec.layout, served.spec.id)
        return found

    def restored(self, partition: int, written: bool) -> None:
        """Its changelog is read; `written` = it was not empty."""
        self._partitions[partition].changelog_written = written

    # A swap --------------------------------------------------------------------------------------------------

    def add_next(self, model: Model) -> ServedModel:
        """From now on `model` is the newest. The partitions assigned so far stay with the current one for now."""
        for partition in self._partitions.values():
            partition.model = partition.model or self.current
        self.next = ServedModel(self._settings, model, self._clock)
        return self.next

    @property
    def layout_is_kept(self) -> bool:
        """True where states mean the same to both models."""
        return self.current.codec.layout == self.newest.codec.layout

    def hand_over(self, partition: int) -> None:
        """From the next reading on, the next model answers the partition; its states go into the next commit.

        Where both share one layout, the states are moved. Otherwise the next model has made its own, and the changelog
        gets a tombstone for each series that it has not met.
        """
        older, newer = self.current, self.next
        assert newer is not None and self.owner(partition) is older
        with self.lock:
            if self.layout_is_kept:
                move(older.store, newer.store, partition)
            unmet = (
                []
                if self.layout_is_kept
                else [k for k in older.store.keys_of_partition(partition) if k not in newer.store]
            )
            newer.store.pending_tombstones += [(key, p) for key, p in older.store.pending_tombstones if p == partition]
            newer.store.pending_tombstones += [(key, partition) for key in unmet]
            newer.pipeline.take_over(partition, older.pipeline)
            older.pipeline.revoke({partition})
        self._partitions[partition].model = newer

    def drop_current(self) -> None:
        """All partitions are handed over: the next model is the current one."""
        assert self.next is not None
        with self.lock:
            self.current, self.next = self.next, None

    # What the pages ask --------------------------------------------------------------------------------------

    def series(self, key: str) -> dict[str, Any] | None:
        """What is remembered of one series, None where it is not known here. Called from other threads too."""
        with self.lock:
            for served in self._all():
                found = served.store.snapshot(key.encode())
                if found is not None and self.owner(found["partition"]) is served:  # type: ignore[arg-type]
                    found["warm"] = found["steps"] >= served.spec.warmup_steps  # type: ignore[operator]
                    found["model"] = served.spec.id
                    return found
        return None

    def series_counts(self, partitions: Collection[int], *, unwritten: bool = False) -> dict[int, int]:
        """How many series each partition has; or only those whose state is newer than the changelog's."""
        counts: NDArray[np.int64] = np.zeros(max(partitions, default=-1) + 1, dtype=np.int64)
        for served in self._all():
            store = served.store
            held = store.partitions[(store.dirty_since if unwritten else store.partitions) >= 0]
            found = np.bincount(held, minlength=len(counts))[: len(counts)]
            mine = [p for p in partitions if self.owner(p) is served]
            counts[mine] = found[mine]
        return {p: int(counts[p]) for p in partitions}


def move(source: SeriesStore, target: SeriesStore, partition: int) -> None:
    """Give the partition's series to another store of the same layout, in the order in which they were last seen."""
    keys = source.keys_of_partition(partition)
    here = np.array([source.find(key) for key in keys], dtype=np.int64)
    there = np.array([target.add(key, partition) for key in keys], dtype=np.int64)
    for name in ("states", "last_ts", "steps", "offsets", "seen_ms", "dirty_since"):
        getattr(target, name)[there] = getattr(source, name)[here]
