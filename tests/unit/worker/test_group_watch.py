"""When the worker makes its group assign the partitions again, on a group that a test describes."""

import logging
from itertools import pairwise

import pytest

from tidecast.service.broker.memory.broker import MemoryBroker
from tidecast.service.errors import BrokerError, BrokerUnavailable
from tidecast.service.worker.group_watch import GroupWatch, unowned


class Described:
    """A broker whose topic has three partitions; `members` is what it says of the group."""

    def __init__(self, **members):
        self.members = {name: frozenset(partitions) for name, partitions in members.items()}
        self.evicted = []

    def group_members(self, group, topic):
        if isinstance(self.members, Exception):
            raise self.members
        return self.members

    def partitions(self, topic):
        return 3

    def evict(self, group, member):
        self.evicted.append(member)


@pytest.fixture
def watched():
    """`watched(broker)`: its watch, and the list of what was counted."""

    def make(broker):
        counted = []
        return GroupWatch(broker, "group", "topic", counted.append), counted

    return make


def test_the_member_with_the_fewest_partitions_is_evicted_once_two_looks_found_the_same(watched, caplog):
    broker = Described(b={0}, a=(), c={1})
    watch, counted = watched(broker)
    watch.look()
    assert not broker.evicted and not counted
    with caplog.at_level(logging.WARNING):
        watch.look()
    assert broker.evicted == ["a"] and counted == [1]
    (said,) = caplog.records
    assert "without an owner" in said.message and (said.topic, said.partitions, said.members) == ("topic", [2], 3)


def test_of_members_with_equally_few_partitions_all_workers_choose_the_same(watched):
    for order in ("ab", "ba"):
        broker = Described(**{name: {i} for i, name in enumerate(order)})
        watch, _ = watched(broker)
        watch.look()
        watch.look()
        assert broker.evicted == ["a"]


@pytest.mark.parametrize(
    "members", [None, {}, {"a": frozenset({0, 1, 2})}, {"a": frozenset({0, 2}), "b": frozenset({1})}]
)
def test_a_group_that_rebalances_is_empty_or_has_all_partitions_is_left_alone(watched, members):
    broker = Described()
    broker.members = members
    watch, counted = watched(broker)
    for _ in range(5):
        watch.look()
    assert not broker.evicted and not counted


def test_a_group_that_changes_between_two_looks_is_left_alone(watched):
    """A partition that moves has no owner for a moment."""
    broker = Described(a={0, 1})
    watch, _ = watched(broker)
    watch.look()
    broker.members = {"a": frozenset({0}), "b": frozenset({2})}
    watch.look()
    broker.members = None
    watch.look()
    broker.members = {"a": frozenset({0}), "b": frozenset({2})}
    watch.look()
    assert not broker.evicted


def test_evictions_that_do_not_help_become_rare(watched):
    broker = Described(a={0})
    watch, _ = watched(broker)
    looks = []
    for look in range(1_000):
        before = len(broker.evicted)
        watch.look()
        if len(broker.evicted) > before:
            looks.append(look)
    gaps = [b - a for a, b in pairwise(looks)]
    assert gaps[:6] == [2, 3, 5, 9, 17, 33] and set(gaps[6:]) == {65}


def test_after_the_group_was_whole_the_next_finding_is_acted_on_at_once(watched):
    broker = Described(a={0})
    watch, _ = watched(broker)
    for _ in range(20):
        watch.look()
    broker.members = {"a": frozenset({0, 1, 2})}
    watch.look()
    broker.evicted.clear()
    broker.members = {"a": frozenset({1})}
    watch.look()
    watch.look()
    assert broker.evicted == ["a"]


def test_a_refusal_is_said_once_and_a_kafka_that_is_away_is_left_to_the_loop(watched, caplog):
    broker = Described()
    watch, _ = watched(broker)
    with caplog.at_level(logging.WARNING):
        for error in (BrokerUnavailable("away"), BrokerError("no right"), BrokerError("no right")):
            broker.members = error
            watch.look()
    assert [record.reason for record in caplog.records] == ["no right"]


def test_a_group_in_memory_has_an_owner_for_each_partition_once_its_members_have_polled():
    broker = MemoryBroker()
    broker.create_topic("topic", 3)
    assert unowned(broker, "group", "topic") is None
    consumers = [broker.consumer(group="group") for _ in range(2)]
    for consumer in consumers:
        consumer.subscribe("topic", lambda p: None, lambda p: None)
    assert broker.group_members("group", "topic") is None
    for consumer in consumers:
        consumer.poll(0.0, 1)
    members = broker.group_members("group", "topic")
    assert sorted(map(len, members.values())) == [1, 2] and frozenset().union(*members.values()) == {0, 1, 2}
    assert unowned(broker, "group", "topic") is None
