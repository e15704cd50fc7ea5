"""Messages in the shapes that real topics have: each is read right, or refused with the sentence that a user needs.

A file in `shapes/` is one shape: `source` (where its form is documented), `about`, the model's `features`, the table
`[input]`, and records. Of each record: its readings, what is refused and a part of the sentence, `skipped`, or the
series that it forgets (`tombstone`). `error`: what the table itself is refused with.
"""

import base64
import tomllib
from pathlib import Path

import numpy as np
import pytest

from tests.support.checkout import tracked
from tests.support.printed import ROOT
from tidecast.service.broker.port import Batch
from tidecast.service.errors import UsageError
from tidecast.service.input.config import parse_input, preset_names
from tidecast.service.input.mapping import InputMapper, MappedBatch

SHAPES = {
    path.stem: tomllib.loads(path.read_text("utf-8")) for path in (Path(__file__).parent / "shapes").glob("*.toml")
}
WITH_RECORDS = sorted(name for name, shape in SHAPES.items() if "records" in shape)
RECORD_MS = 1_700_000_000_500


def _bytes(record: dict, name: str) -> bytes | None:
    if f"{name}_base64" in record:
        return base64.b64decode(record[f"{name}_base64"])
    return record[name].encode() if name in record else None


def _batch(records: list[dict]) -> Batch:
    return Batch(
        "topic",
        [0] * len(records),
        list(range(len(records))),
        [record.get("timestamp", RECORD_MS) for record in records],
        [_bytes(record, "key") for record in records],
        [_bytes(record, "value") for record in records],
        [tuple((name, text.encode()) for name, text in record.get("headers", {}).items()) for record in records],
    )


def _outcome(mapped: MappedBatch, record: int) -> dict:
    """What became of a record, in the terms of a shape's file."""
    rows = [
        row for row in range(len(mapped.batch)) if (row if mapped.records is None else mapped.records[row]) == record
    ]
    readings, refused, found = [], [], {}
    for row in rows:
        key = mapped.batch.keys[row]
        if row in mapped.readings.tombstones:
            found["tombstone"] = key.decode()
        elif row in mapped.readings.rejected:
            refused.append(mapped.readings.rejected[row])
        else:
            values = zip(mapped.features, mapped.readings.x[row].tolist(), strict=True)
            present = {name: value for name, value in values if not np.isnan(value)}
            readings.append({"series": key.decode(), "ts": int(mapped.readings.ts[row]), **present})
    if readings:
        found["readings"] = readings
    if refused:
        assert len(refused) == 1
        found |= {"refused": refused[0].reason.value, "says": refused[0].message}
    return found if rows else {"skipped": True}


def _rounded(record: dict) -> dict:
    wanted = {name: record[name] for name in ("readings", "refused", "says", "skipped", "tombstone") if name in record}
    for reading in wanted.get("readings", []):
        reading |= {name: float(np.float32(value)) for name, value in reading.items() if isinstance(value, float)}
    return wanted


@pytest.mark.parametrize("name", WITH_RECORDS)
def test_a_shape_is_read_right_or_refused_with_the_sentence_that_a_user_needs(name: str) -> None:
    shape = SHAPES[name]
    mapper = InputMapper(parse_input(shape["input"]), shape["features"])
    together = mapper.map(_batch(shape["records"]))
    unused = {}
    for at, record in enumerate(shape["records"]):
        alone = mapper.map(_batch([record]))
        found, wanted = _outcome(alone, 0), _rounded(record)
        assert found == _outcome(together, at), "in a batch of its own it is read otherwise"
        if "says" in found and wanted.get("says", "?") in found["says"]:
            found["says"] = wanted["says"]
        assert found == wanted
        assert alone.skipped == wanted.get("skipped", 0)
        assert len(found.get("says", "")) < 300
        unused |= record.get("unused", {})
    assert dict(together.unused) == unused


@pytest.mark.parametrize("name", sorted(SHAPES.keys() - WITH_RECORDS))
def test_a_table_that_no_shape_can_have_is_refused_with_what_to_do(name: str) -> None:
    with pytest.raises(UsageError) as refused:
        InputMapper(parse_input(SHAPES[name]["input"]), SHAPES[name]["features"])
    assert SHAPES[name]["error"] in str(refused.value)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_a_shape_names_where_its_form_is_documented(name: str) -> None:
    assert SHAPES[name]["source"].startswith("https://")
    assert SHAPES[name]["about"]


def test_each_preset_has_a_shape_that_it_reads() -> None:
    read = {
        shape["input"].get("preset")
        for shape in SHAPES.values()
        if any("readings" in record for record in shape.get("records", []))
    }
    assert set(preset_names()) <= read


def test_all_shapes_are_in_the_repository() -> None:
    names = {Path(name).stem for name in tracked() if name.startswith("tests/input/shapes/")}
    assert names == set(SHAPES)


def test_the_fields_of_the_binary_otlp_preset_have_the_numbers_and_types_of_opentelemetrys_own() -> None:
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    metrics = pytest.importorskip("opentelemetry.proto.metrics.v1.metrics_pb2")
    common = pytest.importorskip("opentelemetry.proto.common.v1.common_pb2")
    service = pytest.importorskip("opentelemetry.proto.collector.metrics.v1.metrics_service_pb2")
    resource = pytest.importorskip("opentelemetry.proto.resource.v1.resource_pb2")
    theirs = {
        "Metrics": service.ExportMetricsServiceRequest,
        "ResourceMetrics": metrics.ResourceMetrics,
        "Resource": resource.Resource,
        "ScopeMetrics": metrics.ScopeMetrics,
        "Metric": metrics.Metric,
        "Points": metrics.Sum,
        "Point": metrics.NumberDataPoint,
        "KeyValue": common.KeyValue,
        "Value": common.AnyValue,
    }
    (file,) = FileDescriptorSet.FromString((ROOT / "service/input/presets/otlp.binpb").read_bytes()).file
    ours = [(each.name, field.name, field.number, field.type) for each in file.message_type for field in each.field]
    assert {message.name for message in file.message_type} == set(theirs)
    for message, name, number, kind in ours:
        field = theirs[message].DESCRIPTOR.fields_by_name[name]
        assert (field.number, field.type) == (number, kind), f"{message}.{name}"
