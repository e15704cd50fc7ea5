"""What the port on librdkafka makes of a library that refuses, forgets, or has no room; the real one: integration."""

import time

import pytest
from confluent_kafka import KafkaError, KafkaException, Message

from tidecast.service.broker.confluent.client import ConfluentClient
from tidecast.service.broker.confluent.fetch_position import FetchPositions
from tidecast.service.broker.confluent.group import ConfluentMember
from tidecast.service.broker.confluent.producer import ConfluentProducer
from tidecast.service.broker.port import OutgoingBatch

CLIENT = ConfluentClient("127.0.0.1:1", 1.0)


def record(partition, offset):
    return Message(topic="t", partition=partition, offset=offset, key=b"k", value=b"v", timestamp=(1, 0))


class Library:
    """A consumer of the library, as far as it is asked here."""

    def __init__(self, member_id=None):
        self.member_id, self.assigned, self.refusals, self.sought, self.arrived = member_id, [], 0, [], []

    def memberid(self):
        return self.member_id

    def incremental_assign(self, tps):
        self.assigned.append(tps)

    def incremental_unassign(self, tps):
        pass

    def pause(self, tps):
        pass

    def resume(self, tps):
        pass

    def seek(self, tp):
        if self.refusals:
            self.refusals -= 1
            raise KafkaException(KafkaError(KafkaError._STATE))
        self.sought.append((tp.partition, tp.offset))

    def consume(self, count, timeout):
        found, self.arrived = self.arrived[:count], self.arrived[count:]
        return found

    def poll(self, timeout):
        time.sleep(timeout)


def member(library, owner):
    return ConfluentMember(
        library, lambda limit: owner, lambda new: None, lambda gone: None, lambda p: None, lambda p: None
    )


def settled(library, owner):
    found = member(library, owner)
    found._assigned(library, [])
    return found


@pytest.mark.parametrize(("owner", "replaced"), [("A", False), (None, False), ("B", True)])
def test_a_named_member_whose_session_has_ended_joins_only_after_kafka_was_asked_who_has_the_name(owner, replaced):
    library = Library("A")
    one = settled(library, owner)
    library.member_id = ""  # the library forgets it
    one._all_lost(library, [])
    assert one.fenced and library.assigned == [[]], "the library would join by itself, and take the name"
    one.verify_instance(1.0)
    assert one.replaced == replaced


def test_the_id_of_our_own_join_is_not_taken_for_another_process():
    """Storms: the library joined again by itself, Kafka had us under a new id, and the worker ended as replaced."""
    for one in (member(Library(), "new"), settled(Library("A"), "new")):
        one._kafka.member_id = ""
        one.verify_instance(1.0)
        assert not one.replaced


def test_a_newcomer_that_is_refused_again_and_again_gives_way():
    one = member(Library(), "other")
    for _ in range(3):
        one.verify_instance(1.0)
        assert not one.replaced
        next_one = member(Library(), "other")
        next_one.follow(one)
        one = next_one
    one.verify_instance(1.0)
    assert one.replaced


def test_where_to_continue_is_kept_while_the_library_refuses_and_nothing_else_of_the_partition_is_given():
    """A storm: resume waited in it for a library that had given up, and a worker hung until its watchdog."""
    library = Library()
    reading = FetchPositions(CLIENT, library, grouped=True, reader=None)
    reading.topic = "t"
    reading.member = settled(library, None)
    reading.member.owned |= {0}
    reading.pause({0})
    reading.seek(0, 7)
    library.refusals = 3
    reading.resume({0})
    assert library.sought == []
    library.arrived = [record(0, 3), record(0, 4)]
    assert len(reading.next(time.monotonic() + 0.001, 10)) == 0, "they are before the offset that was asked for"
    reading.next(time.monotonic() + 0.05, 10)
    assert library.sought == [(0, 7)]


def test_a_buffer_that_is_full_for_a_while_neither_loses_nor_doubles_nor_reorders_records():
    class Full:
        def __init__(self):
            self.got, self.refuse = [], {2: 2, 3: 1, 5: 1}  # by how many have gone before: how often

        def produce(self, topic, value, key, partition, *more):
            if self.refuse.get(len(self.got), 0):
                self.refuse[len(self.got)] -= 1
                raise BufferError
            self.got.append((value, key, partition, *more))

        def poll(self, timeout):
            return 0

    for headers in ((), (("source", b"x"),)):
        producer = ConfluentProducer(CLIENT, lambda topic: 2)
        real, producer._kafka = producer._kafka, Full()
        outgoing = OutgoingBatch("t")
        for i in range(6):
            outgoing.append(b"k", b"%d" % i, partition=i % 2, headers=headers)
        producer.produce(outgoing)
        more = () if not headers else (None, None, 0, list(headers))
        assert producer._kafka.got == [(b"%d" % i, b"k", i % 2, *more) for i in range(6)]
        producer._kafka = real
        producer.close()
