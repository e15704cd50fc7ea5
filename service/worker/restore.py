"""From the changelog back into the store: states as they were committed, and from where the input is replayed.

A partition is restored in small steps between two polls, while it is paused, so that the group never waits for it:
  1. ask: what the group has committed for it (an offset, and in its metadata the snapshot offset), and where its
     changelog ends. The end is the last written offset, not the last stable one: what an earlier owner has committed
     may still be getting its markers.
  2. read its changelog up to that end, by position (the last record may be a marker, or compacted away).
  3. hand over: replay the input from the snapshot offset, silently up to the committed one, and go on from there.
States of another layout, made by an earlier model of the same name, are of no use: then 3. replays recent input, from
the initial state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import compress
from typing import cast

import numpy as np

from tidecast.service.broker.port import Batch, Broker, Consumer
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError, ChangelogError, Unanswered
from tidecast.service.state.codec import layout_of
from tidecast.service.state.flush import GROUP_HEADER
from tidecast.service.state.offset_metadata import Committed
from tidecast.service.worker.model_swap import warmup_readings
from tidecast.service.worker.restore_checks import check_fits, check_retained, check_written, needs_rebuild
from tidecast.service.worker.served_models import ServedModel, ServedModels

log = logging.getLogger("tidecast.restore")

_AT_ONCE = 1_000  # series decoded and put into the store together: what it takes besides stays small
_BATCH = 20_000  # records of one step: the more, the less each costs; at 264 numbers 20 MB


@dataclass(frozen=True, slots=True)
class Restored:
    """How a partition goes on."""

    replay_from: int | None  # None = nothing is committed: where a group begins
    committed: int | None
    series: int
    seconds: float


@dataclass(slots=True)
class RestoreProgress:
    """A partition's changelog while it is read."""

    served: ServedModel
    position: int
    end: int
    committed: Committed | None
    anew: bool  # the states there are of another layout
    series: int = 0
    records: int = 0  # that were read, of which a series may have several
    useless: set[bytes] = field(default_factory=set)  # series whose state is of another layout
    started: float = 0.0


class Restore:
    """Restores partitions into the store of the model that is to answer them. For one thread, the worker's."""

    def __init__(self, broker: Broker, settings: Settings, models: ServedModels, clock: Callable[[], float]) -> None:
        self._broker, self._settings, self._models, self._clock = broker, settings, models, clock
        self._group = settings.group.encode()
        self._waiting: set[int] = set()
        self._unanswered_since: float | None = None
        self._reading: dict[int, RestoreProgress] = {}
        self._reader: Consumer | None = None
        self._ends: Consumer | None = None

    def begin(self, partitions: Collection[int]) -> None:
        """These partitions are ours now. Asks nothing yet."""
        self._waiting |= set(partitions)

    def drop(self, partitions: Collection[int]) -> None:
        """These are others' again."""
        self._waiting -= set(partitions)
        gone = set(self._reading) & set(partitions)
        for partition in gone:
            del self._reading[partition]
        self._pause(gone)

    @property
    def partitions(self) -> set[int]:
        """Those that are not restored yet."""
        return self._waiting | set(self._reading)

    @property
    def remaining(self) -> int:
        """Offsets of the changelog that are still to be read."""
        return sum(max(0, r.end - r.position) for r in self._reading.values())

    def step(self, consumer: Consumer, wait_s: float) -> dict[int, Restored]:
        """Do a little; the partitions that are done now.

        Raises:
            BrokerError: the broker does not answer, or what is committed and what is there do not fit.
            ChangelogError: the changelog holds what this model cannot use.
        """
        if self._waiting and not self._asked(consumer):
            return {}
        if self._reader is not None and any(r.position < r.end for r in self._reading.values()):
            batch = self._reader.poll(wait_s, _BATCH)
            with self._models.lock:
                self._apply(batch)
        done = {p: r for p, r in self._reading.items() if r.position >= r.end}
        for partition in done:
            del self._reading[partition]
        self._pause(done)
        try:
            outdated = {p for p, r in done.items() if self._outdated(p, r, consumer)}
            handed_over = {p: self._handed_over(p, r, consumer) for p, r in done.items() if p not in outdated}
        except Unanswered as error:
            log.warning("Kafka does not answer, beginning the restore again", extra={"reason": error.what})
            outdated, handed_over = set(done), {}
        if outdated:
            self.again(outdated)
        return handed_over

    def again(self, partitions: Collection[int]) -> None:
        """Begin anew with these."""
        self._models.revoke(partitions)
        self._waiting |= set(partitions)

    def _outdated(self, partition: int, reading: RestoreProgress, consumer: Consumer) -> bool:
        """True where somebody has committed since we asked: the group has moved on, and will tell us. Ask again.

        Only looked at where states and offset do not fit, for then this is the likely reason.
        """
        offset = reading.committed.offset if reading.committed is not None else 0
        if _newest(partition, reading) < offset:
            return False
        known = consumer.committed({partition})[partition]
        return known is not None and known[0] != offset

    def close(self) -> None:
        """Let go of its connections."""
        for consumer in (self._reader, self._ends):
            if consumer is not None:
                consumer.close()

    def _asked(self, consumer: Consumer) -> bool:
        """False where Kafka has not answered: asked again after the next poll, which is what mends a lost connection.

        Raises:
            BrokerError: it has not answered for `broker_timeout_seconds`, or the states that it should have are gone.
            ChangelogError: they are of another kind of model.
        """
        began = self._clock() if self._unanswered_since is None else self._unanswered_since
        try:
            committed, starts, ends = self._ask(consumer)
        except BrokerError as error:
            self._unanswered_since = began
            if self._clock() - began >= self._settings.broker_timeout_seconds:
                raise
            log.warning("Kafka does not say what is committed, asking again", extra={"reason": error.what})
            return False
        self._unanswered_since = None
        for partition in self._waiting:
            known, end = committed[partition], ends[partition]
            found = Committed.parse(*known) if known is not None else None
            served = self._models.choose(partition, found)
            check_written(self._settings, partition, found, end)
            anew = needs_rebuild(self._settings, partition, found, served)
            self._reading[partition] = RestoreProgress(
                served, starts[partition], end, found, anew, started=self._clock()
            )
        self._waiting = set()
        self._assign()
        return True

    def _ask(self, consumer: Consumer) -> tuple[dict[int, tuple[int, str] | None], dict[int, int], dict[int, int]]:
        """What is committed, and where the changelog begins and ends, by partition."""
        committed = consumer.committed(self._waiting)
        topic = self._settings.changelog_topic
        if self._ends is None:
            self._reader = self._reader or self._broker.consumer()
            self._ends = self._broker.consumer(isolation="read_uncommitted")
        self._ends.assign(topic, dict.fromkeys(self._waiting, 0))
        return committed, self._ends.beginning_offsets(self._waiting), self._ends.end_offsets(self._waiting)

    def _assign(self) -> None:
        if self._reader is not None and self._reading:
            self._reader.assign(self._settings.changelog_topic, {p: r.position for p, r in self._reading.items()})

    def _pause(self, partitions: Collection[int]) -> None:
        """Read no more of these. What has been fetched of the others stays, which `_assign` would fetch again."""
        if self._reader is not None and partitions:
            self._reader.pause(partitions)

    def _apply(self, batch: Batch) -> None:
        """A batch's records into the store: of each series only the last, in the order in which these were written."""
        self._check_owners(batch)
        partitions = np.array(batch.partitions, dtype=np.int32)
        for partition, reading in self._reading.items():
            mine = (partitions == partition).tolist()
            keys = list(compress(batch.keys, mine))
            reading.records += len(keys)
            last = dict(zip(keys, compress(batch.values, mine), strict=True))
            if len(last) < len(keys):
                for key in keys:  # the place of a series is that of its last record
                    last[key] = last.pop(key)
            last.pop(None, None)
            self._take(partition, cast(dict[bytes, bytes | None], last))
            reading.position = batch.next_offsets.get(partition, reading.position)

    def _take(self, partition: int, records: Mapping[bytes, bytes | None]) -> None:
        """States, and tombstones (None), of one partition."""
        reading = self._reading[partition]
        store, codec = reading.served.store, reading.served.codec
        before = len(store)
        states = {key: value for key, value in records.items() if value is not None}
        if reading.anew:
            others = set(states)
        elif reading.committed is not None and reading.committed.layout == codec.layout:
            # What an earlier model has left behind: the states committed are of this layout.
            others = {key for key, value in states.items() if layout_of(value) != codec.layout}
        else:
            others = set()
        reading.useless = reading.useless - records.keys() | others
        for key, value in records.items():
            if value is None or key in others:
                store.discard(key)
        ours = {key: value for key, value in states.items() if key not in others}
        keys, values = [*ours], [*ours.values()]
        for some in (slice(at, at + _AT_ONCE) for at in range(0, len(keys), _AT_ONCE)):
            store.restore_many(keys[some], partition, codec.decode_many(values[some]))
        reading.series += len(store) - before

    def _check_owners(self, batch: Batch) -> None:
        """Raises ChangelogError where a record says that it is another group's."""
        for kind in set(map(tuple, batch.headers)):
            owner = dict(kind).get(GROUP_HEADER, self._group)
            if owner != self._group:
                raise ChangelogError(
                    f"{self._settings.changelog_topic} holds states of the group {owner.decode()!r}",
                    do=f"Give the group {self._settings.group!r} a --changelog-topic of its own.",
                )

    def _handed_over(self, partition: int, reading: RestoreProgress, consumer: Consumer) -> Restored:
        """How the partition goes on.

        Raises:
            BrokerError: what is there does not fit what was committed.
        """
        committed = reading.committed
        check_fits(self._settings, partition, committed, reading.series, _newest(partition, reading))
        start = None if committed is None else self._replay_from(partition, reading, committed, consumer)
        self._models.restored(partition, reading.end > 0)
        with self._models.lock:
            reading.served.store.pending_tombstones += [(key, partition) for key in reading.useless]
        seconds = round(self._clock() - reading.started, 3)
        offset = committed.offset if committed is not None else None
        found = {"partition": partition, "series": reading.series, "records": reading.records, "seconds": seconds}
        log.info("states restored", extra={**found, "replay_from": start, "committed": offset})
        return Restored(start, offset, reading.series, seconds)

    def _replay_from(self, partition: int, reading: RestoreProgress, committed: Committed, consumer: Consumer) -> int:
        """The offset at which the input is read again.

        Raises:
            BrokerError: retention has eaten it.
        """
        start = committed.offset if committed.snapshot is None else committed.snapshot
        if reading.anew:
            back = warmup_readings(self._settings, reading.served.spec, len(reading.useless))
            start = committed.offset - back
            log.warning(
                "the states are of another layout: the new model replays recent input",
                extra={"partition": partition, "made_by": committed.model, "readings": back},
            )
        first = consumer.beginning_offsets([partition])[partition]
        if not reading.anew:
            check_retained(self._settings, partition, first, start, committed.offset)
        return max(first, start)


def _newest(partition: int, reading: RestoreProgress) -> int:
    """The last offset that a state holds, -1 = none does (imported ones may hold none of this input).

    Of the states that are left: one that was reset afterwards must not count.
    """
    store = reading.served.store
    return int(store.offsets[store.partitions == partition].max(initial=-1))
