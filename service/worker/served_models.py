"""The model in service, and during a swap the one that is to follow it: which of them answers which partition.

A served model is a model with the states it has made. Each partition belongs to one of them at any time; a swap hands
the partitions over one by one (`tidecast.service.worker.model_swap`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidecast.service.broker.port import Batch, Outgoing
from tidecast.service.config.settings import Settings
from tidecast.service.model.session import Model
from tidecast.service.model.spec import ModelSpec
from tidecast.service.pipeline.pipeline import BatchResult, Pipeline, Policy
from tidecast.service.state.codec import Codec
from tidecast.service.state.flush import RollingFlush
from tidecast.service.state.offset_metadata import Committed
from tidecast.service.state.store import SeriesStore


class ServedModel:
    """One model, and all that it remembers."""

    def __init__(self, settings: Settings, model: Model, clock: Callable[[], float]) -> None:
        self.model = model
        self.codec = Codec(model.spec)
        self.pipeline = Pipeline(
            model,
            Policy.from_settings(settings),
            output_topic=settings.output_topic,
            dead_letter_topic=settings.dead_letter_topic,
        )
        self.rolling = RollingFlush(
            self.store,
            self.codec,
            topic=settings.changelog_topic,
            group=settings.group,
            seconds=settings.changelog_seconds,
            bytes_per_second=settings.changelog_bytes_per_second,
            clock=clock,
        )

    @property
    def spec(self) -> ModelSpec:
        """The model's own description."""
        return self.model.spec

    @property
    def store(self) -> SeriesStore:
        """The states."""
        return self.pipeline.store


class ServedModels:
    """All that this worker answers with. The loop's thread changes it; others ask for single series.

    Args:
        settings: what is in force.
        model: the one to begin with.
        clock: seconds, monotonic.
    """

    def __init__(self, settings: Settings, model: Model, clock: Callable[[], float]) -> None:
        self._settings, self._clock = settings, clock
        self.lock = threading.Lock()  # held while a store changes, or one of its states is copied
        self.current = ServedModel(settings, model, clock)
        self.next: ServedModel | None = None
        self._owners: dict[int, ServedModel] = {}  # during a swap; without one, all partitions are `current`'s
        self._written: set[int] = set()  # partitions whose states are in the changelog

    @property
    def newest(self) -> ServedModel:
        """The one for partitions of which nothing says otherwise."""
        return self.next or self.current

    def _all(self) -> Iterator[ServedModel]:
        yield self.current
        if self.next is not None:
            yield self.next

    def owner(self, partition: int) -> ServedModel:
        """Who answers the partition."""
        return self._owners.get(partition, self.newest)

    def choose(self, partition: int, committed: Committed | None) -> ServedModel:
        """Who is to answer a partition that is new here: the model that made its states, where it is in service."""
        made_by = committed.model if committed is not None else None
        chosen = next((served for served in self._all() if served.spec.id == made_by), self.newest)
        if self.next is not None:
            self._owners[partition] = chosen
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
            parts = [(e, [row for row, owner in enumerate(owners) if owner is e]) for e in self._all()]
            return [served.pipeline.process(batch.take(rows)) for served, rows in parts if rows]

    def replay(self, partition: int, until: int) -> None:
        """Its states were restored; readings before `until` were answered by an earlier process."""
        with self.lock:
            self.owner(partition).pipeline.replay(partition, until)

    def revoke(self, partitions: Collection[int]) -> None:
        """Forget all that is known of them."""
        with self.lock:
            for served in self._all():
                served.pipeline.revoke(partitions)
        for partition in partitions:
            self._owners.pop(partition, None)
        self._written -= set(partitions)

    # The changelog -------------------------------------------------------------------------------------------

    def due(self, everything_of: Collection[int] = (), without: Collection[int] = ()) -> Iterator[Outgoing]:
        """The changelog records due, see `RollingFlush.due`."""
        for served in self._all():
            for records in served.rolling.due(everything_of, self._others(served).union(without)):
                self._written.update(p for p in set(records.partitions) if p is not None)
                yield records

    def worthwhile(self) -> bool:
        """True where enough states are due to be worth requests of their own."""
        return any(served.rolling.worthwhile() for served in self._all())

    def anything_due(self) -> bool:
        """True where some series has moved on since its state was last written."""
        return any(served.rolling.anything_due(self._others(served)) for served in self._all())

    def _others(self, served: ServedModel) -> set[int]:
        """Partitions that are not its own; what it knows of them it is only learning."""
        return {partition for partition, owner in self._owners.items() if owner is not served}

    def offsets_to_commit(self, offsets: Mapping[int, int]) -> dict[int, Committed]:
        """What is to be committed, given where each partition goes on."""
        found: dict[int, Committed] = {}
        for served in self._all():
            mine = {p: offset for p, offset in offsets.items() if self.owner(p) is served}
            for p, snapshot in served.rolling.snapshot_offsets(mine).items():
                found[p] = Committed(mine[p], snapshot, p in self._written, served.codec.layout, served.spec.id)
        return found

    def restored(self, partition: int, written: bool) -> None:
        """Its changelog is read; `written` = there was something in it."""
        if written:
            self._written.add(partition)

    # A swap --------------------------------------------------------------------------------------------------

    def begin_swap(self, model: Model, assigned: Collection[int]) -> ServedModel:
        """`model` is to follow: from now on partitions that are new here may be its own."""
        self._owners = dict.fromkeys(assigned, self.current)
        self.next = ServedModel(self._settings, model, self._clock)
        return self.next

    def waiting(self, assigned: Collection[int]) -> set[int]:
        """The partitions that are not handed over yet."""
        return set() if self.next is None else {p for p in assigned if self.owner(p) is self.current}

    def hand_over(self, partition: int) -> None:
        """From the next reading on the partition is the newer model's; its states go into the next commit.

        Where both share one layout, the states go over as they are. Otherwise the newer one has made its own, and the
        changelog gets a tombstone for each series that it has not met.
        """
        older, newer = self.current, self.next
        assert newer is not None and self.owner(partition) is older
        with self.lock:
            carried = older.codec.layout == newer.codec.layout
            if carried:
                move(older.store, newer.store, partition)
            unmet = [] if carried else [k for k in older.store.keys_of_partition(partition) if k not in newer.store]
            newer.store.pending_tombstones += [(key, p) for key, p in older.store.pending_tombstones if p == partition]
            newer.store.pending_tombstones += [(key, partition) for key in unmet]
            newer.pipeline.take_over(partition, older.pipeline)
            older.pipeline.revoke({partition})
        self._owners[partition] = newer

    def end_swap(self) -> None:
        """All partitions are handed over: the newer model is the one."""
        assert self.next is not None
        with self.lock:
            self.current, self.next, self._owners = self.next, None, {}

    # What the pages ask --------------------------------------------------------------------------------------

    def series(self, key: str) -> dict[str, Any] | None:
        """What is remembered of one series, None where it is not known here. For other threads too."""
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
