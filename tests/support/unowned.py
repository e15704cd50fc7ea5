"""A group that has left partitions without an owner, made on purpose (docs/upstream.md, A1)."""

import pytest

from tests.contract.broker_contract import Member, poll_until
from tidecast.service.broker.port import Membership
from tidecast.service.errors import InstanceFenced


class Replaced(Member):
    """A member that another one with its instance id replaces just as it gives partitions up, as if it was killed."""

    def __init__(self, port, topic, group, successor):
        self.successor, self.make_successor = None, successor
        super().__init__(port, topic, group, Membership("one"))

    def leave(self, partitions):
        super().leave(partitions)
        if self.successor is None:
            self.successor = self.make_successor()
            poll_until([self.successor.consumer], lambda: self.successor.told)


def left_out(port, topic, group, join):
    """The member "one" of a group in which nobody has some partitions: what it was to give up to a second member.

    Args:
        port: to Kafka.
        topic: of two partitions or more.
        group: that nobody uses yet.
        join: makes the second member join; returns its consumer, or None if it is polled elsewhere.
    """
    first = Replaced(port, topic, group, lambda: Member(port, topic, group, Membership("one")))
    poll_until([first.consumer], lambda: len(first.assigned) == port.partitions(topic))
    second = join()
    with pytest.raises(InstanceFenced):
        poll_until([first.consumer] if second is None else [first.consumer, second], lambda: False)
    first.consumer.close()
    return first.successor
