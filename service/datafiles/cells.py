"""Cells of a data file: parses texts as times, numbers and keys, and refuses what is none of these.

Each function takes one column and has a fast path for uniform columns, which nearly all are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tidecast.service.errors import DataError
from tidecast.service.timestamps import EPOCH_UNITS_MS, MAX_TS_MS, MIN_TS_MS, epoch_unit, parse_time

Where = Callable[[int], str]  # the place of the column's i-th cell, for messages: "weather.csv, line 12"

MISSING = frozenset({"", "na", "nan", "n/a", "null", "none"})
_ISO_LENGTHS = frozenset({10, 16, 19, 20, 23, 24})  # date; to the minute; second; second Z; ms; ms Z


def times_ms(texts: list[str], column: str, where: Where) -> NDArray[np.int64]:
    """Epoch ms (UTC) [rows] of ISO 8601 texts or of epoch ms.

    Raises:
        DataError: a cell is empty, not a time, or outside 1900..2200.
    """
    fast = uniform_iso_ms(texts)
    if fast is not None:
        return fast
    out = np.empty(len(texts), dtype=np.int64)
    for i, text in enumerate(texts):
        try:
            out[i] = parse_time(text)
        except ValueError as error:
            _refuse_unit([text], column, where(i))
            # Only our own ValueError says what is wrong.
            what = "outside 1900..2200" if "1900" in str(error) else "not a time"
            raise DataError(
                f"{where(i)}, column {column!r}: {what}", got=text, do="Write times as ISO 8601 or epoch milliseconds."
            ) from None
    return out


def refuse_seconds(texts: list[str], column: str, where: Where) -> None:
    """Refuse a column of bare numbers that are all seconds since 1970: as milliseconds they would be January 1970.

    Pass the start of a file: times counted from 0 in milliseconds have the same numbers later in the file.

    Raises:
        DataError: they are.
    """
    _refuse_unit(texts, column, where(0) if texts else "")


def _refuse_unit(texts: list[str], column: str, place: str) -> None:
    """Refuse texts that are all numbers of another unit than milliseconds."""
    try:
        values = list(map(float, texts))
    except ValueError:
        return
    unit = epoch_unit(min(values), max(values)) if values else None
    if unit is None or unit == "milliseconds":
        return
    ms = EPOCH_UNITS_MS[unit]
    factor = f"Multiply them by {ms:,.0f}" if ms > 1 else f"Divide them by {1 / ms:,.0f}"
    raise DataError(
        f"{place}, column {column!r}: times in {unit} since 1970, where milliseconds are read",
        got=texts[0],
        do=f"{factor}, or write times as ISO 8601.",
    )


def uniform_iso_ms(texts: list[str]) -> NDArray[np.int64] | None:
    """Parsed at once by numpy if all texts have the same plain ISO form, in UTC and within 1900..2200, else None."""
    length = len(texts[0]) if texts else 0
    if length not in _ISO_LENGTHS or any(len(text) != length for text in texts):
        return None
    if length in (20, 24):
        if not all(text.endswith("Z") for text in texts):
            return None
        texts = [text[:-1] for text in texts]
    if not all(text[4] == text[7] == "-" for text in texts):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy warns about time zones: such texts are parsed one by one
            ms = np.array(texts, dtype="datetime64[ms]").astype(np.int64)
    except (ValueError, Warning):
        return None
    return ms if ms.min() >= MIN_TS_MS and ms.max() <= MAX_TS_MS else None


def numbers(texts: list[str], column: str, where: Where) -> NDArray[np.float64]:
    """Values [rows]; NaN for "", NA, NaN, N/A, null and None in any case.

    Raises:
        DataError: a cell is neither missing nor a finite number.
    """
    try:
        fast = np.array(list(map(float, texts)), dtype=np.float64)
        if not np.isinf(fast).any():
            return fast
    except ValueError:
        pass
    out = np.empty(len(texts), dtype=np.float64)
    for i, text in enumerate(texts):
        try:
            value = float(text)
        except ValueError:
            if text.strip().lower() not in MISSING:
                raise _not_a_number(text, column, where(i)) from None
            value = math.nan
        if math.isinf(value):
            raise _not_a_number(text, column, where(i))
        out[i] = value
    return out


def _not_a_number(text: str, column: str, place: str) -> DataError:
    return DataError(
        f"{place}, column {column!r}: not a finite number",
        got=text,
        do="Leave the cell empty where a value is missing.",
    )


def key_texts(texts: list[str], column: str, where: Where) -> list[str]:
    """The series' names as they are.

    Raises:
        DataError: a cell is empty.
    """
    if "" in texts:
        raise DataError(f"{where(texts.index(''))}, column {column!r}: a reading without its series' name")
    return texts


def is_number(text: str) -> bool:
    """True for what Python reads as a number, also where it is not finite."""
    try:
        float(text)
    except ValueError:
        return False
    return True
