"""Whatever comes in: each record is accounted for once, in order, however a batch is cut, as a plain reader does."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidecast.service.broker.port import Batch
from tidecast.service.errors import UsageError
from tidecast.service.input.config import parse_input, preset_names
from tidecast.service.input.mapping import InputMapper, MappedBatch
from tidecast.service.input.rejected import DeadLetterReason

NOW = 1_700_000_000_000
FEATURES = ("temp", "hum")
NEEDS: dict[str, dict[str, Any]] = {
    "debezium": {"key": "host | @key"},
    "homeassistant": {"fields": {"temp": "temp", "hum": "state"}},
}
TABLES: list[dict[str, Any]] = [
    {},
    {"key": "host", "time": "ts | time | @record", "fields": "fields"},
    {"key": "{@key}/{tags.host | host}", "time": "ts", "fields": {"temp": "fields.temp", "hum": "values[0] | hum"}},
    {"explode": "metrics", "key": "/host | @key", "time": "ts | /ts", "name": "name", "value": "value"},
    {"explode": ["values | @item", "metrics"], "key": "@key.id | @key", "time": "../ts | @record", "time_unit": "s"},
    {"explode": ["/", "@item"], "key": "../@name", "fields": {"temp": "@item", "hum": "@name"}, "time": "@record"},
    {"explode": "metrics", "name": "@name", "value": "@item", "fields": {"temp": {"path": "temp", "scale": 1e30}}},
    {"root": "fields | @item", "skip_if": {"/name": ["temp", 1, "absent"]}, "key_regex": "([a-z])(.)?", "time": "/ts"},
    {"only_if": {"host": "a", "@key": "a"}, "tombstones": "ignore", "texts": {"on": 1}, "decimal": ","},
    {"format": "csv", "columns": ["ts", "temp", "hum"], "time_zone": "Europe/Berlin"},
    {"time_format": "%Y-%m-%d %H:%M", "time": "@header:ts | ts"},
    *({"preset": name, **NEEDS.get(name, {})} for name in preset_names()),
]

numbers = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.just(10**400), st.integers(NOW, NOW + 10)
)
seconds = st.sampled_from([NOW, NOW // 1000, NOW // 1000 + 1, 5, -5, 631_151_999, 4_102_444_801])
texts = st.one_of(
    st.text(max_size=5),
    st.sampled_from(
        ["a", "on", "1.5", "1_0", "nan", "2023-11-14T22:13:20Z", "20231114", "0001-01-01", "{", '{"ts": 1}']
    ),
    st.sampled_from(["1700000000000", "1700000000", "9" * 5000, "é", "\ud800", "2023-11-14 22:13"]),
)
names = st.sampled_from(
    ["ts", "time", "temp", "hum", "host", "tags", "fields", "values", "metrics", "name", "value", "state", "payload",
     "op", "after", "data", "Messages", "Payload", "resourceMetrics", "entity_id", "timestamp", "\ud800"]
)  # fmt: skip
anything = st.recursive(
    st.none() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=6),
    max_leaves=12,
)
likely = st.fixed_dictionaries(
    {},
    optional={
        "ts": st.integers(NOW, NOW + 3) | texts | st.integers(NOW // 1000, NOW // 1000 + 3),
        "host": st.sampled_from(["a", "b", 7, "", None]),
        "temp": numbers | texts,
        "hum": st.floats(-5, 5) | st.none(),
        "fields": st.dictionaries(st.sampled_from(["temp", "hum", "other"]), numbers | texts, max_size=3),
        "metrics": st.lists(
            st.fixed_dictionaries(
                {"name": st.sampled_from(["temp", "hum", "x", 1, None]), "value": numbers | texts},
                optional={"ts": st.integers(NOW, NOW + 1)},
            ),
            max_size=5,
        ),
    },
)
values = st.one_of(
    st.none(),
    st.binary(max_size=30),
    (likely | anything).map(lambda found: json.dumps(found).encode()),
    st.lists(likely, min_size=2, max_size=3).map(lambda found: "\n".join(map(json.dumps, found)).encode()),
    st.sampled_from([b"m,host=a temp=1.5,hum=2i 1700000000000000000\nm x=1", b"1700000000000,1,2\n,,", b"[" * 5000]),
)
keys = st.one_of(
    st.none(), st.sampled_from([b"a", b"b", b'{"id": 7}', b"\xff", b"", b"k" * 2000]), st.binary(max_size=4)
)
headers = st.sampled_from([(), (("ts", b"2023-11-14 22:13"),), (("ts", b"\xff"),), (("ce_time", b"2023-11-14"),)])
records = st.lists(st.tuples(keys, values, st.sampled_from([-1, 0, NOW]), headers), max_size=6)


def batch_of(found: list[tuple[Any, ...]]) -> Batch:
    key, value, stamp, header = ([row[column] for row in found] for column in range(4))
    return Batch("t", [0] * len(found), list(range(len(found))), stamp, key, value, header)


def rows_of(mapped: MappedBatch) -> list[tuple[Any, ...]]:
    """What each row says, apart from its place; features that it has not are left out."""
    found = []
    for row in range(len(mapped.batch)):
        x = dict(zip(mapped.features, mapped.readings.x[row].tolist(), strict=True))
        present = {name: value for name, value in x.items() if value == value}
        refused = mapped.readings.rejected.get(row)
        said = None if refused is None else (refused.reason, refused.message)
        tombstone = row in mapped.readings.tombstones
        reading = None if said or tombstone else (int(mapped.readings.ts[row]), present)
        found.append((mapped.batch.keys[row], mapped.batch.values[row], reading, said, tombstone))
    return found


@settings(deadline=None, max_examples=400)
@given(records, st.sampled_from(TABLES), st.booleans(), st.data())
def test_each_record_is_accounted_for_once_in_order_however_the_batch_is_cut(found, table, routed, data):
    mapper = InputMapper(parse_input(table), None if routed else FEATURES)
    mapped = mapper.map(batch_of(found))
    rows = list(range(len(mapped.batch))) if mapped.records is None else mapped.records
    assert rows == sorted(rows)
    assert len(rows) == len(mapped.readings.ts) == len(mapped.readings.x) == len(mapped.batch.keys)
    assert mapped.skipped == len(found) - len(set(rows))
    assert not set(mapped.readings.rejected) & set(mapped.readings.tombstones)
    assert [mapped.batch.values[row] for row in range(len(rows))] == [found[record][1] for record in rows]
    assert np.isfinite(mapped.readings.x[~np.isnan(mapped.readings.x)]).all() or mapped.readings.rejected
    for row, (_, _, reading, said, tombstone) in enumerate(rows_of(mapped)):
        if reading is not None:
            assert mapped.readings.ts[row] != 0 or table.get("time_unit")
            assert np.isfinite(list(reading[1].values())).all()
        if tombstone:
            assert found[rows[row]][1] is None
        if said:
            assert 10 < len(said[1]) < 450
            said[1].encode("utf-8", "backslashreplace")
    cut = data.draw(st.integers(0, len(found)))
    first, second = mapper.map(batch_of(found[:cut])), mapper.map(batch_of(found[cut:]))
    assert rows_of(first) + rows_of(second) == rows_of(mapped)
    assert first.skipped + second.skipped == mapped.skipped
    assert first.unused + second.unused == mapped.unused
    assert len(mapped.unused_records) == mapped.unused.total()


# A plain reader, one record after the other, as the page docs/input.md says it.


def plain_number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, str):
        if value.strip().lower() in ("", "nan", "null", "none", "unavailable", "unknown"):
            return None
        if "_" in value:
            raise ValueError
        value = float(value)
    elif not isinstance(value, bool | int | float):
        raise ValueError
    if value != value:
        return None
    with np.errstate(over="ignore"):
        narrow = float(np.float32(float(value)))
    if np.isinf(narrow):
        raise ValueError
    return narrow


def plain_time(value: Any) -> int:
    if isinstance(value, str):
        if not (value.isdecimal() and len(value) >= 9):
            moment = datetime.fromisoformat(value.strip())
            since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
            value = (since.days * 86_400 + since.seconds) * 1_000 + since.microseconds // 1_000
        else:
            value = int(value)
            if 631_152_000 <= value <= 4_102_444_800:
                raise ValueError
    elif isinstance(value, bool) or not isinstance(value, int) or 631_152_000 <= value <= 4_102_444_800:
        raise ValueError
    if not -2_208_988_800_000 <= value <= 7_258_118_400_000:
        raise ValueError
    return value


def plain_rows(documents: list[Any], long: bool) -> list[tuple[int, str, int, dict[str, float]]]:
    """(record, series, ts, values) of each reading."""
    found = []
    for record, document in enumerate(documents):
        if not isinstance(document, dict):
            continue
        host = document.get("host")
        series = str(host) if isinstance(host, str | int) and not isinstance(host, bool) and host != "" else None
        if not long:
            fields = document.get("fields")
            if series is None or not isinstance(fields, dict) or not {"temp", "hum"} & fields.keys():
                continue
            try:
                x = {name: plain_number(fields.get(name)) for name in FEATURES}
                found.append((record, series, plain_time(document.get("ts")), x))
            except (ValueError, TypeError, OverflowError):
                continue
            continue
        metrics = document.get("metrics")
        rows: list[tuple[int, dict[str, float | None]]] = []
        for metric in metrics if isinstance(metrics, list) else []:
            name, ts = metric["name"], metric.get("ts", document.get("ts"))
            if name not in FEATURES or series is None:
                continue
            try:
                at, value = plain_time(ts), plain_number(metric["value"])
            except (ValueError, TypeError, OverflowError):
                continue
            same = [x for when, x in rows if when == at]
            if not same or name in same[0]:
                rows.append((at, {name: value}))
            else:
                same[0][name] = value
        found += [(record, series, at, x) for at, x in rows]
    return [(*row[:3], {name: v for name, v in row[3].items() if v is not None}) for row in found]


@settings(deadline=None, max_examples=400)
@given(st.lists(likely, max_size=8), st.booleans())
def test_a_plain_reader_reads_the_same(documents, long):
    documents = json.loads(json.dumps(documents))
    wide = {"key": "host", "fields": "fields"}
    table = (
        {"explode": "metrics", "key": "/host", "time": "ts | /ts", "name": "name", "value": "value"} if long else wide
    )
    mapped = InputMapper(parse_input(table), FEATURES).map(
        batch_of([(None, json.dumps(each).encode(), NOW, ()) for each in documents])
    )
    found = []
    for row, (key, _, reading, _, _) in enumerate(rows_of(mapped)):
        if reading is not None:
            record = row if mapped.records is None else mapped.records[row]
            found.append((record, key.decode(), reading[0], reading[1]))
    assert found == plain_rows(documents, long)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(numbers | texts | seconds | seconds.map(float) | seconds.map(str), min_size=1, max_size=5),
    st.sampled_from([None, "s", "ms", "us", "ns"]),
)
def test_a_time_is_read_the_same_alone_and_among_others_of_its_kind(times, unit):
    mapper = InputMapper(parse_input({"time": "t"} | ({"time_unit": unit} if unit else {})), ["v"])

    def read(found):
        values = [json.dumps({"t": each, "v": 1}).encode() for each in found]
        return rows_of(mapper.map(batch_of([(b"k", value, NOW, ()) for value in values])))

    assert read(times) == [row for each in times for row in read([each])]
    for kind in (int, float, str):
        same = [each for each in times if type(each) is kind]
        assert read(same) == [row for each in same for row in read([each])]


def test_a_table_that_names_only_some_of_the_features_is_refused_before_readings_are_silently_missing():
    with pytest.raises(UsageError, match=r'where a feature of the model is, got \'hum\'. Add for example: hum = "path'):
        InputMapper(parse_input({"fields": {"temp": "t"}}), FEATURES)


def test_of_a_feature_that_comes_twice_in_a_record_the_first_counts_and_keeps_the_others_with_it():
    table = {"explode": "m", "time": "/t", "name": "n", "value": "v"}
    metrics = [("temp", 1), ("temp", 2), ("hum", 3), ("temp", 4)]
    value = json.dumps({"t": NOW, "m": [{"n": n, "v": v} for n, v in metrics]}).encode()
    rows = rows_of(InputMapper(parse_input(table), FEATURES).map(batch_of([(b"k", value, NOW, ())])))
    assert [row[2][1] for row in rows] == [{"temp": 1.0, "hum": 3.0}, {"temp": 2.0}, {"temp": 4.0}]


def test_a_line_that_is_refused_does_not_hide_behind_a_good_one_of_its_record():
    value = b'{"m": [{"ts": 1700000000000, "temp": 1}]}\n{"x": 1}'
    mapped = InputMapper(parse_input({"explode": "m"}), FEATURES).map(batch_of([(b"k", value, NOW, ())]))
    assert [row[2] is not None for row in rows_of(mapped)] == [True, False]
    assert mapped.readings.rejected[1].reason == DeadLetterReason.WRONG_TYPE


def test_a_route_without_a_model_passes_on_every_number_that_a_record_has_and_nothing_else():
    value = b'{"ts": 1700000000000, "a": 1, "b": "2.5", "c": "text", "d": null, "e": true, "f": {"g": 1}, "h": 1e39}'
    mapped = InputMapper(parse_input({}), None).map(batch_of([(b"k", value, NOW, ())]))
    assert rows_of(mapped)[0][2] == (NOW, {"a": 1.0, "b": 2.5, "e": 1.0})


def test_what_a_route_passes_on_of_a_record_does_not_hang_on_the_other_records_of_its_batch():
    values = [b'{"ts": 1700000000000, "a": %s, "b": 2}' % a for a in (b"1", b'"text"', b"null", b'"nan"', b"1e39")]
    mapped = InputMapper(parse_input({}), None).map(batch_of([(b"k", value, NOW, ()) for value in values]))
    assert [row[2][1] for row in rows_of(mapped)] == [{"a": 1.0, "b": 2.0}, *[{"b": 2.0}] * 4]


def test_a_list_in_a_list_that_is_something_else_is_refused_and_one_that_is_not_there_is_counted():
    value = b'{"o": [{"i": 5}, {"x": 1}, {"i": null}, {"i": [{"ts": 1700000000000, "temp": 1}]}]}'
    mapped = InputMapper(parse_input({"explode": ["o", "i"]}), FEATURES).map(batch_of([(b"k", value, NOW, ())]))
    assert [row[2] for row in rows_of(mapped)] == [(NOW, {"temp": 1.0}), None]
    assert mapped.readings.rejected[1].message == "there must be a list or map of readings at 'i', got 5"
    assert mapped.unused == {"(nothing at i)": 2}


def test_a_tombstone_names_its_series_by_every_part_of_the_record_but_the_value():
    for table, series in (({}, b"k"), ({"key": "@topic/".rstrip("/")}, b"t"), ({"key": "{@topic}:{@key}"}, b"t:k")):
        mapped = InputMapper(parse_input(table), FEATURES).map(batch_of([(b"k", None, NOW, ())]))
        assert (mapped.batch.keys, mapped.readings.tombstones, mapped.skipped) == ([series], [0], 0)
    for table in ({"key": "host"}, {"tombstones": "ignore"}):
        mapped = InputMapper(parse_input(table), FEATURES).map(batch_of([(b"k", None, NOW, ())]))
        assert (len(mapped.batch), mapped.skipped) == (0, 1)


@pytest.mark.parametrize("condition", ["@name", "@item.kind"])
def test_items_are_left_out_by_their_own_name_and_fields(condition):
    table = {"explode": "m", "time": "/t", "skip_if": {condition: "x"}, "key": "@name", "fields": {"temp": "v"}}
    value = json.dumps({"t": NOW, "m": {"x": {"v": 1, "kind": "x"}, "y": {"v": 2, "kind": "y"}}}).encode()
    mapped = InputMapper(parse_input(table), ["temp"]).map(batch_of([(None, value, NOW, ())]))
    assert mapped.batch.keys == [b"y"]
