"""A consumer on librdkafka."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from confluent_kafka import Consumer as Kafka
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from typing_extensions import override

from tidecast.service.broker.client import Failure, no_group, no_partition, not_assigned
from tidecast.service.broker.confluent.client import ConfluentClient, consumer_options, topic_errors
from tidecast.service.broker.confluent.client import log as library_log
from tidecast.service.broker.confluent.fetch_position import FetchPositions
from tidecast.service.broker.confluent.group import ConfluentMember
from tidecast.service.broker.confluent.offsets import BEGINNING, END, CommittedOffsets, offsets_at
from tidecast.service.broker.port import Batch, Consumer, Membership, metadata_of
from tidecast.service.errors import BrokerError, BrokerUnavailable, InstanceFenced, MemberEvicted

log = logging.getLogger("tidecast.broker")

_CLOSE_SECONDS = 5.0
_SOON_S = 2.0  # if Kafka does not answer by then who has our instance id, it is asked again later


class ConfluentConsumer(Consumer):
    """Made by `ConfluentBroker.consumer`. Not thread-safe: for one caller's thread.

    Args:
        client: where, and how long to wait.
        count: how many partitions a topic has, None where there is none.
        member_of_instance: the id of the member with an instance id in a group; the third argument is the limit, s.
        other: a consumer of kafka-python, with a group or without one, for what librdkafka cannot do (docs/upstream.md,
            C1, C9).
        group: None = only `assign` may be used.
        isolation: read_committed or read_uncommitted.
        membership: how to be a member of the group.
    """

    def __init__(
        self,
        client: ConfluentClient,
        count: Callable[[str], int | None],
        member_of_instance: Callable[[str, str, float], str | None],
        other: Callable[[str | None], Consumer],
        *,
        group: str | None,
        isolation: str,
        membership: Membership,
    ) -> None:
        # A fenced instance id is the only fatal error of a consumer.
        self.client = self._client = replace(client.for_instance(membership.instance), fatal=Failure.INSTANCE_FENCED)
        self._count, self._member_of_instance, self._group = count, member_of_instance, group
        self._isolation = isolation
        self._member: ConfluentMember | None = None
        self._make_member: Callable[[], ConfluentMember]
        self._asked: dict[int, int] = {}  # by `commit_async`
        self._answer: tuple[KafkaError | None, list[TopicPartition]] | None = None
        self._committed_offsets = CommittedOffsets(lambda: other(group or ""))
        with client.errors("connecting to consume"):
            self._options = consumer_options(client, group, isolation, membership) | {
                "error_cb": self._hear,
                "on_commit": self._hear_answer,
            }
            self._kafka: Any = Kafka(self._options)
        self._fetch = FetchPositions(self._client, self._kafka, group is not None, lambda: other(None))

    @property
    def _topic(self) -> str:
        return self._fetch.topic

    # Which partitions ----------------------------------------------------------------------------------------

    @override
    def subscribe(
        self, topic: str, on_assigned: Callable[[set[int]], None], on_revoked: Callable[[set[int]], None]
    ) -> None:
        group, name = self._group, self._client.instance
        if group is None:
            raise no_group("cannot subscribe")
        self._require(topic)
        self._fetch.topic = topic
        member_of_instance = None if name is None else lambda limit_s: self._member_of_instance(group, name, limit_s)

        def take(partitions: Collection[int]) -> None:
            self._fetch.take(partitions, self._begin_of)

        def member() -> ConfluentMember:
            return ConfluentMember(self._kafka, member_of_instance, on_assigned, on_revoked, take, self._fetch.drop)

        self._make_member = member
        self._fetch.member = self._member = member()
        with self._client.errors(f"subscribing to {topic}"):
            self._member.subscribe(topic)

    @override
    def assign(self, topic: str, offsets: Mapping[int, int]) -> None:
        count = self._require(topic)
        if wrong := [p for p in offsets if not 0 <= p < count]:
            raise no_partition(topic, count, wrong[0])
        self._fetch.topic = topic
        with self._client.errors(f"reading {topic}"):
            self._kafka.unassign()
        ends = self.end_offsets([p for p, o in offsets.items() if o == END])
        starts = self.beginning_offsets([p for p, o in offsets.items() if o == BEGINNING])
        self._fetch.assign({**offsets} | ends | starts)

    def _begin_of(self, partitions: Collection[int], again: Collection[int]) -> dict[int, int]:
        """Where to start in assigned partitions, if the library must not ask itself (docs/upstream.md, C2)."""
        if not again and self._isolation == "read_committed":
            return {}
        return {p: found[0] if found else 0 for p, found in self.committed(partitions).items()}

    # Records -------------------------------------------------------------------------------------------------

    @override
    def poll(self, timeout_s: float, max_records: int) -> Batch:
        deadline = time.monotonic() + timeout_s
        try:
            self._check_instance()
        except BrokerUnavailable as error:  # the library does nothing more, so ask again in the next poll
            library_log.warning("%s", error.what)
            return Batch(self._topic)
        if self._member is not None and self._member.fenced:
            self._make_new_consumer(self._member)
        try:
            with self._client.errors(f"reading {self._topic}"):
                return self._fetch.next(deadline, max_records)
        except InstanceFenced as error:
            self.on_instance_fenced(error)
            return Batch(self._topic)  # the next poll makes a new consumer

    def _make_new_consumer(self, member: ConfluentMember) -> None:
        """The library stopped, but we still have our instance id: a new consumer takes over. docs/upstream.md, C8."""
        with self._client.errors(f"subscribing to {self._topic}"):
            held, self._kafka = [self._kafka], Kafka(self._options)
            self._fetch.kafka = self._kafka
            self._fetch.clear()
            self._fetch.member = self._member = self._make_member()
            self._member.follow(member)
            member.end()
            # The library closes its connections when the object is collected. That may take a moment.
            self._client.with_timeout(_CLOSE_SECONDS).call("closing the former consumer", held.clear)
            self._member.subscribe(self._topic)

    @override
    def seek(self, partition: int, offset: int) -> None:
        if partition not in self._fetch.partitions:
            raise not_assigned(self._topic, partition, offset)
        with self._client.errors(f"going to offset {offset} of {self._topic}-{partition}"):
            self._fetch.seek(partition, offset)

    @override
    def pause(self, partitions: Collection[int]) -> None:
        with self._client.errors(f"pausing partitions of {self._topic}"):
            self._fetch.pause(partitions)

    @override
    def resume(self, partitions: Collection[int]) -> None:
        with self._client.errors(f"resuming partitions of {self._topic}"):
            self._fetch.resume(partitions)

    # Offsets -------------------------------------------------------------------------------------------------

    @override
    def commit(self, offsets: Mapping[int, int], metadata: str | Mapping[int, str] = "") -> None:
        if offsets:
            asked = self._to_commit(offsets, metadata)
            self._committing(lambda: topic_errors(self._kafka.commit(offsets=asked, asynchronous=False)))

    @override
    def commit_async(self, offsets: Mapping[int, int], metadata: str | Mapping[int, str] = "") -> None:
        asked = self._to_commit(offsets, metadata)
        self._asked, self._answer = dict(offsets), None
        self._committing(lambda: self._kafka.commit(offsets=asked, asynchronous=True))

    @override
    def commit_acknowledged(self) -> bool:
        if self._answer is None:
            return False
        error, partitions = self._answer

        def look() -> None:
            if error is not None:
                raise KafkaException(error)
            topic_errors(partitions)

        self._committing(look)
        return True

    def _to_commit(self, offsets: Mapping[int, int], metadata: str | Mapping[int, str]) -> list[TopicPartition]:
        if self._group is None:
            raise no_group("has nothing to commit to")
        texts = metadata_of(offsets, metadata)
        return [TopicPartition(self._topic, p, offset, texts[p]) for p, offset in offsets.items()]

    def _committing(self, call: Callable[[], object]) -> None:
        doing = f"committing offsets of {self._topic}"
        self._check_instance(doing)
        try:
            with self._client.errors(doing):
                call()
        except InstanceFenced as error:
            self.on_instance_fenced(error, doing)

    def _hear_answer(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        """Called inside polls."""
        if {tp.partition: tp.offset for tp in partitions} == self._asked:  # not for an earlier commit
            self._answer = error, partitions

    @override
    def committed(self, partitions: Collection[int]) -> dict[int, tuple[int, str] | None]:
        if not partitions:
            return {}
        if self._group is None:
            raise no_group("has nothing committed")
        return self._committed_offsets.committed(self._topic, partitions)

    def membership(self, topic: str, partitions: Collection[int]) -> Any:
        """The identity with which this consumer may commit offsets of these partitions; Kafka checks it (KIP-447).

        Raises:
            MemberEvicted: it is no longer in the group, or has lost the partitions.
        """
        if self._group is None:
            raise no_group("has nothing to commit to")
        self._check_instance(f"committing offsets of {topic}")
        if self._member is None:
            return self._kafka.consumer_group_metadata()
        found = self._member.metadata(partitions)
        if found is None or topic != self._topic:
            raise MemberEvicted(f"committing offsets of {topic}")
        return found

    @override
    def beginning_offsets(self, partitions: Collection[int]) -> dict[int, int]:
        return offsets_at(self._client, self._kafka, self._topic, partitions, BEGINNING)

    @override
    def end_offsets(self, partitions: Collection[int]) -> dict[int, int]:
        return offsets_at(self._client, self._kafka, self._topic, partitions, END)

    @override
    def lag(self) -> dict[int, int]:
        with self._client.errors(f"asking for the lag of {self._topic}"):
            return self._fetch.lag()

    # The instance id, and the end -----------------------------------------------------------------------------------

    @override
    def verify_instance(self) -> None:
        if self._member is not None:
            with self._client.errors(f"asking for our place in the group {self._group}"):
                self._member.verify_instance(self._client.timeout_s)
            if self._member.replaced:
                raise self._replaced()

    @override
    def close(self) -> None:
        if self._kafka is None:
            return
        error = None
        if self._member is not None:
            self._member.leave()
            error = self._member.error
        try:
            self._client.with_timeout(_CLOSE_SECONDS).call("leaving", self._release)
        except BrokerError as failure:
            error = error or failure
        if isinstance(error, BrokerError):
            log.debug("leaving the group failed; the group notices at the end of the session", exc_info=error)
        elif error is not None:
            raise error

    def _release(self) -> None:
        # A member whose instance id another process has leaves without a request.
        self._committed_offsets.close()
        if self._member is None or not (self._member.replaced or self._member.fenced):
            self._kafka.close()

    def _hear(self, error: KafkaError) -> None:
        """Called inside the library's calls, for errors of the connection."""
        if error.code() == KafkaError.FENCED_INSTANCE_ID and self._member is not None:
            self._member.fenced = True
        library_log.warning("%s", error.str())

    def on_instance_fenced(self, error: InstanceFenced, committing: str = "") -> None:
        """Our instance id was reported as fenced: InstanceFenced if that is true, else MemberEvicted for a commit."""
        if self._member is None:
            raise error
        self._member.fenced = True
        self._check_instance(committing)

    def _check_instance(self, committing: str = "") -> None:
        """If our instance id was reported as fenced: InstanceFenced if that is true, else no commit is possible."""
        if self._member is None or not (self._member.fenced or self._member.replaced):
            return
        if not self._member.replaced:
            self._member.verify_instance(min(_SOON_S, self._client.timeout_s))
        if self._member.replaced:
            raise self._replaced()
        if committing:
            raise MemberEvicted(committing)

    def _replaced(self) -> BrokerError:
        return self._client.broker_error(Failure.INSTANCE_FENCED, "", f"reading {self._topic}")

    def _require(self, topic: str) -> int:
        count = self._count(topic)
        if count is None:
            raise self._client.broker_error(Failure.NO_TOPIC, "", f"reading {topic}")
        return count
