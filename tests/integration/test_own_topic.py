"""Topics as people have them, and the commands of docs/your-own-topic.md, letter by letter: all is answered."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from tests.support.models import START_MS, STEP_MS
from tests.support.printed import printed
from tests.support.registry import registry_client
from tidecast.service.broker.port import OutgoingBatch

PATIENCE_S = 120.0
PARTITIONS, STEPS, SERIES = 3, 20, ("m0", "m1", "m2")


def at(step):
    return START_MS + step * STEP_MS


def telegraf(step, series):
    """Without a key, in any partition."""
    yield step % PARTITIONS, None, json.dumps({
        "fields": {"value": step, "wind": 2.0}, "name": "press", "tags": {"host": series},
        "timestamp": at(step) // 1_000}).encode()  # fmt: skip


def debezium(step, series):
    """An insert; its key is the row's, which is another one each time."""
    row = step * len(SERIES) + SERIES.index(series)
    after = {"id": row, "machine": series, "measured_at": at(step) * 1_000, "value": step, "wind": 2.0}
    source = {"version": "2.7.0.Final", "connector": "postgresql", "ts_ms": at(step) + 40, "lsn": row}
    change = {"before": None, "after": after, "source": source, "op": "c", "ts_ms": at(step) + 90, "transaction": None}
    yield row % PARTITIONS, json.dumps({"id": row}).encode(), json.dumps(change).encode()


def long_form(step, series):
    """A record for each value, and one that the model does not read."""
    for name, value in (("value", step), ("wind", 2.0), ("noise", 40)):
        record = {"machine": series, "metric": name, "value": value, "ts": at(step)}
        yield SERIES.index(series), series.encode(), json.dumps(record).encode()


def avro(registry):
    """With the framing of the registry, as Confluent's serializer writes it."""
    fields = [
        {"name": "machine", "type": "string"}, {"name": "value", "type": "double"},
        {"name": "wind", "type": ["null", "float"]},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ]  # fmt: skip
    schema = json.dumps({"type": "record", "name": "Reading", "fields": fields})
    serialize = AvroSerializer(registry_client(registry), schema)

    def records_of(step, series):
        record = {"machine": series, "value": float(step), "wind": 2.0, "at": at(step)}
        value = serialize(record, SerializationContext("plant", MessageField.VALUE))
        yield SERIES.index(series), series.encode(), value

    return records_of


def put(kafka, topic, records_of):
    """The records of all series, in the order of their times."""
    kafka.create_topic(topic, PARTITIONS)
    producer, out = kafka.producer(), OutgoingBatch(topic)
    now = int(time.time() * 1_000)  # retention deletes records that are old
    for step in range(STEPS):
        for series in SERIES:
            for partition, key, value in records_of(step, series):
                out.append(key, value, partition=partition, timestamp=now - (STEPS - step) * 1_000)
    producer.produce(out)
    producer.flush(30)
    producer.close()


def records_in(kafka, topic):
    """All (key, value) of a topic; none where it is not there yet."""
    found, count = [], kafka.partitions(topic)
    if count is None:
        return found
    consumer = kafka.consumer()
    consumer.assign(topic, dict.fromkeys(range(count), -2))
    while len(batch := consumer.poll(1.0, 10_000)):
        found += zip(batch.keys, batch.values, strict=True)
    consumer.close()
    return found


def answer_all(block, records_of, kafka, broker, model, folder, registry=""):
    """Type what the page says; every reading has one forecast, in order, and nothing is a dead letter."""
    plant = f"plant-{uuid.uuid4().hex[:8]}"
    typed = re.sub(r"\bplant\b", plant, printed("own-topic-names") + printed(block) + "wait\n")
    typed = typed.replace("127.0.0.1:9092", broker).replace("http://127.0.0.1:8081", registry).replace("9107", "0")
    shutil.copytree(model, folder / "model")
    put(kafka, plant, records_of)
    path, log = f"{Path(sys.executable).parent}:{os.environ['PATH']}", folder / "log"
    env = {"PATH": path, "HOME": str(folder), "TIDECAST_HTTP_PORT": "0"}
    with log.open("wb") as file:
        command = ["bash", "-ec", typed]
        shell = subprocess.Popen(command, cwd=folder, env=env, stdout=file, stderr=file, start_new_session=True)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while len(found := records_in(kafka, f"{plant}-forecasts")) < STEPS * len(SERIES):
            assert time.monotonic() < deadline and shell.poll() is None, f"{len(found)} forecasts\n{log.read_text()}"
        steps = {series: [] for series in SERIES}
        for key, value in found:
            steps[key.decode()].append((json.loads(value)["ts"] - START_MS) // STEP_MS)
        assert steps == {series: list(range(STEPS)) for series in SERIES}
        assert records_in(kafka, f"{plant}-dead-letters") == []
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
        shell.wait(60)


@pytest.mark.parametrize(
    "block, records_of",
    [("own-topic-telegraf", telegraf), ("own-topic-debezium", debezium), ("own-topic-long", long_form)],
)
def test_the_commands_of_the_page_answer_every_reading_of_such_a_topic(
    block, records_of, kafka, broker, model, tmp_path
):
    answer_all(block, records_of, kafka, broker, model, tmp_path)


def test_the_commands_of_the_page_answer_every_reading_of_an_avro_topic(kafka, broker, model, tmp_path, registry):
    answer_all("own-topic-avro", avro(registry), kafka, broker, model, tmp_path, registry)
