"""Protobuf, from a registry and from a descriptor set."""

import importlib.util

import pytest
from google.protobuf import descriptor_pb2, duration_pb2, struct_pb2, timestamp_pb2, wrappers_pb2  # noqa: F401

from tests.support.schemas import (
    AT_MS,
    PLACE_FILE,
    READING_FILE,
    Kind,
    descriptor_set,
    everything_file,
    framed,
    in_base64,
    message_classes,
    proto_file,
    proto_set,
    read,
    rejection,
    table,
    with_registry,
)
from tidecast.service.broker.port import Batch
from tidecast.service.errors import TidecastError
from tidecast.service.input.documents import format_of
from tidecast.service.input.mapping import InputMapper
from tidecast.service.input.rejected import DeadLetterReason

Reading = message_classes(PLACE_FILE, READING_FILE)["acme.Reading"]
PLACE_TEXT = """syntax = "proto3"; package acme.place; message Place { string site = 1; int32 line = 2; }"""
READING_TEXT = """
syntax = "proto3"; package acme;
import "place.proto"; import "google/protobuf/timestamp.proto";
message Other { int32 x = 1; }
message Reading {
  string sensor = 1; google.protobuf.Timestamp at = 2; acme.place.Place place = 3; double value = 4; float wind = 5;
  int64 big = 6;
}
"""


def reading_message(**more):
    message = Reading(sensor="s1", value=2.5, wind=1.5, big=2**60, **more)
    message.at.seconds, message.at.nanos = AT_MS // 1_000, 1_999_999
    message.place.site = "north"
    return message.SerializeToString()


READ = {"sensor": "s1", "at": AT_MS + 1, "place": {"site": "north", "line": 0}, "value": 2.5, "wind": 1.5, "big": 2**60}


@pytest.mark.parametrize("given", ["descriptors", "serialized", "texts", "error"])
def test_a_message_is_read_whichever_way_the_registry_gives_its_schema(registry, given):
    if given == "descriptors":  # as Confluent's client for Python registers it, and Apicurio gives it back
        place, reading, more = in_base64(PLACE_FILE), in_base64(READING_FILE), ({}, {})
    else:
        place, reading = PLACE_TEXT, READING_TEXT
        more = ({"serialized": in_base64(PLACE_FILE)}, {"serialized": in_base64(READING_FILE)})
    if given == "texts":  # Apicurio's answer to format=serialized is a text of which bytes are lost
        more = ({"serialized": "\n\u0005\ufffd"}, {})
    if given == "error":  # or an error
        registry.no_serialized = True
    registry.add(1, place, "PROTOBUF", **more[0])
    registry.add(2, reading, "PROTOBUF", references=[("place.proto", "s1")], **more[1])
    value = framed(2, b"\x02\x02" + reading_message())
    assert read(with_registry(registry, "protobuf"), value, value) == [READ, READ]
    assert read(with_registry(registry, "protobuf"), framed(2, b"\0\x08\x05")) == [{"x": 5}]
    assert read(with_registry(registry, "protobuf"), framed(2, b"\x02\0\x08\x05")) == [{"x": 5}]


def test_a_text_without_protoc_stops_with_the_command_that_helps_and_no_dead_letter(registry, monkeypatch):
    registry.add(1, PLACE_TEXT, "PROTOBUF")
    reader = with_registry(registry, "protobuf")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TidecastError, match=r"grpcio-tools \(protoc\). Run: pip install 'tidecast\[protoc\]'"):
        reader.prepare([framed(1, b"\0")])


@pytest.mark.parametrize(
    ("text", "names", "says"),
    [("message {", "place.proto", "protoc refuses it"), (PLACE_TEXT, "../../place.proto", "refers to a file named")],
)
def test_a_text_that_protoc_refuses_or_that_names_a_file_elsewhere_is_a_dead_letter(registry, text, names, says):
    registry.add(1, PLACE_TEXT, "PROTOBUF")
    registry.add(2, text, "PROTOBUF", references=[(names, "s1")])
    refused = rejection(with_registry(registry, "protobuf"), framed(2, b"\0"))
    assert refused.reason == DeadLetterReason.BAD_FORMAT
    assert says in refused.message


@pytest.mark.parametrize(
    "indexes", [b"", b"\x04", b"\x06\0", b"\x02\x06", b"\x01", b"\x80\x80\x80\x80\x80\x01", b"\xff\x01"]
)
def test_indexes_that_name_no_message_are_refused(registry, indexes):
    registry.add(1, in_base64(PLACE_FILE), "PROTOBUF")
    assert rejection(with_registry(registry, "protobuf"), framed(1, indexes)).reason == DeadLetterReason.BAD_FORMAT


def test_a_message_inside_of_another_is_found_by_its_indexes(registry):
    file = proto_file("nested.proto", "acme", {"Outer": [("y", Kind.TYPE_INT32)]})
    inner = file.message_type[0].nested_type.add(name="Inner")
    inner.field.add(name="x", number=1, type=Kind.TYPE_INT32, label=Kind.LABEL_OPTIONAL)
    registry.add(1, in_base64(file), "PROTOBUF")
    assert read(with_registry(registry, "protobuf"), framed(1, b"\x04\0\0\x08\x05")) == [{"x": 5}]
    wanted = format_of(table("protobuf", schema={"registry": registry.url, "message": "acme.Outer"}))
    assert (
        "is a acme.Outer.Inner, but schema.message is acme.Outer"
        in rejection(wanted, framed(1, b"\x04\0\0\x08\5")).message
    )


def test_every_kind_of_protobuf_field_comes_as_a_path_can_use_it(tmp_path):
    file = everything_file()
    message = message_classes(file)["acme.All"](plain=3, list=[1.5, 2.5], state=1, raw=b"\1")
    message.when.seconds, message.took.seconds, message.took.nanos = -1, 2, 500_000_000
    message.maybe.value = 0.0
    message.free["a"] = [1.0, "x"]
    message.self.given = 0.0
    message.tags[7] = 1
    message.many.add(state=9)
    (found,) = read(proto_set(tmp_path, file), message.SerializeToString())
    empty = {"plain": 0, "note": "", "raw": b"", "state": "OFF", "list": [], "many": [], "tags": {}}
    assert found == empty | {
        "plain": 3, "list": [1.5, 2.5], "state": "ON", "raw": b"\1", "when": -1_000, "took": 2.5, "maybe": 0.0,
        "free": {"a": [1.0, "x"]}, "self": empty | {"given": 0.0}, "tags": {"7": "ON"}, "many": [empty | {"state": 9}],
    }  # fmt: skip
    (bare,) = read(proto_set(tmp_path, file), b"")
    assert bare == empty, "what is not set has no entry, but a field that cannot be unset has its zero"


def test_fields_of_proto2_that_are_not_set_are_missing_not_zero(tmp_path):
    file = proto_file("old.proto", "acme", {"Old": [("a", Kind.TYPE_DOUBLE), ("b", Kind.TYPE_DOUBLE)]}, syntax="proto2")
    value = message_classes(file)["acme.Old"](b=0.0).SerializeToString()
    assert read(proto_set(tmp_path, file), value) == [{"b": 0.0}]


def test_what_cannot_be_a_document_is_refused_in_a_sentence(tmp_path):
    infinite = message_classes(everything_file())["acme.All"]()
    infinite.free.fields["a"].number_value = float("inf")
    refused = rejection(proto_set(tmp_path, everything_file()), infinite.SerializeToString())
    assert (refused.reason, "is not a acme.All: " in refused.message) == (DeadLetterReason.BAD_FORMAT, True)


def test_a_protobuf_time_is_right_also_where_the_table_names_a_unit(tmp_path):
    for unit in ({}, {"time_unit": "s"}):
        file = tmp_path / "messages.pb"
        file.write_bytes(descriptor_set(PLACE_FILE, READING_FILE))
        schema = {"file": str(file), "message": "acme.Reading"}
        config = table("protobuf", schema=schema, key="{place.site}/{sensor}", time="at", **unit)
        mapped = InputMapper(config, ["value"]).map(Batch("t", [0], [0], [0], [None], [reading_message()], [()]))
        assert (mapped.readings.ts.tolist(), mapped.batch.keys) == ([AT_MS + 1], [b"north/s1"])


def test_without_a_registry_another_message_is_refused_rather_than_read_as_zeros(tmp_path):
    reader = proto_set(tmp_path, PLACE_FILE, READING_FILE, message="acme.Other")
    assert read(reader, b"\x08\x05") == [{"x": 5}]
    assert "has no field of acme.Other" in rejection(reader, b"\x12\x03abc").message
    assert rejection(reader, b"\xff\xff").reason == DeadLetterReason.BAD_FORMAT
