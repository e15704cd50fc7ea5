"""What a format does with its schema registry: one that answers, one that does not, one that is wrong."""

import json
import ssl

import pytest
import trustme
from google.protobuf import descriptor_pb2, duration_pb2, struct_pb2, timestamp_pb2, wrappers_pb2  # noqa: F401

from tests.support.schemas import (
    READING,
    avro,
    framed,
    read,
    record,
    rejection,
    table,
    with_registry,
)
from tests.support.small_registry import SmallRegistry
from tidecast.service.errors import InputUnavailable
from tidecast.service.input.avro import AvroCompiler
from tidecast.service.input.config import SchemaConfig
from tidecast.service.input.documents import format_of
from tidecast.service.input.registry import Registry
from tidecast.service.input.rejected import DeadLetterReason, RecordRejected
from tidecast.service.input.schemas import Framed


def clocked(registry, clock):
    return Framed("AVRO", Registry(SchemaConfig(registry=registry.url)), AvroCompiler(as_ms=True).compile, clock)


def test_an_unknown_id_is_a_dead_letter_that_names_it_and_the_registry(registry):
    refused = rejection(with_registry(registry), framed(77, b"\0"))
    assert refused.reason == DeadLetterReason.UNKNOWN_SCHEMA
    assert refused.message == f"the schema registry at {registry.url} has no schema 77"


def test_a_missing_reference_is_named(registry):
    registry.add(3, '"acme.Zone"', references=[("acme.Zone", "gone")])
    refused = rejection(with_registry(registry), framed(3, b"\0"))
    assert refused.reason == DeadLetterReason.UNKNOWN_SCHEMA
    assert refused.message.endswith("has no version 1 of 'gone', to which schema 3 refers")


def test_an_unknown_id_is_not_asked_for_with_every_record_but_found_once_it_is_registered(registry):
    now = 0.0
    reader = clocked(registry, lambda: now)
    value = framed(1, avro(READING, record()))
    for now in (0.0, 1.0, 2.0, 4.9):  # noqa: B007  # the clock
        assert rejection(reader, value).reason == DeadLetterReason.UNKNOWN_SCHEMA
    assert len(registry.asked) == 1
    registry.add(1, json.dumps(READING))
    assert rejection(reader, value).reason == DeadLetterReason.UNKNOWN_SCHEMA
    now = 5.1
    assert read(reader, value)[0]["sensor"] == "s1"
    assert len(registry.asked) == 2


def test_many_unknown_ids_take_no_more_memory_and_each_batch_is_still_answered(registry, monkeypatch):
    monkeypatch.setattr("tidecast.service.input.schemas._MOST_UNKNOWN", 10)
    reader = with_registry(registry)
    for batch in (range(15), [3, *range(20, 40)], range(15)):
        values = [framed(number, b"\0") for number in batch]
        reader.prepare(values)
        for value in values:
            with pytest.raises(RecordRejected):
                reader.read(value)
    assert len(registry.asked) == 15 + 20 + 14, "3 is still known as unknown, the others are asked for again"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((503, b"{}"), "answers with HTTP status 503"),
        ((500, b"<html>"), "answers with HTTP status 500"),
        ((404, b'{"message": "no such page"}'), "answers with HTTP status 404. Check the path in schema.registry"),
        ((403, b'{"error_code": 40301}'), "answers with HTTP status 403. Check schema.username"),
        ((200, b"<html>"), "does not answer: "),
        ((200, b"[]"), "does not answer: "),
    ],
)
def test_a_registry_that_is_ill_makes_nothing_a_dead_letter(registry, answer, says):
    registry.add(1, json.dumps(READING))
    value = framed(1, avro(READING, record()))
    reader = with_registry(registry)
    registry.ill = answer
    with pytest.raises(InputUnavailable) as caught:
        reader.prepare([value])
    assert str(caught.value).startswith(f"the schema registry at {registry.url} {says}")
    registry.ill = None
    assert read(reader, value)[0]["sensor"] == "s1"


def test_a_registry_that_is_not_there_is_named_with_the_reason(registry):
    registry.close()
    reader = with_registry(registry)
    with pytest.raises(InputUnavailable, match=rf"the schema registry at {registry.url} does not answer: .*refused"):
        reader.prepare([framed(1, b"")])


def test_what_a_slow_registry_has_given_is_kept_and_the_rest_asked_for_later(registry):
    ticks = iter(range(0, 1_000, 2))
    for number in range(1, 8):
        registry.add(number, '"int"')
    reader = clocked(registry, lambda: next(ticks))
    values = [framed(number, b"\x02") for number in range(1, 8)]
    tries = 0
    while True:
        try:
            reader.prepare(values)
            break
        except InputUnavailable as error:
            assert "is slow: it gave 2 of" in str(error)
            tries += 1
    assert tries == 3
    assert len(registry.asked) == 7
    assert reader.decode_all(values) == [1] * 7


def test_a_user_and_password_are_sent_and_shown_nowhere_and_a_new_password_is_read(registry, tmp_path):
    registry.add(1, json.dumps(READING))
    registry.user = b"tide:newer-secret"
    file = tmp_path / "password"
    file.write_text("older-secret\n")
    schema = {"registry": registry.url, "username": "tide", "password_file": str(file)}
    reader = format_of(table("avro", schema=schema))
    value = framed(1, avro(READING, record()))
    with pytest.raises(InputUnavailable, match=r"HTTP status 401\. Check schema.username and schema.password_file"):
        reader.prepare([value])
    file.write_text("newer-secret\n")
    assert read(reader, value)[0]["sensor"] == "s1"
    registry.user = None
    in_url = registry.url.replace("//", "//tide:older-secret@")
    refused = rejection(format_of(table("avro", schema={"registry": in_url})), framed(77, b"\0"))
    assert registry.url in refused.message and "secret" not in refused.message


def test_a_registry_with_a_certificate_of_ones_own_is_trusted_by_ca_file_only(tmp_path):
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    registry = SmallRegistry(context)
    registry.add(1, json.dumps(READING))
    value = framed(1, avro(READING, record()))
    trusting = table("avro", schema={"registry": registry.url, "ca_file": str(tmp_path / "ca.pem")})
    assert read(format_of(trusting), value)[0]["sensor"] == "s1"
    with pytest.raises(InputUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        with_registry(registry).prepare([value])
    registry.close()


@pytest.mark.parametrize("value", [b"", b"\0\0\0\1", b'{"ts": 1}', b"\x01\0\0\0\1abc", avro(READING, record())])
@pytest.mark.parametrize("name", ["avro", "protobuf", "json-schema"])
def test_a_value_without_a_schemas_id_is_refused_with_what_must_be_there(registry, name, value):
    refused = rejection(with_registry(registry, name), value)
    assert refused.reason == DeadLetterReason.BAD_FORMAT
    assert "must begin with a zero and the 4 bytes of a schema's id" in refused.message
    assert registry.asked == []


def test_a_schema_of_another_format_is_named(registry):
    registry.add(1, "syntax = 'proto3';", "PROTOBUF")
    refused = rejection(with_registry(registry), framed(1, b"\0"))
    assert refused.reason == DeadLetterReason.BAD_FORMAT
    assert refused.message.endswith("is of the format protobuf, not avro")


@pytest.mark.parametrize("text", ["{", '{"type": "record"}', '"acme.Unknown"', "[]x", '{"type": "enum"}'])
def test_a_schema_that_cannot_be_used_makes_dead_letters_that_name_it(registry, text):
    registry.add(9, text)
    refused = rejection(with_registry(registry), framed(9, b"\0"))
    assert refused.reason == DeadLetterReason.BAD_FORMAT
    assert f"schema 9 of the registry at {registry.url} cannot be used: it is no Avro schema" in refused.message
