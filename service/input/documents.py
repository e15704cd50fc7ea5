"""The values of records as documents: dicts, lists, texts and numbers, whatever format they come in."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from tidecast.service.errors import TidecastError
from tidecast.service.input.canonical import MAX_VALUE_BYTES
from tidecast.service.input.config import InputConfig
from tidecast.service.input.rejected import DeadLetterReason, RecordRejected


@dataclass(slots=True)
class Documents:
    """What was read. A record of CSV or line protocol may hold several lines, each a document."""

    items: list[Any] = field(default_factory=list)
    records: list[int] = field(default_factory=list)  # [items] whose each is
    rejected: dict[int, RecordRejected] = field(default_factory=dict)  # record -> why it has none
    tombstones: list[int] = field(default_factory=list)  # records without a value


class Format(Protocol):
    """One format. For one thread."""

    def prepare(self, values: Sequence[bytes | None]) -> None:
        """Fetch what is needed to read these values, where that is not here yet.

        Raises:
            InputUnavailable: what has it does not answer; a later try may succeed.
        """

    def read(self, value: bytes) -> Iterable[Any]:
        """The documents of one record. Does no I/O.

        Raises:
            RecordRejected: it has none.
        """


class Json:
    """One document for each record, or one for each line."""

    def __init__(self) -> None:
        decoder = msgspec.json.Decoder()
        self._decode, self._decode_lines = decoder.decode, decoder.decode_lines

    def prepare(self, values: Sequence[bytes | None]) -> None:
        """Needs nothing."""

    def decode_all(self, values: Sequence[Any]) -> list[Any]:
        """The documents of as many records; raises a ValueError, TypeError or RecursionError if one is unusual."""
        return list(map(self._decode, values))

    def read(self, value: bytes) -> Iterable[Any]:
        """One document, or one for each line, if each is an object; a bare NaN, as Python writes it, is read too."""
        try:
            return [self._decode(value)]
        except (ValueError, RecursionError) as error:
            first = str(error)
        try:
            return [json.loads(value)]
        except (ValueError, RecursionError):
            pass
        try:
            lines = self._decode_lines(value)
            if lines and all(isinstance(line, dict) for line in lines):
                return lines
        except (ValueError, RecursionError):
            pass
        if not value.strip():
            raise RecordRejected(DeadLetterReason.NOT_JSON, "the value is empty")
        if len(value) >= 5 and value[0] == 0:
            raise RecordRejected(
                DeadLetterReason.SCHEMA_REGISTRY_FRAMING,
                f"the value starts like a schema registry's (schema {int.from_bytes(value[1:5])}), but format is json; "
                'set format = "avro", "json-schema" or "protobuf"',
            )
        if any(byte < 32 and byte not in b"\t\r\n" for byte in value[:256]):
            raise RecordRejected(
                DeadLetterReason.NOT_JSON, 'the value is binary, not JSON; format = "avro" or "protobuf" may read it'
            )
        raise RecordRejected(DeadLetterReason.NOT_JSON, f"the value is not JSON: {first[:80]}")


class CsvLines:
    """Lines of columns: each line is a document with the columns' names."""

    def __init__(self, columns: Sequence[str], delimiter: str) -> None:
        self._columns, self._delimiter = tuple(columns), delimiter

    def prepare(self, values: Sequence[bytes | None]) -> None:
        """Needs nothing."""

    def read(self, value: bytes) -> Iterable[Any]:
        """A document for each line that is not empty and not the header."""
        try:
            text = io.StringIO(value.decode("utf-8-sig"), newline="")
            lines = list(csv.reader(text, delimiter=self._delimiter, strict=True))
        except (UnicodeDecodeError, csv.Error) as error:
            raise RecordRejected(DeadLetterReason.BAD_FORMAT, f"the value is not CSV: {error}") from None
        documents = []
        for cells in lines:
            cells = [cell.strip() for cell in cells]
            if not any(cells) or tuple(cells) == self._columns:
                continue
            if len(cells) != len(self._columns):
                raise RecordRejected(
                    DeadLetterReason.BAD_FORMAT,
                    f"a line has {len(cells)} columns, but [input] names {len(self._columns)} "
                    f"({', '.join(self._columns)[:80]})",
                )
            documents.append(dict(zip(self._columns, cells, strict=True)))
        return documents


class InfluxLines:
    """InfluxDB's line protocol: a line is a document of `measurement`, `tags`, `fields` and, if it has one, `time`."""

    def __init__(self) -> None:
        try:
            from line_protocol_parser import LineFormatError, parse_line
        except ModuleNotFoundError:
            raise missing_package("influx", "line-protocol-parser") from None
        self._parse, self._error = parse_line, LineFormatError

    def prepare(self, values: Sequence[bytes | None]) -> None:
        """Needs nothing."""

    def read(self, value: bytes) -> Iterable[Any]:
        """A document for each line that is neither empty nor a comment."""
        documents = []
        try:
            for line in value.decode("utf-8").split("\n"):
                if line.strip() and not line.lstrip().startswith("#"):
                    documents.append(self._parse(line.strip()))
        except (UnicodeDecodeError, self._error) as error:
            raise RecordRejected(DeadLetterReason.BAD_FORMAT, f"the value is not line protocol: {error}") from None
        return documents


def missing_package(format_name: str, package: str) -> TidecastError:
    """A package of the extra `formats` is not installed."""
    return TidecastError(f"format {format_name} needs {package}", do="Run: pip install 'tidecast[formats]'")


def format_of(config: InputConfig) -> Format:
    """The format that the table names.

    Raises:
        TidecastError: it needs a package that is not installed, or its schema cannot be read.
    """
    if config.format == "json":
        return Json()
    if config.format == "csv":
        return CsvLines(config.columns, config.delimiter)
    if config.format == "influx":
        return InfluxLines()
    from tidecast.service.input.schemas import schema_format  # which needs this module

    return schema_format(config)


def read_documents(values: Sequence[bytes | None], reader: Format) -> Documents:
    """The documents of all records. Never raises, whatever the bytes."""
    found = Documents()
    if decode_all := getattr(reader, "decode_all", None):  # of a format with one document for each record
        try:
            if len(max(values, key=len)) <= MAX_VALUE_BYTES:  # type: ignore[arg-type]
                found.items = decode_all(values)
                found.records = list(range(len(values)))
                return found
        except (ValueError, TypeError, RecursionError, RecordRejected):
            pass  # one record is unusual: one after the other
        found.items = []
    for record, value in enumerate(values):
        if value is None:
            found.tombstones.append(record)
            continue
        try:
            if len(value) > MAX_VALUE_BYTES:
                raise RecordRejected(DeadLetterReason.TOO_LARGE, f"the value has {len(value)} bytes, more than 1 MiB")
            for item in reader.read(value):
                found.items.append(item)
                found.records.append(record)
        except RecordRejected as rejection:
            found.rejected[record] = rejection
    return found
