"""Avro, from a registry and from a schema file."""

import json
from decimal import Decimal

import fastavro
import pytest
from google.protobuf import descriptor_pb2, duration_pb2, struct_pb2, timestamp_pb2, wrappers_pb2  # noqa: F401

from tests.support.schemas import (
    AT_MS,
    PLACE,
    READING,
    avro,
    avro_file,
    framed,
    read,
    record,
    rejection,
    table,
    with_registry,
)
from tidecast.service.broker.port import Batch
from tidecast.service.errors import UsageError
from tidecast.service.input.documents import read_documents
from tidecast.service.input.mapping import InputMapper
from tidecast.service.input.rejected import DeadLetterReason


def test_every_kind_of_avro_field_comes_as_a_path_can_use_it(tmp_path):
    kinds = {
        "millis": ({"type": "long", "logicalType": "timestamp-millis"}, AT_MS, AT_MS),
        "micros": ({"type": "long", "logicalType": "timestamp-micros"}, -1_001, -2),
        "nanos": ({"type": "long", "logicalType": "timestamp-nanos"}, AT_MS * 1_000_000 + 1, AT_MS),
        "plain": ("long", 7, 7),
        "price": ({"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}, Decimal("12.34"), None),
        "raw": ("bytes", b"\x01\x02", None),
        "state": ({"type": "enum", "name": "State", "symbols": ["ON", "OFF"]}, "OFF", None),
        "either": (["null", "string", "double"], 1.5, None),
        "none": (["null", "double"], None, None),
        "tags": ({"type": "map", "values": "string"}, {"a": "b"}, None),
        "list": ({"type": "array", "items": "int"}, [1, 2], None),
        "id": ({"type": "string", "logicalType": "uuid"}, "f81d4fae-7dec-11d0-a765-00a0c91e6bf6", None),
    }
    fields = [{"name": name, "type": kind} for name, (kind, _, _) in kinds.items()]
    plain = [each | {"type": "long"} if "timestamp" in str(each) else each for each in fields]
    schema = {"type": "record", "name": "R", "fields": fields}
    value = avro(schema | {"fields": plain}, {name: given for name, (_, given, _) in kinds.items()})
    expected = {name: given if wanted is None else wanted for name, (_, given, wanted) in kinds.items()}
    assert read(avro_file(tmp_path, schema), value) == [expected]


@pytest.mark.parametrize("unit", [None, "ms", "us", "s"])
@pytest.mark.parametrize("logical", ["timestamp-millis", "timestamp-micros"])
def test_the_time_of_an_avro_timestamp_is_right_whatever_unit_the_table_names(tmp_path, unit, logical):
    schema = json.loads(json.dumps(READING).replace("timestamp-millis", logical))
    file = tmp_path / "reading.avsc"
    file.write_text(json.dumps(schema))
    unit = {} if unit is None else {"time_unit": unit}
    config = table("avro", schema={"file": str(file)}, key="sensor", time="at", **unit)
    mapper = InputMapper(config, ["value", "wind"])
    batch = Batch("t", [0], [0], [0], [None], [avro(schema, record())], [()])
    mapper.prepare(batch)
    mapped = mapper.map(batch)
    assert mapped.readings.rejected == {}
    assert mapped.readings.ts.tolist() == [AT_MS]
    assert mapped.readings.x.tolist() == [[2.5, 1.5]]
    assert mapped.batch.keys == [b"s1"]


def test_a_decimal_is_a_number_of_a_reading(tmp_path):
    decimal = {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}
    schema = {"type": "record", "name": "R", "fields": [{"name": "ts", "type": "long"}, {"name": "v", "type": decimal}]}
    file = tmp_path / "r.avsc"
    file.write_text(json.dumps(schema))
    mapper = InputMapper(table("avro", schema={"file": str(file)}), ["v"])
    value = avro(schema, {"ts": AT_MS, "v": Decimal("12.25")})
    assert mapper.map(Batch("t", [0], [0], [0], [b"k"], [value], [()])).readings.x.tolist() == [[12.25]]


def test_each_record_is_read_with_its_writers_schema_and_nothing_is_filled_in(registry):
    newer = READING | {"fields": [*READING["fields"], {"name": "gust", "type": "double", "default": 9.0}]}
    registry.add(1, json.dumps(READING))
    registry.add(2, json.dumps(newer))
    old, new = framed(1, avro(READING, record())), framed(2, avro(newer, record(gust=3.0)))
    reader = with_registry(registry)
    found = read(reader, old, new, old)
    assert [each.get("gust") for each in found] == [None, 3.0, None]
    assert "gust" not in found[0]
    assert [each["at"] for each in found] == [AT_MS] * 3


def test_a_schema_is_asked_for_once_also_by_the_model_that_takes_over(registry):
    registry.add(1, json.dumps(READING))
    value = framed(1, avro(READING, record()))
    for _ in range(2):  # a worker makes one for each model
        reader = with_registry(registry)
        read(reader, *[value] * 3)
        read(reader, value)
    assert registry.asked == ["/schemas/ids/1"]


def test_types_of_other_schemas_are_found_also_those_that_these_refer_to(registry):
    zone = {"type": "record", "name": "acme.Zone", "fields": [{"name": "zone", "type": "string"}]}
    place = PLACE | {"fields": [*PLACE["fields"], {"name": "zone", "type": "acme.Zone"}]}
    reading = READING | {"fields": [*READING["fields"], {"name": "place", "type": "acme.plant.Place"},
                                    {"name": "zone", "type": "acme.Zone"}]}  # fmt: skip
    registry.add(1, json.dumps(zone))
    registry.add(2, json.dumps(place), references=[("acme.Zone", "s1")])
    registry.add(3, json.dumps(reading), references=[("acme.plant.Place", "s2"), ("acme.Zone", "s1")])
    where = {"site": "north", "line": 4, "zone": {"zone": "z"}}
    value = framed(3, avro(reading, record(place=where, zone={"zone": "y"}), zone, place))
    (found,) = read(with_registry(registry), value)
    assert (found["place"], found["zone"]) == (where, {"zone": "y"})


def test_a_topic_of_several_types_is_a_union_of_references(registry):
    registry.add(1, json.dumps(READING))
    registry.add(2, json.dumps(PLACE))
    registry.add(3, json.dumps(["acme.Reading", "acme.plant.Place"]), references=[("acme.Reading", "s1"), ("acme.plant.Place", "s2")])  # fmt: skip # noqa: E501
    body = avro(PLACE, {"site": "north", "line": 4})
    assert read(with_registry(registry), framed(3, b"\x02" + body)) == [{"site": "north", "line": 4}]
    assert read(with_registry(registry), framed(3, b"\x00" + avro(READING, record())))[0]["sensor"] == "s1"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda value: value[:-1], "the value is not Avro of its schema: "),
        (lambda value: value + b"\0\0", "2 bytes are left when all fields are read"),
    ],
)
def test_bytes_that_do_not_fit_the_schema_are_refused_not_read_as_something_else(registry, change, says):
    registry.add(1, json.dumps(READING))
    refused = rejection(with_registry(registry), change(framed(1, avro(READING, record()))))
    assert refused.reason == DeadLetterReason.BAD_FORMAT
    assert says in refused.message


@pytest.mark.parametrize("bad", [lambda value: value[:-1], lambda value: value + b"\0", lambda value: b"{}"])
def test_a_bad_record_takes_nothing_from_the_one_after_it(registry, bad):
    registry.add(1, json.dumps(READING))
    good = [framed(1, avro(READING, record(value=float(step)))) for step in range(3)]
    reader = with_registry(registry)
    values = [good[0], bad(good[1]), good[2]]
    reader.prepare(values)
    documents = read_documents(values, reader)
    assert [each["value"] for each in documents.items] == [0.0, 2.0]
    assert (documents.records, list(documents.rejected)) == ([0, 2], [1])


def test_a_type_that_holds_itself_is_refused_as_deep_values_would_end_the_process(registry, tmp_path):
    chain = {"type": "record", "name": "L", "fields": [{"name": "next", "type": ["null", "L"]}]}
    registry.add(1, json.dumps(chain))
    refused = rejection(with_registry(registry), framed(1, b"\x02" * 1_000_000))
    assert "its type L holds itself" in refused.message
    with pytest.raises(UsageError, match="its type L holds itself"):
        avro_file(tmp_path, chain)


def test_avro_without_a_registry_is_read_with_and_without_the_mark_of_a_single_object(tmp_path):
    body = avro(READING, record())
    # The mark as the specification makes it: the schema's CRC-64-AVRO, the lowest byte first.
    canonical = fastavro.schema.to_parsing_canonical_form(READING)
    mark = b"\xc3\x01" + _rabin(canonical.encode()).to_bytes(8, "little")
    reader = avro_file(tmp_path, READING)
    found = read(reader, body, mark + body)
    assert found[0] == found[1]
    assert found[0]["value"] == 2.5
    assert rejection(reader, b"\xc3\x01" + bytes(8) + body).reason == DeadLetterReason.BAD_FORMAT


def _rabin(text):
    """CRC-64-AVRO, as the specification defines it."""
    empty = 0xC15D213AA4D7A795
    found = empty
    for byte in text:
        found ^= byte
        for _ in range(8):
            found = (found >> 1) ^ (empty if found & 1 else 0)
    return found
