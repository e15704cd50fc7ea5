"""Commits what was emitted, and deals with commits that fail."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial

from tidecast.service.broker.port import Broker, Consumer
from tidecast.service.broker.topics import largest_record
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError, Fenced, InstanceFenced, MemberEvicted
from tidecast.service.observability.metrics import Metrics
from tidecast.service.pipeline.batch import BatchResult, ScoredBatch
from tidecast.service.pipeline.dead_letters import cut_to_fit
from tidecast.service.worker.delivery import Delivery, delivery_as_set, flush_within
from tidecast.service.worker.emitted_batches import EmittedBatches
from tidecast.service.worker.fence_limit import FenceLimit
from tidecast.service.worker.partition import Partition, Partitions
from tidecast.service.worker.retries import Retries
from tidecast.service.worker.router import Work

log = logging.getLogger("tidecast.worker")

_RETRY_SECONDS = 1.0  # between two attempts to commit
_IDLE_FLUSH_SECONDS = 1.0  # while nothing arrives, states due are written this often

AllowWait = Callable[[float], AbstractContextManager[None]]


class Committer:
    """Commits for one worker, on its thread.

    Args:
        settings: what is in force.
        partitions: those assigned.
        work: whose states are due.
        metrics: to count transactions.
        clock: seconds, monotonic.
        allow_wait: a context in which the worker may wait for Kafka for so many seconds.
        on_scored: see `EmittedBatches`.
    """

    def __init__(
        self,
        settings: Settings,
        partitions: Partitions,
        work: Work,
        metrics: Metrics,
        clock: Callable[[], float],
        allow_wait: AllowWait,
        on_scored: Callable[[Sequence[ScoredBatch]], None] = lambda batches: None,
    ) -> None:
        self._settings, self._partitions, self._work, self._metrics = settings, partitions, work, metrics
        self._clock, self._allow_wait = clock, allow_wait
        self._delivery: Delivery
        self._interval = settings.commit_interval_ms / 1_000
        self._timeout_s = settings.broker_timeout_seconds
        self._due = 0.0  # when what is pending should be committed
        self._states_tainted = False
        self._broken: BrokerError | None = None  # why the open transaction failed
        self._evicted = False
        # An attempt follows the first failure at once: mostly the group has rebalanced.
        self.failures = Retries(
            "the last readings were not committed, trying again", "readings are committed again",
            settings.broker_timeout_seconds, clock, first_wait_s=0.0,
        )  # fmt: skip
        self._emitted = EmittedBatches(metrics, clock, on_scored)
        self._fence_limit = FenceLimit(settings.instance, clock)
        self._idle_flush_at = clock()

    def connect(self, broker: Broker) -> None:
        """Make the producer, and ask how large a dead letter may be.

        Raises:
            BrokerError: no broker answers.
        """
        self._largest_dead_letter = largest_record(broker, self._settings.dead_letter_topic)
        self._delivery = delivery_as_set(self._settings, broker)

    def close(self) -> None:
        """Release the producer without waiting."""
        self._delivery.close()

    @property
    def pending(self) -> dict[int, int]:
        """`partition -> next offset` that the next commit contains."""
        return {number: p.pending for number, p in self._partitions.items() if p.pending is not None}

    def _anything_pending(self) -> bool:
        return any(p.pending is not None for p in self._partitions.values())

    @property
    def _in_flight(self) -> list[Partition]:
        return [p for p in self._partitions.values() if p.in_flight is not None]

    @property
    def broken(self) -> bool:
        """True where memory is ahead of what can still be committed: `start_over`, and restore."""
        return self._broken is not None

    @property
    def evicted(self) -> bool:
        """True where the last commit was refused because the group no longer counts this worker as a member."""
        return self._evicted

    def distrust(self, why: str) -> None:
        """What is in memory is not what is committed: `start_over`."""
        self._broken = BrokerError(why)

    def taint_states(self) -> None:
        """After a batch that failed midway: write no more states."""
        self._states_tainted = True

    def shorten_timeout(self, seconds: float) -> None:
        """Wait at most so long for Kafka from now on."""
        self._timeout_s = min(self._timeout_s, seconds)

    def note_arrival(self) -> None:
        """Readings have arrived: if nothing is pending, the interval until the next commit begins now."""
        if not self._anything_pending():
            self._due = self._clock() + self._interval

    def seconds_until_due(self) -> float:
        """Until the next commit; infinity while nothing is pending."""
        return max(self._due - self._clock(), 0.0) if self._anything_pending() else math.inf

    def emit(self, result: BatchResult) -> None:
        """Hand over forecasts, then dead letters; waits for Kafka only if a buffer is full.

        Raises:
            BrokerError: an earlier record could not be delivered, and there is no transaction to abort.
        """
        try:
            if cut := cut_to_fit(result.dead_letters, self._largest_dead_letter):
                log.warning("dead letters were too large for their topic and are cut", extra={"cut": cut})
            self._delivery.emit(result.forecasts)
            self._delivery.emit(result.dead_letters)
        except BrokerError as error:
            self._record_failed(error)
        else:
            self._emitted.add(result)

    def note(self, next_offsets: Mapping[int, int]) -> None:
        """All before these offsets is answered. What was only replayed is not committed again."""
        for number, offset in next_offsets.items():
            partition = self._partitions.get(number)
            if partition is None or partition.restoring:
                continue
            committed = -1 if partition.committed is None else partition.committed
            if offset >= committed:
                partition.replaying = False
            if offset > max(committed, -1 if partition.in_flight is None else partition.in_flight):
                partition.pending = offset
        if not self.broken and not self._anything_pending() and not self._in_flight:
            self._emitted.settle()
            self.failures.note_idle()  # what could not be committed belongs to another member now

    def restored(self, partition: Partition, replay_from: int, committed: int) -> None:
        """The partition is read from `replay_from` on; what lies before `committed` was answered earlier."""
        partition.committed, partition.replaying = committed, replay_from < committed

    def poll_in_flight(self, consumer: Consumer) -> bool:
        """Find out the result of a commit in flight; False where it failed, and its offsets are pending again.

        With transactions, blocks until the result is known, up to the timeout.

        Raises:
            BrokerError: commits have failed for `broker_timeout_seconds`.
        """
        if not self._in_flight:
            return True
        try:
            with self._allow_wait(2 * self._timeout_s):
                done = self._delivery.acknowledged(consumer)
        except BrokerError as error:
            self._withdraw_in_flight()
            return self._commit_failed(error)
        if done:
            self._note_committed()
        return True

    def await_in_flight(self, consumer: Consumer) -> bool:
        """True where more may be emitted; False where the commit in flight failed: see `start_over`."""
        return not self._delivery.blocks_emit or self.poll_in_flight(consumer)

    def _withdraw_in_flight(self) -> None:
        for partition in self._in_flight:
            if partition.pending is None:
                partition.pending = partition.in_flight
            partition.in_flight = None

    def _note_committed(self) -> None:
        self._metrics.transactions.labels("committed").inc()
        self._metrics.note_commit()
        self._emitted.count()
        for partition in self._in_flight:
            partition.committed, partition.in_flight = partition.in_flight, None
        self.failures.end()

    def commit(
        self, consumer: Consumer, everything_of: Collection[int] = (), *, wait: bool = True, overlapped: bool = False
    ) -> bool:
        """Commit what is pending; True = Kafka has it, or `poll_in_flight` will tell.

        Blocks at most twice the timeout. Without transactions it never has to `wait`. With transactions it does not
        have to if it is `overlapped`: the caller does nothing with Kafka until it has called `await_in_flight`.

        Of the partitions `everything_of`, all states are written. Without transactions, a commit that Kafka refuses is
        tried again with the next one; the caller must continue to poll, since that is how a worker rejoins a group that
        has evicted it. A transaction that fails is aborted: see `start_over`.

        Raises:
            BrokerError: it has failed for `broker_timeout_seconds`, or a record was refused.
        """
        if self.broken or not self.poll_in_flight(consumer):
            return False
        if self._in_flight:  # no answer until now: wait for it this time
            self._withdraw_in_flight()
            wait = True
        delivery, offsets = self._delivery, self.pending
        with_states = bool(everything_of) or not delivery.stores_separately or self._work.worthwhile()
        wait = wait or (delivery.blocks_emit and not overlapped) or (with_states and delivery.stores_separately)
        self._due = self._clock() + self._interval
        with self._allow_wait(2 * self._timeout_s):
            try:
                flush_within(delivery, self._timeout_s, self._clock)
            except BrokerError as error:
                return self._record_failed(error)
            if with_states:
                try:
                    delivery.verify_ownership(partial(self._with_metadata, offsets), consumer)
                except BrokerError as error:
                    return self._commit_failed(error)
                try:
                    self._write_states(everything_of)
                except BrokerError as error:
                    return self._record_failed(error)
            try:
                done = delivery.commit(self._with_metadata(offsets), consumer, wait=wait)
            except BrokerError as error:
                return self._commit_failed(error)
        self._idle_flush_at = self._clock()
        for number, offset in offsets.items():
            self._partitions[number].pending, self._partitions[number].in_flight = None, offset
        self._emitted.ask()
        if done:
            self._note_committed()
        return True

    def _with_metadata(self, offsets: Mapping[int, int]) -> dict[int, tuple[int, str]]:
        """`partition -> (offset, metadata)`."""
        return {p: (found.offset, found.text) for p, found in self._work.offsets_to_commit(offsets).items()}

    def _write_states(self, everything_of: Collection[int]) -> None:
        if self._states_tainted:
            return
        for states in self._work.due(everything_of, {n for n, p in self._partitions.items() if p.replaying}):
            self._delivery.store(states)
            self._metrics.changelog_records.inc(len(states))

    def commit_last(self, consumer: Consumer, partitions: Collection[int]) -> bool:
        """Commit what is pending with all states of these partitions, before they go; True = nothing is left to do."""
        if self._anything_pending() or self._in_flight or (self._work.anything_due() and not self._states_tainted):
            return self.commit_all(consumer, partitions)
        return True

    def commit_all(self, consumer: Consumer, partitions: Collection[int], *, states: bool = True) -> bool:
        """Commit these partitions, changed or not, with all their `states` or those due; True = Kafka has it."""
        self.poll_in_flight(consumer)  # what was refused is committed again, now
        self._withdraw_in_flight()
        self._repeat(partitions)
        return not self._anything_pending() or self.commit(consumer, everything_of=partitions if states else ())

    def flush_idle(self, consumer: Consumer) -> None:
        """Write states due while nothing arrives, so that a restart has nothing to replay."""
        now = self._clock()
        self.poll_in_flight(consumer)
        waited = now - self._idle_flush_at >= _IDLE_FLUSH_SECONDS
        if not waited or self._anything_pending() or self._in_flight or not self._work.anything_due():
            return
        self._idle_flush_at = now
        self._repeat(self._partitions)
        if self._anything_pending():
            self.commit(consumer)

    def _repeat(self, partitions: Collection[int]) -> None:
        """States can only be committed with offsets: where nothing is new, use those of the last commit.

        Not during a replay: the states lack what lies between here and the committed offset, and the offset to replay
        from, which is stored with it, must stay.
        """
        for partition in (self._partitions[number] for number in partitions if number in self._partitions):
            if partition.pending is None and not partition.replaying:
                partition.pending = partition.committed

    def start_over(self, consumer: Consumer) -> None:
        """After a transaction that failed, or whose result is not known. Blocks for a new producer.

        A new producer takes the transactional id from any other. So a named instance asks its group first whether the
        name is still its own: of two processes with one name, the one that joined later continues.

        Raises:
            InstanceFenced: the name belongs to another process now.
            Fenced: a named instance was fenced repeatedly: a process outside of the group has its transactional id.
            BrokerError: no broker answers.
        """
        reason = self._broken
        assert reason is not None
        if isinstance(reason, Fenced) and self._settings.instance != "auto":
            with self._allow_wait(2 * self._settings.broker_timeout_seconds):
                consumer.verify_instance()
            if not isinstance(reason, MemberEvicted):
                self._fence_limit.add(reason)
        committed = sorted(number for number, p in self._partitions.items() if p.committed is not None)
        log.warning(
            "starting over from what is committed",
            extra={"reason": reason.what, "fenced": isinstance(reason, Fenced), "partitions": committed},
        )
        with self._allow_wait(2 * self._settings.broker_timeout_seconds):
            self._delivery.start_over()
        self._emitted.drop()
        self._broken = None

    def _record_failed(self, error: BrokerError) -> bool:
        """A forecast, dead letter or state was not delivered. Returns False, or raises if no transaction is open."""
        if self._settings.delivery != "exactly-once":
            self._metrics.transactions.labels("failed").inc()
            raise error
        return self._commit_failed(error)

    def _commit_failed(self, error: BrokerError) -> bool:
        """Prepare another attempt, with the next commit or, of a transaction, from what is committed. Returns False.

        Raises:
            InstanceFenced: another process has this worker's name.
            BrokerError: no attempt can succeed, or commits have failed for `broker_timeout_seconds`.
        """
        self._metrics.transactions.labels("failed").inc()
        if isinstance(error, InstanceFenced):
            raise error
        self._evicted = isinstance(error, MemberEvicted)
        if self._settings.delivery == "exactly-once":
            self._broken = error
        self.failures.add(error)
        self._due = self._clock() + max(self.failures.seconds_to_wait, _RETRY_SECONDS)
        return False
