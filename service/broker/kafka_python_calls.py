"""Calls into kafka-python that end: within a time limit, and with a BrokerError where they fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from kafka import errors

from service.errors import BrokerError, Fenced, PutOut, Replaced, Unanswered

T = TypeVar("T")
_NOT_READY_PAUSE_S = 0.25

# What the library raises besides its own errors: mistakes in arguments, and its event loop being gone.
_RAISED = (errors.KafkaError, OSError, RuntimeError, ValueError, TypeError, KeyError, AssertionError)
_PUT_OUT = (
    errors.CommitFailedError,
    errors.IllegalGenerationError,
    errors.UnknownMemberIdError,
)


@dataclass(frozen=True, slots=True)
class Server:
    """Where Kafka is, and how long to wait for it."""

    bootstrap_servers: str
    timeout_s: float
    instance: str | None = None  # the name of the group's member that asks

    def within(self, seconds: float) -> Server:
        """The same, with a time limit of its own."""
        return replace(self, timeout_s=seconds)

    @property
    def timeout_ms(self) -> int:
        """The same limit in the library's unit."""
        return int(self.timeout_s * 1_000)

    def options(self) -> dict[str, Any]:
        """What admin client, consumer and producer have in common."""
        return {
            "bootstrap_servers": [server.strip() for server in self.bootstrap_servers.split(",")],
            "client_id": "tidecast",
            "bootstrap_timeout_ms": self.timeout_ms,
            "request_timeout_ms": max(1_000, min(30_000, self.timeout_ms)),
            "reconnect_backoff_max_ms": 1_000,  # a broker that comes back is found again within a second
        }

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Turn what kafka-python raises while `doing` into a BrokerError."""
        try:
            yield
        except BrokerError:
            raise
        except _RAISED as error:
            raise self.error(error, doing) from error

    def error(self, error: BaseException, doing: str) -> BrokerError:
        """The BrokerError that tells a person what `error` means."""
        where = self.bootstrap_servers
        if type(error) is errors.KafkaError:  # "cannot, because": what counts is inside
            error = next((inner for inner in error.args if isinstance(inner, errors.KafkaError)), error)
        if isinstance(error, errors.UnknownTopicOrPartitionError):
            return BrokerError(f"{doing}: Kafka at {where} has no such topic", do="Make it: tidecast topics create")
        if isinstance(error, errors.AuthorizationError):
            return BrokerError(
                f"{doing}: Kafka at {where} does not allow it ({error})", do="Ask its owner for the right."
            )
        if isinstance(error, (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)):
            return BrokerError(
                f"{doing}: Kafka at {where} takes no record that large", do="Raise the topic's max.message.bytes."
            )
        if isinstance(error, errors.FencedInstanceIdError):
            return Replaced(doing, self.instance)
        if isinstance(error, errors.RebalanceInProgressError):  # which lets the member stay in the group
            return BrokerError(f"{doing}: {PutOut.WHAT}", do=PutOut.DO)
        if isinstance(error, _PUT_OUT):
            return PutOut(doing)
        if isinstance(error, (errors.ProducerFencedError, errors.InvalidProducerEpochError)):
            return Fenced(
                f"{doing}: another producer has taken the transactional id, or the transaction was open for too long",
                do="Give every worker of a group a transactional id of its own.",
            )
        if isinstance(error, errors.KafkaConnectionError):  # it was not waited for
            return Unanswered(
                f"{doing}: the connection to Kafka at {where} is lost ({str(error).rpartition(': ')[2]})",
                do="Check that the broker is up.",
            )
        if isinstance(error, (errors.RetriableError, OSError)):  # the library tried again until its time was up
            return Unanswered(
                f"{doing}: Kafka at {where} did not answer within {self.timeout_s:g} s",
                do="Check that a broker listens there (start one with: tidecast broker), or name another with "
                "--bootstrap-servers.",
            )
        text = str(error).strip()
        return BrokerError(f"{doing}: Kafka at {where}: {type(error).__name__}{f': {text}' if text else ''}")

    def call(self, doing: str, call: Callable[[], T]) -> T:
        """`call()` in a thread of its own, for library calls that may wait for ever (name look-ups, admin retries)."""
        answers: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

        def work() -> None:
            deadline = time.monotonic() + self.timeout_s
            while True:
                try:
                    return answers.put((call(), None))
                except errors.NodeNotReadyError as error:  # raised at once where a broker is just coming back
                    if time.monotonic() > deadline:
                        return answers.put((None, error))
                    time.sleep(_NOT_READY_PAUSE_S)
                except BaseException as error:
                    return answers.put((None, error))

        threading.Thread(target=work, name="kafka-call", daemon=True).start()
        with self.errors(doing):
            try:
                value, error = answers.get(timeout=self.timeout_s + 2)  # the library's own limit comes first
            except Empty:
                raise errors.KafkaTimeoutError from None
            if error is not None:
                raise error
            return value  # type: ignore[return-value]


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
