"""Event times and step lengths in milliseconds (UTC), and the text forms that people write."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from tidecast.service.errors import UsageError

# 1900-01-01 .. 2200-01-01: a number outside this range is not epoch milliseconds.
MIN_TS_MS = -2_208_988_800_000
MAX_TS_MS = 7_258_118_400_000
NEVER = MIN_TS_MS - 1  # the last ts of a series without a reading: earlier than any other

# Units of epoch times, in ms. A number counts as a time only within 1990..2100.
EPOCH_UNITS_MS = {"seconds": 1_000.0, "milliseconds": 1.0, "microseconds": 1e-3, "nanoseconds": 1e-6}
_PLAUSIBLE_MS = (631_152_000_000, 4_102_444_800_000)

# As milliseconds these would be in January or February 1970, so a number in this range is in seconds.
LOWEST_SECONDS, HIGHEST_SECONDS = _PLAUSIBLE_MS[0] // 1_000, _PLAUSIBLE_MS[1] // 1_000

_UNIT_MS = {"ms": 1, "s": 1_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_EPOCH = re.compile(r"(-?\d{5,})(?:\.0*)?")  # a whole number, perhaps written as a float
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|h|d|w)")


def parse_time(value: str | int) -> int:
    """Epoch milliseconds (UTC) of an ISO 8601 text or of a number of epoch ms; text without a zone is UTC.

    Raises:
        ValueError: the text is not ISO 8601, or the time is outside 1900..2200.
    """
    if isinstance(value, str):
        text = value.strip()
        if number := _EPOCH.fullmatch(text):
            ms = int(number[1])
        else:
            moment = datetime.fromisoformat(text)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)
            whole = moment.replace(microsecond=0).timestamp()
            ms = int(whole) * 1_000 + moment.microsecond // 1_000
    else:
        ms = value
    if not MIN_TS_MS <= ms <= MAX_TS_MS:
        raise ValueError(f"time {value!r} lies outside 1900..2200; it must be epoch milliseconds or ISO 8601")
    return ms


def epoch_unit(lowest: float, highest: float) -> str | None:
    """The unit in which both numbers are epoch times of 1990..2100; None if there is none."""
    for unit, ms in EPOCH_UNITS_MS.items():
        if lowest * ms >= _PLAUSIBLE_MS[0] and highest * ms <= _PLAUSIBLE_MS[1]:
            return unit
    return None


def format_time(ms: int) -> str:
    """ISO 8601 in UTC with a `Z`, with milliseconds only if they are not zero."""
    moment = datetime.fromtimestamp(ms // 1_000, UTC)
    text = moment.strftime("%Y-%m-%dT%H:%M:%S")
    rest = ms % 1_000
    return f"{text}.{rest:03d}Z" if rest else f"{text}Z"


def parse_duration_ms(text: str) -> int:
    """Milliseconds of "30min", "1h", "7d", "500ms"; "0" is 0.

    Raises:
        UsageError: not a number followed by ms, s, min, h, d or w.
    """
    stripped = text.strip()
    if stripped == "0":
        return 0
    match = _DURATION.fullmatch(stripped)
    if match is None:
        raise UsageError("a duration is a number and a unit", got=text, do='Write it like "30min", "1h", "7d" or "0".')
    return round(float(match[1]) * _UNIT_MS[match[2]])


def format_duration(ms: int) -> str:
    """The shortest form that `parse_duration_ms` reads back: 1800000 -> "30min"."""
    if ms == 0:
        return "0"
    unit = next(u for u in reversed(list(_UNIT_MS)) if ms % _UNIT_MS[u] == 0)
    return f"{ms // _UNIT_MS[unit]}{unit}"


def missing_steps(ts: NDArray[np.int64], previous: NDArray[np.int64], step_ms: int) -> NDArray[np.int64]:
    """[readings] how many steps are missing between the previous reading of a series and each reading.

    round((ts - previous) / step) - 1, at least 0. No steps are missing before the first reading of a series, or for a
    model without a fixed step.
    """
    if step_ms <= 0:
        return np.zeros(len(ts), dtype=np.int64)
    steps_on = (2 * (ts - previous) + step_ms) // (2 * step_ms)  # rounded, in integers
    return np.maximum(np.where(previous > NEVER, steps_on - 1, 0), 0)
