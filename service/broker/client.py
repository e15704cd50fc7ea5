"""What the ports to a real Kafka share: where it is, how long to wait for it, and the sentences of its troubles."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum, auto
from queue import Empty, SimpleQueue
from typing import ClassVar, Self, TypeVar

from typing_extensions import override

from tidecast.service.broker.port import Consumer, Headers, Producer
from tidecast.service.broker.security import PLAIN_TEXT, Security
from tidecast.service.errors import BrokerError, BrokerUnavailable, Fenced, InstanceFenced, MemberEvicted

T = TypeVar("T")
_NOT_READY_PAUSE_S = 0.25
# Kafka aborts a transaction that is open for longer. Until then a dead worker's records hold back all readers.
TRANSACTION_TIMEOUT_MS = 10_000


class Failure(Enum):
    """What is wrong, whichever library says it."""

    NO_TOPIC = auto()
    NOT_AUTHORIZED = auto()
    TOO_LARGE = auto()
    INSTANCE_FENCED = auto()  # another process has our name in the group
    REBALANCING = auto()  # the group moves on; we may still be in it
    EVICTED = auto()  # it has moved on without us
    PRODUCER_FENCED = auto()  # the transactional id
    DISCONNECTED = auto()  # a connection that was not waited for
    UNAVAILABLE = auto()  # it was
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class KafkaClient:
    """Where Kafka is, and how long to wait for it. A library's own subclass knows what its errors mean."""

    bootstrap_servers: str
    timeout_s: float
    instance: str | None = None  # the name of the group's member that asks
    security: Security = PLAIN_TEXT

    library_errors: ClassVar[tuple[type[BaseException], ...]] = ()  # what the library raises

    def with_timeout(self, seconds: float) -> Self:
        """The same, with a time limit of its own."""
        return replace(self, timeout_s=seconds)

    def for_instance(self, instance: str | None) -> Self:
        """The same, asked by the member of that name."""
        return replace(self, instance=instance)

    @property
    def timeout_ms(self) -> int:
        """The same limit in the libraries' unit."""
        return int(self.timeout_s * 1_000)

    def classify(self, error: BaseException) -> tuple[Failure, str]:
        """What an error of the library means, and what it says itself where nothing more is known."""
        raise NotImplementedError

    def not_ready(self, error: BaseException) -> bool:
        """Whether the library raised at once where it should have waited: `call` tries again."""
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
        """The BrokerError that tells a person what `error` means."""
        return self.broker_error(*self.classify(error), doing)

    def broker_error(self, failure: Failure, detail: str, doing: str) -> BrokerError:
        """The BrokerError that tells a person of a failure met while `doing`."""
        where = self.bootstrap_servers
        match failure:
            case Failure.NO_TOPIC:
                return BrokerError(f"{doing}: Kafka at {where} has no such topic", do="Make it: tidecast topics create")
            case Failure.NOT_AUTHORIZED:
                return BrokerError(
                    f"{doing}: Kafka at {where} does not allow it ({detail})", do="Ask its owner for the right."
                )
            case Failure.TOO_LARGE:
                return BrokerError(
                    f"{doing}: Kafka at {where} takes no record that large", do="Raise the topic's max.message.bytes."
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
                    do="Check that a broker listens there (start one with: tidecast broker), or name another with "
                    "--bootstrap-servers.",
                )
            case Failure.OTHER:
                return BrokerError(f"{doing}: Kafka at {where}: {detail}")

    def call(self, doing: str, call: Callable[[], T]) -> T:
        """`call()` in a thread of its own, for library calls that may wait for ever (name look-ups, admin retries)."""
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
    """A call that needs a group, on a consumer without one."""
    return BrokerError(f"a consumer without a group {cannot}", do="Give it a group.")


def no_partition(topic: str, count: int, partition: int) -> BrokerError:
    """A partition that the topic does not have."""
    return BrokerError(f"the topic {topic} has {count} partitions, there is no partition {partition}")


def not_assigned(topic: str, partition: int, offset: int) -> BrokerError:
    """A partition that the consumer does not have."""
    return BrokerError(f"{topic}-{partition} is not assigned, so there is no going to {offset}")


def no_id() -> BrokerError:
    """A transaction is asked of a producer without an id."""
    return BrokerError("a producer without a transactional id has no transactions", do="Give it a transactional id.")


def not_open() -> BrokerError:
    """A call that needs a transaction."""
    return BrokerError("no transaction is open", do="Begin one first.")


def open_already() -> BrokerError:
    """A second transaction."""
    return BrokerError("a transaction is open already", do="Commit or abort it first.")


def no_offsets() -> BrokerError:
    """Kafka would check no membership, and a member that was put out would not be found out."""
    return BrokerError("a transaction without input offsets cannot be fenced", do="Give it the offsets.")


def without_null(headers: Headers) -> Headers:
    """Kafka allows a header without a value; the port does not."""
    return [(name, b"" if value is None else value) for name, value in headers]


REPLACE = "Replace the producer: a new one with the same transactional id ends what this one began."


class PlainProducer(Producer):
    """A producer without a transactional id: it refuses transactions. Both clients build on it."""

    @override
    def begin(self) -> None:
        raise no_id()

    @override
    def commit_transaction(
        self, topic: str, offsets: Mapping[int, tuple[int, str]], consumer: Consumer, timeout_s: float
    ) -> None:
        raise no_id()
