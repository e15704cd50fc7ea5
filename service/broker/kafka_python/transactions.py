"""Transactions through kafka-python.

The library's own calls wait without a limit, so its transaction manager is asked directly, and waited for up to a
deadline. What else of the library (3.0.12) is minded here:
  - A record whose delivery is given up at its time limit fails without a word to the transaction, which would then
    commit without it. So all records are acknowledged, or the failure is raised, before the commit is asked for.
  - Offsets of an aborted transaction stay queued, and would be committed by the next one. `begin` drops them.
  - A record that failed leaves a gap in the numbers of its partition's records, at which Kafka refuses all that follow.
    `abort` then has them counted anew.
  - A request whose coordinator's connection is refused is thrown away, where it should be sent again: the transaction
    then waits for an answer to a question that nobody has asked, though Kafka may long be back. See `_connected`.
  - After some errors it gets itself a new epoch in the midst of a transaction (which aborts that), and would send what
    is left of the records with the next one. So a producer in any state but the expected is not used again.
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

# The wait before a request is sent again. A transaction soon after another is often told to wait for that one's end.
_RETRY_BACKOFF_MS = 20
_SLICE_S = 0.25  # so long may a failure go unnoticed while records are delivered


class KafkaPythonTransactionalProducer(KafkaPythonProducer):
    """Has a transactional id, and has fenced whoever had it. For one caller's thread.

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
            self._raise_failure()  # the library only tells that there was an error before
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
        self._client = self._client.for_instance(member.client.instance)  # whose name Kafka may refuse
        client = self._client.with_timeout(timeout_s)
        if not self._open or self._commit_asked:
            raise not_open()
        if not offsets:
            raise no_offsets()
        with client.errors("committing a transaction"):
            group = member.membership(topic, offsets)
            found = {TopicPartition(topic, p): OffsetAndMetadata(o, text, -1) for p, (o, text) in offsets.items()}
            added = self._transactions.send_offsets_to_transaction(found, group)  # two requests, beside the records
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
        if error is not None:
            raise self._client.translate(error, "producing in a transaction") from error
        super()._raise_failure()


def _connected(await_ready: Callable[..., bool], node: Any, timeout_ms: float) -> bool:
    """Whether there is a connection to the node.

    The library raises where there is none. Its sender keeps a request only where it is told so by False: then it looks
    for the coordinator and sends the request again.
    """
    try:
        return await_ready(node, timeout_ms=timeout_ms)
    except errors.KafkaError:
        return False
