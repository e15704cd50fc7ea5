"""The two ways to bring forecasts, dead letters, states and offsets to Kafka.

Exactly once, in this order (a transaction begins with the first record after a commit):
  1. forecasts and dead letters are produced inside of it, batch after batch.
  2. the changelog records due are produced inside of it.
  3. the input offsets, each with its snapshot offset, are added to it with the group's metadata.
  4. it is committed.
A crash before 4 leaves nothing that a reader of committed records sees: the next owner of the partitions begins at the
old offsets with the old states. After a crash in 4 the broker decides: either all of it holds or nothing does, and the
committed offset, read once it is stable, tells which. A worker that was away for too long is fenced in 3 or 4.
3 and 4 are four round trips. With a backlog they are made while the model processes the next readings. These are polled
before, and nothing of them is emitted until the result of the commit is known.

At least once (2 and 3 only when enough states are due; otherwise the worker does not wait for 4, but reads the result
later):
  1. forecasts and dead letters are produced and acknowledged.
  2. the offsets are committed, each with its old snapshot offset. Kafka refuses that to a worker that is no longer a
     member of the group: it must not write its older states over those of its successor.
  3. the changelog records due are produced and acknowledged.
  4. the offsets are committed again, each with its new snapshot offset.
A crash before 2 repeats forecasts. A crash after 2 repeats none: the replay emits nothing, and what a restored state
contains is not applied again. A worker that is frozen between 2 and 3 until others have its partitions is not stopped.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Protocol

from tidecast.service.broker.port import Broker, Consumer, OutgoingBatch, Producer
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError, BrokerUnavailable, NoCoordinator
from tidecast.service.observability.liveness import SAY_SECONDS

log = logging.getLogger("tidecast.worker")

Offsets = Mapping[int, tuple[int, str]]  # partition -> (next offset, metadata)


def delivery_as_set(settings: Settings, broker: Broker) -> Delivery:
    """What the settings ask for.

    Raises:
        BrokerError: no broker answers.
    """
    s = settings
    if s.delivery != "exactly-once":
        return AtLeastOnce(broker, s.broker_timeout_seconds)
    instance = uuid.uuid4().hex[:12] if s.instance == "auto" else s.instance
    name = f"{s.group}{':' if s.routes else '-'}{instance}"  # another than that of any worker of `serve`
    make = partial(broker.producer, transactional_id=name)
    try:
        return ExactlyOnce(make, s.input_topic, s.broker_timeout_seconds)
    except BrokerUnavailable as error:
        broker.describe(s.input_topic)  # raises where Kafka answers nothing at all
        raise NoCoordinator(s.bootstrap_servers) from error


class Delivery(Protocol):
    """How a worker emits and commits."""

    stores_separately: bool  # True where states need requests of their own, so that not every commit writes some
    blocks_emit: bool  # True where nothing may be polled or emitted before the result of a commit is known

    def emit(self, outgoing: OutgoingBatch) -> None:
        """Hand over records; waits for Kafka only if a buffer is full."""

    def flush(self, timeout_s: float) -> None:
        """Wait until Kafka has what was emitted, as far as that can be known before the commit."""

    def verify_ownership(self, offsets: Callable[[], Offsets], consumer: Consumer) -> None:
        """Before states are written: raise unless this worker still owns them. `offsets` is called if needed."""

    def store(self, states: OutgoingBatch) -> None:
        """Hand over the changelog records due."""

    def commit(self, offsets: Offsets, consumer: Consumer, *, wait: bool) -> bool:
        """Commit what was emitted and stored, and `partition -> (next offset, metadata)`.

        True = Kafka has it. False, only if it need not `wait`: `acknowledged` tells the result.
        """

    def acknowledged(self, consumer: Consumer) -> bool:
        """Whether Kafka has what `commit` did not wait for; with `blocks_emit`, waits. Raises what went wrong."""

    def start_over(self) -> None:
        """Abort what was emitted since the last commit, as far as that can be done."""

    def close(self) -> None:
        """Release the producer without waiting."""


def flush_within(delivery: Delivery, timeout_s: float, clock: Callable[[], float]) -> None:
    """Wait until Kafka has all that was emitted; logs every few seconds while that takes long.

    Raises:
        BrokerError: a record was refused, or `timeout_s` has passed.
    """
    began = clock()
    while True:
        tried = clock()
        limit = min(SAY_SECONDS, began + timeout_s - tried)
        try:
            return delivery.flush(limit)
        except BrokerError:
            now = clock()
            # A record that was refused stays refused; only a wait that timed out is worth another.
            if now - tried < limit or now - began >= timeout_s:
                raise
            log.warning("Kafka does not answer, waiting", extra={"seconds": round(now - began)})


class AtLeastOnce(Delivery):
    """No transactions."""

    stores_separately, blocks_emit = True, False

    def __init__(self, broker: Broker, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._producer: Producer = broker.producer()

    def emit(self, outgoing: OutgoingBatch) -> None:
        """Hand over records."""
        if len(outgoing):
            self._producer.produce(outgoing)

    def flush(self, timeout_s: float) -> None:
        """Wait until Kafka has what was emitted."""
        self._producer.flush(timeout_s)

    def verify_ownership(self, offsets: Callable[[], Offsets], consumer: Consumer) -> None:
        """Step 2 of the module's second list."""
        self.commit(offsets(), consumer, wait=True)

    def store(self, states: OutgoingBatch) -> None:
        """Wait until Kafka has them: the next commit relies on them."""
        if len(states):
            self._producer.produce(states)
            self._producer.flush(self._timeout_s)

    def commit(self, offsets: Offsets, consumer: Consumer, *, wait: bool) -> bool:
        """Commit the offsets; what was emitted is acknowledged by now."""
        commit = consumer.commit if wait else consumer.commit_async
        commit({p: o for p, (o, _) in offsets.items()}, {p: text for p, (_, text) in offsets.items()})
        return wait

    def acknowledged(self, consumer: Consumer) -> bool:
        """Whether a poll has brought the answer."""
        return consumer.commit_acknowledged()

    def start_over(self) -> None:
        """Nothing to do: what was emitted stays emitted."""

    def close(self) -> None:
        """Release the producer without waiting."""
        self._producer.close()


class ExactlyOnce(Delivery):
    """Transactions, fenced by the group's metadata."""

    stores_separately, blocks_emit = False, True

    def __init__(self, make_producer: Callable[[], Producer], topic: str, timeout_s: float) -> None:
        self._make, self._topic, self._timeout_s = make_producer, topic, timeout_s
        self._producer = make_producer()
        self._open = False
        self._running: Future[None] | None = None  # a commit that is not waited for

    def emit(self, outgoing: OutgoingBatch) -> None:
        """Hand over records, inside of the transaction."""
        if len(outgoing):
            self._begin()
            self._producer.produce(outgoing)

    def flush(self, timeout_s: float) -> None:
        """Nothing to do: the commit waits."""

    def verify_ownership(self, offsets: Callable[[], Offsets], consumer: Consumer) -> None:
        """Nothing to do: what a fenced worker writes is never committed."""

    def store(self, states: OutgoingBatch) -> None:
        """Hand over the changelog records due, inside of the transaction."""
        self.emit(states)

    def commit(self, offsets: Offsets, consumer: Consumer, *, wait: bool) -> bool:
        """Steps 3 and 4 of the module's first list."""
        self._begin()
        commit = partial(self._producer.commit_transaction, self._topic, offsets, consumer, self._timeout_s)
        if wait:
            commit()
            self._open = False
        else:
            self._running = _in_thread(commit)
        return wait

    def acknowledged(self, consumer: Consumer) -> bool:
        """Waits for the end of step 4."""
        if self._running is not None:
            running, self._running = self._running, None
            running.result()
            self._open = False
        return True

    def start_over(self) -> None:
        """Make a new producer with the same id: the broker aborts what the old one left open."""
        self._open = False
        self._producer.close()
        self._producer = self._make()

    def close(self) -> None:
        """Release the producer; the broker aborts what is open."""
        self._producer.close()

    def _begin(self) -> None:
        if not self._open:
            self._producer.begin()
            self._open = True


def _in_thread(call: Callable[[], None]) -> Future[None]:
    """Run `call` in a thread of its own, which does not keep the process from ending."""
    future: Future[None] = Future()

    def work() -> None:
        try:
            call()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=work, name="commit", daemon=True).start()
    return future
