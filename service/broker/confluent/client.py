"""What librdkafka's errors mean, and the options of all its clients."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

from confluent_kafka import KafkaError, KafkaException

from tidecast.service.broker.client import Failure, KafkaClient
from tidecast.service.broker.port import Membership

# Named as kafka-python names its network code, of which `service.observability.logs` limits the lines.
log = logging.getLogger("kafka.net.librdkafka")

_MEANING = {
    Failure.NO_TOPIC: (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION),
    Failure.NOT_AUTHORIZED: (
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    ),
    Failure.TOO_LARGE: (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE),
    Failure.INSTANCE_FENCED: (KafkaError.FENCED_INSTANCE_ID,),
    Failure.REBALANCING: (KafkaError.REBALANCE_IN_PROGRESS,),
    Failure.EVICTED: (KafkaError.ILLEGAL_GENERATION, KafkaError.UNKNOWN_MEMBER_ID, KafkaError._ASSIGNMENT_LOST),
    Failure.PRODUCER_FENCED: (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH),
    Failure.UNAVAILABLE: (  # the library tried again until its time limit
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._MSG_TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._DESTROY_BROKER,  # the connection was lost during the request
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._WAIT_COORD,
        KafkaError._WAIT_CACHE,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.UNSTABLE_OFFSET_COMMIT,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_COORDINATOR,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.NETWORK_EXCEPTION,
    ),
}
_FAILURES = {code: failure for failure, codes in _MEANING.items() for code in codes}


@dataclass(frozen=True, slots=True)
class ConfluentClient(KafkaClient):
    """A Kafka that librdkafka talks to."""

    fatal: Failure = Failure.OTHER  # the meaning of _FATAL, after which the library's client does nothing more

    # Besides its own errors the library raises these: for wrong arguments, a full buffer, a closed client.
    library_errors: ClassVar[tuple[type[BaseException], ...]] = (
        KafkaException,
        BufferError,
        OSError,
        RuntimeError,
        ValueError,
        TypeError,
    )

    def options(self) -> dict[str, Any]:
        """What admin client, consumer and producer have in common."""
        return {
            "bootstrap.servers": self.bootstrap_servers,
            "client.id": "tidecast",
            "socket.timeout.ms": max(1_000, min(30_000, self.timeout_ms)),
            "socket.nagle.disable": True,
            "reconnect.backoff.max.ms": 1_000,  # a broker that comes back is found within a second
            "logger": log,
            "log_level": 4,  # warnings; if nobody polls, its lines wait in memory
            **self.security.librdkafka(),
        }

    def classify(self, error: BaseException | KafkaError) -> tuple[Failure, str]:
        """What an error of the library means."""
        inner = error.args[0] if isinstance(error, KafkaException) and error.args else error
        if isinstance(inner, KafkaError):
            failure = self.fatal if inner.code() == KafkaError._FATAL else _FAILURES.get(inner.code(), Failure.OTHER)
            return failure, f"{inner.name()}: {inner.str()}"
        if isinstance(error, (BufferError, OSError)):
            return Failure.UNAVAILABLE, str(error)
        return Failure.OTHER, f"{type(error).__name__}: {error}"


def consumer_options(
    client: ConfluentClient, group: str | None, isolation: str, membership: Membership
) -> dict[str, Any]:
    """The options of a consumer."""
    fetched = (8 if group is None else 4) << 20
    options = client.options() | {
        # Required by the library, which looks for a coordinator even if it does not need one.
        "group.id": group or "tidecast-no-group",
        "isolation.level": isolation,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "allow.auto.create.topics": False,
        "group.protocol": "classic",  # as kafka-python's: both can be members of one group
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": int(membership.session_timeout_s * 1_000),
        "heartbeat.interval.ms": 1_000,  # how soon a member notices a rebalance
        # Practically never: it makes a member lose its identity. A worker that hangs is ended by its watchdog.
        "max.poll.interval.ms": 86_400_000,
        # Reports the end to a reader that reaches it: after transaction markers, which are not records.
        "enable.partition.eof": True,
        "check.crcs": True,
        # How long a partition that is new, or at its end, waits behind idle ones. An end is only reported after such a
        # wait, and a restore reads to the end.
        "fetch.wait.max.ms": 100 if group is not None else 10,
        # What the library may buffer; above this number of records it pauses for 5 ms (default 1 s).
        # Records are in memory several times: as bytes, as messages of the library, as ours.
        "queued.max.messages.kbytes": fetched >> 10,
        "queued.min.messages": 100_000,
        "fetch.queue.backoff.ms": 5,
        "fetch.max.bytes": fetched,
        "max.partition.fetch.bytes": fetched // 4,
    }
    if membership.instance is not None:
        options["group.instance.id"] = membership.instance
    return options


def topic_errors(partitions: list[Any]) -> list[Any]:
    """The partitions of an answer, unchanged; raises the first error of one of them."""
    for partition in partitions:
        if partition.error is not None:
            raise KafkaException(partition.error)
    return partitions
