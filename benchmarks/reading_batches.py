"""Readings as a client hands them over: in batches, every key and value an object of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tidecast.service.broker.port import Batch

PARTITIONS = 4


def batches(
    records: Iterable[tuple[int, bytes, bytes]], size: int, timestamp: int, offsets: list[int]
) -> Iterator[Batch]:
    """Batches of `size` records (partition, key, value), the last may be smaller.

    Args:
        records: in the order of their offsets.
        size: records of a batch.
        timestamp: ms, when all of them were sent.
        offsets: [partitions] of the next record of each; kept up to date.
    """
    batch = Batch("readings")
    for partition, key, value in records:
        batch.partitions.append(partition)
        batch.offsets.append(offsets[partition])
        batch.timestamps.append(timestamp)
        batch.keys.append(key)
        batch.values.append(value)
        batch.headers.append(())
        offsets[partition] += 1
        if len(batch) == size:
            yield batch
            batch = Batch("readings")
    if len(batch):
        yield batch
