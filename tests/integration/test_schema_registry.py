"""Topics whose schemas are in a real registry, written by Confluent's serializers, with `--input` on a real Kafka."""

import json
import shutil
import uuid

import pytest
from confluent_kafka.schema_registry import Schema, SchemaReference
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import timestamp_pb2  # noqa: F401  # which a message's file imports

from tests.support.gate import PlainGate
from tests.support.models import START_MS, STEP_MS, CountingReference, counting_model, counting_models, publish
from tests.support.registry import registry_client
from tests.support.schemas import READING, Kind, message_classes, proto_file
from tests.support.serving import serving
from tidecast.service.broker.connect import CLIENTS
from tidecast.service.input.rejected import DeadLetterReason

both_clients = pytest.mark.parametrize("client", CLIENTS)
TABLE = """
[input]
format = "{format}"
key = "sensor"
time = "{time}"
fields = {{ value = "value", wind = "wind" }}
[input.schema]
registry = "{registry}"
"""
STEPS = 20


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return counting_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def table(tmp_path):
    def write(format_name, registry, time="at"):
        file = tmp_path / "input.toml"
        file.write_text(TABLE.format(format=format_name, registry=registry, time=time))
        return f"--input={file}"

    return write


@pytest.fixture
def gate(registry):
    """A door to the registry that can be shut."""
    made = PlainGate(lambda: int(registry.split(":")[2].split("/")[0]))
    yield made
    made.shut()


def through(gate):
    return f"http://127.0.0.1:{gate.port}/apis/ccompat/v7"


def writer(registry, schema, topic):
    """What makes values of dicts, as a producer of Confluent's does; the schema is registered for the topic."""
    text = schema if isinstance(schema, str) else json.dumps(schema)
    serializer = AvroSerializer(registry_client(registry), text)
    return lambda record: serializer(record, SerializationContext(topic, MessageField.VALUE))


def at(step):
    return START_MS + step * STEP_MS


def record(step, sensor="a", **more):
    return {"sensor": sensor, "at": at(step), "value": 2.0 * step, "wind": 2.0} | more


def answers(found, sensor="a"):
    """The forecasts of a series, in order, as the counting model gives them."""
    values = [json.loads(value) for _, key, value, _ in found if key == sensor.encode()]
    return [[list(c) for c in zip(*(each["targets"]["value"][q] for q in ("p10", "p50", "p90")), strict=True)]
            for each in values]  # fmt: skip


def expected(values):
    reference = CountingReference()
    return [reference.step([value, 2.0], at(step)) for step, value in enumerate(values)]


ALL = expected([2.0 * step for step in range(STEPS)])


def answered(t, model, flag, sensors=("a",), n=STEPS):
    """The forecasts of a worker that reads all of the topic."""
    with serving("--model", model, flag, *t.flags) as worker:
        found = t.read(t.forecasts, n * len(sensors))
        code, log = worker.end()
    assert code == 0, log
    assert len(found) == n * len(sensors)
    return found


@both_clients
def test_avro_is_answered_also_after_a_kill(topics, model, table, registry, client):
    t, flag = topics(), table("avro", registry)
    write = writer(registry, READING, t.readings)
    t.send((0, None, write(record(step, sensor))) for step in range(STEPS) for sensor in "ab")
    with serving("--model", model, flag, "--session-timeout-seconds=6", *t.flags) as first:
        assert len(t.read(t.forecasts, 2 * STEPS)) == 2 * STEPS
        first.wait_for("its commit", lambda: t.committed()[0][0] >= 2 * STEPS)
    t.send([(0, None, write(record(STEPS, "a")))])
    with serving("--model", model, flag, *t.flags) as second:
        found = t.read(t.forecasts, 2 * STEPS + 1)
        assert second.end()[0] == 0
    assert answers(found, "a") == expected([2.0 * step for step in range(STEPS + 1)])
    assert answers(found, "b") == ALL


def test_producers_with_an_older_and_a_newer_schema_are_read_side_by_side(topics, model, table, registry):
    t = topics()
    without = READING | {"fields": [each for each in READING["fields"] if each["name"] != "value"]}
    with_default = {"name": "value", "type": "double", "default": 7.0}
    newer = without | {"fields": [*without["fields"], with_default]}
    old, new = (writer(registry, schema, t.readings) for schema in (without, newer))
    for step in range(STEPS):  # the older producer is still there after the newer one has begun
        t.send([(0, None, (new if step % 2 else old)(record(step)))])
    found = answered(t, model, table("avro", registry))
    # A value that the writer did not have is missing. It is not the default, which nobody has measured.
    assert answers(found) == expected([2.0 * step if step % 2 else float("nan") for step in range(STEPS)])


def test_types_that_a_schema_refers_to_are_fetched(topics, model, table, registry):
    t, name = topics(), f"acme.At{uuid.uuid4().hex[:8]}"
    client = registry_client(registry)
    client.register_schema(name, Schema(json.dumps({"type": "record", "name": name, "fields": [
        {"name": "ms", "type": {"type": "long", "logicalType": "timestamp-millis"}}]}), "AVRO"))  # fmt: skip
    fields = [each if each["name"] != "at" else {"name": "at", "type": name} for each in READING["fields"]]
    referring = Schema(json.dumps(READING | {"fields": fields}), "AVRO", [SchemaReference(name, name, 1)])
    serializer = AvroSerializer(client, referring)
    context = SerializationContext(t.readings, MessageField.VALUE)
    t.send((0, None, serializer(record(step, at={"ms": at(step)}), context)) for step in range(STEPS))
    flag = table("avro", registry, time="at.ms")
    assert answers(answered(t, model, flag)) == ALL


def messages():
    """Two files, one of which refers to the other; their names are this test's own."""
    own = uuid.uuid4().hex[:8]
    place = proto_file(f"place-{own}.proto", "acme.plant", {"Place": [("site", Kind.TYPE_STRING)]})
    fields = [("sensor", Kind.TYPE_STRING), ("at", "google.protobuf.Timestamp"), ("place", "acme.plant.Place"),
              ("value", Kind.TYPE_DOUBLE), ("wind", Kind.TYPE_FLOAT)]  # fmt: skip
    imports = [place.name, "google/protobuf/timestamp.proto"]
    kinds = {"Other": [("x", Kind.TYPE_INT32)], "Reading": fields}
    return place, proto_file(f"reading-{own}.proto", "acme", kinds, imports)


PLACE_TEXT = """syntax = "proto3"; package acme.plant; message Place { string site = 1; }"""
READING_TEXT = """
syntax = "proto3"; package acme;
import "PLACE"; import "google/protobuf/timestamp.proto";
message Other { int32 x = 1; }
message Reading {
  string sensor = 1; google.protobuf.Timestamp at = 2; acme.plant.Place place = 3; double value = 4; float wind = 5;
}
"""


def filled(kind, step):
    message = kind(sensor="a", value=2.0 * step, wind=2.0)
    message.at.seconds = at(step) // 1_000
    message.place.site = "north"
    return message


def test_protobuf_of_confluents_serializer_with_references_is_answered(topics, model, table, registry):
    t = topics()
    kind = message_classes(*messages())["acme.Reading"]
    serializer = ProtobufSerializer(kind, registry_client(registry))
    context = SerializationContext(t.readings, MessageField.VALUE)
    t.send((0, None, serializer(filled(kind, step), context)) for step in range(STEPS))
    assert answers(answered(t, model, table("protobuf", registry))) == ALL


def test_protobuf_whose_schema_the_registry_has_as_text_is_answered(topics, model, table, registry):
    t, own = topics(), uuid.uuid4().hex[:8]
    client = registry_client(registry)
    place, reading = f"place-{own}.proto", f"reading-{own}"
    client.register_schema(place, Schema(PLACE_TEXT, "PROTOBUF"))
    text = READING_TEXT.replace("PLACE", place)
    number = client.register_schema(reading, Schema(text, "PROTOBUF", [SchemaReference(place, place, 1)]))
    kind = message_classes(*messages())["acme.Reading"]
    head = b"\0" + number.to_bytes(4) + b"\x02\x02"  # the second message of its file
    t.send((0, None, head + filled(kind, step).SerializeToString()) for step in range(STEPS))
    assert answers(answered(t, model, table("protobuf", registry))) == ALL


def test_json_of_confluents_serializer_is_answered(topics, model, table, registry):
    t = topics()
    number, text = {"type": "number"}, {"type": "string"}
    properties = {"sensor": text, "at": {"type": "integer"}, "value": number, "wind": number}
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Reading", "type": "object",
              "properties": properties}  # fmt: skip
    serializer = JSONSerializer(json.dumps(schema), registry_client(registry))
    context = SerializationContext(t.readings, MessageField.VALUE)
    t.send((0, None, serializer(record(step), context)) for step in range(STEPS))
    assert answers(answered(t, model, table("json-schema", registry))) == ALL


@both_clients
def test_while_the_registry_is_away_readings_wait_and_are_answered_once_it_is_back(
    topics, model, table, registry, gate, client
):
    t = topics(partitions=2)
    write = writer(registry, READING, t.readings)
    sensors = {"a": 0, "b": 1}
    t.send((p, None, write(record(step, s))) for step in range(STEPS - 1) for s, p in sensors.items())
    gate.shut()
    short = "--session-timeout-seconds=6"
    with serving("--model", model, table("avro", through(gate)), short, *t.flags) as worker:
        worker.wait_for("the wait", lambda: worker.metric("tidecast_input_waits_total") >= 3)
        status, body = worker.get("/readyz")
        assert status == 503 and "does not answer" in body and through(gate) in body
        t.send((p, None, write(record(STEPS - 1, s))) for s, p in sensors.items())
        # Longer than a member may be silent. The lag grows meanwhile, and nothing is taken for a bad record.
        worker.wait_for("the lag", lambda: worker.metric("tidecast_lag_records") == 2 * STEPS)
        worker.wait_for("more than a session", lambda: worker.metric("tidecast_input_waits_total") >= 6)
        assert worker.metric("tidecast_rebalances_total") == 1
        assert worker.metric("tidecast_readings_total") == 0
        gate.open()
        found = t.read(t.forecasts, 2 * STEPS)
        worker.ready()
        worker.wait_for("the lag", lambda: worker.metric("tidecast_lag_records") == 0)
        assert worker.metric("tidecast_dead_letters_total") == 0
        assert worker.metric("tidecast_rebalances_total") == 1
        code, log = worker.end()
    assert code == 0, log
    assert len(found) == 2 * STEPS
    assert [answers(found, s) for s in sensors] == [ALL, ALL]
    assert log.count("readings wait for the schema registry") == 1, log
    assert log.count("readings no longer wait for it") == 1, log


def test_a_worker_that_joins_during_the_outage_takes_its_part_and_all_is_answered_once(
    topics, model, table, registry, gate
):
    t = topics(partitions=2)
    write = writer(registry, READING, t.readings)
    sensors = {"a": 0, "b": 1}
    t.send((p, None, write(record(step, s))) for step in range(STEPS) for s, p in sensors.items())
    gate.shut()
    flags = ("--model", model, table("avro", through(gate)), *t.flags)
    with serving(*flags) as first:
        first.wait_for("the wait", lambda: first.metric("tidecast_input_waits_total") > 0)
        with serving(*flags) as second:
            second.wait_for("its wait", lambda: second.metric("tidecast_input_waits_total") > 0)
            gate.open()
            found = t.read(t.forecasts, 2 * STEPS)
            assert [worker.end()[0] for worker in (second, first)] == [0, 0]
    assert len(found) == 2 * STEPS
    assert [answers(found, s) for s in sensors] == [ALL, ALL]


def test_a_worker_that_waits_for_the_registry_ends_at_once_and_the_next_one_answers(
    topics, model, table, registry, gate
):
    t = topics()
    write = writer(registry, READING, t.readings)
    t.send((0, None, write(record(step))) for step in range(STEPS))
    gate.shut()
    flag = table("avro", through(gate))
    with serving("--model", model, flag, *t.flags) as worker:
        worker.wait_for("the wait", lambda: worker.metric("tidecast_input_waits_total") > 0)
        code, log = worker.end()
    assert code == 0, log
    gate.open()
    assert answers(answered(t, model, flag)) == ALL


def test_an_outage_after_the_start_stops_only_what_has_a_new_schema(topics, model, table, registry, gate):
    t = topics()
    write = writer(registry, READING, t.readings)
    later = READING | {"fields": [*READING["fields"], {"name": "gust", "type": "double", "default": 0.0}]}
    write_later = writer(registry, later, t.readings)
    t.send([(0, None, write(record(0)))])
    with serving("--model", model, table("avro", through(gate)), *t.flags) as worker:
        t.read(t.forecasts, 1)
        gate.shut()
        t.send((0, None, write(record(step))) for step in range(1, 10))
        t.read(t.forecasts, 10)
        t.send((0, None, write_later(record(step, gust=1.0))) for step in range(10, STEPS))
        worker.wait_for("the wait", lambda: worker.metric("tidecast_input_waits_total") > 0)
        gate.open()
        found = t.read(t.forecasts, STEPS)
        assert worker.end()[0] == 0
    assert answers(found) == ALL


def test_a_model_that_takes_over_while_the_registry_is_away_replays_once_it_is_back(
    topics, table, registry, gate, tmp_path
):
    t, models, place = topics(), counting_models(tmp_path, 3), tmp_path / "served"
    shutil.copytree(models[0], place)
    write = writer(registry, READING, t.readings)
    later = READING | {"fields": [*READING["fields"], {"name": "gust", "type": "double", "default": 0.0}]}
    write_later = writer(registry, later, t.readings)
    t.send((0, None, write(record(step))) for step in range(STEPS))
    flags = ("--model", place, table("avro", through(gate)), "--model-watch-seconds=0.1", *t.flags)
    with serving(*flags) as worker:
        t.read(t.forecasts, STEPS)
        assert worker.end()[0] == 0
    t.send([(0, None, write_later(record(STEPS, gust=1.0)))])
    with serving(*flags) as worker:
        t.read(t.forecasts, STEPS + 1)
        gate.shut()
        publish(
            models[2], place
        )  # its states are others: it replays readings of the schema that this worker has not met
        worker.wait_for("the wait", lambda: "the new model's replay waits" in worker.log)
        t.send([(0, None, write_later(record(STEPS + 1, gust=1.0)))])
        t.read(t.forecasts, STEPS + 2)  # by the older model
        assert worker.metric("tidecast_model_swaps_total") == 0
        gate.open()
        worker.wait_for("the swap", lambda: worker.metric("tidecast_model_swaps_total") == 1)
        code, log = worker.end()
    assert code == 0, log
    found = t.read(t.forecasts, STEPS + 2)
    assert answers(found) == expected([2.0 * step for step in range(STEPS + 2)])
    assert log.count("the new model's replay continues") == 1, log


def test_an_id_that_the_registry_does_not_have_is_a_dead_letter_until_it_is_registered(topics, model, table, registry):
    t = topics()
    write = writer(registry, READING, t.readings)
    good = [write(record(step)) for step in range(2)]
    unknown = b"\0" + (2_000_000_000).to_bytes(4) + good[0][5:]
    plain = json.dumps(record(0)).encode()
    t.send((0, b"key", value) for value in (good[0], unknown, plain, unknown, good[1]))
    with serving("--model", model, table("avro", registry), *t.flags) as worker:
        found, letters = t.read(t.forecasts, 2), t.read(t.dead, 3)
        code, log = worker.end()
    assert code == 0, log
    assert answers(found) == ALL[:2]
    assert [(value, headers["tidecast.reason"].decode()) for _, _, value, headers in letters] == [
        (unknown, DeadLetterReason.UNKNOWN_SCHEMA),
        (plain, DeadLetterReason.BAD_FORMAT),
        (unknown, DeadLetterReason.UNKNOWN_SCHEMA),
    ]
    texts = [headers["tidecast.message"].decode() for _, _, _, headers in letters]
    assert texts[0] == f"the schema registry at {registry} has no schema 2000000000"
    assert "begins with 7b 22 73 65 6e" in texts[1]


def test_a_schema_file_that_is_wrong_is_one_sentence_before_anything_is_joined(topics, model, tmp_path):
    t = topics()
    (tmp_path / "reading.avsc").write_text("{")
    table = tmp_path / "input.toml"
    table.write_text('[input]\nformat = "avro"\nschema = { file = "reading.avsc" }\n')
    with serving("--model", model, f"--input={table}", *t.flags) as worker:
        code, log = worker.end(signum=None)
    assert code == 2
    assert log.splitlines()[-1].startswith("tidecast: schema.file is no Avro schema, got ")
    assert "joining" not in log and "Traceback" not in log
