"""Kafka's record batches, read without kafka-python's objects: to the byte what the library reads."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import TopicPartition, errors
from kafka.consumer.fetcher import Fetcher, IsolationLevel
from kafka.protocol.consumer import FetchResponse
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder
from kafka.record.util import calc_crc32c

from tidecast.service.broker.kafka_python.batch_reader import FetchedRows

TP = TopicPartition("readings", 3)
HEADER_BYTES, CRC_AT, ATTRIBUTES_AT, LAST_DELTA_AT = 61, 17, 21, 23
CONTROL, LOG_APPEND_TIME = 0x20, 0x08
ABORT, COMMIT = b"\0\0\0\0", b"\0\0\0\1"  # a marker's key
NONE, GZIP = 0, 1

sizes = st.one_of(st.integers(0, 5), st.sampled_from([63, 64, 127, 128, 8191, 8192]))  # about the varints' lengths
texts = sizes.map(lambda n: b"x" * n)
a_header = st.tuples(st.text(max_size=4), st.one_of(st.none(), texts))
a_record = st.tuples(
    st.integers(-(2**40), 2**40), st.one_of(st.none(), texts), st.one_of(st.none(), texts), st.lists(a_header)
)


def sealed(data):
    """The batch with a checksum that fits."""
    data[CRC_AT : CRC_AT + 4] = struct.pack(">I", calc_crc32c(bytes(data[ATTRIBUTES_AT:])))
    return data


def batch(records, *, at=0, compression=NONE, producer=-1, attributes=0, behind=0):
    """One record batch as it lies in the log. `behind`: offsets that compaction has taken out after the last."""
    ids = {"producer_id": producer, "producer_epoch": 0, "base_sequence": 0} if producer >= 0 else {}
    builder = MemoryRecordsBuilder(2, compression, 1 << 24, transactional=producer >= 0, **ids)
    for timestamp, key, value, headers in records:
        assert builder.append(timestamp=timestamp, key=key, value=value, headers=headers)
    builder.close()
    data = bytearray(builder.buffer())
    struct.pack_into(">q", data, 0, at)
    data[ATTRIBUTES_AT + 1] |= attributes
    last = struct.unpack_from(">i", data, LAST_DELTA_AT)[0]
    struct.pack_into(">i", data, LAST_DELTA_AT, last + behind)
    return sealed(data)


def fetched(kind, *batches, at=0, isolation=IsolationLevel.READ_COMMITTED, aborted=()):
    gone = [
        FetchResponse.FetchableTopicResponse.PartitionData.AbortedTransaction(producer_id=p, first_offset=first)
        for p, first in aborted
    ]
    records = MemoryRecords(b"".join(map(bytes, batches)))
    return kind(at, TP, records, isolation_level=isolation, aborted_transactions=gone)


def taken(found, n=None):
    """Records in the port's terms, and where the next fetch would begin."""
    rows = [
        (r.offset, r.timestamp, r.key, r.value, [(name, value or b"") for name, value in r.headers])
        for r in found.take(n)
    ]
    return rows, found.next_fetch_offset


def both(*batches, **options):
    """What both read, which must be the same however much is taken at a time."""
    theirs = taken(fetched(Fetcher.PartitionRecords, *batches, **options), 1_000)
    assert taken(fetched(FetchedRows, *batches, **options), 1_000) == theirs
    for n in (1, 2):
        ours, reference = (
            fetched(FetchedRows, *batches, **options),
            fetched(Fetcher.PartitionRecords, *batches, **options),
        )
        while ours and reference:
            assert taken(ours, n) == taken(reference, n)
        assert bool(ours) == bool(reference)
    return theirs


def simple(n, mark=b"v"):
    return [(1_000 + i, b"k%d" % i, mark, []) for i in range(n)]


@settings(deadline=None)
@given(st.lists(a_record, min_size=1, max_size=4), st.sampled_from([NONE, GZIP]), st.integers(0, 2**40))
def test_every_record_reads_as_the_library_reads_it(records, compression, at):
    found, _ = both(batch(records, at=at, compression=compression), at=at)

    assert [(r[1], r[2], r[3]) for r in found] == [record[:3] for record in records]


def test_records_far_into_a_large_batch_keep_their_offsets():
    found, after = fetched(FetchedRows, batch(simple(20_000))), None
    rows, after = taken(found, 20_000)

    assert [row[0] for row in rows] == list(range(20_000)) and after == 20_000


def test_what_a_transaction_gave_up_is_not_read():
    log = (
        batch(simple(2, b"kept"), at=0, producer=7),
        batch(simple(2, b"given up"), at=2, producer=8),
        batch([(0, ABORT, b"", [])], at=4, producer=8, attributes=CONTROL),
        batch([(0, COMMIT, b"", [])], at=5, producer=7, attributes=CONTROL),
        batch(simple(1, b"next"), at=6, producer=8),
        batch([(0, COMMIT, b"", [])], at=7, producer=8, attributes=CONTROL),
    )

    found, after = both(*log, aborted=[(8, 2)])
    everything, _ = both(*log, aborted=[(8, 2)], isolation=IsolationLevel.READ_UNCOMMITTED)

    assert [row[3] for row in found] == [b"kept", b"kept", b"next"]
    assert [row[3] for row in everything] == [b"kept", b"kept", b"given up", b"given up", b"next"]
    assert after == 8, "the position is behind the last marker"


def test_the_position_passes_what_compaction_has_taken_out():
    found, after = both(batch(simple(2), behind=5), batch(simple(1), at=7, behind=2))

    assert [row[0] for row in found] == [0, 1, 7] and after == 10


def test_a_fetch_from_the_middle_of_a_batch_begins_there():
    found, _ = both(batch(simple(5)), at=3)

    assert [row[0] for row in found] == [3, 4]


def test_the_brokers_time_is_that_of_the_whole_batch():
    found, _ = both(batch(simple(3), attributes=LOG_APPEND_TIME))

    assert [row[1] for row in found] == [1_002] * 3


def test_records_of_an_old_broker_are_read():
    builder = MemoryRecordsBuilder(1, NONE, 1 << 20)
    for offset in range(3):
        builder.append(timestamp=5, key=b"k", value=b"%d" % offset)
    builder.close()

    found, _ = both(builder.buffer())

    assert [row[3] for row in found] == [b"0", b"1", b"2"]


@pytest.mark.parametrize("at", [HEADER_BYTES, HEADER_BYTES + 4, HEADER_BYTES + 7, -1])
def test_bytes_that_are_no_record_are_refused_and_what_came_before_them_is_kept(at):
    broken = batch(simple(1), at=2)
    broken[at] = 0x7E  # a length that does not fit
    found = fetched(FetchedRows, batch(simple(2)), sealed(broken))

    assert [row[0] for row in taken(found, 10)[0]] == [0, 1]
    with pytest.raises(errors.CorruptRecordError, match="offset 2"):
        found.take(10)


def test_a_batch_whose_checksum_does_not_fit_is_refused():
    data = batch(simple(1))
    data[-3] ^= 1

    with pytest.raises(errors.CorruptRecordError, match="readings-3 at offset 0 failed its crc check"):
        fetched(FetchedRows, data).take(10)


def test_many_kinds_of_headers_read_right_each():
    records = [(0, b"k", b"v", [("trace", b"%d" % i)]) for i in range(3_000)]

    rows, _ = taken(fetched(FetchedRows, batch(records)), 3_000)

    assert [row[4] for row in rows] == [record[3] for record in records]
