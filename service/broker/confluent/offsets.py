"""Offsets that a consumer on librdkafka asks Kafka for."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from tidecast.service.broker.confluent.client import ConfluentClient, topic_errors
from tidecast.service.broker.port import Consumer

BEGINNING, END = -2, -1  # as times, in a request for offsets
_AGAIN_PAUSE_S = 0.005
_MOVED = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
)  # or is new


def offsets_at(
    client: ConfluentClient, kafka: Any, topic: str, partitions: Collection[int], when: int
) -> dict[int, int]:
    """`partition -> offset` of the beginnings or the ends, the latter as the consumer's isolation level sees them."""
    if not partitions:
        return {}
    asked = [TopicPartition(topic, partition, when) for partition in partitions]
    deadline = time.monotonic() + client.timeout_s
    with client.errors(f"asking for the offsets of {topic}"):
        while True:
            try:
                return {
                    tp.partition: tp.offset for tp in topic_errors(kafka.offsets_for_times(asked, client.timeout_s))
                }
            except KafkaException as error:  # the library should ask again, but raises at once
                if error.args[0].code() not in _MOVED or time.monotonic() > deadline:
                    raise
            time.sleep(_AGAIN_PAUSE_S)


class CommittedOffsets:
    """Reads what a group has committed, through kafka-python. See docs/upstream.md, C1 and C2."""

    def __init__(self, make: Callable[[], Consumer]) -> None:
        self._make = make
        self._consumer: Consumer | None = None
        self._topic = ""

    def committed(self, topic: str, partitions: Collection[int]) -> dict[int, tuple[int, str] | None]:
        """See `Consumer.committed`."""
        if self._consumer is None:
            self._consumer = self._make()
        if self._topic != topic:
            self._consumer.assign(topic, {})
            self._topic = topic
        return self._consumer.committed(partitions)

    def close(self) -> None:
        """Close the connection."""
        if self._consumer is not None:
            self._consumer.close()
