"""A consumer on kafka-python."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition, errors
from kafka.consumer.fetcher import IsolationLevel
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.structs import ConsumerGroupMetadata
from typing_extensions import override

from tidecast.service.broker.client import log_unread, no_group, no_partition, without_null
from tidecast.service.broker.kafka_python.client import KafkaPythonClient, poll
from tidecast.service.broker.kafka_python.group import KafkaPythonMember
from tidecast.service.broker.kafka_python.unpacking import limit_unpacking
from tidecast.service.broker.port import Batch, Consumer, Membership, metadata_of
from tidecast.service.errors import BrokerError, MemberEvicted

log = logging.getLogger("tidecast.broker")

_CLOSE_TIMEOUT_MS = 5_000
_ASK_SECONDS = 10.0
_ASK_AGAIN_MS = 20  # the library's default is 100


class KafkaPythonConsumer(Consumer):
    """Made by `KafkaPythonBroker.consumer`. Not thread-safe: for one caller's thread."""

    def __init__(
        self,
        client: KafkaPythonClient,
        count: Callable[[str], int | None],
        *,
        group: str | None,
        isolation: str,
        membership: Membership,
    ) -> None:
        self.client = self._client = client.for_instance(membership.instance)
        self._count = count
        self._group = group
        self._topic = ""
        self._positions: dict[int, int] = {}  # as last returned by `poll`
        self._owned: set[int] = set()  # assigned by the group, as the callbacks reported
        self._member: KafkaPythonMember | None = None
        self._answers: list[Any] = []  # of the last `commit_async`
        options = client.options() | {
            "group_id": group,
            "isolation_level": isolation,
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            "allow_auto_create_topics": False,
            "partition_assignment_strategy": (CooperativeStickyAssignor,),
            "session_timeout_ms": int(membership.session_timeout_s * 1_000),
            "group_instance_id": membership.instance,
            "heartbeat_interval_ms": 1_000,  # how soon a member notices a rebalance
            # Commits wait behind a fetch on the same connection, at most this long if nothing arrives.
            "fetch_max_wait_ms": 100,
            # What the library may buffer; records are decoded only when they are polled.
            "fetch_max_bytes": 16 << 20,
            "max_partition_fetch_bytes": 2 << 20,
            "metrics_enabled": False,
        }
        if group is None:  # it has just connected when it must read, and waits this long for the topic's leaders
            options["retry_backoff_ms"] = _ASK_AGAIN_MS
        self._kafka: Any = client.call("connecting to consume", lambda: KafkaConsumer(**options))
        self._unread = limit_unpacking(self._kafka)
        if group is not None:
            # OffsetFetch asks for stable offsets only (KIP-447), for readers of all records too: docs/upstream.md, K5.
            self._kafka._coordinator._isolation_level = IsolationLevel.READ_COMMITTED

    @override
    def subscribe(
        self, topic: str, on_assigned: Callable[[set[int]], None], on_revoked: Callable[[set[int]], None]
    ) -> None:
        if self._group is None:
            raise no_group("cannot subscribe")
        self._require(topic)
        self._topic = topic

        def assigned(partitions: set[int]) -> None:
            self._owned |= partitions
            on_assigned(partitions)

        def revoked(partitions: set[int]) -> None:
            try:
                on_revoked(partitions)
            finally:
                self._owned -= partitions
            for partition in partitions:
                self._positions.pop(partition, None)

        self._member = member = KafkaPythonMember(self._kafka, assigned, revoked)
        with self._client.errors(f"subscribing to {topic}"):
            member.subscribe(topic)
        # A short limit: a client that met the broker as it went away may never ask again.
        soon = self._client.with_timeout(min(_ASK_SECONDS, self._client.timeout_s))
        soon.call(f"asking for the partitions of {topic}", lambda: member.wait_for_partitions(topic, soon.timeout_s))

    @override
    def assign(self, topic: str, offsets: Mapping[int, int]) -> None:
        count = self._require(topic)
        if wrong := [p for p in offsets if not 0 <= p < count]:
            raise no_partition(topic, count, wrong[0])
        self._topic = topic
        self._positions = {}
        with self._client.errors(f"reading {topic}"):
            self._kafka.assign([self._tp(p) for p in offsets])
            self._kafka.resume(*map(self._tp, offsets))  # the library remembers that one was paused before
            # now: the library would ask at the first fetch, and skip what arrives in between
            ends = self.end_offsets([p for p, o in offsets.items() if o == -1])
            starts = self.beginning_offsets([p for p, o in offsets.items() if o == -2])
            for partition, offset in ({**offsets} | ends | starts).items():
                self._kafka.seek(self._tp(partition), offset)

    @override
    def poll(self, timeout_s: float, max_records: int) -> Batch:
        with self._client.errors(f"reading {self._topic}"):
            if self._member is None:
                found: dict[TopicPartition, Any] | None = poll(self._kafka, int(timeout_s * 1_000), max_records)
            else:
                found = self._member.poll(timeout_s, max_records, self._client.timeout_s)
            return Batch(self._topic) if found is None else self._batch(found)

    def _batch(self, found: dict[TopicPartition, list[Any]]) -> Batch:
        batch = Batch(self._topic)
        for tp, records in found.items():
            batch.partitions += [tp.partition] * len(records)
            batch.offsets += [record.offset for record in records]
            batch.timestamps += [record.timestamp for record in records]
            batch.keys += [record.key for record in records]
            batch.values += [record.value for record in records]
            batch.headers += [without_null(record.headers) if record.headers else () for record in records]
        if self._unread:
            batch.unread, self._unread[:] = [*self._unread], []
            log_unread(batch)
        # Positions include what is never returned (transaction markers, compacted records). Without records, or
        # with a batch that was not read, all partitions are checked: one of them may have nothing else.
        for tp in found if found and not batch.unread else self._kafka.assignment():
            position = self._kafka.position(tp, timeout_ms=0)
            if position is not None and self._positions.get(tp.partition) != position:
                self._positions[tp.partition] = batch.next_offsets[tp.partition] = position
        return batch

    @override
    def commit(self, offsets: Mapping[int, int], metadata: str | Mapping[int, str] = "") -> None:
        if not offsets:
            return
        with self._client.errors(f"committing offsets of {self._topic}"):
            self._kafka.commit(self._named(offsets, metadata), timeout_ms=self._client.timeout_ms)

    @override
    def commit_async(self, offsets: Mapping[int, int], metadata: str | Mapping[int, str] = "") -> None:
        answers = self._answers = []
        with self._client.errors(f"committing offsets of {self._topic}"):
            self._kafka.commit_async(self._named(offsets, metadata), lambda _, answer: answers.append(answer))

    @override
    def commit_acknowledged(self) -> bool:
        with self._client.errors(f"committing offsets of {self._topic}"):
            for answer in self._answers:
                if isinstance(answer, Exception):
                    raise answer
        return bool(self._answers)

    def _named(
        self, offsets: Mapping[int, int], metadata: str | Mapping[int, str]
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        texts = metadata_of(offsets, metadata)
        return {self._tp(p): OffsetAndMetadata(offset, texts[p], -1) for p, offset in offsets.items()}

    @override
    def committed(self, partitions: Collection[int]) -> dict[int, tuple[int, str] | None]:
        if not partitions:
            return {}
        if self._group is None:
            raise no_group("has nothing committed")
        coordinator, tps = self._kafka._coordinator, {p: self._tp(p) for p in partitions}
        # A short limit: a coordinator that went away is found again by polling, not by this call.
        soon = self._client.with_timeout(min(_ASK_SECONDS, self._client.timeout_s))

        async def ask() -> dict[TopicPartition, Any]:
            # A new request: the library would use the answer to an earlier one (docs/upstream.md, K9).
            coordinator._offset_fetch_futures.pop(frozenset(tps.values()), None)
            found: dict[TopicPartition, Any] = await coordinator.fetch_committed_offsets_async(
                list(tps.values()), timeout_ms=soon.timeout_ms
            )
            return found

        with soon.errors(f"asking for the committed offsets of {self._topic}"):
            found = self._kafka._net.run(ask)
        # confluent-kafka ends its texts with a zero.
        return {
            p: (found[tp].offset, found[tp].metadata.rstrip("\0")) if tp in found else None for p, tp in tps.items()
        }

    def membership(self, topic: str, partitions: Collection[int]) -> ConsumerGroupMetadata:
        """The identity with which this consumer may commit offsets of these partitions; Kafka checks it (KIP-447).

        Raises:
            MemberEvicted: it is no longer in the group, or has lost the partitions.
            FencedInstanceIdError: another process has its instance id, as a heartbeat found out.
        """
        if self._group is None:
            raise no_group("has nothing to commit to")
        if self._member is not None:
            self._member.check()
        found = self._kafka.group_metadata()
        # Kafka does not check a transaction without a member id, and the library has none after a heartbeat found the
        # member evicted.
        out = self._member is not None and (found.generation_id < 0 or not found.member_id)
        if out or topic != self._topic or (self._member is not None and not self._owned.issuperset(partitions)):
            raise MemberEvicted(f"committing offsets of {topic}")
        return found

    @override
    def verify_instance(self) -> None:
        if self._member is not None and self._client.instance is not None:
            with self._client.errors(f"asking for our place in the group {self._group}"):
                self._member.verify_instance(self._client.timeout_s)

    @override
    def seek(self, partition: int, offset: int) -> None:
        with self._client.errors(f"going to offset {offset} of {self._topic}-{partition}"):
            self._for_each([partition], lambda tp: self._kafka.seek(tp, offset))
        self._positions.pop(partition, None)

    @override
    def pause(self, partitions: Collection[int]) -> None:
        with self._client.errors(f"pausing partitions of {self._topic}"):
            self._for_each(partitions, self._kafka.pause)

    @override
    def resume(self, partitions: Collection[int]) -> None:
        with self._client.errors(f"resuming partitions of {self._topic}"):
            self._for_each(partitions, self._kafka.resume)

    def _for_each(self, partitions: Collection[int], do: Callable[[TopicPartition], object]) -> None:
        """Skips what the group has revoked already, if the caller has not been notified yet: it will be."""
        for partition in partitions:
            try:
                do(self._tp(partition))
            except (KeyError, ValueError):
                if partition not in self._owned or self._tp(partition) in self._kafka.assignment():
                    raise

    @override
    def beginning_offsets(self, partitions: Collection[int]) -> dict[int, int]:
        return self._offsets(self._kafka.beginning_offsets, partitions)

    @override
    def end_offsets(self, partitions: Collection[int]) -> dict[int, int]:
        return self._offsets(self._kafka.end_offsets, partitions)

    def _offsets(self, ask: Callable[..., dict[Any, int]], partitions: Collection[int]) -> dict[int, int]:
        if not partitions:
            return {}
        with self._client.errors(f"asking for the offsets of {self._topic}"):
            found = ask([self._tp(p) for p in partitions], timeout_ms=self._client.timeout_ms)
        return {tp.partition: offset for tp, offset in found.items()}

    @override
    def lag(self) -> dict[int, int]:
        found = {}
        with self._client.errors(f"asking for the lag of {self._topic}"):
            for tp in self._kafka.assignment():
                end = self._kafka.highwater(tp)
                if end is not None and (position := self._positions.get(tp.partition)) is not None:
                    found[tp.partition] = max(0, end - position)
        return found

    @override
    def close(self) -> None:

        def leave() -> None:
            self._kafka.close(autocommit=False, timeout_ms=_CLOSE_TIMEOUT_MS)

        try:
            if self._member is None:
                self._client.call("leaving", leave)
            else:
                self._member.leave(leave, _CLOSE_TIMEOUT_MS / 1_000 + self._client.timeout_s)
        except (BrokerError, errors.KafkaError, OSError, RuntimeError) as error:
            log.debug("leaving the group failed; the group notices at the end of the session", exc_info=error)

    def _require(self, topic: str) -> int:
        count = self._count(topic)
        if count is None:
            raise self._client.translate(errors.UnknownTopicOrPartitionError(), f"reading {topic}")
        return count

    def _tp(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topic, partition)
