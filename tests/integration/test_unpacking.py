"""A small compressed batch that is huge when it is unpacked stops nobody: it is set aside, and the rest is answered."""

import gzip
import io

import pytest
import zstandard
from kafka import KafkaProducer
from kafka.record import default_records
from kafka.record.util import encode_varint
from lz4.frame import LZ4FrameCompressor

from tests.contract.broker_contract import drain
from tests.support.serving import serving
from tidecast.service.broker.port import OutgoingBatch

MIB = bytes(1 << 20)


def packed(codec, mib):
    """The compressed records of a batch that holds one record with a value of zeros; never in memory as a whole."""
    length = bytearray()
    encode_varint(mib << 20, length.append)
    body = bytes([0, 0, 0, 2]) + b"k" + bytes(length)  # attributes, time, offset, the key with its length
    size = bytearray()
    encode_varint(len(body) + (mib << 20) + 1, size.append)
    parts = [bytes(size) + body, *[MIB] * mib, b"\0"]  # no headers
    if codec == "gzip":
        out = io.BytesIO()
        with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as file:
            file.writelines(parts)
        return out.getvalue()
    if codec == "lz4":
        lz4 = LZ4FrameCompressor(block_linked=False)
        return b"".join([lz4.begin(), *map(lz4.compress, parts), lz4.flush()])
    zstd = zstandard.ZstdCompressor().compressobj()
    return b"".join([*map(zstd.compress, parts), zstd.flush()])


@pytest.fixture
def send_huge(broker, monkeypatch):
    """`send_huge(topic, codec, mib)` sends such a batch, of one record, to partition 0."""

    def send(topic, codec, mib):
        made = packed(codec, mib)
        with monkeypatch.context() as patch:
            patch.setattr(default_records, f"{codec}_encode", lambda data: made)
            producer = KafkaProducer(bootstrap_servers=broker, compression_type=codec)
            producer.send(topic, MIB[:-1000], b"k", partition=0).get(30)  # smaller packed: else it is sent as it is
            producer.close()

    return send


@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd"])
def test_kafka_python_unpacks_no_batch_beyond_the_limit_and_reads_on_behind_it(ports, topic, send_huge, codec):
    name = topic(partitions=2)
    producer = ports["kafka-python"].producer()
    for values in ((b"1", b"2"), (b"3",)):
        batch = OutgoingBatch(name)
        for value in values:
            batch.append(b"k", value, partition=0)
        producer.produce(batch)
        producer.flush(30)
        send_huge(name, codec, 33)
    consumer = ports["kafka-python"].consumer()
    consumer.assign(name, {0: 0, 1: 0})
    found, unread, position = [], [], 0
    while position < 5:
        one = consumer.poll(1.0, 100)
        found, unread, position = found + one.values, unread + one.unread, one.next_offsets.get(0, position)
    assert found == [b"1", b"2", b"3"]
    assert [(each.partition, each.first, each.last, each.reason) for each in unread] == [
        (0, 2, 2, "it has more than 32 MiB when it is unpacked"),
        (0, 4, 4, "it has more than 32 MiB when it is unpacked"),
    ]
    assert all(0 < each.size < 1 << 20 for each in unread)
    consumer.assign(name, {0: 3})
    assert drain(consumer, 1).values == [b"3"]
    consumer.close()
    producer.close()


@pytest.mark.parametrize("client", ["kafka-python", "confluent"])
def test_a_worker_answers_what_is_before_and_behind_a_huge_batch_once_and_counts_it(counted, model, send_huge):
    bench = counted(partitions=2)
    bench.feed(3)
    send_huge(bench.readings, "zstd", 210)  # librdkafka unpacks zstd to at most some 100 MB
    bench.feed(3)
    with serving("--model", model, *bench.flags) as worker:
        bench.read(bench.forecasts, 6 * len(bench.series))
        worker.wait_for("its count", lambda: worker.metric("tidecast_unread_batches_total") == 1)
        code, log = worker.end()
    assert code == 0, log
    assert f"{bench.readings}-0, offsets 9 to 9" in log and log.count("a compressed batch is set aside") == 1, log
    assert [bench.committed()[p][0] for p in (0, 1)] == [19, 18]
    bench.check()


@pytest.mark.parametrize("client", ["confluent"])
def test_a_huge_record_that_librdkafka_unpacks_is_a_dead_letter_cut_to_fit(counted, model, send_huge):
    bench = counted(partitions=1)
    bench.feed(2)
    send_huge(bench.readings, "gzip", 33)
    bench.feed(2)
    bench.live(model)
    bench.check()
    ((_, key, value, headers),) = bench.read(bench.dead, 1)
    assert (key, headers["tidecast.reason"], headers["tidecast.offset"]) == (b"k", b"too_large", b"6")
    assert len(value) < 8 << 20 and headers["tidecast.original_bytes"] == str((33 << 20) + 1).encode()
