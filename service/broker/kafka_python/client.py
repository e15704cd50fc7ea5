"""What kafka-python's errors mean, and the options of all its clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from kafka import errors
from typing_extensions import override

from tidecast.service.broker.client import Failure, KafkaClient
from tidecast.service.broker.kafka_python.rejections import rejection
from tidecast.service.errors import BrokerError

# The group has evicted the member.
_EVICTED = (errors.CommitFailedError, errors.IllegalGenerationError, errors.UnknownMemberIdError)


@dataclass(frozen=True, slots=True)
class KafkaPythonClient(KafkaClient):
    """A Kafka that kafka-python talks to."""

    # Besides its own errors the library raises these: for wrong arguments, and after its event loop ended.
    library_errors: ClassVar[tuple[type[BaseException], ...]] = (
        errors.KafkaError,
        OSError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        AssertionError,
    )

    def options(self) -> dict[str, Any]:
        """What admin client, consumer and producer have in common."""
        return {
            "bootstrap_servers": [address.strip() for address in self.bootstrap_servers.split(",")],
            "client_id": "tidecast",
            "bootstrap_timeout_ms": self.timeout_ms,
            "request_timeout_ms": max(1_000, min(30_000, self.timeout_ms)),
            "reconnect_backoff_max_ms": 1_000,  # a broker that comes back is found within a second
            **self.security.kafka_python(),
        }

    def not_ready(self, error: BaseException) -> bool:
        """Whether the broker is about to come back."""
        return isinstance(error, errors.NodeNotReadyError)

    @override
    def translate(self, error: BaseException, doing: str) -> BrokerError:
        rejected = rejection(self.security, self.bootstrap_servers, error)
        return rejected if rejected is not None else KafkaClient.translate(self, error, doing)

    def classify(self, error: BaseException) -> tuple[Failure, str]:
        """What an error of the library means."""
        if type(error) is errors.KafkaError:  # the cause is inside
            error = next((inner for inner in error.args if isinstance(inner, errors.KafkaError)), error)
        text = str(error).strip()
        match error:
            case errors.UnknownTopicOrPartitionError():
                return Failure.NO_TOPIC, text
            case errors.AuthorizationError():
                return Failure.NOT_AUTHORIZED, text
            case errors.MessageSizeTooLargeError() | errors.RecordListTooLargeError():
                return Failure.TOO_LARGE, text
            case errors.FencedInstanceIdError():
                return Failure.INSTANCE_FENCED, text
            case errors.RebalanceInProgressError():
                return Failure.REBALANCING, text
            case errors.ProducerFencedError() | errors.InvalidProducerEpochError():
                return Failure.PRODUCER_FENCED, text
            case errors.KafkaConnectionError():  # the library did not wait for it
                return Failure.DISCONNECTED, text.rpartition(": ")[2]
        if isinstance(error, _EVICTED):
            return Failure.EVICTED, text
        if isinstance(error, (errors.RetriableError, OSError)):  # the library tried again until its time limit
            return Failure.UNAVAILABLE, text
        return Failure.OTHER, f"{type(error).__name__}{f': {text}' if text else ''}"


def poll(kafka: Any, timeout_ms: int, max_records: int) -> dict[Any, Any]:
    """`poll` of a KafkaConsumer, which would never read a partition again that was paused with some records read.

    See docs/upstream.md, K4.
    """
    fetcher = kafka._fetcher
    if fetcher._paused_partition_records and not fetcher._next_partition_records:
        fetcher._next_partition_records = None
    found: dict[Any, Any] = kafka.poll(timeout_ms=timeout_ms, max_records=max_records)
    return found
