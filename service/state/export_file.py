"""States as JSON lines: the file that `tidecast state export` writes and `import` reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from tidecast.service.errors import ChangelogError, DataError
from tidecast.service.model.compatibility import LAYOUT_BYTES
from tidecast.service.state.changelog_admin import ChangelogEntry, SeriesLocation, location_of
from tidecast.service.state.codec import RecordHeader, read_header, state_bytes, write_record

_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Natural = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class StateLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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


def to_line(place: SeriesLocation, partitions: int, value: bytes) -> bytes:
    """One line with its newline.

    Raises:
        ChangelogError: the record cannot be read.
    """
    header = read_header(value)
    try:
        series = place.key.decode()
    except UnicodeDecodeError:
        raise ChangelogError("the key of a state is not UTF-8", got=place.key) from None
    line = StateLine(
        series=series,
        partition=place.partition,
        partitions=partitions,
        offset=header.offset,
        last_ts=header.last_ts,
        steps=header.steps,
        seen_ms=header.seen_ms,
        layout=header.layout.hex(),
        state=state_bytes(value),
    )
    return msgspec.json.encode(line) + b"\n"


def read_states(
    path: Path | str, partitions: int, *, new_input: bool = False, ends: dict[int, int] | None = None
) -> list[ChangelogEntry]:
    """Read a file into changelog records, in the order of its lines.

    Args:
        path: JSON lines; blank lines are skipped.
        partitions: of the changelog to import into.
        new_input: the readings now come from another topic, so the offsets in the file are ignored and each series goes
            to the partition of its key.
        ends: partition -> the offset after the input topic's last reading; where given, no state may have a later one.

    Raises:
        DataError: the file cannot be read, a line is not a state, a series occurs twice, or a line does not fit the
            changelog or the input topic. The text names file and line.
    """
    entries: list[ChangelogEntry] = []
    seen: dict[SeriesLocation, int] = {}
    for number, text in _lines(Path(path)):
        where = f"{path}, line {number}"
        line = _parse(text, where)
        if new_input:
            place = location_of(line.series.encode(), partitions)
        else:
            place = SeriesLocation(line.partition, line.series.encode())
            _check_fits(line, where, partitions, ends or {})
        if place in seen:
            raise DataError(f"{where}: the series {line.series!r} occurs twice, first in line {seen[place]}")
        seen[place] = number
        offset = -1 if new_input else line.offset
        header = RecordHeader(
            bytes.fromhex(line.layout), offset, line.last_ts, line.steps, line.seen_ms, len(line.state) // 4
        )
        entries.append(ChangelogEntry(place, write_record(header, line.state)))
    return entries


def _parse(text: bytes, where: str) -> StateLine:
    try:
        line = msgspec.json.decode(text, type=StateLine)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(
            f"{where} is not a state: {error}", do="Give a file that `tidecast state export` wrote."
        ) from None
    if not line.state or len(line.state) % 4:
        raise DataError(f"{where}: the state must be whole float32 numbers", got=f"{len(line.state)} bytes")
    if not np.isfinite(np.frombuffer(line.state, dtype="<f4")).all():
        raise DataError(f"{where}: the state is not finite")
    return line


def _check_fits(line: StateLine, where: str, partitions: int, ends: dict[int, int]) -> None:
    new_input = "give --new-input: it ignores offsets and puts every series into the partition of its key."
    if line.partitions != partitions or line.partition >= partitions:
        raise DataError(
            f"{where}: the state is from partition {line.partition} of {line.partitions}, "
            f"the changelog has {partitions} partitions",
            do=f"Make changelog and topics with {line.partitions} partitions, or {new_input}",
        )
    if line.partition in ends and line.offset >= ends[line.partition]:
        raise DataError(
            f"{where}: the state of {line.series!r} includes the reading at offset {line.offset} of partition "
            f"{line.partition}, but the input topic ends at {ends[line.partition]} there",
            do=f"Name its own with --input-topic, or, if the readings now come from another topic, {new_input}",
        )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, start=1):
                if text.strip():
                    yield number, text
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", do="Check the path.") from None
