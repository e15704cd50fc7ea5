"""A column of times as they come to epoch milliseconds."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from tidecast.service.input.config import InputConfig
from tidecast.service.input.paths import MISSING
from tidecast.service.input.rejected import DeadLetterReason, RecordRejected, show
from tidecast.service.timestamps import HIGHEST_SECONDS, LOWEST_SECONDS, MAX_TS_MS, MIN_TS_MS, epoch_unit

_PER_MS = {"s": (1_000, 1), "ms": (1, 1), "us": (1, 1_000), "ns": (1, 1_000_000)}  # unit -> (times, divided by)
_UNIT_NAMES = {"seconds": "s", "milliseconds": "ms", "microseconds": "us", "nanoseconds": "ns"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBER = re.compile(r"\s*-?\d+(\.\d*)?(e[+-]?\d+)?\s*", re.ASCII | re.IGNORECASE)
_NO_UNIT_DIGITS = 9  # a text with fewer digits is no number of milliseconds; 20231114 is a date

Reject = Callable[[int, RecordRejected], object]


class TimeReader:
    """Reads the times of one `[input]` table.

    Fractions of a millisecond are cut off from whole numbers and texts, and rounded where a number has a fraction.
    Of an hour that occurs twice in `time_zone`, the first is meant; one that does not exist counts as if the clocks
    had not been changed.
    """

    def __init__(self, config: InputConfig) -> None:
        self._path, self._unit, self._format = config.time, config.time_unit, config.time_format
        self._zone: tzinfo = UTC if config.time_zone == "UTC" else ZoneInfo(config.time_zone)

    def read(self, values: Sequence[Any], reject: Reject, *, unit: str | None = None) -> NDArray[np.int64]:
        """[rows] ms; 0 where the row is rejected. `unit`: of this column, whatever the table says."""
        unit = unit or self._unit
        kinds = set(map(type, values))
        found = None
        if kinds == {int} or kinds == {float}:
            found = _number_column(values, unit)
        elif kinds == {str} and not self._format:
            lengths = set(map(len, values))
            if max(lengths) <= 20 and all(map(str.isdecimal, values)):
                least = 1 if unit else _NO_UNIT_DIGITS
                found = _number_column(list(map(int, values)), unit) if min(lengths) >= least else None
            else:
                found = self._iso_column(values)
        if found is not None:
            return found
        found = np.zeros(len(values), dtype=np.int64)
        for row, value in enumerate(values):
            try:
                found[row] = self._one(value, unit)
            except RecordRejected as rejection:
                reject(row, rejection)
        return found

    def _iso_column(self, texts: Sequence[str]) -> NDArray[np.int64] | None:
        """[rows] ms, if all of them are ISO 8601, with dashes, and in range."""
        found = []
        try:
            for text in texts:
                if text[4:5] != "-":
                    return None
                found.append(self._ms(datetime.fromisoformat(text)))
        except (ValueError, OverflowError):
            return None
        ms = np.array(found, dtype=np.int64)
        return ms if not len(ms) or (ms.min() >= MIN_TS_MS and ms.max() <= MAX_TS_MS) else None

    def _one(self, value: Any, unit: str | None) -> int:
        if value is MISSING or value is None:
            raise RecordRejected(DeadLetterReason.MISSING_TIME, f"the record has no time at {self._path!r}")
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, datetime):
            return self._checked(value, str(value))
        if isinstance(value, str):
            number = None if self._format else _NUMBER.fullmatch(value)
            if number is None or (unit is None and sum(map(str.isdigit, value)) < _NO_UNIT_DIGITS):
                return self._text(value.strip())
            value = float(value) if number[1] or number[2] else int(value.strip()[:40])
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RecordRejected(
                DeadLetterReason.WRONG_TYPE, f"the time at {self._path!r} must be a number or a text, got {show(value)}"
            )
        return self._number(value, unit)

    def _number(self, value: float, unit: str | None) -> int:
        times, divided = _PER_MS[unit or "ms"]
        what = f"the time at {self._path!r} is {show(value)}"
        guess = None
        if value == value and abs(value) < 2**70:
            ms = value * times // divided if isinstance(value, int) else round(value * times / divided)
            in_seconds = unit is None and LOWEST_SECONDS <= ms <= HIGHEST_SECONDS
            if MIN_TS_MS <= ms <= MAX_TS_MS and not in_seconds:
                return int(ms)
            guess = epoch_unit(value, value)
        if guess:
            message = f'{what}, which seems to count {guess}: set time_unit = "{_UNIT_NAMES[guess]}"'
        else:
            message = f"{what}, outside of 1900..2200 as a number of {unit or 'ms'}"
        raise RecordRejected(DeadLetterReason.TIME_OUT_OF_RANGE, message)

    def _text(self, text: str) -> int:
        try:
            moment = datetime.strptime(text, self._format) if self._format else datetime.fromisoformat(text)
        except ValueError:
            wanted = f"of the form {self._format!r}" if self._format else "ISO 8601 (time_format names another form)"
            raise RecordRejected(
                DeadLetterReason.WRONG_TYPE, f"the time at {self._path!r} is {show(text)}, not {wanted}"
            ) from None
        return self._checked(moment, text)

    def _checked(self, moment: datetime, given: str) -> int:
        try:
            ms = self._ms(moment)
        except (OverflowError, ValueError):
            ms = MAX_TS_MS + 1
        if not MIN_TS_MS <= ms <= MAX_TS_MS:
            raise RecordRejected(
                DeadLetterReason.TIME_OUT_OF_RANGE,
                f"the time at {self._path!r} is {show(given)}, outside of 1900..2200",
            )
        return ms

    def _ms(self, moment: datetime) -> int:
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=self._zone)
        since = moment - _EPOCH
        return (since.days * 86_400 + since.seconds) * 1_000 + since.microseconds // 1_000


def _number_column(values: Sequence[Any], unit: str | None) -> NDArray[np.int64] | None:
    """[rows] ms, if all of the numbers, which are integers or floats, are times in range."""
    times, divided = _PER_MS[unit or "ms"]
    try:
        numbers = np.array(values)
    except OverflowError:
        return None
    low, high = numbers.min(), numbers.max()
    if numbers.dtype == object or not (-(2**62) // times < low <= high < 2**62 // times):  # false for NaN too
        return None
    if unit is None and low <= HIGHEST_SECONDS and high >= LOWEST_SECONDS:
        return None
    if numbers.dtype == np.float64:
        numbers = np.rint(numbers * times / divided).astype(np.int64)
    else:
        numbers = numbers.astype(np.int64) * times // divided
    return numbers if numbers.min() >= MIN_TS_MS and numbers.max() <= MAX_TS_MS else None
