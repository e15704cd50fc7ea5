"""From librdkafka's messages to the columns of the port."""

from __future__ import annotations

import time
from collections.abc import Collection
from operator import itemgetter
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Message as _Message

from tidecast.service.broker.client import Failure, without_null
from tidecast.service.broker.confluent.client import ConfluentClient
from tidecast.service.broker.port import Batch

Message: Any = _Message  # its type stub says that each method may return None


class MessageBuffer:
    """What has arrived for a consumer and was not returned yet. `grouped`: the consumer has a group."""

    def __init__(self, client: ConfluentClient, grouped: bool) -> None:
        self._client, self._grouped = client, grouped
        self._held: list[Any] = []  # records that arrived together with an error
        self.ends: dict[int, int] = {}  # partition -> its end, if it was reached
        self.unread: dict[int, int] = {}  # partition -> the offset of a batch that the library cannot unpack

    def take(self, kafka: Any, deadline: float, max_records: int) -> tuple[list[Any], BaseException | None]:
        """At most so many records, and what went wrong; waits until `deadline` (monotonic) for something.

        The records are valid with an error too: keep them with `hold` before raising.
        """
        if self._held:
            found, self._held = self._held[:max_records], self._held[max_records:]
            return found, None
        # `consume` is not asked to wait: it would wait until there are as many as it may give.
        found = kafka.consume(max_records, 0)
        if not found and (first := kafka.poll(max(0.0, deadline - time.monotonic()))) is not None:
            found = [first]
            if max_records > 1:
                found += kafka.consume(max_records - 1, 0)
        return self._sorted(found) if any(map(Message.error, found)) else (found, None)

    def _sorted(self, messages: list[Any]) -> tuple[list[Any], BaseException | None]:
        """The records among messages; notes which partitions reached their ends."""
        records, failure = [], None
        for message in messages:
            error = message.error()
            if error is None:
                records.append(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                self.ends[message.partition()] = message.offset()
            elif error.code() == KafkaError._BAD_COMPRESSION:
                self.unread[message.partition()] = message.offset()
            elif not self._grouped and error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
                pass  # of the coordinator, which the library looks for without need: see `consumer_options`
            elif self._client.classify(error)[0] is not Failure.UNAVAILABLE:  # else the library continues to try
                failure = KafkaException(error)
        return records, failure

    def hold(self, records: list[Any]) -> None:
        """Return them first next time."""
        self._held = records + self._held

    def drop(self, partitions: Collection[int]) -> None:
        """Forget what was held of them."""
        self._held = without(self._held, partitions)
        for partition in partitions:
            self.ends.pop(partition, None)
            self.unread.pop(partition, None)

    def clear(self) -> None:
        """Forget all that was held."""
        self._held, self.ends, self.unread = [], {}, {}


def without(records: list[Any], partitions: Collection[int]) -> list[Any]:
    """The records of other partitions."""
    return [record for record in records if record.partition() not in partitions]


def batch_of(topic: str, records: list[Any], ends: dict[int, int], positions: dict[int, int]) -> Batch:
    """The columns of records.

    Args:
        topic: of all of them.
        records: in the order in which they arrived.
        ends: partition -> its end, where it was reached.
        positions: partition -> the next offset, as last returned; kept up to date.
    """
    batch = Batch(topic)
    if records:
        batch.partitions = list(map(Message.partition, records))
        batch.offsets = list(map(Message.offset, records))
        batch.timestamps = list(map(itemgetter(1), map(Message.timestamp, records)))
        batch.keys = list(map(Message.key, records))
        batch.values = list(map(Message.value, records))
        headers = list(map(Message.headers, records))
        if any(headers):
            batch.headers = [without_null(theirs) if theirs else () for theirs in headers]
        else:
            batch.headers = [()] * len(records)
    last = dict(zip(batch.partitions, batch.offsets, strict=True))
    for partition in last.keys() | ends.keys():
        position = max(last.get(partition, -1) + 1, ends.get(partition, 0))
        if positions.get(partition) != position:
            positions[partition] = batch.next_offsets[partition] = position
    return batch
