"""What kafka-python's errors mean, and what all of its clients are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from kafka import errors

from tidecast.service.broker.client import Failure, KafkaClient

# The group has moved on without the member.
_PUT_OUT = (errors.CommitFailedError, errors.IllegalGenerationError, errors.UnknownMemberIdError)


@dataclass(frozen=True, slots=True)
class KafkaPythonClient(KafkaClient):
    """A Kafka that kafka-python talks to."""

    # What the library raises besides its own errors: mistakes in arguments, and its event loop being gone.
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
            "reconnect_backoff_max_ms": 1_000,  # a broker that comes back is found again within a second
            **self.security.kafka_python(),
        }

    def not_ready(self, error: BaseException) -> bool:
        """Whether the broker is just coming back."""
        return isinstance(error, errors.NodeNotReadyError)

    def classify(self, error: BaseException) -> tuple[Failure, str]:
        """What an error of the library means."""
        if type(error) is errors.KafkaError:  # "cannot, because": what counts is inside
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
            case errors.KafkaConnectionError():  # it was not waited for
                return Failure.DISCONNECTED, text.rpartition(": ")[2]
        if isinstance(error, _PUT_OUT):
            return Failure.EVICTED, text
        if isinstance(error, (errors.RetriableError, OSError)):  # the library tried again until its time was up
            return Failure.UNAVAILABLE, text
        return Failure.OTHER, f"{type(error).__name__}{f': {text}' if text else ''}"


def poll(kafka: Any, timeout_ms: int, max_records: int) -> dict[Any, Any]:
    """`kafka.poll`, of a KafkaConsumer.

    The library (3.0.12) parks what it has of a partition that is paused, and takes it back only while it has nothing in
    hand; but what it has used up it keeps in hand. So a partition that was paused with some of its records read would
    stay parked for good, and never be fetched again.
    """
    fetcher = kafka._fetcher
    if fetcher._paused_partition_records and not fetcher._next_partition_records:
        fetcher._next_partition_records = None
    found: dict[Any, Any] = kafka.poll(timeout_ms=timeout_ms, max_records=max_records)
    return found
