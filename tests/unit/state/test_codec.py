"""The changelog's codec: what it wrote it reads, and anything else it refuses."""

from __future__ import annotations

import zlib

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tests.support.models import counting_spec
from tidecast.service.errors import ChangelogError
from tidecast.service.model.compatibility import layout_hash
from tidecast.service.model.spec import StateSlice
from tidecast.service.state.codec import Codec
from tidecast.service.state.record import AheadClock, read_header, state_bytes, write_record

SPEC = counting_spec()
CODEC = Codec(SPEC)
int64s = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def spec_of(size: int) -> object:
    return counting_spec(state_size=size, state=[StateSlice("all", 0, (size,))], initial_state=[0.0] * size)


def one(state: list[float] | NDArray[np.float32] = (1.0, 2.0, 3.0, 4.0), **changes: int) -> bytes:  # type: ignore[assignment]
    fields = {"offset": 7, "last_ts": 60_000, "steps": 3, "seen_ms": 61_000} | changes
    columns = [np.array([value], dtype=np.int64) for value in fields.values()]
    return CODEC.encode(*columns, np.array([state], dtype=np.float32))[0]


@settings(deadline=None)
@given(st.data(), st.integers(0, 5), st.integers(1, 40))
def test_a_state_comes_back_bit_for_bit(data: st.DataObject, series: int, size: int) -> None:
    codec = Codec(spec_of(size))  # type: ignore[arg-type]
    columns = [data.draw(hnp.arrays(np.int64, series, elements=int64s)) for _ in range(4)]
    states = data.draw(hnp.arrays(np.float32, (series, size), elements=floats))
    records = codec.encode(*columns, states)
    assert len(records) == series
    for i, record in enumerate(records):
        assert len(record) == codec.record_bytes
        back = codec.decode(record)
        assert [back.offset, back.last_ts, back.steps, back.seen_ms] == [int(column[i]) for column in columns]
        assert back.state.dtype == np.float32
        assert back.state.tobytes() == states[i].tobytes()  # so -0.0 stays -0.0


@settings(deadline=None)
@given(st.data(), st.integers(0, 5), st.integers(1, 40))
def test_many_records_read_at_once_are_what_each_of_them_is(data: st.DataObject, series: int, size: int) -> None:
    codec = Codec(spec_of(size))  # type: ignore[arg-type]
    columns = [data.draw(hnp.arrays(np.int64, series, elements=int64s)) for _ in range(4)]
    records = codec.encode(*columns, data.draw(hnp.arrays(np.float32, (series, size), elements=floats)))
    found = codec.decode_many(records)
    assert len(found) == series
    assert found.states.dtype == np.float32
    for i, one_of_them in enumerate(map(codec.decode, records)):
        row = found.offsets[i], found.last_ts[i], found.steps[i], found.seen_ms[i]
        assert row == (one_of_them.offset, one_of_them.last_ts, one_of_them.steps, one_of_them.seen_ms)
        assert found.states[i].tobytes() == one_of_them.state.tobytes()


CLOCK = AheadClock(before=50_000, late=2, late_ts=60_000, offset=9)
OLDER = (
    "01b5849cabb76911ae0100000000000000020000000000000003000000000000000000000000000000"
    "0000c03f0000008000000000000000402833b4bb"
)


def test_a_clock_that_is_ahead_comes_back_and_all_other_records_stay_as_older_versions_wrote_and_read_them() -> None:
    columns = [np.arange(3, dtype=np.int64) for _ in range(4)]
    states = np.arange(12, dtype=np.float32).reshape(3, 4)
    plain, records = CODEC.encode(*columns, states), CODEC.encode(*columns, states, {1: CLOCK})
    assert [record == before for record, before in zip(records, plain, strict=True)] == [True, False, True]
    assert [record[0] for record in records] == [1, 2, 1]
    assert [CODEC.decode(record).ahead for record in records] == [None, CLOCK, None]
    found = CODEC.decode_many(records)
    assert found.ahead == {1: CLOCK}
    assert found.states.tolist() == states.tolist()
    assert found.offsets.tolist() == found.steps.tolist() == [0, 1, 2]
    assert not CODEC.decode_many(plain).ahead
    assert read_header(records[1]).ahead == CLOCK
    assert write_record(read_header(records[1]), state_bytes(records[1])) == records[1]
    for at in range(len(records[1])):
        damaged = bytearray(records[1])
        damaged[at] ^= 1
        with pytest.raises(ChangelogError):
            CODEC.decode_many([records[0], bytes(damaged)])


def test_a_record_that_an_older_version_stored_is_read() -> None:
    snapshot = CODEC.decode(bytes.fromhex(OLDER))
    assert (snapshot.offset, snapshot.last_ts, snapshot.steps, snapshot.seen_ms, snapshot.ahead) == (1, 2, 3, 0, None)
    assert snapshot.state.tolist() == [1.5, -0.0, 0.0, 2.0]


def _foreign() -> bytes:
    zero = np.zeros(1, dtype=np.int64)
    return Codec(spec_of(4)).encode(zero, zero, zero, zero, np.zeros((1, 4), dtype=np.float32))[0]  # type: ignore[arg-type]


def _with_crc(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


BAD = {
    "not finite": lambda good: _with_crc(good[:-8] + np.float32(np.inf).tobytes()),
    "version": lambda good: _with_crc(b"\4" + good[1:-4]),
    "another model": lambda good: _foreign(),
    "damaged": lambda good: good[:20] + bytes([good[20] ^ 1]) + good[21:],
    "damaged at its end": lambda good: good[:-1] + bytes([good[-1] ^ 1]),
    "cut": lambda good: good[:-4],
    "longer": lambda good: _with_crc(good[:-4] + b"\0\0\0\0"),
    "empty": lambda good: b"",
}


@pytest.mark.parametrize("fault", BAD)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_one_bad_record_among_many_is_refused_as_it_would_be_alone(fault: str, at: int) -> None:
    records = [one(offset=i) for i in range(3)]
    records[at] = BAD[fault](records[at])
    with pytest.raises(ChangelogError) as alone:
        CODEC.decode(records[at])
    with pytest.raises(ChangelogError) as refused:
        CODEC.decode_many(records)
    assert str(refused.value) == str(alone.value)
    assert refused.value.layout == alone.value.layout


def test_the_bytes_are_the_ones_that_older_and_newer_versions_write() -> None:
    record = one([1.5, -0.0, 0.0, 2.0], offset=1, last_ts=2, steps=3, seen_ms=-1)
    body = (
        bytes([1])
        + layout_hash(SPEC)
        + b"\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0\3\0\0\0\0\0\0\0"
        + b"\xff" * 8
        + bytes.fromhex("0000c03f 00000080 00000000 00000040")
    )
    assert record == body + zlib.crc32(body).to_bytes(4, "little")
    assert layout_hash(SPEC).hex() == "b5849cabb76911ae"


@settings(deadline=None, max_examples=30)
@given(st.lists(floats, min_size=4, max_size=4), int64s)
def test_a_record_that_is_cut_anywhere_is_refused(state: list[float], offset: int) -> None:
    record = one(state, offset=offset)
    for length in range(len(record)):
        with pytest.raises(ChangelogError):
            CODEC.decode(record[:length])


@settings(deadline=None, max_examples=20)
@given(st.lists(floats, min_size=4, max_size=4), st.integers(1, 255))
def test_a_byte_that_changed_anywhere_is_refused(state: list[float], mask: int) -> None:
    record = one(state)
    for at in range(len(record)):
        damaged = bytearray(record)
        damaged[at] ^= mask
        with pytest.raises(ChangelogError) as refused:
            CODEC.decode(bytes(damaged))
        assert refused.value.layout is None  # damage is not taken for another model


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused_and_do_not_crash(value: bytes) -> None:
    with pytest.raises(ChangelogError):
        CODEC.decode(value)


def test_the_state_of_another_model_is_named() -> None:
    other = Codec(spec_of(4))  # type: ignore[arg-type]
    zero = np.zeros(1, dtype=np.int64)
    record = other.encode(zero, zero, zero, zero, np.zeros((1, 4), dtype=np.float32))[0]
    with pytest.raises(ChangelogError, match=f"another model, layout {other.layout.hex()}") as refused:
        CODEC.decode(record)
    assert refused.value.layout == other.layout


def test_a_model_with_the_same_layout_can_continue_from_the_states() -> None:
    again = counting_spec(hash="f" * 64, name="later", state=list(reversed(SPEC.state)), initial_state=[1.0] * 4)
    assert layout_hash(again) == layout_hash(SPEC)


@pytest.mark.parametrize(
    "state",
    [
        [StateSlice(name, i, (1,)) for i, name in enumerate(("count", "missing", "last", "sum"))],
        [StateSlice(name, i, (1,)) for i, name in enumerate(("missing", "count", "last", "hash"))],
        [StateSlice("count", 0, (2,)), StateSlice("last", 2, (1,)), StateSlice("hash", 3, (1,))],
        [StateSlice("count", 0, (1, 1)), *SPEC.state[1:]],
    ],
)
def test_another_name_place_or_shape_of_a_slice_is_another_layout(state: list[StateSlice]) -> None:
    assert layout_hash(msgspec.structs.replace(SPEC, state=state)) != layout_hash(SPEC)


def test_another_version_is_named() -> None:
    with pytest.raises(ChangelogError, match="version 5, this tidecast reads versions 1 to 4"):
        CODEC.decode(_with_crc(b"\5" + one()[1:-4]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_not_finite_is_neither_written_nor_read(bad: float) -> None:
    with pytest.raises(ChangelogError, match="not finite"):
        one([1.0, bad, 3.0, 4.0])
    body = bytearray(one()[:-4])
    body[-4:] = np.float32(bad).tobytes()
    with pytest.raises(ChangelogError, match="not finite"):
        CODEC.decode(bytes(body) + zlib.crc32(body).to_bytes(4, "little"))


def test_a_state_of_the_wrong_length_under_the_right_layout_is_refused() -> None:
    body = one()[:-8]
    with pytest.raises(ChangelogError, match="must have 4 numbers, got 3"):
        CODEC.decode(body + zlib.crc32(body).to_bytes(4, "little"))


def test_the_header_can_be_read_without_the_model() -> None:
    header = read_header(one(offset=11))
    assert (header.layout, header.offset, header.last_ts, header.steps) == (layout_hash(SPEC), 11, 60_000, 3)
    assert (header.seen_ms, header.state_size) == (61_000, 4)


@settings(deadline=None)
@given(st.lists(floats, min_size=4, max_size=4), int64s)
def test_a_record_taken_apart_and_put_together_again_is_the_same(state: list[float], offset: int) -> None:
    record = one(state, offset=offset)
    assert write_record(read_header(record), state_bytes(record)) == record


def test_a_state_that_was_read_cannot_be_changed_by_mistake() -> None:
    with pytest.raises(ValueError, match="read-only"):
        CODEC.decode(one()).state[0] = 1.0
