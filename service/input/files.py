"""Data files: by the columns that a model's config names, or by an `[input]` table.

By a table, a row is what a record of a topic is: the names of the columns are the paths. In the long form, or with
`[input.join]`, rows of one series and time become one reading.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tidecast.service.datafiles.cells import Where
from tidecast.service.datafiles.readings import ModelDataConfig
from tidecast.service.datafiles.table import (
    CHUNK_ROWS,
    UNIVARIATE,
    Columns,
    Table,
    column_chunks,
    concatenate,
    header,
    read_chunks,
)
from tidecast.service.errors import DataError
from tidecast.service.input.config import FieldConfig, InputConfig, JoinConfig, parse_input, read_input
from tidecast.service.input.file_rows import (
    Conditions,
    NumberReader,
    Rows,
    SeriesReader,
    TimesReader,
    columns_of,
    first_there,
)
from tidecast.service.input.pivot import Cells, pivot

Floats = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(slots=True)
class FileCounts:
    """What became of the rows that an `[input]` table was used on."""

    rows: int = 0
    skipped: int = 0  # rows that skip_if and only_if leave out
    unused: Counter[str] = field(default_factory=Counter)  # long form: names that are no feature -> rows
    absent: list[str] = field(default_factory=list)  # long form: features that no row has
    empty: int = 0  # long form: rows of features without a value
    doubled: int = 0  # values of a series, time and feature that has one already
    contradictions: int = 0  # of those, other values

    def sentences(self) -> list[str]:
        """What a person should know, without full stops; nothing where every row was used."""
        out = []
        if self.skipped:
            out.append(f"{_rows(self.skipped)} left out by skip_if and only_if")
        if self.unused:
            names = ", ".join(f"{name!r} ({n:,})" for name, n in self.unused.most_common(8))
            more = f" and {len(self.unused) - 8:,} other names" if len(self.unused) > 8 else ""
            out.append(f"{_rows(self.unused.total())} with names that are no features: {names}{more}")
        if self.absent:
            out.append(f"no row has {', '.join(self.absent)}: missing in every reading")
        if self.empty:
            out.append(f"{_rows(self.empty)} without a value")
        if self.doubled:
            out.append(
                f"{_rows(self.doubled)} for a series, time and feature that had a value before "
                f"({self.contradictions:,} with another value): the first in the file was kept"
            )
        return out


def _rows(n: int) -> str:
    return f"{n:,} row{'' if n == 1 else 's'}"


class DataFile:
    """A CSV or Parquet file of readings.

    Args:
        path: the file.
        columns: the features, and the name of a series without a key; without a table also where time and series are.
            Without features, a table of the long form takes all names that the file has.
        config: the `[input]` table; None = the columns say enough.

    Attributes:
        columns: how it is read: with a table, all features are features, and none is a series of its own.
        counts: of the rows that were read so far; nothing is counted without a table.
    """

    def __init__(self, path: Path | str, columns: Columns, config: InputConfig | None = None) -> None:
        self.path, self.counts = Path(path), FileCounts()
        if config is not None and columns.each_column:
            columns = replace(columns, features=(UNIVARIATE,), each_column=False)
        self.columns, self._config = columns, config

    def used(self) -> list[str]:
        """The columns of the file that the table names.

        Raises:
            DataError: the file cannot be read, or has not those that are named.
        """
        if self._config is None:
            raise ValueError("a file without a table")
        return _Mapped(self.path, self.columns, self._config, self.counts).wanted

    def table(self) -> Table:
        """All readings.

        Raises:
            DataError: as `chunks`, or there are none.
        """
        chunks = list(self.chunks())
        if not chunks:
            raise DataError(f"{self.path} has no rows below its header")
        return concatenate(chunks)

    def chunks(self, rows: int = CHUNK_ROWS) -> Iterator[Table]:
        """The readings, at most `rows` at a time, in the order of the file; joined ones in the order of time.

        Raises:
            DataError: the file cannot be read, has not the columns that are named, a cell is not a time, not a number
                or no name of a series, or the table leaves no row.
        """
        if self._config is None:
            return read_chunks(self.path, self.columns, rows)
        return _Mapped(self.path, self.columns, self._config, self.counts).chunks(rows)


def table_of(given: str | None, model: ModelDataConfig | None) -> InputConfig | None:
    """The `[input]` table for a file: of the TOML file that is given, or of the model's own config.

    Raises:
        UsageError: it cannot be read or used.
    """
    if given is not None:
        return read_input(given)
    return None if model is None or model.input is None else parse_input(model.input, where="the model's [input]")


class _Mapped:
    """A file by an `[input]` table."""

    def __init__(self, path: Path, columns: Columns, config: InputConfig, counts: FileCounts) -> None:
        present = header(path)
        self._path, self._config, self._counts = path, config, counts
        self._series = SeriesReader(config, present, columns.name, path)
        self._times = TimesReader(config, present, path)
        self._conditions = Conditions(config, present, path)
        self._read = NumberReader(config)
        fields = config.feature_fields or {}
        self._features = list(columns.features) or list(fields)
        self._open = config.long and not self._features  # whatever name comes is a feature
        known = [fields.get(name, FieldConfig(path=name)) for name in self._features]
        self._scale, self._offset = [each.scale for each in known], [each.offset for each in known]
        if config.long:
            self._name = columns_of(config.name, present, "name", path) if config.name else []
            self._value = columns_of(config.value, present, "value", path)
            self._numbers = {each.path: n for n, each in enumerate(known)}
            mine = [*self._name, *self._value]
        else:
            self._wide = [self._columns_of_feature(name, fields, present) for name in self._features]
            mine = [column for each in self._wide for column in each]
        wanted = [*self._times.columns, *self._series.columns, *self._conditions.columns, *mine]
        self.wanted = list(dict.fromkeys(wanted))

    def _columns_of_feature(self, name: str, fields: dict[str, FieldConfig], present: Sequence[str]) -> list[str]:
        where = self._config.fields
        if not isinstance(where, str):
            if name in fields:
                return columns_of(fields[name].path, present, f"the feature {name}", self._path)
            raise DataError(f"fields of [input] has no feature {name!r}", got=", ".join(fields),
                            do=f'Add it: {name} = "COLUMN".')  # fmt: skip
        named = [f"{parent.strip()}.{name}" for parent in where.split(" | ")] if where else [name]
        found = [column for column in named if column in present]
        if not found:
            shown = ", ".join(map(repr, present[:20]))
            raise DataError(f"{self._path} has no column {named[0]!r} for a feature", do=f"Its columns are {shown}.")
        return found

    def chunks(self, rows: int) -> Iterator[Table]:
        """As `DataFile.chunks`."""
        if not self._config.long and not self._config.join:
            for cells, count, where in self._rows(rows):
                series = self._series.read(cells, count, where)
                yield self._table(series, self._times.read(cells, where), self._wide_values(cells, count, where))
            self._need(self._counts.rows - self._counts.skipped)
            return
        parts = list(self._long_cells() if self._config.long else self._wide_cells())
        self._need(sum(len(part.ts) for part in parts))
        if self._config.long and not self._open:
            seen = set().union(*(np.unique(part.feature).tolist() for part in parts))
            self._counts.absent = [name for n, name in enumerate(self._features) if n not in seen]
        join = self._config.join
        tolerance = join.tolerance_ms if isinstance(join, JoinConfig) else 0
        found = pivot(_all(parts), len(self._features), tolerance)
        del parts
        self._counts.doubled, self._counts.contradictions = found.doubled, found.contradictions
        for start in range(0, len(found.ts), rows):
            part = slice(start, start + rows)
            yield self._table(found.series[part], found.ts[part], found.x[part])

    def _table(self, series: Int64, ts: Int64, x: Floats) -> Table:
        names = self._series.names
        return Table(ts, [names[number] for number in series.tolist()], x, tuple(self._features))

    def _need(self, readings: int) -> None:
        if readings:
            return
        if not self._counts.rows:
            raise DataError(f"{self._path} has no rows below its header")
        why = "; ".join(self._counts.sentences())
        raise DataError(f"{self._path}: [input] leaves no reading of {_rows(self._counts.rows)}", got=why or None,
                        do=f"The features are {', '.join(self._features)}. Correct the table.")  # fmt: skip

    def _rows(self, rows: int = CHUNK_ROWS) -> Iterator[tuple[Rows, int, Where]]:
        """Rows that no condition leaves out: cells, how many, and the place of each."""
        for cells, where in column_chunks(self._path, self.wanted, rows):
            count = len(cells[self.wanted[0]])
            self._counts.rows += count
            if self._conditions:
                keep = self._conditions.keep(cells, count)
                self._counts.skipped += count - len(keep)
                cells, count, where = _take(cells, keep, where)
            if count:
                yield cells, count, where

    # Wide ------------------------------------------------------------------------------------------------------

    def _wide_values(self, cells: Rows, count: int, where: Where) -> Floats:
        x = np.empty((count, len(self._features)))
        for f, columns in enumerate(self._wide):
            x[:, f] = self._read.read(first_there(cells, columns), columns[0], where)
        return x * self._scale + self._offset if self._features else x

    def _wide_cells(self) -> Iterator[Cells]:
        width = len(self._features)
        for cells, count, where in self._rows():
            series, ts = self._series.read(cells, count, where), self._times.read(cells, where)
            values = self._wide_values(cells, count, where)
            features = np.tile(np.arange(width), count)
            yield Cells(np.repeat(series, width), np.repeat(ts, width), features, values.reshape(-1))

    # Long ------------------------------------------------------------------------------------------------------

    def _long_cells(self) -> Iterator[Cells]:
        for cells, count, where in self._rows():
            names = first_there(cells, self._name) if self._name else ["value"] * count
            text_of = {name: "" if name is None else str(name) for name in dict.fromkeys(names)}
            for text in filter(None, text_of.values()) if self._open else ():
                if text not in self._numbers:
                    self._numbers[text] = len(self._features)
                    self._features.append(text)
                    self._scale.append(1.0)
                    self._offset.append(0.0)
            number = {name: self._numbers.get(text, -1) for name, text in text_of.items()}
            features = np.fromiter(map(number.__getitem__, names), dtype=np.int64, count=count)
            if (features < 0).any():
                self._counts.unused.update(Counter(text_of[name] for name in names if number[name] < 0))
                cells, count, where = _take(cells, np.flatnonzero(features >= 0).tolist(), where)
                features = features[features >= 0]
            if not count:
                continue
            values = self._read.read(first_there(cells, self._value), self._value[0], where)
            values = values * np.array(self._scale)[features] + np.array(self._offset)[features]
            self._counts.empty += int(np.isnan(values).sum())
            series = self._series.read(cells, count, where)
            yield Cells(series, self._times.read(cells, where), features, values)


def _take(cells: Rows, keep: list[int], where: Where) -> tuple[Rows, int, Where]:
    taken = {name: [column[row] for row in keep] for name, column in cells.items()}
    return taken, len(keep), lambda at: where(keep[at])


def _all(parts: Sequence[Cells]) -> Cells:
    columns = (np.concatenate([getattr(part, name) for part in parts]) for name in Cells.__dataclass_fields__)
    return Cells(*columns)
