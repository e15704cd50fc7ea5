"""Where new partitions continue: where their states are, or, without any, at what the group has committed."""

from __future__ import annotations

import logging
from collections.abc import Callable

from tidecast.service.broker.port import Broker, Consumer
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError
from tidecast.service.worker.partition import Partitions
from tidecast.service.worker.restore import Restore, Restored
from tidecast.service.worker.restore_checks import check_retained
from tidecast.service.worker.retries import Retries
from tidecast.service.worker.router import Router, Work

log = logging.getLogger("tidecast.restore")


class CommittedPositions:
    """In the place of `Restore`, where nothing is to be restored.

    Args:
        settings: what is in force.
        partitions: those assigned.
        clock: seconds, monotonic.
    """

    damaged = remaining = 0

    def __init__(self, settings: Settings, partitions: Partitions, clock: Callable[[], float]) -> None:
        self._settings, self._partitions = settings, partitions
        self.failures = Retries(
            "Kafka does not say what is committed, asking again", "Kafka says what is committed",
            settings.broker_timeout_seconds, clock,
        )  # fmt: skip

    @property
    def waiting(self) -> bool:
        """True while there is nothing to do but to wait until Kafka is asked again."""
        return self.failures.seconds_to_wait > 0

    def advance(self, consumer: Consumer, wait_s: float) -> dict[int, Restored]:
        """Ask where the new partitions continue; nothing where Kafka has not answered.

        Raises:
            BrokerError: it has not answered for `broker_timeout_seconds`, or retention has deleted what is next.
        """
        new = {number for number, partition in self._partitions.items() if partition.restoring}
        if self.waiting:
            return {}
        try:
            committed, first = consumer.committed(new), consumer.beginning_offsets(new)
        except BrokerError as error:
            self.failures.add(error)
            return {}
        found: dict[int, Restored] = {}
        for number in sorted(new):
            known = committed[number]
            start = None if known is None else known[0]
            if start is not None:
                check_retained(self._settings, number, first[number], start, start)
                found[number] = Restored(max(first[number], start), start, 0, 0.0)
            else:
                found[number] = Restored(None, None, 0, 0.0)
        for number in found:
            self._partitions[number].restoring = False
        log.info("continuing from what is committed", extra={"offsets": {n: r.committed for n, r in found.items()}})
        return found

    def close(self) -> None:
        """Nothing is open."""


def restore_for(
    work: Work, broker: Broker, settings: Settings, partitions: Partitions, clock: Callable[[], float]
) -> Restore | CommittedPositions:
    """What brings new partitions to where their records can be read."""
    if isinstance(work, Router):
        return CommittedPositions(settings, partitions, clock)
    return Restore(broker, settings, partitions, work, clock)
