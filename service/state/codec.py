"""The state of one series as one record of the changelog, and back. No I/O.

A record is, packed and little-endian: the version (1 byte), the hash of the state's layout (8 bytes), offset, last ts,
steps and seen_ms (int64 each), the state (float32 each), and the crc32 of all before it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tidecast.service.errors import ChangelogError
from tidecast.service.model.compatibility import LAYOUT_BYTES, layout_hash
from tidecast.service.model.spec import ModelSpec

VERSION = 1
_CRC_BYTES = 4
_CRC_OF_WHOLE = 0x2144DF1C  # the crc32 of any bytes that end with their own crc32
_TIMES = ("offset", "last_ts", "steps", "seen_ms")
_HEADER = struct.Struct(f"<{LAYOUT_BYTES}s4q")  # everything between the version and the state


def _record(state_size: int) -> np.dtype[np.void]:
    """The layout of one record, without padding."""
    header = [("version", "u1"), ("layout", "u1", (LAYOUT_BYTES,))]
    times = [(name, "<i8") for name in _TIMES]
    return np.dtype([*header, *times, ("state", "<f4", (state_size,)), ("crc", "<u4")])


_STATE_AT = 1 + _HEADER.size
_SMALLEST = _STATE_AT + _CRC_BYTES


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """The fields of a record that can be read without its model."""

    layout: bytes  # [8], see `layout_hash`
    offset: int  # of the last reading applied, in the input partition with the number of the record's partition
    last_ts: int  # event time of that reading, ms
    steps: int  # since the initial state, imputed ones too
    seen_ms: int  # record time of the last reading of any kind, ms
    state_size: int  # float32 numbers


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One series as it was after the reading at `offset`."""

    offset: int
    last_ts: int  # ms
    steps: int
    seen_ms: int
    state: NDArray[np.float32]  # [state], read-only


@dataclass(frozen=True, slots=True)
class Snapshots:
    """Several snapshots, as columns with a row for each series."""

    offsets: NDArray[np.int64]  # [series]
    last_ts: NDArray[np.int64]  # [series] ms
    steps: NDArray[np.int64]  # [series]
    seen_ms: NDArray[np.int64]  # [series]
    states: NDArray[np.float32]  # [series, state], read-only

    def __len__(self) -> int:
        return len(self.offsets)


def read_header(value: bytes) -> RecordHeader:
    """Read everything except the state from a record of any model.

    Raises:
        ChangelogError: the record has another version, is cut short, or is damaged.
    """
    if value and value[0] != VERSION:
        raise ChangelogError(
            f"a changelog record has version {value[0]}, this tidecast reads version {VERSION}",
            do="Run the tidecast that wrote it, or a newer one.",
        )
    size = len(value) - _SMALLEST
    if size < 0 or size % 4:
        raise ChangelogError("a changelog record is cut short", got=f"{len(value)} bytes")
    body, crc = memoryview(value)[:-_CRC_BYTES], int.from_bytes(value[-_CRC_BYTES:], "little")
    if zlib.crc32(body) != crc:
        raise ChangelogError("a changelog record is damaged: its checksum is wrong")
    layout, offset, last_ts, steps, seen_ms = _HEADER.unpack_from(value, 1)
    return RecordHeader(layout, offset, last_ts, steps, seen_ms, state_size=size // 4)


def layout_of(value: bytes) -> bytes:
    """The hash of the state's layout in a record, without any check."""
    return value[1 : 1 + LAYOUT_BYTES]


def state_bytes(value: bytes) -> bytes:
    """The state in a record that `read_header` has read: little-endian float32."""
    return value[_STATE_AT:-_CRC_BYTES]


def write_record(header: RecordHeader, state: bytes) -> bytes:
    """Build a record of any model from what `read_header` and `state_bytes` return; `header.state_size` is ignored."""
    times = header.offset, header.last_ts, header.steps, header.seen_ms
    body = bytes([VERSION]) + _HEADER.pack(header.layout, *times) + state
    return body + zlib.crc32(body).to_bytes(_CRC_BYTES, "little")


class Codec:
    """Writes and reads the records of all models that share one state layout."""

    def __init__(self, spec: ModelSpec) -> None:
        self.layout = layout_hash(spec)
        self.state_size = spec.state_size
        self._dtype = _record(spec.state_size)

    @property
    def record_bytes(self) -> int:
        """The length of every record, bytes."""
        return self._dtype.itemsize

    def encode(
        self,
        offsets: NDArray[np.int64],
        last_ts: NDArray[np.int64],
        steps: NDArray[np.int64],
        seen_ms: NDArray[np.int64],
        states: NDArray[np.float32],
    ) -> list[bytes]:
        """One record for each series.

        Args:
            offsets: [series], of the last reading applied.
            last_ts: [series], ms.
            steps: [series], since the initial state.
            seen_ms: [series], ms.
            states: [series, state].

        Raises:
            ChangelogError: a state is not finite, so it could not be restored.
        """
        if not np.isfinite(states).all():
            raise ChangelogError("a state that is not finite cannot go into the changelog")
        records = np.empty(len(offsets), dtype=self._dtype)
        records["version"] = VERSION
        records["layout"] = np.frombuffer(self.layout, dtype=np.uint8)
        records["offset"], records["last_ts"] = offsets, last_ts
        records["steps"], records["seen_ms"] = steps, seen_ms
        records["state"] = states
        size = self._dtype.itemsize
        starts = range(0, len(records) * size, size)
        data = records.view(np.uint8).data
        records["crc"] = [zlib.crc32(data[at : at + size - _CRC_BYTES]) for at in starts]
        return [data[at : at + size].tobytes() for at in starts]

    def decode(self, value: bytes) -> Snapshot:
        """Read a record that `encode` wrote; the values are the same, bit for bit.

        Raises:
            ChangelogError: the record has an unknown version, another layout (see the error's `layout`) or a state that
                is not finite, or it is cut short or damaged.
        """
        header = read_header(value)
        if header.layout != self.layout:
            raise ChangelogError(
                f"a changelog record has the state of another model, layout {header.layout.hex()}, "
                f"this model's is {self.layout.hex()}",
                do="Serve the model that wrote it, or give this one a --changelog-topic of its own.",
                layout=header.layout,
            )
        if header.state_size != self.state_size:  # although the hash is right: a fault of the writer
            raise ChangelogError(f"a changelog record must have {self.state_size} numbers", got=header.state_size)
        state = np.frombuffer(value, dtype="<f4", count=self.state_size, offset=_STATE_AT)
        if not np.isfinite(state).all():
            raise ChangelogError("a changelog record has a state that is not finite")
        return Snapshot(
            header.offset, header.last_ts, header.steps, header.seen_ms, state.astype(np.float32, copy=False)
        )

    def damage(self, value: bytes) -> str | None:
        """What is wrong with a record that this codec, or any other, cannot have written; None for all others."""
        try:
            header = read_header(value)
        except ChangelogError as error:
            intact = zlib.crc32(value) == _CRC_OF_WHOLE and len(value) >= _SMALLEST
            return None if intact else str(error)  # intact: of another version
        state = np.frombuffer(value, dtype="<f4", count=header.state_size, offset=_STATE_AT)
        if header.layout == self.layout and (header.state_size != self.state_size or not np.isfinite(state).all()):
            return "a changelog record has a state that is not finite, or of another size"
        return None

    def decode_many(self, values: Sequence[bytes]) -> Snapshots:
        """Like `decode` for each record, as columns, at a tenth of the cost per record.

        Raises:
            ChangelogError: as in `decode`, for the first record that it refuses.
        """
        if all(len(value) == self._dtype.itemsize for value in values):
            records = np.frombuffer(b"".join(values), dtype=self._dtype)
            states = records["state"].astype(np.float32)  # a copy, since the records are not aligned
            states.flags.writeable = False
            ours = (records["version"] == VERSION) & (records["layout"] == np.frombuffer(self.layout, "u1")).all(1)
            if ours.all() and set(map(zlib.crc32, values)) <= {_CRC_OF_WHOLE} and np.isfinite(states).all():
                offsets, last_ts, steps, seen_ms = (records[name].astype(np.int64) for name in _TIMES)
                return Snapshots(offsets, last_ts, steps, seen_ms, states)
        for value in values:
            self.decode(value)
        raise AssertionError("decode_many refuses a record that decode accepts")
