"""Formats with schemas: Avro, JSON Schema and Protobuf, from a registry with Confluent's API or with a schema file.

Each record is read with the schema that its writer had, and nothing else: what that schema does not have is not there,
whatever default a newer one has for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any

import msgspec

from tidecast.service.errors import InputUnavailable
from tidecast.service.input.avro import AvroCompiler, AvroReader
from tidecast.service.input.config import InputConfig
from tidecast.service.input.documents import Format
from tidecast.service.input.protobuf import ProtobufCompiler
from tidecast.service.input.registry import RegisteredSchema, Registry, registry_of
from tidecast.service.input.rejected import DeadLetterReason, RecordRejected

Reader = Callable[[bytes, int], Any]  # a value, and where in it the record begins -> its document

_HEAD = 5  # bytes: a zero, and the schema's id
_ASK_AGAIN_S = 5.0  # after which a registry that did not know an id is asked once more
_MOST_SECONDS = 5.0  # for one batch's schemas; what is there by then is kept
_MOST_UNKNOWN = 10_000  # ids
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Framed:
    """Records that begin with a zero and the id of their writer's schema.

    Args:
        kind: of schemas, in the registry's words: AVRO or PROTOBUF.
        registry: has the schemas.
        compile_schema: makes what reads records of a schema; raises ValueError where that cannot be.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        kind: str,
        registry: Registry,
        compile_schema: Callable[[RegisteredSchema], Reader],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kind, self._registry, self._compile, self._clock = kind, registry, compile_schema, clock
        self._readers: dict[bytes, Reader] = {}  # by the head of a record; some only say what is wrong
        self._ask_again: dict[bytes, float] = {}  # heads of schemas that the registry did not know -> when
        self._head = itemgetter(slice(_HEAD))

    def prepare(self, values: Sequence[bytes | None]) -> None:
        """Fetch the schemas that are not here yet, each once; those that were unknown again after 5 s.

        Raises:
            InputUnavailable: the registry does not answer, or has not given all of them within 5 s.
            TidecastError: a package is not installed that a schema needs.
        """
        heads = set(map(self._head, filter(None, values)))
        wanted = [head for head in heads - self._readers.keys() if len(head) == _HEAD and not head[0]]
        if self._ask_again:
            if len(self._ask_again) > _MOST_UNKNOWN:
                for head in self._ask_again.keys() - heads:
                    del self._ask_again[head], self._readers[head]
            now = self._clock()
            wanted += [head for head in heads if self._ask_again.get(head, now + 1) <= now]
        if not wanted:
            return
        began = self._clock()
        for done, head in enumerate(wanted):
            if self._clock() - began > _MOST_SECONDS:
                if head in self._readers:  # what is asked for again comes last
                    break
                raise InputUnavailable(
                    f"the schema registry at {self._registry.url} is slow: it gave {done} of {len(wanted)} schemas in "
                    f"{_MOST_SECONDS:g} s",
                    do="What it gave is kept, and the others are asked for again.",
                )
            self._readers[head] = self._reader_of(head)

    def _reader_of(self, head: bytes) -> Reader:
        number = int.from_bytes(head[1:])
        self._ask_again.pop(head, None)
        try:
            schema = self._registry.schema(number)
        except RecordRejected as unknown:
            self._ask_again[head] = self._clock() + _ASK_AGAIN_S
            return _refuse(unknown.reason, unknown.message)
        where = f"schema {number} of the registry at {self._registry.url}"
        if schema.kind != self._kind:
            found = {"AVRO": "avro", "PROTOBUF": "protobuf", "JSON": "json-schema"}.get(schema.kind, "another")
            return _refuse(DeadLetterReason.BAD_FORMAT, f"{where} is of the format {found}, not {self._kind.lower()}")
        try:
            return self._compile(schema)
        except ValueError as error:
            return _refuse(DeadLetterReason.BAD_FORMAT, f"{where} cannot be used: {error}")

    def decode_all(self, values: Sequence[Any]) -> list[Any]:
        """The documents of as many records; raises a TypeError or RecordRejected if one has none."""
        heads = set(map(self._head, values))
        if len(heads) == 1:  # nearly always
            reader = self._reader(values[0])
            if isinstance(reader, AvroReader):
                return reader.read_all(values, _HEAD)
            return [reader(value, _HEAD) for value in values]
        return [self._reader(value)(value, _HEAD) for value in values]

    def read(self, value: bytes) -> Iterable[Any]:
        """The document of one record whose schema was prepared; raises a RecordRejected if it has none."""
        return [self._reader(value)(value, _HEAD)]

    def _reader(self, value: bytes) -> Reader:
        try:
            return self._readers[value[:_HEAD]]
        except KeyError:
            raise _not_framed(value) from None


class FramedJson:
    """JSON behind a zero and the id of its schema, which is not needed to read it."""

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder().decode

    def prepare(self, values: Sequence[bytes | None]) -> None:
        """Needs nothing."""

    def read(self, value: bytes) -> Iterable[Any]:
        """The document of one record; raises a RecordRejected if it has none."""
        if len(value) < _HEAD or value[0]:
            raise _not_framed(value)
        try:
            return [self._decode(value[_HEAD:])]
        except (ValueError, RecursionError) as error:
            raise RecordRejected(DeadLetterReason.NOT_JSON, f"the value is not JSON: {str(error)[:80]}") from None


class Unframed:
    """Records without an id, all of the schema in a file."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def prepare(self, values: Sequence[bytes | None]) -> None:
        """Needs nothing."""

    def decode_all(self, values: Sequence[Any]) -> list[Any]:
        """The documents of as many records; raises a TypeError or RecordRejected if one has none."""
        reader = self._reader
        return [reader(value, 0) for value in values]

    def read(self, value: bytes) -> Iterable[Any]:
        """The document of one record; raises a RecordRejected if it has none."""
        return [self._reader(value, 0)]


def schema_format(config: InputConfig) -> Format:
    """The format of a table that names avro, json-schema or protobuf.

    Raises:
        TidecastError: a package is not installed.
        UsageError: the schema's file, or how to reach the registry, cannot be used.
    """
    if config.format == "json-schema":
        return FramedJson()
    # The schemas say what their times count. So they are numbers only where numbers are read as ms.
    as_ms = config.time_unit in (None, "ms")
    compiler: AvroCompiler | ProtobufCompiler
    if config.format == "avro":
        compiler = AvroCompiler(as_ms=as_ms)
    else:
        compiler = ProtobufCompiler(config.schema.message, _milliseconds if as_ms else _moment)
    if config.schema.file:
        return Unframed(compiler.read_file(config.schema.file))
    return Framed(config.format.upper(), registry_of(config.schema), compiler.compile)


def _milliseconds(ms: int) -> Any:
    return ms


def _moment(ms: int) -> Any:
    try:
        return _EPOCH + timedelta(milliseconds=ms)
    except OverflowError:
        return ms  # which is out of range in any unit


def _refuse(reason: DeadLetterReason, message: str) -> Reader:
    def refuse(value: bytes, start: int) -> Any:
        raise RecordRejected(reason, message)

    return refuse


def _not_framed(value: bytes) -> RecordRejected:
    if len(value) >= _HEAD and not value[0]:
        raise LookupError(f"schema {int.from_bytes(value[1:_HEAD])} was not prepared")  # a bug of the caller
    got = f"begins with {value[:_HEAD].hex(' ')}" if len(value) >= _HEAD else f"has only {len(value)} bytes"
    return RecordRejected(
        DeadLetterReason.BAD_FORMAT,
        f"the value must begin with a zero and the 4 bytes of a schema's id, as a schema registry's serializers write "
        f"it, but it {got}",
    )
