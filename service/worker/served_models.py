"""The model in service and, during a swap, the next one: which of them answers which partition.

Each partition belongs to one of them at any time; a swap hands the partitions over one by one
(`tidecast.service.worker.model_swap`). Where a model has shadows, each partition has a champion among all of them,
which answers; `promote` makes another one the champion, at no cost: the states are there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tidecast.service.broker.port import Batch, OutgoingBatch
from tidecast.service.config.settings import Settings
from tidecast.service.errors import ModelError
from tidecast.service.input.config import read_input
from tidecast.service.model.session import Model
from tidecast.service.model.spec import ModelSpec
from tidecast.service.pipeline.pipeline import BatchResult
from tidecast.service.state.offset_metadata import Committed
from tidecast.service.worker.hand_over import move_series, states_are_kept
from tidecast.service.worker.partition import Partitions
from tidecast.service.worker.served_model import ServedModel

log = logging.getLogger("tidecast.worker")

Role = Literal["champion", "shadow"]


class ServedModels:
    """All models of this worker. The loop's thread changes them; other threads ask for single series.

    Args:
        settings: what is in force.
        model: the first one.
        partitions: those assigned.
        clock: seconds, monotonic.
        shadows: of this model, and of those that follow it.

    Raises:
        TidecastError: the [input] table cannot be used, or the models cannot run over the same readings.
    """

    def __init__(
        self,
        settings: Settings,
        model: Model,
        partitions: Partitions,
        clock: Callable[[], float],
        shadows: Sequence[Model] = (),
    ) -> None:
        self._settings, self._partitions, self._clock = settings, partitions, clock
        self.lock = threading.Lock()  # held while a store changes, or one of its states is copied
        self._input = read_input(settings.input) if settings.input else None
        self.current = ServedModel(settings, [model, *shadows], clock, self._input)
        self.next: ServedModel | None = None
        self._decided: tuple[str | None, int] = (
            None,
            -1,
        )  # id of the model that was promoted last, number of the decision

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
        """Choose who answers a new partition: what was promoted, else the model that has answered it, else the newest.

        The states are those of the models that have made them, if these are in service.
        """
        made = [served for served in self._all() if served.made(committed) is not None]
        known = [served for served in made if committed is not None and served.hashes == committed.members]
        chosen = next(iter((*known, *made)), self.newest)
        record, answers = self._partitions[partition], chosen.made(committed)
        if committed is not None and committed.decision is not None:
            record.decision = committed.decision
        decided = chosen.group.index(self._decided[0])
        if decided is not None and self._decided[1] > record.decision:
            answers, record.decision = decided, self._decided[1]
        if answers is None and committed is not None and committed.members:
            log.warning(
                "the model that has answered a partition is not served any more",
                extra={"partition": partition, "was": committed.model, "model": chosen.spec.id},
            )
        record.model, record.champion = chosen, chosen.group.asked if answers is None else answers
        record.origin = committed.maker if committed is not None else None
        return chosen

    # The path of a reading -----------------------------------------------------------------------------------

    def prepare(self, batch: Batch) -> None:
        """Fetch what is needed to decode the batch, whichever model answers it; raises as `Pipeline.prepare`."""
        for served in self._all():
            served.pipeline.prepare(batch)

    def process(self, batch: Batch) -> list[BatchResult]:
        """What each model makes of its partitions' records.

        Raises:
            ModelError: as `Pipeline.process`.
        """
        with self.lock:
            if self.next is None and self.current.group.alone:  # nearly always
                return [self.current.pipeline.process(batch)]
            answering = {number: self._answering(number) for number in set(batch.partitions)}
            return [served.pipeline.process(part, champion) for (served, champion), part in _split(batch, answering)]

    def _answering(self, partition: int) -> tuple[ServedModel, int]:
        """The model of the partition, and its champion."""
        served, known = self.owner(partition), self._partitions.get(partition)
        return served, served.group.asked if known is None or known.model is None else known.champion

    def process_next(self, batch: Batch) -> None:
        """Let the next model learn from records that the current one has answered."""
        with self.lock:
            assert self.next is not None
            learning = {number: (self.next, self._heir(number)) for number in set(batch.partitions)}
            for (served, champion), part in _split(batch, learning):
                served.pipeline.process(part, champion)

    def _heir(self, partition: int) -> int:
        """The champion of a partition once the next model has it."""
        assert self.next is not None
        served, champion = self._answering(partition)
        heir = self.next.group.index(served.group.specs[champion].id)
        return self.next.group.asked if heir is None else heir

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
                written, champion = self._partitions[p].changelog_written, self._answering(p)[1]
                layout, spec = served.codec.members[champion].layout, served.group.specs[champion]
                origin, decision = self._partitions[p].origin, self._partitions[p].decision
                decided = decision if decision >= 0 else None
                found[p] = Committed(mine[p], snapshot, written, layout, spec.id, served.hashes, origin, decided)
        return found

    def restored(self, partition: int, written: bool) -> None:
        """Its changelog is read; `written` = it was not empty."""
        self._partitions[partition].changelog_written = written
        with self.lock:
            self._adopt(self.owner(partition), partition)

    @staticmethod
    def _adopt(served: ServedModel, partition: int) -> None:
        if dropped := served.pipeline.adopt(partition):
            log.warning(
                "parts of readings that waited to be joined are dropped: this model, or the [input] table, has no use "
                "for them",
                extra={"partition": partition, "parts": dropped},
            )

    # Champions ------------------------------------------------------------------------------------------------

    def members(self) -> list[tuple[str, Role]]:
        """Id and role of each model that runs."""
        return [(spec.id, role) for spec, role in self.roles()]

    def roles(self) -> list[tuple[ModelSpec, Role]]:
        """Each model that runs, and its role: it is a champion where it answers some partition."""
        answering = {(served, champion) for served, champion in map(self._answering, self._partitions)}
        decided = self.newest.group.index(self._decided[0])
        answering = answering or {(self.newest, self.newest.group.asked if decided is None else decided)}
        champions = {served.group.specs[champion].id for served, champion in answering}
        specs = {spec.id: spec for served in self._all() for spec in served.group.specs}
        return [(spec, "champion" if each in champions else "shadow") for each, spec in specs.items()]

    def promote(self, model_id: str, number: int) -> dict[int, str]:
        """From the next batch on this model answers, also partitions that are assigned later.

        Not where a decision with this `number` or a higher one is in force: another worker has heard of it before.

        Returns:
            partition -> id of the champion until now, where it was another.

        Raises:
            ModelError: no such model runs here.
        """
        if self.newest.group.index(model_id) is None:
            raise ModelError(
                f"the model {model_id} does not run here, so it cannot answer",
                got=", ".join(spec.id for spec in self.newest.group.specs),
                do="Give its directory as --shadow to each worker of the group",
            )
        self._decided, changed = (model_id, number), {}
        for nth, partition in self._partitions.items():
            served, champion = self._answering(nth)
            member = served.group.index(model_id)
            if partition.model is None or member is None or partition.decision >= number:
                if partition.decision > number and member != champion:
                    newer = {"partition": nth, "number": partition.decision, "older": number}
                    log.warning("a newer decision is in force, so an older one changes nothing", extra=newer)
                continue
            partition.decision = number
            if member != champion:
                changed[nth], partition.champion = served.group.specs[champion].id, member
        return changed

    # A swap --------------------------------------------------------------------------------------------------

    def add_next(self, models: Sequence[Model]) -> ServedModel:
        """From now on a model with its shadows is the newest. Partitions assigned so far stay with the current one."""
        for partition in self._partitions.values():
            if partition.model is None:
                partition.model, partition.champion = self.current, self.current.group.asked
        self.next = ServedModel(self._settings, models, self._clock, self._input)
        return self.next

    @property
    def layout_is_kept(self) -> bool:
        """True where states mean the same to both models."""
        return states_are_kept(self.current, self.newest)

    def hand_over(self, partition: int) -> None:
        """From the next reading on, the next model answers the partition; its states go into the next commit.

        Where both share one layout, the states are moved. Otherwise the next model has made its own, and the changelog
        gets a tombstone for each series that it has not met. The states of shadows are moved.
        """
        older, newer = self.current, self.next
        assert newer is not None and self.owner(partition) is older
        with self.lock:
            heir = self._heir(partition)
            move_series(older, newer, partition)
            newer.store.pending_tombstones += [(key, p) for key, p in older.store.pending_tombstones if p == partition]
            newer.store.dropped_parts, older.store.dropped_parts = older.store.dropped_parts, 0
            newer.pipeline.take_over(partition, older.pipeline)
            self._adopt(newer, partition)
            older.pipeline.revoke({partition})
        self._partitions[partition].model, self._partitions[partition].champion = newer, heir

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
                if found is None or (answering := self._answering(found["partition"]))[0] is not served:  # type: ignore[arg-type]
                    continue
                spec = served.group.specs[answering[1]]
                if served.group.alone:
                    found["warm"] = found["steps"] >= spec.warmup_steps  # type: ignore[operator]
                else:
                    del found["state"], found["steps"]
                    found["models"] = served.describe(key.encode(), answering[1])
                    found["warm"] = found["models"][spec.id]["warm"]  # type: ignore[index]
                found["model"] = spec.id
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


def _split(
    batch: Batch, answering: Mapping[int, tuple[ServedModel, int]]
) -> Iterable[tuple[tuple[ServedModel, int], Batch]]:
    """The parts of a batch that each answers, by partition; nearly always it is one."""
    who = list(dict.fromkeys(answering.values()))
    if len(who) == 1:
        return [(who[0], batch)]
    rows = [[row for row, p in enumerate(batch.partitions) if answering[p] == each] for each in who]
    return [(each, batch.take(own)) for each, own in zip(who, rows, strict=True)]
