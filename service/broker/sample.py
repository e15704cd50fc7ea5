"""The newest records of a topic."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tidecast.service.broker.port import Batch, Broker

MOST = 1_000  # records
_MOST_BYTES = 64 << 20
_POLL_S = 0.5
_SILENCE_S = 10.0  # without a record, before the end


@dataclass(slots=True)
class Sample:
    """The newest committed records, and where the log begins and ends."""

    batch: Batch
    starts: dict[int, int]  # partition -> the offset from which it was read
    partitions: int


def newest(broker: Broker, topic: str, timeout_s: float) -> Sample:
    """Read the newest MOST records, about as many of each partition, without a group.

    Reads at most 64 MB, and stops after 10 s (or the time limit) in which nothing arrived.

    Raises:
        BrokerError: no such topic, or Kafka does not answer.
    """
    partitions = range(broker.partitions(topic) or 0)
    batch = Batch(topic)
    consumer = broker.consumer()
    try:
        consumer.assign(topic, dict.fromkeys(partitions, 0))
        first, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
        starts = _starts(first, ends)
        consumer.assign(topic, starts)
        left, size = {p for p in starts if starts[p] < ends[p]}, 0
        limit = min(_SILENCE_S, timeout_s)
        deadline = time.monotonic() + limit
        while left and size < _MOST_BYTES and time.monotonic() < deadline:
            found = consumer.poll(_POLL_S, MOST)
            size += sum(len(value) for value in found.values if value is not None)
            rows = [row for row, (p, o) in enumerate(zip(found.partitions, found.offsets, strict=True)) if o < ends[p]]
            _extend(batch, found.take(rows))
            left -= {p for p, position in found.next_offsets.items() if position >= ends[p]}
            if len(found) or found.next_offsets:
                deadline = time.monotonic() + limit
    finally:
        consumer.close()
    return Sample(batch, starts, len(partitions))


def _starts(first: dict[int, int], ends: dict[int, int]) -> dict[int, int]:
    """Where to begin, so that each partition gives its share, and a short one leaves its rest to the others."""
    starts, left = {}, MOST
    for turn, partition in enumerate(sorted(ends, key=lambda p: ends[p] - first[p])):
        taken = min(ends[partition] - first[partition], left // (len(ends) - turn))
        starts[partition], left = ends[partition] - taken, left - taken
    return starts


def _extend(batch: Batch, more: Batch) -> None:
    batch.partitions += more.partitions
    batch.offsets += more.offsets
    batch.timestamps += more.timestamps
    batch.keys += more.keys
    batch.values += more.values
    batch.headers = [*batch.headers, *more.headers]
