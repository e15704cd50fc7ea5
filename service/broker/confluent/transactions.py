"""Transactions through librdkafka, whose calls have time limits of their own.

After a failed record the library refuses the commit, without the reason: `_delivered` has it. A fatal error (fenced) is
reported to `_hear`, and only as "fatal" to later calls. One call does not keep its limit: see `_send_offsets`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from typing_extensions import override

from tidecast.service.broker.client import TRANSACTION_TIMEOUT_MS, Failure, no_offsets, not_open, open_already
from tidecast.service.broker.confluent.client import ConfluentClient
from tidecast.service.broker.confluent.consumer import ConfluentConsumer
from tidecast.service.broker.confluent.producer import ConfluentProducer
from tidecast.service.broker.port import Consumer, OutgoingBatch
from tidecast.service.errors import BrokerError, InstanceFenced


class ConfluentTransactionalProducer(ConfluentProducer):
    """Has a transactional id, and has fenced its former owner. For one caller's thread.

    Raises:
        BrokerError: the id could not be taken within the client's time limit.
    """

    def __init__(self, client: ConfluentClient, count: Callable[[str], int | None], transactional_id: str) -> None:
        options = {
            "socket.timeout.ms": min(TRANSACTION_TIMEOUT_MS, client.options()["socket.timeout.ms"]),  # no longer
            "transactional.id": transactional_id,
            "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
            # A record that is not delivered by then never will be: Kafka has aborted its transaction.
            "delivery.timeout.ms": TRANSACTION_TIMEOUT_MS,
        }
        super().__init__(client, count, **options)
        self._open = False
        self._topics: set[str] = set()  # that the open transaction writes to
        self._commit_asked = False  # from when Kafka is asked until its answer is known
        try:
            with client.errors(f"taking the transactional id {transactional_id}"):
                self._kafka.init_transactions(client.timeout_s)
        except BaseException:
            with contextlib.suppress(BrokerError):
                self.close()
            raise

    @override
    def produce(self, outgoing: OutgoingBatch) -> None:
        self._raise_failure()
        if not self._open:
            raise not_open()
        self._topics.add(outgoing.topic)
        with self._with_cause("producing in a transaction"):
            super().produce(outgoing)

    @override
    def begin(self) -> None:
        self._raise_failure()
        if self._open:
            raise open_already()
        with self._with_cause("beginning a transaction"):
            self._kafka.begin_transaction()
        self._open = True
        self._topics.clear()

    @override
    def commit_transaction(
        self, topic: str, offsets: Mapping[int, tuple[int, str]], consumer: Consumer, timeout_s: float
    ) -> None:
        deadline = time.monotonic() + timeout_s
        member = cast(ConfluentConsumer, consumer)
        if not self._open or self._commit_asked:
            raise not_open()
        if not offsets:
            raise no_offsets()
        self._client = self._client.for_instance(member.client.instance)  # whose instance id Kafka may fence
        doing, client = "committing a transaction", self._client.with_timeout(timeout_s)
        with self._with_cause(doing, client):
            group = member.membership(topic, offsets)
            found = [TopicPartition(topic, p, offset, text) for p, (offset, text) in offsets.items()]
            try:
                self._send_offsets(found, group, timeout_s)
            except InstanceFenced as error:
                member.on_instance_fenced(error, doing)
            if self._kafka.flush(max(0.0, deadline - time.monotonic())):
                raise client.broker_error(Failure.UNAVAILABLE, "", doing)
            self._raise_failure()
            self._commit_asked = True
            try:
                self._kafka.commit_transaction(max(0.1, deadline - time.monotonic()))
            except KafkaException as error:
                self._commit_asked = not error.args[0].txn_requires_abort()  # if so, Kafka was not asked, or refused
                raise
        self._open = self._commit_asked = False

    def _send_offsets(self, offsets: list[TopicPartition], group: Any, timeout_s: float) -> None:
        """In a thread of its own, which stays with the producer if the library does not return (C3).

        At most as long as a transaction may last: Kafka has aborted it by then. See docs/upstream.md.
        """
        limit_s = min(timeout_s, TRANSACTION_TIMEOUT_MS / 1_000)
        self._client.with_timeout(limit_s).call(
            "committing a transaction", lambda: self._kafka.send_offsets_to_transaction(offsets, group, limit_s)
        )

    def _release(self, held: list[Any]) -> None:
        # Without the abort the library may end the process (docs/upstream.md, C4). Nobody waits for the abort.
        if len(held[0]):  # all delivered: Kafka knows
            with contextlib.suppress(KafkaException):
                held[0].abort_transaction(0)
        super()._release(held)

    def _listen(self) -> None:
        """Let the library call back with its errors."""
        try:
            self._kafka.poll(0)
        except KafkaException as error:
            if error.args[0].fatal():
                self._fatal = error.args[0]

    @contextmanager
    def _with_cause(self, doing: str, client: ConfluentClient | None = None) -> Iterator[None]:
        """If a call fails because of an earlier error, raise that one."""
        client = client or self._client
        try:
            with client.errors(doing):
                yield
        except BrokerError as error:
            self._listen()
            cause = error.__cause__
            inner = cause.args[0] if isinstance(cause, KafkaException) else None
            if isinstance(inner, KafkaError) and inner.fatal() and inner.code() != KafkaError._FATAL:
                self._fatal = inner
            if isinstance(inner, KafkaError):
                if self._fatal is None and not inner.fatal():
                    super()._raise_failure()
                self._raise_failure()
                if self._open and inner.code() in (KafkaError._STATE, KafkaError.TOPIC_AUTHORIZATION_FAILED):
                    self._raise_end_of_transaction(client)
            raise

    def _raise_end_of_transaction(self, client: ConfluentClient) -> None:
        """Raise why Kafka refused the open transaction, such as a missing right: the library says that only to a call
        that begins one, which it refuses while one is open."""
        with client.errors(f"writing to {', '.join(sorted(self._topics))} in a transaction"):
            try:
                self._kafka.begin_transaction()
            except KafkaException as error:
                if error.args[0].code() != KafkaError._STATE:
                    raise

    def _raise_failure(self) -> None:
        if self._fatal is not None:
            error = KafkaException(self._fatal)
            raise self._client.translate(error, "producing in a transaction") from error
        super()._raise_failure()
