"""The port without a Kafka: topics in this process's memory, for `tidecast replay` and for tests.

Partitioning, offsets, groups and commits behave as Kafka's do. Thread-safe. Nothing is ever deleted but whole topics.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from service.broker.base import Batch, Broker, Consumer, Headers, Outgoing, Producer
from service.broker.partitioner import partition_for
from service.errors import BrokerError

Callback = Callable[[set[int]], None]


def _nothing(partitions: set[int]) -> None:
    """The callbacks of a consumer that has not subscribed."""


@dataclass(slots=True)
class _Log:
    """One partition: parallel lists, an offset is an index."""

    keys: list[bytes | None] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)
    headers: list[Headers] = field(default_factory=list)
    timestamps: list[int] = field(default_factory=list)  # ms

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(slots=True)
class _Group:
    """The members that subscribed to one topic, and who reads what."""

    members: list[MemoryConsumer] = field(default_factory=list)
    target: dict[int, MemoryConsumer] = field(default_factory=dict)  # who should have a partition
    owner: dict[int, MemoryConsumer] = field(default_factory=dict)  # who has it until it lets go


class MemoryBroker(Broker):
    """A cluster that ends with this object."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())  # guards all that follows
        self.logs: dict[str, list[_Log]] = {}
        self.configs: dict[str, dict[str, str]] = {}
        self.groups: dict[tuple[str, str], _Group] = {}
        self.commits: dict[tuple[str, str], dict[int, tuple[int, str]]] = {}

    def consumer(self, *, group: str | None = None, isolation: str = "read_committed") -> Consumer:
        """A new consumer; `group` None = only `assign` may be used."""
        return MemoryConsumer(self, group)

    def producer(self) -> Producer:
        """A new producer."""
        return MemoryProducer(self)

    def partitions(self, topic: str) -> int | None:
        """How many partitions the topic has, None where there is no such topic."""
        logs = self.logs.get(topic)
        return None if logs is None else len(logs)

    def create_topic(self, topic: str, partitions: int, config: Mapping[str, str] | None = None) -> bool:
        """Make the topic; False where it was there already (then it is left as it is)."""
        if partitions < 1:
            raise BrokerError(f"making the topic {topic}: it needs at least one partition", got=partitions)
        with self.changed:
            if topic in self.logs:
                return False
            self.logs[topic] = [_Log() for _ in range(partitions)]
            self.configs[topic] = {"cleanup.policy": "delete"} | dict(config or {})
            return True

    def topic_config(self, topic: str) -> dict[str, str]:
        """What the topic was made with, over Kafka's default cleanup.policy. Nothing here acts on it."""
        with self.changed:
            self.log(topic, 0)
            return dict(self.configs[topic])

    def delete_topic(self, topic: str) -> bool:
        """Remove the topic and what groups committed for it; False where there was none."""
        with self.changed:
            for known in [key for key in self.commits if key[1] == topic]:
                del self.commits[known]
            return self.logs.pop(topic, None) is not None

    def topics(self) -> dict[str, int]:
        """`topic -> partitions`."""
        with self.changed:
            return {topic: len(logs) for topic, logs in self.logs.items()}

    def close(self) -> None:
        """Nothing to let go of."""

    def log(self, topic: str, partition: int) -> _Log:
        """One partition's records; BrokerError where there is none."""
        logs = self.logs.get(topic)
        if logs is None:
            raise BrokerError(f"there is no topic {topic}", do="Make it: tidecast topics create")
        if not 0 <= partition < len(logs):
            raise BrokerError(f"the topic {topic} has {len(logs)} partitions, there is no partition {partition}")
        return logs[partition]


class MemoryProducer(Producer):
    """Made by `MemoryBroker.producer`. What it produces is there at once."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._unkeyed = 0

    def produce(self, outgoing: Outgoing) -> None:
        """Append the records, each to its partition or to its key's."""
        if not len(outgoing):
            return
        broker = self._broker
        now = int(time.time() * 1_000)
        with broker.changed:
            broker.log(outgoing.topic, 0)
            logs = broker.logs[outgoing.topic]
            count = len(logs)
            partitions = [p for p in outgoing.partitions if p is not None]
            for partition in set(partitions):
                broker.log(outgoing.topic, partition)
            if len(partitions) == len(outgoing) and len(set(partitions)) == 1:  # a file's replay: all in one go
                log = logs[partitions[0]]
                log.keys += outgoing.keys
                log.values += outgoing.values
                log.headers += outgoing.headers
                log.timestamps += [now if t is None else t for t in outgoing.timestamps]
            else:
                for i, (asked, key) in enumerate(zip(outgoing.partitions, outgoing.keys, strict=True)):
                    if asked is None:
                        log = logs[self._any(count) if key is None else partition_for(key, count)]
                    else:
                        log = logs[asked]
                    timestamp = outgoing.timestamps[i]
                    log.keys.append(key)
                    log.values.append(outgoing.values[i])
                    log.headers.append(outgoing.headers[i])
                    log.timestamps.append(now if timestamp is None else timestamp)
            broker.changed.notify_all()

    def _any(self, count: int) -> int:
        self._unkeyed += 1
        return self._unkeyed % count

    def flush(self, timeout_s: float) -> None:
        """Nothing is ever under way."""

    def close(self) -> None:
        """Nothing to let go of."""


class MemoryConsumer(Consumer):
    """Made by `MemoryBroker.consumer`."""

    def __init__(self, broker: MemoryBroker, group: str | None) -> None:
        self._broker = broker
        self._group = group
        self._topic = ""
        self._positions: dict[int, int] = {}  # of the partitions that are read
        self._told: dict[int, int] = {}  # positions as last told by `poll`
        self._paused: set[int] = set()
        self._member: _Group | None = None
        self._joined = False  # the callback has told of a first share, be it empty
        self._on_assigned: Callback = _nothing
        self._on_revoked: Callback = _nothing

    def subscribe(self, topic: str, on_assigned: Callback, on_revoked: Callback) -> None:
        """Join the group for `topic`. The callbacks run inside `poll` and `close`, on the caller's thread."""
        if self._group is None:
            raise BrokerError("a consumer without a group cannot subscribe", do="Give it a group, or use assign.")
        with self._broker.changed:
            self._broker.log(topic, 0)
            self._topic, self._on_assigned, self._on_revoked = topic, on_assigned, on_revoked
            self._member = self._broker.groups.setdefault((self._group, topic), _Group())
            self._member.members.append(self)
            self._share_out(self._member)

    def assign(self, topic: str, offsets: Mapping[int, int]) -> None:
        """Read these partitions from these offsets (-1 = the end, -2 = the beginning, both as they are now)."""
        with self._broker.changed:
            ends = {p: len(self._broker.log(topic, p)) for p in offsets}
            self._topic = topic
            self._positions = {p: {-1: ends[p], -2: 0}.get(o, o) for p, o in offsets.items()}
            self._told.clear()
            self._paused.clear()

    def poll(self, timeout_s: float, max_records: int) -> Batch:
        """What has arrived, at most `max_records`; waits up to `timeout_s` for the first. May be empty."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._rebalance()
            with self._broker.changed:
                batch = self._take(max_records)
                left = deadline - time.monotonic()
                if len(batch) or batch.next_offsets or left <= 0:
                    return batch
                self._broker.changed.wait(left)

    def _take(self, max_records: int) -> Batch:
        batch = Batch(self._topic)
        for partition in list(self._positions):
            if len(batch) >= max_records:
                break
            if partition in self._paused:
                continue
            log = self._broker.log(self._topic, partition)
            start = self._positions.pop(partition)  # and back in at the end: the next poll begins with another one
            start = start if 0 <= start <= len(log) else 0  # out of range: from the beginning, as Kafka is told to
            end = min(len(log), start + max_records - len(batch))
            self._positions[partition] = end
            batch.partitions += [partition] * (end - start)
            batch.offsets += range(start, end)
            batch.timestamps += log.timestamps[start:end]
            batch.keys += log.keys[start:end]
            batch.values += log.values[start:end]
            batch.headers += log.headers[start:end]
            if self._told.get(partition) != end:
                self._told[partition] = batch.next_offsets[partition] = end
        return batch

    def commit(self, offsets: Mapping[int, int], metadata: str = "") -> None:
        """Commit `partition -> next offset` for the group."""
        if not offsets:
            return
        if self._group is None:
            raise BrokerError("a consumer without a group has nothing to commit to", do="Give it a group.")
        with self._broker.changed:
            for partition in offsets:
                self._broker.log(self._topic, partition)
                if self._member is not None and self._member.owner.get(partition) is not self:
                    raise BrokerError(
                        f"committing offsets of {self._topic}: the consumer group has moved on without this member",
                        do="Poll on: this member joins again, and what was not committed is read again.",
                    )
            known = self._broker.commits.setdefault((self._group, self._topic), {})
            known.update({p: (offset, metadata) for p, offset in offsets.items()})

    def committed(self, partitions: Collection[int]) -> dict[int, tuple[int, str] | None]:
        """`partition -> (offset, metadata)` as committed by the group, None where nothing is."""
        with self._broker.changed:
            known = self._broker.commits.get((self._group or "", self._topic), {})
            return {p: known.get(p) for p in partitions}

    def seek(self, partition: int, offset: int) -> None:
        """The next poll of an assigned partition starts at `offset`."""
        with self._broker.changed:
            if partition not in self._positions:
                raise BrokerError(f"{self._topic}-{partition} is not assigned, so there is no going to {offset}")
            self._positions[partition] = offset
            self._told.pop(partition, None)

    def pause(self, partitions: Collection[int]) -> None:
        """Fetch nothing from these until `resume`."""
        self._paused |= set(partitions)

    def resume(self, partitions: Collection[int]) -> None:
        """Undo `pause`."""
        self._paused -= set(partitions)

    def beginning_offsets(self, partitions: Collection[int]) -> dict[int, int]:
        """The first offset of each partition: always 0."""
        with self._broker.changed:
            return {p: 0 for p in partitions if len(self._broker.log(self._topic, p)) >= 0}

    def end_offsets(self, partitions: Collection[int]) -> dict[int, int]:
        """The offset after the last record of each partition."""
        with self._broker.changed:
            return {p: len(self._broker.log(self._topic, p)) for p in partitions}

    def lag(self) -> dict[int, int]:
        """Records between the position and the end, for each assigned partition."""
        with self._broker.changed:
            return {p: len(self._broker.log(self._topic, p)) - position for p, position in self._positions.items()}

    def close(self) -> None:
        """Leave the group. Does not commit; `on_revoked` is called for what was assigned."""
        group = self._member
        if group is None:
            return
        if self._positions:
            self._on_revoked(set(self._positions))
        with self._broker.changed:
            self._positions.clear()
            self._member = None
            group.members.remove(self)
            group.owner = {p: owner for p, owner in group.owner.items() if owner is not self}
            self._share_out(group)
            self._broker.changed.notify_all()

    def _share_out(self, group: _Group) -> None:
        """Even shares, moving as few partitions as that takes. Members act on it in their next polls."""
        partitions = range(len(self._broker.logs[self._topic])) if self._topic in self._broker.logs else range(0)
        group.target = {p: member for p, member in group.target.items() if member in group.members}
        if not group.members:
            return
        held = {id(member): [p for p, m in group.target.items() if m is member] for member in group.members}
        free = [p for p in partitions if p not in group.target]
        while True:
            least = min(group.members, key=lambda m: len(held[id(m)]))
            most = max(group.members, key=lambda m: len(held[id(m)]))
            if free:
                partition = free.pop(0)
            elif len(held[id(most)]) - len(held[id(least)]) > 1:
                partition = held[id(most)].pop()
            else:
                break
            held[id(least)].append(partition)
            group.target[partition] = least
        self._broker.changed.notify_all()

    def _rebalance(self) -> None:
        """Let go of what went to another member, then take what is ours and free: nobody ever shares a partition."""
        group = self._member
        if group is None:
            return
        with self._broker.changed:
            gone = {p for p in self._positions if group.target.get(p) is not self}
        if gone:
            self._on_revoked(gone)  # outside the lock: it commits, and may take its time
        with self._broker.changed:
            for partition in gone:
                self._positions.pop(partition, None)
                self._told.pop(partition, None)
                self._paused.discard(partition)
                group.owner.pop(partition, None)
            if gone:
                self._broker.changed.notify_all()
            new = {p for p, member in group.target.items() if member is self and p not in group.owner}
            known = self._broker.commits.get((self._group or "", self._topic), {})
            for partition in sorted(new):
                group.owner[partition] = self
                self._positions[partition] = known.get(partition, (0, ""))[0]
        if new or not self._joined:
            self._joined = True
            self._on_assigned(new)
