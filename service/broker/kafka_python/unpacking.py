"""Unpacks compressed batches up to a limit: a batch of a few KB may hold gigabytes. See docs/upstream.md, K15.

The library unpacks a batch whole, whatever its size. Here a batch that is larger unpacked than `MAX_UNPACKED_BYTES`, or
that cannot be unpacked, is read as if it were empty, and noted: the consumer continues behind it.
"""

from __future__ import annotations

import io
from gzip import GzipFile
from typing import Any

import snappy  # type: ignore[import-untyped]
import zstandard
from kafka.consumer.fetcher import Fetcher
from kafka.record.default_records import DefaultRecordBatch
from lz4.frame import LZ4FrameDecompressor  # type: ignore[import-untyped]

from tidecast.service.broker.port import UnreadBatch

MAX_UNPACKED_BYTES = 32 << 20
_TOO_LARGE = f"it has more than {MAX_UNPACKED_BYTES >> 20} MiB when it is unpacked"
_PART_BYTES = 1 << 17  # unpacked at once: room for the limit would cost more than most batches
_XERIAL = b"\x82SNAPPY\0"  # begins a stream of blocks, each after its length; without it the whole is one block
_XERIAL_HEADER_BYTES = 16


class _TooLarge(Exception):
    pass


_LibraryBatch: Any = DefaultRecordBatch


class _Batch(_LibraryBatch):  # type: ignore[misc]
    """A batch that unpacks itself up to the limit."""

    _buffer: Any
    _pos: Any
    _decompressed: Any

    def __init__(self, buffer: bytes, partition: int, noted: list[UnreadBatch]) -> None:
        super().__init__(buffer)
        self._partition, self._noted = partition, noted

    def _maybe_uncompress(self) -> None:
        if self._decompressed:
            return
        self._assert_has_codec(self.compression_type)
        packed = bytes(memoryview(self._buffer)[self._pos :])
        try:
            self._buffer = bytearray(unpack(self.compression_type, packed))
        except Exception as error:  # each codec has its own
            why = _TOO_LARGE if isinstance(error, _TooLarge) else f"it cannot be unpacked: {error}"
            self._noted.append(UnreadBatch(self._partition, self.base_offset, self.last_offset, len(packed), why))
            self._buffer, self._num_records = bytearray(), 0
        self._pos = 0
        self._decompressed = True


class _Records:
    """The batches of one answer of Kafka, in the place of the library's MemoryRecords."""

    def __init__(self, records: Any, partition: int, noted: list[UnreadBatch]) -> None:
        self._records, self._partition, self._noted = records, partition, noted

    def next_batch(self) -> Any:
        batch = self._records.next_batch()
        if batch is None or batch.magic < 2 or not batch.compression_type:
            return batch
        return _Batch(batch._buffer, self._partition, self._noted)


def limit_unpacking(kafka: Any) -> list[UnreadBatch]:
    """Have a KafkaConsumer unpack up to the limit. Returns a list, to which its polls add what they did not read."""
    noted: list[UnreadBatch] = []

    def partition_records(fetch_offset: int, tp: Any, records: Any, **options: Any) -> Any:
        return Fetcher.PartitionRecords(fetch_offset, tp, _Records(records, tp.partition, noted), **options)

    kafka._fetcher.PartitionRecords = partition_records
    return noted


def unpack(codec: int, packed: bytes, limit: int = MAX_UNPACKED_BYTES) -> bytes:
    """The bytes that one of Kafka's codecs has packed, at most `limit`.

    Raises:
        Exception: there are more, or they are damaged; of the codec's own kind.
    """
    if codec == DefaultRecordBatch.CODEC_SNAPPY:
        return _unpack_snappy(packed, limit)
    if codec == DefaultRecordBatch.CODEC_LZ4:
        reader = LZ4FrameDecompressor()
        parts, size = [reader.decompress(packed, _PART_BYTES)], 0
        while (size := size + len(parts[-1])) <= limit and not reader.eof:
            if reader.needs_input:
                raise EOFError("its end is missing")
            parts.append(reader.decompress(b"", _PART_BYTES))
    else:
        stream: Any = (
            GzipFile(fileobj=io.BytesIO(packed))
            if codec == DefaultRecordBatch.CODEC_GZIP
            else zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True)
        )
        parts, size = [stream.read(_PART_BYTES)], 0
        while parts[-1] and (size := size + len(parts[-1])) <= limit:
            parts.append(stream.read(_PART_BYTES))
    if size > limit:
        raise _TooLarge
    return b"".join(parts)


def _unpack_snappy(packed: bytes, limit: int) -> bytes:
    blocks = [packed]
    if packed.startswith(_XERIAL):
        blocks, at = [], _XERIAL_HEADER_BYTES
        while at < len(packed):
            end = at + 4 + int.from_bytes(packed[at : at + 4])
            blocks.append(packed[at + 4 : end])
            at = end
    # Each block begins with the size that it will have, and snappy makes room for that before it reads on.
    if sum(map(_unpacked_size, blocks)) > limit:
        raise _TooLarge
    return b"".join(map(snappy.decompress, blocks))


def _unpacked_size(block: bytes) -> int:
    """The number that a snappy block begins with, 7 bits in each byte, the lowest first."""
    size = 0
    for at, byte in enumerate(block[:5]):
        size |= (byte & 0x7F) << (7 * at)
        if byte < 0x80:
            break
    return size
