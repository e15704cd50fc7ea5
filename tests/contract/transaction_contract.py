"""What transactions must do on every implementation of `tidecast.service.broker.port`; see `broker_contract`."""

import time
import uuid

import pytest

from tests.contract.broker_contract import PATIENCE_S, Member, drain, fill, poll_until
from tidecast.service.broker.port import Membership, OutgoingBatch
from tidecast.service.errors import BrokerError, Fenced, InstanceFenced


def outgoing(topic, *values, partition=0):
    made = OutgoingBatch(topic)
    for value in values:
        made.append(b"k", value, partition=partition)
    return made


def read_to_the_end(consumer, topic, partitions=(0,)):
    """As a restore does it: by position, up to the end offsets. The values that came."""
    consumer.assign(topic, dict.fromkeys(partitions, -2))
    end = consumer.end_offsets(partitions)
    at, values = dict.fromkeys(partitions, 0), []

    def arrived():
        batch = consumer.poll(0.05, 2)
        values.extend(batch.values)
        at.update(batch.next_offsets)
        return all(at[p] >= end[p] for p in partitions)

    poll_until([], arrived)
    return values


def settle(port, topic, partitions=(0,)):
    """A transaction's marks are written a moment after the answer to its commit. Where one is open, this waits 1 s."""
    careful, hasty = port.consumer(), port.consumer(isolation="read_uncommitted")
    for consumer in (careful, hasty):
        consumer.assign(topic, dict.fromkeys(partitions, 0))
    deadline = time.monotonic() + 1
    while careful.end_offsets(partitions) != hasty.end_offsets(partitions) and time.monotonic() < deadline:
        time.sleep(0.01)
    for consumer in (careful, hasty):
        consumer.close()


class TransactionContract:
    """A subclass has the fixtures of BrokerContract, and

    `evict(port, member)`: the group evicts the member, which does not know it.
    `offer(port, topic, group)`: a transaction holds offset 7 of the group for partition 0; returns how to commit it.
    `impatient()`: another port to the same cluster, with a time limit of 2 s.
    """

    @pytest.fixture
    def source(self, port):
        """The input topic."""
        name = f"in-{uuid.uuid4().hex[:8]}"
        assert port.create_topic(name, 4, {"retention.ms": "-1"})
        return name

    @pytest.fixture
    def take(self, port):
        """`take(id)` makes a producer with that transactional id: it aborts what the one before it left open."""
        made = []

        def make(transactional_id):
            made.append(port.producer(transactional_id=transactional_id))
            return made[-1]

        yield make
        for producer in made:
            producer.close()

    @pytest.fixture
    def member(self, port, source):
        """The only member of a group on the input topic, with all its partitions."""
        one = Member(port, source, source)
        poll_until([one.consumer], lambda: len(one.assigned) == 4)
        yield one
        one.consumer.close()

    @pytest.fixture
    def see(self, port, topic):
        """`see(isolation)` is what a reader of `topic` with that isolation finds."""

        def read(isolation="read_committed"):
            settle(port, topic, range(4))
            consumer = port.consumer(isolation=isolation)
            try:
                return read_to_the_end(consumer, topic, range(4))
            finally:
                consumer.close()

        return read

    def test_a_transaction_is_seen_whole_with_its_offsets_or_not_at_all(self, topic, source, member, take, see):
        producer = take(topic)
        producer.begin()
        for partition in range(3):
            producer.produce(outgoing(topic, b"a%d" % partition, b"b%d" % partition, partition=partition))
        producer.flush(PATIENCE_S)
        assert see() == [] and len(see("read_uncommitted")) == 6
        assert member.consumer.committed([0, 1]) == {0: None, 1: None}
        producer.commit_transaction(source, {0: (5, "s=3"), 1: (9, "")}, member.consumer, PATIENCE_S)
        assert sorted(see()) == [b"a0", b"a1", b"a2", b"b0", b"b1", b"b2"]
        assert member.consumer.committed([0, 1, 2]) == {0: (5, "s=3"), 1: (9, ""), 2: None}

    def test_what_was_aborted_is_never_seen_and_the_next_producer_continues(self, topic, source, member, take, see):
        producer = take(topic)
        for value, commit in ((b"1", True), (b"2", False), (b"3", True)):
            producer.begin()
            producer.produce(outgoing(topic, value))
            if commit:
                producer.commit_transaction(source, {0: (int(value), "")}, member.consumer, PATIENCE_S)
            else:
                producer.flush(PATIENCE_S)
                producer = take(topic)
        assert see() == [b"1", b"3"] and see("read_uncommitted") == [b"1", b"2", b"3"]
        assert member.consumer.committed([0]) == {0: (3, "")}

    def test_what_was_never_sent_when_it_was_aborted_does_not_slip_into_the_next(
        self, topic, source, member, take, see
    ):
        producer = take(topic)
        for _ in range(5):
            producer.begin()
            producer.produce(outgoing(topic, *[b"dropped"] * 50))
            producer = take(topic)
        producer.begin()
        producer.produce(outgoing(topic, b"kept"))
        producer.commit_transaction(source, {0: (1, "")}, member.consumer, PATIENCE_S)
        assert see() == [b"kept"]

    def test_many_transactions_one_after_another_lose_and_double_nothing(self, topic, source, member, take, see):
        producer = take(topic)
        for i in range(20):
            producer.begin()
            producer.produce(outgoing(topic, b"%d" % i))
            producer.commit_transaction(source, {i % 4: (i, f"s={i}")}, member.consumer, PATIENCE_S)
        assert see() == [b"%d" % i for i in range(20)]
        assert member.consumer.committed(range(4)) == {p: (16 + p, f"s={16 + p}") for p in range(4)}

    def test_whoever_had_the_transactional_id_is_fenced(self, topic, source, member, take, see):
        first = take(topic)
        first.begin()
        first.produce(outgoing(topic, b"of the first"))
        first.flush(PATIENCE_S)
        second = take(topic)
        second.begin()
        second.produce(outgoing(topic, b"of the second"))
        with pytest.raises(Fenced, match="transactional id"):
            first.commit_transaction(source, {0: (1, "")}, member.consumer, PATIENCE_S)
        second.commit_transaction(source, {0: (2, "")}, member.consumer, PATIENCE_S)
        with pytest.raises(Fenced, match="transactional id"):
            first.begin()
            first.produce(outgoing(topic, b"again"))
            first.commit_transaction(source, {0: (3, "")}, member.consumer, PATIENCE_S)
        assert see() == [b"of the second"] and member.consumer.committed([0]) == {0: (2, "")}

    def test_a_new_owner_of_the_id_ends_what_a_dead_worker_left_open(self, topic, source, member, take, see, port):
        dead = take(topic)
        dead.begin()
        dead.produce(outgoing(topic, b"never finished"))
        dead.flush(PATIENCE_S)
        dead.close()
        hasty = port.consumer()
        hasty.assign(topic, {0: -2})
        assert hasty.end_offsets([0]) == {0: 0}
        take(topic)
        poll_until([], lambda: hasty.end_offsets([0]) == {0: 2})  # the record and the end of its transaction
        hasty.close()
        assert see() == []

    def test_a_zombie_whose_partitions_went_to_another_member_is_fenced(self, port, topic, source, member, take, see):
        zombie = take(f"{topic}-zombie")
        zombie.begin()
        zombie.produce(outgoing(topic, b"of the zombie"))
        zombie.flush(PATIENCE_S)
        self.evict(port, member)
        heir = Member(port, source, source)
        poll_until([heir.consumer], lambda: len(heir.assigned) == 4)
        producer = take(f"{topic}-heir")
        producer.begin()
        producer.produce(outgoing(topic, b"of the heir"))
        producer.commit_transaction(source, {0: (8, "heir")}, heir.consumer, PATIENCE_S)
        with pytest.raises(Fenced, match="moved on without this member"):
            zombie.commit_transaction(source, {0: (4, "zombie")}, member.consumer, PATIENCE_S)
        take(f"{topic}-zombie")
        assert see() == [b"of the heir"] and heir.consumer.committed([0]) == {0: (8, "heir")}
        heir.consumer.close()

    def test_a_transaction_fails_when_another_process_has_taken_the_instance_id(self, port, topic, source, take, see):
        older = Member(port, source, source, Membership("one"))
        poll_until([older.consumer], lambda: len(older.assigned) == 4)
        producer = take(topic)
        producer.begin()
        producer.produce(outgoing(topic, b"of the older"))
        newer = Member(port, source, source, Membership("one"))
        poll_until([newer.consumer], lambda: len(newer.assigned) == 4)
        with pytest.raises(InstanceFenced, match="another process has the name 'one'"):
            producer.commit_transaction(source, {0: (1, "")}, older.consumer, PATIENCE_S)
        take(topic)
        assert see() == [] and newer.consumer.committed([0]) == {0: None}
        for member in (older, newer):
            member.consumer.close()

    def test_offsets_of_a_fenced_commit_do_not_come_with_the_next_one(self, port, topic, source, member, take):
        producer = take(topic)
        producer.begin()
        self.evict(port, member)
        with pytest.raises(Fenced):
            producer.commit_transaction(source, {0: (4, ""), 1: (4, "")}, member.consumer, PATIENCE_S)
        other = Member(port, source, source)
        poll_until([other.consumer], lambda: len(other.assigned) == 4)
        producer = take(topic)
        producer.begin()
        producer.commit_transaction(source, {1: (2, "")}, other.consumer, PATIENCE_S)
        assert other.consumer.committed([0, 1]) == {0: None, 1: (2, "")}
        other.consumer.close()

    def test_a_member_that_released_a_partition_cannot_commit_it_in_a_transaction(
        self, port, topic, source, member, take
    ):
        second = Member(port, source, source)
        both = [member.consumer, second.consumer]
        poll_until(both, lambda: len(member.assigned) == 2 and len(second.assigned) == 2)
        producer = take(topic)
        (mine, *_), (gone, *_) = member.assigned, second.assigned
        producer.begin()
        with pytest.raises(Fenced, match="moved on without this member"):
            producer.commit_transaction(source, {mine: (1, ""), gone: (1, "")}, member.consumer, PATIENCE_S)
        assert second.consumer.committed(range(4)) == dict.fromkeys(range(4))
        second.consumer.close()

    def test_a_transaction_can_be_committed_when_partitions_are_taken(self, port, topic, source, member, take, see):
        producer = take(topic)
        leave = member.leave

        def finish_and_leave(partitions):
            producer.begin()
            producer.produce(outgoing(topic, *[b"%d" % p for p in sorted(partitions)]))
            offsets = dict.fromkeys(partitions, (6, "on leaving"))
            producer.commit_transaction(source, offsets, member.consumer, PATIENCE_S)
            leave(partitions)

        member.leave = leave
        member.consumer.close()
        member.consumer = port.consumer(group=source)
        member.consumer.subscribe(source, member.take, finish_and_leave)
        poll_until([member.consumer], lambda: len(member.assigned) == 4)
        second = Member(port, source, source)
        poll_until([member.consumer, second.consumer], lambda: len(second.assigned) == 2)
        assert second.consumer.committed(second.assigned) == dict.fromkeys(second.assigned, (6, "on leaving"))
        assert see() == [b"%d" % p for p in sorted(second.assigned)]
        second.consumer.close()

    def test_a_consumer_that_was_closed_is_fenced(self, port, topic, source, take):
        member = Member(port, source, source)
        poll_until([member.consumer], lambda: len(member.assigned) == 4)
        member.consumer.close()
        producer = take(topic)
        producer.begin()
        with pytest.raises(Fenced):
            producer.commit_transaction(source, {0: (1, "")}, member.consumer, PATIENCE_S)

    def test_committed_waits_for_a_transaction_that_holds_offsets(self, port, source):
        commit = self.offer(port, source, source)
        patient, impatient = port.consumer(group=source), self.impatient().consumer(group=source)
        hasty = self.impatient().consumer(group=source, isolation="read_uncommitted")
        for consumer in (patient, impatient, hasty):
            consumer.assign(source, {0: -2, 1: -2})
        for consumer in (impatient, hasty):
            with pytest.raises(BrokerError, match="committed offsets"):
                consumer.committed([0, 1])
            assert consumer.committed([1]) == {1: None}
        commit()
        assert patient.committed([0, 1]) == {0: (7, "s=7"), 1: None}
        for consumer in (patient, impatient, hasty):
            consumer.close()

    def test_a_member_does_not_begin_before_a_transaction_that_holds_its_offset_is_decided(self, port, source):
        fill(port, source, 10, partition=0)
        commit = self.offer(port, source, source)
        member = Member(port, source, source)
        for _ in range(10):
            assert member.consumer.poll(0.1, 10).values == []
        commit()
        assert drain(member.consumer, 3).offsets == [7, 8, 9]
        member.consumer.close()

    def test_the_end_is_where_a_reader_of_its_isolation_comes_to(self, port, topic, source, member, take):
        fill(port, topic, 2, partition=0)
        producer = take(topic)
        producer.begin()
        producer.produce(outgoing(topic, b"open"))
        producer.flush(PATIENCE_S)
        fill(port, topic, 1, partition=0, start=2)  # behind the open transaction
        careful, hasty = port.consumer(), port.consumer(isolation="read_uncommitted")
        assert read_to_the_end(careful, topic) == [b"v0", b"v1"]
        assert read_to_the_end(hasty, topic) == [b"v0", b"v1", b"open", b"v2"]
        assert careful.end_offsets([0]) == {0: 2} and hasty.end_offsets([0]) == {0: 4}
        producer.commit_transaction(source, {0: (1, "")}, member.consumer, PATIENCE_S)
        poll_until([], lambda: careful.end_offsets([0]) == {0: 5})  # Kafka writes the marker after its answer
        assert read_to_the_end(careful, topic) == [b"v0", b"v1", b"open", b"v2"]
        assert hasty.end_offsets([0]) == {0: 5}
        careful.close()
        hasty.close()

    def test_a_reader_by_position_passes_markers_and_aborted_records_at_the_end(
        self, port, topic, source, member, take
    ):
        producer = take(topic)
        producer.begin()
        producer.produce(outgoing(topic, b"1", b"2", b"3"))
        producer.commit_transaction(source, {0: (1, "")}, member.consumer, PATIENCE_S)
        producer.begin()
        producer.produce(outgoing(topic, b"4", b"5"))
        producer.flush(PATIENCE_S)
        take(topic)
        reader = port.consumer()
        reader.assign(topic, {0: 0})
        poll_until([], lambda: reader.end_offsets([0]) == {0: 7})  # Kafka writes the markers after its answers
        assert read_to_the_end(reader, topic) == [b"1", b"2", b"3"]
        reader.assign(topic, {0: 2})
        assert drain(reader, 1).offsets == [2]
        reader.close()

    def test_transactions_out_of_order_are_refused_in_words(self, port, topic, source, member, take):
        plain, producer = port.producer(), take(topic)
        for attempt, words in (
            (plain.begin, "without a transactional id"),
            (lambda: producer.produce(outgoing(topic, b"v")), "no transaction is open"),
            (lambda: producer.commit_transaction(source, {0: (1, "")}, member.consumer, 5), "no transaction is open"),
        ):
            with pytest.raises(BrokerError, match=words):
                attempt()
        producer.begin()
        with pytest.raises(BrokerError, match="open already"):
            producer.begin()
        with pytest.raises(BrokerError, match="without input offsets"):
            producer.commit_transaction(source, {}, member.consumer, 5)
        plain.close()

    def test_each_partition_can_have_a_metadata_text_of_its_own(self, member):
        member.consumer.commit({0: 1, 1: 2, 2: 3}, {0: "s=0", 1: "s=1"})
        assert member.consumer.committed(range(4)) == {0: (1, "s=0"), 1: (2, "s=1"), 2: (3, ""), 3: None}

    def test_the_settings_of_a_topic_can_be_read(self, port, topic):
        name = f"t-{uuid.uuid4().hex[:8]}"
        assert port.create_topic(name, 1, {"cleanup.policy": "compact"})
        assert port.topic_config(name)["cleanup.policy"] == "compact"
        assert port.topic_config(topic)["cleanup.policy"] == "delete"
        with pytest.raises(BrokerError, match="tidecast topics create"):
            port.topic_config(f"{name}-not")
