"""Data files by an `[input]` table: what a topic's records would give, and each fault with its line and column."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidecast.service.broker.port import Batch
from tidecast.service.datafiles.readings import ModelDataConfig
from tidecast.service.datafiles.table import Columns, Table
from tidecast.service.errors import DataError, UsageError
from tidecast.service.input.config import parse_input
from tidecast.service.input.files import DataFile, table_of
from tidecast.service.input.mapping import InputMapper
from tidecast.service.timestamps import format_time

T0, HOUR = 1_704_067_200_000, 3_600_000
LONG = {"time": "time", "key": "key", "name": "metric", "value": "value"}
EACH_EXAMPLE = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def write(path: Path, head: list[str], rows: list[list[Any]]) -> Path:
    if path.suffix == ".parquet":
        columns = {name: [row[n] for row in rows] for n, name in enumerate(head)}
        polars.DataFrame(columns, strict=False).write_parquet(path)
        return path
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def opened(path: Path, table: dict[str, Any], *features: str) -> DataFile:
    return DataFile(path, Columns("", features, name="lone"), parse_input(table))


def lines(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def by_place(table: Table) -> dict[tuple[str, int], dict[str, float]]:
    """(series, time) -> feature -> value, without those that are missing."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for series, ts, row in zip(table.series, table.ts.tolist(), table.x.tolist(), strict=True):
        values = {name: x for name, x in zip(table.features, row, strict=True) if x == x}
        assert (series, ts) not in found
        found[series, ts] = values
    return found


# ------------------------------------------------------------------ the long form

FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=64)
WIDE = st.dictionaries(
    st.tuples(st.sampled_from(["a", "b/c", "ä"]), st.integers(0, 40)),
    st.dictionaries(st.sampled_from(["temp", "load", "p q"]), FLOATS, min_size=1),
    min_size=1,
    max_size=30,
)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@given(wide=WIDE, seed=st.randoms(use_true_random=False))
@EACH_EXAMPLE
def test_the_shuffled_long_form_of_a_table_gives_the_table_back(tmp_path, suffix, wide, seed):
    rows = [
        [format_time(T0 + hour * HOUR), site, name, repr(value) if suffix == ".csv" else value]
        for (site, hour), values in wide.items()
        for name, value in values.items()
    ]
    seed.shuffle(rows)
    file = opened(write(tmp_path / f"long{suffix}", ["time", "key", "metric", "value"], rows), LONG)
    table = file.table()
    assert by_place(table) == {(site, T0 + hour * HOUR): values for (site, hour), values in wide.items()}
    assert (np.diff(table.ts) >= 0).all()
    assert file.counts.sentences() == [] and file.counts.rows == len(rows)


HEAD = ["at", "site", "machine", "name", "v", "state"]
ROWS = st.lists(
    st.fixed_dictionaries({
        "at": st.integers(1_600_000_000, 1_600_000_050),
        "site": st.sampled_from(["north", "süd"]),
        "machine": st.integers(1, 3),
        "name": st.sampled_from(["T1", "P1", "spare", "rpm"]),
        "v": st.one_of(st.none(), st.integers(-99, 99), st.floats(-1e6, 1e6)),
        "state": st.sampled_from(["ok", "bad", None]),
    }),
    min_size=1, max_size=30,
    unique_by=lambda row: (row["at"], row["site"], row["machine"], row["name"]),
)  # fmt: skip
TABLES = [
    {"name": "name", "value": "v",
     "fields": {"temp": {"path": "T1", "scale": 0.1, "offset": -5.0}, "pressure": "P1", "rpm": "rpm"}},
    {"name": "name", "value": "v", "key_regex": "^(.)", "skip_if": {"state": "bad"}},
    {"fields": {"x": {"path": "v", "scale": 2.0}, "n": "machine"},
     "only_if": {"state": ["ok", "absent"], "machine": [1, 2]}},
]  # fmt: skip


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("table", TABLES, ids=["long", "long, by a part of the key", "wide"])
@given(rows=ROWS)
@EACH_EXAMPLE
def test_the_rows_of_a_file_and_the_same_rows_as_records_of_a_topic_give_the_same_readings(
    tmp_path, table, suffix, rows
):
    table = {"time": "at", "time_unit": "s", "key": "{site}:{machine}", **table}
    features = ("temp", "pressure", "rpm") if "T1" in str(table) else ("T1", "P1") if "name" in table else ("x", "n")
    batch = Batch("t", *([0] * len(rows), list(range(len(rows))), [0] * len(rows), [None] * len(rows)),
                  [json.dumps(row).encode() for row in rows], [()] * len(rows))  # fmt: skip
    mapped = InputMapper(parse_input(table), features).map(batch)
    assert not mapped.readings.rejected
    wanted: dict[tuple[str, int], dict[str, float]] = {}
    twice = False
    for key, ts, values in zip(mapped.batch.keys, mapped.readings.ts.tolist(), mapped.readings.x.tolist(), strict=True):
        place = wanted.setdefault((key.decode(), ts), {})
        for name, x in zip(features, values, strict=True):
            if x == x:
                twice |= name in place
                place.setdefault(name, x)

    path = write(tmp_path / f"rows{suffix}", HEAD, [[row[name] for name in HEAD] for row in rows])
    file = opened(path, table if "name" in table else {**table, "join": {}}, *features)
    if not wanted:
        with pytest.raises(DataError, match="leaves no reading"):
            file.table()
        return
    read = file.table()
    narrow = Table(read.ts, read.series, read.x.astype(np.float32).astype(np.float64), read.features)
    assert by_place(narrow) == wanted
    assert file.counts.unused == mapped.unused
    assert bool(file.counts.doubled) is twice
    if "name" not in table:  # each row is a reading, in the order of the file
        file = opened(path, table, *features)
        each = file.table()
        np.testing.assert_array_equal(each.x.astype(np.float32), mapped.readings.x)
        assert (
            each.series == [key.decode() for key in mapped.batch.keys]
            and each.ts.tolist() == mapped.readings.ts.tolist()
        )
        assert file.counts.skipped == mapped.skipped


def test_what_is_not_used_is_counted_and_said(tmp_path):
    text = (
        "time,key,metric,value\n2024-01-01,a,temp,1\n2024-01-01,a,temp,2\n2024-01-01,a,temp,1\n"
        "2024-01-01,a,fan,on\n2024-01-02,a,temp,\n2024-01-03,b,temp,5\n"
    )
    file = opened(lines(tmp_path / "f.csv", text), LONG | {"skip_if": {"key": "b"}}, "temp", "load")
    table = file.table()
    np.testing.assert_array_equal(table.x, [[1, np.nan], [np.nan, np.nan]])
    assert file.counts.sentences() == [
        "1 row left out by skip_if and only_if",
        "1 row with names that are no features: 'fan' (1)",
        "no row has load: missing in every reading",
        "1 row without a value",
        "2 rows for a series, time and feature that had a value before (1 with another value): "
        "the first in the file was kept",
    ]


def test_times_within_the_tolerance_are_one_reading_at_the_earliest_of_them(tmp_path):
    rows = [["00:00:02", "a", "load", 2], ["00:00:00", "a", "temp", 1], ["00:01:00", "a", "temp", 3]]
    path = write(
        tmp_path / "f.csv", ["time", "key", "metric", "value"], [[f"2024-01-01T{time}Z", *rest] for time, *rest in rows]
    )
    table = opened(path, LONG | {"join": {"tolerance": "5s"}}).table()
    assert table.ts.tolist() == [T0, T0 + 60_000] and table.features == ("load", "temp")
    np.testing.assert_array_equal(table.x, [[2, 1], [np.nan, 3]])


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_readings_of_one_time_and_features_are_in_the_order_in_which_the_file_has_them(tmp_path, suffix):
    names = list("qwertyuiopasdfghjkl")
    rows = [["2024-01-01", key, name, 1.0] for key, name in zip(names, names[::-1], strict=True)]
    rows.append(["2024-01-01", "q", None, 7.0])
    file = opened(write(tmp_path / f"f{suffix}", ["time", "key", "metric", "value"], rows), LONG)
    table = file.table()
    assert (table.series, table.features) == (names, tuple(names[::-1]))
    assert file.counts.unused == {"": 1}


def test_sparse_rows_of_one_time_become_one_reading_with_join(tmp_path):
    path = lines(tmp_path / "f.csv", "t,a,b\n2024-01-01,1,\n2024-01-01,,2\n2024-01-02,3,4\n")
    file = opened(path, {"time": "t", "join": {}}, "a", "b")
    table = file.table()
    assert (table.x.tolist(), table.series, file.counts.doubled) == ([[1, 2], [3, 4]], ["lone", "lone"], 0)
    assert len(opened(path, {"time": "t"}, "a", "b").table()) == 3


# ------------------------------------------------------------------ what a path and a cell mean


@pytest.mark.parametrize(
    ("cell", "table", "ts"),
    [
        ("1704067200", {"time_unit": "s"}, T0),
        ("1704067200.25", {"time_unit": "s"}, T0 + 250),
        ("1704067200000000000", {"time_unit": "ns"}, T0),
        ("01.02.2024 12:00", {"time_format": "%d.%m.%Y %H:%M"}, T0 + 31 * 24 * HOUR + 12 * HOUR),
        ("20240101", {"time_format": "%Y%m%d"}, T0),
        ("2024-01-01T00:00:00", {"time_zone": "Europe/Berlin"}, T0 - HOUR),
        ("2024-07-01T00:00:00", {"time_zone": "Europe/Berlin"}, T0 + 182 * 24 * HOUR - 2 * HOUR),
        ("2024-01-01T02:00:00+02:00", {"time_zone": "Europe/Berlin"}, T0),
        ("2024-01-01T00:00:00Z", {}, T0),
    ],
)
def test_times_are_read_as_the_table_says(tmp_path, cell, table, ts):
    path = lines(tmp_path / "f.csv", f"t,a\n{cell},1\n")
    assert opened(path, {"time": "t", **table}, "a").table().ts.tolist() == [ts]


@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Tokyo"])
def test_a_parquet_time_without_a_zone_is_in_the_tables_zone(tmp_path, zone):
    moments = polars.Series([datetime(2024, 1, 1), datetime(2024, 7, 1)])
    frame = polars.DataFrame({"t": moments.dt.replace_time_zone(zone) if zone else moments, "a": [1, None]})
    frame.write_parquet(tmp_path / "f.parquet")
    found = opened(tmp_path / "f.parquet", {"time": "t", "time_zone": "Europe/Berlin"}, "a").table().ts.tolist()
    ahead = {None: (1, 2), "UTC": (0, 0), "Asia/Tokyo": (9, 9)}[zone]
    stamps = [int(datetime(2024, month, 1, tzinfo=UTC).timestamp()) * 1000 for month in (1, 7)]
    assert found == [ts - hours * HOUR for ts, hours in zip(stamps, ahead, strict=True)]


def test_a_nested_path_is_a_column_with_dots_and_the_first_alternative_with_a_cell_counts(tmp_path):
    path = lines(
        tmp_path / "f.csv", "when,tags.host,fields.temp,host,fields.load\n2024-01-01,,1,b,2\n2024-01-02,a,3,b,4\n"
    )
    table = {"time": "/when", "key": "tags.host | host", "fields": "fields", "explode": "readings"}
    found = opened(path, table, "load", "temp").table()
    assert (found.series, found.x.tolist()) == (["b", "a"], [[2, 1], [4, 3]])


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ({"skip_if": {"q": 192}}, ["b", "c", "d"]),
        ({"only_if": {"q": 192}}, ["a"]),
        ({"skip_if": {"on": True}}, ["b", "c"]),
        ({"only_if": {"q": "absent"}}, ["c"]),
        ({"only_if": {"q": ["", "bad"]}}, ["c", "d"]),
        ({"skip_if": {"q": ["absent", 0.5]}}, ["a", "d"]),
        ({"only_if": {"word": "x"}, "skip_if": {"nowhere": "absent"}}, []),
    ],
)
def test_conditions_compare_numbers_and_switches_with_the_texts_of_a_csv(tmp_path, condition, kept):
    rows = "2024-01-01,a,192,true,z\n2024-01-01,b,0.50,false,y\n2024-01-01,c,,False,z\n2024-01-01,d,bad,TRUE,y\n"
    path = lines(tmp_path / "f.csv", f"t,a,q,on,word\n{rows}")
    file = opened(path, {"time": "t", "key": "a", **condition})
    if not kept:
        with pytest.raises(DataError, match="leaves no reading of 4 rows"):
            file.table()
        return
    assert file.table().series == kept


@pytest.mark.parametrize(
    ("text", "table", "message"),
    [
        ("t,a\n2024-01-01,1\n", {"time": "time"}, "no column for time = 'time' of [input]. Its columns are 't', 'a'"),
        ("t,a\n2024-01-01,1\n", {"time": "t", "key": "site"}, "no column for key = 'site'"),
        ("t,a\n2024-01-01,1\n", {"time": "t", "fields": {"b": "a"}}, "fields of [input] has no feature 'a'"),
        ("t,b\n2024-01-01,1\n", {"time": "t"}, "has no column 'a' for a feature"),
        ("t,a\n2024-01-01,1\n", {"time": "t", "skip_if": {"q": 1}}, "no column for skip_if = 'q'"),
        ("t,a\n2024-01-01,1\nx,2\n", {"time": "t"}, "line 3: the time at 't' is 'x', not ISO 8601"),
        ("t,a\n2024-01-01,1\n,2\n", {"time": "t"}, "line 3: the record has no time at 't'"),
        ("t,a\n1704067200,1\n", {"time": "t"}, "line 2: the time at 't' is 1704067200, which seems to count seconds"),
        ("t,a\n2024-01-01,-\n2024-01-02,on\n", {"time": "t", "skip_if": {"a": "-"}},
         "line 3, column 'a': not a finite number, got 'on'"),
        ("t,a,k\n2024-01-01,1,\n", {"time": "t", "key": "k"}, "line 2, column 'k': a reading without its series'"),
        ("t,a,k\n2024-01-01,1,z\n", {"time": "t", "key": "k", "key_regex": "x(.)"},
         "line 2: key_regex 'x(.)' matches nothing in the key, got 'z'"),
        ("t,a\n", {"time": "t"}, "has no rows below its header"),
        ("t,n,v\n2024-01-01,b,1\n", {"time": "t", "name": "n", "value": "v"},
         "[input] leaves no reading of 1 row, got \"1 row with names that are no features: 'b' (1)\""),
    ],
)  # fmt: skip
def test_a_file_that_the_table_does_not_fit_is_refused_with_its_place(tmp_path, text, table, message):
    with pytest.raises(DataError) as error:
        opened(lines(tmp_path / "f.csv", text), table, "a").table()
    assert message in str(error.value)
    assert str(tmp_path / "f.csv") in str(error.value) or "fields of" in message


def test_lists_and_records_in_a_parquet_file_are_refused_by_name(tmp_path):
    polars.DataFrame({"t": ["2024-01-01"], "a": [[1.0]]}).write_parquet(tmp_path / "f.parquet")
    with pytest.raises(DataError, match="column 'a' holds lists or records"):
        opened(tmp_path / "f.parquet", {"time": "t"}, "a").table()


NAN = np.nan


@pytest.mark.parametrize(
    ("cells", "table", "values"),
    [
        (["unavailable", "NA", "1", "Bad"], {"missing": ["BAD", "unavailable"]}, [NAN, NAN, 1, NAN]),
        (["-200", "7", "-200.0"], {"missing": ["-200"]}, [NAN, 7, -200]),
        (["on", "OFF", "0.5"], {"texts": {"On": 1, "off": 0}}, [1, 0, 0.5]),
        (["1,5", "-2", ""], {"decimal": ","}, [1.5, -2, NAN]),
    ],
)
def test_texts_mean_what_the_table_says_and_what_every_file_calls_missing_is_missing(tmp_path, cells, table, values):
    path = write(tmp_path / "f.csv", ["t", "a"], [["2024-01-01", cell] for cell in cells])
    np.testing.assert_array_equal(opened(path, {"time": "t", **table}, "a").table().x[:, 0], values)
    rows = [json.dumps({"t": "2024-01-01", "a": cell}).encode() for cell in cells if cell != "NA"]
    batch = Batch(
        "t", [0] * len(rows), list(range(len(rows))), [0] * len(rows), [b"k"] * len(rows), rows, [()] * len(rows)
    )
    mapped = InputMapper(parse_input({"time": "t", **table}), ["a"]).map(batch)
    wanted = [value for cell, value in zip(cells, values, strict=True) if cell != "NA"]
    np.testing.assert_array_equal(mapped.readings.x[:, 0], wanted)


def test_with_a_decimal_comma_a_point_is_refused(tmp_path):
    path = write(tmp_path / "f.csv", ["t", "a"], [["2024-01-01", "1.234"]])
    with pytest.raises(DataError, match=r"line 2, column 'a': not a finite number, got '1\.234'"):
        opened(path, {"time": "t", "decimal": ","}, "a").table()


def test_the_groups_of_key_regex_are_joined(tmp_path):
    path = lines(tmp_path / "f.csv", "t,a,k\n2024-01-01,1,plant/north/m7/temp\n")
    table = {"time": "t", "key": "k", "key_regex": "plant/([^/]+)/([^/]+)/"}
    assert opened(path, table, "a").table().series == ["north/m7"]


def test_a_table_that_is_given_wins_over_the_models_own(tmp_path):
    model = ModelDataConfig(name="m", data={"targets": ["a"]}, input={"time": "its"})  # type: ignore[arg-type]
    lines(tmp_path / "t.toml", '[input]\ntime = "mine"\n')
    assert table_of(str(tmp_path / "t.toml"), model).time == "mine"  # type: ignore[union-attr]
    assert table_of(None, model).time == "its"  # type: ignore[union-attr]
    assert table_of(None, None) is None
    with pytest.raises(UsageError, match="the model's"):
        table_of(None, ModelDataConfig(name="m", data={"targets": ["a"]}, input={"tme": "x"}))  # type: ignore[arg-type]
