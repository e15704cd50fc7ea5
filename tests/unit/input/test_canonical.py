"""The JSON that comes in: what is read as a reading, what is refused and why; keys and headers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidecast.service.input.canonical import MAX_VALUE_BYTES, ReadingDecoder
from tidecast.service.input.rejected import DeadLetterReason, RecordRejected, check_key
from tidecast.service.pipeline.dead_letters import forecast_headers

TS = 1_700_000_000_000
FEATURES = ("value", "wind")


def row(value: bytes, features: tuple[str, ...] = FEATURES) -> tuple[int, list[float]]:
    readings = ReadingDecoder(features).decode([value])
    assert not readings.rejected
    return int(readings.ts[0]), readings.x[0].tolist()


def refusal(value: bytes) -> RecordRejected:
    return ReadingDecoder(FEATURES).decode([value]).rejected[0]


@pytest.mark.parametrize(
    "ts",
    [
        b"1700000000000",
        b"1700000000000.0",
        b"1.7e12",
        b'"1700000000000"',
        b'"2023-11-14T22:13:20Z"',
        b'"2023-11-14T22:13:20"',
        b'"2023-11-15T00:13:20+02:00"',
        b'"2023-11-14 22:13:20.000"',
    ],
)
def test_every_usual_way_to_write_a_time_is_read(ts: bytes) -> None:
    assert row(b'{"ts": %s, "value": 1.5, "wind": 2}' % ts) == (TS, [1.5, 2.0])


@pytest.mark.parametrize("wind", [b"", b', "wind": null', b', "wind": NaN', b', "wind": 3, "wind": null'])
def test_an_absent_null_or_nan_feature_is_a_missing_value(wind: bytes) -> None:
    ts, (value, missing) = row(b'{"value": 1, "ts": 1700000000000%s}' % wind)
    assert (ts, value) == (TS, 1.0)
    assert math.isnan(missing)


def test_unknown_fields_of_any_kind_are_ignored() -> None:
    extra = b'"unit": {"a": [1, {}]}, "note": "x", "big": 1%s' % (b"0" * 50)
    assert row(b'{"ts": 1700000000000, "value": 1, "wind": -2.5e1, %s}' % extra) == (TS, [1.0, -25.0])


def test_of_a_field_that_comes_twice_the_last_counts() -> None:
    assert row(b'{"ts": "x", "ts": 1700000000000, "value": 1, "wind": 1, "value": "a", "value": 2}') == (TS, [2.0, 1.0])


@pytest.mark.parametrize(
    "name", ["", "Température °C", 'in "quotes"', "back\\slash", "line\nbreak", "f1", "None", "a b", "ts "]
)
def test_a_feature_may_have_any_name(name: str) -> None:
    value = json.dumps({"ts": TS, name: 4, "f0": 5}).encode()
    assert row(value, (name, "f0")) == (TS, [4.0, 5.0])


READING = b'{"ts": 1700000000000, "value": 1'
REFUSED: list[tuple[bytes, str, str]] = [
    (b"", "not_json", "not JSON"),
    (b"20.1, 3", "not_json", "not JSON"),
    (b'{"ts": 1700000000000', "not_json", "not JSON"),
    (READING + b"} trailing", "not_json", "not JSON"),
    (b"\xef\xbb\xbf" + READING + b"}", "not_json", "not JSON"),
    ((READING + b"}").decode().encode("utf-16"), "not_json", "not JSON"),
    (b'{"ts": 1700000000000, "value": "\xff"}', "not_json", "not JSON"),
    (b'{"x": ' * 100_000, "not_json", "nested too deeply"),
    (b"[" * 100_000 + b"]" * 100_000, "not_json", "nested too deeply"),
    (READING + b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not_json", "nested too deeply"),
    (b"[1, 2]", "wrong_type", "not a JSON object"),
    (b"null", "wrong_type", "not a JSON object"),
    (b'"text"', "wrong_type", "not a JSON object"),
    (b'{"ts": 1700000000000, "value": "20.1"}', "wrong_type", "'value' must be a number or null, got '20.1'"),
    (b'{"ts": 1700000000000, "value": true}', "wrong_type", "got True"),
    (b'{"ts": 1700000000000, "wind": [1]}', "wrong_type", "'wind'"),
    (b'{"ts": 1700000000000, "wind": {}}', "wrong_type", "'wind'"),
    (b'{"ts": true, "value": 1}', "wrong_type", '"ts" must be'),
    (b'{"ts": [], "value": 1}', "wrong_type", '"ts" must be'),
    (b'{"ts": 1700000000000.5, "value": 1}', "wrong_type", '"ts" must be'),
    (b'{"ts": "yesterday", "value": 1}', "wrong_type", "yesterday"),
    (b'{"ts": "", "value": 1}', "wrong_type", '"ts" must be'),
    (b'{"ts": "\\ud800", "value": 1}', "wrong_type", '"ts" must be'),
    (b'{"value": 1}', "missing_time", 'no "ts"'),
    (b"{}", "missing_time", 'no "ts"'),
    (b'{"ts": null, "value": 1}', "missing_time", 'no "ts"'),
    (b'{"ts": NaN, "value": 1}', "missing_time", 'no "ts"'),
    (b'{"ts": 1700000000000000, "value": 1}', "time_out_of_range", "1900..2200"),
    (b'{"ts": -1700000000000000, "value": 1}', "time_out_of_range", "1900..2200"),
    (b'{"ts": 1%s, "value": 1}' % (b"0" * 5000), "time_out_of_range", "1900..2200"),
    (b'{"ts": 1700000000, "value": 1}', "time_out_of_range", "seconds since 1970"),
    (b'{"ts": 1700000000.0, "value": 1}', "time_out_of_range", "seconds since 1970"),
    (b'{"ts": "1700000000", "value": 1}', "time_out_of_range", "seconds since 1970"),
    (b'{"ts": 1e999, "value": 1}', "time_out_of_range", "1900..2200"),
    (b'{"ts": Infinity, "value": 1}', "time_out_of_range", "1900..2200"),
    (b'{"ts": "1800-01-01", "value": 1}', "time_out_of_range", "1900..2200"),
    (b'{"ts": "0001-01-01T00:00:00+14:00", "value": 1}', "time_out_of_range", "1900..2200"),
    (b'{"ts": "%s", "value": 1}' % (b"9" * 5000), "time_out_of_range", "1900..2200"),
    (READING + b"e999}", "value_out_of_range", "'value' is inf"),
    (READING + b"0" * 5000 + b"}", "value_out_of_range", "'value' is inf"),
    (READING + b', "wind": -Infinity}', "value_out_of_range", "'wind' is -inf"),
    (READING + b', "wind": 3.5e38}', "value_out_of_range", "'wind' is 3.5e+38"),
    (READING + b', "x": NaN, "wind": 3.5e38}', "value_out_of_range", "'wind' is 3.5e+38"),
    (b"\x00\x00\x00\x00\x07" + READING + b"}", "schema_registry_framing", "schema 7"),
    (b"\x00\x00\x00\x00", "not_json", "not JSON"),
    (READING + b" " * MAX_VALUE_BYTES + b"}", "too_large", "more than 1 MiB"),
]


@pytest.mark.parametrize(
    ("value", "reason", "says"), REFUSED, ids=[f"{r}-{v[:25]!r}-{i}" for i, (v, r, _) in enumerate(REFUSED)]
)
def test_a_value_that_is_no_reading_is_refused_for_the_right_reason(value: bytes, reason: str, says: str) -> None:
    refused = refusal(value)
    assert refused.reason == reason
    assert says in refused.message
    assert len(refused.message) < 300


def test_one_bad_value_leaves_the_others_of_its_batch_alone() -> None:
    good = b'{"ts": 1700000000000, "value": 1, "wind": 2}'
    readings = ReadingDecoder(FEATURES).decode([good, b"?", None, good, b'{"ts": 1700000000000, "value": 1e39}'])
    assert sorted(readings.rejected) == [1, 4]
    assert readings.x[[0, 3]].tolist() == [[1.0, 2.0]] * 2
    assert readings.ts.tolist() == [TS, 0, 0, TS, TS]


def test_an_empty_batch_has_columns_all_the_same() -> None:
    readings = ReadingDecoder(FEATURES).decode([])
    assert readings.x.shape == (0, 2)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40) | st.none(), max_size=5))
def test_no_bytes_raise(values: list[bytes | None]) -> None:
    readings = ReadingDecoder(FEATURES).decode(values)
    assert len(readings.ts) == len(readings.x) == len(values)


READINGS = [
    b'{"ts": 1700000000000, "value": 1.5, "wind": 2}',
    b'{"ts": 1700000060000, "value": null}',
    b'{"ts": "2023-11-14T22:13:20Z", "value": 3, "wind": NaN}',
    b'{"ts": 0}',
]
PIECES = [b"{", b"}", b"[", b"]", b",", b"},{", b"\n", b" ", b"null", b'"', b'"ts": 1', b'"ts": 1700000000000']
hostile = st.one_of(
    st.none(),
    st.sampled_from(READINGS),
    st.lists(st.sampled_from(READINGS + PIECES), max_size=4).map(b"".join),
    st.sampled_from([value for value, _, _ in REFUSED if len(value) < 1000]),
    st.just(b" " * (MAX_VALUE_BYTES + 1)),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(hostile, max_size=12))
def test_no_value_changes_how_its_neighbours_are_read(values: list[bytes | None]) -> None:
    decoder = ReadingDecoder(FEATURES)
    together = decoder.decode(values)
    alone = [decoder.decode([value]) for value in values]
    assert together.ts.tolist() == [int(reading.ts[0]) for reading in alone]
    np.testing.assert_array_equal(together.x, np.array([reading.x[0] for reading in alone]).reshape(-1, 2))
    assert together.tombstones == [record for record, value in enumerate(values) if value is None]
    found = {record: (refused.reason, refused.message) for record, refused in together.rejected.items()}
    assert found == {
        record: (reading.rejected[0].reason, reading.rejected[0].message)
        for record, reading in enumerate(alone)
        if reading.rejected
    }


texts = st.text(alphabet='aé"\\0125-:TZ \n', max_size=10)
json_values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), texts, st.lists(st.floats(), max_size=2), st.just({"a": [{}]})
)


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(["ts", "value", "wind", "x"]), json_values | st.integers(0, 2 * TS)),
    st.sampled_from([None, "é"]),
)
def test_the_fast_and_the_lenient_reader_agree_on_any_object(found: dict[str, object], extra: str | None) -> None:
    value = json.dumps(found | ({"note": extra} if extra else {}), ensure_ascii=False).encode()
    fast = ReadingDecoder(FEATURES).decode([value])
    lenient = ReadingDecoder((*FEATURES, 'never "there"')).decode([value])  # such a name takes the slow way always
    assert fast.ts.tolist() == lenient.ts.tolist()
    np.testing.assert_array_equal(fast.x, lenient.x[:, :2])
    assert [r.reason for r in fast.rejected.values()] == [r.reason for r in lenient.rejected.values()]


@pytest.mark.parametrize("key", [b"a", "Zürich".encode(), b" ", b"k" * 1024])
def test_usual_keys_are_names_of_series(key: bytes) -> None:
    check_key(key)


@pytest.mark.parametrize(
    ("key", "reason"),
    [(None, "missing_key"), (b"", "bad_key"), (b"k" * 1025, "bad_key"), (b"\xff\xfe", "bad_key")],
)
def test_a_key_that_names_no_series_is_refused(key: bytes | None, reason: str) -> None:
    with pytest.raises(RecordRejected) as caught:
        check_key(key)
    assert caught.value.reason == reason


def test_the_set_of_reasons_is_closed() -> None:
    assert set(DeadLetterReason) == {
        *("not_json", "bad_format", "unknown_schema", "wrong_type", "missing_key", "bad_key", "other_partition"),
        *("missing_time", "time_out_of_range"),
        *(
            "value_out_of_range",
            "no_features",
            "schema_registry_framing",
            "too_large",
            "late",
            "duplicate",
            "non_finite_state",
        ),
    }


def test_only_the_trace_of_a_reading_is_passed_to_its_forecast() -> None:
    theirs = [("a", b"1"), ("traceparent", b"00-x")], (), [("a", b"1")]
    assert [list(headers) for headers in forecast_headers(theirs)] == [[("traceparent", b"00-x")], [], []]
    assert forecast_headers([(), ()]) == [(), ()]


@pytest.mark.parametrize(
    "value",
    [
        b'{"ts": 1700000000000, "Temp": 20.5, "hum": 3}',
        b'{"ts": 1700000000000, "Temp": NaN, "hum": 3}',
    ],
)
def test_a_reading_of_renamed_fields_is_rejected_and_the_message_names_both_kinds(value):
    found = ReadingDecoder(["temp", "wind"]).decode([b'{"ts": 1700000000000, "wind": 1}', value])
    assert list(found.rejected) == [1]
    assert found.rejected[1].reason == "no_features"
    said = found.rejected[1].message
    assert "none of the model's features (temp, wind), only: " in said and "hum" in said and "ts" in said


@pytest.mark.parametrize("value", [b'{"ts": 1700000000000, "temp": null}', b'{"ts": 1700000000000, "temp": NaN}'])
def test_a_reading_whose_only_values_are_missing_is_a_reading(value):
    found = ReadingDecoder(["temp", "wind"]).decode([value])
    assert not found.rejected and np.isnan(found.x).all()
