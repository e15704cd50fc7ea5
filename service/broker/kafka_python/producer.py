"""Producing through kafka-python."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from kafka import KafkaProducer, TopicPartition, errors
from typing_extensions import override

from tidecast.service.broker.client import PlainProducer
from tidecast.service.broker.kafka_python.client import KafkaPythonClient
from tidecast.service.broker.partitioner import partitions_for
from tidecast.service.broker.port import OutgoingBatch

# Bytes handed over since the last flush. kafka-python itself has no limit.
_MAX_UNFLUSHED = 64 << 20
_RECORD_OVERHEAD = 64  # bytes
_LOOK_AGAIN_S = 0.02


class KafkaPythonProducer(PlainProducer):
    """Idempotent, acks=all. After a record could not be delivered, every further call raises."""

    def __init__(self, client: KafkaPythonClient, count: Callable[[str], int | None], **more: Any) -> None:
        self._client = client
        self._count = count
        options = client.options() | {
            "acks": "all",
            "enable_idempotence": True,
            "allow_auto_create_topics": False,
            # Nobody sees a transaction before its end, so there a linger only means fewer requests.
            "linger_ms": 10 if "transactional_id" in more else 0,
            "batch_size": 256 << 10,  # the default of 16 KiB costs 10 µs a record
            "max_request_size": 8 << 20,
            "max_block_ms": client.timeout_ms,
            "delivery_timeout_ms": client.timeout_ms + 1_000,
            "metrics_enabled": False,
            **more,
        }
        self._kafka: Any = client.call("connecting to produce", lambda: KafkaProducer(**options))
        self._counts: dict[str, int] = {}
        self._unflushed = 0
        self._failure: tuple[str, BaseException] | None = None

    @override
    def produce(self, outgoing: OutgoingBatch) -> None:
        self._raise_failure()
        if not len(outgoing):
            return
        topic = outgoing.topic
        highest = max((p for p in set(outgoing.partitions) if p is not None), default=0)
        with self._client.errors(f"producing to {topic}"):
            count = self._partitions_of(topic, highest)
            partitions: list[Any] = outgoing.partitions
            if None in partitions:
                partitions = partitions_for(partitions, outgoing.keys, count)
            failed = partial(self._failed, topic)
            columns = (partitions, outgoing.keys, outgoing.values, outgoing.headers, outgoing.timestamps)
            for partition, key, value, headers, timestamp in zip(*columns, strict=True):
                self._unflushed += len(key or b"") + len(value or b"") + _RECORD_OVERHEAD
                if self._unflushed > _MAX_UNFLUSHED:
                    self._kafka.flush(self._client.timeout_s + 2)
                    self._unflushed = 0
                    self._raise_failure()
                send = self._kafka.send if key is not None or value is not None else self._send_empty
                send(topic, value, key, list(headers), partition, timestamp).add_errback(failed)
        self._raise_failure()

    def _send_empty(
        self, topic: str, value: Any, key: Any, headers: list[Any], partition: int, timestamp: int | None
    ) -> Any:
        """A record without key and value, which `send` refuses and Kafka takes. See docs/upstream.md, K1."""
        tp, kafka = TopicPartition(topic, partition), self._kafka
        if kafka.config["transactional_id"] is not None:
            kafka._transaction_manager.maybe_add_partition_to_transaction(tp)
        future = kafka._accumulator.append(tp, timestamp, key, value, headers)[0]
        kafka._sender.wakeup()
        return future

    def _partitions_of(self, topic: str, highest: int) -> int:
        count = self._counts.get(topic)
        if count is None or highest >= count:  # asked again if the topic may have grown
            count = self._count(topic)
            if count is None:
                raise errors.UnknownTopicOrPartitionError
            if len(self._kafka.partitions_for(topic)) < count:  # the library would look again minutes later
                self._kafka._metadata.request_update()
                self._wait_for_partitions(topic, count)
            self._counts[topic] = count
        if highest >= count:
            raise ValueError(f"there is no partition {highest}, only 0..{count - 1}")
        return count

    def _wait_for_partitions(self, topic: str, count: int) -> None:
        deadline = time.monotonic() + self._client.timeout_s
        while len(self._kafka.partitions_for(topic)) < count:
            if time.monotonic() > deadline:
                raise errors.KafkaTimeoutError
            time.sleep(_LOOK_AGAIN_S)

    def _failed(self, topic: str, error: BaseException) -> None:
        """Called in the library's thread."""
        if self._failure is None:
            self._failure = (topic, error)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            topic, error = self._failure
            raise self._client.translate(error, f"delivering to {topic}") from error

    @override
    def flush(self, timeout_s: float) -> None:
        with self._client.with_timeout(timeout_s).errors("delivering what was produced"):
            self._kafka.flush(timeout=timeout_s)
        self._unflushed = 0
        self._raise_failure()

    @override
    def close(self) -> None:
        self._kafka._sender.force_close()  # docs/upstream.md, K7
        with self._client.errors("closing the producer"):
            self._kafka._sender.join(2)
            self._kafka.close(timeout=0)
