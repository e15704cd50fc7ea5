"""Topics that are not in tidecast's own format, with `--input`, on a real Kafka."""

import json

import pytest

from tests.support.models import START_MS, STEP_MS, CountingReference, counting_model
from tests.support.serving import serving
from tidecast.service.broker.connect import CLIENTS
from tidecast.service.input.rejected import DeadLetterReason

both_clients = pytest.mark.parametrize("client", CLIENTS)

NESTED = """
[input]
key = "{tags.site}/{tags.host}"
time = "timestamp"
time_unit = "s"
skip_if = { name = "mem" }
[input.fields]
value = { path = "fields.usage", scale = 0.5 }
wind = "fields.wind"
"""
EXPLODED = """
[input]
explode = "sensors"
key = "id"
time = "/at"
time_format = "%d.%m.%Y %H:%M:%S"
fields = { value = "v", wind = "w" }
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return counting_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def table(tmp_path):
    def write(text):
        file = tmp_path / "input.toml"
        file.write_text(text)
        return f"--input={file}"

    return write


def nested(host, step, value, name="cpu"):
    fields = {"usage": value, "wind": 2.0, "other": "text"}
    tags = {"site": "north", "host": host}
    seconds = (START_MS + step * STEP_MS) // 1_000
    return json.dumps({"name": name, "tags": tags, "fields": fields, "timestamp": seconds}).encode()


def answers(found, key):
    """The forecasts of a series, in order, as the counting model gives them."""
    values = [json.loads(value) for _, k, value, _ in found if k == key]
    return [[list(c) for c in zip(*(each["targets"]["value"][q] for q in ("p10", "p50", "p90")), strict=True)]
            for each in values]  # fmt: skip


def expected(values):
    reference = CountingReference()
    return [reference.step([value, 2.0], START_MS + step * STEP_MS) for step, value in enumerate(values)]


@both_clients
def test_a_topic_of_nested_json_without_keys_is_answered_also_after_a_kill(topics, model, table, client):
    t = topics()
    flag = table(NESTED)
    t.send((0, None, nested(host, step, 2.0 * step)) for step in range(30) for host in ("a", "b"))
    t.send([(0, None, nested("a", 30, 1.0, name="mem"))])
    with serving("--model", model, flag, *t.flags) as first:
        assert len(t.read(t.forecasts, 60)) == 60
        first.wait_for("what is left out", lambda: t.committed()[0][0] >= 61)
    t.send((0, None, nested(host, step, 2.0 * step)) for step in range(30, 40) for host in ("a", "b"))
    with serving("--model", model, flag, *t.flags) as second:
        found = t.read(t.forecasts, 80)
        code, log = second.end()
    assert code == 0, log
    assert len(found) == 80
    for host in ("a", "b"):
        assert answers(found, f"north/{host}".encode()) == expected(range(40))


def test_records_that_hold_many_sensors_are_answered_for_each_and_bad_ones_come_back_as_they_were(topics, model, table):
    t = topics()
    good = [{"id": f"s{i}", "v": i, "w": 2.0} for i in range(5)]
    bad = json.dumps({"at": "14.11.2023 22:14:00", "sensors": [{"id": "s0", "v": "on", "w": 2}]}).encode()
    first = json.dumps({"at": "14.11.2023 22:13:00", "sensors": good}).encode()
    t.send([(0, b"gateway", first), (0, b"gateway", bad), (0, b"gateway", b'{"at": 1}')])
    with serving("--model", model, table(EXPLODED), *t.flags) as worker:
        found, letters = t.read(t.forecasts, 5), t.read(t.dead, 2)
        worker.wait_for("the counts", lambda: worker.metric("tidecast_readings_total") == 7)
        status, body = worker.get("/series/s3")
        code, log = worker.end()
    assert (code, status) == (0, 200), log
    assert sorted(key for _, key, _, _ in found) == [f"s{i}".encode() for i in range(5)]
    assert answers(found, b"s3") == [CountingReference().step([3.0, 2.0], START_MS)]
    assert json.loads(body)["series"] == "s3"
    assert [(key, value) for _, key, value, _ in letters] == [(b"gateway", bad), (b"gateway", b'{"at": 1}')]
    texts = [headers["tidecast.message"].decode() for _, _, _, headers in letters]
    assert texts == [
        "'value' must be a number, got 'on'; texts in [input] says which texts stand for numbers",
        "there must be a list or map of readings at 'sensors', got nothing",
    ]


def test_a_sensor_in_two_partitions_is_said_with_the_command_that_helps(topics, model, table):
    t = topics(partitions=2)
    t.send([(0, None, nested("a", 0, 1.0))])
    with serving("--model", model, table(NESTED), *t.flags) as worker:
        t.read(t.forecasts, 1)
        t.send([(1, None, nested("a", 1, 1.0))])
        letters = t.read(t.dead, 1)
        worker.end()
    assert letters[0][3]["tidecast.reason"] == DeadLetterReason.OTHER_PARTITION.encode()
    assert b"Let `tidecast route` bring them together" in letters[0][3]["tidecast.message"]


def test_a_table_that_cannot_be_used_is_one_sentence_before_anything_is_joined(topics, model, table):
    t = topics()
    with serving("--model", model, table('[input]\nkye = "a"\n'), *t.flags) as worker:
        code, log = worker.end(signum=None)
    assert code == 2
    assert "unknown field `kye`. Did you mean key?" in log.splitlines()[-1]
