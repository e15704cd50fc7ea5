"""Readings in, forecasts and dead letters out: the JSON on the wire.

Reading is strict and fast first (msgspec); only what that refuses gets a second, lenient look, which either finds
a reading after all (Python's json writes a bare NaN) or says in words what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import astuple
from numpy.typing import NDArray

from service.broker.base import Headers
from service.spec import ModelSpec, quantile_name
from service.timestamps import HIGHEST_SECONDS, LOWEST_SECONDS, MAX_TS_MS, MIN_TS_MS, parse_time

MAX_VALUE_BYTES = 1024 * 1024
MAX_KEY_BYTES = 1024
_Row = tuple[float | None, ...]  # ts in ms, then the features; None = missing


class DeadLetterReason(StrEnum):
    """Why a record became a dead letter. The set is closed: the same words label the metric."""

    NOT_JSON = "not_json"
    WRONG_TYPE = "wrong_type"
    MISSING_KEY = "missing_key"
    BAD_KEY = "bad_key"
    MISSING_TIME = "missing_time"
    TIME_OUT_OF_RANGE = "time_out_of_range"
    VALUE_OUT_OF_RANGE = "value_out_of_range"
    SCHEMA_REGISTRY_FRAMING = "schema_registry_framing"
    TOO_LARGE = "too_large"
    LATE = "late"
    DUPLICATE = "duplicate"
    NON_FINITE_STATE = "non_finite_state"


class Refused(Exception):
    """A record that is not a reading: the reason, and a sentence for the person who sent it."""

    def __init__(self, reason: DeadLetterReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(slots=True)
class Readings:
    """Values of records as columns, one row for each record, also for those that hold no reading."""

    ts: NDArray[np.int64]  # [records] ms, 0 without a reading
    x: NDArray[np.float32]  # [records, features], NaN = missing, all NaN without a reading
    refused: dict[int, Refused] = field(default_factory=dict)  # record -> why it holds no reading


def check_key(key: bytes | None) -> None:
    """A series' name is UTF-8, not empty, at most 1 KiB.

    Raises:
        Refused: it is not.
    """
    if key is None:
        raise Refused(DeadLetterReason.MISSING_KEY, "the record has no key; the key names the series")
    if not 1 <= len(key) <= MAX_KEY_BYTES:
        raise Refused(DeadLetterReason.BAD_KEY, f"the key has {len(key)} bytes; it must have 1 to {MAX_KEY_BYTES}")
    try:
        key.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(DeadLetterReason.BAD_KEY, f"the key is not UTF-8: {error.reason}") from None


class ReadingDecoder:
    """Decodes the values of records for a model with these features; fields of other names are ignored."""

    def __init__(self, features: Sequence[str]) -> None:
        self._features = tuple(features)
        self._nothing: _Row = (0.0, *[None] * len(features))
        fields: list[Any] = [("ts", int | float | str | None, None)]
        fields += [(f"f{i}", float | None, None) for i in range(len(features))]
        names = {f"f{i}": name for i, name in enumerate(features)}
        try:
            reading = msgspec.defstruct("Reading", fields, rename=names)
            self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(reading).decode
        except ValueError:  # msgspec has no field names with quotes, backslashes or control characters
            self._decode = json.loads  # a dict is no Struct: every value gets the second look

    def decode(self, values: Sequence[bytes | None]) -> Readings:
        """The values as columns. Never raises, whatever the bytes; None (a tombstone) gives an empty row."""
        rows: list[_Row] = []
        refused: dict[int, Refused] = {}
        decode = self._decode
        for record, value in enumerate(values):
            if value is None:
                rows.append(self._nothing)
                continue
            try:
                if len(value) > MAX_VALUE_BYTES:
                    raise Refused(DeadLetterReason.TOO_LARGE, f"the value has {len(value)} bytes, more than 1 MiB")
                try:
                    row = astuple(decode(value))
                    usual = type(row[0]) is int and (
                        HIGHEST_SECONDS < row[0] <= MAX_TS_MS or MIN_TS_MS <= row[0] < LOWEST_SECONDS
                    )
                except (ValueError, TypeError, RecursionError):  # msgspec's own errors are ValueErrors
                    usual = False
                rows.append(row if usual else self._second_look(value))
            except Refused as refusal:
                refused[record] = refusal
                rows.append(self._nothing)
        return self._columns(rows, refused)

    def _columns(self, rows: list[_Row], refused: dict[int, Refused]) -> Readings:
        table = np.array(rows, dtype=np.float64).reshape(len(rows), 1 + len(self._features))  # None -> NaN
        with np.errstate(over="ignore"):
            x = table[:, 1:].astype(np.float32)
        for record, column in np.argwhere(np.isinf(x)).tolist():
            got = table[record, 1 + column]
            message = f"{self._features[column]!r} is {got:g}, beyond what a 32-bit float holds"
            refused.setdefault(record, Refused(DeadLetterReason.VALUE_OUT_OF_RANGE, message))
        # Whole milliseconds between 1900 and 2200 are exact in a float64.
        return Readings(table[:, 0].astype(np.int64), x, refused)

    def _second_look(self, value: bytes) -> _Row:
        """The row of a value that is unusual or wrong."""
        if len(value) >= 5 and value[0] == 0:
            raise Refused(
                DeadLetterReason.SCHEMA_REGISTRY_FRAMING,
                f"the value starts like a schema registry's (schema {int.from_bytes(value[1:5])}); send plain JSON",
            )
        try:
            found = json.loads(value.decode("utf-8"), parse_int=float)
        except RecursionError:
            raise Refused(DeadLetterReason.NOT_JSON, "the value is JSON nested too deeply") from None
        except ValueError as error:
            raise Refused(DeadLetterReason.NOT_JSON, f"the value is not JSON: {_short(error)}") from None
        if not isinstance(found, dict):
            raise Refused(DeadLetterReason.WRONG_TYPE, f"the value is no JSON object but {_short(found)}")
        return (_time(found.get("ts")), *[_number(name, found.get(name)) for name in self._features])


def _time(ts: object) -> int:
    """Epoch ms from a number or a text."""
    if ts is None or ts != ts:  # NaN
        raise Refused(DeadLetterReason.MISSING_TIME, 'the reading has no "ts"')
    bare = isinstance(ts, float) or (isinstance(ts, str) and _is_number(ts))
    if bare and LOWEST_SECONDS <= float(ts) <= HIGHEST_SECONDS:  # type: ignore[arg-type]
        message = f'"ts" is {_short(ts)}, which counts seconds since 1970; it must be epoch milliseconds or ISO 8601'
        raise Refused(DeadLetterReason.TIME_OUT_OF_RANGE, message)
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
            raise Refused(DeadLetterReason.TIME_OUT_OF_RANGE, message) from None
    message = f'"ts" must be whole epoch milliseconds or ISO 8601, got {_short(ts)}'
    raise Refused(DeadLetterReason.WRONG_TYPE, message)


def _names_a_time(text: str) -> bool:
    """True where the text is a time, though not one in range."""
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
    raise Refused(DeadLetterReason.WRONG_TYPE, f"{name!r} must be a number or null, got {_short(value)}")


def _short(value: object) -> str:
    text = str(value) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class ForecastEncoder:
    """Writes the forecasts of one model."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._quantiles = [quantile_name(q) for q in spec.quantiles]
        self._diagnostics = [diagnostic.name for diagnostic in spec.diagnostics]
        self._encode = msgspec.json.Encoder().encode

    def encode(
        self,
        ts: NDArray[np.int64],
        warm: NDArray[np.bool_],
        y: NDArray[np.float32],
        score: NDArray[np.float32],
    ) -> list[bytes]:
        """The values of forecast records.

        Args:
            ts: [forecasts] ms, of the readings.
            warm: [forecasts].
            y: [forecasts, horizon, targets, quantiles] (a classifier's: [forecasts, classes]), finite.
            score: [forecasts, diagnostics]; what is not finite is left out.
        """
        step_ms, model = self._spec.step_ms, self._spec.id
        kind, answers = self._answers(y)
        scores = [
            {name: value for name, value in zip(self._diagnostics, row, strict=True) if value is not None}
            for row in _none_if_not_finite(score)
        ]
        return [
            self._encode({"ts": t, "step_ms": step_ms, "model": model, "warm": w, kind: answer, "score": scored})
            for t, w, answer, scored in zip(ts.tolist(), warm.tolist(), answers, scores, strict=True)
        ]

    def _answers(self, y: NDArray[np.float32]) -> tuple[str, list[dict[str, Any]]]:
        spec, quantiles = self._spec, self._quantiles
        if spec.kind == "classifier":
            return "classes", [dict(zip(spec.classes, row, strict=True)) for row in short_floats(y).tolist()]
        rows = short_floats(y.transpose(0, 2, 3, 1)).tolist()  # [forecasts, targets, quantiles, horizon]
        return "targets", [
            {name: dict(zip(quantiles, bands, strict=True)) for name, bands in zip(spec.targets, row, strict=True)}
            for row in rows
        ]


def short_floats(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of the doubles that become `values` again as float32, those with the fewest digits.

    JSON writers print doubles: a float32 widened as it is would print 17 digits, most of them noise. Rounds to
    6, 7, 8, then 9 significant digits, which always suffice, until nothing is lost. Not finite values stay.
    """
    flat = np.ascontiguousarray(values).ravel()
    wide = flat.astype(np.float64)
    short = wide.copy()
    # Powers of ten are exact up to 22: beyond, and at 0, the decimal text of numpy is the (slow) way.
    size = np.abs(wide)
    usual = (size >= 1e-12) & (size < 1e20)
    for index in np.flatnonzero(~usual & np.isfinite(wide) & (size > 0)).tolist():
        short[index] = float(str(flat[index]))
    todo = np.flatnonzero(usual)
    exponent = np.floor(np.log10(size[todo])).astype(np.int64)
    for digits in (6, 7, 8, 9):
        if not len(todo):
            break
        shift = digits - 1 - exponent
        up, down = _POWERS[np.clip(shift, 0, 22)], _POWERS[np.clip(-shift, 0, 22)]
        short[todo] = np.rint(wide[todo] * up / down) / up * down
        lossy = short[todo].astype(np.float32) != flat[todo]
        todo, exponent = todo[lossy], exponent[lossy]
    short[todo] = wide[todo]
    return short.reshape(values.shape)


_POWERS = np.array([10.0**n for n in range(23)])


def _none_if_not_finite(values: NDArray[np.float32]) -> list[list[float | None]]:
    rows = short_floats(values)
    finite = np.isfinite(rows)
    if finite.all():
        return rows.tolist()  # type: ignore[no-any-return]
    return np.where(finite, rows, np.array(None)).tolist()  # type: ignore[no-any-return]


def dead_letter_headers(
    refusal: Refused, headers: Headers, *, topic: str, partition: int, offset: int, group: str
) -> Headers:
    """The record's own headers, then why and where it was refused."""
    return [
        *headers,
        ("tidecast.reason", refusal.reason.encode()),
        ("tidecast.message", refusal.message.encode("utf-8", "backslashreplace")),
        ("tidecast.topic", topic.encode()),
        ("tidecast.partition", str(partition).encode()),
        ("tidecast.offset", str(offset).encode()),
        ("tidecast.group", group.encode()),
    ]


def forecast_headers(headers: Headers, source: str) -> Headers:
    """What a forecast carries: its type, the reading that it answers, and that reading's trace."""
    own = [("content-type", b"application/json"), ("source", source.encode())]
    if headers:
        own += [(name, value) for name, value in headers if name == "traceparent"]
    return own
