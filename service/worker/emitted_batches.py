"""What was emitted and is not committed yet: counted by the commit that contains it."""

from __future__ import annotations

from tidecast.service.observability.metrics import EmittedBatch, Metrics
from tidecast.service.pipeline.batch import BatchResult


class EmittedBatches:
    """Batches in the order in which they were emitted, without their records."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._batches: list[EmittedBatch] = []
        self._asked = 0  # how many of them the last commit contains

    def add(self, result: BatchResult) -> None:
        """Note a batch that was handed to Kafka."""
        self._batches.append(self._metrics.emitted(result))

    def ask(self) -> None:
        """Note that Kafka was asked to commit all of them."""
        self._asked = len(self._batches)

    def count(self) -> None:
        """Count what the commit contains for which Kafka was asked: it succeeded."""
        self._metrics.count(self._batches[: self._asked])
        del self._batches[: self._asked]
        self._asked = 0

    def settle(self) -> None:
        """Count all that is left: there is nothing to commit for it, as where readings were only replayed."""
        if self._batches:
            self.ask()
            self.count()

    def drop(self) -> None:
        """Forget them: none is committed, and their readings are read again."""
        self._batches, self._asked = [], 0
