"""Hot model swap: a newer model takes the partitions over, one by one, while readings flow.

For each partition that the older model answers:
  1. Of the same layout, the newer one is ready at once: states mean the same to both, and go over as they are.
     Otherwise it replays the partition's recent input silently, beginning from its initial state, a little between two
     polls, until it stands exactly where the older one stands. The older one answers meanwhile.
  2. Hand-over, in one commit: what the older one has answered, the states of the newer one, the offset, and beside it
     the newer model's name.
  3. From the next reading on the newer one answers.
A crash before 2 leaves the older model's states: a worker that then starts with the newer model carries them on, or
replays recent input (`service.worker.restore`). A crash after 2 leaves the newer one's. No reading is answered by both.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping

from tidecast.service.broker.port import Batch, Broker, Consumer
from tidecast.service.config.settings import Settings
from tidecast.service.model.session import Model
from tidecast.service.model.spec import ModelSpec
from tidecast.service.worker.served_models import ServedModels

log = logging.getLogger("tidecast.swap")

_MARGIN = 2  # readings replayed for each that a series needs to be warm: some series are read more often than others


def warmup_readings(settings: Settings, spec: ModelSpec, series: int) -> int:
    """How many readings of a partition make the model's states of so many series from nothing."""
    return min(_MARGIN * max(spec.warmup_steps, 1) * max(series, 1), settings.swap_replay_readings)


class ModelSwap:
    """One swap under way. For the loop's thread.

    Args:
        broker: to replay with.
        settings: what is in force.
        models: to put the newer model into.
        model: the newer one.
        assigned: the partitions that this worker has.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        models: ServedModels,
        model: Model,
        assigned: Collection[int],
        clock: Callable[[], float],
    ) -> None:
        self._broker, self._settings, self._models, self._clock = broker, settings, models, clock
        self._newer = models.begin_swap(model, assigned)
        self._carried = models.current.codec.layout == self._newer.codec.layout
        self._reader: Consumer | None = None
        self._at: dict[int, int] = {}  # partition -> offset up to which the newer model has come
        self._began = clock()
        log.info(
            "a new model is to take over",
            extra={"old": models.current.spec.id, "model": self._newer.spec.id, "states_carried": self._carried},
        )

    def step(self, answered_offsets: Mapping[int, int], waiting: Collection[int]) -> int | None:
        """Do a little; a partition that can be handed over now, before anything more of it is answered.

        Args:
            answered_offsets: partition -> offset up to which all is answered; without one, nothing ever was.
            waiting: the partitions that are not handed over, and can be: restored, and past their replay.

        Raises:
            BrokerError: the broker does not answer.
        """
        if self._carried:
            return min(waiting, default=None)
        untouched = [p for p in waiting if p not in answered_offsets]
        if untouched:
            return min(untouched)
        if set(waiting) != set(self._at):
            self._assign(answered_offsets, waiting)
        if self._reader is not None:
            # More than the older one takes in a turn of the loop, or it would never be reached under load.
            batch = self._reader.poll(0.0, 2 * self._settings.max_poll_records)
            self._learn(batch, answered_offsets)
        return min((p for p, at in self._at.items() if at >= answered_offsets[p]), default=None)

    def forget(self, partitions: Collection[int]) -> None:
        """These are others' now, are to be restored, or are handed over."""
        for partition in partitions:
            self._at.pop(partition, None)

    def close(self) -> None:
        """Let go of its connection."""
        if self._reader is not None:
            self._reader.close()

    def end(self) -> None:
        """All is handed over."""
        self.close()
        self._models.end_swap()
        log.info(
            "the new model has taken over",
            extra={"model": self._newer.spec.id, "seconds": round(self._clock() - self._began, 3)},
        )

    def _assign(self, answered_offsets: Mapping[int, int], waiting: Collection[int]) -> None:
        """Read these, the new ones among them from where their recent input begins."""
        self._reader = self._reader or self._broker.consumer()
        new = set(waiting) - set(self._at)
        self.forget(set(self._at) - set(waiting))
        counts = self._models.series_counts(new)
        self._reader.assign(self._settings.input_topic, dict.fromkeys(waiting, 0))
        first = self._reader.beginning_offsets(new)
        for partition in new:
            back = warmup_readings(self._settings, self._newer.spec, counts[partition])
            self._at[partition] = max(first[partition], answered_offsets[partition] - back, 0)
            with self._models.lock:
                self._newer.pipeline.revoke({partition})  # what an earlier try has left
                self._newer.pipeline.replay(partition, until=2**62)
        for partition, at in self._at.items():
            self._reader.seek(partition, at)

    def _learn(self, batch: Batch, answered_offsets: Mapping[int, int]) -> None:
        """Replay what the older model has answered; what lies beyond will be read again, or is handed over first."""
        rows = [
            row
            for row, (partition, offset) in enumerate(zip(batch.partitions, batch.offsets, strict=True))
            if partition in self._at and self._at[partition] <= offset < answered_offsets[partition]
        ]
        if rows:
            with self._models.lock:
                self._newer.pipeline.process(batch.take(rows))
        for partition, position in batch.next_offsets.items():
            if partition in self._at:
                self._at[partition] = min(position, answered_offsets[partition])
                if position > answered_offsets[partition]:  # the hand-over may fail
                    assert self._reader is not None
                    self._reader.seek(partition, answered_offsets[partition])
