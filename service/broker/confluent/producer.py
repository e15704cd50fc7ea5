"""Producing through librdkafka.

One `produce` call for each record: the library's bulk call (2.16) is no faster, as it needs a dict for each record, and
has no headers. A header costs half as much as the record itself.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import repeat
from operator import length_hint
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Producer as Kafka
from typing_extensions import override

from tidecast.service.broker.client import Failure, PlainProducer
from tidecast.service.broker.confluent.client import ConfluentClient, log
from tidecast.service.broker.partitioner import partitions_for
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.errors import BrokerError

_ROOM_PAUSE_S = 0.05
_CLOSE_SECONDS = 2.0
_PURGED = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)  # cancelled by us: not a failed delivery


class ConfluentProducer(PlainProducer):
    """Idempotent, acks=all. After a record could not be delivered, every further call raises."""

    def __init__(self, client: ConfluentClient, count: Callable[[str], int | None], **more: Any) -> None:
        self._client = client
        self._count = count
        self._patience_s = more.get("delivery.timeout.ms", client.timeout_ms) / 1_000
        options = client.options() | {
            "acks": "all",
            "enable.idempotence": True,
            # Nobody sees a transaction before its end, so there a linger only means fewer requests. Without one, a
            # batch fills by itself while others are sent; and the library (2.16) polls 100,000 times a second during
            # the last millisecond of a linger.
            "linger.ms": 10 if "transactional.id" in more else 0,
            "message.max.bytes": 8 << 20,  # Kafka decides how large a record may be
            # Limits for records that are not acknowledged yet: their number, and KiB.
            "queue.buffering.max.messages": 200_000,
            "queue.buffering.max.kbytes": 64 << 10,
            "delivery.timeout.ms": client.timeout_ms + 1_000,
            # lz4 would save a third of the time, but kafka-python needs another package to read it, and readers of the
            # forecasts or states must not need that.
            "compression.type": "none",
            "on_delivery": self._delivered,
            "delivery.report.only.error": True,
            "error_cb": self._hear,
            **more,
        }
        self._fatal: KafkaError | None = None  # after this error the library does nothing more
        self._failure: tuple[str, BaseException] | None = None
        self._counts: dict[str, int] = {}
        with client.errors("connecting to produce"):
            self._kafka: Any = Kafka(options)

    @override
    def produce(self, outgoing: OutgoingBatch) -> None:
        self._raise_failure()
        if not len(outgoing):
            return
        topic = outgoing.topic
        highest = max((p for p in set(outgoing.partitions) if p is not None), default=0)
        with self._client.errors(f"producing to {topic}"):
            count = self._partitions_of(topic, highest)
            partitions: list[Any] = outgoing.partitions
            if None in partitions:
                partitions = partitions_for(partitions, outgoing.keys, count)
            columns: list[Iterable[Any]] = [outgoing.values, outgoing.keys, partitions]
            stamps, headers = outgoing.timestamps, any(outgoing.headers)
            if headers or stamps.count(None) < len(stamps):
                columns += [repeat(None), repeat(None), [stamp or 0 for stamp in stamps]]
            if headers:
                columns.append([list(each) if each else None for each in outgoing.headers])
            self._hand_over(topic, columns, len(outgoing))
            self._kafka.poll(0)
        self._raise_failure()

    def _hand_over(self, topic: str, columns: list[Iterable[Any]], n: int) -> None:
        """Call the library for each of `n` records, with the columns as its arguments."""
        topics = repeat(topic, n)
        calls = map(self._kafka.produce, topics, *columns)
        while True:
            try:
                deque(calls, maxlen=0)  # no Python line for each
                return
            except BufferError:  # this record was taken from the columns; the later ones were not
                row = n - length_hint(topics) - 1
                self._make_room(topic, tuple(c[row] if isinstance(c, list) else None for c in columns))

    def _make_room(self, topic: str, record: tuple[Any, ...]) -> None:
        deadline = time.monotonic() + self._client.timeout_s
        while True:
            self._kafka.poll(_ROOM_PAUSE_S)
            self._raise_failure()
            try:
                self._kafka.produce(topic, *record)
                return
            except BufferError:
                if time.monotonic() > deadline:
                    raise

    def _partitions_of(self, topic: str, highest: int) -> int:
        count = self._counts.get(topic)
        if count is None or highest >= count:  # asked again if the topic may have grown
            grown, count = count is not None, self._count(topic)
            if count is None:
                raise self._client.broker_error(Failure.NO_TOPIC, "", f"producing to {topic}")
            if grown:  # the library itself would look minutes later
                self._kafka.list_topics(topic, timeout=self._client.timeout_s)
            self._counts[topic] = count
        if highest >= count:
            raise ValueError(f"there is no partition {highest}, only 0..{count - 1}")
        return count

    def _delivered(self, error: KafkaError | None, message: Any) -> None:
        """Called inside our calls, for records that could not be delivered."""
        if error is not None and error.code() not in _PURGED and self._failure is None:
            self._failure = (message.topic(), KafkaException(error))

    def _hear(self, error: KafkaError) -> None:
        """Called inside our calls, for errors of the connection."""
        if error.fatal() and self._fatal is None:
            self._fatal = error
        log.warning("%s", error.str())

    def _raise_failure(self) -> None:
        if self._kafka is None:
            raise BrokerError("the producer is closed", do="Make a new one.")
        if self._failure is not None:
            topic, error = self._failure
            raise self._client.with_timeout(self._patience_s).translate(error, f"delivering to {topic}") from error

    @override
    def flush(self, timeout_s: float) -> None:
        doing = "delivering what was produced"
        client = self._client.with_timeout(timeout_s)
        self._raise_failure()
        with client.errors(doing):
            left = self._kafka.flush(timeout_s)
        self._raise_failure()
        if left:
            raise client.broker_error(Failure.UNAVAILABLE, "", doing)

    @override
    def close(self) -> None:
        if self._kafka is None:
            return
        # Its own `close` would wait until an open transaction is aborted. Without it, the library closes when the
        # object is collected: so the last reference goes to the thread that waits for that.
        held, self._kafka = [self._kafka], None
        with contextlib.suppress(BrokerError):
            self._client.with_timeout(_CLOSE_SECONDS).call("closing the producer", lambda: self._release(held))

    def _release(self, held: list[Any]) -> None:
        held[0].purge(True, True, False)
        held.clear()
