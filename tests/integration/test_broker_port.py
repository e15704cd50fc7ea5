import socket
import time

import pytest
from kafka import KafkaAdminClient, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.admin import MemberToRemove
from kafka.producer.producer_batch import ProducerBatch
from kafka.record.memory_records import MemoryRecordsBuilder

from tests.contract.broker_contract import PATIENCE_S, BrokerContract, drain, fill
from tests.contract.transaction_contract import TransactionContract
from tidecast.service.broker.connect import CLIENTS, connect
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.errors import BrokerError, TidecastError


class OnKafka(BrokerContract, TransactionContract):
    client: str

    @pytest.fixture
    def port(self, ports, broker):
        self.address = broker
        return ports[self.client]

    def evict(self, port, member):
        """By the admin's request, as the end of its session would do it 20 s later."""
        admin = KafkaAdminClient(bootstrap_servers=self.address)
        member_id = self.member_id(member.consumer)
        admin.remove_group_members(member.consumer._group, [MemberToRemove(member_id=member_id)])
        admin.close()

    def offer(self, port, topic, group):
        raw = KafkaProducer(bootstrap_servers=self.address, transactional_id=topic)
        raw.init_transactions()
        raw.begin_transaction()
        raw.send_offsets_to_transaction({TopicPartition(topic, 0): OffsetAndMetadata(7, "s=7", -1)}, group)

        def commit():
            raw.commit_transaction()
            raw.close()

        return commit

    def impatient(self):
        return connect(self.address, client=self.client, timeout_s=2)


class TestKafkaPython(OnKafka):
    client = "kafka-python"

    def member_id(self, consumer):
        return consumer._kafka.group_metadata().member_id


class TestConfluent(OnKafka):
    client = "confluent"

    def member_id(self, consumer):
        return consumer._kafka.memberid()


@pytest.fixture(params=CLIENTS)
def client(request):
    return request.param


@pytest.fixture
def kafka(ports, client):
    return ports[client]


def test_positions_pass_the_markers_and_the_aborted_records_of_transactions(kafka, broker, topic):
    name = topic(partitions=1)
    raw = KafkaProducer(bootstrap_servers=broker, transactional_id=name)
    raw.init_transactions()
    for commit in (True, False):
        raw.begin_transaction()
        for i in range(3):
            raw.send(name, key=b"k", value=b"%d" % i, partition=0)
        raw.flush()
        if commit:
            raw.commit_transaction()
        else:
            raw.abort_transaction()
    raw.close()
    consumer = kafka.consumer()
    consumer.assign(name, {0: -2})
    end = consumer.end_offsets([0])
    assert end == {0: 8}  # two times three records and a marker
    seen, next_offsets, deadline = [], {}, time.monotonic() + PATIENCE_S
    while next_offsets != end and time.monotonic() < deadline:
        batch = consumer.poll(0.1, 100)
        seen += batch.values
        next_offsets |= batch.next_offsets
    assert seen == [b"0", b"1", b"2"] and next_offsets == end
    consumer.close()


def test_an_open_transaction_is_not_read_before_it_is_committed(kafka, broker, topic):
    name = topic(partitions=1)
    raw = KafkaProducer(bootstrap_servers=broker, transactional_id=name)
    raw.init_transactions()
    raw.begin_transaction()
    raw.send(name, key=b"k", value=b"v", partition=0)
    raw.flush()
    careful, hasty = kafka.consumer(), kafka.consumer(isolation="read_uncommitted")
    for consumer in (careful, hasty):
        consumer.assign(name, {0: -2})
    assert careful.end_offsets([0]) == {0: 0} and hasty.end_offsets([0]) == {0: 1}
    assert drain(hasty, 1).values == [b"v"] and len(careful.poll(0.3, 10)) == 0
    raw.commit_transaction()
    assert drain(careful, 1).values == [b"v"]
    for each in (careful, hasty, raw):
        each.close()


def test_a_record_that_kafka_refuses_surfaces_on_flush_and_on_every_later_call(kafka, topic):
    name = topic(config={"max.message.bytes": "1000"})
    outgoing = OutgoingBatch(name)
    outgoing.append(b"k", b"x" * 5_000, partition=0)
    producer = kafka.producer()
    producer.produce(outgoing)
    with pytest.raises(BrokerError, match=f"delivering to {name}.*a record of this size.*max.message.bytes"):
        producer.flush(PATIENCE_S)
    with pytest.raises(BrokerError, match="a record of this size"):
        producer.produce(outgoing)
    producer.close()


def test_a_header_without_a_value_can_be_read_and_produced_again(kafka, broker, topic):
    name = topic(partitions=1)
    raw = KafkaProducer(bootstrap_servers=broker)
    raw.partitions_for(name)
    # the library's own check refuses it, other clients do not
    accumulator = raw._accumulator
    records = MemoryRecordsBuilder(2, 0, 16_384)
    records.append(None, b"k", b"v", [("null", None)])
    batch = ProducerBatch(TopicPartition(name, 0), records)
    accumulator._batches[TopicPartition(name, 0)].append(batch)
    accumulator._incomplete.add(batch)
    raw.flush(timeout=PATIENCE_S)
    raw.close()
    consumer = kafka.consumer()
    consumer.assign(name, {0: -2})
    read = drain(consumer, 1)
    assert list(read.headers[0]) == [("null", b"")]
    again = OutgoingBatch(name)
    again.append(b"k", b"v", headers=read.headers[0])
    producer = kafka.producer()
    producer.produce(again)
    producer.flush(PATIENCE_S)
    producer.close()
    assert list(drain(consumer, 1).headers[0]) == [("null", b"")]
    consumer.close()


def test_a_broker_that_is_not_there_is_one_sentence_with_its_address(client):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"  # bound, but nobody listens
        port = connect(address, client=client, timeout_s=1)
        for attempt in (port.topics, port.producer, lambda: port.consumer(group="g")):
            with pytest.raises(
                BrokerError, match=rf"Kafka at {address} did not answer within 1 s: nothing listens.*tidecast broker"
            ) as e:
                attempt()
            assert "\n" not in str(e.value)


def test_a_server_that_does_not_speak_kafka_is_given_up_in_time(client):
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(BrokerError, match="did not answer within 1 s"),
    ):
        connect(f"127.0.0.1:{silent.getsockname()[1]}", client=client, timeout_s=1).topics()


def test_an_address_or_client_that_cannot_be_is_refused_at_once():
    for servers in ("http://kafka:9092", "kafka:port", "", "a:1,,b:2"):
        with pytest.raises(TidecastError, match="host:port"):
            connect(servers)
    with pytest.raises(TidecastError, match=r"no Kafka client 'librdkafka'.*kafka-python"):
        connect("kafka:9092", client="librdkafka")


def test_closing_a_producer_does_not_wait_for_a_broker_that_is_gone(kafka, topic):
    name = topic()
    producer = kafka.producer()
    outgoing = OutgoingBatch(name)
    outgoing.append(b"k", b"v")
    producer.produce(outgoing)
    producer.close()
    with pytest.raises(BrokerError):
        producer.produce(outgoing)


def test_a_topic_that_grows_while_we_produce_takes_records_in_its_new_partitions(kafka, broker, topic):
    name = topic(partitions=1)
    producer = kafka.producer()
    outgoing = OutgoingBatch(name)
    outgoing.append(b"k", b"v", partition=0)
    producer.produce(outgoing)
    admin = KafkaAdminClient(bootstrap_servers=broker)
    admin.create_partitions({name: 3})
    admin.close()
    deadline = time.monotonic() + PATIENCE_S
    while kafka.partitions(name) != 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    grown = OutgoingBatch(name)
    grown.append(b"k", b"v", partition=2)
    producer.produce(grown)
    producer.flush(PATIENCE_S)
    producer.close()
    consumer = kafka.consumer()
    consumer.assign(name, {2: -2})
    assert drain(consumer, 1).partitions == [2]
    consumer.close()


def test_a_flood_of_records_is_delivered_whole(kafka, topic):
    name = topic(partitions=2)
    fill(kafka, name, 6_000)
    consumer = kafka.consumer()
    consumer.assign(name, {0: -2, 1: -2})
    assert len(set(drain(consumer, 6_000, max_records=400).values)) == 6_000
    consumer.close()
