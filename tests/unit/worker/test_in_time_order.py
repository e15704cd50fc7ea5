"""Partitions are read in the order of their records' times; no record is lost, doubled or moved in its partition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidecast.service.broker.memory.broker import MemoryBroker
from tidecast.service.broker.port import Batch, OutgoingBatch
from tidecast.service.errors import BrokerUnavailable
from tidecast.service.worker.in_time_order import PATIENCE_SECONDS, InTimeOrder

N = 3


class World:
    """A topic of three partitions, and a consumer of it whose clock the test moves."""

    def __init__(self, records=()):
        self.broker, self.now, self.sent = MemoryBroker(), 0.0, dict.fromkeys(range(N), 0)
        self.wall = 1_000.0  # so that times up to 1,000,000 ms are past
        self.broker.create_topic("source", N)
        self.send(*records)
        self.inner = self.broker.consumer(group="g")
        self.consumer = InTimeOrder(self.inner, lambda: self.now, lambda: self.wall)
        self.found, self.revoked = [], []
        self.consumer.subscribe("source", self.begin, self.revoked.append)

    def begin(self, partitions, starts=None):
        self.consumer.pause(partitions)
        for partition in partitions:
            self.consumer.seek(partition, (starts or {}).get(partition, 0))
        self.consumer.resume(partitions)

    def send(self, *records):
        producer = self.broker.producer()
        for partition, timestamp in records:
            out = OutgoingBatch("source")
            out.append(b"%d" % self.sent[partition], b"", partition=partition, timestamp=timestamp)
            self.sent[partition] += 1
            producer.produce(out)

    def poll(self, most=100):
        batch = self.consumer.poll(0.0, most)
        self.found += zip(batch.partitions, batch.offsets, batch.timestamps, strict=True)
        assert len(batch) <= most
        return batch

    def drain(self, most=100):
        empty = 0
        while empty < 8:
            empty = 0 if len(self.poll(most)) else empty + 1
            self.now += 1.0
        return self.found


def times(found):
    return [timestamp for _, _, timestamp in found]


@pytest.mark.parametrize("most", [1, 2, 7, 100])
def test_what_waits_in_several_partitions_comes_in_the_order_of_its_times_however_little_is_read_at_once(most):
    records = [(p, 1_000 + 10 * i + p) for p in range(N) for i in range(40)]
    found = World(records).drain(most)
    assert times(found) == sorted(timestamp for _, timestamp in records)


records = st.lists(st.tuples(st.integers(0, N - 1), st.sampled_from([-1, 0, 5, 6, 7, 8, 9])), max_size=40)


@given(before=records, after=records, most=st.integers(1, 9))
def test_nothing_is_lost_doubled_or_moved_within_its_partition(before, after, most):
    world = World(before)
    world.poll(most)
    world.send(*after)
    world.drain(most)
    for partition in range(N):
        mine = [offset for p, offset, _ in world.found if p == partition]
        assert mine == list(range(world.sent[partition]))


@given(sent=records, most=st.integers(1, 5), polls=st.integers(1, 12))
def test_who_continues_at_the_offsets_that_were_returned_misses_nothing_and_gets_nothing_twice(sent, most, polls):
    world, positions = World(sent), {}
    for _ in range(polls):
        positions |= world.poll(most).next_offsets
        world.now += 0.5
    world.begin(range(N), positions)
    world.drain(most)
    assert sorted(world.found) == sorted((p, o, t) for p, o, t in set(world.found))
    assert len(world.found) == len(sent)


def test_a_partition_that_has_more_and_of_which_nothing_comes_is_waited_for_only_so_long():
    world = World([(0, 10), (1, 5)])
    read = world.inner.poll
    world.inner.poll = lambda wait, most: without(read(wait, most), 1)
    world.poll()
    assert len(world.poll()) == 0, "partition 1 may have older ones"
    world.now = PATIENCE_SECONDS
    assert times(world.found) == [] and len(world.poll()) == 1
    assert world.found == [(0, 0, 10)]


def without(batch, partition):
    kept = batch.take([row for row, p in enumerate(batch.partitions) if p != partition])
    kept.next_offsets = {p: at for p, at in batch.next_offsets.items() if p != partition}
    return kept


def test_a_timestamp_from_the_future_holds_its_partition_back_no_longer_than_the_others_are_in_the_past():
    world = World([(0, 10**15), *((0, 999_990 + i) for i in range(5)), *((1, 999_000 + i) for i in range(5))])
    world.poll(most=3)
    world.poll(most=3)
    world.send(*((1, 1_000_000 + i) for i in range(20)))  # it always has more
    world.wall = 1_001.0
    for _ in range(4):
        world.poll(most=5)
    assert [offset for p, offset, _ in world.found if p == 0] == [*range(6)]
    assert len(world.found) < 26


def test_a_partition_at_its_end_holds_no_other_back():
    world = World([(0, 10)])
    assert times(world.drain()) == [10]
    world.send((1, 99), (1, 100))
    assert len(world.poll()) == 2, "0 and 2 have no more"


def test_of_a_partition_that_is_far_ahead_only_so_much_is_fetched():
    world = World([(0, 1_000 + i) for i in range(100)] + [(1, i) for i in range(100)])
    for _ in range(6):
        assert all(timestamp < 1_000 for timestamp in times(world.found))
        world.poll(most=5)
    assert world.inner.lag()[0] >= 80, "it is all in memory"
    assert times(world.drain(5)) == [*range(100), *range(1_000, 1_100)]


def test_the_lag_counts_what_is_held():
    world = World([(0, 10), (0, 11), (1, 5), (1, 6)])
    world.poll(most=2)
    world.poll(most=2)
    assert sum(world.consumer.lag().values()) == 4 - len(world.found)


def test_what_is_held_of_a_revoked_partition_is_forgotten_once_the_worker_has_heard_of_it():
    world = World([(0, 10), (0, 11), (1, 5)])
    world.poll(most=1)
    other = world.broker.consumer(group="g")
    other.subscribe("source", lambda new: None, lambda gone: None)
    other.poll(0.0, 1)
    world.drain()
    gone = set().union(*world.revoked)
    assert gone and all(p not in gone for p, _, _ in world.found[1:])


def test_paused_partitions_return_nothing_of_what_is_held():
    world = World([(0, 10), (1, 5), (1, 20)])
    world.poll(most=1)
    world.consumer.pause({0, 1})
    count = len(world.found)
    assert len(world.drain()) == count


def test_an_end_that_kafka_does_not_tell_is_no_reason_to_end():
    world = World([(0, 10)])

    def away(partitions):
        raise BrokerUnavailable("away")

    world.inner.end_offsets = away
    assert times(world.drain()) == [10]


def test_a_batch_that_was_set_aside_is_passed_on():
    world = World()
    world.poll()
    world.inner.poll = lambda wait, most: Batch("source", next_offsets={0: 9}, unread=["x"])
    batch = world.poll()
    assert (batch.unread, batch.next_offsets) == (["x"], {0: 9})
