"""Records that hold the states of several models: each state is continued by its own model, whoever else runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.support.models import counting_spec
from tidecast.service.errors import ChangelogError
from tidecast.service.model.members import in_order, member_of
from tidecast.service.model.spec import ModelSpec, StateSlice
from tidecast.service.state.codec import Codec, Snapshots
from tidecast.service.state.record import AheadClock, read_header, state_bytes, write_record
from tidecast.service.state.waiting import Group, Waiting

int64s = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
CLOCK = AheadClock(before=50_000, late=2, late_ts=60_000, offset=9)
WAITING = Waiting(3, [Group(60_000, {"wind": 2.5})])


def spec_of(nth: int, size: int) -> ModelSpec:
    """Models of the same size have the same layout."""
    state = [StateSlice("all", 0, (size,))]
    initial = [float(100 * nth + i) for i in range(size)]
    return counting_spec(hash=f"{nth:x}" * 64, state_size=size, state=state, initial_state=initial)


SPECS = [spec_of(nth, size) for nth, size in enumerate((3, 5, 3, 1, 5), start=1)]
groups = st.lists(st.sampled_from(range(len(SPECS))), min_size=1, max_size=4, unique=True)


def codec_of(members: list[int], **options: object) -> tuple[Codec, list[ModelSpec]]:
    specs = [SPECS[nth] for nth in members]
    specs = [specs[nth] for nth in in_order(specs)]
    return Codec(*specs, **options), specs  # type: ignore[arg-type]


def drawn(data: st.DataObject, codec: Codec, series: int) -> tuple[list[np.ndarray], np.ndarray]:
    columns = [data.draw(hnp.arrays(np.int64, series, elements=int64s)) for _ in range(4)]
    columns[2] = data.draw(hnp.arrays(np.int64, series, elements=st.integers(0, 2**24)))
    states = data.draw(hnp.arrays(np.float32, (series, codec.state_size), elements=floats))
    if codec.states.steps_at is not None:
        steps = hnp.arrays(np.int64, (series, len(codec.members)), elements=st.integers(0, 2**24))
        states[:, codec.states.steps_at] = data.draw(steps)
    return columns, states


@settings(deadline=None)
@given(st.data(), groups, st.integers(1, 4), st.booleans(), st.booleans())
def test_the_states_of_a_group_come_back_bit_for_bit(
    data: st.DataObject, members: list[int], series: int, ahead: bool, waits: bool
) -> None:
    codec, _ = codec_of(members)
    columns, states = drawn(data, codec, series)
    records = codec.encode(*columns, states, {0: CLOCK} if ahead else {}, {0: WAITING} if waits else {})
    assert {record[0] for record in records[1:]} <= {1 if len(members) == 1 else 4}
    many: Snapshots = codec.decode_many(records)
    assert many.states.tobytes() == states.tobytes() and not many.changed
    for i, record in enumerate(records):
        back = codec.decode(record)
        assert [back.offset, back.last_ts, back.steps, back.seen_ms] == [int(column[i]) for column in columns]
        assert back.state.tobytes() == states[i].tobytes() and not back.changed
        header = read_header(record)
        assert (header.ahead, header.waiting) == (
            CLOCK if ahead and i == 0 else None, WAITING if waits and i == 0 else None
        )  # fmt: skip
        assert write_record(header, state_bytes(record)) == record
    if not ahead and not waits:
        assert {len(record) for record in records} == {codec.record_bytes}


@settings(deadline=None, max_examples=300)
@given(st.data(), groups, groups, st.booleans())
def test_another_group_continues_the_states_of_its_members_and_no_others(
    data: st.DataObject, before: list[int], after: list[int], waits: bool
) -> None:
    older, old_specs = codec_of(before)
    columns, states = drawn(data, older, 1)
    record = older.encode(*columns, states, {}, {0: WAITING} if waits else {})[0]
    maker = old_specs[0].hash[:12] if len(before) == 1 else None
    heir = in_order([SPECS[nth] for nth in after]).index(0)  # the first that was given
    newer, new_specs = codec_of(after, heir=heir, maker=maker)
    own = {spec.hash: states[0, older.states.slices[nth]] for nth, spec in enumerate(old_specs)}
    at = older.states.steps_at
    steps = {spec.hash: int(columns[2][0] if at is None else states[0, at[nth]]) for nth, spec in enumerate(old_specs)}
    gone = [spec for spec in old_specs if spec.hash not in {each.hash for each in new_specs}]
    wanted: dict[str, str | None] = {spec.hash: spec.hash if spec.hash in own else None for spec in new_specs}
    asked = new_specs[heir]
    if wanted[asked.hash] is None:  # a model with the same layout follows one that has gone
        like = [spec.hash for spec in gone if member_of(spec).layout == member_of(asked).layout]
        wanted[asked.hash] = like[0] if like else None
    if not any(wanted.values()):
        with pytest.raises(ChangelogError, match="another model"):
            newer.decode(record)
        return
    back = newer.decode(record)
    assert back.changed == (len(before) > 1 or len(after) > 1) * (
        [s.hash for s in old_specs] != [s.hash for s in new_specs]
    )
    assert (back.offset, back.last_ts, back.seen_ms) == (columns[0][0], columns[1][0], columns[3][0])
    assert (back.waiting is not None) == waits
    for nth, spec in enumerate(new_specs):
        source, part = wanted[spec.hash], back.state[newer.states.slices[nth]]
        assert part.tobytes() == (np.array(spec.initial_state, np.float32) if source is None else own[source]).tobytes()
        counted = back.steps if newer.states.steps_at is None else int(back.state[newer.states.steps_at[nth]])
        assert counted == (0 if source is None else steps[source])
    many = newer.decode_many([record] * 3)
    assert many.states.tobytes() == 3 * back.state.tobytes()
    assert many.steps.tolist() == [back.steps] * 3 and len(many.changed) == 3 * back.changed


def test_of_several_states_that_could_be_continued_it_is_that_of_the_model_that_has_answered() -> None:
    older, specs = codec_of([0, 2])  # of one layout
    assert member_of(specs[0]).layout == member_of(specs[1]).layout
    states = np.arange(older.state_size, dtype=np.float32)[np.newaxis]
    record = older.encode(*[np.zeros(1, dtype=np.int64)] * 4, states)[0]
    for nth, spec in enumerate(specs):
        third = Codec(spec_of(9, 3), last=spec.hash[:12])
        assert third.decode(record).state.tolist() == states[0, older.states.slices[nth]].tolist()


@pytest.mark.parametrize("cut", range(0, 90, 3))
def test_a_record_of_a_group_that_is_cut_or_damaged_anywhere_is_refused(cut: int) -> None:
    codec, _ = codec_of([0, 1])
    record = codec.encode(*[np.zeros(1, dtype=np.int64)] * 4, np.ones((1, codec.state_size), dtype=np.float32))[0]
    with pytest.raises(ChangelogError):
        codec.decode(record[: len(record) - 1 - cut])
    changed = bytearray(record)
    changed[cut] ^= 1
    with pytest.raises(ChangelogError):
        codec.decode(bytes(changed))


@settings(deadline=None)
@given(st.binary(max_size=120))
def test_no_bytes_with_a_right_checksum_break_the_reader(rest: bytes) -> None:
    import zlib

    body = b"\4" + rest
    value = body + zlib.crc32(body).to_bytes(4, "little")
    try:
        header = read_header(value)
    except ChangelogError:
        return
    assert header.members and sum(member.size + 1 for member in header.members) == header.state_size
