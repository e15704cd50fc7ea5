"""Protobuf: message types of descriptors, and what reads a record's bytes to a document."""

from __future__ import annotations

import base64
import importlib
import re
from collections.abc import Callable, Iterable
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidecast.service.errors import UsageError
from tidecast.service.input.documents import missing_package
from tidecast.service.input.proto_text import compile_text
from tidecast.service.input.registry import RegisteredSchema
from tidecast.service.input.rejected import DeadLetterReason, RecordRejected

if TYPE_CHECKING:  # comes with `tidecast[formats]`
    from google.protobuf.descriptor import Descriptor, FieldDescriptor
    from google.protobuf.descriptor_pb2 import FileDescriptorProto
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message import Message

Reader = Callable[[bytes, int], Any]  # a value, and where in it the message begins -> its document
_Read = Callable[[Any], Any]

# Files that come with the libraries, and are never registered: where the folder's modules are.
_OWN = {"google/protobuf/": "", "google/type/": "", "confluent/": "confluent_kafka.schema_registry."}
_JSON_TYPES = {f"google.protobuf.{name}" for name in ("Struct", "Value", "ListValue")}


class ProtobufCompiler:
    """Makes readers of schemas.

    Args:
        message: the full name of the message that records hold; "" = the one that the record names.
        time: what a google.protobuf.Timestamp becomes, given its epoch ms.

    Raises:
        TidecastError: the library for it is not installed.
    """

    def __init__(self, message: str, time: Callable[[int], Any]) -> None:
        try:
            from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
            from google.protobuf.message import DecodeError
        except ModuleNotFoundError:
            raise missing_package("protobuf", "protobuf") from None
        self._descriptors, self._make_pool, self._error = descriptor_pb2, descriptor_pool.DescriptorPool, DecodeError
        self._class_of = message_factory.GetMessageClass
        self._as_json, self._json_error = json_format.MessageToDict, json_format.Error
        self._message, self._time = message, time

    def compile(self, schema: RegisteredSchema) -> Reader:
        """What reads records of this schema, which say with indexes before the message which of its types they hold.

        Raises:
            ValueError: it is no schema that can be used.
            TidecastError: its text cannot be read without a package that is not installed.
        """
        try:
            files = self._files(schema)
            pool = self._pool(files)
            file = pool.FindFileByName(files[-1].name)
        except (TypeError, KeyError) as error:  # the pool's
            raise ValueError(f"it is no Protobuf schema that can be used: {error}") from error
        top = list(file.message_types_by_name.values())
        readers: dict[tuple[int, ...], Reader] = {}

        def reader_of(indexes: tuple[int, ...]) -> Reader:
            types, found = top, None
            for index in indexes:
                if not 0 <= index < len(types):
                    raise _bad(f"the value names message {'.'.join(map(str, indexes))}, which its schema does not have")
                found = types[index]
                types = list(found.nested_types)
            assert found is not None
            if self._message not in ("", found.full_name):
                raise _bad(f"the value is a {found.full_name}, but schema.message is {self._message}")
            return self._reader(found)

        def read(value: bytes, start: int) -> Any:
            indexes, start = _indexes(value, start)
            reader = readers.get(indexes)
            if reader is None:
                reader = readers[indexes] = reader_of(indexes)
            return reader(value, start)

        return read

    def read_file(self, file: str) -> Reader:
        """What reads records of the message in a descriptor set, as `protoc --descriptor_set_out` writes it.

        Raises:
            UsageError: the file cannot be read, or does not have the message.
        """
        try:
            files = list(self._descriptors.FileDescriptorSet.FromString(Path(file).read_bytes()).file)
            if not files:
                raise ValueError("it has no files")
            pool = self._pool(files)
        except OSError as error:
            raise UsageError("schema.file cannot be read", got=file, do=f"{error.strerror or error}.") from error
        except (self._error, TypeError, KeyError, ValueError) as error:
            raise UsageError(
                f"schema.file is no descriptor set: {str(error)[:200]}",
                got=file,
                do="Make it with: protoc --include_imports --descriptor_set_out=FILE FILE.proto",
            ) from error
        names = sorted(name for each in files for name in _message_names(each.package, each.message_type))
        wanted = self._message or (names[0] if len(names) == 1 else "")
        if wanted not in names:
            raise UsageError(
                "schema.message must name a message of schema.file",
                got=self._message or None,
                do=f"It has: {', '.join(names)[:300]}.",
            )
        reader = self._reader(pool.FindMessageTypeByName(wanted), strangers=wanted)
        return reader

    # Descriptors ---------------------------------------------------------------------------------------------

    def _files(self, schema: RegisteredSchema) -> list[FileDescriptorProto]:
        """The files of a schema and of those that it refers to; its own is the last.

        Raises:
            ValueError: one is no file.
            TidecastError: as `compile`.
        """
        found: dict[str, FileDescriptorProto] = {}
        if self._collect("schema.proto", schema, found):
            return list(found.values())
        return list(self._descriptors.FileDescriptorSet.FromString(compile_text("schema.proto", schema)).file)

    def _collect(self, name: str, schema: RegisteredSchema, found: dict[str, FileDescriptorProto]) -> bool:
        """Add the files in order; False where one is only there as a text."""
        for each, referred in schema.references:
            if each not in found and not self._collect(each, referred, found):
                return False
        for text in (schema.text, schema.serialized):
            try:
                file = self._descriptors.FileDescriptorProto.FromString(base64.b64decode(text, validate=True))
            except (ValueError, self._error):  # binascii's error is a ValueError
                continue
            if text:
                file.name = name
                found[name] = file
                return True
        return False

    def _pool(self, files: Iterable[FileDescriptorProto]) -> DescriptorPool:
        """A pool with these files, and those of the libraries that they import.

        Raises:
            TypeError, KeyError: they do not fit together.
        """
        pool, given, added = self._make_pool(), {file.name: file for file in files}, set[str]()

        def add(name: str) -> None:
            if name not in added:
                added.add(name)
                file = given[name] if name in given else self._own_file(name)
                for each in file.dependency:
                    add(each)
                pool.Add(file)

        for name in given:
            add(name)
        return pool

    def _own_file(self, name: str) -> FileDescriptorProto:
        """A file that comes with a library, such as google/protobuf/timestamp.proto."""
        found = re.fullmatch(r"((?:[a-z]+/)+)[a-z_]+\.proto", name)
        package = next((package for folder, package in _OWN.items() if name.startswith(folder)), None)
        if found is None or package is None:
            raise KeyError(f"{name} is imported, but not there")
        try:
            module = importlib.import_module(package + name.removesuffix(".proto").replace("/", ".") + "_pb2")
        except ModuleNotFoundError:
            raise KeyError(f"{name} is imported, but not there") from None
        return self._descriptors.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)

    # Documents -----------------------------------------------------------------------------------------------

    def _reader(self, message: Descriptor, *, strangers: str = "") -> Reader:
        """`strangers`: the name to say where a value has no field that the message knows."""
        parse, convert, error = self._class_of(message).FromString, self._converter(message, {}), self._error
        errors = (ValueError, self._json_error)  # as of a Struct with a number that JSON does not have

        def read(value: bytes, start: int) -> Any:
            try:
                found = parse(value[start:])
            except error as reason:
                raise _bad(f"the value is not a {message.full_name}: {reason}") from None
            if strangers and len(value) > start and not found.ListFields():
                raise _bad(f"the value has no field of {strangers} (schema.message); it may be another message")
            try:
                return convert(found)
            except errors as reason:
                raise _bad(f"the value is not a {message.full_name}: {reason}") from None

        return read

    def _converter(self, message: Descriptor, made: dict[str, _Read]) -> _Read:
        """What makes a dict of a message, by the names in its .proto file. What is not set has no entry.

        A field of proto3 that is not `optional` cannot be "not set": it has its zero.
        """
        if message.full_name in made:
            return made[message.full_name]
        made[message.full_name] = lambda value: convert(value)  # for messages that hold themselves
        plain: list[str] = []
        others: list[tuple[str, bool, _Read]] = []
        for field in message.fields:
            read = self._field(field, made)
            if read is None and not field.has_presence:
                plain.append(field.name)
            else:
                others.append((field.name, field.has_presence, read or _same))
        values = attrgetter(*plain) if len(plain) > 1 else None

        def convert(value: Message) -> dict[str, Any]:
            if values is None:
                document = {name: getattr(value, name) for name in plain}
            else:
                document = dict(zip(plain, values(value), strict=True))
            for name, optional, read in others:
                if not optional or value.HasField(name):
                    document[name] = read(getattr(value, name))
            return document

        return convert

    def _field(self, field: FieldDescriptor, made: dict[str, _Read]) -> _Read | None:
        """What makes a field's value a part of a document; None = it is one as it is."""
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            read = self._single(kind.fields_by_name["value"], made) or _same
            return lambda entries: {_text(name): read(entries[name]) for name in entries}
        single = self._single(field, made)
        if not field.is_repeated:
            return single
        return list if single is None else lambda values: [single(value) for value in values]

    def _single(self, field: FieldDescriptor, made: dict[str, _Read]) -> _Read | None:
        kind = field.message_type
        if field.enum_type is not None:
            names = {value.number: value.name for value in field.enum_type.values}
            return lambda number: names.get(number, number)  # a number that only a newer schema has
        if kind is None:
            return None
        if kind.full_name == "google.protobuf.Timestamp":
            return lambda value: self._time(value.seconds * 1_000 + value.nanos // 1_000_000)
        if kind.full_name == "google.protobuf.Duration":
            return lambda value: value.seconds + value.nanos / 1e9
        if kind.full_name in _JSON_TYPES:
            return lambda value: self._as_json(value)
        if kind.file.name == "google/protobuf/wrappers.proto":
            return attrgetter("value")
        return self._converter(kind, made)


def _bad(message: str) -> RecordRejected:
    return RecordRejected(DeadLetterReason.BAD_FORMAT, message[:200])


def _same(value: Any) -> Any:
    return value


def _text(name: Any) -> str:
    return name if isinstance(name, str) else str(name)


def _message_names(package: str, messages: Iterable[Any]) -> Iterable[str]:
    """The full names of the messages, and of those inside of them."""
    for each in messages:
        name = f"{package}.{each.name}".removeprefix(".")
        if not each.options.map_entry:
            yield name
            yield from _message_names(name, each.nested_type)


def _indexes(value: bytes, start: int) -> tuple[tuple[int, ...], int]:
    """Which message of the schema the value holds, and where this begins.

    Raises:
        RecordRejected: the value ends before.
    """
    if value[start : start + 1] == b"\0":  # nearly all
        return (0,), start + 1
    numbers: list[int] = []
    wanted: int | None = None
    while wanted is None or len(numbers) < wanted:
        number = shift = 0
        while True:
            if start >= len(value) or shift > 28:
                raise _bad("the value ends before it says which message it holds")
            byte = value[start]
            start += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        number = (number >> 1) ^ -(number & 1)
        if wanted is None:
            wanted = number
            if not 0 < wanted <= 32:
                raise _bad("the value does not say which message of its schema it holds")
        else:
            numbers.append(number)
    return tuple(numbers), start
