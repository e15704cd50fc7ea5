"""The loop: poll, process, emit, commit, restore. All I/O with Kafka happens here, on one thread.

What a commit holds, in which order, and what a crash leaves behind is told in `tidecast.service.worker.delivery`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from tidecast.service.broker.port import Batch, Broker, Consumer, Membership
from tidecast.service.broker.topics import check_topics
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError, DeadLetterFlood, TidecastError, Unanswered
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
from tidecast.service.worker.served_models import ServedModels

log = logging.getLogger("tidecast.worker")

T = TypeVar("T")
_AGAIN_SECONDS = 0.5  # before Kafka is asked again


class Worker:
    """One member of the consumer group.

    Args:
        settings: what is in force.
        model: loaded and checked.
        broker: connected.
        metrics: to feed; made for this model.
        newer_model: asked at each turn of the loop; a model that it gives takes over while readings flow.
        tidy: called at each turn, between two batches.
        tracing: told of batches and commits.
        clock: seconds, monotonic; for intervals and time limits.
        wall: seconds since the epoch; only metrics use it.
    """

    def __init__(
        self,
        settings: Settings,
        model: Model,
        broker: Broker,
        metrics: Metrics,
        newer_model: Callable[[], Model | None] = lambda: None,
        tidy: Callable[[], None] = lambda: None,
        tracing: Tracing | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._broker, self._metrics = settings, broker, metrics
        self._newer_model, self._tidy, self._clock, self._wall = newer_model, tidy, clock, wall
        self._tracing = Tracing() if tracing is None else tracing
        self._dead_letter_limit = DeadLetterLimit(
            settings.dead_letter_limit, settings.dead_letter_window_seconds, clock
        )
        self._stopping = StopFlag()
        self._pulse = Liveness(clock, metrics.note_answer)
        metrics.max_series.set(settings.max_series)
        self._models = ServedModels(settings, model, clock)
        self._committer = Committer(settings, self._models, metrics, clock, self._pulse.allow)
        self._assignment = PartitionAssignment(
            settings, broker, self._models, self._committer, metrics, self._pulse, clock
        )
        self._prepared = False

    # The loop ------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """See that the topics fit and connect, without joining the group; `run` does it where it was not done.

        Blocks up to `broker_timeout_seconds` for a broker that does not answer yet.

        Raises:
            BrokerError: the topics do not fit, or no broker answers.
        """
        if self._prepared:
            return
        with self._pulse.allow(4 * self._settings.broker_timeout_seconds):
            self._answered(lambda: check_topics(self._broker, self._settings))
            self._pulse.note_answer()
            self._answered(lambda: self._committer.connect(self._broker))
            self._assignment.consumer = self._answered(self._member)
        self._prepared = True

    def _answered(self, ask: Callable[[], T]) -> T:
        """What `ask` gives, asked again where Kafka does not answer: it may be just coming, or have just gone.

        Raises:
            BrokerError: this has gone on for `broker_timeout_seconds`, or Kafka refuses.
        """
        began = self._clock()
        while True:
            try:
                return ask()
            except Unanswered as error:
                if self._clock() - began >= self._settings.broker_timeout_seconds or self._stopping.is_set():
                    raise
                log.warning("Kafka does not answer, waiting", extra={"reason": error.what})
            self._stopping.wait(_AGAIN_SECONDS)

    @property
    def _consumer(self) -> Consumer:
        return self._assignment.consumer

    def _member(self) -> Consumer:
        s = self._settings
        name = None if s.instance == "auto" else s.instance
        return self._broker.consumer(group=s.group, membership=Membership(name, s.session_timeout_seconds))

    def _join(self) -> None:
        """Subscribe; once more with a new consumer where the first has met Kafka as it went away, and waits in vain.

        Raises:
            BrokerError: this has gone on for `broker_timeout_seconds`, or Kafka refuses.
        """

        def subscribe() -> None:
            try:
                self._pulse.note_turn()
                self._consumer.subscribe(
                    self._settings.input_topic, self._assignment.on_assigned, self._assignment.on_revoked
                )
            except Unanswered:
                self._consumer.close()
                self._assignment.consumer = self._member()
                raise

        self._answered(subscribe)

    def run(self) -> int:
        """Work until `stop`; the exit code, 0.

        Each turn of the loop, in this order:
          1. poll: what has arrived, of the partitions that are ours. Rebalances happen inside.
          2. process: readings become forecasts and dead letters, states move on. Pure; no I/O.
          3. emit: forecasts, then dead letters, are handed to the producer in the order of their readings.
          4. commit, once `commit_interval_ms` has passed or nothing more arrives: what was emitted, the states due
             and the offsets of the readings; see `service.worker.delivery`. With a backlog, what is due is committed
             while 2. is done with the next readings, and 3. waits for it.
          5. restore, a little: partitions that are new stay paused until their states are back.
          6. swap, a little: a newer model takes the partitions over one by one; see `service.worker.model_swap`.
        When partitions are taken away: 4. with all their states, then their series are forgotten. At the end: the
        same, then leave the group. When a transaction comes to nothing, memory is ahead of what is committed: all
        states are forgotten and restored.

        Raises:
            BrokerError: the topics do not fit, or Kafka was away for longer than `broker_timeout_seconds`.
            DeadLetterFlood: too many dead letters within the window; they are written and committed.
            TidecastError: a bug of ours; nothing of the batch that met it is emitted or committed.
        """
        self.prepare()
        self._join()
        try:
            while not self._stopping.is_set():
                batch = self._poll()
                if self._assignment.started_over():  # a revocation inside of the poll could not commit
                    continue
                self._answered(partial(self._assignment.check_unbroken, batch))
                if batch.offsets:
                    committing = len(batch) >= self._settings.max_poll_records and self._commit_is_due()
                    if committing:
                        self._commit(overlapped=True)
                    with self._tracing.batch(batch):
                        results = self._process(batch)
                        if not committing or self._settled():
                            self._emit(batch, results)
                self._committer.note(batch.next_offsets, self._assignment.restoring)
                if self._commit_is_due(nothing_more=not batch.offsets):
                    self._commit()
                self._assignment.started_over()
                self._assignment.restore_some()
                self._swap()
                if not batch.offsets:
                    self._committer.flush_idle(self._consumer, self._assignment.assigned)
                    self._pulse.probe(self._ask, self._settings.broker_timeout_seconds)
                self._assignment.gauges()
                self._dead_letter_limit.check(self._settings.dead_letter_topic)
                self._tidy()
            log.info("stopping", extra={"to_commit": sorted(self._committer.pending)})
            self._finish()
        except BrokerError:
            raise  # waiting for Kafka once more would help no one
        except DeadLetterFlood:
            with suppress(BrokerError):  # the reason to stop is the one to show
                self._finish()
            raise
        except Exception:
            self._committer.states_tainted = True
            with suppress(BrokerError):  # what went before is answered; the reason to stop is the one to show
                self._finish()
            raise
        finally:
            # The group's other members take over at once, rather than after the session's time-out. What could be
            # committed is; a revocation now must not commit what an error has left half done.
            self._assignment.leaving = True
            self._consumer.close()
            self._assignment.close()
            self._committer.close()
        log.info("stopped: all that was read is answered and committed")
        return 0

    def stop(self) -> None:
        """Ask `run` to finish what it has polled, commit, leave the group and return. Safe in a signal handler."""
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        """True once `stop` was called."""
        return self._stopping.is_set()

    def _poll(self) -> Batch:
        """1. Blocks up to 0.2 s, or until the next commit is due; longer inside a rebalance."""
        self._pulse.note_turn()
        self._metrics.last_poll.set(self._wall())
        commits, wait = self._committer, POLL_SECONDS
        if commits.pending:
            wait = min(wait, max(commits.due - self._clock(), 0.0))
        wait = 0.0 if self._assignment.busy else wait
        with self._stage("poll"), self._pulse.allow(self._settings.broker_timeout_seconds):
            try:
                batch = self._consumer.poll(wait, self._settings.max_poll_records)
            except Unanswered as error:  # while it joins; for how long that may go on, `probe` says
                log.warning("Kafka does not answer, polling on", extra={"reason": error.what})
                self._stopping.wait(_AGAIN_SECONDS)
                batch = Batch(self._settings.input_topic)
        if batch.offsets:
            self._pulse.note_answer()
            if not commits.pending:
                commits.due = self._clock() + self._settings.commit_interval_ms / 1_000
        return batch

    def _process(self, batch: Batch) -> list[BatchResult]:
        """2. Nothing is skipped: what the pipeline cannot explain stops the worker, with the offsets to look at."""
        try:
            return self._models.process(batch)
        except Exception as bug:
            where = ", ".join(f"{batch.topic}-{p} offsets {first}..{last}" for p, first, last in _ranges(batch))
            log.critical("processing failed", exc_info=True, extra={"where": where})
            raise TidecastError(
                f"processing failed in {where}: {type(bug).__name__}: {bug}",
                do="None of it is committed, and a restart meets it again. This is a bug of tidecast: please report it "
                "with the traceback above.",
            ) from bug

    def _settled(self) -> bool:
        """The end of an overlapped commit; where False, all that was processed since is dropped, and read again."""
        with self._stage("commit"):
            return self._committer.await_in_flight(self._consumer)

    def _emit(self, batch: Batch, results: list[BatchResult]) -> None:
        """3. Does not wait for Kafka unless the producer's buffer is full."""
        for result in results:  # one, except during a swap
            with self._stage("emit"):
                self._tracing.answered(result)
                self._committer.emit(result)
            self._dead_letter_limit.add(result.counts.dead_letters)
            self._metrics.count(result)

    def _commit_is_due(self, *, nothing_more: bool = False) -> bool:
        return bool(self._committer.pending) and (nothing_more or self._clock() >= self._committer.due)

    def _commit(self, *, overlapped: bool = False) -> None:
        """4. `overlapped`: nothing is done with Kafka until `_settled`."""
        with self._stage("commit"), self._tracing.commit(len(self._committer.pending)):
            self._committer.due = self._clock() + self._settings.commit_interval_ms / 1_000
            if self._committer.commit(self._consumer, wait=False, overlapped=overlapped):
                self._pulse.note_answer()

    def _swap(self) -> None:
        """6."""
        if not self._assignment.swapping and (newer := self._newer_model()) is not None:
            self._assignment.begin_swap(newer)
        self._assignment.swap_some()

    def _ask(self) -> None:
        self._broker.partitions(self._settings.input_topic)

    def _finish(self) -> None:
        """The last commit, within `shutdown_timeout_seconds` when stopping.

        Raises:
            BrokerError: it did not come about.
        """
        if self._stopping.is_set():
            self._committer.timeout_s = min(self._committer.timeout_s, self._settings.shutdown_timeout_seconds)
        if not self._committer.commit_last(self._consumer, self._assignment.assigned):
            if self._committer.evicted and self._stopping.is_set():
                # Several workers that stop at once: the group shares out again in the midst of it. No fault of ours.
                log.warning("the group has moved on: whoever has our partitions now answers their last readings again")
                return
            raise BrokerError(
                "the offsets of the last readings could not be committed",
                do="Nothing is lost: whoever has their partitions now answers them again.",
            )

    # Counting ------------------------------------------------------------------------------------------------

    def _stage(self, name: str) -> Timing:
        return self._metrics.stage_seconds.timing(self._clock, name)

    # What the pages ask (other threads) ----------------------------------------------------------------------

    def not_live(self) -> str | None:
        """Why the process should be restarted, None where it is well."""
        return self._pulse.not_live()

    def not_ready(self) -> dict[str, str]:
        """What is missing before readings are answered."""
        if self._stopping.is_set():
            return {"worker": "it is stopping"}
        if not self._assignment.joined:
            return {"partitions": "the group has not assigned any yet"}
        left = len(self._assignment.restoring)
        return {"states": f"{left} partitions are being restored"} if left else {}

    def series(self, key: str) -> dict[str, Any] | None:
        """What is remembered of one series, by the names that the model gives the parts of its state."""
        return self._models.series(key)


def _ranges(batch: Batch) -> list[tuple[int, int, int]]:
    """(partition, first offset, last offset) of what a batch holds."""
    first, last = batch.first_offsets(), dict(zip(batch.partitions, batch.offsets, strict=True))
    return [(p, first[p], last[p]) for p in sorted(first)]
