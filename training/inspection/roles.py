"""What each column is for: the key of a series, a value, a part of the calendar, or nothing that a model could use."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

import numpy as np

from tidecast.service.datafiles.cells import MISSING
from tidecast.service.errors import DataError
from tidecast.training.inspection.columns import Column, Floats, Int64
from tidecast.training.inspection.time_column import TimeColumn

KEY_WORDS = frozenset({
    "id", "key", "sensor", "device", "station", "series", "site", "machine", "unit", "origin", "name", "meter",
    "location", "node", "tag", "host", "channel", "symbol", "store", "city", "country", "zone", "plant", "customer",
})  # fmt: skip
# Words that name a part of the calendar, and the largest whole number that each can be.
CALENDAR = {
    "year": 2200, "month": 12, "day": 31, "hour": 24, "minute": 59, "second": 59, "weekday": 7, "dayofweek": 7,
    "dow": 7, "timeofday": 86_400, "week": 53, "weekofyear": 53, "quarter": 4, "dayofyear": 366, "doy": 366,
    "season": 4, "hourofday": 24, "isweekend": 1, "weekend": 1,
}  # fmt: skip
MOSTLY_MISSING = 0.5
LEAST_REPEATS = 0.02  # share of rows at a time that was there before; fewer are duplicates, not other series


@dataclass(slots=True)
class Role:
    """One column and what it is for."""

    name: str
    role: str  # time | key | value | calendar | text | set aside
    why: str = ""  # for what is set aside


@dataclass(frozen=True, slots=True)
class Keys:
    """The series of each row."""

    column: str | None
    names: list[str]  # of the series
    codes: Int64  # [rows] index into names
    together: tuple[str, str] | None = None  # two columns that only together tell readings apart


def find_keys(columns: list[Column], time_column: TimeColumn, path: str, given: str | None = None) -> Keys:
    """The key column: the given one, or the one that separates readings of the same time.

    `given` may be "none" (one series) or "columns" (each column a series), which here are both one series.

    Raises:
        DataError: no such column, or a reading without its key.
    """
    by_name = {column.name: column for column in columns}
    rows = len(time_column.ts)
    alone = Keys(None, ["series"], np.zeros(rows, np.int64))
    if given in ("none", "columns"):
        return alone
    if given is not None:
        if given not in by_name:
            raise DataError(f"{path} has no column {given!r}", do=f"Its columns are {', '.join(by_name)}.")
        return _keys(by_name[given], path)
    repeated = repeats(time_column.ts, alone.codes)
    candidates: list[tuple[int, int, int, Keys]] = []
    for place, column in enumerate(columns):
        if column.name == time_column.name or not may_be_key(column):
            continue
        keys = _keys(column, None)
        if not 1 <= len(keys.names) <= max(1, rows // 3):
            continue
        left = repeats(time_column.ts, keys.codes)
        named = words(column.name) & KEY_WORDS
        splits = repeated > LEAST_REPEATS * rows and left < repeated
        if splits or (not repeated and named and column.texts is not None and "" not in keys.names):
            candidates.append((left, 0 if named else 1, len(keys.names) * 1000 + place, keys))
    if not candidates:
        return alone
    best = min(candidates, key=lambda c: c[:3])
    if best[0] > 0.01 * rows:
        for (_, _, _, a), (_, _, _, b) in itertools.combinations(candidates, 2):
            both = a.codes * len(b.names) + b.codes
            if a.column and b.column and repeats(time_column.ts, both) < 0.1 * best[0]:
                return Keys(best[3].column, best[3].names, best[3].codes, (a.column, b.column))
        if best[0] > 0.5 * repeated:
            return alone
    if best[3].column is not None and "" in best[3].names:
        _keys(by_name[best[3].column], path)  # says which row has none
    return best[3]


def find_roles(columns: list[Column], time_column: TimeColumn, keys: Keys) -> list[Role]:
    """The role of every column, in the file's order."""
    roles = []
    kept: list[tuple[str, Floats]] = []
    for column in columns:
        if column.name == time_column.name:
            roles.append(Role(column.name, "time"))
        elif column.name == keys.column:
            roles.append(Role(column.name, "key"))
        elif column.numbers is None:
            roles.append(_role_of_text(column))
        else:
            why = _why_not(column, time_column) or _copy_of(column.numbers, kept)
            role = "calendar" if why.startswith("part of the calendar") else "set aside" if why else "value"
            roles.append(Role(column.name, role, why))
            if role == "value":
                kept.append((column.name, column.numbers))
    return roles


def _role_of_text(column: Column) -> Role:
    if column.moments is not None:
        return Role(column.name, "text", "a second time")
    texts = column.texts or []
    kinds = len(set(texts))
    example = next((t for t in texts if t.strip().lower() not in MISSING), "")[:24]
    return Role(column.name, "text", f"text, {kinds:,} different, such as {example!r}")


def _why_not(column: Column, time_column: TimeColumn) -> str:
    values = column.numbers
    assert values is not None
    known = values[np.isfinite(values)]
    if not len(known):
        return "no value at all"
    if column.name.lower() == "ts":
        return "called ts, which is the event time's name in a reading: rename it"
    if known.min() == known.max():
        return f"constant: always {known[0]:g}"
    missing = 1 - len(known) / len(values)
    if missing > MOSTLY_MISSING:
        return f"mostly missing ({100 * missing:.0f} %)"
    whole = bool((known == np.floor(known)).all())
    if whole and _in_calendar(column.name, values, time_column):
        return "part of the calendar: the model makes it from the time"
    if whole and len(known) == len(values) and _counts_rows(values):
        return "counts the rows"
    if known.min() >= 0 and 355 <= known.max() <= 360 and words(column.name) & {
        "dir", "direction", "angle", "heading", "bearing", "azimuth", "deg", "degrees",
    }:  # fmt: skip
        return "an angle, where 0 and 360 are the same: its sine and cosine would serve"
    return ""


def _in_calendar(name: str, values: Floats, time_column: TimeColumn) -> bool:
    joined = re.sub(r"[^a-z]", "", name.lower())
    known = values[np.isfinite(values)]
    if joined in CALENDAR and known.min() >= 0 and known.max() <= CALENDAR[joined]:
        return True
    if np.isnan(values).any():
        return False
    seconds = time_column.ts // 1000
    for period in (3600, 86_400, 604_800):  # a whole number that the phase alone decides, and that it takes part in
        phase = seconds % period // 60
        kinds = len(np.unique(values))
        if not 2 < kinds <= period // 60 or len(values) < 3 * len(np.unique(phase)):
            continue
        order = np.lexsort((values, phase))
        p, v = phase[order], values[order]
        decided = not ((p[1:] == p[:-1]) & (v[1:] != v[:-1])).any()
        if decided and np.ptp(np.unique(v, return_counts=True)[1]) <= 0.1 * len(v):  # each about as often
            return True
    return False


def _counts_rows(values: Floats) -> bool:
    return len(values) > 2 and bool((np.diff(values) == 1).mean() > 0.99)


def _copy_of(values: Floats, kept: list[tuple[str, Floats]]) -> str:
    for name, other in kept:
        both = np.isfinite(values) & np.isfinite(other)
        if both.sum() < 10 or both.sum() < 0.9 * np.isfinite(values).sum():
            continue
        a, b = values[both] - values[both].mean(), other[both] - other[both].mean()
        size = float(np.sqrt((a @ a) * (b @ b)))
        if size > 0 and abs(float(a @ b)) / size > 0.99999:
            return f"says the same as {name}"
    return ""


def may_be_key(column: Column) -> bool:
    """Whether its cells can name series."""
    if column.texts is not None:
        return True
    values = column.numbers
    if values is None or np.isnan(values).any() or not (values == np.floor(values)).all():
        return False
    # A whole number is a key only by its name: counts and switches repeat too.
    return bool(words(column.name) & KEY_WORDS)


def _keys(column: Column, path: str | None) -> Keys:
    """Of one column; with `path` an empty key is refused."""
    texts = column.texts
    if texts is None:
        numbers = column.numbers if column.numbers is not None else np.asarray(column.moments, dtype=np.float64)
        texts = ["" if np.isnan(v) else str(int(v)) if v == int(v) else str(v) for v in numbers.tolist()]
    if path is not None and "" in texts:
        row = texts.index("") + 1
        raise DataError(f"{path}, row {row}: no key in column {column.name!r}", do="Every reading needs its series.")
    number = {name: i for i, name in enumerate(dict.fromkeys(texts))}
    return Keys(column.name, list(number), np.array([number[text] for text in texts], dtype=np.int64))


def repeats(ts: Int64, codes: Int64) -> int:
    """Readings with the same time and key as an earlier one."""
    order = np.lexsort((ts, codes))
    return int(((np.diff(ts[order]) == 0) & (np.diff(codes[order]) == 0)).sum())


def words(name: str) -> set[str]:
    """The words in a column's name, in lower case."""
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()
    return set(re.split(r"[^a-z]+", spaced)) - {""}
