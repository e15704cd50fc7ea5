"""Reads and writes the whole changelog for the `state` commands, without joining the consumer group."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple, TypeVar

from tidecast.service.broker.port import Broker, OutgoingBatch
from tidecast.service.broker.topics import create_command
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError, ChangelogError, Fenced
from tidecast.service.state.codec import check_record

T = TypeVar("T")
_POLL_S = 0.5
_MAX_RECORDS = 10_000


class SeriesLocation(NamedTuple):
    """Where the state of a series is stored: its partition, the same as that of its readings, and its key."""

    partition: int
    key: bytes

    @property
    def series(self) -> str:
        """The key as text. Workers write only keys in UTF-8."""
        return self.key.decode("utf-8", "backslashreplace")


class ChangelogEntry(NamedTuple):
    """A record to write; without a value it is a tombstone."""

    place: SeriesLocation
    value: bytes | None


def partitions_of(broker: Broker, settings: Settings) -> int:
    """The number of partitions of the changelog.

    Raises:
        BrokerError: there is no such topic; the text has the command that creates it.
    """
    topic = settings.changelog_topic
    count = broker.partitions(topic)
    if count is None:
        wanted = broker.partitions(settings.input_topic) or 4
        raise BrokerError(
            f"there is no changelog {topic} on {settings.bootstrap_servers}",
            do=f"Name it with --changelog-topic, or create it: {create_command(settings, wanted)}",
        )
    return count


def read_latest(
    broker: Broker,
    settings: Settings,
    decode: Callable[[bytes], T],
    *,
    only: Collection[bytes] | None = None,
    damaged: dict[SeriesLocation, ChangelogError] | None = None,
) -> dict[SeriesLocation, T]:
    """The last value of each series, decoded by `decode`; series whose last record is a tombstone are left out.

    Reads from the beginning to the present end offset, committed transactions only.

    Args:
        broker: where.
        settings: what is in force.
        decode: of a value.
        only: just these keys.
        damaged: if given, each state is checked as a restore does it, and what is wrong goes in here; it is left out.

    Raises:
        BrokerError: no such topic, or Kafka does not answer.
        ChangelogError: `decode` refuses the last value of a series.
    """
    topic = settings.changelog_topic
    count = partitions_of(broker, settings)
    found: dict[SeriesLocation, tuple[int, T | ChangelogError]] = {}
    check = damaged is not None
    consumer = broker.consumer()
    try:
        consumer.assign(topic, dict.fromkeys(range(count), -2))
        first, ends = consumer.beginning_offsets(range(count)), consumer.end_offsets(range(count))
        readings = input_ends(broker, settings) if check else {}  # after those of the states, which grow with them
        left = {p for p in range(count) if first[p] < ends[p]}
        deadline = time.monotonic() + settings.broker_timeout_seconds
        while left:
            batch = consumer.poll(_POLL_S, _MAX_RECORDS)
            for partition, offset, key, value in zip(
                batch.partitions, batch.offsets, batch.keys, batch.values, strict=True
            ):
                if key is None:
                    raise ChangelogError(
                        f"{topic}-{partition}, offset {offset}: a record without a key; {topic} is not a changelog",
                        do="Name another with --changelog-topic.",
                    )
                if offset >= ends[partition] or (only is not None and key not in only):
                    continue
                if value is None:
                    found.pop(SeriesLocation(partition, key), None)
                else:
                    place = SeriesLocation(partition, key)
                    found[place] = offset, _decoded(decode, place, value, readings.get(partition), check)
            # The position, not the last record: transaction markers and compacted records come after it.
            left -= {p for p, position in batch.next_offsets.items() if position >= ends[p]}
            if len(batch) or batch.next_offsets:
                deadline = time.monotonic() + settings.broker_timeout_seconds
            elif time.monotonic() > deadline:
                raise BrokerError(
                    f"reading {topic}: nothing arrived for {settings.broker_timeout_seconds:g} s before its end",
                    do="Check the brokers, or raise --broker-timeout-seconds.",
                )
    finally:
        consumer.close()
    good: dict[SeriesLocation, T] = {}
    for place, (offset, found_value) in found.items():
        try:
            good[place] = _checked(topic, place, offset, found_value)
        except ChangelogError as error:
            if damaged is None:
                raise
            damaged[place] = error
    return good


def _decoded(
    decode: Callable[[bytes], T], place: SeriesLocation, value: bytes, end: int | None, check: bool
) -> T | ChangelogError:
    try:
        if check:
            check_record(place.key, value, end=end)
        return decode(value)
    except ChangelogError as error:  # an error only if no later record replaces this one
        return error


def _checked(topic: str, place: SeriesLocation, offset: int, value: T | ChangelogError) -> T:
    if not isinstance(value, ChangelogError):
        return value
    what = f"{topic}-{place.partition}, offset {offset}, series {place.series!r}: {value.what}"
    do = (
        value.do
        or f"Delete that state, and its series starts again from the initial state: tidecast state reset {place.series}"
    )
    raise ChangelogError(what, got=value.got, do=do, layout=value.layout)


def append(broker: Broker, settings: Settings, entries: Iterable[ChangelogEntry]) -> None:
    """Append the records in order, and wait until Kafka has them.

    Raises:
        BrokerError: one could not be delivered; those before it may be there.
    """
    producer = broker.producer()
    try:
        outgoing = OutgoingBatch(settings.changelog_topic)
        for (partition, key), value in entries:
            outgoing.append(key, value, partition=partition)
            if len(outgoing) == _MAX_RECORDS:
                producer.produce(outgoing)
                outgoing = OutgoingBatch(settings.changelog_topic)
        producer.produce(outgoing)
        producer.flush(settings.broker_timeout_seconds)
    finally:
        producer.close()


def check_stopped(broker: Broker, settings: Settings) -> None:
    """Check that the group has no running worker, which would write its states from memory to the changelog again.

    Commits one of the group's offsets again, unchanged, from outside; Kafka accepts that only for a group without
    members. A group that has never committed cannot be checked this way, and passes.

    Raises:
        BrokerError: the group has members, or Kafka cannot be reached.
    """
    count = broker.partitions(settings.input_topic)
    if count is None:
        return  # then no worker can run either
    consumer = broker.consumer(group=settings.group)
    try:
        consumer.assign(settings.input_topic, dict.fromkeys(range(count), 0))
        known = {p: known for p, known in consumer.committed(range(count)).items() if known is not None}
        for partition, (offset, metadata) in sorted(known.items())[:1]:
            try:
                consumer.commit({partition: offset}, metadata)
            except Fenced as error:
                raise BrokerError(
                    f"the group {settings.group} is not stopped; its workers would overwrite what is changed here",
                    do="Stop them (after a kill -9, Kafka notices when the session times out), or give --force.",
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
