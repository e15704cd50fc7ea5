"""Looks on while a storm blows: what the group has done so far."""

from __future__ import annotations

import json
import time
from contextlib import suppress

from tests.chaos.topics import Names
from tidecast.service.broker.port import Broker, Consumer
from tidecast.service.errors import BrokerError

_TAIL = 100  # offsets before the end of a partition; among them is a forecast
_TAIL_SECONDS = 10.0


class Lookout:
    """Asks Kafka; `partitions` is how many each topic of readings and forecasts has."""

    def __init__(self, broker: Broker, names: Names, group: str, partitions: int) -> None:
        self._broker, self._names, self._group = broker, names, group
        self._partitions = range(partitions)
        self._forecasts = 0

    def moved(self) -> bool:
        """Whether forecasts came since the last time of asking."""
        with suppress(BrokerError):
            ends = self._ask(lambda c, p: c.end_offsets(p), self._names.forecasts)
            before, self._forecasts = self._forecasts, sum(ends.values())
            return self._forecasts > before
        return False

    def ends(self) -> dict[int, int]:
        """Of the readings."""
        return self._ask(lambda c, p: c.end_offsets(p), self._names.readings)

    def committed(self) -> dict[int, int]:
        """How far the group has come with the readings, 0 where it has nothing."""
        found = self._ask(lambda c, p: c.committed(p), self._names.readings, self._group)
        return {p: 0 if c is None else c[0] for p, c in found.items()}

    def serving(self) -> dict[int, str]:
        """Partition -> id of the model that made its last forecast, as far as that can be read now."""
        return self._ask(self._last_models, self._names.forecasts)

    def _last_models(self, consumer: Consumer, partitions: range) -> dict[int, str]:
        ends, found = consumer.end_offsets(partitions), {}
        at = {p: max(0, end - _TAIL) for p, end in ends.items()}
        consumer.assign(self._names.forecasts, at)
        deadline = time.monotonic() + _TAIL_SECONDS
        while any(at[p] < ends[p] for p in partitions) and time.monotonic() < deadline:
            batch = consumer.poll(0.2, 10_000)
            found |= {p: json.loads(v or b"")["model"] for p, v in zip(batch.partitions, batch.values, strict=True)}
            at |= batch.next_offsets
        return found

    def _ask(self, question, topic: str, group: str | None = None):
        consumer: Consumer = self._broker.consumer(group=group, isolation="read_committed")
        try:
            consumer.assign(topic, dict.fromkeys(self._partitions, 0))
            return question(consumer, self._partitions)
        finally:
            consumer.close()
