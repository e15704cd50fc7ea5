"""The wait for what readings cannot be decoded without: a schema registry that does not answer.

Nothing is answered, dead-lettered or lost meanwhile. The readings are put back: the partitions are paused, and are read
again once the registry answers. The loop turns on, so the group keeps this member.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tidecast.service.broker.port import Batch, Consumer
from tidecast.service.errors import InputUnavailable
from tidecast.service.observability.metrics import Metrics
from tidecast.service.worker.committer import AllowWait
from tidecast.service.worker.partition import Partitions
from tidecast.service.worker.retries import Retries
from tidecast.service.worker.router import Work

_LONGEST_S = 30.0  # a batch's schemas take at most 5 s, but for the last of them: its references, its compiler


class InputWait:
    """What waits, and until when. For the loop's thread.

    Args:
        work: whose formats fetch what they need.
        partitions: those assigned.
        metrics: to feed.
        clock: seconds, monotonic.
        allow_wait: a context in which the worker may wait for so many seconds.
    """

    def __init__(
        self,
        work: Work,
        partitions: Partitions,
        metrics: Metrics,
        clock: Callable[[], float],
        allow_wait: AllowWait,
    ) -> None:
        self._allow_wait = allow_wait
        self._work, self._partitions, self._metrics = work, partitions, metrics
        self._retries = Retries("readings wait for the schema registry", "readings no longer wait for it",
                                math.inf, clock)  # fmt: skip
        self._waiting: Batch | None = None  # what could not be prepared; it was put back

    @property
    def reason(self) -> str | None:
        """Why readings wait; None where they do not."""
        return self._retries.reason

    def admit(self, batch: Batch, consumer: Consumer) -> Batch:
        """The batch, if all that it needs is here; otherwise an empty one, and the batch will be read again.

        May ask the registry, which blocks for some seconds.
        """
        if self._waiting is not None and not self._retries.seconds_to_wait and self._prepared(self._waiting):
            self._waiting = None
            consumer.resume({number for number, p in self._partitions.items() if not p.restoring})
        if not batch.offsets or self._prepared(batch):
            return batch
        for number, offset in batch.first_offsets().items():
            consumer.seek(number, offset)
        consumer.pause(self._partitions.keys())
        self._waiting = self._waiting or batch
        others = batch.next_offsets.keys() - set(batch.partitions)  # of partitions without records
        return Batch(batch.topic, next_offsets={number: batch.next_offsets[number] for number in others})

    def _prepared(self, batch: Batch) -> bool:
        try:
            with self._allow_wait(_LONGEST_S):
                self._work.prepare(batch)
        except InputUnavailable as error:
            self._metrics.input_waits.inc()
            self._retries.add(error)
            return False
        if self._waiting is None or batch is self._waiting:
            self._retries.end()
        return True
