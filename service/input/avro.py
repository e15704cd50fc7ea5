"""Avro: a schema compiled to what reads a record's bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from tidecast.service.errors import UsageError
from tidecast.service.input.documents import missing_package
from tidecast.service.input.registry import RegisteredSchema
from tidecast.service.input.rejected import DeadLetterReason, RecordRejected

Reader = Callable[[bytes, int], Any]  # a value, and where in it the record begins -> its document

_MARK = b"\xc3\x01"  # of the single-object encoding, before the schema's fingerprint of 8 bytes
_MS = "tidecast-ms"  # in the place of a logical type whose times are to be read as ms
_PER_MS = {"timestamp-micros": 1_000, "timestamp-nanos": 1_000_000}


class AvroCompiler:
    """Makes readers of schemas.

    Args:
        as_ms: times of the types timestamp-millis, -micros and -nanos are read as epoch ms, which is faster than
            datetimes.

    Raises:
        TidecastError: the library for it is not installed.
    """

    def __init__(self, *, as_ms: bool) -> None:
        try:
            import fastavro
            import fastavro.schema
        except ModuleNotFoundError:
            raise missing_package("avro", "fastavro") from None
        self._library, self._as_ms = fastavro, as_ms
        for name, per_ms in _PER_MS.items():  # the library's way to add types: for the whole process, so under our name
            fastavro.read.LOGICAL_READERS[f"long-{_MS}-{name}"] = _divide_by(per_ms)

    def compile(self, schema: RegisteredSchema) -> Reader:
        """What reads records of this schema: with the names of its writer, and nothing filled in.

        Raises:
            ValueError: it is no schema that can be used.
        """
        try:
            return self._compile([json.loads(each.text) for each in _in_order(schema, [])])
        except Exception as error:  # the library's errors have nothing in common
            raise ValueError(f"it is no Avro schema that can be used: {str(error)[:150]}") from error

    def read_file(self, file: str) -> Reader:
        """What reads records of the schema in an .avsc file, with or without the mark of a single-object encoding.

        Raises:
            UsageError: the file cannot be read, or is no schema that can be used.
        """
        schemas = self._library.schema
        try:
            schema = json.loads(Path(file).read_bytes())
            reader = self._compile([schema])
            canonical = schemas.to_parsing_canonical_form(_simplified(schema, as_ms=True))
            head = _MARK + bytes.fromhex(schemas.fingerprint(canonical, "CRC-64-AVRO"))
        except OSError as error:
            raise UsageError("schema.file cannot be read", got=file, do=f"{error.strerror or error}.") from error
        except Exception as error:  # the library's errors have nothing in common
            raise UsageError("schema.file is no Avro schema", got=file, do=f"{str(error)[:200]}.") from error
        return lambda value, start: reader(value, len(head) if value.startswith(head) else start)

    def _compile(self, schemas: Sequence[Any]) -> AvroReader:
        """What reads records of the last of these schemas, which may name types of those before it."""
        named: dict[str, Any] = {}
        known: dict[str, Any] = {}
        for each in schemas:
            schema = self._library.parse_schema(_simplified(each, as_ms=self._as_ms), named)
            if isinstance(schema, dict):
                known[str(schema.get("name"))] = schema
        _check_not_recursive(schema, named, ())
        if isinstance(schema, list):  # the library does not look up what a union only names
            schema = [known.get(each, each) if isinstance(each, str) else each for each in schema]
        parsed = known.get(schema, schema) if isinstance(schema, str) else schema
        return AvroReader(self._library.schemaless_reader, parsed)


class AvroReader:
    """Reads records of one schema, parsed by the library, whose function `read` is."""

    def __init__(self, read: Callable[..., Any], schema: Any) -> None:
        self._read, self._schema = read, schema

    def __call__(self, value: bytes, start: int) -> Any:
        """The document of the record that begins there.

        Raises:
            RecordRejected: it has none.
        """
        return self.read_all([value], start)[0]

    def read_all(self, values: Sequence[bytes], start: int) -> list[Any]:
        """The documents of many records, all of which begin there; a stream for each of them would take longer.

        Raises:
            RecordRejected: one has none.
        """
        data, read, schema = BytesIO(b"".join(values)), self._read, self._schema
        documents, seek, tell, end = [], data.seek, data.tell, 0
        try:
            for value in values:
                seek(end + start)
                end += len(value)
                documents.append(read(data, schema, None))
                if tell() != end:  # also where it has read bytes of the next value
                    break
            else:
                return documents
        except Exception as error:  # the library's errors have nothing in common
            raise _bad(f"the value is not Avro of its schema: {str(error) or type(error).__name__}") from None
        left = end - tell()
        raise _bad(f"the value is not Avro of its schema: {left} bytes are left when all fields are read")


def _bad(message: str) -> RecordRejected:
    return RecordRejected(DeadLetterReason.BAD_FORMAT, message[:200])


def _divide_by(per_ms: int) -> Callable[..., int]:
    return lambda data, *schemas: data // per_ms


def _in_order(schema: RegisteredSchema, found: list[RegisteredSchema]) -> list[RegisteredSchema]:
    """The schemas that it refers to, each before those that need it; itself last."""
    for _, each in schema.references:
        if each not in found:
            _in_order(each, found)
    found.append(schema)
    return found


def _simplified(schema: Any, *, as_ms: bool) -> Any:
    """The schema with logical types as we want them, and without defaults: nothing is filled in.

    uuids are texts; with `as_ms`, times are epoch ms.
    """
    if isinstance(schema, list):
        return [_simplified(each, as_ms=as_ms) for each in schema]
    if not isinstance(schema, dict):
        return schema
    logical = schema.get("logicalType")
    schema = {name: _simplified(value, as_ms=as_ms) for name, value in schema.items() if name != "default"}
    if logical == "uuid" or (as_ms and logical == "timestamp-millis"):
        del schema["logicalType"]
    elif as_ms and logical in _PER_MS:
        schema["logicalType"] = f"{_MS}-{logical}"
    return schema


def _check_not_recursive(schema: Any, named: dict[str, Any], inside: tuple[str, ...]) -> None:
    """Check that no type holds itself: the library follows such values without a limit, which ends the process.

    Raises:
        ValueError: one does.
    """
    if isinstance(schema, str) and schema in named:
        schema = named[schema]
    if isinstance(schema, list):
        for each in schema:
            _check_not_recursive(each, named, inside)
    if not isinstance(schema, dict):
        return
    if (name := schema.get("name")) in inside:
        raise ValueError(f"its type {name} holds itself")
    if name is not None:
        inside = (*inside, name)
    for each in (*(field["type"] for field in schema.get("fields", ())), schema.get("items"), schema.get("values")):
        _check_not_recursive(each, named, inside)
