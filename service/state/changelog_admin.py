"""The changelog as a whole, for a person's tools: read up to its end offset, or written, by no member of the group."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple, TypeVar

from tidecast.service.broker.partitioner import partition_for
from tidecast.service.broker.port import Broker, Outgoing
from tidecast.service.broker.topics import create_command
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError, ChangelogError, Fenced

T = TypeVar("T")
_POLL_S = 0.5
_MAX_RECORDS = 10_000


class SeriesLocation(NamedTuple):
    """Where a series' state lies: its partition, which is its readings' too, and its key."""

    partition: int
    key: bytes

    @property
    def series(self) -> str:
        """The key as text. Keys are UTF-8 where a worker wrote them."""
        return self.key.decode("utf-8", "backslashreplace")


class ChangelogEntry(NamedTuple):
    """One record to write; without a value it is a tombstone."""

    place: SeriesLocation
    value: bytes | None


def partitions_of(broker: Broker, settings: Settings) -> int:
    """How many partitions the changelog has.

    Raises:
        BrokerError: there is no such topic; the text holds the command that makes it.
    """
    topic = settings.changelog_topic
    count = broker.partitions(topic)
    if count is None:
        wanted = broker.partitions(settings.input_topic) or 4
        raise BrokerError(
            f"there is no changelog {topic} on {settings.bootstrap_servers}",
            do=f"Name it with --changelog-topic, or make it: {create_command(settings, wanted)}",
        )
    return count


def read_latest(
    broker: Broker, settings: Settings, take: Callable[[bytes], T], *, only: Collection[bytes] | None = None
) -> dict[SeriesLocation, T]:
    """What `take` makes of the last value of each series, without those whose last is a tombstone.

    Reads by position, from the beginning to the end offset of now; what a transaction did not commit is not seen.
    `only`: of these keys alone.

    Raises:
        BrokerError: no such topic, or Kafka does not answer.
        ChangelogError: of a series that is asked for, the last value is one that `take` refuses.
    """
    topic = settings.changelog_topic
    count = partitions_of(broker, settings)
    found: dict[SeriesLocation, tuple[int, T | ChangelogError]] = {}
    consumer = broker.consumer()
    try:
        consumer.assign(topic, dict.fromkeys(range(count), -2))
        first, ends = consumer.beginning_offsets(range(count)), consumer.end_offsets(range(count))
        left = {p for p in range(count) if first[p] < ends[p]}
        deadline = time.monotonic() + settings.broker_timeout_seconds
        while left:
            batch = consumer.poll(_POLL_S, _MAX_RECORDS)
            for partition, offset, key, value in zip(
                batch.partitions, batch.offsets, batch.keys, batch.values, strict=True
            ):
                if key is None:
                    raise ChangelogError(
                        f"{topic}-{partition}, offset {offset}: a record without a key; {topic} is no changelog",
                        do="Name another with --changelog-topic.",
                    )
                if offset >= ends[partition] or (only is not None and key not in only):
                    continue
                if value is None:
                    found.pop(SeriesLocation(partition, key), None)
                else:
                    found[SeriesLocation(partition, key)] = offset, _taken(take, value)
            # The position, not the last record: transaction markers and compacted records come after it.
            left -= {p for p, position in batch.next_offsets.items() if position >= ends[p]}
            if len(batch) or batch.next_offsets:
                deadline = time.monotonic() + settings.broker_timeout_seconds
            elif time.monotonic() > deadline:
                raise BrokerError(
                    f"reading {topic}: nothing came for {settings.broker_timeout_seconds:g} s before its end",
                    do="Check the brokers, or raise --broker-timeout-seconds.",
                )
    finally:
        consumer.close()
    return {place: _good(topic, place, offset, taken) for place, (offset, taken) in found.items()}


def _taken(take: Callable[[bytes], T], value: bytes) -> T | ChangelogError:
    try:
        return take(value)
    except ChangelogError as error:  # a fault only where nothing later replaces it
        return error


def _good(topic: str, place: SeriesLocation, offset: int, taken: T | ChangelogError) -> T:
    if not isinstance(taken, ChangelogError):
        return taken
    what = f"{topic}-{place.partition}, offset {offset}, series {place.series!r}: {taken.what}"
    do = taken.do or f"Forget that state, and its series starts again, cold: tidecast state reset {place.series}"
    raise ChangelogError(what, got=taken.got, do=do, layout=taken.layout)


def append(broker: Broker, settings: Settings, entries: Iterable[ChangelogEntry]) -> None:
    """Append the records in order, and wait until Kafka has them.

    Raises:
        BrokerError: one could not be delivered; those before it may be there.
    """
    producer = broker.producer()
    try:
        outgoing = Outgoing(settings.changelog_topic)
        for (partition, key), value in entries:
            outgoing.append(key, value, partition=partition)
            if len(outgoing) == _MAX_RECORDS:
                producer.produce(outgoing)
                outgoing = Outgoing(settings.changelog_topic)
        producer.produce(outgoing)
        producer.flush(settings.broker_timeout_seconds)
    finally:
        producer.close()


def check_stopped(broker: Broker, settings: Settings) -> None:
    """See that no worker of the group lives: it holds its states in memory and would write them back.

    The group's offsets are committed again, as they are, from outside: Kafka takes that only for a group without
    members. So of a group that has never committed there is no telling, and it passes.

    Raises:
        BrokerError: the group has members, or Kafka cannot be reached.
    """
    count = broker.partitions(settings.input_topic)
    if count is None:
        return  # nor is there a worker, then
    consumer = broker.consumer(group=settings.group)
    try:
        consumer.assign(settings.input_topic, dict.fromkeys(range(count), 0))
        known = {p: known for p, known in consumer.committed(range(count)).items() if known is not None}
        for partition, (offset, metadata) in sorted(known.items())[:1]:
            try:
                consumer.commit({partition: offset}, metadata)
            except Fenced as error:
                raise BrokerError(
                    f"the group {settings.group} is not stopped; its workers would write their states back",
                    do="Stop them (after a kill -9 Kafka notices at the end of the session), or give --force.",
                ) from error
    finally:
        consumer.close()


def input_ends(broker: Broker, settings: Settings) -> dict[int, int]:
    """The offset after the last reading of each partition of the input topic; empty where there is no such topic."""
    count = broker.partitions(settings.input_topic)
    if count is None:
        return {}
    consumer = broker.consumer()
    try:
        consumer.assign(settings.input_topic, dict.fromkeys(range(count), 0))
        return consumer.end_offsets(range(count))
    finally:
        consumer.close()


def location_of(key: bytes, partitions: int) -> SeriesLocation:
    """Where the state of a series belongs whose readings go by Kafka's default partitioner."""
    return SeriesLocation(partition_for(key, partitions), key)
