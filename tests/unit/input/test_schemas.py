"""Formats with schemas: what is wrong before a record is read, and any bytes."""

import json
import sys
from contextlib import contextmanager
from functools import partial

import pytest
from google.protobuf import descriptor_pb2, duration_pb2, struct_pb2, timestamp_pb2, wrappers_pb2  # noqa: F401
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.schemas import (
    PLACE_FILE,
    READING,
    READING_FILE,
    avro,
    avro_file,
    descriptor_set,
    everything_file,
    framed,
    in_base64,
    proto_set,
    read,
    record,
    rejection,
    table,
    with_registry,
)
from tests.support.small_registry import SmallRegistry
from tidecast.service.errors import TidecastError, UsageError
from tidecast.service.input.config import read_input
from tidecast.service.input.documents import format_of
from tidecast.service.input.rejected import DeadLetterReason, RecordRejected


@pytest.mark.parametrize(
    ("format_name", "content", "message", "says"),
    [
        ("avro", None, "", "schema.file cannot be read, got .* No such file"),
        ("avro", b"{", "", "schema.file is no Avro schema, got "),
        ("avro", b'{"type": "record", "name": "R", "fields": [{"name": "a", "type": "Gone"}]}', "", "Gone"),
        ("protobuf", None, "", "schema.file cannot be read"),
        ("protobuf", b"\xff\xff", "", "schema.file is no descriptor set: .*Make it with: protoc --include_imports"),
        ("protobuf", b"", "", "schema.file is no descriptor set: it has no files"),
        ("protobuf", descriptor_set(READING_FILE), "acme.Reading", "place.proto is imported, but not there"),
        ("protobuf", descriptor_set(PLACE_FILE, READING_FILE), "",
         "schema.message must name a message of schema.file. It has: acme.Other, acme.Reading, acme.place.Place"),
        ("protobuf", descriptor_set(PLACE_FILE), "acme.Gone", "must name a message of schema.file, got 'acme.Gone'"),
    ],
)  # fmt: skip
def test_a_schema_file_that_cannot_be_used_is_one_sentence(tmp_path, format_name, content, message, says):
    file = tmp_path / "schema"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=says):
        format_of(table(format_name, schema={"file": str(file), "message": message}))


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"registry": "registry:8081"}, "schema.registry is no address, got 'registry:8081'"),
        ({"registry": "http://r:1", "username": "u", "password_file": "/gone"}, "schema.password_file cannot be read"),
        ({"registry": "https://r:1", "ca_file": "/gone"}, "the schema registry cannot be used as"),
    ],
)
def test_a_registry_that_is_described_wrong_is_one_sentence(schema, says):
    with pytest.raises(UsageError, match=says):
        format_of(table("avro", schema=schema))


@pytest.mark.parametrize(
    ("format_name", "package", "schema"),
    [
        ("avro", "fastavro", {"file": "x"}),
        ("protobuf", "google.protobuf", {"file": "x"}),
        ("avro", "confluent_kafka.schema_registry", {"registry": "http://nowhere-else:1"}),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_command(monkeypatch, format_name, package, schema):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(TidecastError, match=r"Run: pip install 'tidecast\[formats\]'"):
        format_of(table(format_name, schema=schema))


def test_files_that_a_table_names_are_relative_to_its_own(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "input.toml").write_text(
        '[input]\nformat = "avro"\n[input.schema]\nregistry = "http://r:1"\npassword_file = "p"\nca_file = "/ca"\n'
    )
    schema = read_input(tmp_path / "sub" / "input.toml").schema
    assert (schema.file, schema.password_file, schema.ca_file) == ("", str(tmp_path / "sub" / "p"), "/ca")


def test_json_schema_needs_no_registry_to_be_read(registry):
    registry.close()
    assert read(with_registry(registry, "json-schema"), framed(5, b'{"a": [1]}')) == [{"a": [1]}]
    assert rejection(with_registry(registry, "json-schema"), framed(5, b"{")).reason == DeadLetterReason.NOT_JSON


@contextmanager
def all_formats(tmp_path):
    everything = everything_file()
    kinds = {"type": "record", "name": "R", "fields": [
        {"name": "t", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "d", "type": {"type": "int", "logicalType": "date"}},
        {"name": "p", "type": {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}},
        {"name": "e", "type": {"type": "enum", "name": "E", "symbols": ["A", "B"]}},
        {"name": "u", "type": ["null", "string", {"type": "map", "values": "double"}]},
        {"name": "l", "type": {"type": "array", "items": {"type": "fixed", "name": "F", "size": 3}}},
    ]}  # fmt: skip
    small = SmallRegistry()
    small.add(0, json.dumps(kinds))
    small.add(1, in_base64(everything), "PROTOBUF")
    small.add(2, json.dumps(READING))
    yield [
        *(avro_file(tmp_path, schema, **unit) for schema in (kinds, READING) for unit in ({}, {"time_unit": "us"})),
        *(proto_set(tmp_path, everything, **unit) for unit in ({}, {"time_unit": "s"})),
        *(
            partial_format
            for name in ("avro", "protobuf", "json-schema")
            for partial_format in [with_registry(small, name)]
        ),
    ]
    small.close()


@pytest.fixture(scope="module")
def formats(tmp_path_factory):
    with all_formats(tmp_path_factory.mktemp("schemas")) as made:
        yield made


BYTES = st.one_of(
    st.binary(max_size=60),
    st.builds(partial(framed), st.integers(0, 3), st.binary(max_size=60)),
    st.builds(lambda at, cut: avro(READING, record())[at:cut], st.integers(0, 5), st.integers(0, 40)),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(BYTES, max_size=4))
def test_whatever_the_bytes_a_record_is_read_or_refused_in_a_sentence(formats, values):
    for reader in formats:
        reader.prepare([*values, None])
        for value in values:
            try:
                list(reader.read(value))
            except RecordRejected as refused:
                assert 0 < len(refused.message) < 400
