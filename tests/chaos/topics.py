"""The topics of one worker group, read as anybody may: `read_committed`."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tests.chaos.readings import Record
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


def read_all(broker: Broker, topic: str) -> list[Record]:
    """Every record of `topic` that a `read_committed` reader sees now, in offset order within each partition.

    Raises:
        TimeoutError: the end was not reached, or a transaction stays open on the topic: what lies behind it cannot
            be judged.
    """
    partitions = range(broker.partitions(topic) or 0)
    consumer = broker.consumer()
    try:
        consumer.assign(topic, dict.fromkeys(partitions, -2))
        ends = _ends(broker, topic)
        at = consumer.beginning_offsets(partitions)
        found: list[Record] = []
        deadline = time.monotonic() + READ_SECONDS
        while any(at[p] < ends[p] for p in partitions):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{topic}: read up to {at}, not to the ends {ends}")
            b = consumer.poll(0.5, 20_000)
            found += map(Record, b.partitions, b.offsets, b.keys, b.values, map(dict, b.headers))
            at |= b.next_offsets
        return found
    finally:
        consumer.close()


def _ends(broker: Broker, topic: str) -> dict[int, int]:
    """The end of each partition, once no transaction is open there any more."""
    partitions = range(broker.partitions(topic) or 0)
    readers = [broker.consumer(isolation=isolation) for isolation in ("read_uncommitted", "read_committed")]
    deadline = time.monotonic() + OPEN_SECONDS
    try:
        for reader in readers:
            reader.assign(topic, dict.fromkeys(partitions, -2))
        while True:
            all_of_it, stable = (reader.end_offsets(partitions) for reader in readers)
            if all_of_it == stable:
                return stable
            if time.monotonic() > deadline:
                raise TimeoutError(f"{topic}: a transaction stays open, stable up to {stable}, written to {all_of_it}")
            time.sleep(0.2)
    finally:
        for reader in readers:
            reader.close()
