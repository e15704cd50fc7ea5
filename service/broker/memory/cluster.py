"""What all parts of a `MemoryBroker` share: the records of each partition, the groups, offsets and transactions."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tidecast.service.broker.client import no_partition
from tidecast.service.broker.port import Headers, OutgoingBatch
from tidecast.service.errors import BrokerError


class TransactionOwner(Protocol):
    """A producer with a transactional id."""

    def end(self, *, commit: bool) -> None:
        """End its open transaction, if there is one."""


class GroupMember(Protocol):
    """A consumer that subscribed."""

    instance: str | None
    fenced: bool  # another member has its instance id


@dataclass(slots=True)
class Log:
    """One partition: parallel lists, an offset is an index."""

    keys: list[bytes | None] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)
    headers: list[Headers] = field(default_factory=list)
    timestamps: list[int] = field(default_factory=list)  # ms
    open: dict[TransactionOwner, list[int]] = field(default_factory=dict)  # the offsets of each open transaction
    markers: set[int] = field(default_factory=set)  # offsets of transaction markers, which no reader sees
    aborted: set[int] = field(default_factory=set)  # offsets that only readers of uncommitted records see

    def __len__(self) -> int:
        return len(self.keys)

    def extend(self, outgoing: OutgoingBatch, now: int) -> range:
        """Append all of them; their offsets."""
        start = len(self)
        self.keys += outgoing.keys
        self.values += outgoing.values
        self.headers += outgoing.headers
        self.timestamps += [now if t is None else t for t in outgoing.timestamps]
        return range(start, len(self))

    def append(self, key: bytes | None, value: bytes | None, headers: Headers, timestamp: int) -> int:
        """Append one; its offset."""
        self.keys.append(key)
        self.values.append(value)
        self.headers.append(headers)
        self.timestamps.append(timestamp)
        return len(self) - 1

    def end(self, committed: bool) -> int:
        """The offset after the last record; for readers of committed ones, the first undecided offset."""
        if committed and self.open:
            return min(offsets[0] for offsets in self.open.values())
        return len(self)

    def read(self, start: int, count: int, committed: bool) -> tuple[Sequence[int], int]:
        """The offsets of at most `count` records from `start` that a reader sees, and where it continues."""
        end = self.end(committed)
        if not self.markers:
            stop = max(start, min(end, start + count))
            return range(start, stop), stop
        offsets: list[int] = []
        at = start
        while at < end and len(offsets) < count:
            if at not in self.markers and not (committed and at in self.aborted):
                offsets.append(at)
            at += 1
        return offsets, at

    def settle(self, producer: TransactionOwner, commit: bool, now: int) -> None:
        """End the producer's transaction in this partition."""
        offsets = self.open.pop(producer)
        if not commit:
            self.aborted.update(offsets)
        self.markers.add(self.append(None, None, (), now))


@dataclass(slots=True)
class Group:
    """The members that subscribed to one topic, and who reads what."""

    members: list[GroupMember] = field(default_factory=list)
    target: dict[int, GroupMember] = field(default_factory=dict)  # who should have a partition
    owner: dict[int, GroupMember] = field(default_factory=dict)  # who has it until it releases it


class Cluster:
    """The state of a `MemoryBroker`.

    `timeout_s` limits the wait for committed offsets that a transaction still holds back.
    """

    def __init__(self, *, timeout_s: float = 60.0) -> None:
        self.timeout_s = timeout_s
        self.changed = threading.Condition(threading.RLock())  # guards all that follows
        self.logs: dict[str, list[Log]] = {}
        self.ids: dict[str, str] = {}
        self.groups: dict[tuple[str, str], Group] = {}
        self.commits: dict[tuple[str, str], dict[int, tuple[int, str]]] = {}
        self.configs: dict[str, dict[str, str]] = {}
        self.transactional: dict[str, TransactionOwner] = {}  # transactional id -> who has it
        # (group, topic) -> partition -> the producers whose open transactions hold offsets of it
        self.undecided: dict[tuple[str, str], dict[int, set[TransactionOwner]]] = {}

    def log(self, topic: str, partition: int) -> Log:
        """One partition's records; BrokerError where there is none."""
        logs = self.logs.get(topic)
        if logs is None:
            raise BrokerError(f"there is no topic {topic}", do="Make it: tidecast topics create")
        if not 0 <= partition < len(logs):
            raise no_partition(topic, len(logs), partition)
        return logs[partition]
