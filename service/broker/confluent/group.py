"""Membership of a group on librdkafka.

The library runs the callbacks of a rebalance inside of the caller's own calls, as the port promises. What is minded
here besides:
  - An error in a callback would make the library throw away the records that the same call has gathered. So it is kept,
    and raised once they are safe.
  - A call may return records that it gathered before one of its callbacks gave their partition away.
  - A member that hears, or finds by itself, that its session has ended forgets who it was and joins anew. One with a
    name would take that from a process that has it meanwhile. And it goes on with heartbeats, though it does not know
    who it is: Kafka answers that its name is another's, which is its own, of before or of the join under way, and the
    library takes that for its end. So a member with a name does not join again by itself: it is kept from it, Kafka is
    asked who has the name, and where that is us, a new consumer takes our place (`ConfluentConsumer._begin_anew`).
  - Before a first join has ended, nobody can have our place: a Kafka that was killed in the midst of that join has
    forgotten whom it let in, and says that our name is another's. So we come as a newcomer again, though not for ever:
    a namesake may be doing the same.
  - The group metadata of a member that is out names nobody, and Kafka lets that pass unchecked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

_NEWCOMER = 3  # first joins that may be refused for the name's sake
_NO_GENERATION = b"\xff\xff\xff\xff"
_FORMAT = b"CGMDv2:"  # then the generation, and, each ended by a zero, the group and the member's id


class ConfluentMember:
    """One consumer's part in its group. For one caller's thread.

    Args:
        kafka: a Consumer of the library, with a group.
        member_of_instance: asks Kafka which member has our instance id; takes a time limit in s. None without an id.
        on_assigned: called inside of the library's calls.
        on_revoked: likewise.
        take: begins to read partitions, after `on_assigned`.
        drop: ends it, after `on_revoked`.
    """

    def __init__(
        self,
        kafka: Any,
        member_of_instance: Callable[[float], str | None] | None,
        on_assigned: Callable[[set[int]], None],
        on_revoked: Callable[[set[int]], None],
        take: Callable[[Collection[int]], None],
        drop: Callable[[Collection[int]], None],
    ) -> None:
        self._kafka, self._member_of_instance = kafka, member_of_instance
        self._on_assigned, self._on_revoked, self._take, self._drop = on_assigned, on_revoked, take, drop
        self._id: str | None = None
        self._lost = False  # in on_revoked: the partitions may be another member's already
        self._out = False  # of the group, and kept from joining
        self._leaving = False
        self.owned: set[int] = set()  # the group's share, as the callbacks have told the caller
        self.new: set[int] = set()  # given to us, and not read yet
        self.gone: set[int] = set()  # what was taken away since it was last emptied
        self.fenced = False  # perhaps another has our name; the library does no more
        self.newcomer = 0  # how often a first join was refused for the name's sake, one after the other
        self.replaced = False  # that is true
        self.error: BaseException | None = None  # of a callback, to be raised

    def subscribe(self, topic: str) -> None:
        """Begin to be a member; the joining itself is done by the library."""
        self._kafka.subscribe([topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._all_lost)

    def metadata(self, partitions: Collection[int]) -> bytes | None:
        """As whom offsets of these partitions may be committed; None where the member is out, or they are not its."""
        if self._lost or self._leaving or self.fenced or not self.owned.issuperset(partitions):
            return None
        found = bytes(self._kafka.consumer_group_metadata())
        generation, _, rest = found[len(_FORMAT) :][:4], *found[len(_FORMAT) + 4 :].partition(b"\0")[1:]
        known = found.startswith(_FORMAT) and generation != _NO_GENERATION and rest.partition(b"\0")[0]
        return found if known else None

    def verify_instance(self, limit_s: float) -> None:
        """Ask Kafka whether our name is still our own; `replaced` tells."""
        if self._member_of_instance is None or self._joining():
            return
        owner = self._member_of_instance(limit_s)
        us = {self._id, self._kafka.memberid()}  # a join that has begun may have given us another id
        self.replaced = self.replaced or (owner is not None and owner not in us)

    def _joining(self) -> bool:
        """Whether a join is under way for which Kafka may know us by an id that we do not know yet."""
        unknown = self._id is None or (self._kafka.memberid() != self._id and not self._out)
        return unknown and self.newcomer < _NEWCOMER

    def follow(self, earlier: ConfluentMember) -> None:
        """Take the place of an earlier member, ours, before it ends."""
        self.newcomer = earlier.newcomer + 1 if earlier._joining() or earlier.newcomer >= _NEWCOMER else 0
        self.error = earlier.error

    def end(self) -> None:
        """Give up all partitions, which may be another member's by now; the library's consumer is of no more use."""
        self._lost = self._leaving = True
        if self.owned:
            self._give_up(set(self.owned))
        self._kafka = None  # which holds on to us

    def leave(self) -> None:
        """Give up the partitions, as before a rebalance; what the library then still tells is not passed on."""
        if not self._leaving and self.owned and not self.replaced:
            self._give_up(set(self.owned))
        self._leaving = True

    def _assigned(self, _kafka: Any, tps: Collection[Any]) -> None:
        if self._leaving:
            return
        self._id, self.newcomer = self._kafka.memberid(), 0
        partitions = {tp.partition for tp in tps}
        self.owned |= partitions
        self.new = partitions
        try:
            self._on_assigned(set(partitions))
        except BaseException as error:
            self.error = error
        self.new = set()
        self._take(partitions)

    def _revoked(self, _kafka: Any, tps: Collection[Any]) -> None:
        if self._leaving:
            return
        partitions = {tp.partition for tp in tps}
        self._give_up(partitions)
        self._drop(partitions)

    def _all_lost(self, kafka: Any, tps: Collection[Any]) -> None:
        self._lost = True
        try:
            if self._member_of_instance is None or self._leaving:
                self._revoked(kafka, tps)
            else:
                self._out = True
                self._give_up({tp.partition for tp in tps})
                self.fenced = True
                # Something is done, so the library does nothing by itself: it would join, as soon as we let go.
                self._kafka.incremental_assign([])
        finally:
            self._lost = False

    def _give_up(self, partitions: set[int]) -> None:
        try:
            self._on_revoked(set(partitions))
        except BaseException as error:
            self.error = error
        finally:
            self.owned -= partitions
            self.gone |= partitions
