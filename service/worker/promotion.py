"""Another model of the group becomes the champion: from one batch to the next, for all partitions of this worker.

All models have stepped over the same readings, so nothing is replayed and no state changes. Of each partition:
  1. Between two batches the policy names the model. From the next reading on, it answers.
  2. The next commit has the new champion's id in the metadata of the offsets, with the last forecasts of the old one
     and, perhaps, the first ones of the new one. It is asked for at once, also where nothing arrives.
A crash before 2 leaves the old champion: what the new one has answered since was not committed, and is answered again,
by the new one if the decision is known by then. A crash after 2 leaves the new one. A rollback is the same.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from tidecast.service.broker.port import Consumer
from tidecast.service.errors import ModelError
from tidecast.service.observability.metrics import Metrics
from tidecast.service.pipeline.batch import ScoredBatch
from tidecast.service.worker.committer import Committer
from tidecast.service.worker.partition import Partitions
from tidecast.service.worker.served_models import ServedModels

log = logging.getLogger("tidecast.champion")


class PromotionPolicy(Protocol):
    """Who decides. Called by the loop's thread."""

    def committed(self, batches: Sequence[ScoredBatch]) -> None:
        """How the models fared in what was just committed; nothing where there are no shadows."""

    def champion(self, assigned: Collection[int]) -> tuple[str, int] | None:
        """Id of the model that is to answer, and the number of that decision; None = as before.

        Asked at each turn of the loop. `assigned`: the partitions of this worker. Of two decisions the one with the
        higher number counts.
        """

    def took_over(self, model_id: str, was: Mapping[int, str], offsets: Mapping[int, int]) -> None:
        """The model answers these partitions: which answered them before, and the first reading that it answers."""


class NoPolicy:
    """Nobody decides: what is committed counts."""

    def committed(self, batches: Sequence[ScoredBatch]) -> None:
        """Nothing."""

    def champion(self, assigned: Collection[int]) -> tuple[str, int] | None:
        """As before."""

    def took_over(self, model_id: str, was: Mapping[int, str], offsets: Mapping[int, int]) -> None:
        """Nothing."""


NOBODY = NoPolicy()


class Promotion:
    """Does what a policy says, and shows which model has which role. For the loop's thread.

    Args:
        models: of this worker.
        partitions: those assigned.
        committer: commits what has changed.
        metrics: to feed.
        policy: decides.
    """

    def __init__(
        self,
        models: ServedModels,
        partitions: Partitions,
        committer: Committer,
        metrics: Metrics,
        policy: PromotionPolicy,
    ) -> None:
        self._models, self._partitions, self._committer = models, partitions, committer
        self._metrics, self._policy = metrics, policy
        self._done: tuple[str, int] | None = None  # the last decision, in force or refused
        self.show_roles()

    def advance(self, consumer: Consumer) -> None:
        """Do what was decided since. To be called between two batches, while no swap is active.

        Raises:
            BrokerError: Kafka does not answer.
        """
        wanted = self._policy.champion(self._partitions.keys())
        if self._models.current.group.alone and wanted is None:
            return
        if wanted is not None and wanted != self._done:
            self._done = wanted
            self._promote(*wanted, consumer)
        self.show_roles()

    def _promote(self, wanted: str, number: int, consumer: Consumer) -> None:
        try:
            was = self._models.promote(wanted, number)
        except ModelError as error:
            log.error("a decision is ignored", extra={"model": wanted, "reason": str(error)})
            self._metrics.ignored_decisions.labels("unknown_model").inc()
            return
        offsets = {number: self._first(number) for number in was}
        log.info(
            "a model is the champion now", extra={"model": wanted, "was": sorted({*was.values()}), "offsets": offsets}
        )
        if was:
            self._committer.commit_all(consumer, was.keys(), states=False)
        self._policy.took_over(wanted, was, offsets)

    def _first(self, number: int) -> int:
        """The offset of the first reading that the new champion answers."""
        partition = self._partitions[number]
        answered = partition.answered
        return (partition.next_offset or partition.read_from) if answered is None else answered

    def show_roles(self) -> None:
        """Let the metric of the models have their roles."""
        self._metrics.serve(self._models.roles())
