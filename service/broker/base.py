"""The port: all that the worker asks of Kafka.

Records cross it as columns (parallel lists), not as one object each: the pipeline is columnar from poll to
produce. Deserialisers never run inside a client; keys and values are bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Headers = Sequence[tuple[str, bytes]]


@dataclass(slots=True)
class Batch:
    """Records of one topic, in offset order within each partition; the lists are parallel."""

    topic: str
    partitions: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    timestamps: list[int] = field(default_factory=list)  # ms, the record's own
    keys: list[bytes | None] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)
    headers: list[Headers] = field(default_factory=list)
    # partition -> the offset to go on from. May pass the last record (transaction markers, compaction).
    next_offsets: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets)


@dataclass(slots=True)
class Outgoing:
    """Records to produce to one topic; the lists are parallel."""

    topic: str
    partitions: list[int | None] = field(default_factory=list)  # None = by the key's murmur2 hash, as Java does
    keys: list[bytes | None] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)
    headers: list[Headers] = field(default_factory=list)
    timestamps: list[int | None] = field(default_factory=list)  # ms, None = now

    def __len__(self) -> int:
        return len(self.keys)

    def append(
        self,
        key: bytes | None,
        value: bytes | None,
        *,
        partition: int | None = None,
        headers: Headers = (),
        timestamp: int | None = None,
    ) -> None:
        """Add one record."""
        self.partitions.append(partition)
        self.keys.append(key)
        self.values.append(value)
        self.headers.append(headers)
        self.timestamps.append(timestamp)


class Consumer(Protocol):
    """One consumer of one topic. Every method but `close` raises BrokerError when the broker says no."""

    def subscribe(
        self, topic: str, on_assigned: Callable[[set[int]], None], on_revoked: Callable[[set[int]], None]
    ) -> None:
        """Join the group for `topic`. The callbacks run inside `poll` and `close`, on the caller's thread.

        A member for which no partition is left is told so, by `on_assigned(set())`.
        """

    def assign(self, topic: str, offsets: Mapping[int, int]) -> None:
        """Read these partitions from these offsets, without a group's say (-1 = the end, -2 = the beginning)."""

    def poll(self, timeout_s: float, max_records: int) -> Batch:
        """What has arrived, at most `max_records`; waits up to `timeout_s` for the first. May be empty."""

    def commit(self, offsets: Mapping[int, int], metadata: str = "") -> None:
        """Commit `partition -> next offset` for the group. Blocks until the broker has it."""

    def committed(self, partitions: Collection[int]) -> dict[int, tuple[int, str] | None]:
        """`partition -> (offset, metadata)` as committed by the group, None where nothing is."""

    def seek(self, partition: int, offset: int) -> None:
        """The next poll of an assigned partition starts at `offset`."""

    def pause(self, partitions: Collection[int]) -> None:
        """Fetch nothing from these until `resume`; `poll` keeps the membership alive."""

    def resume(self, partitions: Collection[int]) -> None:
        """Undo `pause`."""

    def beginning_offsets(self, partitions: Collection[int]) -> dict[int, int]:
        """The first retained offset of each partition."""

    def end_offsets(self, partitions: Collection[int]) -> dict[int, int]:
        """The offset after the last record of each partition, as this consumer's isolation level sees it."""

    def lag(self) -> dict[int, int]:
        """Records between the position and the last known end, for each assigned partition; no request is made."""

    def close(self) -> None:
        """Leave the group. Does not commit."""


class Producer(Protocol):
    """Produces with acks=all. Transactions come with the exactly-once delivery."""

    def produce(self, outgoing: Outgoing) -> None:
        """Hand over records in order; does not wait for the broker.

        Raises:
            BrokerError: an earlier record could not be delivered.
        """

    def flush(self, timeout_s: float) -> None:
        """Wait until all that was produced is acknowledged.

        Raises:
            BrokerError: a record failed, or `timeout_s` passed.
        """

    def close(self) -> None:
        """Let go of the connection without waiting for what is still buffered."""


class Broker(Protocol):
    """A way to reach one Kafka cluster."""

    def consumer(self, *, group: str | None = None, isolation: str = "read_committed") -> Consumer:
        """A new consumer; `group` None = only `assign` may be used."""

    def producer(self) -> Producer:
        """A new producer."""

    def partitions(self, topic: str) -> int | None:
        """How many partitions the topic has, None where there is no such topic.

        Raises:
            BrokerError: the cluster cannot be reached.
        """

    def create_topic(self, topic: str, partitions: int, config: Mapping[str, str] | None = None) -> bool:
        """Make the topic; False where it was there already (then it is left as it is)."""

    def topic_config(self, topic: str) -> dict[str, str]:
        """The topic's settings in force, by Kafka's names (`cleanup.policy`); those without a value are left out.

        Raises:
            BrokerError: there is no such topic, or the cluster cannot be reached.
        """

    def delete_topic(self, topic: str) -> bool:
        """Remove the topic; False where there was none."""

    def topics(self) -> dict[str, int]:
        """`topic -> partitions` of all topics that are not internal."""

    def close(self) -> None:
        """Let go of every connection made for the admin calls."""
