"""What is confluent-kafka's own: its texts, a group that it shares with kafka-python, and a Kafka that was away."""

import subprocess
import sys
import time

import pytest

from tests.contract.broker_contract import Member, drain, fill, poll_until
from tests.support.kafka import own_kafka
from tidecast.service.broker.connect import CLIENTS, connect
from tidecast.service.broker.port import Membership
from tidecast.service.errors import UsageError

# Aborts producers, each a moment after the first records of its transaction.
ABORT_THEM = """
import sys, threading, time
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.broker.connect import connect

servers, topic = sys.argv[1:]

def abort(name):
    port = connect(servers, client="confluent", timeout_s=20)
    for i in range(25):
        producer = port.producer(transactional_id=f"{topic}-{name}-{i}")
        producer.begin()
        for partition in range(4):
            outgoing = OutgoingBatch(topic)
            outgoing.append(b"k", b"v", partition=partition)
            producer.produce(outgoing)
        time.sleep(i % 8 * 0.0005)
        producer.close()

threads = [threading.Thread(target=abort, args=(name,)) for name in "abcd"]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("all aborted")
"""


def test_a_missing_package_is_named_with_what_to_install(monkeypatch):
    for name in [
        name for name in sys.modules if name.startswith(("confluent_kafka", "tidecast.service.broker.confluent.broker"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(UsageError, match=r"'confluent' cannot be used.*pip install 'tidecast\[fast\]'"):
        connect("127.0.0.1:9092", client="confluent")


@pytest.mark.parametrize("text", ["", "s=7", "s=1234567890 f=1 l=0123456789abcdef m=a name, with blanks"])
def test_both_clients_read_the_metadata_of_an_offset_that_either_has_committed(ports, topic, text):
    """librdkafka reads past the end of a text that is not its own, and adds a zero to its own."""
    name = topic()
    for writer in CLIENTS:
        consumer = ports[writer].consumer(group=f"{name}-{writer}")
        consumer.assign(name, {0: 0})
        consumer.commit({0: 3}, text)
        consumer.close()
        for reader in CLIENTS:
            consumer = ports[reader].consumer(group=f"{name}-{writer}")
            consumer.assign(name, {0: 0})
            assert consumer.committed([0, 1]) == {0: (3, text), 1: None}, (writer, reader)
            consumer.close()


@pytest.mark.parametrize("first", CLIENTS)
def test_both_clients_are_members_of_one_group(ports, topic, first):
    name = topic(partitions=4)
    clients = [first, *(client for client in CLIENTS if client != first)]
    members = []
    for client in clients:  # the one that comes first leads, and shares out for all
        members.append(Member(ports[client], name, name))
        poll_until([m.consumer for m in members], lambda: all(len(m.assigned) == 4 // len(members) for m in members))
    assert set().union(*(m.assigned for m in members)) == {0, 1, 2, 3}
    fill(ports[first], name, 100)
    seen: list[bytes] = []

    def all_seen():
        for member in members:
            seen.extend(member.consumer.poll(0.05, 500).values)
        return len(seen) >= 100

    poll_until([], all_seen)
    assert len(set(seen)) == len(seen) == 100
    members[0].consumer.close()
    poll_until([members[1].consumer], lambda: len(members[1].assigned) == 4)
    members[1].consumer.close()


def test_a_named_member_comes_back_when_kafka_was_away_for_longer_than_its_session(tmp_path):
    """librdkafka took its own instance id for that of another process, and stopped."""
    with own_kafka(tmp_path / "broker") as kafka:
        port = connect(kafka.bootstrap_servers, client="confluent", timeout_s=60)
        port.create_topic("t", 2, {"retention.ms": "-1"})
        member = Member(port, "t", "g", Membership("one", session_timeout_s=6))
        poll_until([member.consumer], lambda: len(member.assigned) == 2)
        kafka.kill()
        away = time.monotonic() + 8
        while time.monotonic() < away:
            member.consumer.poll(0.2, 10)
        member.told.clear()
        kafka.start()
        poll_until([member.consumer], lambda: len(member.assigned) == 2)
        member.consumer.verify_instance()
        fill(port, "t", 5, partition=0)
        assert len(drain(member.consumer, 5)) == 5
        member.consumer.commit({0: 5}, "again")
        assert member.consumer.committed([0]) == {0: (5, "again")}
        member.consumer.close()
        port.close()


def test_aborting_a_transaction_that_has_just_begun_does_not_crash_the_process(broker, topic):
    """An assertion of librdkafka's failed then, now and then: once in some fifty times."""
    command = [sys.executable, "-c", ABORT_THEM, broker, topic()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "all aborted\n"), done.stderr
