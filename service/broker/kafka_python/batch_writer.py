"""Many records at once into kafka-python's batches.

The library takes records one by one: for each some hundred Python calls, a lock, a future. Here records become the
bytes of Kafka's record batch (format v2, https://kafka.apache.org/documentation/#record) by columns, and are laid into
the library's own batches, which it then numbers, signs, sends and repeats as if it had made them. What it takes of its
private parts stands in this file; tests/unit/broker/test_kafka_python_batches.py holds it to the library's own bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import numpy as np
from kafka import TopicPartition, errors
from kafka.producer.producer_batch import ProducerBatch
from kafka.record.memory_records import MemoryRecordsBuilder
from kafka.record.util import encode_varint
from numpy.typing import NDArray

from tidecast.service.broker.port import Headers

Int64 = NDArray[np.int64]

_NO_HEADERS = b"\0"


def _varint(number: int) -> bytes:
    text = bytearray()
    encode_varint(number, text.append)
    return bytes(text)


# Of lengths and of offsets inside of a batch: a batch never holds more records than this.
_SMALL = [_varint(number) for number in range(1 << 15)]
_SIZE_STEPS = np.array([1 << 7 * n for n in range(1, 10)], dtype=np.uint64)


def _varints(numbers: Int64) -> Iterable[bytes]:
    if len(numbers) and int(numbers.min()) >= 0 and int(numbers.max()) < len(_SMALL):
        return map(_SMALL.__getitem__, numbers.tolist())
    return map(_varint, numbers.tolist())


def _sizes(numbers: Int64) -> Int64:
    """How many bytes their varints have."""
    zigzag = ((numbers << 1) ^ (numbers >> 63)).view(np.uint64)
    return np.searchsorted(_SIZE_STEPS, zigzag, side="right") + 1


@dataclass(slots=True)
class Records:
    """Records for one partition, in order, as columns."""

    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[Headers]
    timestamps: Int64  # [records] ms

    def __len__(self) -> int:
        return len(self.keys)

    def part(self, first: int, end: int | None = None) -> Records:
        """Those from one place up to another."""
        rows = slice(first, end)
        return Records(self.keys[rows], self.values[rows], self.headers[rows], self.timestamps[rows])

    def take(self, rows: Int64) -> Records:
        """Those at these ascending places."""
        if int(rows[-1]) - int(rows[0]) + 1 == len(rows):  # as a batch that was read has them
            return self.part(int(rows[0]), int(rows[-1]) + 1)
        places = rows.tolist()
        return Records(
            [self.keys[row] for row in places],
            [self.values[row] for row in places],
            [self.headers[row] for row in places],
            self.timestamps[rows],
        )


def hand_over(kafka: Any, tp: TopicPartition, records: Records, failed: Callable[[BaseException], None]) -> None:
    """To a KafkaProducer's queue for the partition, as RecordAccumulator.append does it; does not wait.

    Args:
        kafka: the producer.
        tp: the partition.
        records: in order.
        failed: called from the library's thread when one of them could not be delivered.
    """
    accumulator, done = kafka._accumulator, 0
    accumulator._appends_in_progress.increment()
    try:
        while done < len(records):
            left = records.part(done)
            with accumulator._tp_lock(tp):
                if accumulator._closed:
                    raise errors.IllegalStateError("the producer is closed")
                queue = accumulator._batches[tp]
                taken = _append(queue[-1], left) if queue else 0
                if new := not taken:
                    batch = _new_batch(accumulator, tp, failed)
                    taken = _append(batch, left)
                    queue.append(batch)
                    accumulator._incomplete.add(batch)
                full = len(queue) > 1 or queue[-1].records.is_full()
            if new or full:
                kafka._sender.wakeup()
            done += taken
    finally:
        accumulator._appends_in_progress.decrement()


def outstanding(kafka: Any) -> int:
    """Bytes that are handed over and not yet acknowledged."""
    return sum(map(_size, kafka._accumulator._incomplete.all()))


def _size(batch: Any) -> int:
    builder = batch.records._builder  # the library's thread may close it meanwhile
    return builder.size() if builder is not None else len(batch.records._buffer)


def wait_for_oldest(kafka: Any, timeout_s: float) -> bool:
    """Wait until what was handed over first is acknowledged or has failed; False after `timeout_s`."""
    waiting = kafka._accumulator._incomplete.all()
    return not waiting or bool(min(waiting).produce_future.wait(timeout_s))


class _Watch:
    """Stands for all records of a batch, also when the library splits it in two because Kafka found it too large."""

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        self._failed = failed
        self._future: Any = None

    def rebind(self, future: Any, _index: int) -> None:
        """Its records are in a batch with this future now: called for each of them, in order."""
        if future is self._future:
            return
        if self._future is not None:
            self._future._latch.set()  # it is never answered: whoever waits for it must look again
        self._future = future
        future._add_cb_eb(self._answered, self._failed)

    def _answered(self, result: tuple[int, int, Callable[[int], BaseException] | None]) -> None:
        error_of = result[2]
        if error_of is not None:
            self._failed(error_of(0))


def _new_batch(accumulator: Any, tp: TopicPartition, failed: Callable[[BaseException], None]) -> Any:
    config = accumulator.config
    builder = MemoryRecordsBuilder(config["message_version"], config["compression_attrs"], config["batch_size"])
    batch = ProducerBatch(tp, builder)
    watch = _Watch(failed)
    watch.rebind(batch.produce_future, 0)
    batch._record_futures.append(watch)
    return batch


def _append(batch: Any, records: Records) -> int:
    taken = fill(batch.records, records)
    if taken:
        batch.last_append = time.monotonic()
        batch._record_futures += batch._record_futures[:1] * (batch.record_count - len(batch._record_futures))
    return taken


def fill(records: Any, new: Records) -> int:
    """Lay the first of `new` into a MemoryRecordsBuilder, as many as it has room for; how many that were.

    An empty builder takes one record at least, one that is closed none.
    """
    if records._closed:
        return 0
    builder, begin = records._builder, records.next_offset()
    new = new.part(0, len(_SMALL) - begin)
    n = len(new)
    if n == 0:
        return 0
    first = builder._first_timestamp if begin else int(new.timestamps[0])
    later = new.timestamps - first  # [records]
    tails = _tails(new.headers)
    offsets = _SMALL[begin : begin + n]
    keys, key_lengths = _present(new.keys)
    values, value_lengths = _present(new.values)
    sizes = (
        1  # attributes
        + _sizes(later)
        + _sizes(np.arange(begin, begin + n))
        + _sizes(key_lengths)
        + np.maximum(key_lengths, 0)
        + _sizes(value_lengths)
        + np.maximum(value_lengths, 0)
        + (1 if tails is None else np.fromiter(map(len, tails), dtype=np.int64, count=n))
    )
    ends = np.cumsum(sizes + _sizes(sizes))
    room = records._batch_size - builder.size()
    taken = int(np.searchsorted(ends, room, side="right"))
    taken = max(taken, 1 if begin == 0 else 0)
    if taken == 0:
        return 0
    columns = zip(
        _varints(sizes[:taken]),
        repeat(b"\0"),  # attributes: none are defined
        _varints(later[:taken]) if later.any() else repeat(b"\0"),
        offsets,
        _varints(key_lengths[:taken]),
        keys,
        _varints(value_lengths[:taken]),
        values,
        repeat(_NO_HEADERS) if tails is None else tails,
        strict=False,
    )
    builder._buffer += b"".join(chain.from_iterable(columns))
    builder._first_timestamp = first
    newest = int(new.timestamps[:taken].max())
    builder._max_timestamp = newest if begin == 0 else max(builder._max_timestamp, newest)
    builder._num_records += taken
    builder._last_offset = begin + taken - 1
    records._next_offset = begin + taken
    return taken


def _present(texts: Sequence[bytes | None]) -> tuple[Iterable[bytes], Int64]:
    """The texts, empty where there is none, and their lengths, -1 where there is none."""
    if None in texts:
        lengths = np.array([-1 if text is None else len(text) for text in texts], dtype=np.int64)
        return [text or b"" for text in texts], lengths
    return texts, np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))  # type: ignore[arg-type, return-value]


def _tails(headers: Sequence[Headers]) -> list[bytes] | None:
    """The headers of each record as it ends with them; None where none has any."""
    if not any(headers):
        return None
    known: dict[int, bytes] = {}  # many records share theirs
    return [known.get(id(each)) or known.setdefault(id(each), _tail(each)) for each in headers]


def _tail(headers: Headers) -> bytes:
    parts = [_varint(len(headers))]
    for name, value in headers:
        text = name.encode()
        parts += (_varint(len(text)), text, _varint(len(value)), value)
    return b"".join(parts)
