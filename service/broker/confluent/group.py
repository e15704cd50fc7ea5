"""Membership of a group on librdkafka.

The library runs the callbacks of a rebalance inside the caller's own calls, as the port promises. What else is handled
here:
  - An exception in a callback is kept and raised after the records of the same call are safe (docs/upstream.md, C7).
  - A call may return records that it read before one of its callbacks revoked their partition.
  - A member whose session has ended forgets its id and joins again. With an instance id it would fence a process that
    has that id now, or take itself for fenced (C8). So a member with an instance id is kept from joining: Kafka is
    asked who has the id, and if that is us, a new consumer takes over (`ConfluentConsumer._make_new_consumer`).
  - Before a first join has ended, nobody can have fenced us: a Kafka that was killed during that join has forgotten the
    member. So we join as new again, a few times: another process with the same instance id may be doing the same.
  - The group metadata of an evicted member has no member id, and Kafka does not check a commit without one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

_NEWCOMER = 3  # how many first joins may be refused because of the instance id
_NO_GENERATION = b"\xff\xff\xff\xff"
_FORMAT = b"CGMDv2:"  # then the generation, the group and the member id, the latter two ended by a zero byte


class ConfluentMember:
    """One consumer's part in its group. For one caller's thread.

    Args:
        kafka: a Consumer of the library, with a group.
        member_of_instance: asks Kafka which member has our instance id; takes a time limit in s. None without an id.
        on_assigned: called inside the library's calls.
        on_revoked: likewise.
        take: starts reading partitions, after `on_assigned`.
        drop: stops reading them, after `on_revoked`.
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
        self._lost = False  # in on_revoked: the partitions may belong to another member already
        self._out = False  # evicted, and kept from joining
        self._leaving = False
        self.owned: set[int] = set()  # assigned by the group, as the callbacks reported
        self.new: set[int] = set()  # assigned, and not read yet
        self.gone: set[int] = set()  # revoked since this was last cleared
        self.fenced = False  # perhaps another process has our instance id; the library has stopped
        self.newcomer = 0  # how many first joins in a row were refused because of the instance id
        self.replaced = False  # another process has our instance id, as Kafka confirmed
        self.error: BaseException | None = None  # of a callback, to be raised

    def subscribe(self, topic: str) -> None:
        """Subscribe; the library joins the group."""
        self._kafka.subscribe([topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._all_lost)

    def metadata(self, partitions: Collection[int]) -> bytes | None:
        """The identity to commit offsets of these partitions; None if the member is evicted or does not have them."""
        if self._lost or self._leaving or self.fenced or not self.owned.issuperset(partitions):
            return None
        found = bytes(self._kafka.consumer_group_metadata())
        generation, _, rest = found[len(_FORMAT) :][:4], *found[len(_FORMAT) + 4 :].partition(b"\0")[1:]
        known = found.startswith(_FORMAT) and generation != _NO_GENERATION and rest.partition(b"\0")[0]
        return found if known else None

    def verify_instance(self, limit_s: float) -> None:
        """Ask Kafka whether we still have our instance id; the answer is in `replaced`."""
        if self._member_of_instance is None or self._joining():
            return
        owner = self._member_of_instance(limit_s)
        us = {self._id, self._kafka.memberid()}  # a join may have given us another member id
        self.replaced = self.replaced or (owner is not None and owner not in us)

    def _joining(self) -> bool:
        """Whether a join is running, so that Kafka may know us by a member id that we do not know yet."""
        unknown = self._id is None or (self._kafka.memberid() != self._id and not self._out)
        return unknown and self.newcomer < _NEWCOMER

    def follow(self, earlier: ConfluentMember) -> None:
        """Continue for our earlier member, before it ends."""
        self.newcomer = earlier.newcomer + 1 if earlier._joining() or earlier.newcomer >= _NEWCOMER else 0
        self.error = earlier.error

    def end(self) -> None:
        """Release all partitions, which may belong to another member by now, and the library's consumer."""
        self._lost = self._leaving = True
        if self.owned:
            self._give_up(set(self.owned))
        self._kafka = None  # which references us

    def leave(self) -> None:
        """Release the partitions, as before a rebalance; later callbacks of the library are ignored."""
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
                # Without an assignment call here the library would unassign by itself, and join again.
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
