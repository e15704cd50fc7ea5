"""Topics of many shapes, as the newest records of each: what a proposal must read, and as what."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tidecast.service.broker.port import Batch

T0 = 1_700_000_000_000  # ms
STEP = 60_000
ROWS = 40


def iso(ms: int, form: str = "%Y-%m-%dT%H:%M:%SZ") -> str:
    return datetime.fromtimestamp(ms / 1_000, UTC).strftime(form)


def records(values: list[Any], keys: list[bytes | None] | bytes | None = None, partitions: int = 3) -> Batch:
    """Records a minute apart, in turns of the partitions; values that are no bytes become JSON."""
    n = len(values)
    return Batch(
        "plant",
        [row % partitions for row in range(n)],
        [row // partitions for row in range(n)],
        [T0 + row * STEP + 350 for row in range(n)],
        keys if isinstance(keys, list) else [keys] * n,
        [value if isinstance(value, bytes) or value is None else json.dumps(value).encode() for value in values],
        [()] * n,
    )


@dataclass
class Shape:
    """`series` and `features`: what must come out of `batch`, with a reading at `T0` or after it in each record."""

    batch: Batch
    series: set[str]
    features: set[str]
    table: dict[str, Any] = field(default_factory=dict)  # what must stand in the table, among others


def rows(make: Any, count: int = ROWS) -> list[Any]:
    """`make(row, ms)` for each."""
    return [make(row, T0 + row * STEP) for row in range(count)]


THREE = {"m0", "m1", "m2"}
MACHINES = [f"m{row % 3}".encode() for row in range(ROWS)]


def connect(payload: dict[str, Any]) -> dict[str, Any]:
    fields = [{"type": "string", "optional": False, "field": name} for name in payload]
    return {"schema": {"type": "struct", "fields": fields, "optional": False, "version": 1}, "payload": payload}


def changed(row: int, ms: int) -> dict[str, Any]:
    after = {"id": row, "machine": f"m{row % 3}", "measured_at": ms * 1_000, "temp": 20.5, "hum": 40}
    source = {"version": "2.5", "connector": "postgresql", "ts_ms": ms + 40, "lsn": 24023128 + row, "table": "readings"}
    return {"before": None, "after": after, "source": source, "op": "c", "ts_ms": ms + 300, "transaction": None}


SHAPES: dict[str, Shape] = {
    "our own form": Shape(
        records(rows(lambda i, t: {"ts": t, "temp": 20.5, "hum": 40}), MACHINES), THREE, {"temp", "hum"}
    ),
    "our own form without keys, seconds": Shape(
        records(rows(lambda i, t: {"ts": t // 1000, "sensor": f"m{i % 3}", "temp": 20.5, "seq": i})),
        THREE, {"temp"}, {"key": "sensor", "time_unit": "s"},
    ),
    "JSON Schema of a registry": Shape(
        records(rows(lambda i, t: b"\0\0\0\0\7" + b'{"ts": %d, "machine": "m%d", "temp": 20.5}' % (t, i % 3))),
        THREE, {"temp"}, {"format": "json-schema"},
    ),
    "telegraf": Shape(
        records(rows(lambda i, t: {
            "fields": {"usage_idle": 98.5, "usage_user": 1.5}, "name": "cpu",
            "tags": {"cpu": "cpu-total", "host": f"m{i % 3}"}, "timestamp": t // 1000,
        })), THREE, {"usage_idle", "usage_user"},
    ),
    "connect envelope": Shape(
        records(rows(lambda i, t: connect({"device": f"m{i % 3}", "time": t, "pressure": 3.5, "flow": 2}))),
        THREE, {"pressure", "flow"},
    ),
    "debezium": Shape(records(rows(changed), [json.dumps({"id": i}).encode() for i in range(ROWS)]), THREE,
                      {"temp", "hum"}),
    "cloudevents": Shape(
        records(rows(lambda i, t: {
            "specversion": "1.0", "type": "com.plant.reading", "source": f"m{i % 3}", "id": f"a-{i}",
            "time": iso(t), "datacontenttype": "application/json", "data": {"temperature": 20.5, "humidity": 44.1},
        })), THREE, {"temperature", "humidity"},
    ),
    "long form, one metric a record": Shape(
        records(rows(lambda i, t: {"device": f"m{i % 3}", "metric": ("temp", "hum")[i % 2], "value": 20.5 + i,
                                   "unit": "C", "time": iso(t)})),
        THREE, {"temp", "hum"}, {"name": "metric", "value": "value", "key": "device"},
    ),
    "long form by the record's key": Shape(
        records(rows(lambda i, t: {"name": ("temp", "hum")[i // 3 % 2], "v": 20.5 + i, "t": t}), MACHINES),
        THREE, {"temp", "hum"}, {"name": "name", "value": "v"},
    ),
    "one value for each sensor": Shape(
        records(rows(lambda i, t: {"sensor_id": i % 3, "value": 20.5 + i, "timestamp": iso(t)})), {"0", "1", "2"},
        {"value"}, {"key": "sensor_id"},
    ),
    "a list of sensors": Shape(
        records(rows(lambda i, t: {"ts": t, "gateway": "g", "readings": [
            {"id": f"m{m}", "temp": 20.5, "hum": 40 + m} for m in range(3)]})), THREE, {"temp", "hum"},
        {"explode": "readings", "key": "id", "time": "../ts"},
    ),
    "a list at the top": Shape(
        records(rows(lambda i, t: [{"dev": f"m{m}", "at": t, "temp": 20.5} for m in range(3)])), THREE, {"temp"},
    ),
    "a list of metrics": Shape(
        records(rows(lambda i, t: {"device": f"m{i % 3}", "timestamp": t, "metrics": [
            {"name": "temp", "value": 20.5, "type": "Float"}, {"name": "hum", "value": 44.0, "type": "Float"}]})),
        THREE, {"temp", "hum"}, {"explode": "metrics", "name": "name", "value": "value", "key": "../device"},
    ),
    "values of several types": Shape(
        records(rows(lambda i, t: {"device": f"m{i % 3}", "ts": t, "points": [
            {"name": "temp", "doubleValue": 20.5}, {"name": "count", "intValue": 44 + i}]})),
        THREE, {"temp", "count"}, {"value": "doubleValue | intValue"},
    ),
    "a map of sensors": Shape(
        records(rows(lambda i, t: {"time": t, "sensors": {f"m{m}": {"temp": 20.5, "hum": 41} for m in range(3)}})),
        THREE, {"temp", "hum"}, {"key": "@name"},
    ),
    "objects with value and unit": Shape(
        records(rows(lambda i, t: {"ts": iso(t), "machine": f"m{i % 3}", "temp": {"value": 20.5, "unit": "C"},
                                   "hum": {"value": 40.0, "unit": "%"}})), THREE, {"temp", "hum"},
    ),
    "numbers as texts": Shape(
        records(rows(lambda i, t: {"ts": iso(t), "serial": f"m{i % 3}", "temp": "20.5", "hum": "unavailable"
                                   if i == 3 else "40"})), THREE, {"temp", "hum"},
    ),
    "pairs of value and time": Shape(
        records(rows(lambda i, t: {"target": f"m{i % 3}", "datapoints": [[20.5, t // 1000], [21.5, t // 1000 + 30]]})),
        THREE, {"value_0"}, {"explode": "datapoints", "time": "[1]"},
    ),
    "site and machine": Shape(
        records(rows(lambda i, t: {"site": f"s{i // 2 % 2}", "machine": f"m{i % 2}", "ts": T0 + i // 4 * STEP,
                                   "temp": 20.5})),
        {"s0/m0", "s0/m1", "s1/m0", "s1/m1"}, {"temp"}, {"key": "{site}/{machine}"},
    ),
    "German times": Shape(
        records(rows(lambda i, t: {"zeit": iso(t, "%d.%m.%Y %H:%M:%S"), "maschine_id": f"m{i % 3}",
                                   "geraet": {"druck": 3.5}}), MACHINES), THREE, {"druck"},
        {"time_format": "%d.%m.%Y %H:%M:%S"},
    ),
    "nanoseconds as a text": Shape(
        records(rows(lambda i, t: {"timeUnixNano": str(t * 1_000_000), "asDouble": 20.5, "host.name": f"m{i % 3}"})),
        THREE, {"asDouble"}, {"time_unit": "ns", "key": '"host.name"'},
    ),
    "no time at all": Shape(
        records(rows(lambda i, t: {"temp": 20.5, "hum": 40}), MACHINES), THREE, {"temp", "hum"}, {"time": "@record"}
    ),
    "JSON keys": Shape(
        records(rows(lambda i, t: {"ts": t, "temp": 20.5}), [json.dumps({"machine": f"m{i % 3}"}).encode()
                                                             for i in range(ROWS)]),
        THREE, {"temp"}, {"key": "@key.machine"},
    ),
    "keys that are the messages'": Shape(
        records(rows(lambda i, t: {"ts": t, "temp": 20.5, "sensor": f"m{i % 3}"}),
                [b"uuid-%d" % i for i in range(ROWS)]),
        THREE, {"temp"}, {"key": "sensor"},
    ),
    "line protocol": Shape(
        records(rows(lambda i, t: f"weather,host=m{i % 3} temp=20.5,hum=40i {t}000000\n".encode())), THREE,
        {"temp", "hum"},
    ),
    "CSV with a header": Shape(
        records([b"time,machine,temp,hum\n" + f"{iso(T0 + i * STEP)},m{i % 3},20.5,40".encode() for i in range(ROWS)]),
        THREE, {"temp", "hum"}, {"format": "csv", "columns": ["time", "machine", "temp", "hum"]},
    ),
    "CSV without a header": Shape(
        records([f"{iso(T0 + i * STEP)};m{i % 3};20.5;40".encode() for i in range(ROWS)]),
        THREE, {"column3", "column4"}, {"delimiter": ";", "key": "column2"},
    ),
    "numbers in a list": Shape(
        records(rows(lambda i, t: {"ts": t, "id": f"m{i % 3}", "accel": [0.1, 0.2, 9.8]})), THREE,
        {"accel_0", "accel_1", "accel_2"},
    ),
    "nested lists": Shape(
        records(rows(lambda i, t: {"site": "s", "lines": [{"line": "l1", "machines": [
            {"machine": f"m{m}", "temp": 20.5, "ts": t} for m in range(3)]}]})), THREE, {"temp"},
        {"explode": ["lines", "machines"]},
    ),
}  # fmt: skip
