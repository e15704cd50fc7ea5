"""Partitions that the group has left without an owner: the group is made to assign them again.

A partition that moves is assigned to nobody at first, until the member that has it gives it up and joins again. A
member that ends in between, and comes back under the same instance id, gets the same assignment without that partition.
It has nothing to give up, so nobody joins again (docs/upstream.md, A1), and no client library notices.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tidecast.service.broker.port import Broker
from tidecast.service.errors import BrokerError, BrokerUnavailable

log = logging.getLogger("tidecast.worker")

_MOST_LOOKS = 64  # between two evictions that do not help


@dataclass(frozen=True, slots=True)
class Unowned:
    """A group that rests, and the partitions of its topic that no member has."""

    members: Mapping[str, frozenset[int]]  # member id -> its partitions
    partitions: tuple[int, ...]

    @property
    def least(self) -> str:
        """The member with the fewest partitions, of several the one with the lowest id: so that all choose the same."""
        return min(self.members, key=lambda member: (len(self.members[member]), member))


def unowned(broker: Broker, group: str, topic: str) -> Unowned | None:
    """What nobody owns now; None where all is owned, the group rebalances or has no members.

    Believe it only if it is the same after some seconds: a member may be about to give a partition up.

    Raises:
        BrokerError: Kafka does not answer, or refuses.
    """
    members = broker.group_members(group, topic)
    if not members:
        return None
    left = set(range(broker.partitions(topic) or 0)).difference(*members.values())
    return Unowned(members, tuple(sorted(left))) if left else None


class GroupWatch:
    """Looks for partitions without an owner; for one thread, which calls `look` every 10 s.

    After two looks that found the same, the member with the fewest partitions is evicted. It joins again, and the group
    assigns all partitions. If that does not help, the next eviction waits for twice as many looks, at most 64.

    Args:
        broker: its admin calls are used.
        group: of the worker.
        topic: that the worker reads.
        count: called with the number of partitions without an owner, at each eviction.
    """

    def __init__(self, broker: Broker, group: str, topic: str, count: Callable[[int], object]) -> None:
        self._broker, self._group, self._topic, self._count = broker, group, topic, count
        self._suspicion: Unowned | None = None
        self._pause = 1  # looks to wait after the next eviction
        self._waiting = 0  # looks still to wait
        self._error: str | None = None  # that was said

    def look(self) -> None:
        """Look once, and evict a member if the same was found before."""
        try:
            self._look()
        except BrokerUnavailable:  # the loop notices that itself
            self._suspicion = None
        except BrokerError as error:
            self._suspicion = None
            if error.what != self._error:
                log.warning("cannot look for partitions without an owner, trying again", extra={"reason": error.what})
            self._error = error.what
        else:
            self._error = None

    def _look(self) -> None:
        found, before = unowned(self._broker, self._group, self._topic), self._suspicion
        self._suspicion = found
        if found is None:
            self._pause, self._waiting = 1, 0
            return
        if self._waiting:
            self._waiting -= 1
        elif found == before:
            log.warning(
                "the group has left partitions without an owner: one of its members is made to join again, so that the "
                "group assigns them",
                extra={
                    "topic": self._topic,
                    "partitions": list(found.partitions),
                    "members": len(found.members),
                    "evicted": found.least,
                },
            )
            self._count(len(found.partitions))
            self._broker.evict(self._group, found.least)
            self._suspicion, self._waiting, self._pause = None, self._pause, min(2 * self._pause, _MOST_LOOKS)
