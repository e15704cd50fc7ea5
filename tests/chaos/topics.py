"""The topics of one worker group, read as anybody may: `read_committed`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from tests.chaos.readings import Place, Record
from tidecast.service.broker.port import Broker

READ_SECONDS = 120.0
OPEN_SECONDS = 60.0  # a killed worker's transaction ends after its time-out, 10 s


@dataclass(frozen=True, slots=True)
class Names:
    """The topics of one worker group; no changelog = states are not looked at."""

    readings: str
    forecasts: str
    dead_letters: str
    changelog: str | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """Of a topic that was deleted and made again.

    Attributes:
        kept: its records, as they were read just before.
        before: partition of the readings -> what the group had committed when the topic was made again. Of what was
            written between, for readings before that offset, nobody can tell any more.
    """

    kept: list[Record]
    before: Mapping[int, int]

    def may_lack(self, place: Place) -> bool:
        """Whether the answer to this reading may have gone with the topic."""
        return place[1] < self.before.get(place[0], 0)


KEPT_ALL = Lost([], {})


def read_all(broker: Broker, topic: str, *, in_use: bool = False) -> list[Record]:
    """Every record of `topic` that a `read_committed` reader sees now, in offset order within each partition.

    `in_use`: transactions are open on it again and again, and what is open now is not read.

    Raises:
        TimeoutError: the end was not reached, or a transaction stays open on the topic: what lies behind it cannot
            be judged.
    """
    partitions = range(broker.partitions(topic) or 0)
    consumer = broker.consumer()
    try:
        consumer.assign(topic, dict.fromkeys(partitions, -2))
        ends = _ends(broker, topic, in_use)
        at = consumer.beginning_offsets(partitions)
        found: list[Record] = []
        deadline = time.monotonic() + READ_SECONDS
        while any(at[p] < ends[p] for p in partitions):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{topic}: read up to {at}, not to the ends {ends}")
            b = consumer.poll(0.5, 20_000)
            found += map(Record, b.partitions, b.offsets, b.keys, b.values, map(dict, b.headers), b.timestamps)
            at |= b.next_offsets
        return found
    finally:
        consumer.close()


def _ends(broker: Broker, topic: str, in_use: bool) -> dict[int, int]:
    """The end of each partition, once no transaction is open there any more, unless it is in use."""
    partitions = range(broker.partitions(topic) or 0)
    readers = [broker.consumer(isolation=isolation) for isolation in ("read_uncommitted", "read_committed")]
    deadline = time.monotonic() + OPEN_SECONDS
    try:
        for reader in readers:
            reader.assign(topic, dict.fromkeys(partitions, -2))
        while True:
            all_of_it, stable = (reader.end_offsets(partitions) for reader in readers)
            if in_use or all_of_it == stable:
                return stable
            if time.monotonic() > deadline:
                raise TimeoutError(f"{topic}: a transaction stays open, stable up to {stable}, written to {all_of_it}")
            time.sleep(0.2)
    finally:
        for reader in readers:
            reader.close()
