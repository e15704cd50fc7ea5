"""What every implementation of `tidecast.service.broker.port` must do, whichever Kafka is behind it.

A subclass gives the fixture `port` (a Broker); the tests then run on it.
"""

import threading
import time
import uuid

import pytest

from tidecast.service.broker.port import DYNAMIC, Batch, Membership, OutgoingBatch
from tidecast.service.errors import BrokerError, InstanceFenced

PATIENCE_S = 60.0  # a limit, not an expectation


def fill(port, topic, count, *, partition=None, start=0):
    outgoing = OutgoingBatch(topic)
    for i in range(start, start + count):
        outgoing.append(b"k%d" % (i % 7), b"v%d" % i, partition=partition, timestamp=1_700_000_000_000 + i)
    producer = port.producer()
    producer.produce(outgoing)
    producer.flush(PATIENCE_S)
    producer.close()


def drain(consumer, count, *, max_records=500) -> Batch:
    """Poll until `count` records have come; all of them as one batch."""
    found = Batch("")
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < count and time.monotonic() < deadline:
        batch = consumer.poll(0.1, max_records)
        assert len(batch) <= max_records
        for name in ("partitions", "offsets", "timestamps", "keys", "values", "headers"):
            getattr(found, name).extend(getattr(batch, name))
        found.topic = batch.topic
        found.next_offsets.update(batch.next_offsets)
    assert len(found) == count
    return found


def poll_until(consumers, condition):
    """Poll all in turn until `condition()`; the values that came."""
    values, deadline = [], time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "the group did not settle"
        for consumer in consumers:
            values += consumer.poll(0.05, 500).values
    return values


class Member:
    """A consumer in a group that notes what is assigned to it."""

    def __init__(self, port, topic, group, membership=DYNAMIC):
        self.assigned, self.threads, self.told = set(), set(), []
        self.consumer = port.consumer(group=group, membership=membership)
        self.consumer.subscribe(topic, self.take, self.leave)

    def take(self, partitions):
        self.threads.add(threading.get_ident())
        self.told.append(set(partitions))
        self.assigned |= partitions

    def leave(self, partitions):
        self.threads.add(threading.get_ident())
        self.assigned -= partitions


class BrokerContract:
    @pytest.fixture
    def topic(self, port):
        name = f"t-{uuid.uuid4().hex[:8]}"
        assert port.create_topic(name, 4, {"retention.ms": "-1"})  # its records are years old
        return name

    @pytest.fixture
    def reader(self, port, topic):
        consumer = port.consumer()
        consumer.assign(topic, dict.fromkeys(range(4), -2))
        yield consumer
        consumer.close()

    def test_a_record_comes_back_byte_for_byte(self, port, topic, reader):
        outgoing = OutgoingBatch(topic)
        headers = [("content-type", b"application/json"), ("ü", b"\x00\xff"), ("empty", b"")]
        outgoing.append(b"key", b'{"ts": 1}', partition=2, headers=headers, timestamp=1_700_000_000_123)
        outgoing.append(b"\x00\xff", None, partition=2, timestamp=5)  # a tombstone, and a key that is not UTF-8
        outgoing.append(None, b"", partition=2, timestamp=6)
        outgoing.append(None, None, partition=2, timestamp=7)  # Kafka takes it, so it can reach us and be dead-lettered
        producer = port.producer()
        producer.produce(outgoing)
        producer.flush(PATIENCE_S)
        producer.close()
        batch = drain(reader, 4)
        assert batch.topic == topic
        assert batch.keys == [b"key", b"\x00\xff", None, None]
        assert batch.values == [b'{"ts": 1}', None, b"", None]
        assert batch.timestamps == [1_700_000_000_123, 5, 6, 7]
        assert batch.partitions == [2] * 4 and batch.offsets == [0, 1, 2, 3]
        assert list(batch.headers[0]) == headers and not batch.headers[1]

    def test_records_keep_their_order_within_a_partition(self, port, topic, reader):
        fill(port, topic, 6_000)
        fill(port, topic, 6_000, start=6_000)
        batch = drain(reader, 12_000)
        for partition in range(4):
            mine = [i for i, p in enumerate(batch.partitions) if p == partition]
            assert [batch.offsets[i] for i in mine] == list(range(len(mine)))
            numbers = [int(batch.values[i][1:]) for i in mine]
            assert numbers == sorted(numbers) and len(numbers) == len(set(numbers))
        counts = {p: batch.partitions.count(p) for p in set(batch.partitions)}
        assert {p: offset for p, offset in batch.next_offsets.items() if offset} == counts

    def test_a_key_goes_where_a_java_producer_would_put_it(self, port, topic, reader):
        outgoing = OutgoingBatch(topic)
        for key in (b"21", b"foobar", b"a-little-bit-long-string"):
            outgoing.append(key, b"")
        producer = port.producer()
        producer.produce(outgoing)
        producer.flush(PATIENCE_S)
        producer.close()
        batch = drain(reader, 3)
        hashes = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}
        assert dict(zip(batch.keys, batch.partitions, strict=True)) == {
            key: (value & 0x7FFFFFFF) % 4 for key, value in hashes.items()
        }

    def test_a_record_without_a_timestamp_gets_the_present(self, port, topic, reader):
        outgoing = OutgoingBatch(topic)
        outgoing.append(b"k", b"v")
        before = int(time.time() * 1_000)
        producer = port.producer()
        producer.produce(outgoing)
        producer.flush(PATIENCE_S)
        producer.close()
        assert before <= drain(reader, 1).timestamps[0] <= int(time.time() * 1_000)

    def test_an_empty_poll_ends_in_time_and_carries_no_records(self, reader):
        for _ in range(3):
            assert len(reader.poll(0.05, 10)) == 0

    def test_a_poll_never_gives_more_than_asked_for(self, port, topic, reader):
        fill(port, topic, 300)
        drain(reader, 300, max_records=17)

    def test_reading_from_the_end_sees_only_what_comes_after(self, port, topic):
        fill(port, topic, 5, partition=1)
        consumer = port.consumer()
        consumer.assign(topic, {1: -1})
        fill(port, topic, 2, partition=1, start=100)
        assert drain(consumer, 2).values == [b"v100", b"v101"]
        consumer.close()

    def test_reading_from_an_offset_and_seeking_back(self, port, topic):
        fill(port, topic, 10, partition=3)
        consumer = port.consumer()
        consumer.assign(topic, {3: 8})
        assert drain(consumer, 2).offsets == [8, 9]
        consumer.seek(3, 5)
        batch = drain(consumer, 5)
        assert batch.offsets == [5, 6, 7, 8, 9] and batch.next_offsets == {3: 10}
        consumer.close()

    def test_a_paused_partition_is_silent_until_it_is_resumed(self, port, topic, reader):
        reader.pause([0])
        fill(port, topic, 3, partition=0)
        fill(port, topic, 3, partition=1)
        assert set(drain(reader, 3).partitions) == {1}
        assert len(reader.poll(0.3, 10)) == 0
        reader.resume([0])
        assert drain(reader, 3).offsets == [0, 1, 2]

    def test_a_partition_that_is_paused_with_some_of_its_records_read_continues_where_it_was(self, port, topic, reader):
        """kafka-python kept such a partition parked for good, once it had used up what it had of another."""
        fill(port, topic, 10, partition=0)
        assert drain(reader, 4, max_records=1).offsets == [0, 1, 2, 3]
        reader.pause([0])
        assert len(reader.poll(0.3, 4)) == 0
        fill(port, topic, 3, partition=1)
        assert set(drain(reader, 3, max_records=4).partitions) == {1}
        assert len(reader.poll(0.3, 4)) == 0
        reader.resume([0])
        assert drain(reader, 6, max_records=4).offsets == [4, 5, 6, 7, 8, 9]

    def test_offsets_and_lag_tell_how_much_is_left(self, port, topic, reader):
        fill(port, topic, 10, partition=2)
        assert reader.beginning_offsets([1, 2]) == {1: 0, 2: 0}
        assert reader.end_offsets([1, 2]) == {1: 0, 2: 10}
        drain(reader, 10, max_records=4)
        poll_until([reader], lambda: len(reader.lag()) == 4)  # an end is known once a fetch was answered
        assert reader.lag() == dict.fromkeys(range(4), 0)

    def test_what_is_assigned_again_is_read_though_it_was_paused(self, port, topic, reader):
        fill(port, topic, 3, partition=1)
        drain(reader, 3)
        reader.pause([1])
        fill(port, topic, 2, partition=2)
        assert drain(reader, 2).partitions == [2, 2]
        reader.assign(topic, {1: 1, 2: 2})
        assert drain(reader, 2).offsets == [1, 2]

    def test_a_group_continues_where_it_committed(self, port, topic):
        fill(port, topic, 10, partition=0)
        member = Member(port, topic, topic)
        assert drain(member.consumer, 10).next_offsets[0] == 10
        assert member.consumer.committed([0, 1]) == {0: None, 1: None}
        member.consumer.commit({0: 4}, "snapshot=2")
        assert member.consumer.committed([0]) == {0: (4, "snapshot=2")}
        member.consumer.close()
        assert member.assigned == set()
        again = Member(port, topic, topic)
        assert drain(again.consumer, 6).offsets == [4, 5, 6, 7, 8, 9]
        assert again.consumer.committed([0]) == {0: (4, "snapshot=2")}
        again.consumer.close()

    def test_a_commit_that_is_not_waited_for_is_answered_later(self, port, topic):
        fill(port, topic, 10, partition=0)
        member = Member(port, topic, topic)
        drain(member.consumer, 10)
        for offset in (4, 7):
            member.consumer.commit_async({0: offset}, {0: f"snapshot={offset}"})
            poll_until([member.consumer], member.consumer.commit_acknowledged)
            assert member.consumer.commit_acknowledged(), "asked once more, it says the same"
            assert member.consumer.committed([0]) == {0: (offset, f"snapshot={offset}")}
        member.consumer.close()

    def test_a_refusal_of_a_commit_that_is_not_waited_for_is_reported(self, port, topic):
        outside = port.consumer(group=f"g-{topic}")
        outside.assign(topic, {0: 0})
        member = Member(port, topic, f"g-{topic}")
        poll_until([member.consumer], lambda: len(member.assigned) == 4)
        outside.commit_async({0: 5})
        with pytest.raises(BrokerError, match="moved on without this member"):
            poll_until([outside, member.consumer], outside.commit_acknowledged)
        assert member.consumer.committed([0]) == {0: None}
        member.consumer.close()
        outside.close()

    def test_closing_does_not_commit(self, port, topic):
        fill(port, topic, 3, partition=0)
        for _ in range(2):
            member = Member(port, topic, topic)
            assert drain(member.consumer, 3).offsets == [0, 1, 2]
            member.consumer.close()

    def test_members_share_the_partitions_and_take_over_from_one_that_leaves(self, port, topic):
        first = Member(port, topic, topic)
        poll_until([first.consumer], lambda: len(first.assigned) == 4)
        second = Member(port, topic, topic)
        both = [first.consumer, second.consumer]
        poll_until(both, lambda: len(first.assigned) == 2 and len(second.assigned) == 2)
        assert first.assigned | second.assigned == {0, 1, 2, 3}
        fill(port, topic, 200)
        seen: list[bytes] = []

        def all_seen():
            for consumer in both:
                seen.extend(consumer.poll(0.05, 500).values)
            return len(seen) >= 200

        seen += poll_until([], all_seen)
        assert sorted(seen) == sorted(b"v%d" % i for i in range(200)), "a record went to both members, or to none"
        first.consumer.close()
        poll_until([second.consumer], lambda: len(second.assigned) == 4)
        second.consumer.close()

    def test_a_spare_member_hears_that_nothing_is_left_for_it(self, port):
        topic = f"t-{uuid.uuid4().hex[:8]}"
        assert port.create_topic(topic, 1)
        first = Member(port, topic, topic)
        poll_until([first.consumer], lambda: first.assigned == {0})
        second = Member(port, topic, topic)
        members = [first, second]
        poll_until([m.consumer for m in members], lambda: second.told and len(first.assigned | second.assigned) == 1)
        assert set() in second.told or set() in first.told
        for member in members:
            member.consumer.close()

    def test_a_member_can_commit_when_partitions_are_taken_from_it(self, port, topic):
        fill(port, topic, 40)
        positions: dict[int, int] = {}
        first = Member(port, topic, topic)
        leave = first.leave

        def commit_and_leave(partitions):
            first.consumer.commit({p: positions[p] for p in partitions if p in positions}, "from the callback")
            leave(partitions)

        first.leave = commit_and_leave
        first.consumer.close()
        first.consumer = port.consumer(group=topic)
        first.consumer.subscribe(topic, first.take, commit_and_leave)
        positions |= drain(first.consumer, 40).next_offsets
        second = Member(port, topic, topic)
        values = poll_until([first.consumer, second.consumer], lambda: len(second.assigned) == 2)
        assert values == [], "what the first member had read and committed came again"
        moved = {p for p in second.assigned if p in positions}
        assert second.consumer.committed(moved) == {p: (positions[p], "from the callback") for p in moved}
        first.consumer.close()
        second.consumer.close()

    def test_nobody_commits_for_a_group_from_outside_while_it_has_members(self, port, topic):
        outside = port.consumer(group=f"g-{topic}")
        outside.assign(topic, {0: 0})
        outside.commit({0: 3}, "before")
        member = Member(port, topic, f"g-{topic}")
        poll_until([member.consumer], lambda: len(member.assigned) == 4)
        with pytest.raises(BrokerError, match="moved on without this member"):
            outside.commit({0: 5})
        member.consumer.close()
        assert outside.committed([0]) == {0: (3, "before")}
        outside.commit({0: 3}, "before")  # and continues where the group has ended
        outside.close()

    def test_of_two_processes_with_one_name_the_newer_continues_and_the_older_is_notified(self, port, topic):
        fill(port, topic, 4, partition=0)
        older = Member(port, topic, topic, Membership("one"))
        poll_until([older.consumer], lambda: len(older.assigned) == 4)
        older.consumer.verify_instance()
        newer = Member(port, topic, topic, Membership("one"))
        poll_until([newer.consumer], lambda: len(newer.assigned) == 4)
        for _ in range(2):
            for attempt in (older.consumer.verify_instance, lambda: older.consumer.commit({0: 1})):
                with pytest.raises(InstanceFenced, match=r"another process has the name 'one'.*a name of its own"):
                    attempt()
            with pytest.raises(InstanceFenced, match="'one'"):  # its heartbeats were refused
                poll_until([older.consumer], lambda: False)
        newer.consumer.verify_instance()
        newer.consumer.commit({0: 4})
        assert newer.consumer.committed([0]) == {0: (4, "")} and len(newer.assigned) == 4
        older.consumer.close()
        newer.consumer.poll(0.1, 10)
        newer.consumer.verify_instance()
        newer.consumer.close()

    def test_members_with_names_of_their_own_or_none_share_the_partitions(self, port, topic):
        members = [Member(port, topic, topic, Membership(name)) for name in ("one", "two", None, None)]
        consumers = [m.consumer for m in members]
        poll_until(consumers, lambda: all(len(m.assigned) == 1 for m in members))
        for consumer in consumers:
            consumer.verify_instance()
            consumer.close()

    def test_callbacks_run_on_the_thread_that_polls(self, port, topic):
        member = Member(port, topic, topic)
        poll_until([member.consumer], lambda: len(member.assigned) == 4)
        member.consumer.close()
        assert member.threads == {threading.get_ident()} and member.assigned == set()

    def test_an_error_in_a_callback_reaches_the_caller(self, port, topic):
        def refuse(partitions):
            raise BrokerError("no thanks")

        consumer = port.consumer(group=topic)
        consumer.subscribe(topic, refuse, lambda partitions: None)
        with pytest.raises(BrokerError, match="no thanks"):
            poll_until([consumer], lambda: False)
        consumer.close()

    def test_a_seek_when_partitions_are_assigned_decides_where_reading_starts(self, port, topic):
        fill(port, topic, 10, partition=0)
        consumer = port.consumer(group=topic)
        consumer.subscribe(topic, lambda partitions: consumer.seek(0, 7), lambda partitions: None)
        assert drain(consumer, 3).offsets == [7, 8, 9]
        consumer.close()

    def test_topics_are_made_once_counted_and_deleted(self, port, topic):
        assert port.partitions(topic) == 4 and port.topics()[topic] == 4
        assert not port.create_topic(topic, 9)
        assert port.partitions(topic) == 4
        assert port.delete_topic(topic) and not port.delete_topic(f"{topic}-not")
        deadline = time.monotonic() + PATIENCE_S
        while port.partitions(topic) is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert port.partitions(topic) is None and topic not in port.topics()

    def test_the_topics_can_be_listed_while_others_delete_theirs(self, port, topic):
        short_lived = [f"{topic}-{number}" for number in range(20)]
        for name in short_lived:
            port.create_topic(name, 1)
        deleting = threading.Thread(target=lambda: [port.delete_topic(name) for name in short_lived])
        deleting.start()
        while deleting.is_alive():
            assert port.topics()[topic] == 4
        deleting.join()

    def test_a_topic_that_is_made_again_has_another_id(self, port, topic):
        first = port.describe(topic)
        assert first == port.describe(topic) and first.partitions == 4
        assert port.delete_topic(topic)
        deadline = time.monotonic() + PATIENCE_S
        while port.describe(topic) is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert port.create_topic(topic, 4)
        assert port.describe(topic).partitions == 4 and port.describe(topic).id != first.id

    def test_a_topic_that_is_not_there_is_named_and_not_made(self, port):
        missing = f"missing-{uuid.uuid4().hex[:8]}"
        outgoing = OutgoingBatch(missing)
        outgoing.append(b"k", b"v")
        producer, consumer, member = port.producer(), port.consumer(), port.consumer(group=missing)
        for attempt in (
            lambda: producer.produce(outgoing),
            lambda: consumer.assign(missing, {0: -2}),
            lambda: member.subscribe(missing, print, print),
        ):
            with pytest.raises(BrokerError, match=f"{missing}.*tidecast topics create"):
                attempt()
        for each in (producer, consumer, member):
            each.close()
        assert port.partitions(missing) is None

    def test_a_topics_settings_can_be_read(self, port, topic):
        name = f"compacted-{uuid.uuid4().hex[:8]}"
        port.create_topic(name, 1, {"cleanup.policy": "compact", "segment.ms": "600000"})
        found = port.topic_config(name)
        assert (found["cleanup.policy"], found["segment.ms"]) == ("compact", "600000")
        assert port.topic_config(topic)["cleanup.policy"] == "delete"  # defaults are included
        with pytest.raises(BrokerError, match=r"missing.*tidecast topics create"):
            port.topic_config(f"missing-{name}")

    def test_a_partition_that_is_not_there_is_refused_and_nothing_is_written(self, port, topic, reader):
        outgoing = OutgoingBatch(topic)
        outgoing.append(b"k", b"v", partition=0)
        outgoing.append(b"k", b"v", partition=4)
        producer = port.producer()
        with pytest.raises(BrokerError, match="no partition 4"):
            producer.produce(outgoing)
        producer.flush(PATIENCE_S)
        producer.close()
        with pytest.raises(BrokerError, match="no partition 9"):
            reader.assign(topic, {9: 0})
        assert reader.end_offsets([0]) == {0: 0}

    def test_using_what_is_not_assigned_or_has_no_group_is_a_broker_error(self, port, topic):
        consumer = port.consumer()
        consumer.assign(topic, {0: -2})
        for attempt in (
            lambda: consumer.seek(1, 0),
            lambda: consumer.commit({0: 1}),
            lambda: consumer.subscribe(topic, print, print),
        ):
            with pytest.raises(BrokerError):
                attempt()
        consumer.close()

    def test_producing_nothing_is_fine(self, port, topic):
        producer = port.producer()
        producer.produce(OutgoingBatch(topic))
        producer.flush(1.0)
        producer.close()
