"""What a commit is: the two ways to bring forecasts, dead letters, states and offsets to Kafka.

Exactly once, in this order (a transaction is begun with the first record after a commit):
  1. forecasts and dead letters are produced inside of it, batch after batch.
  2. the changelog records due are produced inside of it.
  3. the input offsets, each with its snapshot offset, are added to it under the group's metadata.
  4. it is committed.
A crash before 4 leaves nothing that a reader of committed records sees: whoever has the partitions next begins at the
old offsets with the old states. A crash in 4 leaves it to the broker: either all of it holds or nothing does, and the
committed offset, asked for once it is stable, tells which. A worker that was away for too long is fenced in 3 or 4.
3 and 4 are four round trips. With a backlog they are made while the next readings are on their way through the model;
those are polled before, and nothing of them is emitted until the commit is known.

At least once (2 and 3 only once enough states are due; else the worker does not wait for 4, but looks later what came
of it):
  1. forecasts and dead letters are produced and acknowledged.
  2. the offsets are committed, each with the snapshot offset as it was. Kafka refuses that to a worker that is out of
     the group: it must not write its older states over those of its successor.
  3. the changelog records due are produced and acknowledged.
  4. the offsets are committed again, each with its new snapshot offset.
A crash before 2 repeats forecasts. A crash after 2 repeats none: the replay is silent, and what a restored state holds
is not applied again. A worker that is frozen between 2 and 3 until others have its partitions is not held back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Protocol

from tidecast.service.broker.port import Broker, Consumer, Outgoing, Producer


class Delivery(Protocol):
    """How a worker emits and commits."""

    stores_apart: bool  # True where states cost requests of their own, so that they are not stored with every commit
    blocks_emit: bool  # True where nothing may be polled or emitted before it is known what came of a commit

    def emit(self, outgoing: Outgoing) -> None:
        """Hand over records; does not wait for Kafka unless a buffer is full."""

    def flush(self, timeout_s: float) -> None:
        """Wait until Kafka has what was emitted, as far as that can be known before the commit."""

    def verify_ownership(self, offsets: Callable[[], Mapping[int, tuple[int, str]]], consumer: Consumer) -> None:
        """See that this worker is still the one to write states, before it does. `offsets` are worked out on demand."""

    def store(self, states: Outgoing) -> None:
        """Hand over the changelog records due."""

    def commit(self, offsets: Mapping[int, tuple[int, str]], consumer: Consumer, *, wait: bool) -> bool:
        """Commit what was emitted and stored, and `partition -> (next offset, metadata)`.

        True = Kafka has it. False, only where it need not `wait`: `answered` tells what came of it.
        """

    def answered(self, consumer: Consumer) -> bool:
        """Whether Kafka has what `commit` did not wait for; waits where that `blocks_emit`. Raises what went wrong."""

    def start_over(self) -> None:
        """Give up what was emitted since the last commit, as far as that can be done."""

    def close(self) -> None:
        """Let go of the producer without waiting."""


class AtLeastOnce(Delivery):
    """No transactions."""

    stores_apart, blocks_emit = True, False

    def __init__(self, broker: Broker, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._producer: Producer = broker.producer()

    def emit(self, outgoing: Outgoing) -> None:
        """Hand over records."""
        if len(outgoing):
            self._producer.produce(outgoing)

    def flush(self, timeout_s: float) -> None:
        """Wait until Kafka has what was emitted."""
        self._producer.flush(timeout_s)

    def verify_ownership(self, offsets: Callable[[], Mapping[int, tuple[int, str]]], consumer: Consumer) -> None:
        """2 of the module's second list."""
        self.commit(offsets(), consumer, wait=True)

    def store(self, states: Outgoing) -> None:
        """Waits until Kafka has them: what is committed next counts on them."""
        if len(states):
            self._producer.produce(states)
            self._producer.flush(self._timeout_s)

    def commit(self, offsets: Mapping[int, tuple[int, str]], consumer: Consumer, *, wait: bool) -> bool:
        """The offsets."""
        commit = consumer.commit if wait else consumer.commit_soon
        commit({p: o for p, (o, _) in offsets.items()}, {p: text for p, (_, text) in offsets.items()})
        return wait

    def answered(self, consumer: Consumer) -> bool:
        """An answer comes with a poll."""
        return consumer.commit_answered()

    def start_over(self) -> None:
        """What was emitted stays emitted."""

    def close(self) -> None:
        """Let go of the producer without waiting."""
        self._producer.close()


class ExactlyOnce(Delivery):
    """Transactions, fenced by the group's metadata."""

    stores_apart, blocks_emit = False, True

    def __init__(self, make_producer: Callable[[], Producer], topic: str, timeout_s: float) -> None:
        self._make, self._topic, self._timeout_s = make_producer, topic, timeout_s
        self._producer = make_producer()
        self._open = False
        self._under_way: Future[None] | None = None  # a commit that is not waited for

    def emit(self, outgoing: Outgoing) -> None:
        """Hand over records, inside of the transaction."""
        if len(outgoing):
            self._begin()
            self._producer.produce(outgoing)

    def flush(self, timeout_s: float) -> None:
        """Nothing: the commit waits."""

    def verify_ownership(self, offsets: Callable[[], Mapping[int, tuple[int, str]]], consumer: Consumer) -> None:
        """Nothing: what a zombie writes is never committed."""

    def store(self, states: Outgoing) -> None:
        """Hand over the changelog records due, inside of the transaction."""
        self.emit(states)

    def commit(self, offsets: Mapping[int, tuple[int, str]], consumer: Consumer, *, wait: bool) -> bool:
        """3 and 4 of the module's list."""
        self._begin()
        commit = partial(self._producer.commit_transaction, self._topic, offsets, consumer, self._timeout_s)
        if wait:
            commit()
            self._open = False
        else:
            self._under_way = _begun(commit)
        return wait

    def answered(self, consumer: Consumer) -> bool:
        """Waits for the end of 4."""
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            under_way.result()
            self._open = False
        return True

    def start_over(self) -> None:
        """A new producer under the same id: the broker ends what the old one left open."""
        self._open = False
        self._producer.close()
        self._producer = self._make()

    def close(self) -> None:
        """Let go of the producer; the broker ends what is open."""
        self._producer.close()

    def _begin(self) -> None:
        if not self._open:
            self._producer.begin()
            self._open = True


def _begun(call: Callable[[], None]) -> Future[None]:
    """`call` in a thread of its own, which does not keep the process from ending."""
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
