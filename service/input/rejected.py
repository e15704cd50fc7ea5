"""Why a record is not a reading."""

from __future__ import annotations

from enum import StrEnum
from itertools import islice
from typing import Any

MAX_KEY_BYTES = 1024


class DeadLetterReason(StrEnum):
    """Why a record became a dead letter. The set is closed: the same words label the metric."""

    NOT_JSON = "not_json"
    BAD_FORMAT = "bad_format"
    UNKNOWN_SCHEMA = "unknown_schema"
    WRONG_TYPE = "wrong_type"
    MISSING_KEY = "missing_key"
    BAD_KEY = "bad_key"
    OTHER_PARTITION = "other_partition"
    MISSING_TIME = "missing_time"
    TIME_OUT_OF_RANGE = "time_out_of_range"
    VALUE_OUT_OF_RANGE = "value_out_of_range"
    NO_FEATURES = "no_features"
    SCHEMA_REGISTRY_FRAMING = "schema_registry_framing"
    TOO_LARGE = "too_large"
    LATE = "late"
    DUPLICATE = "duplicate"
    NON_FINITE_STATE = "non_finite_state"


class RecordRejected(Exception):
    """A record is not a valid reading: the reason, and a sentence for the person who sent it."""

    def __init__(self, reason: DeadLetterReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def check_key(key: bytes | None) -> None:
    """Check that a key can name a series: UTF-8, not empty, at most 1 KiB.

    Raises:
        RecordRejected: it cannot.
    """
    if key is None:
        raise RecordRejected(DeadLetterReason.MISSING_KEY, "the record has no key; the key names the series")
    if not 1 <= len(key) <= MAX_KEY_BYTES:
        raise RecordRejected(
            DeadLetterReason.BAD_KEY, f"the key has {len(key)} bytes; it must have 1 to {MAX_KEY_BYTES}"
        )
    try:
        key.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordRejected(DeadLetterReason.BAD_KEY, f"the key is not UTF-8: {error.reason}") from None


def show(value: Any, most: int = 80) -> str:
    """A value as a sentence about it names it: short, and without what is nested in it."""
    if isinstance(value, dict):
        return f"a map with {names(value, most - 11)}" if value else "an empty map"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def names(given: Any, most: int = 80) -> str:
    """The names in a map, sorted; of a large one, those of its beginning."""
    text = ", ".join(sorted(map(str, islice(given, 100))))
    return text if len(text) <= most else f"{text[: most - 3]}..."
