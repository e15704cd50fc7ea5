"""The table that is proposed for topics of many shapes: it reads them, and says what a person must still decide."""

from __future__ import annotations

import gzip
import json
import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.input_check.topics import MACHINES, ROWS, SHAPES, STEP, T0, iso, records, rows
from tidecast.service.errors import UsageError
from tidecast.service.input.config import parse_input
from tidecast.service.input_check.proposal import Proposal, good_rows, mapped_by, propose
from tidecast.service.input_check.toml_text import toml_text


def as_saved(proposal: Proposal) -> dict[str, Any]:
    """The table, read back from what a person saves."""
    return tomllib.loads(toml_text(proposal.table, proposal.say))["input"]


@pytest.mark.parametrize("name", SHAPES)
def test_a_topic_of_this_shape_is_read_by_the_table_that_is_proposed(name: str) -> None:
    shape = SHAPES[name]
    proposal = propose(shape.batch)
    assert proposal.complete and proposal.share == 1.0
    table = as_saved(proposal)
    mapped = mapped_by(parse_input(table), shape.batch, None)
    assert not mapped.readings.rejected and not mapped.skipped
    good = good_rows(mapped)
    assert {key.decode() for key in mapped.batch.keys if key is not None} == shape.series
    assert set(mapped.features) == shape.features
    late = [int(mapped.readings.ts[row]) - mapped.batch.timestamps[row] for row in good.tolist()]
    assert min(late) >= -ROWS * STEP and max(late) <= STEP, "the time is that of the reading"
    assert table | shape.table == table, table


def test_a_model_s_features_are_found_however_they_are_written_and_the_others_are_named() -> None:
    batch = records(rows(lambda i, t: {"ts": t, "out": {"Temp-Outside": 20.5, "hum": 40}, "rpm": 3}), MACHINES)
    proposal = propose(batch, ["temp_outside", "hum", "wind"])
    assert as_saved(proposal)["fields"] == {"temp_outside": "out.Temp-Outside", "hum": "out.hum"}
    assert any("wind" in sentence for sentence in proposal.say) and proposal.absent == ["wind"]


def test_parts_of_a_reading_in_several_records_are_joined() -> None:
    def make(i: int, t: int) -> dict[str, Any]:
        return {"device": f"m{i // 2 % 3}", "metric": ("temp", "hum")[i % 2], "value": 20.5,
                "ts": T0 + i // 6 * STEP + i % 2 * 400}  # fmt: skip

    table = as_saved(propose(records(rows(make, 120))))
    assert table["join"] == {"tolerance": "1s", "deadline": "1min"}
    assert parse_input(table).join is not None


def test_parts_that_come_at_no_common_time_are_not_joined() -> None:
    batch = SHAPES["long form, one metric a record"].batch
    assert "join" not in as_saved(propose(batch))


@pytest.mark.parametrize(
    "form, says",
    [("%d/%m/%Y %H:%M:%S", "Is the day first"), ("%Y-%m-%dT%H:%M:%S", "taken as UTC"), ("%Y-%m-%dT%H:%M:%SZ", None)],
)
def test_what_a_time_does_not_say_is_said(form: str, says: str | None) -> None:
    at = T0 - 4 * 86_400_000  # 10 November, which may be 11 October
    batch = records(rows(lambda i, t: {"time": iso(at + i * STEP, form), "temp": 20.5}), MACHINES)
    said = propose(batch).say
    assert any(says in sentence for sentence in said) if says else not said


def test_local_times_are_recognised_by_the_records_own() -> None:
    batch = records(rows(lambda i, t: {"time": iso(t + 3_600_000, "%Y-%m-%d %H:%M:%S"), "temp": 20.5}), MACHINES)
    assert any("+1 h" in sentence for sentence in propose(batch).say)


def test_records_of_our_own_form_need_no_table() -> None:
    assert any("tidecast's own form" in sentence for sentence in propose(SHAPES["our own form"].batch).say)
    assert not any("tidecast's own form" in sentence for sentence in propose(SHAPES["telegraf"].batch).say)


FRAME = b"\0\0\0\0\7"
PROTOBUF = b"\x0a\x02m0\x11\0\0\0\0\0\0\x34\x40\x18\x80\xd0\x95\xff\xbc\x31"  # text, double, varint
UNREADABLE: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "Avro of a registry": (FRAME + b"\x04m0\x80\xa0\xea\x8b", {"format": "avro"}, "schema 7"),
    "Protobuf of a registry": (FRAME + b"\0" + PROTOBUF, {"format": "protobuf"}, "schema 7"),
    "Protobuf": (PROTOBUF, {"format": "protobuf"}, "protoc"),
    "Avro": (b"\x04m\xff\x80\xa0\xea\x8b", {"format": "avro"}, "Avro without a registry"),
    "gzip": (gzip.compress(b"{}"), {}, "gzip"),
    "XML": (b"<reading temp='1'/>", {}, "XML"),
    "Avro files": (b"Obj\x01\x04\x14avro.codec", {}, "one in each record"),
    "prose": (b"it is warm", {}, "no format"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_bytes_that_need_more_than_themselves_are_named_and_what_is_missing_is_said(name: str) -> None:
    value, table, says = UNREADABLE[name]
    proposal = propose(records([value] * 10))
    assert not proposal.complete
    found = as_saved(proposal)
    assert found | table == found
    assert says in " ".join(proposal.say)
    if table:  # what is to be filled in is there, so that the file is one that can be given to --input
        parse_input(found)


def test_a_topic_of_tombstones_is_no_fault() -> None:
    proposal = propose(records([None] * 5, [b"a"] * 5))
    assert not proposal.complete and "without a value" in proposal.say[0]


def test_a_table_that_is_begun_is_completed() -> None:
    begun = parse_input({"key": "{machine}", "time_zone": "Europe/Berlin"})
    batch = records(rows(lambda i, t: {"zeit": iso(t, "%d.%m.%Y %H:%M"), "machine": f"m{i % 3}", "druck": 3.5}))
    table = as_saved(propose(batch, None, begun))
    assert table == {
        "key": "{machine}", "time": "zeit", "time_zone": "Europe/Berlin", "time_format": "%d.%m.%Y %H:%M",
        "fields": {"druck": "druck"},
    }  # fmt: skip


def test_a_preset_that_needs_something_is_completed_too() -> None:
    begun = parse_input({"preset": "debezium", "key": "@key", "time": "measured_at"})
    table = as_saved(propose(SHAPES["debezium"].batch, None, begun))
    assert (table["preset"], table["key"], table["time_unit"]) == ("debezium", "machine", "us")


def test_the_newest_records_of_all_partitions_are_looked_at() -> None:
    old = rows(lambda i, t: {"ts": t, "a": 1.5}, 400)
    batch = records([*rows(lambda i, t: {"ts": t, "b": 2.5}, 400), *old], b"m", partitions=1)
    batch.timestamps[:400] = [T0 + 10_000_000_000 + row for row in range(400)]  # the first partition has the newest
    assert as_saved(propose(batch))["fields"] == {"b": "b"}


names = st.text(min_size=1, max_size=8) | st.sampled_from(
    ["ts", "value", "a.b", "@key", "x y", '"', "id", "{a}", "name"]
)
numbers = st.integers() | st.floats(allow_nan=False) | st.integers(T0, T0 + STEP)
leaves = st.none() | st.booleans() | numbers | st.text(max_size=8) | st.just("2023-11-14T22:13:20Z")
documents = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)


@settings(deadline=None, max_examples=100)
@given(st.lists(documents, min_size=1, max_size=4), st.sampled_from([None, b"k", b"\xff", b'{"a": 1}']))
def test_no_document_breaks_the_proposal_and_its_text_is_the_table(found: list[Any], key: bytes | None) -> None:
    batch = records([json.dumps(each).encode() for each in found], key)
    proposal = propose(batch)
    table = as_saved(proposal)
    assert table == proposal.table
    if proposal.complete:
        mapped = mapped_by(parse_input(table), batch, None)
        assert len(good_rows(mapped)) > 0


@settings(deadline=None)
@given(st.lists(st.binary(max_size=20) | st.none(), min_size=1, max_size=5))
def test_no_bytes_break_the_proposal(values: list[bytes | None]) -> None:
    try:
        as_saved(propose(records(values)))
    except UsageError as error:
        pytest.fail(str(error))


values = st.recursive(
    st.text() | st.integers(-(2**62), 2**62) | st.booleans() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.text(), values | st.dictionaries(st.text(), values | st.dictionaries(st.text(), values))))
def test_any_table_is_read_back_from_its_text(table: dict[str, Any]) -> None:
    found = tomllib.loads(toml_text(table, ["a comment\nof two lines"]))["input"]
    assert found == table
