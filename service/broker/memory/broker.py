"""The port without a Kafka: topics in this process's memory, for `tidecast replay` and for tests.

Partitioning, offsets, groups, commits and transactions behave as Kafka's do, except for time limits: no silent member
is evicted (so a static member leaves when it closes), and no old transaction is aborted. Thread-safe. Only whole topics
are deleted.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from typing_extensions import override

from tidecast.service.broker.memory.cluster import Cluster, Log
from tidecast.service.broker.memory.consumer import MemoryConsumer
from tidecast.service.broker.memory.producer import MemoryProducer
from tidecast.service.broker.port import DYNAMIC, Broker, Consumer, Membership, Producer, TopicInfo
from tidecast.service.errors import BrokerError

_DEFAULT_CONFIG = {"cleanup.policy": "delete", "retention.ms": "604800000", "retention.bytes": "-1"}


class MemoryBroker(Cluster, Broker):
    """A cluster that ends with this object; its consumers and producers share it."""

    @override
    def consumer(
        self, *, group: str | None = None, isolation: str = "read_committed", membership: Membership = DYNAMIC
    ) -> Consumer:
        return MemoryConsumer(self, group, isolation, membership.instance)

    @override
    def producer(self, *, transactional_id: str | None = None) -> Producer:
        return MemoryProducer(self, transactional_id)

    @override
    def describe(self, topic: str) -> TopicInfo | None:
        with self.changed:
            logs = self.logs.get(topic)
            return None if logs is None else TopicInfo(self.ids[topic], len(logs))

    @override
    def create_topic(self, topic: str, partitions: int, config: Mapping[str, str] | None = None) -> bool:
        if partitions < 1:
            raise BrokerError(f"making the topic {topic}: it needs at least one partition", got=partitions)
        with self.changed:
            if topic in self.logs:
                return False
            self.logs[topic] = [Log() for _ in range(partitions)]
            self.ids[topic] = uuid.uuid4().hex
            self.configs[topic] = _DEFAULT_CONFIG | dict(config or {})
            return True

    @override
    def delete_topic(self, topic: str) -> bool:
        """Remove the topic and what groups committed for it; False where there was none."""
        with self.changed:
            for known in [key for key in self.commits if key[1] == topic]:
                del self.commits[known]
            return self.logs.pop(topic, None) is not None

    @override
    def topic_config(self, topic: str) -> dict[str, str]:
        """The settings that the topic was made with, and a few of Kafka's defaults."""
        self.log(topic, 0)
        return dict(self.configs[topic])

    @override
    def topics(self) -> dict[str, int]:
        with self.changed:
            return {topic: len(logs) for topic, logs in self.logs.items()}

    @override
    def group_members(self, group: str, topic: str) -> dict[str, frozenset[int]] | None:
        with self.changed:
            found = self.groups.get((group, topic))
            if found is None or not found.members or found.owner != found.target:
                return None
            return {
                str(i): frozenset(p for p, owner in found.owner.items() if owner is member)
                for i, member in enumerate(found.members)
            }

    @override
    def evict(self, group: str, member: str) -> None:
        """Nothing: a member's next poll takes what is free, so no partition stays without an owner."""

    @override
    def close(self) -> None:
        pass
