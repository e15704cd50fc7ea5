"""Consuming from a `MemoryBroker`."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from typing_extensions import override

from tidecast.service.broker.client import no_group, not_assigned
from tidecast.service.broker.memory.cluster import Cluster, Group
from tidecast.service.broker.port import Batch, Consumer, metadata_of
from tidecast.service.errors import BrokerError, InstanceFenced, MemberEvicted

Callback = Callable[[set[int]], None]


def _nothing(partitions: set[int]) -> None:
    """The callbacks of a consumer that has not subscribed."""


class MemoryConsumer(Consumer):
    """Made by `MemoryBroker.consumer`."""

    def __init__(self, cluster: Cluster, group: str | None, isolation: str, instance: str | None) -> None:
        self._cluster = cluster
        self._group = group
        self.instance = instance
        self.fenced = False  # another member has the instance id
        self._committed = isolation == "read_committed"
        self._topic = ""
        self._positions: dict[int, int] = {}  # of the partitions that are read
        self._returned: dict[int, int] = {}  # positions as last returned by `poll`
        self._paused: set[int] = set()
        self._member: Group | None = None
        self._closed = False
        self._refused: BrokerError | None = None  # the error of `commit_async`
        self._joined = False  # the callback was called, even with no partition
        self._on_assigned: Callback = _nothing
        self._on_revoked: Callback = _nothing

    @override
    def subscribe(self, topic: str, on_assigned: Callback, on_revoked: Callback) -> None:
        if self._group is None:
            raise no_group("cannot subscribe")
        with self._cluster.changed:
            self._cluster.log(topic, 0)
            self._topic, self._on_assigned, self._on_revoked = topic, on_assigned, on_revoked
            self._member = self._cluster.groups.setdefault((self._group, topic), Group())
            self._fence_instance(self._member)
            self._member.members.append(self)
            self._assign_evenly(self._member)

    def _fence_instance(self, group: Group) -> None:
        """Fence another member with our instance id, and take its partitions."""
        for former in [m for m in group.members if self.instance is not None and m.instance == self.instance]:
            former.fenced = True
            group.members.remove(former)
            group.target = {p: self if m is former else m for p, m in group.target.items()}
            group.owner = {p: m for p, m in group.owner.items() if m is not former}

    def _require_instance(self, doing: str) -> None:
        if self.fenced:
            raise InstanceFenced(doing, self.instance)

    @override
    def assign(self, topic: str, offsets: Mapping[int, int]) -> None:
        with self._cluster.changed:
            ends = {p: self._cluster.log(topic, p).end(self._committed) for p in offsets}
            self._topic = topic
            self._positions = {p: {-1: ends[p], -2: 0}.get(o, o) for p, o in offsets.items()}
            self._returned.clear()
            self._paused.clear()

    @override
    def poll(self, timeout_s: float, max_records: int) -> Batch:
        deadline = time.monotonic() + timeout_s
        while True:
            self._require_instance(f"reading {self._topic}")
            self._rebalance()
            with self._cluster.changed:
                batch = self._take(max_records)
                left = deadline - time.monotonic()
                if len(batch) or batch.next_offsets or left <= 0:
                    return batch
                self._cluster.changed.wait(left)

    def _take(self, max_records: int) -> Batch:
        batch = Batch(self._topic)
        for partition in list(self._positions):
            if len(batch) >= max_records:
                break
            if partition in self._paused:
                continue
            log = self._cluster.log(self._topic, partition)
            start = self._positions.pop(partition)  # and appended again: the next poll starts with another one
            start = start if 0 <= start <= len(log) else 0  # out of range: from the beginning, as with Kafka
            offsets, end = log.read(start, max_records - len(batch), self._committed)
            self._positions[partition] = end
            batch.partitions += [partition] * len(offsets)
            batch.offsets += offsets
            if isinstance(offsets, range):
                batch.timestamps += log.timestamps[start:end]
                batch.keys += log.keys[start:end]
                batch.values += log.values[start:end]
                batch.headers += log.headers[start:end]
            else:
                batch.timestamps += [log.timestamps[o] for o in offsets]
                batch.keys += [log.keys[o] for o in offsets]
                batch.values += [log.values[o] for o in offsets]
                batch.headers += [log.headers[o] for o in offsets]
            if self._returned.get(partition) != end:
                self._returned[partition] = batch.next_offsets[partition] = end
        return batch

    @override
    def commit(self, offsets: Mapping[int, int], metadata: str | Mapping[int, str] = "") -> None:
        if not offsets:
            return
        texts = metadata_of(offsets, metadata)
        with self._cluster.changed:
            name = self.may_commit(self._topic, offsets), self._topic
            group = self._cluster.groups.get(name)
            if self._member is None and group is not None and group.members:
                # from outside, offsets are accepted only for a group without members
                raise MemberEvicted(f"committing offsets of {self._topic}")
            known = self._cluster.commits.setdefault(name, {})
            known.update({p: (offset, texts[p]) for p, offset in offsets.items()})

    @override
    def commit_async(self, offsets: Mapping[int, int], metadata: str | Mapping[int, str] = "") -> None:
        self._refused = None
        try:
            self.commit(offsets, metadata)
        except BrokerError as error:
            self._refused = error

    @override
    def commit_acknowledged(self) -> bool:
        if self._refused is not None:
            raise self._refused
        return True

    def may_commit(self, topic: str, partitions: Collection[int]) -> str:
        """The group for which this consumer may commit offsets of these partitions; MemberEvicted where it may not."""
        if self._group is None:
            raise no_group("has nothing to commit to")
        for partition in partitions:
            self._cluster.log(topic, partition)
        self._require_instance(f"committing offsets of {topic}")
        member = self._member
        mine = member is None or all(member.owner.get(p) is self and self in member.members for p in partitions)
        if self._closed or topic != self._topic or not mine:
            raise MemberEvicted(f"committing offsets of {topic}")
        return self._group

    @override
    def committed(self, partitions: Collection[int]) -> dict[int, tuple[int, str] | None]:
        if self._group is None and partitions:
            raise no_group("has nothing committed")
        group = (self._group or "", self._topic)
        with self._cluster.changed:
            if not self._cluster.changed.wait_for(lambda: self._decided(partitions), self._cluster.timeout_s):
                raise BrokerError(
                    f"asking for the committed offsets of {self._topic}: a transaction holds them back for more than "
                    f"{self._cluster.timeout_s:g} s",
                    do="End it, by a producer with its transactional id.",
                )
            known = self._cluster.commits.get(group, {})
            return {p: known.get(p) for p in partitions}

    def _decided(self, partitions: Collection[int]) -> bool:
        undecided = self._cluster.undecided.get((self._group or "", self._topic), {})
        return not any(undecided.get(p) for p in partitions)

    @override
    def verify_instance(self) -> None:
        self._require_instance(f"asking for our place in the group {self._group}")

    @override
    def seek(self, partition: int, offset: int) -> None:
        with self._cluster.changed:
            if partition not in self._positions:
                raise not_assigned(self._topic, partition, offset)
            self._positions[partition] = offset
            self._returned.pop(partition, None)

    @override
    def pause(self, partitions: Collection[int]) -> None:
        self._paused |= set(partitions)

    @override
    def resume(self, partitions: Collection[int]) -> None:
        self._paused -= set(partitions)

    @override
    def beginning_offsets(self, partitions: Collection[int]) -> dict[int, int]:
        with self._cluster.changed:
            return {p: 0 for p in partitions if len(self._cluster.log(self._topic, p)) >= 0}

    @override
    def end_offsets(self, partitions: Collection[int]) -> dict[int, int]:
        with self._cluster.changed:
            return {p: self._cluster.log(self._topic, p).end(self._committed) for p in partitions}

    @override
    def lag(self) -> dict[int, int]:
        with self._cluster.changed:
            return {p: len(self._cluster.log(self._topic, p)) - position for p, position in self._positions.items()}

    @override
    def close(self) -> None:
        group = self._member
        if group is None:
            self._closed = True
            return
        if self._positions:
            self._on_revoked(set(self._positions))
        with self._cluster.changed:
            self._closed = True
            self._positions.clear()
            self._member = None
            if self in group.members:
                group.members.remove(self)
            group.owner = {p: owner for p, owner in group.owner.items() if owner is not self}
            self._assign_evenly(group)
            self._cluster.changed.notify_all()

    def _assign_evenly(self, group: Group) -> None:
        """Assign evenly, moving as few partitions as possible. Members act on it in their next polls."""
        partitions = range(len(self._cluster.logs[self._topic])) if self._topic in self._cluster.logs else range(0)
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
        self._cluster.changed.notify_all()

    def _rebalance(self) -> None:
        """Release what went to another member, then take what is ours and free: no partition has two owners."""
        group = self._member
        if group is None:
            return
        with self._cluster.changed:
            gone = {p for p in self._positions if group.target.get(p) is not self}
        if gone:
            self._on_revoked(gone)  # outside the lock: it commits, and may take its time
        with self._cluster.changed:
            for partition in gone:
                self._positions.pop(partition, None)
                self._returned.pop(partition, None)
                self._paused.discard(partition)
                group.owner.pop(partition, None)
            if gone:
                self._cluster.changed.notify_all()
            new = {p for p, member in group.target.items() if member is self and p not in group.owner}
            new = {p for p in new if self._decided([p])}  # the start is not known before
            known = self._cluster.commits.get((self._group or "", self._topic), {})
            for partition in sorted(new):
                group.owner[partition] = self
                self._positions[partition] = known.get(partition, (0, ""))[0]
        if new or not self._joined:
            self._joined = True
            self._on_assigned(new)
