"""Membership of a group on librdkafka.

The library runs the callbacks of a rebalance inside of the caller's own calls, as the port promises. What is minded
here besides:
  - An error in a callback would make the library throw away the records that the same call has gathered. So it is kept,
    and raised once they are safe.
  - A call may return records that it gathered before one of its callbacks gave their partition away.
  - A member that hears, or finds by itself, that its session has ended forgets who it was and joins anew. One with a
    name would take that from a process that has it meanwhile. So it asks first, before it lets go: until then the
    library waits.
  - Once its session has ended it goes on with heartbeats, though it does not know any more who it is. For one with a
    name Kafka answers that its name is another's: its own, of before. The library takes that for its end. So Kafka is
    asked who has the name; where that is us, a new consumer takes our place (`ConfluentConsumer._begin_anew`).
  - The group metadata of a member that is out names nobody, and Kafka lets that pass unchecked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from service.broker.confluent_calls import log
from service.errors import BrokerError

_SOON_S = 2.0  # a Kafka that does not answer by then has lost us, and whoever else has our name
_NO_GENERATION = b"\xff\xff\xff\xff"
_FORMAT = b"CGMDv2:"  # then the generation, and, each ended by a zero, the group and the member's id


class Member:
    """One consumer's part in its group. For one caller's thread.

    Args:
        kafka: a Consumer of the library, with a group.
        holder: asks Kafka, for so many seconds, for the id of the member that has our name; None where we have none.
        on_assigned: called inside of the library's calls.
        on_revoked: likewise.
        take: begins to read partitions, after `on_assigned`.
        drop: ends it, after `on_revoked`.
    """

    def __init__(
        self,
        kafka: Any,
        holder: Callable[[float], str | None] | None,
        on_assigned: Callable[[set[int]], None],
        on_revoked: Callable[[set[int]], None],
        take: Callable[[Collection[int]], None],
        drop: Callable[[Collection[int]], None],
    ) -> None:
        self._kafka, self._holder = kafka, holder
        self._on_assigned, self._on_revoked, self._take, self._drop = on_assigned, on_revoked, take, drop
        self._id: str | None = None
        self._lost = False  # in on_revoked: the partitions may be another member's already
        self._leaving = False
        self.owned: set[int] = set()  # the group's share, as the callbacks have told the caller
        self.new: set[int] = set()  # given to us, and not read yet
        self.gone: set[int] = set()  # what was taken away since it was last emptied
        self.fenced = False  # the library was told that another has our name, and does no more
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

    def confirm(self, limit_s: float) -> None:
        """Ask Kafka whether our name is still our own; `replaced` tells."""
        # A join that has begun may have given us another id.
        us = {self._id, self._kafka.memberid()} - {None}
        if self._holder is not None and us:
            holder = self._holder(limit_s)
            self.replaced = self.replaced or (holder is not None and holder not in us)

    def end(self) -> None:
        """Give up all partitions, which may be another member's by now; the library's consumer is of no more use."""
        self._lost = self._leaving = True
        if self.owned:
            self._give_up(set(self.owned))

    def leave(self) -> None:
        """Give up the partitions, as before a rebalance; what the library then still tells is not passed on."""
        if not self._leaving and self.owned and not self.replaced:
            self._give_up(set(self.owned))
        self._leaving = True

    def _assigned(self, _kafka: Any, tps: Collection[Any]) -> None:
        if self._leaving:
            return
        self._id = self._kafka.memberid()
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
            if not self._leaving:
                try:
                    self.confirm(_SOON_S)
                except BrokerError as error:
                    log.warning("%s", error)
            if self.replaced:
                self._give_up({tp.partition for tp in tps})
                # Something is done, so the library does nothing by itself: it would join, as soon as we let go.
                self._kafka.incremental_assign([])
            else:
                self._revoked(kafka, tps)
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
