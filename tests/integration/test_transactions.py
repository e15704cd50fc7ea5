"""Transactions on a real Kafka, where kafka-python alone would wait without limit, or let a zombie commit."""

import contextlib
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition, errors
from kafka.admin import MemberToRemove

from tests.contract.broker_contract import PATIENCE_S, Member, drain, fill, poll_until
from tests.contract.transaction_contract import outgoing, read_to_the_end
from tests.support.kafka import own_kafka
from tidecast.service.broker.connect import connect
from tidecast.service.broker.kafka_python import transactions
from tidecast.service.broker.port import Membership, OutgoingBatch
from tidecast.service.errors import BrokerError, Fenced


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A Kafka that a test may stop."""
    with own_kafka(tmp_path_factory.mktemp("own") / "broker") as broker:
        yield broker


@pytest.fixture
def seen(kafka):
    def read(topic):
        consumer = kafka.consumer()
        try:
            return read_to_the_end(consumer, topic)
        finally:
            consumer.close()

    return read


@pytest.fixture
def member(kafka, topic):
    made = []

    def join(source):
        made.append(Member(kafka, source, source))
        poll_until([made[-1].consumer], lambda: len(made[-1].assigned) == kafka.partitions(source))
        return made[-1]

    yield join
    for one in made:
        one.consumer.close()


def evict(broker, member):
    me = member.consumer._kafka.group_metadata()
    admin = KafkaAdminClient(bootstrap_servers=broker)
    admin.remove_group_members(me.group_id, [MemberToRemove(member_id=me.member_id)])
    admin.close()


def test_an_evicted_member_cannot_commit_in_a_transaction(kafka, broker, topic, member, seen):
    source, name = topic(), topic(1)
    zombie = member(source)
    producer = kafka.producer(transactional_id=name)
    producer.begin()
    producer.produce(outgoing(name, b"of the zombie"))
    evict(broker, zombie)
    heir = member(source)
    heir.consumer.commit({0: 8})
    # its heartbeats hear of it; the name without a generation that is left passes Kafka's check
    poll_until([], lambda: zombie.consumer._kafka.group_metadata().generation_id < 0)
    with pytest.raises(Fenced, match="moved on without this member"):
        producer.commit_transaction(source, {0: (4, "")}, zombie.consumer, PATIENCE_S)
    producer.close()
    kafka.producer(transactional_id=name).close()
    assert seen(name) == [] and heir.consumer.committed([0]) == {0: (8, "")}


def test_a_member_evicted_while_it_joins_continues_from_the_committed_offset(kafka, broker, topic, member):
    source = topic()
    stopped = member(source)
    coordinator = stopped.consumer._kafka._coordinator
    coordinator._disable_heartbeat()  # as if the process were stopped; it wakes up joining
    # The library asked where to read, and the poll ended before the answer came; it is kept for the next poll.
    partitions = frozenset(TopicPartition(source, p) for p in range(4))
    early = coordinator._manager.call_soon(coordinator._send_offset_fetch_request, partitions)
    coordinator._offset_fetch_futures[partitions] = early
    poll_until([], lambda: early.is_done)
    evict(broker, stopped)
    heir = member(source)
    heir.consumer.commit({0: 8})
    heir.consumer.close()
    fill(kafka, source, 10, partition=0)
    told = len(stopped.told)
    coordinator.request_rejoin()
    assert drain(stopped.consumer, 2).offsets == [8, 9]
    assert len(stopped.told) > told, "it was not notified that the partitions were revoked and assigned again"


def test_a_record_that_kafka_refuses_takes_its_transaction_with_it(kafka, topic, member, seen):
    source, name = topic(), topic(1, config={"max.message.bytes": "1000"})
    reader, producer = member(source), kafka.producer(transactional_id=name)
    producer.begin()
    producer.produce(outgoing(name, b"small"))
    producer.flush(PATIENCE_S)
    producer.produce(outgoing(name, b"x" * 5_000))
    with pytest.raises(BrokerError, match=f"{name}.*a record of this size"):
        producer.commit_transaction(source, {0: (1, "")}, reader.consumer, PATIENCE_S)
    producer.close()
    producer = kafka.producer(transactional_id=name)
    producer.begin()
    producer.produce(outgoing(name, b"next"))
    producer.commit_transaction(source, {0: (2, "")}, reader.consumer, PATIENCE_S)
    producer.close()
    assert seen(name) == [b"next"] and reader.consumer.committed([0]) == {0: (2, "")}


def test_keyed_records_and_many_topics_go_into_one_transaction(kafka, topic, member, seen):
    source, first, second = topic(), topic(), topic(1)
    reader, producer = member(source), kafka.producer(transactional_id=first)
    producer.begin()
    keyed = OutgoingBatch(first)
    for i in range(10_000):  # more than is handed over in one go
        keyed.append(b"%d" % (i % 50) if i % 2 else None, b"%d" % i)
    producer.produce(keyed)
    producer.produce(outgoing(second, b"other"))
    assert seen(second) == []
    producer.commit_transaction(source, {0: (1, "")}, reader.consumer, PATIENCE_S)
    producer.close()
    consumer = kafka.consumer()
    consumer.assign(first, dict.fromkeys(range(4), -2))
    assert len(set(drain(consumer, 10_000).values)) == 10_000
    consumer.close()
    assert seen(second) == [b"other"]


@pytest.mark.parametrize("stage", ["deliver", "offsets", "end"])
def test_a_commit_to_a_kafka_that_does_not_answer_fails_in_time_and_a_new_producer_continues(own, monkeypatch, stage):
    source, name = f"{stage}-in", f"{stage}-out"
    port = connect(own.bootstrap_servers, timeout_s=30)
    for each in (source, name):
        port.create_topic(each, 1)
    reader = Member(port, source, source)
    poll_until([reader.consumer], lambda: reader.assigned == {0})
    producer = port.producer(transactional_id=name)
    producer.begin()
    producer.produce(outgoing(name, b"first"))
    producer.flush(PATIENCE_S)

    def silence():
        os.kill(own.pid, signal.SIGSTOP)

    manager = producer._transactions
    if stage == "deliver":
        silence()
        producer.produce(outgoing(name, b"second"))
    else:
        method = {"offsets": "send_offsets_to_transaction", "end": "begin_commit"}[stage]
        ask = getattr(manager, method)

        def ask_the_silent(*what):
            silence()
            return ask(*what)

        monkeypatch.setattr(manager, method, ask_the_silent)
    began = time.monotonic()
    try:
        with pytest.raises(BrokerError, match="did not answer within 1 s"):
            producer.commit_transaction(source, {0: (1, "")}, reader.consumer, 1)
        producer.close()
        assert time.monotonic() - began < PATIENCE_S
    finally:
        os.kill(own.pid, signal.SIGCONT)
    again = port.producer(transactional_id=name)
    committed = reader.consumer.committed([0])[0]  # what is true: all or none
    check = port.consumer()
    assert read_to_the_end(check, name) == ([b"first"] if committed else [])
    assert committed in ((None, (1, "")) if stage == "end" else (None,))
    again.begin()
    again.produce(outgoing(name, b"after"))
    again.commit_transaction(source, {0: (2, "")}, reader.consumer, PATIENCE_S)
    assert read_to_the_end(check, name)[-1] == b"after" and reader.consumer.committed([0]) == {0: (2, "")}
    for each in (check, again, reader.consumer, port):
        each.close()


def test_a_transaction_that_kafka_ended_for_its_age_is_not_committed(kafka, topic, member, seen, monkeypatch):
    monkeypatch.setattr(transactions, "TRANSACTION_TIMEOUT_MS", 1_000)
    source, name = topic(), topic(1)
    reader, producer = member(source), kafka.producer(transactional_id=name)
    producer.begin()
    producer.produce(outgoing(name, b"old"))
    producer.flush(PATIENCE_S)
    watch = kafka.consumer()
    watch.assign(name, {0: -2})
    poll_until([], lambda: watch.end_offsets([0]) == {0: 2})  # the record and the mark of its abortion
    watch.close()
    with pytest.raises(Fenced, match="open for too long"):
        producer.commit_transaction(source, {0: (1, "")}, reader.consumer, PATIENCE_S)
    producer.close()
    assert seen(name) == [] and reader.consumer.committed([0]) == {0: None}


def test_a_producer_that_is_fenced_while_it_produces_says_so(kafka, topic, monkeypatch):
    name = topic(2)
    producer = kafka.producer(transactional_id=name)
    producer.begin()
    heir = kafka.producer(transactional_id=name)
    with contextlib.suppress(Fenced):  # the news may come as fast as this
        producer.produce(outgoing(name, b"1"))
    poll_until([], lambda: producer._transactions.last_error is not None)
    look, looks = producer._raise_failure, iter([None, None])  # the news come after the last look
    monkeypatch.setattr(producer, "_raise_failure", lambda: next(looks, "known") and look())
    with pytest.raises(Fenced, match="transactional id"):
        producer.produce(outgoing(name, b"2", partition=1))
    for each in (producer, heir):
        each.close()


def test_a_commit_requested_while_kafka_is_down_is_made_soon_after_kafka_is_back(own, monkeypatch):
    """kafka-python threw the request away, and the commit waited in vain until its time limit."""
    monkeypatch.setattr(transactions, "TRANSACTION_TIMEOUT_MS", 300_000)  # a start may take its time
    port = connect(own.bootstrap_servers, timeout_s=200)
    for name in ("in", "out"):
        port.create_topic(name, 1)
    reader = Member(port, "in", "group", Membership(session_timeout_s=200))
    poll_until([reader.consumer], lambda: reader.assigned == {0})
    producer = port.producer(transactional_id="one")
    for round_, delivered in enumerate((True, False)):
        producer.begin()
        producer.produce(outgoing("out", b"%d" % round_))
        if delivered:
            producer.flush(PATIENCE_S)
        own.kill()
        time.sleep(0.3)  # the client has seen that its connections are gone
        with ThreadPoolExecutor() as pool:
            commit = pool.submit(producer.commit_transaction, "in", {0: (round_, "")}, reader.consumer, 90)
            own.start()
            commit.result(15)
        assert reader.consumer.committed([0]) == {0: (round_, "")}
    producer.close()
    reader.consumer.close()
    port.close()


def test_asking_a_kafka_that_does_not_answer_for_a_transactional_id_fails_in_time(own):
    os.kill(own.pid, signal.SIGSTOP)
    try:
        with pytest.raises(BrokerError, match="did not answer within 1 s"):
            connect(own.bootstrap_servers, timeout_s=1).producer(transactional_id="nobody")
    finally:
        os.kill(own.pid, signal.SIGCONT)


def test_k6_kafka_python_still_commits_a_transaction_without_a_record_that_it_gave_up(own):
    """See docs/upstream.md. A test that fails: it is fixed."""
    name = "given-up"
    connect(own.bootstrap_servers).create_topic(name, 1)
    producer = KafkaProducer(
        bootstrap_servers=own.bootstrap_servers,
        transactional_id=name,
        delivery_timeout_ms=1_500,
        request_timeout_ms=1_000,
    )
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(name, b"first", partition=0).get(PATIENCE_S)
    os.kill(own.pid, signal.SIGSTOP)
    try:
        given_up = producer.send(name, b"second", partition=0)
        with pytest.raises(errors.KafkaTimeoutError):
            given_up.get(PATIENCE_S)
    finally:
        os.kill(own.pid, signal.SIGCONT)
    committed = []

    def commit():
        with contextlib.suppress(errors.KafkaError):
            producer.commit_transaction()
            committed.append(True)

    thread = threading.Thread(target=commit, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert committed, "fixed: remove _deliver of the transactional producer, and K6 of docs/upstream.md"
