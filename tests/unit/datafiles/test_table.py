import gzip
import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidecast.service.datafiles.cells import numbers, times_ms
from tidecast.service.datafiles.table import Columns, Table, file_sha256, header, read_chunks, read_table
from tidecast.service.errors import DataError
from tidecast.service.timestamps import format_time, parse_time

HOUR = 3_600_000
T0 = parse_time("2013-01-01T06:00:00Z")
COLUMNS = Columns(time="t", features=("a", "b"), series="key")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def same(left: Table, right: Table) -> None:
    np.testing.assert_array_equal(left.ts, right.ts)
    assert left.series == right.series
    assert left.features == right.features
    np.testing.assert_array_equal(left.x, right.x)


def test_a_csv_gives_its_readings_in_file_order_with_the_asked_columns_only(tmp_path: Path) -> None:
    path = write(
        tmp_path / "f.csv",
        "key,note,b,t,a\nx,hello,2,2013-01-01T06:00:00Z,1.5\ny,,4,2013-01-01T06:00:00Z,-3e2\nx,,6,2013-01-01T07:00:00Z,5\n",
    )
    table = read_table(path, COLUMNS)
    assert table.ts.tolist() == [T0, T0, T0 + HOUR]
    assert table.series == ["x", "y", "x"]
    assert table.x.tolist() == [[1.5, 2], [-300, 4], [5, 6]]
    assert table.features == ("a", "b")
    assert table.ts.dtype == np.int64 and table.x.dtype == np.float64


@pytest.mark.parametrize("text", ["", "NA", "na", "NaN", "N/A", "n/a", "null", "NULL", "None", " NA ", "nan"])
def test_every_way_to_write_a_missing_value_is_missing(text: str) -> None:
    values = numbers(["1", text, "3"], "a", str)
    assert values[[0, 2]].tolist() == [1, 3]
    assert math.isnan(values[1])


@pytest.mark.parametrize("text", ["inf", "-Infinity", "1e999", "12,5", "abc", "-", "1.2.3", "0x10"])
def test_a_cell_that_is_not_a_finite_number_is_refused_with_file_line_and_column(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "f.csv", f't,a\n2013-01-01,1\n\n2013-01-02,"{text}"\n')
    with pytest.raises(DataError) as error:
        read_table(path, Columns("t", ("a",)))
    assert f"{path}, line 4, column 'a'" in str(error.value)
    assert error.value.got == text


def test_a_line_number_counts_the_lines_inside_quoted_cells(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", 't,note,a\n2013-01-01,"two\nlines",1\n2013-01-02,,oops\n')
    with pytest.raises(DataError, match="line 4, column 'a'"):
        read_table(path, Columns("t", ("a",)))


def test_a_missing_column_is_refused_with_a_list_of_the_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "t,a\n2013-01-01,1\n")
    with pytest.raises(DataError, match=r"no column 'b'.*'t', 'a'"):
        read_table(path, Columns("t", ("a", "b")))


def test_a_column_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "t,a,a\n2013-01-01,1,2\n")
    with pytest.raises(DataError, match="2 columns called 'a'"):
        read_table(path, Columns("t", ("a",)))


def test_a_file_without_a_key_column_is_one_series_called_by_the_name(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "t,a\n2013-01-01,1\n2013-01-02,2\n")
    assert read_table(path, Columns("t", ("a",), name="taxi")).series == ["taxi", "taxi"]


def test_with_each_column_a_row_becomes_one_univariate_reading_for_each_column(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "t,a,b\n2013-01-01,1,\n2013-01-02,3,4\n")
    table = read_table(path, Columns("t", ("a", "b"), each_column=True))
    assert table.series == ["a", "b", "a", "b"]
    assert table.features == ("value",)
    assert table.x.shape == (4, 1)
    np.testing.assert_array_equal(table.x[:, 0], [1, np.nan, 3, 4])
    assert np.diff(table.ts).tolist() == [0, 24 * HOUR, 0]


@pytest.mark.parametrize(
    "texts",
    [
        ["2013-01-01", "2013-01-02"],
        ["2013-01-01 06:00", "2013-12-31T23:59"],
        ["2013-01-01 06:00:00", "1969-12-31T23:59:59"],
        ["2013-01-01T06:00:00Z", "2013-01-01 07:00:00Z"],
        ["2013-01-01T06:00:00.250", "2013-01-01T07:00:00.999"],
        ["2013-01-01T06:00:00.250Z", "2013-01-01T07:00:00.999Z"],
        ["2013-01-01T06:00:00+02:00", "2013-01-01T07:00:00-05:30"],
        ["2013-01-01T06:00+02:00", "2013-01-01T07:00-05:30"],
        ["2013-01-01", "2013-01-02T03:04:05Z", "1700000000000"],
        ["1700000000000", "1700000003600"],
    ],
)
def test_times_mean_the_same_read_one_by_one_or_all_at_once(texts: list[str]) -> None:
    assert times_ms(texts, "t", str).tolist() == [parse_time(text) for text in texts]


@given(st.lists(st.integers(-2_208_988_800_000, 7_258_118_400_000).map(lambda s: s // 1000 * 1000), min_size=1))
def test_any_time_that_we_write_is_read_back(moments: list[int]) -> None:
    assert times_ms([format_time(ms) for ms in moments], "t", str).tolist() == moments


@pytest.mark.parametrize("text", ["", "yesterday", "2013", "2013-13-01", "12.5", "1850-01-01", "99999999999999999"])
def test_a_cell_that_is_not_a_time_is_refused_with_file_line_and_column(text: str) -> None:
    with pytest.raises(DataError, match="row 1, column 't'") as error:
        times_ms(["2013-01-01", text], "t", lambda i: f"row {i}")
    assert error.value.got == text


def test_a_row_with_a_cell_too_few_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "t,a,b\n2013-01-01,1,2\n2013-01-02,1\n")
    with pytest.raises(DataError, match="line 3: the header has 3 columns, this row 2"):
        read_table(path, Columns("t", ("a",)))


def test_a_reading_without_its_key_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "key,t,a,b\nx,2013-01-01,1,2\n,2013-01-02,1,2\n")
    with pytest.raises(DataError, match="line 3, column 'key'"):
        read_table(path, COLUMNS)


@pytest.mark.parametrize(("text", "says"), [("", "is empty"), ("t,a\n", "no rows"), ("t,a\n\n\n", "no rows")])
def test_a_file_without_rows_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_table(write(tmp_path / "f.csv", text), Columns("t", ("a",)))


def test_a_file_that_is_not_text_is_refused_with_a_plain_error(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_bytes(b"t,a\n2013-01-01,\xff\xfe\n")
    (tmp_path / "g.csv.gz").write_bytes(b"not gzip")
    (tmp_path / "h.csv.gz").write_bytes(gzip.compress(b"t,a\n2013-01-01,1\n" * 100)[:-20])
    for name, says in [("f.csv", "not UTF-8"), ("g.csv.gz", "gzip"), ("h.csv.gz", "gzip"), ("no.csv", "cannot read")]:
        with pytest.raises(DataError, match=says):
            read_table(tmp_path / name, Columns("t", ("a",)))


def test_a_spreadsheets_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_bytes(b"\xef\xbb\xbft,a\r\n2013-01-01,1\r\n")
    assert read_table(tmp_path / "f.csv", Columns("t", ("a",))).x.tolist() == [[1.0]]


def test_a_gzipped_csv_reads_as_the_plain_one(tmp_path: Path) -> None:
    text = "key,t,a,b\n" + "".join(f"k{i % 3},{format_time(T0 + i * HOUR)},{i},NA\n" for i in range(50))
    plain = write(tmp_path / "f.csv", text)
    (tmp_path / "f.csv.gz").write_bytes(gzip.compress(text.encode()))
    same(read_table(plain, COLUMNS), read_table(tmp_path / "f.csv.gz", COLUMNS))
    assert header(tmp_path / "f.csv.gz") == ["key", "t", "a", "b"]


def test_reading_by_chunks_gives_the_same_readings(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "t,a,b\n" + "".join(f"{format_time(T0 + i)},{i},\n" for i in range(25)))
    columns = Columns("t", ("a", "b"), each_column=True)
    chunks = list(read_chunks(path, columns, rows=10))
    assert [len(chunk) for chunk in chunks] == [20, 20, 10]
    whole = read_table(path, columns)
    np.testing.assert_array_equal(np.concatenate([chunk.x for chunk in chunks]), whole.x)


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_a_parquet_file_reads_as_the_csv_of_the_same_rows(tmp_path: Path, unit: str) -> None:
    polars = pytest.importorskip("polars", reason="polars comes with the extra train")
    path = write(
        tmp_path / "f.csv",
        "key,t,a,b\nx,2013-01-01T06:00:00Z,1.5,2\ny,2013-01-01T06:00:00.250Z,,4\nx,2013-01-01T07:00:00Z,NaN,6\n",
    )
    frame = polars.read_csv(path, try_parse_dates=True)
    for column in (
        polars.col("t").cast(polars.Datetime(unit, "UTC")),
        polars.col("t").cast(polars.Datetime("ms")).cast(polars.Int64),
        polars.col("t").dt.convert_time_zone("Asia/Tokyo"),
    ):
        frame.with_columns(column).write_parquet(tmp_path / "f.parquet")
        same(read_table(tmp_path / "f.parquet", COLUMNS), read_table(path, COLUMNS))
    assert header(tmp_path / "f.parquet") == ["key", "t", "a", "b"]


def test_a_broken_parquet_file_is_refused_with_a_plain_error(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars", reason="polars comes with the extra train")
    (tmp_path / "f.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="not a Parquet file"):
        read_table(tmp_path / "f.parquet", COLUMNS)
    polars.DataFrame({"t": [0.5], "a": [1.0]}).write_parquet(tmp_path / "g.parquet")
    polars.DataFrame({"t": [1_700_000_000_000], "a": [float("inf")]}).write_parquet(tmp_path / "h.parquet")
    with pytest.raises(DataError, match="row 1, column 't'"):
        read_table(tmp_path / "g.parquet", Columns("t", ("a",)))
    with pytest.raises(DataError, match="row 1, column 'a'"):
        read_table(tmp_path / "h.parquet", Columns("t", ("a",)))


def test_the_hash_is_of_the_files_bytes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert file_sha256(tmp_path / "f") == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(DataError):
        file_sha256(tmp_path / "none")


def test_the_shipped_weather_sample_is_complete() -> None:
    path = Path(__file__).parents[3] / "training" / "samples" / "weather.csv.gz"
    table = read_table(path, Columns("time_hour", ("temp", "pressure"), series="origin"))
    assert len(table) == 26_115
    assert sorted(set(table.series)) == ["EWR", "JFK", "LGA"]
    assert np.isnan(table.x).sum(axis=0).tolist() == [1, 2_729]


SECONDS = [1_700_000_000 + 3600 * i for i in range(5)]


@pytest.mark.parametrize(
    ("factor", "unit", "do"),
    [(1, "seconds", "Multiply them by 1,000"), (10**6, "microseconds", "Divide them by 1,000"),
     (10**9, "nanoseconds", "Divide them by 1,000,000")],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_epoch_of_another_unit_is_refused_with_what_to_do_not_read_as_1970(
    tmp_path: Path, factor: int, unit: str, do: str, suffix: str
) -> None:
    path = tmp_path / f"f{suffix}"
    times = [second * factor for second in SECONDS]
    if suffix == ".csv":
        write(path, "t,a\n" + "".join(f"{t},1\n" for t in times))
    else:
        polars = pytest.importorskip("polars", reason="polars comes with the extra train")
        polars.DataFrame({"t": times, "a": [1.0] * len(times)}).write_parquet(path)
    with pytest.raises(DataError, match=f"column 't': times in {unit} since 1970") as error:
        read_table(path, Columns("t", ("a",)))
    assert do in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_epoch_milliseconds_held_as_floats_are_read_and_such_seconds_are_refused(tmp_path: Path, suffix: str) -> None:
    polars = pytest.importorskip("polars", reason="polars comes with the extra train")
    path = tmp_path / f"f{suffix}"
    for factor in (1000.0, 1.0):
        frame = polars.DataFrame({"t": [second * factor + (0.5 if factor == 1 else 0) for second in SECONDS]})
        frame = frame.with_columns(a=1.0)
        frame.write_csv(path, float_scientific=False) if suffix == ".csv" else frame.write_parquet(path)
        if factor == 1:
            with pytest.raises(DataError, match="times in seconds since 1970"):
                read_table(path, Columns("t", ("a",)))
        else:
            assert read_table(path, Columns("t", ("a",))).ts.tolist() == [second * 1000 for second in SECONDS]


def test_times_that_are_meant_to_be_in_january_1970_are_read(tmp_path: Path) -> None:
    # Counted from 0 in ms, a later part of a file looks like seconds; ISO 8601 says what it means.
    path = write(tmp_path / "f.csv", "t,a\n" + "".join(f"{i * 10 * HOUR},1\n" for i in range(1, 101)))
    assert sum(len(chunk) for chunk in read_chunks(path, Columns("t", ("a",)), rows=40)) == 100
    path = write(tmp_path / "g.csv", "t,a\n1970-01-01T00:00:00Z,1\n1970-01-20T00:00:00Z,1\n")
    assert read_table(path, Columns("t", ("a",))).ts.tolist() == [0, 19 * 24 * HOUR]
    polars = pytest.importorskip("polars", reason="polars comes with the extra train")
    polars.read_csv(path, try_parse_dates=True).write_parquet(tmp_path / "g.parquet")
    same(read_table(tmp_path / "g.parquet", Columns("t", ("a",))), read_table(path, Columns("t", ("a",))))
