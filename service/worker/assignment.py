"""The partitions that the group has assigned to this worker: from their assignment to their revocation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import cast

from tidecast.service.broker.port import Batch, Broker, Consumer, Membership
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError, BrokerUnavailable, Rejected
from tidecast.service.observability.liveness import Liveness
from tidecast.service.observability.metrics import Metrics
from tidecast.service.worker.committer import Committer
from tidecast.service.worker.in_time_order import InTimeOrder
from tidecast.service.worker.partition import Partition
from tidecast.service.worker.positions import CommittedPositions
from tidecast.service.worker.restore import Restore, Restored
from tidecast.service.worker.restore_checks import check_end, check_retained
from tidecast.service.worker.router import Work

log = logging.getLogger("tidecast.worker")

POLL_SECONDS = 0.2  # SIGTERM may go unnoticed for this long
_AGAIN_SECONDS = 3.0  # until Kafka is asked again: it did not answer, or a log ends too early
_VERIFY_SECONDS = 10.0  # between two comparisons of positions with what Kafka has


class PartitionAssignment:
    """Owns the partitions' records and the group's consumer. For the loop's thread.

    Args:
        settings: what is in force.
        broker: connected.
        partitions: empty; only this object adds and deletes records.
        work: forgets what is revoked.
        restore: says where new partitions continue.
        committer: commits before partitions go.
        metrics: to feed.
        liveness: of the loop.
        clock: seconds, monotonic.
    """

    consumer: Consumer

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        partitions: dict[int, Partition],
        work: Work,
        restore: Restore | CommittedPositions,
        committer: Committer,
        metrics: Metrics,
        liveness: Liveness,
        clock: Callable[[], float],
    ) -> None:
        self._settings, self._broker, self._partitions = settings, broker, partitions
        self._work, self._restore, self._committer = work, restore, committer
        self._metrics, self._liveness, self._clock = metrics, liveness, clock
        self._gauges_at = clock()
        self._verify_at = 0.0
        self._short: set[int] = set()  # partitions whose log seemed to end before what was read
        self._ends: dict[int, int] = {}  # of the partitions, as Kafka was last asked
        self._lag: dict[int, int] = {}  # from the committed offset to the end of the log, as last known
        self._joined = self._leaving = False

    @property
    def joined(self) -> bool:
        """True once the group has answered, even if it had no partition for this worker."""
        return self._joined

    @property
    def restoring(self) -> set[int]:
        """Those whose states are not back yet; none of their readings is read. Other threads may ask."""
        return {number for number, p in list(self._partitions.items()) if p.restoring}

    @property
    def waiting(self) -> bool:
        """True while the restore only waits until Kafka is asked again."""
        return self._restore.waiting

    # Membership ----------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Make the consumer.

        Raises:
            BrokerError: no broker answers.
        """
        s = self._settings
        instance = None if s.instance == "auto" else s.instance
        self.consumer = self._broker.consumer(group=s.group, membership=Membership(instance, s.session_timeout_seconds))
        if s.routes:
            self.consumer = cast(Consumer, InTimeOrder(self.consumer, self._clock))

    def join(self) -> None:
        """Subscribe. After an BrokerUnavailable the consumer is a new one: the old one would wait in vain.

        Raises:
            BrokerError: Kafka does not answer, or refuses.
        """
        try:
            self._liveness.note_turn()
            self.consumer.subscribe(self._settings.input_topic, self.on_assigned, self.on_revoked)
        except BrokerUnavailable:
            self.consumer.close()
            self.connect()
            raise

    def on_assigned(self, partitions: set[int]) -> None:
        """The group has assigned these. Called inside of a poll."""
        self._joined = True
        self._liveness.note_answer()
        self._liveness.note_turn()
        self._metrics.rebalances.inc()
        self._begin(partitions)
        self._verify_at = 0.0
        log.info("partitions assigned", extra={"new": sorted(partitions), "all": sorted(self._partitions)})

    def on_revoked(self, partitions: set[int]) -> None:
        """The group takes these away. Called inside of a poll, or as the consumer is closed.

        What was emitted is committed, with their states, before they go.
        """
        self._liveness.note_turn()
        if not self._leaving:
            self._committer.commit_last(self.consumer, partitions - self.restoring)
        self._work.revoke(partitions)
        for partition in partitions & self._partitions.keys():
            del self._partitions[partition]
        if not self._leaving:  # what is not committed then, is not counted
            self._committer.note({})  # perhaps nothing is left to commit
        self._note_restore()
        self.update_gauges(now=True)
        if not self._leaving:
            log.info("partitions revoked", extra={"gone": sorted(partitions), "all": sorted(self._partitions)})

    def leave(self) -> None:
        """Leave the group without another commit, and release all connections."""
        self._leaving = True
        self.consumer.close()
        self._restore.close()

    # Restore -------------------------------------------------------------------------------------------------

    def _begin(self, partitions: Collection[int]) -> None:
        """Forget all that is known of these partitions; what is in Kafka counts."""
        if partitions:
            self._work.revoke(partitions)
            self._partitions.update({number: Partition() for number in partitions})
            self.consumer.pause(partitions)
            self._note_restore()

    def start_over_if_broken(self) -> bool:
        """Where a transaction failed, memory is ahead of what is committed: restore all. True if that was so.

        If commits fail again and again, the restore begins only after a wait.

        Raises:
            BrokerError: as `Committer.start_over`.
        """
        if not self._committer.broken:
            return False
        if self._committer.failures.seconds_to_wait:
            self.consumer.pause(self._partitions.keys())  # what is polled meanwhile is dropped, and read again
            return True
        self._metrics.start_overs.inc()
        self._committer.start_over(self.consumer)
        self._begin(set(self._partitions))
        return True

    def advance_restore(self) -> None:
        """Restore new partitions a little. Blocks up to 0.2 s, longer where Kafka does not answer.

        Raises:
            BrokerError: what is in Kafka does not fit, or it does not answer.
            ChangelogError: the changelog holds what this model cannot use.
        """
        if not self.restoring:
            return
        with self._liveness.allow(2 * self._settings.broker_timeout_seconds):
            restored = self._restore.advance(self.consumer, POLL_SECONDS)
            self._metrics.note_damaged_states(self._restore.damaged)
            try:
                for number, found in restored.items():
                    self._start_reading(number, found)
            except BrokerUnavailable as error:
                self._restore.failures.add(error)
                self._begin(restored.keys())
                return
        self._note_restore()
        if restored:
            self._restore.failures.end()
            self.consumer.resume(set(restored))
            self._metrics.restore_seconds.set(max(found.seconds for found in restored.values()))

    def _start_reading(self, number: int, restored: Restored) -> None:
        partition = self._partitions[number]
        if restored.committed is not None and restored.replay_from is not None:
            self._committer.restored(partition, restored.replay_from, restored.committed)
            self._work.replay(number, restored.committed)
            start = restored.replay_from
        elif self._settings.start == "latest":
            # The end becomes the group's offset, also after a crash.
            start = self.consumer.end_offsets([number])[number]
            self._committer.note({number: start})
        else:
            start = self.consumer.beginning_offsets([number])[number]
        self.consumer.seek(number, start)  # always: before a start over, more may have been read
        partition.next_offset = partition.read_from = start

    def _note_restore(self) -> None:
        self._metrics.restoring.set(len(self.restoring))
        self._metrics.restore_remaining.set(self._restore.remaining)

    # Reading -------------------------------------------------------------------------------------------------

    def check_unbroken(self, batch: Batch) -> None:
        """See that retention has deleted nothing between what was read before and this batch.

        Skipped offsets alone mean little: transactions and compaction leave gaps. But if offsets are skipped and the
        log now begins after them, readings may be lost because the worker reads too slowly.

        Raises:
            BrokerError: they are lost; what was read before is committed.
            BrokerUnavailable: Kafka does not say where its logs begin.
        """
        firsts, skipped = batch.first_offsets(), {}
        for number, end in batch.next_offsets.items():
            expected = self._partitions[number].next_offset if number in self._partitions else None
            if expected is not None and firsts.get(number, end) > expected:
                skipped[number] = expected
        try:
            begins = self.consumer.beginning_offsets(set(skipped)) if skipped else {}
        except Rejected:  # a broker that has just started may not even know the topic; `TopicWatch` looks at that
            begins = {}
        for number, first in begins.items():
            if first > skipped[number]:
                self._check_lost(number, skipped[number], first)
        for number, end in batch.next_offsets.items():
            if number in self._partitions and number not in skipped.keys() - begins.keys():  # these with the next batch
                partition = self._partitions[number]  # never back, as a client in a topic that was made again
                partition.next_offset = max(end, partition.next_offset or 0)

    def verify_positions(self) -> bool:
        """Compare what this worker has read and committed with what Kafka has, after each rebalance and every 10 s.

        Kafka's offsets count, not the client's bookkeeping: a member that was evicted and is back may believe that it
        kept a partition which another member has answered meanwhile. Then all is restored from what is committed, and
        what was just polled must be dropped: False.

        Raises:
            BrokerError: a log ends before what was read from it.
        """
        partitions = self._partitions
        moving = any(p.restoring or p.replaying or p.in_flight is not None for p in partitions.values())
        if moving or not partitions or self._clock() < self._verify_at:
            return True
        try:
            with self._liveness.allow(2 * self._settings.broker_timeout_seconds):
                ends, found = self.consumer.end_offsets(partitions), self.consumer.committed(partitions)
        except BrokerError:  # one that has just started may not even know the topic; `TopicWatch` looks at that
            self._verify_at = self._clock() + _AGAIN_SECONDS  # not at each turn of the loop
            return True
        self._verify_at, self._ends = self._clock() + _VERIFY_SECONDS, ends
        for number, partition in partitions.items():
            self._check_end(number, ends[number])
            entry = found[number]
            committed = None if entry is None else entry[0]
            if committed != partition.committed:
                self._committer.distrust(
                    f"another member has committed offsets of {self._settings.input_topic}-{number}: "
                    f"{partition.committed} was ours, and Kafka has {committed}"
                )
                return False
        return True

    def _check_end(self, number: int, end: int) -> None:
        position = self._partitions[number].next_offset
        if position is None or end >= position:
            self._short.discard(number)
        elif number not in self._short:  # seen twice: a broker that has just started may not know its end yet
            self._short.add(number)
            self._verify_at = self._clock() + _AGAIN_SECONDS
        else:
            check_end(self._settings, number, position, end)

    def _check_lost(self, number: int, expected: int, first: int) -> None:
        log.warning(
            "retention has deleted readings before they were read",
            extra={"partition": number, "offsets": [expected, first]},
        )
        committed = self._partitions[number].committed
        try:
            check_retained(self._settings, number, first, expected, -1 if committed is None else committed)
        except BrokerError:
            self._committer.commit_last(self.consumer, self._partitions.keys())
            raise

    def update_gauges(self, *, now: bool = False) -> None:
        """At most once a second unless `now`: counting a million series takes milliseconds."""
        if not now and self._clock() - self._gauges_at < 1.0:
            return
        self._gauges_at = self._clock()
        self._note_lag()
        assigned = self._partitions.keys()
        self._metrics.partitions.update(
            self._settings.input_topic,
            {p: self._lag.get(p, 0) for p in assigned},
            self._work.series_counts(assigned),
            self._work.series_counts(assigned, unwritten=True),
        )

    def _note_lag(self) -> None:
        """Readings that are not committed yet; during a restore they are those from before it."""
        unread = self.consumer.lag()  # as of the last fetch: of what is paused, Kafka's own answer is newer
        for number, partition in self._partitions.items():
            position = partition.next_offset
            if not partition.restoring and position is not None and number in unread.keys() | self._ends.keys():
                done = partition.read_from if partition.committed is None else partition.committed
                end = max(unread.get(number, 0) + position, self._ends.get(number, 0))
                self._lag[number] = max(end - done, 0)
