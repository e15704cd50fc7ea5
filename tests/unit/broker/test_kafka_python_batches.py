"""What we lay into kafka-python's batches is what the library itself would have made, to the byte."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition, errors
from kafka.producer.record_accumulator import RecordAccumulator
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

from tidecast.service.broker.kafka_python.batch_writer import Records, fill, hand_over, outstanding, wait_for_oldest

TP = TopicPartition("forecasts", 3)
HEADERS = st.lists(st.tuples(st.text(max_size=80), st.binary(max_size=200)), max_size=3).map(tuple)
RECORD = st.tuples(
    st.integers(0, 2**45),
    st.none() | st.binary(max_size=200),
    st.none() | st.binary(max_size=300) | st.integers(8_000, 9_000).map(bytes),
    HEADERS,
)
BATCH_SIZE = 1 << 14


def records(rows):
    timestamps, keys, values, headers = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Records(list(keys), list(values), list(headers), np.array(timestamps, dtype=np.int64))


@given(rows=st.lists(RECORD, min_size=1, max_size=40), cut=st.integers(0, 40), one_time=st.booleans())
def test_a_batch_is_to_the_byte_what_the_library_makes_of_the_same_records(rows, cut, one_time):
    rows = [(rows[0][0], *row[1:]) for row in rows] if one_time else rows
    ours, theirs = (MemoryRecordsBuilder(2, 0, BATCH_SIZE) for _ in range(2))
    fitting = next((i for i, row in enumerate(rows) if theirs.append(*row) is None), len(rows))
    taken = fill(ours, records(rows[:cut]))
    assert taken == min(cut, fitting)
    taken += fill(ours, records(rows[taken:]))
    assert taken == fitting and ours.next_offset() == theirs.next_offset() and ours.is_full() == theirs.is_full()
    for builder in (ours, theirs):
        builder.set_producer_state(7, 1, 42, True)
        builder.close()
    assert bytes(ours.buffer()) == bytes(theirs.buffer())
    assert fill(ours, records(rows)) == 0, "a batch that is on its way takes no more"


class Kafka:
    """A KafkaProducer that never sends."""

    def __init__(self):
        self._accumulator = RecordAccumulator(batch_size=BATCH_SIZE)
        self.woken = 0
        self._sender = SimpleNamespace(wakeup=self.wake)

    def wake(self):
        self.woken += 1

    @property
    def queue(self):
        return self._accumulator._batches[TP]


def rows(count, size=100):
    return [(5, b"k%d" % number, bytes(size), ()) for number in range(count)]


def test_records_stay_in_order_over_many_batches_and_calls():
    kafka = Kafka()
    for start in range(0, 2_000, 400):
        hand_over(kafka, TP, records(rows(2_000)[start : start + 400]), pytest.fail)
    sent = 0
    for batch in kafka.queue:
        batch.records.close()
        batches = list(MemoryRecords(batch.records.buffer()))
        for record in [record for each in batches for record in each]:
            assert record.key == b"k%d" % sent
            sent += 1
    assert sent == 2_000 and len(kafka.queue) > 10
    assert all(len(batch.records.buffer()) <= BATCH_SIZE for batch in kafka.queue)
    assert kafka.woken, "the sender is told that there is something to send"
    assert outstanding(kafka) == sum(len(batch.records.buffer()) for batch in kafka.queue)


def test_a_batch_with_more_records_than_offsets_are_laid_out_for_is_followed_by_another():
    kafka = Kafka()
    kafka._accumulator.config["batch_size"] = 1 << 24
    hand_over(
        kafka, TP, Records([b""] * 40_000, [None] * 40_000, [()] * 40_000, np.zeros(40_000, np.int64)), pytest.fail
    )
    assert [batch.record_count for batch in kafka.queue] == [1 << 15, 40_000 - (1 << 15)]


def test_a_record_that_could_not_be_delivered_is_told_once_for_its_batch():
    kafka, told = Kafka(), []
    hand_over(kafka, TP, records(rows(5)), told.append)
    error = errors.NotLeaderForPartitionError()
    kafka.queue[0].complete_exceptionally(error, lambda index: error)
    assert told == [error]
    assert wait_for_oldest(kafka, 1.0)


def test_records_that_were_delivered_are_no_failure():
    kafka, told = Kafka(), []
    hand_over(kafka, TP, records(rows(5)), told.append)
    kafka.queue[0].complete(17, -1)
    assert told == []


def test_a_batch_that_the_library_splits_in_two_still_tells_what_failed():
    kafka, told = Kafka(), []
    hand_over(kafka, TP, records(rows(9)), told.append)
    whole = kafka.queue.popleft()
    whole.records.close()
    kafka._accumulator.deallocate(whole)
    kafka._accumulator.split_and_reenqueue(whole)
    first, second = kafka.queue
    assert (first.record_count, second.record_count) == (5, 4)
    first.complete(17, -1)
    assert told == []
    second.records.close()
    kafka._accumulator.deallocate(second)
    kafka.queue.pop()
    kafka._accumulator.split_and_reenqueue(second)
    error = errors.MessageSizeTooLargeError()
    for batch in list(kafka.queue)[:2]:
        batch.complete_exceptionally(error, lambda index: error)
    assert told == [error, error]


def test_a_producer_that_is_closed_takes_no_records():
    kafka = Kafka()
    kafka._accumulator.close()
    with pytest.raises(errors.IllegalStateError):
        hand_over(kafka, TP, records(rows(1)), pytest.fail)


def test_who_waits_for_room_waits_no_longer_than_it_may():
    kafka = Kafka()
    assert wait_for_oldest(kafka, 0.0), "nothing is outstanding"
    hand_over(kafka, TP, records(rows(1)), pytest.fail)
    assert not wait_for_oldest(kafka, 0.01)
