"""Schemas of other people's topics, and records in them, for the tests of formats with schemas."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import fastavro
import pytest
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    message_factory,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)

from tidecast.service.input.config import parse_input
from tidecast.service.input.documents import format_of
from tidecast.service.input.rejected import RecordRejected

AT_MS = 1_700_000_000_000
TIMESTAMP, *MORE = (each.DESCRIPTOR.name for each in (timestamp_pb2, duration_pb2, wrappers_pb2, struct_pb2))
Kind = descriptor_pb2.FieldDescriptorProto
PLACE = {
    "type": "record", "name": "Place", "namespace": "acme.plant",
    "fields": [{"name": "site", "type": "string"}, {"name": "line", "type": "int"}],
}  # fmt: skip
READING = {
    "type": "record", "name": "Reading", "namespace": "acme",
    "fields": [
        {"name": "sensor", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "value", "type": ["null", "double"], "default": None},
        {"name": "wind", "type": "float"},
    ],
}  # fmt: skip


def framed(schema_id: int, body: bytes) -> bytes:
    """A value as a schema registry's serializers write it."""
    return b"\0" + schema_id.to_bytes(4) + body


def avro(schema: Any, record: Any, *others: Any) -> bytes:
    """A record in Avro; `others` are schemas that `schema` names."""
    named: dict[str, Any] = {}
    for each in others:
        fastavro.parse_schema(each, named)
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema, named), record)
    return out.getvalue()


def proto_file(
    name: str,
    package: str,
    messages: Mapping[str, Sequence[tuple[str, int | str]]],
    imports: Sequence[str] = (),
    syntax: str = "proto3",
) -> descriptor_pb2.FileDescriptorProto:
    """A .proto file: messages with their fields, numbered from 1; a text as a field's kind is a message's full name."""
    file = descriptor_pb2.FileDescriptorProto(name=name, package=package, syntax=syntax, dependency=imports)
    for message, fields in messages.items():
        made = file.message_type.add(name=message)
        for number, (field, kind) in enumerate(fields, start=1):
            added = made.field.add(name=field, number=number, label=Kind.LABEL_OPTIONAL)
            added.type = kind if isinstance(kind, int) else Kind.TYPE_MESSAGE
            if isinstance(kind, str):
                added.type_name = f".{kind}"
    return file


def message_classes(*files: descriptor_pb2.FileDescriptorProto) -> dict[str, Any]:
    """The classes of all messages, by their full names; the files in the order of their imports."""
    pool = descriptor_pool.DescriptorPool()
    added = set[str]()

    def add(file: descriptor_pb2.FileDescriptorProto) -> None:
        for name in file.dependency:
            if name not in added and name.startswith("google/"):
                own = descriptor_pool.Default().FindFileByName(name)
                add(descriptor_pb2.FileDescriptorProto.FromString(own.serialized_pb))
        if file.name not in added:
            added.add(file.name)
            pool.Add(file)

    for file in files:
        add(file)
    return {
        kind.full_name: message_factory.GetMessageClass(kind)
        for file in files
        for kind in pool.FindFileByName(file.name).message_types_by_name.values()
    }


def descriptor_set(*files: descriptor_pb2.FileDescriptorProto) -> bytes:
    """The files as `protoc --descriptor_set_out` writes them."""
    return descriptor_pb2.FileDescriptorSet(file=files).SerializeToString()


# What the tests of several formats share --------------------------------------------------------------------------


def table(format_name, **more):
    return parse_input({"format": format_name, **more})


def with_registry(registry, format_name="avro", **more):
    return format_of(table(format_name, schema={"registry": registry.url}, **more))


def read(reader, *values):
    reader.prepare(values)
    return [document for value in values for document in reader.read(value)]


def rejection(reader, value):
    reader.prepare([value])
    with pytest.raises(RecordRejected) as caught:
        list(reader.read(value))
    return caught.value


def avro_file(tmp_path, schema, **more):
    file = tmp_path / "reading.avsc"
    file.write_text(json.dumps(schema))
    return format_of(table("avro", schema={"file": str(file)}, **more))


def proto_set(tmp_path, *files, message="", **more):
    file = tmp_path / "messages.pb"
    file.write_bytes(descriptor_set(*files))
    return format_of(table("protobuf", schema={"file": str(file), "message": message}, **more))


def record(**more):
    return {"sensor": "s1", "at": datetime.fromtimestamp(AT_MS / 1_000, UTC), "value": 2.5, "wind": 1.5} | more


def in_base64(file):
    return base64.b64encode(file.SerializeToString()).decode()


PLACE_FILE = proto_file("place.proto", "acme.place", {"Place": [("site", Kind.TYPE_STRING), ("line", Kind.TYPE_INT32)]})
READING_FILE = proto_file(
    "reading.proto", "acme",
    {
        "Other": [("x", Kind.TYPE_INT32)],
        "Reading": [("sensor", Kind.TYPE_STRING), ("at", "google.protobuf.Timestamp"), ("place", "acme.place.Place"),
                    ("value", Kind.TYPE_DOUBLE), ("wind", Kind.TYPE_FLOAT), ("big", Kind.TYPE_INT64)],
    },
    ["place.proto", TIMESTAMP],
)  # fmt: skip


def everything_file():
    file = proto_file(
        "all.proto", "acme",
        {"All": [("plain", Kind.TYPE_INT32), ("note", Kind.TYPE_STRING), ("when", "google.protobuf.Timestamp"),
                 ("took", "google.protobuf.Duration"), ("maybe", "google.protobuf.DoubleValue"),
                 ("free", "google.protobuf.Struct"), ("state", Kind.TYPE_INT32), ("list", Kind.TYPE_DOUBLE),
                 ("self", "acme.All"), ("given", Kind.TYPE_DOUBLE), ("many", "acme.All"), ("raw", Kind.TYPE_BYTES)]},
        [TIMESTAMP, *MORE],
    )  # fmt: skip
    message = file.message_type[0]
    fields = {field.name: field for field in message.field}
    states = file.enum_type.add(name="State")
    for number, name in enumerate(("OFF", "ON")):
        states.value.add(name=name, number=number)
    fields["state"].type, fields["state"].type_name = Kind.TYPE_ENUM, ".acme.State"
    fields["list"].label = fields["many"].label = Kind.LABEL_REPEATED
    message.oneof_decl.add(name="_given")
    fields["given"].proto3_optional, fields["given"].oneof_index = True, 0
    entry = message.nested_type.add(name="TagsEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=Kind.TYPE_INT32, label=Kind.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=Kind.TYPE_ENUM, type_name=".acme.State", label=Kind.LABEL_OPTIONAL)
    message.field.add(name="tags", number=20, type=Kind.TYPE_MESSAGE, type_name=".acme.All.TagsEntry", label=Kind.LABEL_REPEATED)  # fmt: skip # noqa: E501
    return file
