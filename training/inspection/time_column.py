"""Which column is the time, and what its cells mean in milliseconds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from tidecast.service.datafiles.cells import MISSING, times_ms
from tidecast.service.errors import DataError
from tidecast.service.timestamps import EPOCH_UNITS_MS, MAX_TS_MS, MIN_TS_MS, epoch_unit
from tidecast.training.inspection.columns import Column, Int64

LIKELY = ("time", "date", "stamp", "ts", "t", "when", "epoch", "moment", "utc")
SAMPLE = 200
# Forms that people write and that no program should guess the meaning of row by row.
OTHER_FORMS = (
    "%d/%m/%Y %H:%M:%S", "%d/%m/%Y %H:%M", "%d/%m/%Y", "%m/%d/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%m/%d/%Y",
    "%m/%d/%Y %I:%M:%S %p", "%m/%d/%Y %I:%M %p", "%d/%m/%y %H:%M", "%m/%d/%y %H:%M", "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M", "%d.%m.%Y", "%d-%m-%Y %H:%M:%S", "%d-%m-%Y %H:%M", "%d-%m-%Y", "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d %H:%M", "%Y/%m/%d", "%d %b %Y %H:%M:%S", "%d %b %Y", "%b %d, %Y", "%d-%b-%Y",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TimeColumn:
    """The time column, read."""

    name: str
    form: str  # "ISO 8601 with a zone", "epoch seconds", ...
    ts: Int64  # [rows] ms UTC
    usable: bool  # whether the trainer and the worker read it as it stands


def find_time_column(columns: list[Column], path: str, given: str | None = None) -> TimeColumn:
    """The time column: the given one, or the likeliest by its cells and then by its name.

    Raises:
        DataError: no column holds times, or the one that does holds some that cannot be read.
    """
    names = [column.name for column in columns]
    if given is not None:
        if given not in names:
            raise DataError(f"{path} has no column {given!r}", do=f"Its columns are {_listed(names)}.")
        column = columns[names.index(given)]
        return _read(column, path, _form(column) or "ISO 8601")
    ranked = sorted(
        ((form, column) for column in columns if (form := _form(column))),
        key=lambda found: (not _likely(found[1].name), found[0].startswith("epoch"), names.index(found[1].name)),
    )
    # A number is a time only if its name says so too: a counter near 1.5 billion is no time.
    ranked = [(form, column) for form, column in ranked if column.numbers is None or _likely(column.name)]
    if ranked:
        return _read(ranked[0][1], path, ranked[0][0])
    for column in columns:
        text = next((t for t in column.texts or [] if t.strip().lower() not in MISSING), "")
        wrong = next((form for form in OTHER_FORMS if _reads(text, form)), None)
        if wrong is not None:
            raise DataError(
                f"{path}: the times in column {column.name!r} are neither ISO 8601 nor epoch milliseconds",
                got=text,
                do='Write them like "2026-01-31T13:45:00Z"; day and month cannot be distinguished safely.',
            )
    dates = [c.name for c in columns if c.name.lower() in ("year", "month", "day", "hour")]
    hint = f" The columns {_listed(dates)} would have to be made into one." if dates else ""
    epochs = [f"{c.name!r} could be {form}" for c in columns if c.numbers is not None and (form := _epoch(c))]
    hint += f" {'; '.join(epochs[:3])}." if epochs else ""
    raise DataError(
        f"{path} has no column of times; a forecast needs to know when each value was read",
        got=_listed(names),
        do=f"Add one in ISO 8601 or epoch milliseconds, or name it with --time.{hint}",
    )


def _form(column: Column) -> str | None:
    """What kind of time its first cells are, None if they are none."""
    if column.moments is not None:
        return "timestamp"
    if column.numbers is not None:
        return _epoch(column)
    texts = [text.strip() for text in column.texts or [] if text.strip().lower() not in MISSING][:SAMPLE]
    read = [moment for moment in map(_iso, texts) if moment is not None]
    if not texts or len(read) < 0.8 * len(texts):
        return None
    return "ISO 8601 with a zone" if any(moment.tzinfo for moment in read) else "ISO 8601 without a zone, taken as UTC"


def _epoch(column: Column) -> str | None:
    values = column.numbers
    assert values is not None
    known = values[np.isfinite(values)]
    if not len(known) or np.ptp(known) == 0:
        return None
    unit = epoch_unit(float(known.min()), float(known.max()))
    return None if unit is None else f"epoch {unit}"


def _read(column: Column, path: str, form: str) -> TimeColumn:
    if column.moments is not None:
        return TimeColumn(column.name, form, _within(column.moments, column.name, path), True)
    if column.numbers is not None:
        if not form.startswith("epoch"):
            raise DataError(f"{path}: column {column.name!r} holds numbers that are no times since 1990",
                            got=float(column.numbers[0]), do="Name another with --time.")  # fmt: skip
        if np.isnan(column.numbers).any():
            row = int(np.argmax(np.isnan(column.numbers))) + 1
            raise DataError(f"{path}: row {row} has no time in column {column.name!r}", do="Remove the row, or fix it.")
        ts = np.round(column.numbers * EPOCH_UNITS_MS[form.split()[1]]).astype(np.int64)
        return TimeColumn(column.name, form, ts, form == "epoch milliseconds")
    texts = column.texts or []
    ts = times_ms(texts, column.name, lambda i: f"{path}, row {i + 1}")
    zoned = [bool(re.search(r"(Z|z|[+-]\d\d:?\d\d)$", text.strip()[10:])) for text in texts]
    if any(zoned) and not all(zoned):
        odd = zoned.index(not zoned[0])
        raise DataError(
            f"{path}: some times in column {column.name!r} have a zone and some have none",
            got=f"{texts[0]} and {texts[odd]}",
            do="Write all of them in UTC with a Z.",
        )
    return TimeColumn(column.name, form, ts, True)


def _within(ts: Int64, name: str, path: str) -> Int64:
    if ts.min() < MIN_TS_MS or ts.max() > MAX_TS_MS:
        raise DataError(f"{path}: column {name!r} holds times outside 1900..2200")
    return ts


def _likely(name: str) -> bool:
    words = re.split(r"[^a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
    return any(word == hint or (len(hint) > 3 and hint in word) for word in words for hint in LIKELY)


def _iso(text: str) -> datetime | None:
    if not re.match(r"\d{4}-?\d\d", text):  # 12:30 alone, 2014 alone and 20 are no moments
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _reads(text: str, form: str) -> bool:
    try:
        datetime.strptime(text.strip(), form)
    except ValueError:
        return False
    return True


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown
