"""The values of readings: a column for each feature, from wide records or from the long form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidecast.service.errors import UsageError
from tidecast.service.input.canonical import LARGEST, narrow
from tidecast.service.input.columns import Columns
from tidecast.service.input.config import FieldConfig, InputConfig
from tidecast.service.input.paths import MISSING, opened, parse_paths
from tidecast.service.input.rejected import DeadLetterReason, RecordRejected, names, show

There = NDArray[np.bool_] | None  # [rows, features] which values the record has; None where parts are not joined

_NUMBERS = {int, float, bool, type(None)}


class ValueReader:
    """Reads the values of one `[input]` table, for these features; None = all that a record has.

    Raises:
        UsageError: `fields` says not where a feature is.
    """

    def __init__(self, config: InputConfig, features: Sequence[str] | None) -> None:
        self._config, self._features = config, None if features is None else tuple(features)
        self._name, self._value = (parse_paths(text) if text else () for text in (config.name, config.value))
        self._fields = config.feature_fields
        self._given = features is None and self._fields is None  # each reading has the features that it has
        self._field_paths = {
            name: parse_paths(field.path) for name, field in (self._fields or {}).items() if not config.long
        }
        self._time = [] if config.long else [path for path in parse_paths(config.time) if path.steps]
        self._joins = config.join_of(len(self._features or ())) is not None
        named = isinstance(config.fields, str) and config.fields
        self._parents = parse_paths(str(config.fields)) if named else ()
        self._texts = {text.lower(): np.nan for text in config.missing}
        self._texts |= {text.lower(): number for text, number in config.texts.items()}
        unnamed = [name for name in self._features or () if self._field_paths and name not in self._field_paths]
        if unnamed:
            raise UsageError(
                "fields in [input] does not say where a feature of the model is",
                got=names(unnamed),
                do=f'Add for example: {unnamed[0]} = "path.to.it".',
            )

    def _field(self, feature: str) -> FieldConfig | None:
        """Where the feature is; None where it is under its own name."""
        return self._fields.get(feature) if self._fields is not None else None

    def read_wide(
        self, columns: Columns, rejected: dict[int, RecordRejected]
    ) -> tuple[tuple[str, ...], NDArray[np.float32], There]:
        """(names, [rows, features], which of them are there): each row has all its features."""
        parents = columns.read(self._parents) if self._parents else columns.level.items
        if str in set(map(type, parents)):
            parents = list(map(opened, parents))
        features = self._features or tuple(self._fields or self._names_in(parents))
        found: list[list[Any]] = []
        wide = np.empty((len(columns), len(features)), dtype=np.float64)
        for column, name in enumerate(features):
            known = self._field(name)
            values = _items_of(name, parents) if known is None else columns.read(self._field_paths[name])
            if self._given:  # whatever the other records of its batch have there
                values = [value if self._is_number(value) else MISSING for value in values]
            found.append(values)
            wide[:, column] = self._numbers(values, name, known, rejected)
        x = narrow(wide, features, rejected)
        for row in np.flatnonzero(np.isnan(x).all(axis=1)).tolist():
            if row not in rejected and all(column[row] is MISSING for column in found):
                rejected[row] = RecordRejected(DeadLetterReason.NO_FEATURES, self._no_features(features, parents[row]))
        return features, x, self._there(found, x.shape) if self._joins else None

    @staticmethod
    def _there(found: list[list[Any]], shape: tuple[int, ...]) -> NDArray[np.bool_]:
        there = np.empty(shape, dtype=np.bool_)
        for column, values in enumerate(found):
            there[:, column] = [value is not MISSING for value in values]
        return there

    def _no_features(self, features: Sequence[str], parent: Any) -> str:
        where = f" at {self._config.fields!r}" if self._parents else ""
        wanted = "no number" if self._given else f"none of the features ({names(features)})"
        there = "where there is nothing" if parent is MISSING or parent is None else f"only {show(parent)}"
        return f"the record has {wanted}{where}, {there}"

    def _names_in(self, parents: Sequence[Any]) -> list[str]:
        """The numbers that the records have, apart from their time: what a router passes on without a model."""
        time = {"ts", *(str(path.steps[-1]) for path in self._time)}  # where a reading is written, ts is its time
        found: dict[str, None] = {}
        for parent in parents:
            for name, value in parent.items() if isinstance(parent, dict) else ():
                if name not in found and name not in time and isinstance(name, str) and self._is_number(value):
                    found[name] = None
        return sorted(found)

    def read_long(
        self,
        columns: Columns,
        keys: Sequence[bytes | None],
        ts: NDArray[np.int64],
        rejected: dict[int, RecordRejected],
        unused: dict[str, list[int]],
    ) -> tuple[tuple[str, ...], NDArray[np.float32], list[int], list[int] | None, There]:
        """(names, x, records, rows kept; None = all, there). Values of one record, series and time are one row.

        A value that is refused has a row of its own. Where a feature comes twice, the first counts; the second has a
        row of its own, which is then a duplicate. `unused` gets the names that are no feature, and the records of
        their values.
        """
        values, records = columns.read(self._value), columns.level.records
        given = self._names_of(columns, rejected)
        fields = self._fields or {}
        feature_of = {known.path: name for name, known in fields.items()}
        if self._features is not None:
            feature_of |= {name: name for name in self._features if name not in fields}
        elif not fields:
            feature_of = {
                name: name
                for name, value in zip(given, values, strict=True)
                if name and name != "ts" and self._is_number(value)
            }
        features = self._features or tuple(sorted(set(feature_of.values())))
        place_of = {name: column for column, name in enumerate(features)}
        index = {name: place_of[feature] for name, feature in feature_of.items() if feature in place_of}
        numbers = np.full(len(columns), np.nan, dtype=np.float32)
        rows_of: dict[str | None, list[int]] = {}
        for row, name in enumerate(given):
            if self._given and name in index and not self._is_number(values[row]):
                unused.setdefault(str(name), []).append(records[row])
                given[row] = name = ""
            rows_of.setdefault(name, []).append(row)
        for name, rows in rows_of.items():
            if name in index:
                feature = features[index[name]]
                refused: dict[int, RecordRejected] = {}
                found = self._numbers([values[row] for row in rows], feature, self._field(feature), refused)
                numbers[rows] = narrow(found[:, np.newaxis], [feature], refused)[:, 0]
                for at, rejection in refused.items():
                    rejected.setdefault(rows[at], rejection)
            elif name:
                unused.setdefault(name, []).extend([records[row] for row in rows])
        kept: list[int] = []
        place: dict[tuple[int, bytes | None, int], int] = {}
        cells: dict[tuple[int, int], float] = {}
        for row, name in enumerate(given):
            if name is None or (name in index and row in rejected):
                kept.append(row)
                continue
            if name not in index:
                continue
            one, column = (records[row], keys[row], int(ts[row])), index[name]
            at = place.setdefault(one, len(kept))
            if at == len(kept) or (at, column) in cells:
                at = len(kept)
                kept.append(row)
            cells[at, column] = numbers[row]
        x = np.full((len(kept), len(features)), np.nan, dtype=np.float32)
        there = np.zeros(x.shape, dtype=np.bool_) if self._joins else None
        if cells:
            places = tuple(zip(*cells, strict=True))
            x[places] = list(cells.values())
            if there is not None:
                there[places] = True
        return features, x, [records[row] for row in kept], None if len(kept) == len(records) else kept, there

    def _names_of(self, columns: Columns, rejected: dict[int, RecordRejected]) -> list[str | None]:
        """[rows] the name of each value; None where there is none, which rejects the row."""
        if not self._name:
            return ["value"] * len(columns)
        found: list[str | None] = []
        for row, name in enumerate(columns.read(self._name)):
            if isinstance(name, str | int | float) and name != "":
                found.append(str(name))
                continue
            message = f"the name of a value is to be at {self._config.name!r}, got {show(name)}"
            rejected.setdefault(row, RecordRejected(DeadLetterReason.NO_FEATURES, message))
            found.append(None)
        return found

    def _numbers(
        self, values: list[Any], name: str, known: FieldConfig | None, rejected: dict[int, RecordRejected]
    ) -> NDArray[np.float64]:
        """[rows]; NaN = missing."""
        kinds = set(map(type, values))
        if type(MISSING) in kinds:
            kinds.remove(type(MISSING))
            values = [None if value is MISSING else value for value in values]
        try:
            if not kinds <= _NUMBERS:
                raise TypeError
            numbers = np.fromiter(values, dtype=np.float64, count=len(values))  # None: NaN
        except (TypeError, OverflowError):
            numbers = np.full(len(values), np.nan)
            for row, value in enumerate(values):
                try:
                    numbers[row] = self._number(value)
                except (TypeError, ValueError):
                    rejection = RecordRejected(DeadLetterReason.WRONG_TYPE, self._no_number(name, value))
                    rejected.setdefault(row, rejection)
                except OverflowError:
                    numbers[row] = np.inf
        if known is not None and (known.scale, known.offset) != (1.0, 0.0):
            with np.errstate(over="ignore"):
                numbers = numbers * known.scale + known.offset
        return numbers

    def _number(self, value: Any) -> float:
        if value is None or value is MISSING:
            return np.nan
        if isinstance(value, bytes):
            raise TypeError
        if not isinstance(value, str):
            return float(value)
        return number_of(value, self._texts, comma=self._config.decimal == ",")

    def _is_number(self, value: Any) -> bool:
        """True for what a feature can have, unless it stands for a missing value."""
        if type(value) is float or type(value) is int:
            return -LARGEST <= value <= LARGEST
        if isinstance(value, str) and value[:1] not in "+-.0123456789 \t" and value.lower() not in self._texts:
            return False
        try:
            return abs(self._number(value)) <= LARGEST
        except (TypeError, ValueError, OverflowError):
            return False

    def _no_number(self, name: str, value: Any) -> str:
        message = f"{name!r} must be a number, got {show(value)}"
        if isinstance(value, str) and "," in value and self._config.decimal == ".":
            return f'{message}; decimal = "," reads such numbers'
        return f"{message}; texts in [input] says which texts stand for numbers" if isinstance(value, str) else message


def _items_of(name: str, parents: Sequence[Any]) -> list[Any]:
    try:
        return list(map(itemgetter(name), parents))
    except (KeyError, TypeError, IndexError):
        return [each.get(name, MISSING) if isinstance(each, dict) else MISSING for each in parents]


def number_of(text: str, texts: Mapping[str, float], *, comma: bool) -> float:
    """The number that a text is, or that it stands for in `texts`, in lower case. `comma`: the decimal sign.

    Raises:
        ValueError: it is none.
    """
    text = text.strip()
    if (known := texts.get(text.lower())) is not None:
        return known
    if "_" in text or (comma and "." in text):
        raise ValueError
    return float(text.replace(",", ".") if comma else text)
