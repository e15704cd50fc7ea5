"""Readings from JSON, a batch at a time.

A strict and fast decoder (msgspec) comes first. What it refuses goes to a lenient one, which either finds a reading
(Python's json writes a bare NaN) or says in words what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidecast.service.input.rejected import DeadLetterReason, RecordRejected
from tidecast.service.timestamps import HIGHEST_SECONDS, LOWEST_SECONDS, MAX_TS_MS, MIN_TS_MS, parse_time

MAX_VALUE_BYTES = 1024 * 1024
LARGEST = float(np.finfo(np.float32).max)
_Row = tuple[float | None, ...]  # ts in ms, then the features; None = missing


@dataclass(slots=True)
class DecodedReadings:
    """The values of records as columns, with a row for each record, valid or not."""

    ts: NDArray[np.int64]  # [records] ms, 0 without a reading
    x: NDArray[np.float32]  # [records, features], NaN = missing, all NaN without a reading
    rejected: dict[int, RecordRejected] = field(default_factory=dict)  # record -> why it is not a valid reading
    tombstones: list[int] = field(default_factory=list)  # records without a value
    # [records, features] which values the record has, a null too: of readings that may be parts; None = not looked at
    given: NDArray[np.bool_] | None = None


class ReadingDecoder:
    """Decodes the values of records for a model with these features; other fields are ignored."""

    def __init__(self, features: Sequence[str]) -> None:
        self._features = tuple(features)
        self._fields = [f"f{i}" for i in range(len(features))]
        fields: list[Any] = [("ts", Annotated[int, msgspec.Meta(ge=MIN_TS_MS, le=MAX_TS_MS)])]
        fields += [(name, float | None, None) for name in self._fields]
        try:
            # gc=False: the garbage collector need not visit these objects, one for each reading.
            self._reading: type[Any] = msgspec.defstruct(
                "Reading", fields, rename=dict(zip(self._fields, features, strict=True)), gc=False
            )
            self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(self._reading).decode
        except ValueError:  # msgspec does not allow quotes, backslashes or control characters in field names
            self._reading = msgspec.defstruct("Reading", fields, gc=False)
            self._decode = _reject  # every value is decoded leniently
        self._nothing = self._reading(0)

    def decode(self, values: Sequence[bytes | None]) -> DecodedReadings:
        """The values as columns. Never raises, whatever the bytes; None (a tombstone) gives an empty row."""
        rows: list[Any] = []
        rejected: dict[int, RecordRejected] = {}
        tombstones: list[int] = []
        to_read = iter(values)
        if max(map(len, filter(None, values)), default=0) > MAX_VALUE_BYTES:
            to_read = iter([None if value and len(value) > MAX_VALUE_BYTES else value for value in values])
        while len(rows) < len(values):
            try:
                rows.extend(map(self._decode, to_read))  # type: ignore[arg-type]
            except (ValueError, TypeError, RecursionError):  # msgspec's own errors are ValueErrors
                # The rows before this one are kept. Only the lenient decoder can say what is unusual about it.
                record = len(rows)
                value = values[record]
                if value is None:
                    tombstones.append(record)
                rows.append(self._nothing if value is None else self._decode_leniently(value, record, rejected))
        ts = np.fromiter(map(attrgetter("ts"), rows), dtype=np.int64, count=len(rows))
        for record in ((ts >= LOWEST_SECONDS) & (ts <= HIGHEST_SECONDS)).nonzero()[0].tolist():
            value = values[record]
            assert value is not None
            rows[record] = self._decode_leniently(value, record, rejected)
            ts[record] = rows[record].ts
        x = self._features_of(rows, rejected)
        if np.isnan(x[:, 0]).any():  # otherwise no reading lacks all features
            for record in np.flatnonzero(np.isnan(x).all(axis=1)).tolist():
                self._check_features(values[record], record, rejected)
        return DecodedReadings(ts, x, rejected, tombstones)

    def _check_features(self, value: bytes | None, record: int, rejected: dict[int, RecordRejected]) -> None:
        """Reject a reading that has none of the model's features. A null is a missing value."""
        if value is None or record in rejected:
            return
        try:
            found = msgspec.json.decode(value, type=dict[str, msgspec.Raw])
        except ValueError:  # a bare NaN
            found = json.loads(value)
        if not any(name in found for name in self._features):
            wanted, given = (_short(", ".join(sorted(names)), quote=False) for names in (self._features, found))
            message = f"the reading has none of the model's features ({wanted}), only: {given}"
            rejected[record] = RecordRejected(DeadLetterReason.NO_FEATURES, message)

    def _features_of(self, rows: Sequence[Any], rejected: dict[int, RecordRejected]) -> NDArray[np.float32]:
        """[records, features]; values outside the range of float32 are rejected."""
        wide = np.empty((len(rows), len(self._fields)), dtype=np.float64)
        for column, name in enumerate(self._fields):
            wide[:, column] = np.fromiter(map(attrgetter(name), rows), dtype=np.float64, count=len(rows))  # None: NaN
        return narrow(wide, self._features, rejected)

    def _decode_leniently(self, value: bytes, record: int, rejected: dict[int, RecordRejected]) -> Any:
        """The row of a value that the strict decoder refused."""
        try:
            return self._reading(*self._parse_leniently(value))
        except RecordRejected as rejection:
            rejected[record] = rejection
            return self._nothing

    def _parse_leniently(self, value: bytes) -> _Row:
        """Decode a value with Python's json module.

        Raises:
            RecordRejected: it is not a valid reading.
        """
        if len(value) > MAX_VALUE_BYTES:
            raise RecordRejected(DeadLetterReason.TOO_LARGE, f"the value has {len(value)} bytes, more than 1 MiB")
        if len(value) >= 5 and value[0] == 0:
            raise RecordRejected(
                DeadLetterReason.SCHEMA_REGISTRY_FRAMING,
                f"the value starts like a schema registry's (schema {int.from_bytes(value[1:5])}); --input with "
                'format = "avro", "json-schema" or "protobuf" reads it',
            )
        try:
            found = json.loads(value.decode("utf-8"), parse_int=float)
        except RecursionError:
            raise RecordRejected(DeadLetterReason.NOT_JSON, "the value is JSON nested too deeply") from None
        except ValueError as error:
            raise RecordRejected(DeadLetterReason.NOT_JSON, f"the value is not JSON: {_short(error)}") from None
        if not isinstance(found, dict):
            raise RecordRejected(DeadLetterReason.WRONG_TYPE, f"the value is not a JSON object but {_short(found)}")
        return (_time(found.get("ts")), *[_number(name, found.get(name)) for name in self._features])


def narrow(
    wide: NDArray[np.float64], features: Sequence[str], rejected: dict[int, RecordRejected]
) -> NDArray[np.float32]:
    """[rows, features]; values outside the range of float32 are rejected."""
    if not np.count_nonzero(np.abs(wide) > LARGEST):  # nearly all batches
        return wide.astype(np.float32)
    with np.errstate(over="ignore"):
        x = wide.astype(np.float32)
    for row, column in np.argwhere(np.isinf(x)).tolist():
        message = f"{features[column]!r} is {wide[row, column]:g}, beyond what a 32-bit float holds"
        rejected.setdefault(row, RecordRejected(DeadLetterReason.VALUE_OUT_OF_RANGE, message))
    return x


def _time(ts: object) -> int:
    """Epoch ms from a number or a text."""
    if ts is None or ts != ts:  # NaN
        raise RecordRejected(DeadLetterReason.MISSING_TIME, 'the reading has no "ts"')
    bare = isinstance(ts, float) or (isinstance(ts, str) and _is_number(ts))
    if bare and LOWEST_SECONDS <= float(ts) <= HIGHEST_SECONDS:  # type: ignore[arg-type]
        message = f'"ts" is {_short(ts)}, which counts seconds since 1970; it must be epoch milliseconds or ISO 8601'
        raise RecordRejected(DeadLetterReason.TIME_OUT_OF_RANGE, message)
    try:
        if isinstance(ts, str):
            return parse_time(ts)
        if isinstance(ts, float) and (ts.is_integer() or abs(ts) == float("inf")):
            if MIN_TS_MS <= ts <= MAX_TS_MS:
                return int(ts)
            raise OverflowError
    except (ValueError, OverflowError):
        if not isinstance(ts, str) or _names_a_time(ts):
            message = f'"ts" is {_short(ts)}, outside of 1900..2200; it must be epoch milliseconds or ISO 8601'
            raise RecordRejected(DeadLetterReason.TIME_OUT_OF_RANGE, message) from None
    message = f'"ts" must be whole epoch milliseconds or ISO 8601, got {_short(ts)}'
    raise RecordRejected(DeadLetterReason.WRONG_TYPE, message)


def _names_a_time(text: str) -> bool:
    """True where the text is a time, in range or not."""
    if _is_number(text):
        return True
    try:
        datetime.fromisoformat(text.strip())
    except ValueError:
        return False
    return True


def _is_number(text: str) -> bool:
    digits = text.strip().removeprefix("-")
    return digits.isdecimal() and len(digits) >= 5


def _number(name: str, value: object) -> float | None:
    if value is None or isinstance(value, float):  # json reads every number as a float here
        return value
    raise RecordRejected(DeadLetterReason.WRONG_TYPE, f"{name!r} must be a number or null, got {_short(value)}")


def _short(value: object, *, quote: bool = True) -> str:
    text = repr(value) if quote and not isinstance(value, Exception) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _reject(value: bytes) -> Any:
    raise ValueError
