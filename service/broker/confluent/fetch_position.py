"""Which partitions a consumer on librdkafka reads, and its position in each of them.

The library ignores a `seek` for a partition that is paused or not assigned yet, and refuses one that it is about to
start reading; that may last while Kafka is away (docs/upstream.md, C6). So the offset is kept here until the library
has accepted it, and until then no record of such a partition is returned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException, TopicPartition

from tidecast.service.broker.client import Failure
from tidecast.service.broker.confluent.client import ConfluentClient
from tidecast.service.broker.confluent.group import ConfluentMember
from tidecast.service.broker.confluent.message_batch import MessageBuffer, batch_of, without
from tidecast.service.broker.port import Batch, Consumer, UnreadBatch

_AGAIN_PAUSE_S = 0.005
_CONNECT_S = 1.0
_ASK_S = 1.0


class FetchPositions:
    """For one caller's thread.

    Args:
        client: where, and how long to wait.
        kafka: a Consumer of the library; may be replaced, followed by `clear`.
        grouped: whether it has a group.
        reader: makes a consumer of kafka-python, which finds the end of a batch that cannot be unpacked.
    """

    def __init__(self, client: ConfluentClient, kafka: Any, grouped: bool, reader: Callable[[], Consumer]) -> None:
        self.topic = ""
        self._client, self._reader = client, reader
        self.kafka = kafka
        self.member: ConfluentMember | None = None
        self._buffer = MessageBuffer(client, grouped)
        self._to_assign: dict[int, int] = {}  # done by the first poll: asking for offsets needs no fetching
        self._assigned: set[int] = set()  # by `assign`
        self._positions: dict[int, int] = {}  # as last returned by `next`
        self._paused: set[int] = set()
        self._seeks: dict[int, int] = {}  # the offsets to continue at that the library has not accepted yet
        self._starts: dict[int, int] = {}  # the start of those that were revoked and assigned again within one call

    def clear(self) -> None:
        """Read nothing any more."""
        for known in (self._positions, self._seeks, self._starts, self._paused, self._buffer):
            known.clear()

    @property
    def partitions(self) -> Collection[int]:
        """Those that are read, with the paused ones."""
        return self._assigned if self.member is None else self.member.owned

    def assign(self, offsets: Mapping[int, int]) -> None:
        """Read these and nothing else."""
        self.clear()
        self._assigned, self._to_assign = set(offsets), dict(offsets)

    def take(
        self,
        partitions: Collection[int],
        begin_of: Callable[[Collection[int], Collection[int]], Mapping[int, int]],
    ) -> None:
        """Start reading assigned partitions; `seek` and `pause` were called before, if at all.

        `begin_of(partitions, again)` returns where to start, for those where the library does not ask itself; `again`
        are those that were revoked in the same call.
        """
        again = set() if self.member is None else self.member.gone.intersection(partitions)
        begin = {**dict.fromkeys(partitions, OFFSET_INVALID), **begin_of(partitions, again)}
        starts = {p: self._seeks.pop(p, begin[p]) for p in partitions}
        self._starts |= {p: starts[p] for p in again}
        self.kafka.incremental_assign([self.tp(p, offset) for p, offset in starts.items()])
        if paused := self._paused.intersection(partitions):
            self.kafka.pause(list(map(self.tp, paused)))

    def drop(self, partitions: Collection[int]) -> None:
        """The group has revoked them."""
        for partition in partitions:
            self._positions.pop(partition, None)
            self._seeks.pop(partition, None)
            self._paused.discard(partition)
        self.kafka.incremental_unassign(list(map(self.tp, partitions)))

    def next(self, deadline: float, max_records: int) -> Batch:
        """What has arrived, at most `max_records`; waits until `deadline` (monotonic) for the first."""
        if self._to_assign:
            self._connect(deadline)
            self.kafka.assign([self.tp(p, offset) for p, offset in self._to_assign.items()])
            self.kafka.resume(list(map(self.tp, self._to_assign)))  # it remembers that one was paused before
            if self._paused:
                self.kafka.pause(list(map(self.tp, self._paused)))
            self._to_assign = {}
        while True:
            seeking = self._apply_seeks()
            until = min(deadline, time.monotonic() + _AGAIN_PAUSE_S) if seeking else deadline
            records, failure = self._buffer.take(self.kafka, until, max_records)
            if self.member is not None:
                records, failure = self._still_ours(self.member, records, failure)
            if seeking:
                records = without(records, seeking)
                self._buffer.drop(seeking)
            if failure is not None:
                self._buffer.hold(records)
                raise failure
            unread = self._pass_unread(records) if self._buffer.unread else []
            # A member continues to wait for records after partitions have reached their ends.
            ends = self._buffer.ends
            if records or unread or (ends and self.member is None) or time.monotonic() >= deadline:
                self._buffer.ends = {}
                batch = batch_of(self.topic, records, ends, self._positions)
                batch.unread = unread
                return batch

    def _pass_unread(self, records: list[Any]) -> list[UnreadBatch]:
        """Continue behind the batches that the library cannot unpack; `records` came with their errors.

        The library does not say where such a batch ends, and reports it again at every fetch: docs/upstream.md, C9.
        """
        found: list[UnreadBatch] = []
        reader = self._reader()
        try:
            for partition, offset in self._buffer.unread.items():
                reader.assign(self.topic, {partition: offset})
                deadline = time.monotonic() + self._client.timeout_s
                while not (batch := reader.poll(_ASK_S, 1)).unread:
                    if len(batch) or time.monotonic() > deadline:
                        raise self._client.broker_error(
                            Failure.OTHER, "a batch cannot be unpacked", f"reading {self.topic}-{partition} at {offset}"
                        )
                found.append(batch.unread[0])
        except BaseException:
            self._buffer.hold(records)
            raise
        finally:
            reader.close()
        for each in found:
            self.seek(each.partition, each.last + 1)
            self._buffer.ends[each.partition] = each.last + 1
        return found

    def _connect(self, deadline: float) -> None:
        """Ask where the topic is: otherwise a library that has just connected may fetch nothing for a second."""
        left = min(_CONNECT_S, deadline - time.monotonic())
        if left > 0:
            with suppress(KafkaException):  # then it continues to ask by itself
                self.kafka.list_topics(self.topic, left)

    def _still_ours(
        self, member: ConfluentMember, records: list[Any], failure: BaseException | None
    ) -> tuple[list[Any], BaseException | None]:
        """Without records of partitions that were revoked in this call, and with the error of a failed callback."""
        if gone := member.gone:
            member.gone = set()
            records = without(records, gone)
            self._buffer.drop(gone)
            for partition in gone:
                if (start := self._starts.pop(partition, None)) is not None and partition in member.owned:
                    self._seeks.setdefault(partition, start)
        failure, member.error = member.error or failure, None
        return records, failure

    def seek(self, partition: int, offset: int) -> None:
        """Continue at `offset`."""
        self._positions.pop(partition, None)
        self._buffer.drop([partition])
        if partition in self._to_assign:
            self._to_assign[partition] = offset
        else:
            self._seeks[partition] = offset
            self._apply_seeks()

    def _apply_seeks(self) -> set[int]:
        """Have the library seek; returns the partitions for which it refuses for now."""
        seeking = self._begun(self._seeks.keys() - self._paused)
        for partition in list(seeking):
            try:
                self.kafka.seek(self.tp(partition, self._seeks[partition]))
            except KafkaException as error:
                if error.args[0].code() != KafkaError._STATE:
                    raise
            else:
                del self._seeks[partition]
                seeking.remove(partition)
        return seeking

    def pause(self, partitions: Collection[int]) -> None:
        """Fetch nothing from these."""
        self._paused |= set(partitions)
        if begun := self._begun(partitions):
            self.kafka.pause(list(map(self.tp, begun)))

    def resume(self, partitions: Collection[int]) -> None:
        """Undo `pause`."""
        self._paused -= set(partitions)
        if begun := self._begun(partitions):
            self.kafka.resume(list(map(self.tp, begun)))
        self._apply_seeks()

    def _begun(self, partitions: Collection[int]) -> set[int]:
        """Those that the library knows."""
        return set(partitions) - (self._to_assign.keys() if self.member is None else self.member.new)

    def lag(self) -> dict[int, int]:
        """Records between the position and the last known end, for each partition of which both are known."""
        found = {}
        for partition in self.partitions:
            _, end = self.kafka.get_watermark_offsets(self.tp(partition), cached=True)
            if end >= 0 and (position := self._positions.get(partition)) is not None:
                found[partition] = max(0, end - position)
        return found

    def tp(self, partition: int, offset: int = OFFSET_INVALID) -> TopicPartition:
        """The library's object for a partition."""
        return TopicPartition(self.topic, partition, offset)
