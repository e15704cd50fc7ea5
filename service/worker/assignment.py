"""The partitions that this worker has now: given and taken by the group, restored, handed from model to model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from tidecast.service.broker.port import Batch, Broker, Consumer
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError, Unanswered
from tidecast.service.model.session import Model
from tidecast.service.observability.liveness import Liveness
from tidecast.service.observability.metrics import Metrics
from tidecast.service.worker.committer import Committer
from tidecast.service.worker.model_swap import ModelSwap
from tidecast.service.worker.restore import Restore, Restored
from tidecast.service.worker.restore_checks import check_retained
from tidecast.service.worker.served_models import ServedModels

log = logging.getLogger("tidecast.worker")

POLL_SECONDS = 0.2  # so long may SIGTERM go unnoticed


class PartitionAssignment:
    """For the loop's thread; `on_assigned` and `on_revoked` run inside of its polls.

    Args:
        settings: what is in force.
        broker: connected.
        models: whose states come and go.
        commits: what is emitted and not committed.
        metrics: to feed.
        pulse: of the loop.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        models: ServedModels,
        commits: Committer,
        metrics: Metrics,
        pulse: Liveness,
        clock: Callable[[], float],
    ) -> None:
        self._settings, self._broker, self._models, self._committer = settings, broker, models, commits
        self._metrics, self._pulse, self._clock = metrics, pulse, clock
        self._restore = Restore(broker, settings, models, clock)
        self._swap: ModelSwap | None = None
        self._gauged = clock()
        self._next_offsets: dict[
            int, int
        ] = {}  # partition -> the offset that the next reading should have, or a later one
        self.consumer: Consumer
        self.assigned: set[int] = set()
        self.joined = False  # True once the group has answered, be it that there is nothing for us
        self.leaving = False  # True once a revocation must not commit any more

    @property
    def restoring(self) -> set[int]:
        """Those whose states are not back yet; nothing is read of them."""
        return self._restore.partitions

    @property
    def busy(self) -> bool:
        """True where there is more to do than to wait for readings."""
        return bool(self.restoring) or self._swap is not None

    def on_assigned(self, partitions: set[int]) -> None:
        """They are ours from now on."""
        self.joined = True
        self.assigned |= partitions
        self._pulse.note_answer()
        self._pulse.note_turn()
        self._metrics.rebalances.inc()
        self._begin(partitions)
        log.info("partitions assigned", extra={"new": sorted(partitions), "all": sorted(self.assigned)})

    def on_revoked(self, partitions: set[int]) -> None:
        """What was emitted is committed, with their states, before they go."""
        self._pulse.note_turn()
        if not self.leaving:
            self._committer.commit_last(self.consumer, partitions - self.restoring)
        self._forget(partitions)
        self.assigned -= partitions
        self.gauges(now=True)
        if not self.leaving:
            log.info("partitions revoked", extra={"gone": sorted(partitions), "all": sorted(self.assigned)})

    def started_over(self) -> bool:
        """True where what is in memory is not what could be committed: all of it was dropped, and is restored."""
        if not self._committer.broken:
            return False
        self._metrics.start_overs.inc()
        self._committer.start_over(self.consumer)
        self._forget(self.assigned)
        self._begin(self.assigned)
        return True

    def _begin(self, partitions: Collection[int]) -> None:
        if partitions:
            self.consumer.pause(partitions)
            self._restore.begin(partitions)
            self._note_restore()

    def _note_restore(self) -> None:
        self._metrics.restoring.set(len(self.restoring))
        self._metrics.restore_remaining.set(self._restore.remaining)

    def _forget(self, partitions: Collection[int]) -> None:
        """Drop all that is known of partitions; what is in Kafka is what counts."""
        self._restore.drop(partitions)
        self._note_restore()
        for partition in partitions:
            self._next_offsets.pop(partition, None)
        if self._swap is not None:
            self._swap.forget(partitions)
        self._committer.forget(partitions)
        self._models.revoke(partitions)

    def restore_some(self) -> None:
        """A little of the restore of partitions that are new. Blocks up to 0.2 s, longer where Kafka does not answer.

        Raises:
            BrokerError: what is in Kafka does not fit, or it does not answer.
            ChangelogError: the changelog holds what this model cannot use.
        """
        if not self.restoring:
            return
        with self._pulse.allow(2 * self._settings.broker_timeout_seconds):
            done = self._restore.step(self.consumer, POLL_SECONDS)
            try:
                for partition, restored in done.items():
                    self._go_on(partition, restored)
            except Unanswered as error:
                log.warning("Kafka does not answer, beginning the restore again", extra={"reason": error.what})
                self._committer.forget(done)
                self._restore.again(done)
                return
        self._note_restore()
        if done:
            self.consumer.resume(set(done))
            self._metrics.restore_seconds.set(max(restored.seconds for restored in done.values()))

    def _go_on(self, partition: int, restored: Restored) -> None:
        if restored.committed is not None and restored.replay_from is not None:
            self._committer.restored(partition, restored.replay_from, restored.committed)
            self._read_from(partition, restored.replay_from)
            self._models.replay(partition, restored.committed)
        elif self._settings.start == "latest":
            # The end becomes the group's offset, also after a crash.
            end = self.consumer.end_offsets([partition])
            self._committer.pending |= end
            self._read_from(partition, end[partition])
        else:  # said even so: before a start over, more may have been read
            self._read_from(partition, self.consumer.beginning_offsets([partition])[partition])

    def _read_from(self, partition: int, offset: int) -> None:
        self.consumer.seek(partition, offset)
        self._next_offsets[partition] = offset

    def check_unbroken(self, batch: Batch) -> None:
        """See that retention has eaten nothing between what was read before and this batch.

        Offsets that are passed over mean little by themselves: transactions and compaction leave gaps. But where
        they are passed over and the log begins behind them, readings may be gone: who reads too slowly is told so.

        Raises:
            BrokerError: they are gone; what was read before is committed.
            Unanswered: Kafka does not say where its logs begin.
        """
        firsts = batch.first_offsets()
        passed = {p for p, end in batch.next_offsets.items() if firsts.get(p, end) > self._next_offsets.get(p, end)}
        for partition, first in (self.consumer.beginning_offsets(passed) if passed else {}).items():
            place = self._next_offsets[partition]
            if first > place:
                log.warning(
                    "retention has eaten readings before they were read",
                    extra={"partition": partition, "offsets": [place, first]},
                )
                try:
                    check_retained(
                        self._settings, partition, first, place, self._committer.committed.get(partition, -1)
                    )
                except BrokerError:
                    self._committer.commit_last(self.consumer, self.assigned)
                    raise
        self._next_offsets |= {p: end for p, end in batch.next_offsets.items() if p in self._next_offsets}

    def begin_swap(self, model: Model) -> None:
        """`model` is to follow the one in service; one at a time."""
        assert self._swap is None
        self._swap = ModelSwap(self._broker, self._settings, self._models, model, self.assigned, self._clock)

    @property
    def swapping(self) -> bool:
        """True while a newer model takes over."""
        return self._swap is not None

    def swap_some(self) -> None:
        """A little of the swap under way: at most one partition is handed over.

        Raises:
            BrokerError: Kafka does not answer.
        """
        if self._swap is None:
            return
        left = self._models.waiting(self.assigned)
        with self._pulse.allow(self._settings.broker_timeout_seconds):
            try:
                partition = self._swap.step(
                    self._committer.answered_offsets, left - self.restoring - self._committer.replaying
                )
            except Unanswered:
                return  # the older model goes on, and what is lasting is found out by its own commits
        if partition is not None:
            self._models.hand_over(partition)
            self._swap.forget({partition})
            self._committer.commit_all(self.consumer, {partition})
            log.info("a partition is handed over", extra={"partition": partition, "left": len(left) - 1})
        if not left - {partition}:
            self._swap.end()
            self._swap = None
            self._metrics.serve(self._models.current.spec)
            self._metrics.model_swaps.labels("done").inc()

    def gauges(self, *, now: bool = False) -> None:
        """At most once a second: counting a million series takes milliseconds."""
        if not now and self._clock() - self._gauged < 1.0:
            return
        self._gauged = self._clock()
        lag = self.consumer.lag()
        self._metrics.partitions.update(
            self._settings.input_topic,
            {p: lag.get(p, 0) for p in self.assigned},
            self._models.series_counts(self.assigned),
            self._models.series_counts(self.assigned, unwritten=True),
        )

    def close(self) -> None:
        """Let go of all connections."""
        self._restore.close()
        if self._swap is not None:
            self._swap.close()
