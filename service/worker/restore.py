"""Restores states from the changelog, and finds the offset from which the input is replayed.

A partition is restored in small steps between two polls, while it is paused, so that the group never waits for it:
  1. ask: what the group has committed for it (an offset, and in its metadata the snapshot offset), and where its
     changelog ends. The end is the last written offset, not the last stable one: what an earlier owner has committed
     may still be getting its markers.
  2. read its changelog up to that end, by position (the last record may be a marker, or compacted away).
  3. finish: the input is replayed from the snapshot offset, up to the committed one without emitting.
States with another layout, made by an earlier model of the same name, are useless: then recent input is replayed,
from the initial state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import compress
from typing import cast

import numpy as np

from tidecast.service.broker.port import Batch, Broker, Consumer
from tidecast.service.broker.topics import reset_command
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError, BrokerUnavailable, ChangelogError
from tidecast.service.state.flush import GROUP_HEADER
from tidecast.service.state.offset_metadata import Committed
from tidecast.service.worker.model_swap import warmup_readings
from tidecast.service.worker.partition import Partitions, RestoreProgress
from tidecast.service.worker.restore_checks import check_fits, check_retained, check_written, needs_rebuild
from tidecast.service.worker.restored_states import put_states
from tidecast.service.worker.retries import Retries
from tidecast.service.worker.served_models import ServedModels

log = logging.getLogger("tidecast.restore")

_BATCH = 20_000  # records of one step: the more, the less each costs; with 264 numbers in a state, 20 MB


@dataclass(frozen=True, slots=True)
class Restored:
    """Where a restored partition continues."""

    replay_from: int | None  # None = nothing is committed: where a new group begins
    committed: int | None
    series: int
    seconds: float


class Restore:
    """Restores partitions into the store of the model that is to answer them. For one thread, the worker's.

    Args:
        broker: to read the changelog with.
        settings: what is in force.
        partitions: those assigned; new ones among them are restored.
        models: whose states come back.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        partitions: Partitions,
        models: ServedModels,
        clock: Callable[[], float],
    ) -> None:
        self._broker, self._settings, self._partitions = broker, settings, partitions
        self._models, self._clock = models, clock
        self._group = settings.group.encode()
        self.damaged = 0  # states that were set aside
        self._asking = Retries(
            "Kafka does not say what is committed, asking again", "Kafka says what is committed",
            settings.broker_timeout_seconds, clock, first_wait_s=0.0,
        )  # fmt: skip
        self.failures = Retries(
            "a restore could not be ended, beginning it again", "the restore has ended",
            settings.broker_timeout_seconds, clock,
        )  # fmt: skip
        self._fetched: set[int] = set()  # partitions of the changelog that the reader fetches
        self._reader: Consumer | None = None
        self._ends: Consumer | None = None

    @property
    def _reading(self) -> dict[int, RestoreProgress]:
        return {number: p.restore for number, p in self._partitions.items() if p.restore is not None}

    @property
    def _waiting(self) -> set[int]:
        """Partitions about which Kafka was not asked yet."""
        return {number for number, p in self._partitions.items() if p.restoring and p.restore is None}

    @property
    def remaining(self) -> int:
        """Offsets of the changelog that are still to be read."""
        return sum(max(0, r.end - r.position) for r in self._reading.values())

    def advance(self, consumer: Consumer, wait_s: float) -> dict[int, Restored]:
        """Do a little; returns the partitions that are restored now.

        Raises:
            BrokerError: the broker does not answer, or what is committed does not fit the changelog.
            ChangelogError: the changelog holds what this model cannot use.
        """
        waiting = self._waiting
        if waiting and not self._ask(consumer, waiting):
            return {}
        reading = self._reading
        self._pause(self._fetched - reading.keys())
        if self._reader is not None and any(r.position < r.end for r in reading.values()):
            batch = self._reader.poll(wait_s, _BATCH)
            with self._models.lock:
                self._apply(batch, reading)
        done = {number: r for number, r in reading.items() if r.position >= r.end}
        for number in done:
            self._partitions[number].restore = None
        self._pause(done)
        try:
            outdated = {number for number, r in done.items() if self._outdated(number, r, consumer)}
            restored = {n: self._finish(n, r, consumer) for n, r in done.items() if n not in outdated}
        except BrokerUnavailable as error:
            self.failures.add(error)
            outdated, restored = set(done), {}
        if outdated:
            self._models.revoke(outdated)
        for number in restored:
            self._partitions[number].restoring = False
        return restored

    def _outdated(self, partition: int, progress: RestoreProgress, consumer: Consumer) -> bool:
        """True where somebody has committed since Kafka was asked: the group has evicted this worker. Ask again.

        Only looked at where states and offset do not fit, since then this is the likely reason.
        """
        offset = progress.committed.offset if progress.committed is not None else 0
        refused = (error.offset for _, error in progress.strange.values() if error.offset is not None)
        if max(_newest(partition, progress), *refused, -1) < offset:
            return False
        known = consumer.committed({partition})[partition]
        return known is not None and known[0] != offset

    @property
    def waiting(self) -> bool:
        """True while there is nothing to do but to wait until Kafka is asked again."""
        return max(self._asking.seconds_to_wait, self.failures.seconds_to_wait) > 0

    def close(self) -> None:
        """Release the connections."""
        for consumer in (self._reader, self._ends):
            if consumer is not None:
                consumer.close()

    def _ask(self, consumer: Consumer, waiting: set[int]) -> bool:
        """Begin with these partitions. False where Kafka has not answered: ask again after a poll, which reconnects.

        Raises:
            BrokerError: it has not answered for `broker_timeout_seconds`, or the states that it should have are gone.
            ChangelogError: they are of another kind of model.
        """
        if self.waiting:
            return False
        try:
            committed, starts, ends, inputs = self._committed_and_ends(consumer, waiting)
        except BrokerError as error:
            self._asking.add(error)
            return False
        for number in waiting:
            known, end, input_end = committed[number], ends[number], inputs[number]
            found = Committed.parse(*known) if known is not None else None
            served = self._models.choose(number, found)
            check_written(self._settings, number, found, end)
            rebuild = needs_rebuild(self._settings, number, found, served)
            self._partitions[number].restore = RestoreProgress(
                served,
                served.codec_for(found),
                starts[number],
                end,
                found,
                rebuild,
                started=self._clock(),
                input_end=input_end if found is None else max(input_end, found.offset),
            )
        try:
            self._assign()
        except BrokerUnavailable as error:
            for number in waiting:
                self._partitions[number].restore = None
            self._asking.add(error)
            return False
        self._asking.end()
        return True

    def _committed_and_ends(
        self, consumer: Consumer, waiting: set[int]
    ) -> tuple[dict[int, tuple[int, str] | None], dict[int, int], dict[int, int], dict[int, int]]:
        """What is committed, where the changelog begins and ends, and where the input ends, by partition."""
        committed = consumer.committed(waiting)
        if self._ends is None:
            self._reader = self._reader or self._broker.consumer()
            self._ends = self._broker.consumer(isolation="read_uncommitted")
        self._ends.assign(self._settings.changelog_topic, dict.fromkeys(waiting, 0))
        starts, ends = self._ends.beginning_offsets(waiting), self._ends.end_offsets(waiting)
        self._ends.assign(self._settings.input_topic, dict.fromkeys(waiting, 0))
        return committed, starts, ends, self._ends.end_offsets(waiting)

    def _assign(self) -> None:
        reading = self._reading
        if self._reader is not None and reading:
            self._reader.assign(self._settings.changelog_topic, {n: r.position for n, r in reading.items()})
            self._fetched = set(reading)

    def _pause(self, partitions: Collection[int]) -> None:
        """Fetch no more of these. Unlike `_assign`, this keeps what was fetched of the others."""
        if self._reader is not None and partitions:
            self._reader.pause(partitions)
            self._fetched -= set(partitions)

    def _apply(self, batch: Batch, reading: Mapping[int, RestoreProgress]) -> None:
        """Put into the store of each series only the last record, in the order in which these were written."""
        strangers = self._check_owners(batch)
        partitions = np.array(batch.partitions, dtype=np.int32)
        for number, progress in reading.items():
            mine = (partitions == number).tolist()
            keys = list(compress(batch.keys, mine))
            progress.records += len(keys)
            last = dict(zip(keys, compress(batch.values, mine), strict=True))
            if len(last) < len(keys):
                for key in keys:  # the place of a series is that of its last record
                    last[key] = last.pop(key)
            last.pop(None, None)
            foreign = {k for p, k, h in zip(batch.partitions, batch.keys, batch.headers, strict=True)
                       if p == number and tuple(h) in strangers} if strangers else set()  # fmt: skip
            refused = put_states(number, progress, cast(dict[bytes, bytes | None], last), foreign)
            for key, error in refused.items():
                at = max(o for o, p, k in zip(batch.offsets, batch.partitions, batch.keys, strict=True)
                         if p == number and k == key)  # fmt: skip
                if error.intact:  # at the end it is known whether most states are like that
                    progress.strange[key] = at, error
                else:
                    self._set_aside(number, key, at, error)
            progress.position = batch.next_offsets.get(number, progress.position)

    def _set_aside(self, partition: int, key: bytes, offset: int, error: ChangelogError) -> None:
        self.damaged += 1
        log.warning(
            "the state of a series is set aside, and the series starts again",
            extra={
                "record": f"{self._settings.changelog_topic}-{partition}-{offset}",
                "key": key.decode("utf-8", "backslashreplace"),
                "reason": str(error) if error.do is None else error.what,
            },
        )

    def _check_owners(self, batch: Batch) -> set[tuple[tuple[str, bytes], ...]]:
        """The headers, among those of the batch, that no group can have written.

        Raises:
            ChangelogError: a record belongs to another group.
        """
        strangers = set()
        for kind in set(map(tuple, batch.headers)):
            owner = dict(kind).get(GROUP_HEADER, self._group)
            if owner == self._group:
                continue
            try:
                name = owner.decode()
            except UnicodeDecodeError:
                strangers.add(kind)
                continue
            raise ChangelogError(
                f"{self._settings.changelog_topic} holds states of the group {name!r}",
                do=f"Give the group {self._settings.group!r} a --changelog-topic of its own.",
            )
        return strangers

    def _judge_strange(self, partition: int, progress: RestoreProgress) -> None:
        """Set aside intact states that cannot be used, if they are the smaller part.

        Raises:
            BrokerError: they are of readings that the input does not have: it is another input.
            ChangelogError: they are of another model or version: this worker must not delete them.
        """
        strange = progress.strange
        if len(strange) > progress.series:
            newest = max((-1 if error.offset is None else error.offset for _, error in strange.values()), default=-1)
            check_fits(self._settings, partition, progress.committed, progress.series + len(strange), newest)
            offset, error = next(iter(strange.values()))
            raise ChangelogError(
                f"{self._settings.changelog_topic}-{partition}, offset {offset}: {error.what}",
                do=error.do or f"To begin anew: {reset_command(self._settings)}",
                layout=error.layout,
            )
        for key, (offset, error) in strange.items():
            self._set_aside(partition, key, offset, error)
        progress.useless |= strange.keys()

    def _finish(self, partition: int, progress: RestoreProgress, consumer: Consumer) -> Restored:
        """The changelog is read.

        Raises:
            BrokerError: it does not fit what is committed.
        """
        committed = progress.committed
        self._judge_strange(partition, progress)
        check_fits(self._settings, partition, committed, progress.series, _newest(partition, progress))
        start = None if committed is None else self._replay_from(partition, progress, committed, consumer)
        self._models.restored(partition, progress.end > 0)
        with self._models.lock:
            progress.served.store.pending_tombstones += [(key, partition) for key in progress.useless]
        seconds = round(self._clock() - progress.started, 3)
        offset = committed.offset if committed is not None else None
        found = {"partition": partition, "series": progress.series, "records": progress.records, "seconds": seconds}
        log.info("states restored", extra={**found, "replay_from": start, "committed": offset})
        return Restored(start, offset, progress.series, seconds)

    def _replay_from(self, partition: int, progress: RestoreProgress, committed: Committed, consumer: Consumer) -> int:
        """The offset at which the input is read again.

        Raises:
            BrokerError: retention has deleted it.
        """
        start = committed.offset if committed.snapshot is None else committed.snapshot
        if progress.rebuild:
            slowest = max(progress.served.group.specs, key=lambda spec: spec.warmup_steps)
            back = warmup_readings(self._settings, slowest, len(progress.useless))
            start = committed.offset - back
            log.warning(
                "the states have another layout: the new model replays recent input",
                extra={"partition": partition, "made_by": committed.model, "readings": back},
            )
        first = consumer.beginning_offsets([partition])[partition]
        if not progress.rebuild:
            check_retained(self._settings, partition, first, start, committed.offset)
        return max(first, start)


def _newest(partition: int, progress: RestoreProgress) -> int:
    """The last offset that a state holds, -1 = none does (imported states may hold none of this input).

    Only states that are left count: one may have been reset later.
    """
    store = progress.served.store
    return int(store.offsets[store.partitions == partition].max(initial=-1))
