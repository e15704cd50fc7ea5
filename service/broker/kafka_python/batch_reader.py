"""Kafka's record batches (format 2) as rows, in a fraction of the time that kafka-python takes for them.

The library makes two objects of each record, by way of a dozen calls. Here a batch is one loop over its bytes, where
they are: a response is not copied batch by batch. All that is not about single records stays the library's: checksums,
compression, which transactions were aborted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from kafka import errors
from kafka.consumer.fetcher import Fetcher, IsolationLevel
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import decode_varint

from tidecast.service.broker.port import Headers

_MOST_KINDS = 1_000  # of headers, remembered: records of one topic mostly share theirs, or have none


class Row(NamedTuple):
    """One record."""

    offset: int
    timestamp: int  # ms
    key: bytes | None
    value: bytes | None
    headers: Headers


class FetchedRows(Fetcher.PartitionRecords):  # type: ignore[misc]
    """What one fetch has brought of one partition; in the place of the library's own, with `Row`s as its records."""

    def take(self, n: int | None = None) -> list[Row]:
        """The next `n` at the most; `next_fetch_offset` is then behind the last of them.

        Raises:
            CorruptRecordError: the bytes are no records.
        """
        rows: list[Row] = super().take(n)
        if len(rows) == n:  # else it is behind the last batch, which may be beyond its last record
            self.next_fetch_offset = rows[-1].offset + 1
        return rows

    def _unpack_records(self, tp: Any, records: Any, *_: object) -> Iterator[Row]:
        while (batch := _next(records)) is not None:
            if self.check_crcs and not batch.validate_crc():
                what = f"the record batch of {tp.topic}-{tp.partition} at offset {batch.base_offset}"
                raise errors.CorruptRecordError(f"{what} failed its crc check")
            if batch.magic < 2:  # of a broker before 0.11
                for old in batch:
                    self.next_fetch_offset = old.offset + 1
                    yield Row(old.offset, old.timestamp, old.key, old.value, ())
                continue
            self.leader_epoch = batch.leader_epoch
            if not self._is_hidden(batch):
                yield from rows_of(batch)
            # The last offset of a batch stays known when compaction has taken its last record out.
            self.next_fetch_offset = batch.next_offset
        self.drain()

    def _is_hidden(self, batch: Any) -> bool:
        """True for a transaction's marker, and for what a reader of committed records must not see."""
        if self.isolation_level == IsolationLevel.READ_COMMITTED and batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if self._contains_abort_marker(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return True
        return bool(batch.is_control_batch)


class _InPlace(DefaultRecordBatch):  # type: ignore[misc]
    """The library's batch, without a copy of its bytes."""

    def __init__(self, whole: bytes, begin: int, buffer: memoryview) -> None:
        super().__init__(buffer[: self.HEADER_STRUCT.size])
        self._buffer = buffer
        self.whole, self.begin = whole, begin  # what it is part of, and where in that


def _next(records: Any) -> Any:
    """The next batch of the library's MemoryRecords, None after the last whole one; that of an old format is theirs."""
    view = records._next_slice
    if view is None or len(view) < DefaultRecordBatch.HEADER_STRUCT.size or view[records.MAGIC_OFFSET] < 2:
        return records.next_batch()
    batch = _InPlace(records._buffer, records._pos - len(view), view)
    if batch.is_control_batch:  # the library reads these
        return records.next_batch()
    records._cache_next()
    return batch


def rows_of(batch: Any) -> list[Row]:
    """The records of a library's DefaultRecordBatch.

    Raises:
        CorruptRecordError: the bytes are no records.
    """
    if isinstance(batch, _InPlace) and not batch.compression_type:
        data, begin, size = batch.whole, batch.begin, len(batch._buffer)
    else:
        batch._maybe_uncompress()
        data, begin, size = bytes(batch._buffer), 0, len(batch._buffer)
    try:
        return _rows(
            data,
            begin + batch._pos,
            begin + size,
            batch.records_count,
            batch.base_offset,
            batch.max_timestamp if batch.timestamp_type else batch.first_timestamp,
            moves=not batch.timestamp_type,
        )
    except (IndexError, ValueError) as error:
        raise errors.CorruptRecordError(f"the record batch at offset {batch.base_offset}: {error}") from None


def _rows(data: bytes, at: int, stop: int, count: int, offset: int, timestamp: int, *, moves: bool) -> list[Row]:
    """The records from `at` to `stop`. `moves`: a record's own time counts, else that of the batch.

    A record is: its length, attributes (1 byte), time and offset relative to the batch's, key, value, headers; all
    numbers but the attributes are zigzag varints. Those of up to two bytes are read in place, which is most of them.
    """
    rows, known = [], _known_headers
    new = tuple.__new__  # a Row without the call of a Python function
    for _ in range(count):
        number, at = data[at], at + 1
        if number > 127:
            number, at = _longer(data, at, number)
        end = at + (number >> 1)
        at += 1
        since, at = data[at], at + 1
        if since > 127:
            since, at = _longer(data, at, since)
        nth, at = data[at], at + 1
        if nth > 127:
            nth, at = _longer(data, at, nth)
        number, at = data[at], at + 1
        if number > 127:
            number, at = _longer(data, at, number)
        key = None
        if not number & 1:  # odd = negative
            begin, at = at, at + (number >> 1)
            key = data[begin:at]
        number, at = data[at], at + 1
        if number > 127:
            number, at = _longer(data, at, number)
        value = None
        if not number & 1:
            begin, at = at, at + (number >> 1)
            value = data[begin:at]
        if at >= end:
            raise ValueError("a record is cut short")
        rest = data[at:end]
        headers = known.get(rest)
        if headers is None:
            headers = _headers(rest)
        time = timestamp + ((since >> 1) ^ -(since & 1)) if moves else timestamp
        rows.append(new(Row, (offset + (nth >> 1), time, key, value, headers)))
        at = end
    if at != stop:
        raise ValueError("its records do not fill it")
    return rows


def _longer(data: bytes, at: int, first: int) -> tuple[int, int]:
    """A varint of which `first` is read and says that more follow: the number, still zigzag, and where it ends."""
    number, shift = first & 127, 7
    while (byte := data[at]) > 127:
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
    return number | byte << shift, at + 1


_known_headers: dict[bytes, Headers] = {b"\0": ()}


def _headers(data: bytes) -> Headers:
    """A record's last part: how many headers, and these."""
    found = []
    number, at = decode_varint(data, 0)
    for _ in range(number):
        size, at = decode_varint(data, at)
        name, at = data[at : at + size].decode(), at + size
        size, at = decode_varint(data, at)
        # Kafka allows a header without a value; the port does not.
        value, at = (b"", at) if size < 0 else (data[at : at + size], at + size)
        found.append((name, value))
    if at != len(data):
        raise ValueError("a record's headers do not fill it")
    if len(_known_headers) >= _MOST_KINDS:
        _known_headers.clear()
    return _known_headers.setdefault(data, tuple(found))
