"""Which partition a key belongs to: as Java's default, so that all clients send a series to one partition."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from kafka.partitioner.default import murmur2


def _fnv1a(key: bytes) -> int:
    """As librdkafka and Sarama have it: the absolute value of the signed hash."""
    found = 0x811C9DC5
    for byte in key:
        found = (found ^ byte) * 0x01000193 & 0xFFFFFFFF
    return found if found < 1 << 31 else (1 << 32) - found


DEFAULT = "murmur2"
# By librdkafka's names: Java's, librdkafka's own (the same as its default, consistent_random, for records with a key),
# and Sarama's.
PARTITIONERS: Mapping[str, Callable[[bytes], int]] = {
    DEFAULT: lambda key: int(murmur2(key) & 0x7FFFFFFF),
    "consistent": zlib.crc32,
    "fnv1a": _fnv1a,
}


@lru_cache(maxsize=1 << 16)
def partition_for(key: bytes, partitions: int, partitioner: str = DEFAULT) -> int:
    """The partition (0..partitions-1) of `key`. The hash is pure Python, so results are cached: keys repeat."""
    return PARTITIONERS[partitioner](key) % partitions


def partitions_for(asked: Sequence[int | None], keys: Sequence[bytes | None], count: int) -> list[int]:
    """The partitions of records: the requested one, or that of the key; without either, a random one for all."""
    unkeyed = random.randrange(count)
    return [
        p if p is not None else unkeyed if key is None else partition_for(key, count)
        for p, key in zip(asked, keys, strict=True)
    ]
