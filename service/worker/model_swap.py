"""Hot model swap: a newer model takes the partitions over, one by one, while readings are answered.

For each partition of the older model:
  1. If both have the same layout, the newer one is ready at once: the states mean the same to both and are moved.
     Otherwise the newer one replays the partition's recent input without emitting, from its initial state, a little
     between two polls, until it reaches the offset up to which the older one has answered. The older one continues.
  2. Hand-over, in one commit: what the older one has answered, the states of the newer one, the offset, and in its
     metadata the newer model's name.
  3. From the next reading on, the newer one answers.
A crash before 2 leaves the older model's states: a worker that then starts with the newer model uses them, or replays
recent input (`service.worker.restore`). A crash after 2 leaves the newer one's. No reading is answered by both.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

from tidecast.service.broker.port import Batch, Broker, Consumer
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerUnavailable, InputUnavailable
from tidecast.service.model.session import Model
from tidecast.service.model.spec import ModelSpec
from tidecast.service.observability.metrics import Metrics
from tidecast.service.worker.committer import AllowWait, Committer
from tidecast.service.worker.partition import Partition, Partitions
from tidecast.service.worker.promotion import Promotion, PromotionPolicy
from tidecast.service.worker.retries import Retries
from tidecast.service.worker.served_models import ServedModels

log = logging.getLogger("tidecast.swap")

_MARGIN = 2  # readings replayed for each that a series needs to be warm: some series are read more often than others


def warmup_readings(settings: Settings, spec: ModelSpec, series: int) -> int:
    """How many readings of a partition make the model's states of so many series from nothing."""
    return min(_MARGIN * max(spec.warmup_steps, 1) * max(series, 1), settings.swap_replay_readings)


class ModelSwap:
    """Swaps models, one at a time. For the loop's thread.

    Args:
        broker: to replay with.
        settings: what is in force.
        partitions: those assigned.
        models: gets the newer model.
        committer: commits each hand-over.
        metrics: to feed.
        newer_models: called while no swap is active; the model that it returns, with its shadows, takes over.
        clock: seconds, monotonic.
        allow_wait: a context in which the worker may wait for Kafka for so many seconds.
        policy: which model of a group is to be the champion.
    """

    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        partitions: Partitions,
        models: ServedModels,
        committer: Committer,
        metrics: Metrics,
        newer_models: Callable[[], Sequence[Model] | None],
        clock: Callable[[], float],
        allow_wait: AllowWait,
        policy: PromotionPolicy,
    ) -> None:
        self._broker, self._settings, self._partitions, self._models = broker, settings, partitions, models
        self._committer, self._metrics, self._newer_models = committer, metrics, newer_models
        self._clock, self._allow_wait = clock, allow_wait
        self._reader: Consumer | None = None
        self._began = 0.0
        self._promotion = Promotion(models, partitions, committer, metrics, policy)
        self._schemas = Retries(
            "the new model's replay waits for the schema registry", "the new model's replay continues", math.inf, clock
        )
        metrics.max_series.set(models.current.store.max_series)

    @property
    def active(self) -> bool:
        """True while a newer model takes over."""
        return self._models.next is not None

    @property
    def busy(self) -> bool:
        """True while it has more to do than to wait for a schema registry."""
        return self.active and not self._schemas.seconds_to_wait

    def advance(self, consumer: Consumer) -> None:
        """Promote a model, or begin a swap, if that is wanted; of a swap do a little: hand over at most one partition.

        Raises:
            BrokerError: Kafka does not answer.
        """
        if not self.active:
            self._promotion.advance(consumer)
            models = self._newer_models()
            if models is None:
                return
            self._begin(models)
        left = self._left()
        with self._allow_wait(self._settings.broker_timeout_seconds):
            try:
                ready = self._ready({n: p for n, p in left.items() if not p.restoring and not p.replaying})
            except BrokerUnavailable:
                return  # the older model continues, and its commits find out whether Kafka stays away
        if ready is not None:
            self._models.hand_over(ready)
            self._partitions[ready].swap_offset = None
            self._committer.commit_all(consumer, {ready})
            log.info("a partition is handed over", extra={"partition": ready, "left": len(left) - 1})
        if not self._left():
            self._end()

    def close(self) -> None:
        """Release the connection."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _begin(self, models: Sequence[Model]) -> None:
        older, newer = self._models.current, self._models.add_next(models)
        self._began = self._clock()
        log.info(
            "a new model is to take over",
            extra={"old": older.spec.id, "model": newer.spec.id, "states_carried": self._models.layout_is_kept},
        )

    def _end(self) -> None:
        self.close()
        self._models.drop_current()
        self._promotion.show_roles()
        self._metrics.max_series.set(self._models.current.store.max_series)
        self._metrics.model_swaps.labels("done").inc()
        log.info(
            "the new model has taken over",
            extra={"model": self._models.current.spec.id, "seconds": round(self._clock() - self._began, 3)},
        )

    def _left(self) -> dict[int, Partition]:
        """The partitions that are not handed over yet."""
        return {n: p for n, p in self._partitions.items() if p.model is self._models.current}

    def _ready(self, candidates: dict[int, Partition]) -> int | None:
        """A partition that can be handed over now, before any more of it is answered. Replays a little.

        Raises:
            BrokerError: the broker does not answer.
        """
        if self._models.layout_is_kept:
            return min(candidates, default=None)
        answered = {n: p.answered for n, p in candidates.items() if p.answered is not None}
        untouched = candidates.keys() - answered
        if untouched:
            return min(untouched)
        if candidates.keys() != self._replaying().keys():
            self._assign(answered)
        if self._reader is not None and not self._schemas.seconds_to_wait:
            # More than the older one takes in a turn of the loop, or the newer one would never catch up under load.
            self._replay(self._reader, self._reader.poll(0.0, 2 * self._settings.max_poll_records), answered)
        return min((n for n, at in self._replaying().items() if at >= answered[n]), default=None)

    def _replaying(self) -> dict[int, int]:
        """`partition -> offset` up to which the newer model has come."""
        return {n: p.swap_offset for n, p in self._partitions.items() if p.swap_offset is not None}

    def _assign(self, answered: dict[int, int]) -> None:
        """Read these partitions, the new ones among them from where their recent input begins."""
        newer = self._models.newest
        self._reader = self._reader or self._broker.consumer()
        for number in self._replaying().keys() - answered:
            self._partitions[number].swap_offset = None
        new = answered.keys() - self._replaying()
        counts = self._models.series_counts(new)
        self._reader.assign(self._settings.input_topic, dict.fromkeys(answered, 0))
        first = self._reader.beginning_offsets(new)
        for number in new:
            back = warmup_readings(self._settings, newer.spec, counts[number])
            self._partitions[number].swap_offset = max(first[number], answered[number] - back, 0)
            with self._models.lock:
                newer.pipeline.revoke({number})  # what an earlier attempt has left
                newer.pipeline.replay(number, until=2**62)
        for number, at in self._replaying().items():
            self._reader.seek(number, at)

    def _replay(self, reader: Consumer, batch: Batch, answered: dict[int, int]) -> None:
        """Replay what the older model has answered; what lies beyond is read again later."""
        replaying = self._replaying()
        rows = [
            row
            for row, (partition, offset) in enumerate(zip(batch.partitions, batch.offsets, strict=True))
            if partition in replaying and replaying[partition] <= offset < answered[partition]
        ]
        if rows:
            to_replay = batch.take(rows)
            try:
                self._models.newest.pipeline.prepare(to_replay)
            except InputUnavailable as error:
                self._schemas.add(error)
                for number in batch.next_offsets.keys() & replaying.keys():
                    reader.seek(number, replaying[number])
                return
            self._schemas.end()
            self._models.process_next(to_replay)
        for number, position in batch.next_offsets.items():
            if number in replaying:
                self._partitions[number].swap_offset = min(position, answered[number])
                if position > answered[number]:  # the hand-over may fail
                    reader.seek(number, answered[number])


class NoSwap:
    """In the place of `ModelSwap`, in a worker without models."""

    active = busy = False

    def advance(self, consumer: Consumer) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""
