"""Producing through kafka-python."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from kafka import KafkaProducer, TopicPartition, errors

from tidecast.service.broker.client import PlainProducer
from tidecast.service.broker.kafka_python.batch_writer import Records, hand_over, outstanding, wait_for_oldest
from tidecast.service.broker.kafka_python.client import KafkaPythonClient
from tidecast.service.broker.partitioner import partitions_for
from tidecast.service.broker.port import OutgoingBatch

# Records handed over but not acknowledged, in bytes. kafka-python itself has no limit.
_MAX_OUTSTANDING = 64 << 20
_CHUNK = 4_096  # records between two looks at that limit


class KafkaPythonProducer(PlainProducer):
    """Idempotent, acks=all. Once a record could not be delivered, every further call says so."""

    def __init__(self, client: KafkaPythonClient, count: Callable[[str], int | None], **more: Any) -> None:
        self._client = client
        self._count = count
        options = client.options() | {
            "acks": "all",
            "enable_idempotence": True,
            "allow_auto_create_topics": False,
            # Of a transaction nothing is seen before its end: there, to linger only makes for fewer requests.
            "linger_ms": 10 if "transactional_id" in more else 0,
            "batch_size": 256 << 10,  # the default of 16 KiB costs 10 µs a record
            "max_request_size": 8 << 20,
            "max_block_ms": client.timeout_ms,
            "delivery_timeout_ms": client.timeout_ms + 1_000,
            "metrics_enabled": False,
            **more,
        }
        self._kafka: Any = client.call("connecting to produce", lambda: KafkaProducer(**options))
        self._tps: dict[str, list[TopicPartition]] = {}
        self._failure: tuple[str, BaseException] | None = None

    def produce(self, outgoing: OutgoingBatch) -> None:
        """Hand over records in order. Waits only while 64 MiB are unacknowledged.

        Raises:
            BrokerError: an earlier record could not be delivered, or there is no such topic or partition.
        """
        self._raise_failure()
        if not len(outgoing):
            return
        doing = f"producing to {outgoing.topic}"
        highest = max((p for p in set(outgoing.partitions) if p is not None), default=0)
        with self._client.errors(doing):
            tps = self._partitions_of(outgoing.topic, highest)
            for start in range(0, len(outgoing), _CHUNK):
                self._append(outgoing, slice(start, start + _CHUNK), tps)
                self._make_room()
        self._raise_failure()

    def _append(self, outgoing: OutgoingBatch, chunk: slice, tps: list[TopicPartition]) -> None:
        """Records of each partition together, in order; see `kafka_python_batches` for why not one by one."""
        keys, values, headers = outgoing.keys[chunk], outgoing.values[chunk], outgoing.headers[chunk]
        partitions: list[Any] = outgoing.partitions[chunk]
        if None in partitions:
            partitions = partitions_for(partitions, keys, len(tps))
        self._before(tps, partitions)
        now, times = int(time.time() * 1_000), outgoing.timestamps[chunk]
        none_given = times.count(None) == len(times)
        timestamps = np.array([now] * len(times) if none_given else [now if t is None else t for t in times])
        records = Records(keys, values, headers, timestamps)
        rows, failed = np.array(partitions), partial(self._failed, outgoing.topic)
        for partition in np.unique(rows).tolist():
            hand_over(self._kafka, tps[partition], records.take(np.flatnonzero(rows == partition)), failed)

    def _before(self, tps: list[TopicPartition], partitions: list[int]) -> None:
        """What must be done before records are appended to these partitions: nothing, without transactions."""

    def _make_room(self) -> None:
        while self._failure is None and outstanding(self._kafka) > _MAX_OUTSTANDING:
            if not wait_for_oldest(self._kafka, self._client.timeout_s + 2):
                raise errors.KafkaTimeoutError

    def _partitions_of(self, topic: str, highest: int) -> list[TopicPartition]:
        tps = self._tps.get(topic)
        if tps is None or highest >= len(tps):  # asked again where the topic may have grown
            count = self._count(topic)
            if count is None:
                raise errors.UnknownTopicOrPartitionError
            self._kafka.partitions_for(topic)  # the library learns of the topic too
            tps = self._tps[topic] = [TopicPartition(topic, p) for p in range(count)]
        if highest >= len(tps):
            raise ValueError(f"there is no partition {highest}, only 0..{len(tps) - 1}")
        return tps

    def _failed(self, topic: str, error: BaseException) -> None:
        """Runs in the library's thread."""
        if self._failure is None:
            self._failure = (topic, error)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            topic, error = self._failure
            raise self._client.translate(error, f"delivering to {topic}") from error

    def flush(self, timeout_s: float) -> None:
        """Wait until all that was produced is acknowledged.

        Raises:
            BrokerError: a record failed, or `timeout_s` passed.
        """
        with self._client.with_timeout(timeout_s).errors("delivering what was produced"):
            self._kafka.flush(timeout=timeout_s)
        self._raise_failure()

    def close(self) -> None:
        """Let go of the connection without waiting for what is still buffered."""
        self._kafka._sender.force_close()
        with self._client.errors("closing the producer"):
            self._kafka._sender.join(2)
            self._kafka.close(timeout=0)
