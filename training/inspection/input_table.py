"""Files that need an `[input]` table: which table fits a file in the long form, and a file as a table reads it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from tidecast.service.datafiles.table import Columns
from tidecast.service.input.config import InputConfig, JoinConfig
from tidecast.service.input.files import DataFile, FileCounts
from tidecast.service.input.pivot import Cells, joined_times, pivot
from tidecast.service.timestamps import format_duration
from tidecast.training.inspection.columns import Column, Floats, Int64
from tidecast.training.inspection.findings import ROUND_MS
from tidecast.training.inspection.roles import (
    KEY_WORDS,
    LEAST_REPEATS,
    Keys,
    Role,
    find_roles,
    may_be_key,
    repeats,
    words,
)
from tidecast.training.inspection.time_column import TimeColumn

# Words of a column that names features, and of a column of their values. TYPES need a column of values by its name too.
NAMES = frozenset({
    "field", "metric", "variable", "parameter", "param", "measure", "measurement", "property", "attribute", "signal",
    "quantity", "feature", "indicator", "characteristic", "observable", "pollutant", "kpi",
})  # fmt: skip
TYPES = frozenset({"type", "kind", "item"})
VALUES = frozenset({"value", "val", "reading", "measured", "result", "state", "observation"})
MOST_NAMES = 200
MOST_KEYS = 3  # columns in a key
LEAST_EMPTY = 0.2  # of the cells of a column that has only a part of the rows


@dataclass(frozen=True, slots=True)
class Source:
    """A file's columns and what they are for; with a table, as if the file had what the table makes of it."""

    columns: list[Column]
    time_column: TimeColumn
    keys: Keys
    roles: list[Role]
    table: InputConfig | None = None
    counts: FileCounts = field(default_factory=FileCounts)


def by_table(path: Path, columns: list[Column], table: InputConfig, form: str = "by the table input") -> Source:
    """The readings of a file of these columns. `form`: of the times, for a person.

    Raises:
        DataError: the table does not fit the file, or a cell is none of what it should be.
    """
    used = DataFile(path, Columns("", ()), table).used()
    features: tuple[str, ...] = ()
    if not table.long and table.feature_fields is None:
        numeric = [each for each in columns if each.numbers is not None and each.name not in used]
        features = tuple(each.name for each in numeric if not each.refused)
    file = DataFile(path, Columns("", features), table)
    readings = file.table()
    number = {name: n for n, name in enumerate(dict.fromkeys(readings.series))}
    codes = np.fromiter(map(number.__getitem__, readings.series), dtype=np.int64, count=len(readings))
    keys = Keys(table.key if table.rekeys else None, list(number), codes)
    time = TimeColumn(table.time, form, readings.ts, True)
    found = [Column(name, numbers=readings.x[:, f].copy()) for f, name in enumerate(readings.features)]
    names = [*used, *file.used()]
    others = [Role(each.name, "set aside", _why_not(each)) for each in columns if each.name not in names]
    return Source(found, time, keys, [*find_roles(found, time, keys), *others], table, file.counts)


def _why_not(column: Column) -> str:
    if column.refused and column.first_refused is not None:
        line, cell = column.first_refused
        return f"{column.refused:,} cells that are no numbers, first line {line}: {cell[:24]!r}"
    return "not in the table input"


def find_table(columns: list[Column], time: TimeColumn) -> InputConfig | None:
    """The table of a file in the long form (each row has the name of a feature and its value); None for another."""
    found = _name_and_value(columns, time)
    if found is None:
        return None
    name, value = found
    names = codes_of(name)
    key = _key([each for each in columns if each.name not in (time.name, name.name, value.name)], time, names)
    series = np.zeros(len(names), dtype=np.int64)
    for column in key:
        series = _together(series, codes_of(column))
    table = _table(time, [column.name for column in key])
    join = _join(time.ts, series, names)
    return msgspec.structs.replace(table, name=path_of(name.name), value=path_of(value.name), join=join)


def find_wide_table(columns: list[Column], time: TimeColumn, keys: Keys) -> InputConfig | None:
    """The table of a file whose columns alone do not say it: a key of two columns, epoch seconds, sparse rows."""
    sparse = _sparse(columns, time, keys)
    if time.usable and not keys.together and not sparse:
        return None
    table = _table(time, keys.together or ([keys.column] if keys.column else []))
    return msgspec.structs.replace(table, join=_join(time.ts, keys.codes, np.zeros_like(time.ts))) if sparse else table


def _table(time: TimeColumn, key: Sequence[str]) -> InputConfig:
    paths = [path_of(name) for name in key]
    return InputConfig(
        time=path_of(time.name),
        time_unit=unit_of_time(time),
        key="@key" if not paths else paths[0] if len(paths) == 1 else "/".join(f"{{{path}}}" for path in paths),
    )


def _sparse(columns: list[Column], time: TimeColumn, keys: Keys) -> bool:
    """Whether the cells of one time are spread over several rows, each with a part of them."""
    rows = len(time.ts)
    parts = [c.numbers for c in columns if c.numbers is not None and np.isnan(c.numbers).mean() > LEAST_EMPTY]
    if len(parts) < 2 or repeats(time.ts, keys.codes) <= LEAST_REPEATS * rows:
        return False
    n = np.repeat(np.arange(len(parts)), rows)
    cells = Cells(np.tile(keys.codes, len(parts)), np.tile(time.ts, len(parts)), n, np.concatenate(parts))
    return pivot(cells, len(parts)).doubled == 0


def path_of(name: str) -> str:
    """The path of a column: quoted where its name would be read as more than a name."""
    return name if re.fullmatch(r"[^.\[\]\"|/{}@\s][^.\[\]\"|/{}]*", name) else f'"{name}"'


def unit_of_time(time: TimeColumn) -> Literal["s", "us", "ns"] | None:
    """The `time_unit` of a column of epoch times; None for milliseconds and for texts."""
    units: dict[str, Literal["s", "us", "ns"]] = {"seconds": "s", "microseconds": "us", "nanoseconds": "ns"}
    return units.get(time.form.removeprefix("epoch "))


def codes_of(column: Column) -> Int64:
    """[rows] a number for each different cell."""
    if column.texts is None:
        cells = column.numbers if column.numbers is not None else column.moments
        codes: Int64 = np.unique(np.asarray(cells), return_inverse=True)[1].reshape(-1).astype(np.int64)
        return codes
    number = {text: n for n, text in enumerate(dict.fromkeys(column.texts))}
    return np.fromiter(map(number.__getitem__, column.texts), dtype=np.int64, count=len(column.texts))


def _together(a: Int64, b: Int64) -> Int64:
    """[rows] a number for each different pair."""
    both: Int64 = np.unique(a * (int(b.max(initial=0)) + 1) + b, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return both


def _name_and_value(columns: list[Column], time: TimeColumn) -> tuple[Column, Column] | None:
    """The columns of the features' names and of their values."""
    found: list[tuple[int, int, Column, Column]] = []
    for place, column in enumerate(columns):
        of_name = words(column.name)
        if column.name == time.name or column.texts is None or not of_name & (NAMES | TYPES):
            continue
        if not 2 <= len(set(column.texts)) <= MOST_NAMES or "" in column.texts:
            continue
        names = codes_of(column)
        numeric = [
            each for each in columns
            if each.numbers is not None and each.name != time.name and _varies(each.numbers, names)
        ]  # fmt: skip
        values = [each for each in numeric if words(each.name) & VALUES]
        if len(numeric) == 1 and of_name & NAMES:
            values = numeric
        if len(values) == 1:
            found.append((repeats(time.ts, names), place, column, values[0]))
    return min(found, key=lambda each: each[:2])[2:] if found else None


def _varies(values: Floats, names: Int64) -> bool:
    """Whether it changes within most of the names: what is the same in each says which one it is."""
    order = np.argsort(names, kind="stable")
    values, names = values[order], names[order]
    changes = (np.diff(values) != 0) & (np.diff(names) == 0) & np.isfinite(values[1:])
    return len(np.unique(names[1:][changes])) > 0.5 * len(np.unique(names))


def _key(columns: list[Column], time: TimeColumn, names: Int64) -> list[Column]:
    """The columns that tell series apart: as few as it takes that no name comes twice at a time."""
    able: list[tuple[Column, Int64]] = []
    for column in columns:
        if not may_be_key(column) or (column.texts is not None and ("" in column.texts or _are_times(column.texts))):
            continue
        codes = codes_of(column)
        kinds = int(codes.max()) + 1
        # What has one name only tells features apart, as a unit does.
        if kinds <= max(1, len(codes) // 3) and (kinds == 1 or int(_together(codes, names).max()) + 1 > kinds):
            able.append((column, codes))
    chosen: list[Column] = []
    so_far, left = names, repeats(time.ts, names)
    while left > 0.01 * len(names) and len(chosen) < MOST_KEYS:
        after = [(repeats(time.ts, _together(so_far, codes)), n) for n, (_, codes) in enumerate(able)]
        fewest, best = min(after, default=(left, -1))
        if fewest > 0.9 * left:
            break
        column, codes = able.pop(best)
        chosen.append(column)
        so_far, left = _together(so_far, codes), fewest
    if not chosen:
        chosen = [column for column, _ in able if column.texts is not None and words(column.name) & KEY_WORDS][:1]
    return chosen


def _are_times(texts: list[str]) -> bool:
    try:
        return all(datetime.fromisoformat(text).year > 0 for text in texts[:20])
    except ValueError:
        return False


def _join(ts: Int64, series: Int64, names: Int64) -> JoinConfig:
    """The least tolerance by which a series has about as many readings as values of a feature; none if it helps little.

    The deadline, for a topic with such records, is a step.
    """
    both = _together(series, names)
    order = np.lexsort((ts, both))
    steps = np.diff(ts[order])[(np.diff(both[order]) == 0)]
    steps = steps[steps > 0]
    if not len(steps):
        return JoinConfig()
    step = float(np.median(steps))
    deadline = format_duration(max(1_000, round(step / 1_000) * 1_000))
    counts = np.zeros(int(series.max()) + 1, dtype=np.int64)
    firsts = np.unique(both, return_index=True)[1]
    np.maximum.at(counts, series[firsts], np.bincount(both))
    enough = 1.02 * int(counts.sum())
    for tolerance in (0, *ROUND_MS):
        if tolerance >= step / 2:
            break
        joined = joined_times(series, ts, tolerance)
        if len(np.unique(joined + series * (int(np.ptp(ts)) + 1))) <= enough:
            return JoinConfig(tolerance=format_duration(tolerance), deadline=deadline)
    return JoinConfig(deadline=deadline)
