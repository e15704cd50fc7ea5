"""Rows of a data file, by an `[input]` table: which columns its paths mean, and the series and time of each row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path as File
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidecast.service.datafiles.cells import MISSING as MISSING_CELLS
from tidecast.service.datafiles.cells import Where, uniform_iso_ms
from tidecast.service.errors import DataError
from tidecast.service.input.config import InputConfig, key_paths, key_texts, matched_name, values_of
from tidecast.service.input.paths import MISSING, Path, parse_paths
from tidecast.service.input.rejected import RecordRejected, check_key
from tidecast.service.input.times import TimeReader
from tidecast.service.input.values import number_of

Rows = dict[str, list[Any]]  # column -> cells, as `column_chunks` gives them
_MOST_TIMES = 1_000_000  # kept with what they mean: in a long file each comes several times


def columns_of(text: str, present: Sequence[str], what: str, file: File | str) -> list[str]:
    """The columns of a path's alternatives, those that are there.

    A column has the path as its name, as it is written or as names divided by dots. How far out a path begins makes no
    difference: a row is a single item.

    Raises:
        DataError: none of them is there.
    """
    found = [name for path in parse_paths(text) if (name := _column_of(path, present)) is not None]
    if not found:
        shown = ", ".join(map(repr, present[:20])) + (", …" if len(present) > 20 else "")
        raise DataError(f"{file} has no column for {what} = {text!r} of [input]", do=f"Its columns are {shown}.")
    return found


def _column_of(path: Path, present: Sequence[str]) -> str | None:
    dotted = ".".join(map(str, path.steps)) if not path.special else path.text
    return next((name for name in (path.text, dotted) if name in present), None)


def first_there(rows: Rows, columns: Sequence[str]) -> list[Any]:
    """[rows] the cell of the first column that has one."""
    cells = rows[columns[0]]
    for name in columns[1:]:
        cells = [other if _empty(cell) else cell for cell, other in zip(cells, rows[name], strict=True)]
    return cells


def _empty(cell: Any) -> bool:
    return cell is None or cell == ""


class SeriesReader:
    """The series of each row, as numbers; `names` has what each is called.

    Without a key in the table all rows are one series, `name`: a file has no records' keys.
    """

    def __init__(self, config: InputConfig, present: Sequence[str], name: str, file: File | str) -> None:
        self.names: list[str] = []
        texts = key_paths(config.key)
        lone = config.key == "@key" and not config.key_regex and "@key" not in present
        self._parts = [] if lone else [columns_of(text, present, "key", file) for text in texts]
        self.columns = [column for part in self._parts for column in part]
        self._between = key_texts(config.key)
        self._regex = re.compile(config.key_regex) if config.key_regex else None
        self._known: dict[Any, int] = {}  # cells -> number
        self._numbers: dict[str, int] = {}
        if lone:
            self._number(name)

    def read(self, rows: Rows, count: int, where: Where) -> NDArray[np.int64]:
        """[rows] the number of each one's series.

        Raises:
            DataError: a row has no name that a series can have.
        """
        if not self._parts:
            return np.zeros(count, dtype=np.int64)
        parts = [first_there(rows, part) for part in self._parts]
        cells = parts[0] if len(parts) == 1 else list(zip(*parts, strict=True))
        known = self._known
        for new in [each for each in dict.fromkeys(cells) if each not in known]:  # numbered as they come
            known[new] = self._number(self._name(new if len(parts) > 1 else (new,), where(cells.index(new))))
        return np.fromiter(map(known.__getitem__, cells), dtype=np.int64, count=count)

    def _name(self, cells: tuple[Any, ...], place: str) -> str:
        texts = [_key_text(cell) for cell in cells]
        if "" in texts:
            raise DataError(f"{place}, column {self._parts[texts.index('')][0]!r}: a reading without its series' name")
        name = self._between[0] + "".join(a + b for a, b in zip(texts, self._between[1:], strict=True))
        if self._regex is not None:
            if not (found := matched_name(self._regex, name)):
                raise DataError(f"{place}: key_regex {self._regex.pattern!r} matches nothing in the key", got=name)
            name = found
        try:
            check_key(name.encode("utf-8", "replace"))
        except RecordRejected as rejection:
            raise DataError(f"{place}: {rejection.message}", got=name[:80]) from None
        return name

    def _number(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = len(self.names)
            self.names.append(name)
        return self._numbers[name]


def _key_text(cell: Any) -> str:
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float):
        return "" if cell != cell else str(int(cell)) if cell.is_integer() else repr(cell)
    return "" if cell is None else cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell)


class TimesReader:
    """The time of each row."""

    def __init__(self, config: InputConfig, present: Sequence[str], file: File | str) -> None:
        self.columns = columns_of(config.time, present, "time", file)
        self._reader = TimeReader(config)
        self._texts_are_utc = config.time_zone == "UTC" and not config.time_format
        self._with_format = bool(config.time_format)
        self._known: dict[Any, int] = {}

    def read(self, rows: Rows, where: Where) -> NDArray[np.int64]:
        """[rows] ms.

        Raises:
            DataError: a cell is not a time.
        """
        cells = first_there(rows, self.columns)
        kinds = set(map(type, cells))
        if kinds == {str} and not self._with_format:
            if self._texts_are_utc and (fast := uniform_iso_ms(cells)) is not None:
                return fast
            with suppress(ValueError):
                cells, kinds = list(map(int, cells)), {int}
        if kinds == {int}:
            return self._read(cells, lambda at: where(at))
        if len(self._known) > _MOST_TIMES:
            self._known.clear()
        known = self._known
        new = [cell for cell in dict.fromkeys(cells) if cell not in known]
        known |= zip(new, self._read(new, lambda at: where(cells.index(new[at]))).tolist(), strict=True)
        return np.fromiter(map(known.__getitem__, cells), dtype=np.int64, count=len(cells))

    def _read(self, cells: list[Any], where: Where) -> NDArray[np.int64]:
        def refuse(at: int, rejection: RecordRejected) -> None:
            raise DataError(f"{where(at)}: {rejection.message}") from None

        return self._reader.read([MISSING if _empty(cell) else cell for cell in cells], refuse)


class NumberReader:
    """The numbers of a column, as `missing`, `texts` and `decimal` say. What is missing in any file is missing too."""

    def __init__(self, config: InputConfig) -> None:
        self._texts = {text.lower(): np.nan for text in (*MISSING_CELLS, *config.missing)}
        self._texts |= {text.lower(): number for text, number in config.texts.items()}
        self._comma = config.decimal == ","
        self._plain = not self._comma and not any(map(_is_number, self._texts))

    def read(self, cells: list[Any], column: str, where: Where) -> NDArray[np.float64]:
        """[rows]; NaN = missing.

        Raises:
            DataError: a cell is neither missing nor a finite number.
        """
        if self._plain or not any(isinstance(cell, str) for cell in cells):
            with suppress(TypeError, ValueError):
                fast = np.fromiter(cells, dtype=np.float64, count=len(cells))  # None: NaN
                if not np.isinf(fast).any():
                    return fast
        values = np.full(len(cells), np.nan)
        for row, cell in enumerate(cells):
            try:
                values[row] = np.nan if cell is None else self._number(cell)
            except (TypeError, ValueError):
                values[row] = np.inf
            if np.isinf(values[row]):
                raise DataError(f"{where(row)}, column {column!r}: not a finite number", got=cell,
                                do="Leave the cell empty where a value is missing; missing, texts and decimal of "
                                "[input] say what other texts mean.")  # fmt: skip
        return values

    def _number(self, cell: Any) -> float:
        if not isinstance(cell, str):
            return float(cell)
        return number_of(cell, self._texts, comma=self._comma)


def _is_number(text: str) -> bool:
    try:
        return not np.isnan(float(text))
    except ValueError:
        return False


class Conditions:
    """`skip_if` and `only_if`. Numbers and switches are compared with what a text of a CSV file says."""

    def __init__(self, config: InputConfig, present: Sequence[str], file: File | str) -> None:
        self._conditions: list[tuple[list[str], list[Any], bool]] = []
        for name, conditions, wanted in (("skip_if", config.skip_if, False), ("only_if", config.only_if, True)):
            for text, want in conditions.items():
                values = values_of(want)
                try:
                    columns = columns_of(text, present, name, file)
                except DataError:
                    if MISSING not in values:
                        raise
                    columns = []  # it is absent, as the condition says
                self._conditions.append((columns, values, wanted))
        self.columns = [column for columns, _, _ in self._conditions for column in columns]

    def __bool__(self) -> bool:
        return bool(self._conditions)

    def keep(self, rows: Rows, count: int) -> list[int]:
        """The rows that are not left out."""
        kept = np.ones(count, dtype=bool)
        for columns, values, wanted in self._conditions:
            cells = first_there(rows, columns) if columns else [None] * count
            verdict = {cell: _is_one_of(cell, values) is wanted for cell in set(cells)}
            kept &= np.fromiter(map(verdict.__getitem__, cells), dtype=bool, count=count)
        return np.flatnonzero(kept).tolist()


def _is_one_of(cell: Any, values: Iterable[Any]) -> bool:
    if _empty(cell):
        return any(value is None or value == cell for value in values)
    return any(_same(cell, value) for value in values)


def _same(cell: Any, value: Any) -> bool:
    if not isinstance(cell, str) or isinstance(value, str):
        return bool(cell == value)
    if isinstance(value, bool):
        return cell.strip().lower() == str(value).lower()
    try:
        return bool(float(cell) == value)
    except ValueError:
        return False
