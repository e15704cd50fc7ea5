"""Which partition a key belongs to: Java's default, so that readings from any client land together."""

from __future__ import annotations

from functools import lru_cache

from kafka.partitioner.default import murmur2


@lru_cache(maxsize=1 << 16)
def partition_for(key: bytes, partitions: int) -> int:
    """The partition (0..partitions-1) of `key`. The hash is pure Python, hence the cache: a series comes again."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)
