"""The bugs of docs/upstream.md that need a Kafka to show. A test that fails: the library has fixed it."""

import contextlib
import time

import pytest
from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition, errors

from tests.contract.broker_contract import PATIENCE_S, fill

GROUP = "upstream"


def records_within(consumer, seconds):
    """`(partition, offset)` of all that comes in that time."""
    found, deadline = [], time.monotonic() + seconds
    while time.monotonic() < deadline:
        for tp, records in consumer.poll(100, max_records=3).items():
            found += [(tp.partition, record.offset) for record in records]
    return found


def test_k4_kafka_python_still_loses_a_partition_that_was_paused_in_the_middle_of_a_response(kafka, broker, topic):
    name = topic(partitions=2)
    for partition in (0, 1):
        fill(kafka, name, 10, partition=partition)
    consumer = KafkaConsumer(bootstrap_servers=broker)
    both = [TopicPartition(name, 0), TopicPartition(name, 1)]
    consumer.assign(both)
    consumer.seek_to_beginning()
    read, deadline = {}, time.monotonic() + PATIENCE_S
    while not read and time.monotonic() < deadline:
        read = consumer.poll(500, max_records=3)
    (paused,) = read
    consumer.pause(paused)
    assert len(records_within(consumer, 2)) == 10  # of the other one
    consumer.resume(paused)
    rest = records_within(consumer, 2)
    consumer.close()
    assert not rest, "fixed: call poll of the library itself, and remove K4 of docs/upstream.md"


@pytest.fixture
def undecided(broker, topic):
    """A partition for which an open transaction holds an offset of the group."""
    name = topic(partitions=1)
    raw = KafkaProducer(bootstrap_servers=broker, transactional_id=name)
    raw.init_transactions()
    raw.begin_transaction()
    partition = TopicPartition(name, 0)
    raw.send_offsets_to_transaction({partition: OffsetAndMetadata(7, "", -1)}, GROUP)
    yield partition
    raw.abort_transaction()
    raw.close()


def test_k5_kafka_python_still_returns_offsets_that_a_transaction_has_not_decided(broker, undecided):
    consumer = KafkaConsumer(bootstrap_servers=broker, group_id=GROUP, isolation_level="read_uncommitted")
    with contextlib.closing(consumer):
        try:
            assert consumer.committed(undecided, timeout_ms=2_000) is None
        except errors.KafkaTimeoutError:
            pytest.fail("fixed: remove _isolation_level from KafkaPythonConsumer, and K5 of docs/upstream.md")


def test_k7_kafka_python_still_leaves_a_producer_open_that_is_closed_with_records_left(broker, topic):
    name = topic(partitions=1)
    producer = KafkaProducer(bootstrap_servers=broker, linger_ms=60_000)
    producer.partitions_for(name)
    producer.send(name, b"left", partition=0)
    try:
        with pytest.raises(errors.KafkaTimeoutError):
            producer.close(timeout=0)
            pytest.fail("fixed: call close(timeout=0) in KafkaPythonProducer.close, and remove K7 of docs/upstream.md")
        assert producer._sender.is_alive()
    finally:
        producer._sender.force_close()


def test_c1_librdkafka_still_spoils_the_text_of_an_offset_that_another_client_committed(kafka, broker, topic):
    confluent_kafka = pytest.importorskip("confluent_kafka")
    name, whole = topic(partitions=1), 0
    texts = ["s=7", "s=1234567890 f=1", "a" * 20]
    for number, text in enumerate(texts):
        writer = kafka.consumer(group=f"{name}-{number}")
        writer.assign(name, {0: 0})
        writer.commit({0: 3}, text)
        writer.close()
        reader = confluent_kafka.Consumer({"bootstrap.servers": broker, "group.id": f"{name}-{number}"})
        with contextlib.closing(reader), contextlib.suppress(UnicodeDecodeError):
            (found,) = reader.committed([confluent_kafka.TopicPartition(name, 0)], timeout=PATIENCE_S)
            whole += found.metadata == text
    assert whole < len(texts), "fixed: ask librdkafka for committed offsets, and remove C1 of docs/upstream.md"


def test_c2_librdkafka_still_returns_offsets_that_a_transaction_has_not_decided(broker, undecided):
    confluent_kafka = pytest.importorskip("confluent_kafka")
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": broker, "group.id": GROUP, "isolation.level": "read_uncommitted"}
    )
    with contextlib.closing(consumer):
        try:
            consumer.committed([confluent_kafka.TopicPartition(undecided.topic, 0)], timeout=2)
        except confluent_kafka.KafkaException:
            pytest.fail("fixed: remove ConfluentConsumer._begin_of, and C2 of docs/upstream.md")
