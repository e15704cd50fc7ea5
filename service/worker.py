"""The loop: poll, process, emit, commit. All I/O with Kafka happens here, on one thread.

States are not written anywhere yet (the changelog brings that): a worker that starts, or is given a partition, knows
only what it reads from the committed offset on. Its series begin cold, and `warm` says so in each forecast.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from service.broker.base import Batch, Broker, Consumer, Producer
from service.errors import BrokerError, TidecastError
from service.flood import Flood
from service.metrics import Metrics
from service.model import Model
from service.pipeline import Pipeline, Policy, Result
from service.settings import Settings
from service.topics import check_topics

log = logging.getLogger("tidecast.worker")

STALLED_SECONDS = 30.0  # a loop that has not turned for so long is reported by /livez
_IDLE_POLL_SECONDS = 0.2  # so long may SIGTERM go unnoticed
_SAY_SECONDS = 5.0  # a wait for Kafka is logged this often
_RETRY_SECONDS = 1.0  # between two tries to commit
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
        self._consumer: Consumer
        self._producer: Producer
        self._assigned: set[int] = set()
        self._prepared = self._joined = False
        # What is emitted but not committed: partition -> offset to go on from, and when that is due.
        self._pending: dict[int, int] = {}
        self._due = 0.0
        self._commit_failing_since: float | None = None
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
        check_topics(self._broker, self._settings)
        self._producer = self._broker.producer()
        self._consumer = self._broker.consumer(group=self._settings.group)
        self._prepared = True

    def run(self) -> int:
        """Work until `stop`; the exit code, 0.

        Each turn of the loop, in this order:
          1. poll: what has arrived, of the partitions that are ours. Rebalances happen inside.
          2. process: readings become forecasts and dead letters, states move on. Pure; no I/O.
          3. emit: forecasts, then dead letters, are handed to the producer in the order of their readings.
          4. commit, once `commit_interval_ms` has passed or nothing more arrives: wait until Kafka has all that was
             emitted, and only then commit the offsets of the readings. A crash in between repeats forecasts;
             it loses none (at-least-once).
        When partitions are taken away: 4., then their series are forgotten. At the end: 4., then leave the group.

        Raises:
            BrokerError: the topics do not fit, or Kafka was away for longer than `broker_timeout_seconds`.
            DeadLetterFlood: too many dead letters within the window; they are written and committed.
            TidecastError: a bug of ours; nothing of the batch that met it is emitted or committed.
        """
        self.prepare()
        self._consumer.subscribe(self._settings.input_topic, self._on_assigned, self._on_revoked)
        try:
            while not self._stopping.is_set():
                batch = self._poll()
                if batch.offsets:
                    result = self._process(batch)
                    self._emit(batch, result)
                self._pending.update(batch.next_offsets)
                if self._pending and (not batch.offsets or self._clock() >= self._due):
                    self._commit()
                if not batch.offsets:
                    self._probe()
                    self._gauges()
                self._flood.check(self._settings.dead_letter_topic)
            log.info("stopping", extra={"to_commit": sorted(self._pending)})
            self._finish()
        except BrokerError:
            self._pending.clear()  # waiting for Kafka once more would help no one
            raise
        except Exception:
            with suppress(BrokerError):  # what went before is answered; the reason to stop is the one to show
                self._finish()
            raise
        finally:
            # The group's other members take over at once, rather than after the session's time-out.
            self._consumer.close()
            self._producer.close()
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
        wait = min(_IDLE_POLL_SECONDS, max(self._due - self._turned, 0.0)) if self._pending else _IDLE_POLL_SECONDS
        with self._stage("poll"):
            batch = self._consumer.poll(wait, self._settings.max_poll_records)
        if batch.offsets:
            self._heard = self._clock()
            if not self._pending:
                self._due = self._heard + self._settings.commit_interval_ms / 1_000
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
            if len(result.forecasts):
                self._producer.produce(result.forecasts)
            if len(result.dead_letters):
                self._producer.produce(result.dead_letters)
        self._flood.add(result.counts.dead_letters)
        self._metrics.count(result)
        self._metrics.partitions.seen(dict(zip(batch.partitions, batch.timestamps, strict=True)))

    def _commit(self) -> None:
        """4. Blocks until Kafka has it, at most `broker_timeout_seconds` (when stopping, `shutdown_timeout_seconds`).

        A commit that Kafka refuses is tried again with the next one; polling goes on, for that is what mends it when
        the group has moved on without us.
        """
        offsets = dict(self._pending)
        timeout = self._settings.broker_timeout_seconds
        if self._stopping.is_set():
            timeout = min(timeout, self._settings.shutdown_timeout_seconds)
        with self._stage("commit"), self._patience(2 * timeout):
            try:
                self._flush(timeout)
            except BrokerError:
                self._metrics.transactions.labels("failed").inc()
                raise
            try:
                self._consumer.commit(offsets)
            except BrokerError as error:
                self._metrics.transactions.labels("failed").inc()
                self._try_again(error)
                return
        self._metrics.transactions.labels("committed").inc()
        self._pending.clear()
        self._commit_failing_since = None
        self._heard = self._clock()
        self._gauges()

    def _flush(self, timeout_s: float) -> None:
        """Wait until Kafka has all that was emitted, saying so every few seconds where that takes long."""
        began = self._clock()
        while True:
            tried = self._clock()
            patience = min(_SAY_SECONDS, began + timeout_s - tried)
            try:
                return self._producer.flush(patience)
            except BrokerError:
                now = self._clock()
                # A record that was refused stays refused; only a wait that ran out is worth another.
                if now - tried < patience or now - began >= timeout_s:
                    raise
                log.warning("Kafka does not answer, waiting", extra={"seconds": round(now - began)})

    def _try_again(self, error: BrokerError) -> None:
        now = self._clock()
        self._due = now + _RETRY_SECONDS
        if self._commit_failing_since is None:
            self._commit_failing_since = now
            log.warning("the offsets were not committed, trying again", extra={"reason": error.what})
        elif now - self._commit_failing_since > self._settings.broker_timeout_seconds:
            raise error

    def _finish(self) -> None:
        """The last commit.

        Raises:
            BrokerError: it did not come about.
        """
        if self._pending:
            self._commit()
        if self._pending:
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
        if partitions and self._settings.start == "latest":
            self._start_at_the_end(partitions)
        log.info("partitions assigned", extra={"new": sorted(partitions), "all": sorted(self._assigned)})

    def _on_revoked(self, partitions: set[int]) -> None:
        """Runs inside `poll` and `close`: what was emitted for these partitions is committed before they go."""
        self._turned = self._clock()
        if any(p in self._pending for p in partitions):
            self._commit()
        self._pending = {p: offset for p, offset in self._pending.items() if p not in partitions}
        if not self._pending:
            self._commit_failing_since = None  # what could not be committed is another member's now
        self._assigned -= partitions
        with self._table_lock:
            self._pipeline.revoke(partitions)
        self._gauges(now=True)
        if not self._stopping.is_set():
            log.info("partitions revoked", extra={"gone": sorted(partitions), "all": sorted(self._assigned)})

    def _start_at_the_end(self, partitions: Collection[int]) -> None:
        """`start = latest`: where the group has no offset yet, the end becomes its offset, also after a crash."""
        fresh = [p for p, committed in self._consumer.committed(partitions).items() if committed is None]
        if fresh:
            for partition, offset in self._consumer.end_offsets(fresh).items():
                self._consumer.seek(partition, offset)
                self._pending[partition] = offset

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
            self._probe_again = self._clock() + _SAY_SECONDS
            log.warning("Kafka does not answer, waiting", extra={"seconds": round(since)})
        else:
            self._heard = self._clock()

    @contextmanager
    def _patience(self, seconds: float) -> Iterator[None]:
        """While the loop waits for Kafka, with a time limit of its own, it is not stalled."""
        self._turned = self._clock()
        self._allowed = STALLED_SECONDS + seconds
        try:
            yield
        finally:
            self._allowed = STALLED_SECONDS
            self._turned = self._clock()

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
        return {} if self._joined else {"partitions": "the group has not assigned any yet"}

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
