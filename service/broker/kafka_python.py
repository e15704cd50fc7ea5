"""The port on kafka-python, the default client."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import Any

from kafka import KafkaAdminClient, KafkaProducer, TopicPartition, errors
from kafka.admin import ConfigResource, ConfigResourceType

from service.broker.base import Broker, Consumer, Outgoing, Producer
from service.broker.kafka_python_calls import Server
from service.broker.kafka_python_consumer import KafkaPythonConsumer
from service.broker.partitioner import partition_for

# Records handed over but not acknowledged, in bytes of their values. kafka-python itself has no limit.
_MAX_OUTSTANDING = 64 << 20
_CHUNK = 4_096  # records between two looks at that limit


class KafkaPythonBroker(Broker):
    """One cluster through kafka-python. Nothing is contacted before the first call.

    `timeout_s` limits every wait: for a connection, for an admin call, for an acknowledgement.
    """

    def __init__(self, bootstrap_servers: str, *, timeout_s: float = 60.0) -> None:
        self._server = Server(bootstrap_servers, timeout_s)
        self._admin: Any = None
        self._lock = threading.Lock()

    def consumer(self, *, group: str | None = None, isolation: str = "read_committed") -> Consumer:
        """A new consumer; `group` None = only `assign` may be used."""
        return KafkaPythonConsumer(self._server, self.partitions, group=group, isolation=isolation)

    def producer(self) -> Producer:
        """A new idempotent producer."""
        return KafkaPythonProducer(self._server, self)

    def partitions(self, topic: str) -> int | None:
        """How many partitions the topic has, None where there is no such topic."""
        doing = f"looking up the topic {topic}"
        found = self._server.call(doing, lambda: self._connected().describe_topics([topic]))
        with self._server.errors(doing):
            code = found[0]["error_code"]
            if errors.for_code(code) is errors.UnknownTopicOrPartitionError:
                return None
            if code:
                raise errors.for_code(code)(topic)
        return len(found[0]["partitions"])

    def create_topic(self, topic: str, partitions: int, config: Mapping[str, str] | None = None) -> bool:
        """Make the topic, with the cluster's default replication; False where it was there already.

        `config` may hold `replication.factor` besides the topic's own settings.
        """
        configs = dict(config or {})
        replicas = int(configs.pop("replication.factor", -1))
        new = {topic: {"num_partitions": partitions, "replication_factor": replicas, "configs": configs}}
        doing = f"making the topic {topic}"

        def create() -> bool:
            try:
                self._connected().create_topics(new, timeout_ms=self._server.timeout_ms)
            except errors.TopicAlreadyExistsError:
                return False
            # the controller has it; wait until every broker that a client may ask has it too
            self._connected().wait_for_topics([topic], timeout_ms=self._server.timeout_ms)
            return True

        return self._server.call(doing, create)

    def topic_config(self, topic: str) -> dict[str, str]:
        """The topic's settings in force, by Kafka's names; those without a value are left out."""
        doing = f"looking up the settings of the topic {topic}"
        wanted = [ConfigResource(ConfigResourceType.TOPIC, topic)]
        found = self._server.call(doing, lambda: self._connected().describe_configs(wanted, config_filter="all"))
        entries = found.get("topic", {}).get(topic, {})
        if not entries:  # the library passes over the answer's error code
            gone = self.partitions(topic) is None
            raise self._server.error(
                errors.UnknownTopicOrPartitionError() if gone else errors.TopicAuthorizationFailedError(topic), doing
            )
        return {name: entry["value"] for name, entry in entries.items() if entry["value"] is not None}

    def delete_topic(self, topic: str) -> bool:
        """Remove the topic; False where there was none."""

        def delete() -> bool:
            try:
                self._connected().delete_topics([topic], timeout_ms=self._server.timeout_ms)
            except errors.UnknownTopicOrPartitionError:
                return False
            return True

        return self._server.call(f"deleting the topic {topic}", delete)

    def topics(self) -> dict[str, int]:
        """`topic -> partitions` of all topics that are not internal."""
        found = self._server.call("listing the topics", lambda: self._connected().describe_topics())
        return {t["name"]: len(t["partitions"]) for t in found if not t["is_internal"]}

    def close(self) -> None:
        """Let go of the connection made for the admin calls; consumers and producers have their own."""
        with self._lock:
            admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()

    def _connected(self) -> Any:
        with self._lock:
            if self._admin is None:
                self._admin = KafkaAdminClient(**self._server.options())
            return self._admin


class KafkaPythonProducer(Producer):
    """Idempotent, acks=all. Once a record could not be delivered, every further call says so."""

    def __init__(self, server: Server, broker: Broker) -> None:
        self._server = server
        self._broker = broker
        options = server.options() | {
            "acks": "all",
            "enable_idempotence": True,
            "allow_auto_create_topics": False,
            "linger_ms": 10,
            "batch_size": 256 << 10,  # the default of 16 KiB costs 10 µs a record
            "max_request_size": 8 << 20,
            "max_block_ms": server.timeout_ms,
            "delivery_timeout_ms": server.timeout_ms + 1_000,
            "metrics_enabled": False,
        }
        self._kafka: Any = server.call("connecting to produce", lambda: KafkaProducer(**options))
        self._tps: dict[str, list[TopicPartition]] = {}
        self._failure: tuple[str, BaseException] | None = None
        self._outstanding: deque[tuple[Any, int]] = deque()  # of each chunk: its last record's future, and its bytes
        self._outstanding_bytes = 0

    def produce(self, outgoing: Outgoing) -> None:
        """Hand over records in order. Waits only while 64 MiB are unacknowledged.

        Raises:
            BrokerError: an earlier record could not be delivered, or there is no such topic or partition.
        """
        self._raise_failure()
        if not len(outgoing):
            return
        doing = f"producing to {outgoing.topic}"
        highest = max((p for p in set(outgoing.partitions) if p is not None), default=0)
        with self._server.errors(doing):
            tps = self._partitions_of(outgoing.topic, highest)
            for start in range(0, len(outgoing), _CHUNK):
                self._append(outgoing, slice(start, start + _CHUNK), tps)
                self._make_room()
        self._raise_failure()

    def _append(self, outgoing: Outgoing, chunk: slice, tps: list[TopicPartition]) -> None:
        # KafkaProducer.send is passed by: what it does besides this (serialisers, type checks, log lines that nobody
        # reads) costs a third of its throughput, and it refuses a record with neither key nor value, which Kafka
        # takes and a dead letter may be.
        append, wake = self._kafka._accumulator.append, self._kafka._sender.wakeup
        failed = partial(self._failed, outgoing.topic)
        count, unkeyed = len(tps), random.randrange(len(tps))
        size, future = 0, None
        for key, value, partition, headers, timestamp in zip(
            outgoing.keys[chunk],
            outgoing.values[chunk],
            outgoing.partitions[chunk],
            outgoing.headers[chunk],
            outgoing.timestamps[chunk],
            strict=True,
        ):
            if partition is None:
                partition = unkeyed if key is None else partition_for(key, count)
            future, is_full, is_new, _ = append(tps[partition], timestamp, key, value, headers)
            future.add_errback(failed)
            if is_full or is_new:
                wake()
            if value is not None:
                size += len(value)
        self._outstanding.append((future, size))
        self._outstanding_bytes += size

    def _make_room(self) -> None:
        while self._outstanding:
            future, size = self._outstanding[0]
            if not future.is_done:
                if self._outstanding_bytes <= _MAX_OUTSTANDING:
                    return
                future.get(timeout=self._server.timeout_s + 2)
            self._outstanding.popleft()
            self._outstanding_bytes -= size

    def _partitions_of(self, topic: str, highest: int) -> list[TopicPartition]:
        tps = self._tps.get(topic)
        if tps is None or highest >= len(tps):  # asked again where the topic may have grown
            count = self._broker.partitions(topic)
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
            raise self._server.error(error, f"delivering to {topic}") from error

    def flush(self, timeout_s: float) -> None:
        """Wait until all that was produced is acknowledged.

        Raises:
            BrokerError: a record failed, or `timeout_s` passed.
        """
        server = Server(self._server.bootstrap_servers, timeout_s)
        with server.errors("delivering what was produced"):
            self._kafka.flush(timeout=timeout_s)
        self._outstanding.clear()
        self._outstanding_bytes = 0
        self._raise_failure()

    def close(self) -> None:
        """Let go of the connection without waiting for what is still buffered."""
        self._kafka._sender.force_close()
        with self._server.errors("closing the producer"):
            self._kafka._sender.join(2)
            self._kafka.close(timeout=0)
