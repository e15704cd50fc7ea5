"""Producing to a `MemoryBroker`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import cast

from typing_extensions import override

from tidecast.service.broker.client import no_id, no_offsets, not_open, open_already
from tidecast.service.broker.memory.cluster import Cluster, Log
from tidecast.service.broker.memory.consumer import MemoryConsumer
from tidecast.service.broker.partitioner import partition_for
from tidecast.service.broker.port import Consumer, OutgoingBatch, Producer
from tidecast.service.errors import Fenced


class MemoryProducer(Producer):
    """Made by `MemoryBroker.producer`. What it produces is there at once, or at the commit of its transaction."""

    def __init__(self, cluster: Cluster, transactional_id: str | None) -> None:
        self._cluster = cluster
        self._id = transactional_id
        self._unkeyed = 0
        self._open = False
        self._touched: list[Log] = []  # with records of the open transaction
        self._offered: list[tuple[tuple[str, str], dict[int, tuple[int, str]]]] = []  # (group, topic), its offsets
        if transactional_id is not None:
            with cluster.changed:
                if (former := cluster.transactional.get(transactional_id)) is not None:
                    former.end(commit=False)
                cluster.transactional[transactional_id] = self

    @override
    def produce(self, outgoing: OutgoingBatch) -> None:
        with self._cluster.changed:
            if self._id is not None:
                self._require_open()
            if len(outgoing):
                self._append(outgoing)
                self._cluster.changed.notify_all()

    def _append(self, outgoing: OutgoingBatch) -> None:
        cluster = self._cluster
        now = int(time.time() * 1_000)
        cluster.log(outgoing.topic, 0)
        logs = cluster.logs[outgoing.topic]
        partitions = [p for p in outgoing.partitions if p is not None]
        for partition in set(partitions):
            cluster.log(outgoing.topic, partition)
        if len(partitions) == len(outgoing) and len(set(partitions)) == 1:  # a file's replay: all in one go
            log = logs[partitions[0]]
            self._note(log, log.extend(outgoing, now))
            return
        for i, (asked, key) in enumerate(zip(outgoing.partitions, outgoing.keys, strict=True)):
            if asked is None:
                asked = self._any(len(logs)) if key is None else partition_for(key, len(logs))
            timestamp = outgoing.timestamps[i]
            when = now if timestamp is None else timestamp
            offset = logs[asked].append(key, outgoing.values[i], outgoing.headers[i], when)
            self._note(logs[asked], range(offset, offset + 1))

    def _note(self, log: Log, offsets: range) -> None:
        if self._open:
            if self not in log.open:
                self._touched.append(log)
            log.open.setdefault(self, []).extend(offsets)

    def _any(self, count: int) -> int:
        self._unkeyed += 1
        return self._unkeyed % count

    @override
    def flush(self, timeout_s: float) -> None:
        pass

    @override
    def begin(self) -> None:
        with self._cluster.changed:
            self._require_id()
            if self._open:
                raise open_already()
            self._open = True

    @override
    def commit_transaction(
        self, topic: str, offsets: Mapping[int, tuple[int, str]], consumer: Consumer, timeout_s: float
    ) -> None:
        with self._cluster.changed:
            self.offer(topic, offsets, consumer)
            self.end(commit=True)

    def offer(self, topic: str, offsets: Mapping[int, tuple[int, str]], consumer: Consumer) -> None:
        """The first half of a commit: the transaction holds the offsets, and its end decides on them."""
        with self._cluster.changed:
            self._require_open()
            if not offsets:
                raise no_offsets()
            group = cast(MemoryConsumer, consumer).may_commit(topic, offsets)
            self._offered.append(((group, topic), dict(offsets)))
            undecided = self._cluster.undecided.setdefault((group, topic), {})
            for partition in offsets:
                undecided.setdefault(partition, set()).add(self)

    def end(self, *, commit: bool) -> None:
        """End the open transaction, if there is one: its records and its offsets, all or none."""
        cluster = self._cluster
        with cluster.changed:
            for log in self._touched:
                log.settle(self, commit, int(time.time() * 1_000))
            for group, offsets in self._offered:
                if commit:
                    cluster.commits.setdefault(group, {}).update(offsets)
                for partition in offsets:
                    cluster.undecided[group][partition].discard(self)
            self._open = False
            self._touched.clear()
            self._offered.clear()
            cluster.changed.notify_all()

    def _require_id(self) -> None:
        if self._id is None:
            raise no_id()
        if self._cluster.transactional.get(self._id) is not self:
            raise Fenced(
                f"another producer has taken the transactional id {self._id}",
                do="Give every worker of a group a transactional id of its own.",
            )

    def _require_open(self) -> None:
        self._require_id()
        if not self._open:
            raise not_open()

    @override
    def close(self) -> None:
        pass
