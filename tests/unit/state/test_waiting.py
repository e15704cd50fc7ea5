"""Parts that wait, in the changelog: what was written is read; all else is refused, also with a right checksum."""

from __future__ import annotations

import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.models import counting_spec
from tidecast.service.errors import ChangelogError, DataError
from tidecast.service.state.changelog_admin import SeriesLocation
from tidecast.service.state.codec import Codec
from tidecast.service.state.export_file import last_line, read_states, to_line
from tidecast.service.state.record import AheadClock, read_header, state_bytes, write_record
from tidecast.service.state.store import SeriesStore
from tidecast.service.state.waiting import MAX_GROUPS, Group, Waiting, read_waiting, write_waiting
from tidecast.service.timestamps import MAX_TS_MS, MIN_TS_MS

CODEC = Codec(counting_spec())
HEADER_END = 41  # version, layout, four numbers
CLOCK = AheadClock(before=50_000, late=2, late_ts=60_000, offset=9)
WAITING = Waiting(6, [Group(70_000, {"value": 1.5, "wind": float("nan")}), Group(80_000, {"wind": -0.0})])

values = st.dictionaries(st.text(max_size=20), st.floats(allow_infinity=False), min_size=1, max_size=4)
groups = st.dictionaries(st.integers(MIN_TS_MS, MAX_TS_MS), values, min_size=1, max_size=8)
waitings = st.builds(
    lambda answered, found: Waiting(answered, [Group(ts, found[ts]) for ts in sorted(found)]),
    st.integers(-1, 2**63 - 1),
    groups,
)


def record(waiting: Waiting | None, ahead: AheadClock | None = None) -> bytes:
    columns = [np.array([value], dtype=np.int64) for value in (7, 60_000, 3, 61_000)]
    states = np.array([[1.0, 2.0, 3.0, 4.0]], dtype=np.float32)
    found = {} if waiting is None else {0: waiting}
    return CODEC.encode(*columns, states, {} if ahead is None else {0: ahead}, found)[0]


@settings(deadline=None)
@given(waitings, st.none() | st.just(CLOCK))
def test_what_waits_comes_back_bit_for_bit_with_its_state(waiting: Waiting, ahead: AheadClock | None) -> None:
    value = record(waiting, ahead)
    assert value[0] == 3
    for found in (CODEC.decode(value), read_header(value)):
        assert found.waiting is not None
        assert write_waiting(found.waiting) == write_waiting(waiting)
        assert (found.offset, found.last_ts, found.steps, found.seen_ms, found.ahead) == (7, 60_000, 3, 61_000, ahead)
    assert CODEC.decode(value).state.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert write_record(read_header(value), state_bytes(value)) == value
    many = CODEC.decode_many([record(None), value, record(None, CLOCK)])
    assert {row: write_waiting(found) for row, found in many.waiting.items()} == {1: write_waiting(waiting)}
    assert set(many.ahead) == ({2} if ahead is None else {1, 2})


def test_records_of_series_of_which_nothing_waits_stay_as_they_were() -> None:
    assert (record(None)[0], record(None, CLOCK)[0], len(record(None))) == (1, 2, CODEC.record_bytes)


@pytest.mark.parametrize("ahead", [None, CLOCK])
def test_a_record_that_is_cut_or_changed_anywhere_is_refused(ahead: AheadClock | None) -> None:
    value = record(WAITING, ahead)
    for at in range(len(value)):
        damaged = bytearray(value)
        damaged[at] ^= 1
        for bad in (value[:at], bytes(damaged)):
            with pytest.raises(ChangelogError):
                CODEC.decode_many([record(None), bad])


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 255), st.integers(0, 200), st.binary(max_size=8), st.none() | st.just(CLOCK))
def test_no_length_or_flag_is_trusted_because_the_checksum_is_right(
    version: int, at: int, new: bytes, ahead: AheadClock | None
) -> None:
    """Bytes behind the header are replaced; the state is what it was, or the record is refused in words."""
    body = bytearray(record(WAITING, ahead)[:-4])
    body[HEADER_END + at : HEADER_END + at + len(new)] = new
    body[0] = version % 4 or 3
    value = bytes(body) + zlib.crc32(body).to_bytes(4, "little")
    try:
        header = read_header(value)
    except ChangelogError:
        return
    assert len(state_bytes(value)) == 4 * header.state_size
    assert write_record(header, state_bytes(value))[-4:]


BAD: dict[str, Any] = {
    "nothing waits": [6, []],
    "an empty group": [6, [[70_000, {}]]],
    "not in the order of time": [6, [[70_000, {"a": 1.0}], [60_000, {"a": 1.0}]]],
    "one time twice": [6, [[70_000, {"a": 1.0}], [70_000, {"b": 1.0}]]],
    "too many": [6, [[70_000 + i, {"a": 1.0}] for i in range(MAX_GROUPS + 1)]],
    "a time that is none": [6, [[MAX_TS_MS + 1, {"a": 1.0}]]],
    "an offset that is none": [-2, [[70_000, {"a": 1.0}]]],
    "an offset beyond 63 bits": [2**63, [[70_000, {"a": 1.0}]]],
    "an infinite value": [6, [[70_000, {"a": float("inf")}]]],
    "a text for a value": [6, [[70_000, {"a": "1"}]]],
    "a number for a name": [6, [[70_000, {1: 1.0}]]],
    "one more field": [6, [[70_000, {"a": 1.0}]], 1],
    "no list": 6,
}


@pytest.mark.parametrize("fault", BAD)
def test_what_no_worker_writes_is_refused(fault: str) -> None:
    with pytest.raises(ChangelogError, match="waiting parts that no worker writes"):
        read_waiting(msgspec.msgpack.encode(BAD[fault]))


@given(st.binary(max_size=60))
def test_any_bytes_are_parts_or_refused(data: bytes) -> None:
    with suppress(ChangelogError):
        assert read_waiting(data).groups


def test_what_waits_goes_with_its_series_and_comes_back_only_with_it() -> None:
    store = SeriesStore(np.zeros(4, np.float32), 2)
    store.restore([b"a", b"b"], 0, CODEC.decode_many([record(WAITING), record(None)]))
    (slot,) = store.waiting
    assert store.key_of(slot) == b"a"
    shown = store.snapshot(b"a")
    assert shown is not None
    assert msgspec.json.decode(msgspec.json.encode(shown["waiting"])) == [
        {"ts": 70_000, "values": {"value": 1.5, "wind": None}}, {"ts": 80_000, "values": {"wind": -0.0}}
    ]  # fmt: skip
    assert "waiting" not in (store.snapshot(b"b") or {})
    store.restore([b"a"], 0, CODEC.decode_many([record(None)]))
    assert not store.waiting, "a newer state, of which nothing waits"
    store.restore([b"a"], 0, CODEC.decode_many([record(WAITING)]))
    store.restore([b"c", b"d"], 0, CODEC.decode_many([record(None), record(WAITING)]))  # no room for the others
    assert [store.key_of(slot) for slot in store.waiting] == [b"d"]
    assert store.dropped_parts == 0, "a restore loses nothing: others have them"
    store.remove(b"d")
    assert not store.waiting and store.dropped_parts == 3


@pytest.mark.parametrize("new_input", [False, True])
def test_what_waits_survives_an_export_and_an_import(tmp_path: Path, new_input: bool) -> None:
    file, value, place = tmp_path / "states.jsonl", record(WAITING, CLOCK), SeriesLocation(0, b"a")
    file.write_bytes(to_line(place, 1, value) + last_line(1))
    (entry,) = read_states(file, 1, new_input=new_input)
    assert entry.value is not None
    if not new_input:
        assert entry.value == value
        return
    header = read_header(entry.value)
    assert (header.offset, header.waiting and header.waiting.answered) == (-1, -1), "offsets of another topic"
    assert header.waiting is not None and header.waiting.parts == 3


def test_an_export_whose_parts_were_changed_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "states.jsonl"
    line = msgspec.json.decode(to_line(SeriesLocation(0, b"a"), 1, record(WAITING)))
    for waiting, says in (("AAAA", "line 1: a changelog record has waiting parts"), (None, "line 1 is damaged")):
        file.write_bytes(msgspec.json.encode(line | {"waiting": waiting}) + b"\n" + last_line(1))
        with pytest.raises(DataError, match=says):
            read_states(file, 1)
