"""Readings from a file: CSV (plain or .gz) or Parquet, into columns.

The trainer, `replay` and `produce` all read files with it, so that a file means the same to each.
Missing values become NaN; other cells that are not finite numbers are refused with line and column.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import itertools
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from tidecast.service.datafiles.cells import Where, key_texts, numbers, refuse_seconds, times_ms
from tidecast.service.errors import DataError
from tidecast.service.timestamps import MAX_TS_MS, MIN_TS_MS

if TYPE_CHECKING:
    import polars as pl

CHUNK_ROWS = 20_000
UNIVARIATE = "value"  # the one feature of a series that is a column of its own


@dataclass(frozen=True, slots=True)
class Columns:
    """The role of each column of a file.

    `series` is the key column; without it every reading belongs to the series called `name`. With `each_column`
    each feature column is a series of its own, named by the column, with the one feature "value".
    """

    time: str
    features: tuple[str, ...]
    series: str | None = None
    each_column: bool = False
    name: str = "series"


@dataclass(frozen=True, slots=True)
class Table:
    """Readings in file order, as parallel columns. With `each_column` a row gives one for each feature column."""

    ts: NDArray[np.int64]  # [readings], ms UTC
    series: list[str]  # [readings]
    x: NDArray[np.float64]  # [readings, features], NaN = missing
    features: tuple[str, ...]

    def __len__(self) -> int:
        """Readings, which with `each_column` are more than rows."""
        return len(self.series)

    def select(self, rows: NDArray[np.int64]) -> Table:
        """The readings at these row numbers, in this order."""
        return Table(self.ts[rows], [self.series[row] for row in rows.tolist()], self.x[rows], self.features)


def read_table(path: Path | str, columns: Columns) -> Table:
    """The whole file at once.

    Raises:
        DataError: no such file, not CSV or Parquet, a column is missing, a cell is not a time or a finite number,
            times are seconds since 1970, or there are no rows. The text names file, line and column.
    """
    chunks = list(read_chunks(path, columns))
    if not chunks:
        raise DataError(f"{path} has no rows below its header")
    return concatenate(chunks)


def concatenate(tables: list[Table]) -> Table:
    """One table of all rows, in order. `tables` must not be empty and must share their features."""
    return Table(
        ts=np.concatenate([table.ts for table in tables]),
        series=list(itertools.chain.from_iterable(table.series for table in tables)),
        x=np.concatenate([table.x for table in tables]),
        features=tables[0].features,
    )


def read_chunks(path: Path | str, columns: Columns, rows: int = CHUNK_ROWS) -> Iterator[Table]:
    """The file in order, `rows` of its rows at a time; a CSV file of any size takes bounded memory.

    Raises:
        DataError: as `read_table`, once the row with the fault is reached.
    """
    path = Path(path)
    return _parquet_chunks(path, columns, rows) if _is_parquet(path) else _csv_chunks(path, columns, rows)


def header(path: Path | str) -> list[str]:
    """The names of the file's columns.

    Raises:
        DataError: the file cannot be read or has no header.
    """
    path = Path(path)
    if _is_parquet(path):
        return _read_parquet(path).columns
    with _open_csv(path) as file:
        return _csv_header(csv.reader(file), path)


def file_sha256(path: Path | str) -> str:
    """Hex sha256 of the file's bytes.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(Path(path), error) from None


def csv_cells(path: Path, rows: int) -> Iterator[tuple[list[list[str]], list[int]]]:
    """The rows below the header as texts, at most `rows` at a time, each with the line on which it ends.

    Raises:
        DataError: the file cannot be read, or a row has more or fewer cells than the header.
    """
    with _open_csv(path) as file:
        reader = csv.reader(file)
        width = len(_csv_header(reader, path))
        cells: list[list[str]] = []
        lines: list[int] = []
        for row in reader:
            if not row:
                continue  # a blank line, often the last
            if len(row) != width:
                raise DataError(
                    f"{path}, line {reader.line_num}: the header has {width} columns, this row {len(row)}",
                    do="Quote cells that hold commas, and check that the last line is whole.",
                )
            cells.append(row)
            lines.append(reader.line_num)
            if len(cells) == rows:
                yield cells, lines
                cells, lines = [], []
        if cells:
            yield cells, lines


def column_chunks(
    path: Path | str, names: Sequence[str], rows: int = CHUNK_ROWS
) -> Iterator[tuple[dict[str, list[Any]], Where]]:
    """The cells of these columns, `rows` rows at a time, and the place of each row for messages.

    Cells of a CSV file are texts. Those of a Parquet file have their own types, None where one is null, a time where
    one is a date.

    Raises:
        DataError: the file cannot be read, or has no such column.
    """
    path = Path(path)
    if not _is_parquet(path):
        yield from _csv_columns(path, names, rows)
        return
    frame, polars = _read_parquet(path), _polars()
    for name in names:
        _place(frame.columns, name, path)
        if frame[name].dtype.is_nested():
            raise DataError(f"{path}: column {name!r} holds lists or records", do="Write each field as a column.")
    frame = frame.select(list(dict.fromkeys(names))).cast({polars.Date: polars.Datetime("ms")})
    for start in range(0, frame.height, rows):

        def where(i: int, start: int = start) -> str:
            return f"{path}, row {start + i + 1}"

        yield frame.slice(start, rows).to_dict(as_series=False), where


def _csv_columns(path: Path, names: Sequence[str], rows: int) -> Iterator[tuple[dict[str, list[str]], Where]]:
    present = header(path)
    places = {name: _place(present, name, path) for name in names}
    for cells, lines in csv_cells(path, rows):

        def where(i: int, lines: list[int] = lines) -> str:
            return f"{path}, line {lines[i]}"

        yield {name: [row[place] for row in cells] for name, place in places.items()}, where


def _csv_chunks(path: Path, columns: Columns, rows: int) -> Iterator[Table]:
    for n, (texts, where) in enumerate(_csv_columns(path, _wanted(columns), rows)):
        if n == 0:
            refuse_seconds(texts[columns.time], columns.time, where)
        yield _table(
            columns,
            times_ms(texts[columns.time], columns.time, where),
            None if columns.series is None else key_texts(texts[columns.series], columns.series, where),
            [numbers(texts[feature], feature, where) for feature in columns.features],
        )


def _parquet_chunks(path: Path, columns: Columns, rows: int) -> Iterator[Table]:
    frame = _read_parquet(path)
    for name in _wanted(columns):
        _place(frame.columns, name, path)
    for start in range(0, frame.height, rows):
        part = frame.slice(start, rows)

        def where(i: int, start: int = start) -> str:
            return f"{path}, row {start + i + 1}"

        keys = None if columns.series is None else part[columns.series].cast(_polars().String).fill_null("").to_list()
        yield _table(
            columns,
            _parquet_times(part[columns.time], where, first=start == 0),
            None if columns.series is None or keys is None else key_texts(keys, columns.series, where),
            [_parquet_numbers(part[feature], where) for feature in columns.features],
        )


def _parquet_times(column: pl.Series, where: Where, *, first: bool) -> NDArray[np.int64]:
    polars = _polars()
    typed = column.dtype == polars.Date or isinstance(column.dtype, polars.Datetime)
    if typed:
        # Polars keeps zoned times as UTC inside; a time without a zone is UTC, as everywhere here.
        column = column.cast(polars.Datetime("ms")).cast(polars.Int64)
        ts = np.array(column.fill_null(MIN_TS_MS - 1).to_numpy(), dtype=np.int64)
        if len(ts) and ts.min() >= MIN_TS_MS and ts.max() <= MAX_TS_MS:
            return ts
    texts = ["" if cell is None else str(cell) for cell in column.to_list()]
    if first and not typed:
        refuse_seconds(texts, column.name, where)
    return times_ms(texts, column.name, where)


def _parquet_numbers(column: pl.Series, where: Where) -> NDArray[np.float64]:
    if column.dtype.is_numeric() or column.dtype == _polars().Boolean:
        values = column.cast(_polars().Float64).fill_null(float("nan")).to_numpy()
        if not np.isinf(values).any():
            return np.array(values, dtype=np.float64)
    return numbers(["" if cell is None else str(cell) for cell in column.to_list()], column.name, where)


def _table(
    columns: Columns, ts: NDArray[np.int64], keys: list[str] | None, features: list[NDArray[np.float64]]
) -> Table:
    x = np.stack(features, axis=1) if features else np.empty((len(ts), 0))  # [rows, feature columns]
    if columns.each_column:
        return Table(
            ts=np.repeat(ts, len(columns.features)),
            series=list(columns.features) * len(ts),
            x=x.reshape(-1, 1),
            features=(UNIVARIATE,),
        )
    return Table(ts=ts, series=[columns.name] * len(ts) if keys is None else keys, x=x, features=columns.features)


def _wanted(columns: Columns) -> list[str]:
    return [columns.time, *([] if columns.series is None else [columns.series]), *columns.features]


def _place(names: list[str], name: str, path: Path) -> int:
    count = names.count(name)
    if count == 1:
        return names.index(name)
    present = ", ".join(repr(each) for each in names)
    if count:
        raise DataError(f"{path} has {count} columns called {name!r}: {present}", do="Rename all but one.")
    raise DataError(f"{path} has no column {name!r}", do=f"Its columns are {present}.")


def _csv_header(reader: Iterator[list[str]], path: Path) -> list[str]:
    names = [name.strip() for name in next(reader, [])]
    if not names:
        raise DataError(f"{path} is empty", do="Its first line must name the columns.")
    return names


@contextmanager
def _open_csv(path: Path) -> Iterator[IO[str]]:
    """The file as text; errors in reading it are raised as DataError."""
    try:
        # utf-8-sig: spreadsheets put a byte order mark before the first column's name.
        opened = (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="")
        with cast(IO[str], opened) as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is not a whole gzip file", got=str(error)) from None
    except OSError as error:
        raise _unreadable(path, error) from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text",
            got=error.object[error.start : error.start + 8],
            do="Save it as CSV in UTF-8 (or as .csv.gz or .parquet, by these names).",
        ) from None
    except csv.Error as error:
        raise DataError(f"{path} is not CSV", got=str(error)) from None


def _is_parquet(path: Path) -> bool:
    return path.suffix in (".parquet", ".pq")


def _polars() -> ModuleType:
    try:
        import polars
    except ImportError:
        raise DataError("reading Parquet needs polars", do="pip install 'tidecast[train]', or use CSV.") from None
    return polars


def _read_parquet(path: Path) -> pl.DataFrame:
    polars = _polars()
    try:
        return cast("pl.DataFrame", polars.read_parquet(path, glob=False))
    except OSError as error:
        raise _unreadable(path, error) from None
    except polars.exceptions.PolarsError as error:
        raise DataError(f"{path} is not a Parquet file", got=str(error).splitlines()[0]) from None


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot read {path}: {error.strerror or error}", do="Check the path and its permissions.")
