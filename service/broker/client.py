"""What both clients share: the address, the time limit, and how errors become sentences."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum, auto
from queue import Empty, SimpleQueue
from typing import ClassVar, Self, TypeVar

from typing_extensions import override

from tidecast.service.broker.port import Batch, Consumer, Headers, Producer
from tidecast.service.broker.security import PLAIN_TEXT, Security
from tidecast.service.errors import BrokerError, BrokerUnavailable, Fenced, InstanceFenced, MemberEvicted, Rejected

log = logging.getLogger("tidecast.broker")

T = TypeVar("T")
_NOT_READY_PAUSE_S = 0.25
CHECK_ADDRESS = (
    "Check that a broker listens there (start one with: tidecast broker), or name another with --bootstrap-servers."
)
# Kafka aborts a transaction that is open for longer. Until then a dead worker's records hold back all readers.
TRANSACTION_TIMEOUT_MS = 10_000


class Failure(Enum):
    """What failed, in whichever library."""

    NO_TOPIC = auto()
    NOT_AUTHORIZED = auto()
    TOO_LARGE = auto()
    INSTANCE_FENCED = auto()  # another process has our instance id
    REBALANCING = auto()  # the group rebalances; we may still be a member
    EVICTED = auto()  # from the group
    PRODUCER_FENCED = auto()  # another producer has the transactional id
    DISCONNECTED = auto()  # and the library did not try again
    UNAVAILABLE = auto()  # although the library tried until its time limit
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class KafkaClient:
    """The address of Kafka and the time limit. The subclass of a library classifies its errors."""

    bootstrap_servers: str
    timeout_s: float
    instance: str | None = None  # group.instance.id of the member that calls
    security: Security = PLAIN_TEXT

    library_errors: ClassVar[tuple[type[BaseException], ...]] = ()  # what the library raises

    def with_timeout(self, seconds: float) -> Self:
        """The same, with another time limit."""
        return replace(self, timeout_s=seconds)

    def for_instance(self, instance: str | None) -> Self:
        """The same, for the member with that instance id."""
        return replace(self, instance=instance)

    @property
    def timeout_ms(self) -> int:
        """The same limit in the libraries' unit."""
        return int(self.timeout_s * 1_000)

    def classify(self, error: BaseException) -> tuple[Failure, str]:
        """The kind of an error of the library, and its own text."""
        raise NotImplementedError

    def not_ready(self, error: BaseException) -> bool:
        """Whether the library raised an error that it should have retried: `call` tries again."""
        return False

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Turn what the library raises while `doing` into a BrokerError."""
        try:
            yield
        except BrokerError:
            raise
        except self.library_errors as error:
            raise self.translate(error, doing) from error

    def translate(self, error: BaseException, doing: str) -> BrokerError:
        """The BrokerError for an error of the library."""
        return self.broker_error(*self.classify(error), doing)

    def broker_error(self, failure: Failure, detail: str, doing: str) -> BrokerError:
        """The BrokerError for a failure while `doing`."""
        where = self.bootstrap_servers
        match failure:
            case Failure.NO_TOPIC:
                return Rejected(f"{doing}: Kafka at {where} has no such topic", do="Make it: tidecast topics create")
            case Failure.NOT_AUTHORIZED:
                return Rejected(
                    f"{doing}: not authorized at Kafka {where} ({detail})", do="Grant the ACL of docs/security.md."
                )
            case Failure.TOO_LARGE:
                return Rejected(
                    f"{doing}: Kafka at {where} refuses a record of this size",
                    do="Raise the topic's max.message.bytes.",
                )
            case Failure.INSTANCE_FENCED:
                return InstanceFenced(doing, self.instance)
            case Failure.REBALANCING:
                return BrokerError(f"{doing}: {MemberEvicted.WHAT}", do=MemberEvicted.DO)
            case Failure.EVICTED:
                return MemberEvicted(doing)
            case Failure.PRODUCER_FENCED:
                return Fenced(
                    f"{doing}: another producer has taken the transactional id, or the transaction was open for too "
                    "long",
                    do="Give every worker of a group a transactional id of its own.",
                )
            case Failure.DISCONNECTED:
                return BrokerUnavailable(
                    f"{doing}: the connection to Kafka at {where} is lost ({detail})", do="Check that the broker is up."
                )
            case Failure.UNAVAILABLE:
                return BrokerUnavailable(
                    f"{doing}: Kafka at {where} did not answer within {self.timeout_s:g} s",
                    do=CHECK_ADDRESS,
                )
            case Failure.OTHER:
                return BrokerError(f"{doing}: Kafka at {where}: {detail}")

    def call(self, doing: str, call: Callable[[], T]) -> T:
        """`call()` in a thread of its own: some library calls may wait without limit (name look-ups, admin retries)."""
        answers: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

        def work() -> None:
            deadline = time.monotonic() + self.timeout_s
            while True:
                try:
                    return answers.put((call(), None))
                except BaseException as error:
                    if not self.not_ready(error) or time.monotonic() > deadline:
                        return answers.put((None, error))
                    time.sleep(_NOT_READY_PAUSE_S)

        threading.Thread(target=work, name="kafka-call", daemon=True).start()
        with self.errors(doing):
            try:
                value, error = answers.get(timeout=self.timeout_s + 2)  # the library's own limit comes first
            except Empty:
                raise self.broker_error(Failure.UNAVAILABLE, "", doing) from None
            if error is not None:
                raise error
            return value  # type: ignore[return-value]


# What is wrong with a call itself, on every port ---------------------------------------------------------------


def no_group(cannot: str) -> BrokerError:
    """The error of a call that needs a group, on a consumer without one."""
    return BrokerError(f"a consumer without a group {cannot}", do="Give it a group.")


def no_partition(topic: str, count: int, partition: int) -> BrokerError:
    """A partition that the topic does not have."""
    return BrokerError(f"the topic {topic} has {count} partitions, there is no partition {partition}")


def not_assigned(topic: str, partition: int, offset: int) -> BrokerError:
    """A partition that the consumer does not have."""
    return BrokerError(f"{topic}-{partition} is not assigned, so it cannot seek to {offset}")


def no_id() -> BrokerError:
    """The error of a transaction call on a producer without an id."""
    return BrokerError("a producer without a transactional id has no transactions", do="Give it a transactional id.")


def not_open() -> BrokerError:
    """A call that needs a transaction."""
    return BrokerError("no transaction is open", do="Begin one first.")


def open_already() -> BrokerError:
    """A second transaction."""
    return BrokerError("a transaction is open already", do="Commit it first, or replace the producer.")


def no_offsets() -> BrokerError:
    """The error of a transaction without offsets: Kafka would not check the membership."""
    return BrokerError("a transaction without input offsets cannot be fenced", do="Give it the offsets.")


def without_null(headers: Headers) -> Headers:
    """Kafka allows a header without a value; the port does not."""
    return [(name, b"" if value is None else value) for name, value in headers]


def log_unread(batch: Batch) -> None:
    """Say where the batches are that a consumer has set aside."""
    for each in batch.unread:
        log.warning(
            "a compressed batch is set aside: none of its records is read",
            extra={
                "records": f"{batch.topic}-{each.partition}, offsets {each.first} to {each.last}",
                "compressed_bytes": each.size,
                "reason": each.reason,
            },
        )


class PlainProducer(Producer):
    """A producer without a transactional id: it refuses transactions. The base of both clients' producers."""

    @override
    def begin(self) -> None:
        raise no_id()

    @override
    def commit_transaction(
        self, topic: str, offsets: Mapping[int, tuple[int, str]], consumer: Consumer, timeout_s: float
    ) -> None:
        raise no_id()
