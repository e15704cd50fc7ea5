"""From the changelog back into the table: states as they were committed, and from where the input is replayed.

A partition is restored in small steps between two polls, while it is paused, so that the group never waits for it:
  1. ask: what the group has committed for it (an offset, and in its metadata the snapshot offset), and where its
     changelog ends. The end is the last written offset, not the last stable one: what an earlier owner has committed
     may still be getting its markers.
  2. read its changelog up to that end, by position (the last record may be a marker, or compacted away).
  3. hand over: replay the input from the snapshot offset, silently up to the committed one, and go on from there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass

from service.broker.base import Batch, Broker, Consumer
from service.changelog import Codec
from service.errors import BrokerError, ChangelogError
from service.flush import GROUP_HEADER
from service.series import SeriesTable
from service.settings import Settings
from service.topics import reset_command

log = logging.getLogger("tidecast.restore")

_BATCH = 2_000
_PREFIX = "s="


def metadata(snapshot: int) -> str:
    """The text beside a committed offset."""
    return f"{_PREFIX}{snapshot}"


@dataclass(frozen=True, slots=True)
class Restored:
    """How a partition goes on."""

    replay_from: int | None  # None = nothing is committed: where a group begins
    committed: int | None
    series: int
    seconds: float


@dataclass(slots=True)
class _Reading:
    """A partition's changelog while it is read."""

    position: int
    end: int
    committed: int | None
    snapshot: int | None
    series: int = 0
    started: float = 0.0


class Restore:
    """Restores partitions into a table. For one thread, the worker's."""

    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        codec: Codec,
        table: SeriesTable,
        lock: threading.Lock,
        clock: Callable[[], float],
    ) -> None:
        self._broker, self._settings, self._codec, self._table = broker, settings, codec, table
        self._lock, self._clock = lock, clock  # the lock is held while the table changes
        self._group = settings.group.encode()
        self._waiting: set[int] = set()
        self._unanswered_since: float | None = None
        self._reading: dict[int, _Reading] = {}
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
        if gone:
            self._assign()

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
            with self._lock:
                self._apply(batch)
        done = {p: r for p, r in self._reading.items() if r.position >= r.end}
        for partition in done:
            del self._reading[partition]
        if done:
            self._assign()
        return {p: self._handed_over(p, r, consumer) for p, r in done.items()}

    def close(self) -> None:
        """Let go of its connections."""
        for consumer in (self._reader, self._ends):
            if consumer is not None:
                consumer.close()

    def _asked(self, consumer: Consumer) -> bool:
        """False where Kafka has not answered: asked again after the next poll, which is what mends a lost connection.

        Raises:
            BrokerError: it has not answered for `broker_timeout_seconds`.
        """
        began = self._clock() if self._unanswered_since is None else self._unanswered_since
        try:
            self._ask(consumer)
        except BrokerError as error:
            self._unanswered_since = began
            if self._clock() - began >= self._settings.broker_timeout_seconds:
                raise
            log.warning("Kafka does not say what is committed, asking again", extra={"reason": error.what})
            return False
        self._unanswered_since = None
        return True

    def _ask(self, consumer: Consumer) -> None:
        committed = consumer.committed(self._waiting)
        topic = self._settings.changelog_topic
        if self._ends is None:
            self._reader = self._reader or self._broker.consumer()
            self._ends = self._broker.consumer(isolation="read_uncommitted")
        self._ends.assign(topic, dict.fromkeys(self._waiting, 0))
        starts, ends = self._ends.beginning_offsets(self._waiting), self._ends.end_offsets(self._waiting)
        for partition in self._waiting:
            known = committed[partition]
            offset, text = known if known is not None else (None, "")
            self._reading[partition] = _Reading(
                starts[partition], ends[partition], offset, _snapshot(text), started=self._clock()
            )
        self._waiting = set()
        self._assign()

    def _assign(self) -> None:
        if self._reader is not None and self._reading:
            self._reader.assign(self._settings.changelog_topic, {p: r.position for p, r in self._reading.items()})

    def _apply(self, batch: Batch) -> None:
        for partition, key, value, headers in zip(
            batch.partitions, batch.keys, batch.values, batch.headers, strict=True
        ):
            reading = self._reading.get(partition)
            if reading is None or key is None:
                continue
            owner = dict(headers).get(GROUP_HEADER, self._group)
            if owner != self._group:
                raise ChangelogError(
                    f"{self._settings.changelog_topic}-{partition} holds states of the group {owner.decode()!r}",
                    do=f"Give the group {self._settings.group!r} a --changelog-topic of its own.",
                )
            slot = self._table.find(key)
            if value is not None:
                reading.series += slot is None
                snapshot = self._codec.decode(value)
                self._table.restore(key, partition, snapshot)
            elif slot is not None:
                reading.series -= 1
                self._table.discard(key)
        for partition, position in batch.next_offsets.items():
            if partition in self._reading:
                self._reading[partition].position = position

    def _handed_over(self, partition: int, reading: _Reading, consumer: Consumer) -> Restored:
        """Check that what is there fits what was committed.

        Raises:
            BrokerError: it does not.
        """
        s, where = self._settings, f"{self._settings.input_topic}-{partition}"
        # Of the states that are left: one that was reset afterwards must not count. Imported ones may hold none of this
        # input.
        newest = int(self._table.offsets[self._table.partitions == partition].max(initial=-1))
        if reading.committed is None and newest >= 0:
            raise BrokerError(
                f"the changelog has {reading.series} states for {where}, but the group {s.group!r} has no offset there",
                do=f"Its offsets are gone, or the states are another's. To begin anew: {reset_command(s)}",
            )
        if reading.committed is not None and newest >= reading.committed and s.delivery == "exactly-once":
            raise BrokerError(
                f"the changelog is ahead of the group {s.group!r}: a state holds offset {newest} of {where}, "
                f"but the group has committed {reading.committed}",
                do=f"Its offsets were set back, or it ran with at-least-once. To answer all from there again, cold: "
                f"{reset_command(s)}",
            )
        start = reading.snapshot if reading.snapshot is not None else reading.committed
        if start is not None and reading.committed is not None and start < reading.committed:
            first = consumer.beginning_offsets([partition])[partition]
            if first > start and not s.accept_gap:
                raise BrokerError(
                    f"{where} begins at offset {first}, but its states need a replay of {start} to {reading.committed}:"
                    " retention has eaten that range",
                    do="Raise the topic's retention. To go on with the states as they are: --accept-gap",
                )
            start = max(first, start)
        seconds = round(self._clock() - reading.started, 3)
        found = {"partition": partition, "series": reading.series, "replay_from": start, "committed": reading.committed}
        log.info("states restored", extra={**found, "seconds": seconds})
        return Restored(start, reading.committed, reading.series, seconds)


def _snapshot(text: str) -> int | None:
    digits = text.removeprefix(_PREFIX)
    return int(digits) if text.startswith(_PREFIX) and digits.isdecimal() else None
