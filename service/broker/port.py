"""The port: what the worker needs of Kafka.

Records cross it as columns (parallel lists), not as one object each: the pipeline is columnar from poll to
produce. Deserialisers never run inside a client; keys and values are bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Headers = Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Membership:
    """How a consumer is a member of its group.

    With an `instance` (group.instance.id) it keeps its partitions over a restart within the session's time-out
    (KIP-345). Of two with one id, the one that joined later has the partitions; the other's calls raise InstanceFenced.
    """

    instance: str | None = None
    session_timeout_s: float = 20.0  # without a heartbeat for this long a member loses its partitions


DYNAMIC = Membership()


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """What identifies a topic: one that is deleted and made again has another id."""

    id: str
    partitions: int


@dataclass(frozen=True, slots=True)
class UnreadBatch:
    """A compressed batch of the topic that was set aside as a whole: it cannot be unpacked, or only to a huge size."""

    partition: int
    first: int  # offset
    last: int
    size: int  # compressed, bytes
    reason: str


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
    # partition -> the offset to continue from. May be after the last record (transaction markers, compaction).
    next_offsets: dict[int, int] = field(default_factory=dict)
    unread: list[UnreadBatch] = field(default_factory=list)  # set aside, and logged; `next_offsets` are behind them

    def __len__(self) -> int:
        return len(self.offsets)

    def first_offsets(self) -> dict[int, int]:
        """`partition -> offset` of its first record here."""
        return dict(zip(reversed(self.partitions), reversed(self.offsets), strict=True))

    def where(self) -> str:
        """What it holds: "readings-0 offsets 3..7"."""
        first, last = self.first_offsets(), dict(zip(self.partitions, self.offsets, strict=True))
        return ", ".join(f"{self.topic}-{p} offsets {first[p]}..{last[p]}" for p in sorted(first))

    def take(self, rows: Sequence[int]) -> Batch:
        """The records of these rows, in this order, without `next_offsets`."""
        columns = (self.partitions, self.offsets, self.timestamps, self.keys, self.values, self.headers)
        return Batch(self.topic, *([column[row] for row in rows] for column in columns))  # type: ignore[arg-type]


@dataclass(slots=True)
class OutgoingBatch:
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


def metadata_of(offsets: Mapping[int, int], metadata: str | Mapping[int, str]) -> Mapping[int, str]:
    """The text to commit with each partition's offset; "" where a mapping has none."""
    return dict.fromkeys(offsets, metadata) if isinstance(metadata, str) else {p: metadata.get(p, "") for p in offsets}


class Consumer(Protocol):
    """One consumer of one topic. Every method but `close` raises BrokerError if the broker refuses.

    `poll`, `commit`, `verify_instance` and a transaction's commit raise InstanceFenced once another member has this
    instance id.
    """

    def subscribe(
        self, topic: str, on_assigned: Callable[[set[int]], None], on_revoked: Callable[[set[int]], None]
    ) -> None:
        """Join the group for `topic`. The callbacks run inside `poll` and `close`, on the caller's thread.

        A member for which no partition is left is notified by `on_assigned(set())`.
        """

    def assign(self, topic: str, offsets: Mapping[int, int]) -> None:
        """Read these partitions from these offsets, without a group (-1 = the end, -2 = the beginning, both as of now).

        None of them is paused afterwards.
        """

    def poll(self, timeout_s: float, max_records: int) -> Batch:
        """What has arrived, at most `max_records`; waits up to `timeout_s` for the first. May be empty."""

    def commit(self, offsets: Mapping[int, int], metadata: str | Mapping[int, str] = "") -> None:
        """Commit `partition -> next offset` for the group, with a text, the same for all or one for each partition.

        Blocks until the broker has it.
        """

    def commit_async(self, offsets: Mapping[int, int], metadata: str | Mapping[int, str] = "") -> None:
        """As `commit`, without waiting for the broker. `commit_acknowledged` has the outcome of the last one."""

    def commit_acknowledged(self) -> bool:
        """Whether the broker has taken what `commit_async` asked for; False while that is not known.

        An answer comes with `poll`. Raises as `commit`, where the broker refused.
        """

    def committed(self, partitions: Collection[int]) -> dict[int, tuple[int, str] | None]:
        """`partition -> (offset, metadata)` as committed by the group, None where nothing is.

        Only final offsets: while a transaction with offsets of one of them is open or ending, this waits.

        Raises:
            BrokerError: that took longer than the broker's time limit (at most 10 s).
        """

    def verify_instance(self) -> None:
        """Ask the group whether this member still has its instance id; without an id nothing is asked.

        For a member whose transactional id was fenced: either by a process with the same instance id, which must
        continue, or only because a transaction was open for too long.

        Raises:
            InstanceFenced: another process has the id.
            BrokerError: the group's coordinator did not answer.
        """

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
    """Produces with acks=all; with a transactional id, only in transactions.

    After a failed transaction the producer must be replaced: `close` it and make a new one with the same transactional
    id, which aborts what this one left open. `Consumer.committed` then says what was committed.
    """

    def produce(self, outgoing: OutgoingBatch) -> None:
        """Hand over records in order. Waits for the broker only when some 64 MiB are buffered.

        Raises:
            Fenced: another producer has the transactional id.
            BrokerError: an earlier record could not be delivered, no transaction is open (with a transactional id), or
                there is no such topic or partition.
        """

    def flush(self, timeout_s: float) -> None:
        """Wait until all that was produced is acknowledged.

        Raises:
            BrokerError: a record failed, or `timeout_s` passed.
        """

    def begin(self) -> None:
        """Begin a transaction; Kafka aborts it by itself once it is open for more than 10 s.

        Raises:
            Fenced: another producer has the transactional id.
            BrokerError: there is no transactional id, or a transaction is open already.
        """

    def commit_transaction(
        self, topic: str, offsets: Mapping[int, tuple[int, str]], consumer: Consumer, timeout_s: float
    ) -> None:
        """Commit, all or none: what was produced since `begin`, and the input's `partition -> (next offset, metadata)`.

        The offsets are committed as the `consumer`, and only if it is still a member of its group and still has the
        partitions. When `on_revoked` is called, commit what came from these partitions before it returns, or replace
        the producer: they may come back after another member's work. Blocks until Kafka has it. Afterwards no
        transaction is open; after an error one is, until the producer is replaced.

        Args:
            offsets: not empty.

        Raises:
            Fenced: another producer has the transactional id, or the group moved on without the consumer.
            BrokerError: a record failed, Kafka refused, or `timeout_s` passed: Kafka may or may not have committed it.
        """

    def close(self) -> None:
        """Close the connection without waiting for what is still buffered."""


class Broker(Protocol):
    """A way to reach one Kafka cluster."""

    def consumer(
        self, *, group: str | None = None, isolation: str = "read_committed", membership: Membership = DYNAMIC
    ) -> Consumer:
        """A new consumer; `group` None = only `assign` may be used."""

    def producer(self, *, transactional_id: str | None = None) -> Producer:
        """A new producer; with an id, a transactional one: it fences the former owner and aborts what that left open.

        Raises:
            BrokerError: the cluster cannot be reached.
        """

    def describe(self, topic: str) -> TopicInfo | None:
        """The topic's id and number of partitions, None where there is no such topic.

        Raises:
            BrokerError: the cluster cannot be reached.
        """

    def partitions(self, topic: str) -> int | None:
        """How many partitions the topic has, None where there is no such topic; raises as `describe`."""
        found = self.describe(topic)
        return None if found is None else found.partitions

    def create_topic(self, topic: str, partitions: int, config: Mapping[str, str] | None = None) -> bool:
        """Make the topic; False where it was there already (then it is left as it is).

        `config` may hold `replication.factor` with the topic's own settings; without it the cluster's default is used.
        """

    def delete_topic(self, topic: str) -> bool:
        """Remove the topic; False where there was none."""

    def topic_config(self, topic: str) -> dict[str, str]:
        """The topic's settings by Kafka's names (`cleanup.policy`), with those left at their defaults.

        Raises:
            BrokerError: there is no such topic, or the cluster cannot be reached.
        """

    def topics(self) -> dict[str, int]:
        """`topic -> partitions` of all topics that are not internal."""

    def group_members(self, group: str, topic: str) -> dict[str, frozenset[int]] | None:
        """`member id -> its partitions of the topic`, of the members that subscribed to it.

        None while the group rebalances or has no members. A member may still have to release a partition that it is to
        give up, so this is final only if it is the same for a while.
        """

    def evict(self, group: str, member: str) -> None:
        """Remove a member from its group, which rebalances; a worker that is evicted joins again by itself.

        Nothing happens where there is no such member.
        """

    def close(self) -> None:
        """Close every connection made for the admin calls; consumers and producers have their own."""
