"""Why a record is rejected, and the headers of forecasts and dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from tidecast.service.broker.port import Headers, OutgoingBatch

MAX_KEY_BYTES = 1024
_RECORD_BYTES = 200  # of a batch with one record, and of the header that a cut adds
TRACE_HEADERS = ("traceparent", "tracestate")  # W3C Trace Context; the second has no meaning without the first


class DeadLetterReason(StrEnum):
    """Why a record became a dead letter. The set is closed: the same words label the metric."""

    NOT_JSON = "not_json"
    WRONG_TYPE = "wrong_type"
    MISSING_KEY = "missing_key"
    BAD_KEY = "bad_key"
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


def dead_letter_headers(
    rejection: RecordRejected, headers: Headers, *, topic: str, partition: int, offset: int, group: str
) -> Headers:
    """The record's own headers, then why and where it was rejected."""
    return [
        *headers,
        ("tidecast.reason", rejection.reason.encode()),
        ("tidecast.message", rejection.message.encode("utf-8", "backslashreplace")),
        ("tidecast.topic", topic.encode()),
        ("tidecast.partition", str(partition).encode()),
        ("tidecast.offset", str(offset).encode()),
        ("tidecast.group", group.encode()),
    ]


def cut_to_fit(dead_letters: OutgoingBatch, limit: int) -> int:
    """Shorten keys and values so that no dead letter has more than `limit` bytes; how many were cut.

    A header of each that was cut has its original size: a small compressed record may be large once it is unpacked.
    """
    cut = 0
    for row, (key, value) in enumerate(zip(dead_letters.keys, dead_letters.values, strict=True)):
        headers = dead_letters.headers[row]
        room = limit - _RECORD_BYTES - sum(len(name) + len(text) + 10 for name, text in headers)
        size = len(key or b"") + len(value or b"")
        if size <= room:
            continue
        if room < 0:  # the headers alone are too large: ours are kept
            headers = [header for header in headers if header[0].startswith("tidecast.")]
            room = limit - _RECORD_BYTES - sum(len(name) + len(text) + 10 for name, text in headers)
        cut += 1
        dead_letters.headers[row] = [*headers, ("tidecast.original_bytes", str(size).encode())]
        dead_letters.keys[row] = key if key is None else key[: max(room, 0)]
        left = max(room - len(dead_letters.keys[row] or b""), 0)
        dead_letters.values[row] = value if value is None else value[:left]
    return cut


def forecast_headers(headers: Sequence[Headers]) -> list[Headers]:
    """The headers of forecasts: those of the reading's trace, and no others.

    Each header costs as much time as a step of the model, in the client and again in the broker.
    """
    if not any(headers):
        return [()] * len(headers)
    return [tuple(header for header in theirs if header[0] in TRACE_HEADERS) for theirs in headers]
