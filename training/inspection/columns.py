"""A file that nothing is known of, as columns: numbers where the cells are numbers, texts where they are not.

`service.datafiles.table` reads a file whose columns are named; here they are still to be found, and a cell that the
trainer
would refuse is a finding, not an end.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tidecast.service.datafiles.cells import MISSING, is_number
from tidecast.service.datafiles.table import csv_cells, header
from tidecast.service.errors import DataError

CHUNK_ROWS = 50_000
TEXT_SHARE = 0.2  # a column with more cells than this that are not numbers is one of texts

Floats = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(slots=True)
class Column:
    """One column, whole. Exactly one of `numbers`, `texts` and `moments` is there."""

    name: str
    numbers: Floats | None = None  # [rows], NaN = missing or refused
    texts: list[str] | None = None  # [rows]
    moments: Int64 | None = None  # [rows] ms UTC: a Parquet column that is a time by its type
    refused: int = 0  # cells of a column of numbers that the trainer would refuse
    first_refused: tuple[int, str] | None = None  # line (row, in Parquet) and cell

    @property
    def rows(self) -> int:
        """Its length."""
        return len(next(part for part in (self.numbers, self.texts, self.moments) if part is not None))


def read_columns(path: Path) -> list[Column]:
    """Every column of a CSV (also .gz) or Parquet file.

    Raises:
        DataError: the file cannot be read, has no header, no rows, a row of another length, or another separator.
    """
    names = header(path)
    if path.suffix in (".parquet", ".pq"):
        columns = _read_parquet(path)
    else:
        _check_header(path, names)
        columns = _read_csv(path, names)
    if columns[0].rows == 0:
        raise DataError(f"{path} has no rows below its header", do="Give a file with readings.")
    return columns


def _check_header(path: Path, names: list[str]) -> None:
    if names[0][:1] in ("{", "["):
        raise DataError(f"{path} is JSON, not CSV", do="Write its readings as CSV with a header, or as Parquet.")
    for separator, called in ((";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")):
        if len(names) == 1 and separator in names[0]:
            raise DataError(
                f"{path} separates its columns by {called}, not by commas",
                got=names[0][:60],
                do="Save it as CSV with commas (and points, not commas, in its numbers).",
            )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path} has more than one column of the same name", got=twice[0], do="Rename all but one.")
    if len([name for name in names if is_number(name)]) > len(names) / 2:
        raise DataError(
            f"{path} has no header: its first line is a row of numbers",
            got=",".join(names)[:60],
            do="Put a line with the columns' names above it.",
        )


def _read_csv(path: Path, names: list[str]) -> list[Column]:
    parts: list[list[_Part]] = [[] for _ in names]
    for cells, lines in csv_cells(path, CHUNK_ROWS):
        for i, texts in enumerate(zip(*cells, strict=True)):
            parts[i].append(_parse(texts, lines))
    return [_join(name, of) for name, of in zip(names, parts, strict=True)]


@dataclass(slots=True)
class _Part:
    numbers: Floats
    texts: list[str] | None  # None where every cell is a number or missing
    refused: int
    present: int
    first_refused: tuple[int, str] | None


def _parse(texts: tuple[str, ...], lines: list[int]) -> _Part:
    """A stretch of one column: numbers, and the texts too unless all cells are numbers or missing."""
    try:
        values = np.array(list(map(float, texts)), dtype=np.float64)
        if not np.isinf(values).any():
            return _Part(values, None, 0, len(texts), None)
    except ValueError:
        pass
    values = np.full(len(texts), np.nan)
    refused, present, first = 0, 0, None
    for i, text in enumerate(texts):
        if text.strip().lower() in MISSING:
            continue
        present += 1
        try:
            value = float(text)
        except ValueError:
            value = math.inf
        if math.isinf(value):
            refused += 1
            first = first or (lines[i], text)
        else:
            values[i] = value
    kept = list(map(sys.intern, texts)) if refused else None  # keys repeat: one object for each
    return _Part(values, kept, refused, present, first)


def _join(name: str, parts: list[_Part]) -> Column:
    refused, present = sum(p.refused for p in parts), sum(p.present for p in parts)
    if refused > TEXT_SHARE * max(present, 1):
        texts: list[str] = []
        for part in parts:
            texts += part.texts if part.texts is not None else [_short(v) for v in part.numbers.tolist()]
        return Column(name, texts=texts)
    numbers = np.concatenate([p.numbers for p in parts]) if parts else np.empty(0)
    return Column(name, numbers=numbers, refused=refused, first_refused=next(
        (p.first_refused for p in parts if p.first_refused), None))  # fmt: skip


def _short(value: float) -> str:
    return "" if math.isnan(value) else f"{value:g}" if abs(value) < 1e6 else str(round(value))


def _read_parquet(path: Path) -> list[Column]:
    import polars

    columns = []
    for series in polars.read_parquet(path, glob=False):
        kind = series.dtype
        if kind == polars.Date or isinstance(kind, polars.Datetime):
            ms = series.cast(polars.Datetime("ms")).cast(polars.Int64)
            if ms.null_count():
                columns.append(Column(series.name, texts=["" if v is None else str(v) for v in ms.to_list()]))
            else:
                columns.append(Column(series.name, moments=np.array(ms.to_numpy(), dtype=np.int64)))
        elif kind.is_numeric() or kind == polars.Boolean:
            values = np.array(series.cast(polars.Float64).fill_null(float("nan")).to_numpy(), dtype=np.float64)
            wrong = np.isinf(values)
            first = (int(np.argmax(wrong)) + 1, str(values[np.argmax(wrong)])) if wrong.any() else None
            values[wrong] = np.nan
            columns.append(Column(series.name, numbers=values, refused=int(wrong.sum()), first_refused=first))
        else:
            texts = ["" if cell is None else str(cell) for cell in series.to_list()]
            columns.append(_join(series.name, [_parse(tuple(texts), list(range(1, len(texts) + 1)))]))
    if not columns:
        raise DataError(f"{path} has no columns")
    return columns
