"""What an [input] table costs: bytes of other people's topics to readings, in µs of one core for each reading.

    python benchmarks/input.py [--readings 5000] [--rounds 15] [--json]

CPU time of this process, with the schemas of the batch looked up; the shapes take turns, and the best round of each
counts. Every shape holds the same readings: a sensor's name, a time and three numbers. The first row is tidecast's own
JSON without a table, which the others are compared with; the second is the same JSON through a table. A schema registry
is not asked: its schemas are in the process, as after the first batch.
"""

from __future__ import annotations

import argparse
import base64
import gc
import io
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import fastavro
from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor_pool import DescriptorPool

from tidecast.service.broker.port import Batch
from tidecast.service.input.canonical import ReadingDecoder
from tidecast.service.input.config import parse_input
from tidecast.service.input.mapping import InputMapper
from tidecast.service.input.registry import RegisteredSchema, registry_of

START_MS = 1_700_000_000_000
SENSORS = 100
FEATURES = ("temperature", "pressure", "rpm")
FIELDS = {name: f"fields.{name}" for name in FEATURES}
NOBODY = {"registry": "http://127.0.0.1:9"}
AVRO = {
    "type": "record", "name": "Reading",
    "fields": [
        {"name": "sensor", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        *({"name": name, "type": ["null", "double"]} for name in FEATURES),
    ],
}  # fmt: skip

Reading = dict[str, Any]  # sensor, ts, and the features
Shape = tuple[dict[str, Any], list[bytes]]  # the table, and the values; several readings may be in one


def readings(n: int) -> list[Reading]:
    """The readings that all shapes hold."""
    numbers = ({"temperature": 20.5 + i % 7, "pressure": 1.25 * (i % 11), "rpm": float(i)} for i in range(n))
    return [{"sensor": f"press-{i % SENSORS}", "ts": START_MS + i * 1_000} | each for i, each in enumerate(numbers)]


def features(reading: Reading) -> dict[str, float]:
    """Without sensor and time."""
    return {name: reading[name] for name in FEATURES}


def nested(found: list[Reading]) -> Shape:
    """JSON whose numbers lie in an object of their own."""
    table = {"key": "tags.sensor", "time": "at", "fields": FIELDS}
    return table, [_json({"tags": {"sensor": r["sensor"]}, "fields": features(r), "at": r["ts"]}) for r in found]


def avro(found: list[Reading]) -> Shape:
    """Behind a registry's id."""
    schema, values = fastavro.parse_schema(AVRO), []
    for r in found:
        out = io.BytesIO(b"\0\0\0\0\1")
        out.seek(5)
        at = datetime.fromtimestamp(r["ts"] / 1_000, UTC)
        fastavro.schemaless_writer(out, schema, features(r) | {"sensor": r["sensor"], "at": at})
        values.append(out.getvalue())
    return {"format": "avro", "schema": NOBODY, "key": "sensor", "time": "at"}, values


def protobuf_file() -> descriptor_pb2.FileDescriptorProto:
    """The schema."""
    file = descriptor_pb2.FileDescriptorProto(name="reading.proto", syntax="proto3")
    kind = descriptor_pb2.FieldDescriptorProto
    message = file.message_type.add(name="Reading")
    kinds = {"sensor": kind.TYPE_STRING, "at": kind.TYPE_INT64} | dict.fromkeys(FEATURES, kind.TYPE_DOUBLE)
    for number, (name, of_field) in enumerate(kinds.items(), start=1):
        message.field.add(name=name, number=number, type=of_field, label=kind.LABEL_OPTIONAL)
    return file


def protobuf(found: list[Reading]) -> Shape:
    """Behind a registry's id."""
    pool = DescriptorPool()
    pool.Add(protobuf_file())
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName("Reading"))
    values = [message(sensor=r["sensor"], at=r["ts"], **features(r)).SerializeToString() for r in found]
    table = {"format": "protobuf", "schema": NOBODY, "key": "sensor", "time": "at"}
    return table, [b"\0\0\0\0\2\0" + value for value in values]


def csv(found: list[Reading]) -> Shape:
    """A line for each reading."""
    columns = ["sensor", "ts", *FEATURES]
    return (
        {"format": "csv", "columns": columns, "key": "sensor"},
        [",".join(str(r[name]) for name in columns).encode() for r in found],
    )


def influx(found: list[Reading]) -> Shape:
    """Line protocol."""
    table = {"format": "influx", "key": "tags.sensor", "time": "time", "time_unit": "ns", "fields": FIELDS}
    lines = (
        f"press,sensor={r['sensor']} {','.join(f'{name}={r[name]}' for name in FEATURES)} {r['ts']}000000"
        for r in found
    )
    return table, [line.encode() for line in lines]


def telegraf(found: list[Reading]) -> Shape:
    """A list of twenty readings in each record."""
    table = {"explode": "metrics", "key": "tags.sensor", "time": "timestamp", "time_unit": "s", "fields": FIELDS}
    metrics = [
        {"name": "press", "tags": {"sensor": r["sensor"]}, "fields": features(r), "timestamp": r["ts"] // 1_000}
        for r in found
    ]
    return table, [_json({"metrics": metrics[i : i + 20]}) for i in range(0, len(metrics), 20)]


def long_form(found: list[Reading]) -> Shape:
    """A list of names and values in each record."""
    table = {"explode": "values", "key": "/sensor", "time": "/ts", "name": "name", "value": "value"}
    return table, [
        _json({"sensor": r["sensor"], "ts": r["ts"], "values": [{"name": n, "value": r[n]} for n in FEATURES]})
        for r in found
    ]


# Row -> what makes it. A row of yours: a table and its values, which hold these readings.
SHAPES: dict[str, Callable[[list[Reading]], Shape]] = {
    "the same through a table": lambda found: ({}, [_json(r) for r in found]),
    "nested JSON": nested,
    "Avro, registry": avro,
    "Protobuf, registry": protobuf,
    "CSV lines": csv,
    "InfluxDB lines": influx,
    "Telegraf's JSON, 20 readings a record": telegraf,
    "long form, 3 values a record": long_form,
}


def _json(document: Any) -> bytes:
    return json.dumps(document).encode()


def batch_of(values: list[bytes]) -> Batch:
    """As a client hands it over."""
    n = len(values)
    return Batch("t", [0] * n, list(range(n)), [START_MS] * n, [b"key"] * n, list(values), [()] * n)


def workers(n: int) -> dict[str, Callable[[], Any]]:
    """Row -> what maps a batch of n readings once."""
    registry = registry_of(parse_input({"format": "avro", "schema": NOBODY}).schema)
    registry._schemas = {
        1: RegisteredSchema("AVRO", json.dumps(AVRO)),
        2: RegisteredSchema("PROTOBUF", base64.b64encode(protobuf_file().SerializeToString()).decode()),
    }
    found = readings(n)
    own = [_json(r) for r in found]
    decoder = ReadingDecoder(FEATURES)
    rows: dict[str, Callable[[], Any]] = {"tidecast's own JSON": lambda: decoder.decode(own)}
    for name, make in SHAPES.items():
        table, values = make(found)
        rows[name] = _mapping(InputMapper(parse_input(table), FEATURES), batch_of(values), n)
    return rows


def _mapping(mapper: InputMapper, batch: Batch, n: int) -> Callable[[], Any]:
    def once() -> None:
        mapper.prepare(batch)
        mapper.map(batch)

    mapper.prepare(batch)
    mapped = mapper.map(batch)
    assert len(mapped.batch) == n and not mapped.readings.rejected, next(iter(mapped.readings.rejected.values()), n)
    return once


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readings", type=int, default=5_000, help="in a batch")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object of µs a reading")
    args = parser.parse_args()
    rows = workers(args.readings)
    best = dict.fromkeys(rows, float("inf"))
    for _ in range(args.rounds):
        for name, once in rows.items():
            gc.collect()  # as the worker does it: between two batches, and at no other time
            gc.disable()
            began = time.process_time()
            once()
            best[name] = min(best[name], (time.process_time() - began) / args.readings * 1e6)
            gc.enable()
    first = next(iter(best.values()))
    print(f"best of {args.rounds} rounds in turns, {args.readings:,} readings a batch\n")
    print("| | µs a reading | of tidecast's own |\n|---|---|---|")
    for name, us in best.items():
        print(f"| {name} | {us:.2f} | {us / first:.1f} |")
    if args.json:
        print(json.dumps({name: round(us, 3) for name, us in best.items()}))


if __name__ == "__main__":
    main()
