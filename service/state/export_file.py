"""States as JSON lines: the file that `tidecast state export` writes and `import` reads."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec

from tidecast.service.broker.partitioner import DEFAULT, partition_for
from tidecast.service.errors import ChangelogError, DataError
from tidecast.service.model.compatibility import LAYOUT_BYTES
from tidecast.service.model.members import read_table, write_table
from tidecast.service.state.changelog_admin import ChangelogEntry, SeriesLocation
from tidecast.service.state.codec import check_record
from tidecast.service.state.record import AheadClock, RecordHeader, state_bytes, write_record
from tidecast.service.state.waiting import read_waiting, write_waiting

_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Checksum = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
_Natural = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


_AGAIN = "Give a file that `tidecast state export` wrote, whole and unchanged."
_NEW_INPUT = "give --new-input: it ignores offsets and chooses partitions by key where their number is another."
_OTHER_INPUT = f"Name its own with --input-topic, or, if the readings now come from another topic, {_NEW_INPUT}"


class StateLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One series. Times in ms, `layout` in hex, `state` base64 of little-endian float32."""

    series: Annotated[str, msgspec.Meta(min_length=1)]
    partition: _Natural
    partitions: _Natural  # of the changelog at the export
    offset: _Int64  # of the last reading applied, -1 = no reading of this input topic
    last_ts: _Int64
    steps: _Int64
    seen_ms: _Int64
    layout: Annotated[str, msgspec.Meta(pattern=f"^[0-9a-f]{{{2 * LAYOUT_BYTES}}}$")]
    state: bytes
    crc: _Checksum  # of all the others: see `checksum`
    ahead: tuple[_Int64, _Int64, _Int64, _Int64] | None = None  # the numbers of an `AheadClock`; few series have one
    waiting: bytes | None = None  # base64, the parts that wait as they are in the changelog; few series have some
    members: bytes | None = None  # base64, the table of the models whose states these are, where there are shadows


class LastLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Without it, a file that was cut between two lines would look whole."""

    states: _Natural  # how many lines there are before it


def checksum(place: SeriesLocation, partitions: int, value: bytes) -> int:
    """The crc32 of `partition/partitions`, a newline, the key, a newline, and the record without its own checksum.

    With it, the sum would be the same for all records of one length.
    """
    return zlib.crc32(b"%d/%d\n%b\n%b" % (place.partition, partitions, place.key, value[:-4]))


def last_line(states: int) -> bytes:
    """The end of a file with so many states, with its newline."""
    return msgspec.json.encode(LastLine(states)) + b"\n"


def to_line(place: SeriesLocation, partitions: int, value: bytes) -> bytes:
    """One line with its newline.

    Raises:
        ChangelogError: the state cannot be used.
    """
    header = check_record(place.key, value)
    line = StateLine(
        series=place.key.decode(),
        partition=place.partition,
        partitions=partitions,
        offset=header.offset,
        last_ts=header.last_ts,
        steps=header.steps,
        seen_ms=header.seen_ms,
        layout=header.layout.hex(),
        state=state_bytes(value),
        ahead=header.ahead,
        waiting=None if header.waiting is None else write_waiting(header.waiting),
        members=write_table(header.members) if header.members else None,
        crc=checksum(place, partitions, value),
    )
    return msgspec.json.encode(line) + b"\n"


def read_states(
    path: Path | str,
    partitions: int,
    *,
    new_input: bool = False,
    partitioner: str | None = None,
    ends: dict[int, int] | None = None,
) -> list[ChangelogEntry]:
    """Read a file into changelog records, in the order of its lines.

    Args:
        path: JSON lines; blank lines are skipped.
        partitions: of the changelog to import into.
        new_input: the readings now come from another topic, so the offsets in the file are ignored.
        partitioner: with `new_input`, puts each series into the partition of its key; None = the partition of the
            export, or, where the number of partitions is another, the default partitioner.
        ends: partition -> the offset after the input topic's last reading; where given, no state may have a later one.

    Raises:
        DataError: the file cannot be read, a line is not a state, a series occurs twice, or a line does not fit the
            changelog or the input topic. The text names file and line.
    """
    entries: list[ChangelogEntry] = []
    seen: dict[SeriesLocation, int] = {}
    last: LastLine | None = None
    for number, text in _lines(Path(path)):
        where = f"{path}, line {number}"
        if last is not None:
            raise DataError(f"{where} comes after the last line, the number of states", do=_AGAIN)
        line = _parse(text, where)
        if isinstance(line, LastLine):
            last = line
            continue
        ahead = None if line.ahead is None else AheadClock(*line.ahead)
        try:
            waiting = None if line.waiting is None else read_waiting(line.waiting)
        except ChangelogError as error:
            raise DataError(f"{where}: {error.what}", do=_AGAIN) from None
        times = line.offset, line.last_ts, line.steps, line.seen_ms
        table = line.members or b""
        members = (read_table(table, 0, len(table)) or ()) if table else ()
        header = RecordHeader(bytes.fromhex(line.layout), *times, len(line.state) // 4, ahead, waiting, members)
        place, value = SeriesLocation(line.partition, line.series.encode()), write_record(header, line.state)
        if checksum(place, line.partitions, value) != line.crc:
            raise DataError(f"{where} is damaged: its checksum is wrong", do=_AGAIN)
        end = None
        if new_input:
            ahead = None if ahead is None else AheadClock(ahead.before)
            waiting = None if waiting is None else msgspec.structs.replace(waiting, answered=-1)
            value = write_record(replace(header, offset=-1, ahead=ahead, waiting=waiting), line.state)
            if partitioner is not None or line.partitions != partitions or line.partition >= partitions:
                place = SeriesLocation(partition_for(place.key, partitions, partitioner or DEFAULT), place.key)
        else:
            _check_fits(line, where, partitions)
            end = (ends or {}).get(line.partition)
        try:
            check_record(place.key, value, end=end)
        except ChangelogError as error:
            do = error.do or (_OTHER_INPUT if error.offset is not None else _AGAIN)
            raise DataError(f"{where}: {error.what}", got=error.got, do=do) from None
        if place in seen:
            raise DataError(f"{where}: the series {line.series!r} occurs twice, first in line {seen[place]}")
        seen[place] = number
        entries.append(ChangelogEntry(place, value))
    if last is None or last.states != len(entries):
        raise DataError(
            f"{path} is not whole: it has {len(entries)} states, and its last line must say that",
            got=None if last is None else last.states,
            do=_AGAIN,
        )
    return entries


def _parse(text: bytes, where: str) -> StateLine | LastLine:
    try:
        if text.startswith(b'{"states"'):
            return msgspec.json.decode(text, type=LastLine)
        return msgspec.json.decode(text, type=StateLine)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{where} is not a state: {error}", do=_AGAIN) from None


def _check_fits(line: StateLine, where: str, partitions: int) -> None:
    if line.partitions != partitions or line.partition >= partitions:
        raise DataError(
            f"{where}: the state is from partition {line.partition} of {line.partitions}, "
            f"the changelog has {partitions} partitions",
            do=f"Make changelog and topics with {line.partitions} partitions, or {_NEW_INPUT}",
        )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, start=1):
                if text.strip():
                    yield number, text
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", do="Check the path.") from None
