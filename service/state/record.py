"""One record of the changelog, of any model: its fields, its checks, and how it is written. No I/O.

A record is, packed and little-endian: the version (1 byte), the hash of the state's layout (8 bytes), offset, last ts,
steps and seen_ms (int64 each), the state (float32 each), and the crc32 of all before it. A record of version 2 has the
four numbers of an `AheadClock` (int64 each) before the state. Only series whose clock is ahead have one, so nearly all
records are of version 1, which older versions of tidecast read too. A record of version 3 has the parts of readings
that wait for others (`tidecast.service.state.waiting`): before the state, 1 byte that tells whether an `AheadClock`
follows, the clock if so, the length of the parts (4 bytes), and the parts.

A record of version 4 has the states of several models (`tidecast.service.model.members`): before the state, the table
of the models, and 1 byte that tells what follows: 1 = an `AheadClock`, 2 = the length of parts that wait, and the
parts, 3 = both. In the place of the layout's hash it has that of the table.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple

from tidecast.service.errors import ChangelogError
from tidecast.service.model.compatibility import LAYOUT_BYTES
from tidecast.service.model.members import Member, StateLayout, read_table, write_table
from tidecast.service.state.waiting import Waiting, read_waiting, write_waiting
from tidecast.service.timestamps import NEVER

VERSION, AHEAD_VERSION, WAITING_VERSION, GROUP_VERSION = 1, 2, 3, 4
CRC_BYTES = 4
CRC_OF_WHOLE = 0x2144DF1C  # the crc32 of any bytes that end with their own crc32
_HEADER = struct.Struct(f"<{LAYOUT_BYTES}s4q")  # everything between the version and the state
_AHEAD = struct.Struct("<4q")
_CLOCK, _PARTS = 1, 2  # what follows in a record of version 3 or 4
_LENGTH = struct.Struct("<I")
_HEADER_END = 1 + _HEADER.size
_SMALLEST = _HEADER_END + CRC_BYTES


class AheadClock(NamedTuple):
    """Of a series whose newest reading was ahead of its record, and of the late readings that contradict it."""

    before: int  # ms, its newest reading before it jumped ahead, NEVER = there was none
    late: int = 0  # how many readings in a row contradict it; they count only if no later one was applied
    late_ts: int = NEVER  # ms, event time of the last of them
    offset: int = -1  # of the last of them


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """The fields of a record that can be read without its model."""

    layout: bytes  # [8], see `layout_hash`
    # of the last reading applied, or part that waits, in the input partition with the number of the record's partition
    offset: int
    last_ts: int  # event time of that reading, ms
    steps: int  # since the initial state, imputed ones too
    seen_ms: int  # record time of the last reading of any kind, ms
    state_size: int  # float32 numbers
    ahead: AheadClock | None = None
    waiting: Waiting | None = None
    members: tuple[Member, ...] = ()  # whose states these are; none = one model's


def read_header(value: bytes) -> RecordHeader:
    """Read everything except the state from a record of any model.

    Raises:
        ChangelogError: the record has another version, is cut short, or is damaged.
    """
    if len(value) < _SMALLEST:
        raise ChangelogError("a changelog record is cut short", got=f"{len(value)} bytes")
    if zlib.crc32(value) != CRC_OF_WHOLE:
        raise ChangelogError("a changelog record is damaged: its checksum is wrong")
    if not VERSION <= value[0] <= GROUP_VERSION:
        raise ChangelogError(
            f"a changelog record has version {value[0]}, this tidecast reads versions {VERSION} to {GROUP_VERSION}",
            do="Run the tidecast that wrote it, or a newer one.",
            intact=True,
        )
    layout, offset, last_ts, steps, seen_ms = _HEADER.unpack_from(value, 1)
    ahead, waiting, members, begin = _between(value)
    size = len(value) - CRC_BYTES - begin
    if size < 0 or size % 4 or (members and StateLayout(members).size != size // 4):
        raise _cut_short(value)
    return RecordHeader(layout, offset, last_ts, steps, seen_ms, size // 4, ahead, waiting, members)


def _cut_short(value: bytes) -> ChangelogError:
    return ChangelogError("a changelog record is cut short", got=f"{len(value)} bytes")


def _between(value: bytes) -> tuple[AheadClock | None, Waiting | None, tuple[Member, ...], int]:
    """What is between the header and the state, and where the state begins."""
    version, at, end = value[0], _HEADER_END, len(value) - CRC_BYTES
    if version == VERSION:
        return None, None, (), at
    ahead, waiting, more = None, None, _CLOCK
    members: tuple[Member, ...] = ()
    if version == GROUP_VERSION:
        found = read_table(value, at, end)
        if found is None:
            raise _cut_short(value)
        members, at = found, at + len(write_table(found))
    if version != AHEAD_VERSION:
        most = _CLOCK if version == WAITING_VERSION else _CLOCK | _PARTS
        if at >= end or value[at] > most:
            raise _cut_short(value)
        more, at = value[at] | (_PARTS if version == WAITING_VERSION else 0), at + 1
    if more & _CLOCK:
        if at + _AHEAD.size > end:
            raise _cut_short(value)
        ahead, at = AheadClock(*_AHEAD.unpack_from(value, at)), at + _AHEAD.size
    if more & _PARTS:
        if at + _LENGTH.size > end:
            raise _cut_short(value)
        (length,) = _LENGTH.unpack_from(value, at)
        at += _LENGTH.size
        if at + length > end:
            raise _cut_short(value)
        waiting, at = read_waiting(value[at : at + length]), at + length
    return ahead, waiting, members, at


def state_bytes(value: bytes) -> bytes:
    """The state in a record that `read_header` has read: little-endian float32."""
    return value[_between(value)[3] : -CRC_BYTES]


def write_record(header: RecordHeader, state: bytes) -> bytes:
    """Build a record of any model from what `read_header` and `state_bytes` return; `header.state_size` is ignored."""
    times = header.offset, header.last_ts, header.steps, header.seen_ms
    ahead = b"" if header.ahead is None else _AHEAD.pack(*header.ahead)
    version, between, parts = AHEAD_VERSION if ahead else VERSION, ahead, b""
    if header.waiting is not None:
        parts = write_waiting(header.waiting)
        parts = _LENGTH.pack(len(parts)) + parts
        version, between = WAITING_VERSION, bytes([bool(ahead)]) + ahead + parts
    if header.members:
        more = _CLOCK * bool(ahead) | _PARTS * bool(parts)
        version, between = GROUP_VERSION, write_table(header.members) + bytes([more]) + ahead + parts
    body = bytes([version]) + _HEADER.pack(header.layout, *times) + between + state
    return body + zlib.crc32(body).to_bytes(CRC_BYTES, "little")
