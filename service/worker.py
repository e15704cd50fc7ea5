"""The loop: poll, process, emit, commit, restore. All I/O with Kafka happens here, on one thread.

What a commit holds, in which order, and what a crash leaves behind is told in `service.delivery`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from service.broker.base import Batch, Broker, Consumer, Membership
from service.changelog import Codec
from service.commits import SAY_SECONDS, Commits
from service.errors import BrokerError, DeadLetterFlood, TidecastError
from service.flood import Flood
from service.flush import RollingFlush
from service.metrics import Metrics
from service.model import Model
from service.pipeline import Pipeline, Policy, Result
from service.restore import Restore, Restored
from service.settings import Settings
from service.topics import check_topics

log = logging.getLogger("tidecast.worker")

STALLED_SECONDS = 30.0  # a loop that has not turned for so long is reported by /livez
_IDLE_POLL_SECONDS = 0.2  # so long may SIGTERM go unnoticed
_PROBE_SECONDS = 10.0  # an idle worker asks this often whether the broker is still there


class Worker:
    """One member of the consumer group.

    Args:
        settings: what is in force.
        model: loaded and checked.
        broker: connected.
        metrics: to feed; made for this model.
        clock: seconds, monotonic; for intervals and time limits.
        wall: seconds since the epoch; only metrics use it.
    """

    def __init__(
        self,
        settings: Settings,
        model: Model,
        broker: Broker,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._model, self._broker, self._metrics = settings, model, broker, metrics
        self._clock, self._wall = clock, wall
        self._pipeline = Pipeline(
            model,
            Policy.from_settings(settings),
            output_topic=settings.output_topic,
            dead_letter_topic=settings.dead_letter_topic,
        )
        self._flood = Flood(settings.dead_letter_limit, settings.dead_letter_window_seconds, clock)
        self._table_lock = threading.Lock()  # the loop changes states; /series/<key> copies one
        self._stopping = threading.Event()
        codec = Codec(model.spec)
        rolling = RollingFlush(
            self._pipeline.table,
            codec,
            topic=settings.changelog_topic,
            group=settings.group,
            seconds=settings.changelog_seconds,
            bytes_per_second=settings.changelog_bytes_per_second,
            clock=clock,
        )
        self._restore = Restore(broker, settings, codec, self._pipeline.table, self._table_lock, clock)
        self._commits = Commits(settings, rolling, metrics, clock, self._patience)
        self._consumer: Consumer
        self._assigned: set[int] = set()
        self._prepared = self._joined = False
        self._closing = False
        self._turned = clock()
        self._allowed = STALLED_SECONDS
        self._gauged = clock()
        self._probe_again = 0.0
        self._heard = clock()  # the last sign of life from the broker

    # The loop ------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """See that the topics fit and connect, without joining the group; `run` does it where it was not done.

        Blocks up to `broker_timeout_seconds` for a broker that does not answer yet.

        Raises:
            BrokerError: the topics do not fit, or no broker answers.
        """
        if self._prepared:
            return
        with self._patience(4 * self._settings.broker_timeout_seconds):
            check_topics(self._broker, self._settings)
            self._commits.connect(self._broker)
            self._consumer = self._member()
        self._prepared = True

    def _member(self) -> Consumer:
        s = self._settings
        name = None if s.instance == "auto" else s.instance
        return self._broker.consumer(group=s.group, membership=Membership(name, s.session_timeout_seconds))

    def _join(self) -> None:
        """Subscribe; once more with a new consumer where the first has met Kafka as it went away, and waits in vain.

        Raises:
            BrokerError: this has gone on for `broker_timeout_seconds`, or Kafka refuses.
        """
        began = self._clock()
        while True:
            tried = self._turned = self._clock()
            try:
                return self._consumer.subscribe(self._settings.input_topic, self._on_assigned, self._on_revoked)
            except BrokerError as error:
                now = self._clock()
                if now - tried < SAY_SECONDS or now - began > self._settings.broker_timeout_seconds:
                    raise
                log.warning("Kafka does not answer, waiting", extra={"reason": error.what})
            self._consumer.close()
            self._consumer = self._member()

    def run(self) -> int:
        """Work until `stop`; the exit code, 0.

        Each turn of the loop, in this order:
          1. poll: what has arrived, of the partitions that are ours. Rebalances happen inside.
          2. process: readings become forecasts and dead letters, states move on. Pure; no I/O.
          3. emit: forecasts, then dead letters, are handed to the producer in the order of their readings.
          4. commit, once `commit_interval_ms` has passed or nothing more arrives: what was emitted, the states due
             and the offsets of the readings; see `service.delivery`.
          5. restore, a little: partitions that are new stay paused until their states are back.
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
                if self._started_over():  # a revocation inside of the poll could not commit
                    continue
                if batch.offsets:
                    result = self._process(batch)
                    self._emit(batch, result)
                self._commits.note(batch.next_offsets, self._restore.partitions)
                if self._commits.pending and (not batch.offsets or self._clock() >= self._commits.due):
                    self._commit()
                self._started_over()
                self._restore_some()
                if not batch.offsets:
                    self._commits.flush_idle(self._consumer, self._assigned)
                    self._probe()
                    self._gauges()
                self._flood.check(self._settings.dead_letter_topic)
            log.info("stopping", extra={"to_commit": sorted(self._commits.pending)})
            self._finish()
        except BrokerError:
            raise  # waiting for Kafka once more would help no one
        except DeadLetterFlood:
            with suppress(BrokerError):  # the reason to stop is the one to show
                self._finish()
            raise
        except Exception:
            self._commits.half_done = True
            with suppress(BrokerError):  # what went before is answered; the reason to stop is the one to show
                self._finish()
            raise
        finally:
            # The group's other members take over at once, rather than after the session's time-out. What could be
            # committed is; a revocation now must not commit what an error has left half done.
            self._closing = True
            self._consumer.close()
            self._restore.close()
            self._commits.close()
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
        self._turned = self._clock()
        self._metrics.last_poll.set(self._wall())
        commits, wait = self._commits, _IDLE_POLL_SECONDS
        if commits.pending:
            wait = min(wait, max(commits.due - self._turned, 0.0))
        wait = 0.0 if self._restore.partitions else wait
        with self._stage("poll"), self._patience(self._settings.broker_timeout_seconds):
            batch = self._consumer.poll(wait, self._settings.max_poll_records)
        if batch.offsets:
            self._heard = self._clock()
            if not commits.pending:
                commits.due = self._heard + self._settings.commit_interval_ms / 1_000
        return batch

    def _process(self, batch: Batch) -> Result:
        """2. Nothing is skipped: what the pipeline cannot explain stops the worker, with the offsets to look at."""
        try:
            with self._table_lock:
                return self._pipeline.process(batch)
        except Exception as bug:
            where = ", ".join(f"{batch.topic}-{p} offsets {first}..{last}" for p, first, last in _ranges(batch))
            log.critical("processing failed", exc_info=True, extra={"where": where})
            raise TidecastError(
                f"processing failed in {where}: {type(bug).__name__}: {bug}",
                do="None of it is committed, and a restart meets it again. This is a bug of tidecast: please report it "
                "with the traceback above.",
            ) from bug

    def _emit(self, batch: Batch, result: Result) -> None:
        """3. Does not wait for Kafka unless the producer's buffer is full."""
        with self._stage("emit"):
            self._commits.emit(result)
        self._flood.add(result.counts.dead_letters)
        self._metrics.count(result)
        self._metrics.partitions.seen(dict(zip(batch.partitions, batch.timestamps, strict=True)))

    def _commit(self) -> None:
        """4."""
        with self._stage("commit"):
            if self._commits.commit(self._consumer):
                self._heard = self._clock()
        self._gauges()

    def _started_over(self) -> bool:
        """True where what is in memory is not what could be committed: all of it was dropped, and is restored."""
        if not self._commits.broken:
            return False
        self._commits.start_over(self._consumer)
        self._forget(self._assigned)
        if self._assigned:
            self._consumer.pause(self._assigned)
            self._restore.begin(self._assigned)
        return True

    def _finish(self) -> None:
        """The last commit, within `shutdown_timeout_seconds` when stopping.

        Raises:
            BrokerError: it did not come about.
        """
        if self._stopping.is_set():
            self._commits.timeout_s = min(self._commits.timeout_s, self._settings.shutdown_timeout_seconds)
        if not self._commits.commit_last(self._consumer, self._assigned):
            raise BrokerError(
                "the offsets of the last readings could not be committed",
                do="Nothing is lost: whoever has their partitions now answers them again.",
            )

    # Partitions ----------------------------------------------------------------------------------------------

    def _on_assigned(self, partitions: set[int]) -> None:
        """Runs inside `poll`."""
        self._joined = True
        self._assigned |= partitions
        self._heard = self._turned = self._clock()
        self._metrics.rebalances.inc()
        if partitions:
            self._consumer.pause(partitions)
            self._restore.begin(partitions)
        log.info("partitions assigned", extra={"new": sorted(partitions), "all": sorted(self._assigned)})

    def _on_revoked(self, partitions: set[int]) -> None:
        """Runs inside `poll` and `close`: what was emitted is committed, with their states, before they go."""
        self._turned = self._clock()
        if not self._closing:
            self._commits.commit_last(self._consumer, partitions - self._restore.partitions)
        self._forget(partitions)
        self._assigned -= partitions
        self._gauges(now=True)
        if not self._stopping.is_set():
            log.info("partitions revoked", extra={"gone": sorted(partitions), "all": sorted(self._assigned)})

    def _forget(self, partitions: Collection[int]) -> None:
        """Drop all that is known of partitions; what is in Kafka is what counts."""
        self._restore.drop(partitions)
        self._commits.forget(partitions)
        with self._table_lock:
            self._pipeline.revoke(partitions)

    def _restore_some(self) -> None:
        """5. Blocks up to 0.2 s, longer where the broker does not answer."""
        if not self._restore.partitions:
            return
        with self._patience(2 * self._settings.broker_timeout_seconds):
            done = self._restore.step(self._consumer, _IDLE_POLL_SECONDS)
            for partition, restored in done.items():
                self._go_on(partition, restored)
        self._metrics.restore_remaining.set(self._restore.remaining)
        if done:
            self._consumer.resume(set(done))
            self._metrics.restore_seconds.set(max(restored.seconds for restored in done.values()))

    def _go_on(self, partition: int, restored: Restored) -> None:
        if restored.committed is not None and restored.replay_from is not None:
            self._commits.restored(partition, restored.replay_from, restored.committed)
            self._consumer.seek(partition, restored.replay_from)
            with self._table_lock:
                self._pipeline.replay(partition, restored.committed)
        elif self._settings.start == "latest":
            # The end becomes the group's offset, also after a crash.
            end = self._consumer.end_offsets([partition])
            self._commits.pending |= end
            self._consumer.seek(partition, end[partition])
        else:  # said even so: before a start over, more may have been read
            self._consumer.seek(partition, self._consumer.beginning_offsets([partition])[partition])

    # The broker's absence ------------------------------------------------------------------------------------

    def _probe(self) -> None:
        """With nothing arriving, silence may mean that the broker is away: ask, and ask again until it answers.

        Raises:
            BrokerError: it has not answered for `broker_timeout_seconds`.
        """
        now = self._clock()
        if now < max(self._heard + _PROBE_SECONDS, self._probe_again):
            return
        timeout = self._settings.broker_timeout_seconds
        try:
            with self._patience(timeout):
                self._broker.partitions(self._settings.input_topic)
        except BrokerError:
            since = self._clock() - self._heard
            if since > _PROBE_SECONDS + timeout:
                raise
            self._probe_again = self._clock() + SAY_SECONDS
            log.warning("Kafka does not answer, waiting", extra={"seconds": round(since)})
        else:
            self._heard = self._clock()

    @contextmanager
    def _patience(self, seconds: float) -> Iterator[None]:
        """While the loop waits for Kafka, with a time limit of its own, it is not stalled. May be nested."""
        before = self._allowed
        self._turned = self._clock()
        self._allowed = max(before, STALLED_SECONDS + seconds)
        try:
            yield
        finally:
            self._turned = self._clock()  # first: another thread may look in between
            self._allowed = before

    # Counting ------------------------------------------------------------------------------------------------

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        began = self._clock()
        try:
            yield
        finally:
            self._metrics.stage_seconds.observe((self._clock() - began,), name)

    def _gauges(self, *, now: bool = False) -> None:
        """At most once a second: counting a million series takes milliseconds."""
        if not now and self._clock() - self._gauged < 1.0:
            return
        self._gauged = self._clock()
        owners = self._pipeline.table.partitions
        series = np.bincount(owners[owners >= 0], minlength=max(self._assigned, default=-1) + 1)
        lag = self._consumer.lag()
        self._metrics.partitions.update(
            self._settings.input_topic,
            {p: lag.get(p, 0) for p in self._assigned},
            {p: int(series[p]) for p in self._assigned},
        )

    # What the pages ask (other threads) ----------------------------------------------------------------------

    def not_live(self) -> str | None:
        """Why the process should be restarted, None where it is well."""
        still = self._clock() - self._turned
        return f"the loop has not turned for {still:.0f} s" if still > self._allowed else None

    def not_ready(self) -> dict[str, str]:
        """What is missing before readings are answered."""
        if self._stopping.is_set():
            return {"worker": "it is stopping"}
        if not self._joined:
            return {"partitions": "the group has not assigned any yet"}
        left = len(self._restore.partitions)
        return {"states": f"{left} partitions are being restored"} if left else {}

    def series(self, key: str) -> dict[str, Any] | None:
        """What is remembered of one series, by the names that the model gives the parts of its state."""
        with self._table_lock:
            found = self._pipeline.table.snapshot(key.encode())
        if found is not None:
            found["warm"] = found["steps"] >= self._model.spec.warmup_steps  # type: ignore[operator]
            found["model"] = self._model.spec.id
        return found


def _ranges(batch: Batch) -> list[tuple[int, int, int]]:
    """(partition, first offset, last offset) of what a batch holds."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for partition, offset in zip(batch.partitions, batch.offsets, strict=True):
        first.setdefault(partition, offset)
        last[partition] = offset
    return [(p, first[p], last[p]) for p in sorted(first)]
