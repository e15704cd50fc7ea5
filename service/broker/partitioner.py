"""Which partition a key belongs to: as Java's default, so that all clients send a series to one partition."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

from kafka.partitioner.default import murmur2


@lru_cache(maxsize=1 << 16)
def partition_for(key: bytes, partitions: int) -> int:
    """The partition (0..partitions-1) of `key`. The hash is pure Python, so results are cached: keys repeat."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def partitions_for(asked: Sequence[int | None], keys: Sequence[bytes | None], count: int) -> list[int]:
    """The partitions of records: the requested one, or that of the key; without either, a random one for all."""
    unkeyed = random.randrange(count)
    return [
        p if p is not None else unkeyed if key is None else partition_for(key, count)
        for p, key in zip(asked, keys, strict=True)
    ]
