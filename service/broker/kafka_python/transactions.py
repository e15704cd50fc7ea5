"""Transactions through kafka-python.

Workarounds of docs/upstream.md are here: K3 (no time limits: the library's transaction manager is called directly, and
its results are awaited up to a deadline), K6 (`_deliver`) and K8 (`_connected`).

A producer whose transaction failed is not used again: a failed record leaves a gap in the sequence numbers of its
partition, offsets that were sent stay queued, and after some errors the library takes a new epoch during a transaction.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

from kafka import OffsetAndMetadata, TopicPartition, errors
from typing_extensions import override

from tidecast.service.broker.client import TRANSACTION_TIMEOUT_MS, no_offsets, not_open, open_already
from tidecast.service.broker.kafka_python.client import KafkaPythonClient
from tidecast.service.broker.kafka_python.consumer import KafkaPythonConsumer
from tidecast.service.broker.kafka_python.producer import KafkaPythonProducer
from tidecast.service.broker.port import Consumer, OutgoingBatch
from tidecast.service.errors import BrokerError

# The wait before a request is sent again. A transaction soon after another often has to wait for the end of that one.
_RETRY_BACKOFF_MS = 20
_SLICE_S = 0.25  # how long a failure may stay unnoticed while records are delivered


class KafkaPythonTransactionalProducer(KafkaPythonProducer):
    """Has a transactional id, and has fenced its former owner. For one caller's thread.

    Raises:
        BrokerError: the id could not be taken within the client's time limit.
    """

    def __init__(self, client: KafkaPythonClient, count: Callable[[str], int | None], transactional_id: str) -> None:
        super().__init__(
            client,
            count,
            transactional_id=transactional_id,
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            retry_backoff_ms=_RETRY_BACKOFF_MS,
        )
        self._transactions: Any = self._kafka._transaction_manager
        self._open = False
        self._commit_asked = False  # from when Kafka is asked until its answer is known
        network = self._kafka._sender._client
        network.await_ready = partial(_connected, network.await_ready)
        try:
            client.call(f"taking the transactional id {transactional_id}", self._kafka.init_transactions)
        except BaseException:
            with contextlib.suppress(BrokerError):
                self.close()
            raise

    @override
    def produce(self, outgoing: OutgoingBatch) -> None:
        self._raise_failure()
        if not self._open:
            raise not_open()
        try:
            super().produce(outgoing)
        except BrokerError:
            self._raise_failure()  # the library only says that there was an error before
            raise

    @override
    def begin(self) -> None:
        self._raise_failure()
        if self._open:
            raise open_already()
        with self._client.errors("beginning a transaction"):
            self._kafka.begin_transaction()
        self._open = True

    @override
    def commit_transaction(
        self, topic: str, offsets: Mapping[int, tuple[int, str]], consumer: Consumer, timeout_s: float
    ) -> None:
        deadline = time.monotonic() + timeout_s
        member = cast(KafkaPythonConsumer, consumer)
        self._client = self._client.for_instance(member.client.instance)  # whose instance id Kafka may fence
        client = self._client.with_timeout(timeout_s)
        if not self._open or self._commit_asked:
            raise not_open()
        if not offsets:
            raise no_offsets()
        with client.errors("committing a transaction"):
            group = member.membership(topic, offsets)
            found = {TopicPartition(topic, p): OffsetAndMetadata(o, text, -1) for p, (o, text) in offsets.items()}
            added = self._transactions.send_offsets_to_transaction(found, group)  # while records are sent
            self._deliver(deadline)
            self._await(added, deadline)
            self._raise_failure()
            self._commit_asked = True
            self._await(self._transactions.begin_commit(), deadline)
        self._open = self._commit_asked = False

    def _deliver(self, deadline: float) -> None:
        """Wait for all acknowledgements, in slices: after a failure some records never get any."""
        while True:
            left = deadline - time.monotonic()
            try:
                self._kafka.flush(timeout=max(0.0, min(_SLICE_S, left)))
            except errors.KafkaTimeoutError:
                self._raise_failure()
                if left <= 0:
                    raise
                continue
            return self._raise_failure()

    def _await(self, result: Any, deadline: float) -> None:
        self._kafka._sender.wakeup()
        if not result.wait(timeout_ms=max(0.0, deadline - time.monotonic()) * 1_000):
            raise errors.KafkaTimeoutError

    def _raise_failure(self) -> None:
        error = self._transactions.last_error  # None but in its error states
        if error is not None and (self._failure is None or type(error) is not type(self._failure[1])):
            raise self._client.translate(error, "producing in a transaction") from error
        super()._raise_failure()


def _connected(await_ready: Callable[..., bool], node: Any, timeout_ms: float) -> bool:
    """Whether there is a connection to the node.

    The library's own function raises if there is none, and the sender drops its request. If it returns False, the
    sender looks up the coordinator and sends the request again. See docs/upstream.md, K8.
    """
    try:
        return await_ready(node, timeout_ms=timeout_ms)
    except errors.KafkaError:
        return False
