"""The loop: poll, process, emit, commit, restore. All I/O with Kafka happens here, on one thread.

`tidecast.service.worker.delivery` says what a commit contains, in which order, and what a crash leaves behind.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from tidecast.service.broker.port import Batch, Broker, Consumer
from tidecast.service.broker.topics import check_topics
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError, BrokerUnavailable, DeadLetterFlood, Rejected, TidecastError
from tidecast.service.model.session import Model
from tidecast.service.observability.histogram import Timing
from tidecast.service.observability.liveness import Liveness
from tidecast.service.observability.metrics import Metrics
from tidecast.service.observability.tracing import Tracing
from tidecast.service.pipeline.pipeline import BatchResult
from tidecast.service.stop_flag import StopFlag
from tidecast.service.worker.assignment import POLL_SECONDS, PartitionAssignment
from tidecast.service.worker.committer import Committer
from tidecast.service.worker.dead_letter_limit import DeadLetterLimit
from tidecast.service.worker.input_wait import InputWait
from tidecast.service.worker.model_swap import ModelSwap, NoSwap
from tidecast.service.worker.partition import Partition
from tidecast.service.worker.positions import restore_for
from tidecast.service.worker.promotion import NOBODY, PromotionPolicy
from tidecast.service.worker.retries import Retries
from tidecast.service.worker.router import Router, Work
from tidecast.service.worker.served_models import ServedModels
from tidecast.service.worker.topic_watch import TopicWatch

log = logging.getLogger("tidecast.worker")


class Worker:
    """One member of the consumer group.

    Args:
        settings: what is in force.
        model: loaded and checked; or a router, for a worker that passes readings on.
        shadows: models that step over the same readings; `policy`: which of all is to answer.
        broker: connected.
        metrics: to feed; made for this model, or for none.
        newer_models: called at each turn of the loop; a model and its shadows, which take over.
        between_batches: called at each turn, between two batches.
        tracing: notified of batches and commits.
        clock: seconds, monotonic; for intervals and time limits.
        wall: seconds since the epoch; only metrics use it.
    """

    def __init__(
        self,
        settings: Settings,
        model: Model | Router,
        broker: Broker,
        metrics: Metrics,
        newer_models: Callable[[], Sequence[Model] | None] = lambda: None,
        between_batches: Callable[[], None] = lambda: None,
        tracing: Tracing | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        shadows: Sequence[Model] = (),
        policy: PromotionPolicy = NOBODY,
    ) -> None:
        self._settings, self._broker, self._metrics = settings, broker, metrics
        self._between_batches, self._clock, self._wall = between_batches, clock, wall
        self._tracing = Tracing() if tracing is None else tracing
        most, seconds = settings.dead_letter_limit, settings.dead_letter_window_seconds
        self._dead_letter_limit = DeadLetterLimit(most, seconds, clock)
        self._stopping, self._prepared = StopFlag(), False
        self._liveness = liveness = Liveness(clock, metrics.note_answer)
        self._partitions: dict[int, Partition] = {}
        work = model if isinstance(model, Router) else ServedModels(settings, model, self._partitions, clock, shadows)
        self._work: Work = work
        restore = restore_for(work, broker, settings, self._partitions, clock)
        self._committer = Committer(settings, self._partitions, work, metrics, clock, liveness.allow, policy.committed)
        self._assignment = PartitionAssignment(settings, broker, self._partitions, work, restore, self._committer,
                                               metrics, liveness, clock)  # fmt: skip
        self._swap = NoSwap() if isinstance(work, Router) else ModelSwap(broker, settings, self._partitions, work,
            self._committer, metrics, newer_models, clock, liveness.allow, policy)  # fmt: skip
        self._input = InputWait(work, self._partitions, metrics, clock, liveness.allow)
        self._topics = TopicWatch(broker, settings, metrics.unowned_partitions.inc)
        self._polls = Retries("Kafka does not answer, polling again", "Kafka answers again", math.inf, clock)

    # The loop ------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Check the topics and connect, without joining the group; `run` does it if this was not called.

        Blocks up to `broker_timeout_seconds` for a broker that does not answer yet.

        Raises:
            BrokerError: the topics do not fit, or no broker answers.
        """
        if self._prepared:
            return
        with self._liveness.allow(4 * self._settings.broker_timeout_seconds):
            self._retry(lambda: self._topics.start(check_topics(self._broker, self._settings)))
            self._liveness.note_answer()
            self._retry(lambda: self._committer.connect(self._broker))
            self._retry(self._assignment.connect)
        self._prepared = True

    def _retry(self, ask: Callable[[], None]) -> None:
        """Call `ask` until Kafka answers.

        Raises:
            BrokerError: it has not answered for `broker_timeout_seconds`, or it refuses.
        """
        timeout_s = self._settings.broker_timeout_seconds
        retries = Retries("Kafka does not answer, waiting", "Kafka answers", timeout_s, self._clock)
        while True:
            try:
                ask()
                return retries.end()
            except BrokerUnavailable as error:
                if self._stopping.is_set():
                    raise
                retries.add(error)
            self._liveness.note_turn()
            self._stopping.wait(retries.seconds_to_wait)

    @property
    def _consumer(self) -> Consumer:
        return self._assignment.consumer

    def run(self) -> int:
        """Work until `stop`; the exit code, 0.

        Each turn of the loop, in this order:
          1. poll: what has arrived in the assigned partitions. Rebalances happen inside.
          2. process: readings become forecasts and dead letters, and states change. Pure; no I/O. Where a schema
             registry does not answer, they are put back instead; see `service.worker.input_wait`.
          3. emit: forecasts, then dead letters, are handed to the producer in the order of their readings.
          4. commit, once `commit_interval_ms` has passed or nothing more arrives: what was emitted, the states due
             and the offsets of the readings; see `service.worker.delivery`. With a backlog, a commit that is due is
             made during 2. of the next readings, and 3. waits for it.
          5. restore, a little: new partitions stay paused until their states are back.
          6. swap, a little: a newer model takes the partitions over one by one; see `service.worker.model_swap`.
        When partitions are revoked: 4. with all their states, then their series are deleted from memory. At the end:
        the same, then leave the group. When a transaction fails, memory is ahead of what is committed: all states are
        deleted from memory and restored.

        Raises:
            BrokerError: the topics do not fit, or Kafka was away for longer than `broker_timeout_seconds`.
            DeadLetterFlood: too many dead letters within the window; it says whether they are written.
            TidecastError: a bug of tidecast; nothing of the batch that caused it is emitted or committed.
        """
        self.prepare()
        self._retry(self._assignment.join)
        try:
            while not self._stopping.is_set():
                self._turn()
            log.info("stopping", extra={"to_commit": sorted(self._committer.pending)})
            ended = self._finish()
        except Rejected:
            with suppress(BrokerUnavailable):
                check_topics(self._broker, self._settings)  # raises what a start says of topics that are gone
            raise
        except BrokerError:
            raise  # waiting for Kafka once more would not help
        except DeadLetterFlood as flood:
            try:
                self._finish()
            except BrokerError as error:
                do = f"The last of them could not be written to their topic: {error}"
                raise DeadLetterFlood(flood.what, do=do) from error
            raise
        except Exception:
            self._committer.taint_states()
            with suppress(BrokerError):  # earlier batches are answered; the reason to stop is the one to show
                self._finish()
            raise
        finally:
            # The group's other members take over at once, rather than after the session's time-out. What could be
            # committed is; a revocation now must not commit what an error has left unfinished.
            self._assignment.leave()
            self._swap.close()
            self._committer.close()
            self._topics.stop()
        log.info("stopped: %s", ended)
        return 0

    def _turn(self) -> None:
        batch, assignment = self._poll(), self._assignment
        # Broken: a revocation inside of the poll could not commit, or commits fail again and again.
        if assignment.start_over_if_broken() or not assignment.verify_positions():
            return assignment.update_gauges()
        batch = self._input.admit(batch, self._consumer)
        self._retry(partial(assignment.check_unbroken, batch))
        if batch.offsets:
            self._answer(batch)
        self._committer.note(batch.next_offsets)
        if self._commit_is_due(nothing_more=not batch.offsets):
            self._commit()
        assignment.start_over_if_broken()
        assignment.advance_restore()
        self._swap.advance(self._consumer)
        if not batch.offsets:
            self._committer.flush_idle(self._consumer)
            self._liveness.probe(self._ask, self._settings.broker_timeout_seconds)
        assignment.update_gauges()
        self._dead_letter_limit.check(self._settings.dead_letter_topic)
        self._topics.check()
        self._between_batches()

    def _answer(self, batch: Batch) -> None:
        """2. and 3.; with a backlog also 4., for what was emitted before."""
        overlapped = len(batch) >= self._settings.max_poll_records and self._commit_is_due()
        if overlapped:
            self._commit(overlapped=True)
        with self._tracing.batch(batch):
            results = self._process(batch)
            if not overlapped or self._await_commit():
                self._emit(results)

    def stop(self) -> None:
        """Ask `run` to finish what it has polled, commit, leave the group and return. Safe in a signal handler."""
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        """True once `stop` was called."""
        return self._stopping.is_set()

    def _poll(self) -> Batch:
        """1. Blocks up to 0.2 s, or until the next commit is due; longer inside a rebalance."""
        self._liveness.note_turn()
        self._metrics.last_poll.set(self._wall())
        wait = 0.0 if self.busy else min(POLL_SECONDS, self._committer.seconds_until_due())
        with self._stage("poll"), self._liveness.allow(self._settings.broker_timeout_seconds):
            try:
                batch = self._consumer.poll(wait, self._settings.max_poll_records)
                self._polls.end()
            except BrokerUnavailable as error:  # while it joins; `probe` limits how long
                self._polls.add(error)
                self._stopping.wait(self._polls.seconds_to_wait)
                batch = Batch(self._settings.input_topic)
        self._metrics.unread_batches.inc(len(batch.unread))
        if batch.offsets:
            self._liveness.note_answer()
            self._committer.note_arrival()
        return batch

    def _process(self, batch: Batch) -> list[BatchResult]:
        """2. Nothing is skipped: an error in the pipeline stops the worker, with the offsets to look at."""
        try:
            return self._work.process(batch)
        except Exception as bug:
            log.critical("processing failed", exc_info=True, extra={"where": batch.where()})
            raise TidecastError(
                f"processing failed in {batch.where()}: {type(bug).__name__}: {bug}",
                do="None of it is committed, and a restart reads it again. This is a bug of tidecast: please report it "
                "with the traceback above.",
            ) from bug

    def _await_commit(self) -> bool:
        """The end of an overlapped commit; where False, what was processed since is dropped, and read again."""
        with self._stage("commit"):
            return self._committer.await_in_flight(self._consumer)

    def _emit(self, results: list[BatchResult]) -> None:
        """3. Waits for Kafka only if the producer's buffer is full."""
        for result in results:  # one, except during a swap
            with self._stage("emit"):
                self._tracing.answered(result)
                self._committer.emit(result)
            self._dead_letter_limit.add(result)

    def _commit_is_due(self, *, nothing_more: bool = False) -> bool:
        left = self._committer.seconds_until_due()
        return left <= 0.0 or (nothing_more and left < math.inf)

    def _commit(self, *, overlapped: bool = False) -> None:
        """4. `overlapped`: nothing is done with Kafka until `_await_commit`."""
        with self._stage("commit"), self._tracing.commit(len(self._committer.pending)):
            if self._committer.commit(self._consumer, wait=False, overlapped=overlapped):
                self._liveness.note_answer()

    def _ask(self) -> None:
        self._broker.partitions(self._settings.input_topic)

    def _finish(self) -> str:
        """The last commit, within `shutdown_timeout_seconds` when stopping; what became of what was read.

        Raises:
            BrokerError: it failed.
        """
        if self._stopping.is_set():
            self._committer.shorten_timeout(self._settings.shutdown_timeout_seconds)
        if not self._committer.commit_last(self._consumer, self._partitions.keys()):
            if self._committer.evicted and self._stopping.is_set():
                # Several workers stop at once, and the group rebalances meanwhile. Not a failure.
                return "the group has rebalanced, and the next owner of the partitions answers the last readings again"
            raise BrokerError(
                "the offsets of the last readings could not be committed",
                do="Nothing is lost: the next owner of their partitions answers them again.",
            )
        return "all that was read is answered and committed"

    # Counting ------------------------------------------------------------------------------------------------

    def _stage(self, name: str) -> Timing:
        return self._metrics.stage_seconds.timing(self._clock, name)

    # What pages and tests ask; other threads may -------------------------------------------------------------

    @property
    def assigned(self) -> set[int]:
        """The partitions that the group has assigned to this worker."""
        return set(self._partitions)

    @property
    def busy(self) -> bool:
        """True where there is more to do than to wait for readings."""
        return self._swap.busy or (bool(self._assignment.restoring) and not self._assignment.waiting)

    @property
    def unwritten_series(self) -> int:
        """How many series have a state that is newer than the changelog's. For the loop's thread."""
        return sum(self._work.series_counts(self._partitions, unwritten=True).values())

    def not_live(self) -> str | None:
        """Why the process should be restarted, None if it is healthy."""
        return self._liveness.not_live()

    def not_ready(self) -> dict[str, str]:
        """What is missing before readings are answered."""
        if self._stopping.is_set():
            return {"worker": "it is stopping"}
        if not self._assignment.joined:
            return {"partitions": "the group has not assigned any yet"}
        if (reason := self._committer.failures.reason) is not None:
            return {"commits": f"the last attempt failed: {reason}"}
        if (reason := self._input.reason) is not None:
            return {"input": reason}
        left = len(self._assignment.restoring)
        return {"states": f"{left} partitions are being restored"} if left else {}

    def series(self, key: str) -> dict[str, Any] | None:
        """What is remembered of one series, by the names that the model gives the parts of its state."""
        return self._work.series(key)
