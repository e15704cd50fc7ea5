"""A consumer on librdkafka."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from confluent_kafka import OFFSET_INVALID, KafkaError, TopicPartition
from confluent_kafka import Consumer as Kafka

from service.broker.base import Batch, Consumer, Membership, metadata_of
from service.broker.calls import Trouble, no_group, no_partition, not_assigned
from service.broker.confluent_calls import Server, consumer_options, topic_errors
from service.broker.confluent_calls import log as library_log
from service.broker.confluent_group import Member
from service.broker.confluent_offsets import BEGINNING, END, Asker, go, offsets_at
from service.broker.confluent_records import Arrivals, batch_of, without
from service.errors import BrokerError, PutOut, Replaced, Unanswered

log = logging.getLogger("tidecast.broker")

_CLOSE_SECONDS = 5.0
_SOON_S = 2.0  # a Kafka that does not say by then who has our name is asked again later


class ConfluentConsumer(Consumer):
    """Made by `ConfluentBroker.consumer`. Not thread-safe: for one caller's thread.

    Args:
        server: where, and how long to wait.
        count: how many partitions a topic has, None where there is none.
        holder: the id of the member that has a name in a group; the third is the time limit, s.
        asker: a consumer of another library, to ask for what a group has committed.
        group: None = only `assign` may be used.
        isolation: read_committed or read_uncommitted.
        membership: how to be a member of the group.
    """

    def __init__(
        self,
        server: Server,
        count: Callable[[str], int | None],
        holder: Callable[[str, str, float], str | None],
        asker: Callable[[str], Consumer],
        *,
        group: str | None,
        isolation: str,
        membership: Membership,
    ) -> None:
        # To have lost its name is the only thing that is fatal for a consumer.
        self.server = self._server = replace(server.named(membership.instance), fatal=Trouble.REPLACED)
        self._count, self._holder, self._group = count, holder, group
        self._topic = ""
        self._to_assign: dict[int, int] = {}  # done by the first poll: to ask for offsets needs no fetching
        self._assigned: set[int] = set()  # by `assign`
        self._positions: dict[int, int] = {}  # as last told by `poll`
        self._paused: set[int] = set()
        self._seeks: dict[int, int] = {}  # where to go on with those that are paused
        self._starts: dict[int, int] = {}  # where reading of those began that came back within one call
        self._member: Member | None = None
        self._make_member: Callable[[], Member]
        self._arrivals = Arrivals(self._server)
        self._isolation = isolation
        self._asker = Asker(lambda: asker(group or ""))
        with server.errors("connecting to consume"):
            self._options = consumer_options(server, group, isolation, membership) | {"error_cb": self._hear}
            self._kafka: Any = Kafka(self._options)

    # Which partitions ----------------------------------------------------------------------------------------

    def subscribe(
        self, topic: str, on_assigned: Callable[[set[int]], None], on_revoked: Callable[[set[int]], None]
    ) -> None:
        """Join the group for `topic`. The callbacks run inside `poll` and `close`, on the caller's thread."""
        group, name = self._group, self._server.instance
        if group is None:
            raise no_group("cannot subscribe")
        self._require(topic)
        self._topic = topic
        holder = None if name is None else lambda limit_s: self._holder(group, name, limit_s)

        def member() -> Member:
            return Member(self._kafka, holder, on_assigned, on_revoked, self._take, self._drop)

        self._make_member, self._member = member, member()
        with self._server.errors(f"subscribing to {topic}"):
            self._member.subscribe(topic)

    def assign(self, topic: str, offsets: Mapping[int, int]) -> None:
        """Read these partitions from these offsets (-1 = the end, -2 = the beginning, both as they are now)."""
        count = self._require(topic)
        if wrong := [p for p in offsets if not 0 <= p < count]:
            raise no_partition(topic, count, wrong[0])
        self._topic = topic
        with self._server.errors(f"reading {topic}"):
            self._kafka.unassign()
        ends = self.end_offsets([p for p, o in offsets.items() if o == END])
        starts = self.beginning_offsets([p for p, o in offsets.items() if o == BEGINNING])
        self._assigned = set(offsets)
        for known in (self._positions, self._seeks, self._paused, self._arrivals):
            known.clear()
        self._to_assign = {**offsets} | ends | starts

    def _take(self, partitions: Collection[int]) -> None:
        """Begin to read what the group gave us; `seek` and `pause` were called before, if at all."""
        committed = dict.fromkeys(partitions, OFFSET_INVALID)  # asked for by the library
        again = [] if self._member is None else self._member.gone.intersection(partitions)
        if again or self._isolation != "read_committed":
            known = self.committed(partitions)
            committed |= {p: found[0] if found else 0 for p, found in known.items()}
        starts = {p: self._seeks.pop(p, committed[p]) for p in partitions}
        self._starts |= {p: starts[p] for p in again}
        self._kafka.incremental_assign([self._tp(p, offset) for p, offset in starts.items()])
        if paused := self._paused.intersection(partitions):
            self._kafka.pause(list(map(self._tp, paused)))

    def _drop(self, partitions: Collection[int]) -> None:
        for partition in partitions:
            self._positions.pop(partition, None)
            self._seeks.pop(partition, None)
            self._paused.discard(partition)
        self._kafka.incremental_unassign(list(map(self._tp, partitions)))

    # Records -------------------------------------------------------------------------------------------------

    def poll(self, timeout_s: float, max_records: int) -> Batch:
        """What has arrived, at most `max_records`; waits up to `timeout_s` for the first. May be empty."""
        deadline = time.monotonic() + timeout_s
        member = self._member
        try:
            self._check_name()
        except Unanswered as error:  # the library has given up, so there is nothing else to do than to ask again
            library_log.warning("%s", error.what)
            return Batch(self._topic)
        if member is not None and member.fenced:
            self._begin_anew(member)
        try:
            return self._poll(deadline, max_records)
        except Replaced as error:
            self.doubt(error)
            return Batch(self._topic)  # the next one begins anew

    def _begin_anew(self, member: Member) -> None:
        """The library does no more, though nobody else has our place in the group: a new consumer takes it."""
        for known in (self._positions, self._seeks, self._starts, self._paused, self._arrivals):
            known.clear()
        with self._server.errors(f"subscribing to {self._topic}"):
            held, self._kafka = [self._kafka], Kafka(self._options)
            self._member = self._make_member()
            self._member.follow(member)
            member.end()
            # The library lets go when nobody holds the object any more. That may take a moment.
            self._server.within(_CLOSE_SECONDS).call("beginning anew", held.clear)
            self._member.subscribe(self._topic)

    def _poll(self, deadline: float, max_records: int) -> Batch:
        with self._server.errors(f"reading {self._topic}"):
            if self._to_assign:
                self._kafka.assign([self._tp(p, offset) for p, offset in self._to_assign.items()])
                if self._paused:
                    self._kafka.pause(list(map(self._tp, self._paused)))
                self._to_assign = {}
            while True:
                records, failure = self._arrivals.take(self._kafka, deadline, max_records)
                if self._member is not None:
                    records, failure = self._still_ours(self._member, records, failure)
                if failure is not None:
                    self._arrivals.hold(records)
                    raise failure
                # A member goes on waiting for records when partitions have come to their ends.
                ends = self._arrivals.ends
                if records or (ends and self._member is None) or time.monotonic() >= deadline:
                    self._arrivals.ends = {}
                    return batch_of(self._topic, records, ends, self._positions)

    def _still_ours(
        self, member: Member, records: list[Any], failure: BaseException | None
    ) -> tuple[list[Any], BaseException | None]:
        """Without what the callbacks of the same call have given away, and with the error of one that failed."""
        if gone := member.gone:
            member.gone = set()
            records = without(records, gone)
            self._arrivals.drop(gone)
            for partition in gone:
                if (start := self._starts.pop(partition, None)) is not None and partition in member.owned:
                    go(self._server, self._kafka, self._tp(partition, start))
        failure, member.error = member.error or failure, None
        return records, failure

    def seek(self, partition: int, offset: int) -> None:
        """The next poll of an assigned partition starts at `offset`."""
        member = self._member
        if partition not in (self._assigned if member is None else member.owned):
            raise not_assigned(self._topic, partition, offset)
        self._positions.pop(partition, None)
        self._arrivals.drop([partition])
        if partition in self._to_assign:
            self._to_assign[partition] = offset
        elif partition in self._paused or (member is not None and partition in member.new):
            self._seeks[partition] = offset  # until then the library would take no note of it
        else:
            with self._server.errors(f"going to offset {offset} of {self._topic}-{partition}"):
                go(self._server, self._kafka, self._tp(partition, offset))

    def pause(self, partitions: Collection[int]) -> None:
        """Fetch nothing from these until `resume`; `poll` keeps the membership alive."""
        self._paused |= set(partitions)
        with self._server.errors(f"pausing partitions of {self._topic}"):
            if reading := self._being_read(partitions):
                self._kafka.pause(list(map(self._tp, reading)))

    def resume(self, partitions: Collection[int]) -> None:
        """Undo `pause`."""
        self._paused -= set(partitions)
        with self._server.errors(f"resuming partitions of {self._topic}"):
            if reading := self._being_read(partitions):
                self._kafka.resume(list(map(self._tp, reading)))
                for partition in self._seeks.keys() & reading:
                    go(self._server, self._kafka, self._tp(partition, self._seeks.pop(partition)))

    def _being_read(self, partitions: Collection[int]) -> set[int]:
        new = self._to_assign.keys() if self._member is None else self._member.new
        return set(partitions) - new

    # Offsets -------------------------------------------------------------------------------------------------

    def commit(self, offsets: Mapping[int, int], metadata: str | Mapping[int, str] = "") -> None:
        """Commit `partition -> next offset` for the group. Blocks until the broker has it."""
        if not offsets:
            return
        if self._group is None:
            raise no_group("has nothing to commit to")
        texts = metadata_of(offsets, metadata)
        asked = [TopicPartition(self._topic, p, offset, texts[p]) for p, offset in offsets.items()]
        doing = f"committing offsets of {self._topic}"
        self._check_name(doing)
        try:
            with self._server.errors(doing):
                topic_errors(self._kafka.commit(offsets=asked, asynchronous=False))
        except Replaced as error:
            self.doubt(error, doing)

    def committed(self, partitions: Collection[int]) -> dict[int, tuple[int, str] | None]:
        """`partition -> (offset, metadata)` as committed by the group, None where nothing is.

        Waits while a transaction with offsets of one of them is not ended, 10 s at the most.
        """
        if not partitions:
            return {}
        if self._group is None:
            raise no_group("has nothing committed")
        return self._asker.committed(self._topic, partitions)

    def membership(self, topic: str, partitions: Collection[int]) -> Any:
        """As whom this consumer may commit offsets of these partitions, for Kafka to check at the commit (KIP-447).

        Raises:
            PutOut: it has lost its place in the group, or the partitions.
        """
        if self._group is None:
            raise no_group("has nothing to commit to")
        self._check_name(f"committing offsets of {topic}")
        if self._member is None:
            return self._kafka.consumer_group_metadata()
        found = self._member.metadata(partitions)
        if found is None or topic != self._topic:
            raise PutOut(f"committing offsets of {topic}")
        return found

    def beginning_offsets(self, partitions: Collection[int]) -> dict[int, int]:
        """The first retained offset of each partition."""
        return offsets_at(self._server, self._kafka, self._topic, partitions, BEGINNING)

    def end_offsets(self, partitions: Collection[int]) -> dict[int, int]:
        """The offset after the last record of each partition, as this consumer's isolation level sees it."""
        return offsets_at(self._server, self._kafka, self._topic, partitions, END)

    def lag(self) -> dict[int, int]:
        """Records between the position and the last known end, for each partition of which both are known."""
        found = {}
        with self._server.errors(f"asking for the lag of {self._topic}"):
            for partition in self._assigned if self._member is None else self._member.owned:
                _, end = self._kafka.get_watermark_offsets(self._tp(partition), cached=True)
                if end >= 0 and (position := self._positions.get(partition)) is not None:
                    found[partition] = max(0, end - position)
        return found

    # The name, and the end -----------------------------------------------------------------------------------

    def confirm(self) -> None:
        """Ask the group now whether this member's name is still its own; nothing is asked where it has none."""
        if self._member is not None:
            with self._server.errors(f"asking for our place in the group {self._group}"):
                self._member.confirm(self._server.timeout_s)
            if self._member.replaced:
                raise self._replaced()

    def close(self) -> None:
        """Leave the group. Does not commit; `on_revoked` is called for what was assigned."""
        if self._kafka is None:
            return
        error = None
        if self._member is not None:
            self._member.leave()
            error = self._member.error
        try:
            self._server.within(_CLOSE_SECONDS).call("leaving", self._let_go)
        except BrokerError as failure:
            error = error or failure
        if isinstance(error, BrokerError):
            log.debug("leaving the group failed; it notices at the end of the session", exc_info=error)
        elif error is not None:
            raise error

    def _let_go(self) -> None:
        # A member whose name another has leaves without a word.
        self._asker.close()
        if self._member is None or not (self._member.replaced or self._member.fenced):
            self._kafka.close()

    def _hear(self, error: KafkaError) -> None:
        """Called inside of the library's calls, for news of the connection."""
        if error.code() == KafkaError.FENCED_INSTANCE_ID and self._member is not None:
            self._member.fenced = True
        library_log.warning("%s", error.str())

    def doubt(self, error: Replaced, committing: str = "") -> None:
        """The library was told that another has our name: Replaced where that is so; where not, PutOut for a commit."""
        if self._member is None:
            raise error
        self._member.fenced = True
        self._check_name(committing)

    def _check_name(self, committing: str = "") -> None:
        """Where the library was told that another has our name: Replaced if that is so. Else no commit is possible."""
        if self._member is None or not (self._member.fenced or self._member.replaced):
            return
        if not self._member.replaced:
            self._member.confirm(min(_SOON_S, self._server.timeout_s))
        if self._member.replaced:
            raise self._replaced()
        if committing:
            raise PutOut(committing)

    def _replaced(self) -> BrokerError:
        return self._server.tell(Trouble.REPLACED, "", f"reading {self._topic}")

    def _require(self, topic: str) -> int:
        count = self._count(topic)
        if count is None:
            raise self._server.tell(Trouble.NO_TOPIC, "", f"reading {topic}")
        return count

    def _tp(self, partition: int, offset: int = OFFSET_INVALID) -> TopicPartition:
        return TopicPartition(self._topic, partition, offset)
