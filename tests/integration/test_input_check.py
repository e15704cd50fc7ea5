"""`tidecast input check` on a real Kafka: what a person reads of topics that nobody has described."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from kafka import KafkaAdminClient

from tests.support.printed import blocks, printed
from tests.support.registry import registry_client
from tests.support.worker_process import tidecast
from tests.unit.input_check.topics import MACHINES, SHAPES, STEP, T0, records, rows
from tidecast.service import cli
from tidecast.service.broker.connect import CLIENTS
from tidecast.service.broker.embedded.server import free_port
from tidecast.service.broker.port import OutgoingBatch

AVRO = b"\0\0\0\0\7\x04m0\x80\xa0\xea\x8b\x04"  # the framing of a registry, schema 7


@pytest.fixture
def filled(kafka, topic):
    """`filled(batch)`: a topic of three partitions with these records."""

    def make(batch):
        name = topic(3, "plant", {"retention.ms": "-1"})  # its records are old
        producer, out = kafka.producer(), OutgoingBatch(name)
        columns = (batch.keys, batch.values, batch.partitions, batch.headers, batch.timestamps)
        for key, value, partition, headers, stamp in zip(*columns, strict=True):
            out.append(key, value, partition=partition, headers=headers, timestamp=stamp)
        producer.produce(out)
        producer.flush(30)
        producer.close()
        return name

    return make


@pytest.fixture
def check(broker, capsys, monkeypatch):
    """`check(topic, *flags)`: (exit code, what it prints, what it prints on stderr)."""
    for name in ("MODEL", "BOOTSTRAP_SERVERS", "INPUT_TOPIC", "INPUT"):
        monkeypatch.delenv(f"TIDECAST_{name}", raising=False)

    def run(topic, *flags):
        code = cli.main(["input", "check", "--bootstrap-servers", broker, "--topic", topic, *map(str, flags)])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return run


def saved(check, topic, folder, *flags):
    """The proposal as a person saves it: (the file, the table)."""
    code, out, err = check(topic, "--propose", *flags)
    assert code == 0, err
    file = folder / "input.toml"
    file.write_text(out)
    return file, tomllib.loads(out)["input"]


@pytest.mark.parametrize("client", CLIENTS)
def test_a_telegraf_topic_without_keys_is_shown_as_it_is_and_as_readings_and_route_is_named(
    filled, check, tmp_path, client
):
    topic = filled(SHAPES["telegraf"].batch)
    code, out, err = check(topic, "--client", client)
    assert code == 0, err
    assert "The newest 20 of 40 records" in out and out.count(f"{topic}-") == 20
    last = T0 + 39 * STEP
    raw = out.split("\n\n")[20].splitlines()  # after the first line
    assert raw[0].startswith(f"{topic}-0, offset 13, ") and raw[0].endswith("key null")
    assert raw[1].startswith('  {"fields": {"usage_idle": 98.5')
    assert raw[2].startswith("  = m0  2023-11-14T22:52:20Z  usage_idle 98.5, usage_user 1.5")
    assert last // 1000 == 1700002340 and "1700002340" in raw[1]
    assert "40 records: 40 readings, none refused" in out
    assert "clock: readings are 350 ms before their records (the median)" in out
    assert "rate: 60 records an hour" in out
    assert "keys: 40 of 40 records have none" in out and "series: 3, such as m0, m1, m2" in out
    assert f"let `tidecast route --source-topic {topic} --input FILE` bring" in out
    file, table = saved(check, topic, tmp_path)
    assert f"--topic {topic} --propose > input.toml" in out
    code, out, _ = check(topic, "--input", file)
    assert code == 0 and "40 records: 40 readings, none refused" in out and "There is no --input" not in out
    assert table.get("preset") == "telegraf" or table["key"] == "tags.host"


def test_the_long_form_is_recognised_and_the_names_that_a_model_does_not_read_are_named(filled, check, tmp_path, model):
    def make(i, t):
        return {"device": f"m{i % 3}", "metric": ("value", "wind", "noise")[i // 3 % 3], "value": 2.5,
                "ts": T0 + i // 9 * STEP}  # fmt: skip

    topic = filled(records(rows(make, 90)))
    file, table = saved(check, topic, tmp_path)
    assert (table["name"], table["value"], table["key"]) == ("metric", "value", "device")
    assert table["join"]["tolerance"] == "0"
    code, out, err = check(topic, "--input", file, "--model", model)
    assert code == 0, err
    assert "names of the long form that no feature uses: noise (30)" in out
    assert "serve the topic that it writes, with a table that has only [input.join]" in out


def test_a_feature_of_the_model_that_no_field_has_is_named(filled, check, model):
    topic = filled(records(rows(lambda i, t: {"ts": t, "Value": 2.5, "gust": 3.5}), MACHINES))
    code, out, err = check(topic, "--model", model, "--propose")
    assert code == 1 and tomllib.loads(out)["input"]["fields"] == {"value": "Value"}
    assert "features that no record has: wind" in err and "numbers that no feature uses: gust" in err
    code, out, err = check(topic, "--model", model)
    assert code == 1 and "= m0" in out and "features that no record has: wind" in out


def test_avro_of_a_registry_is_recognised_and_what_is_missing_is_said(filled, check):
    topic = filled(records([AVRO] * 30, [b"m0"] * 30))
    code, out, _ = check(topic)
    assert code == 1
    assert "\\x00\\x00\\x00\\x00\\x07\\x04m0" in out, "binary values are shown as escapes"
    assert "Avro of a schema registry (schema 7)" in out and "registry = " in out
    code, out, err = check(topic, "--propose")
    assert code == 1 and "must be completed" in err
    assert tomllib.loads(out)["input"]["format"] == "avro"


def test_refused_and_skipped_records_are_shown_with_the_reason_and_counted(filled, check, tmp_path):
    values = rows(lambda i, t: {"ts": t, "temp": 20.5, "kind": "data"})
    values[-1] = {"ts": "yesterday", "temp": 1, "kind": "data"}
    values[-2] = b"\x1b[2J not JSON"
    values[-3] = {"kind": "status"}
    values[-4] = None
    file = tmp_path / "input.toml"
    file.write_text(
        '[input]\ntime = "ts"\n[input.fields]\ntemp = "temp"\nwind = "w"\n[input.skip_if]\nkind = "status"\n'
    )
    batch = records(values, MACHINES)
    batch.headers[-1] = [("site", b"hall \xff\n1")]
    topic = filled(batch)
    code, out, _ = check(topic, "--input", file)
    assert code == 1
    assert "\x1b" not in out and "\\x1b[2J not JSON" in out
    assert "headers site=hall \\xff\\n1" in out
    assert "! refused (wrong_type): the time at 'ts' is 'yesterday', not ISO 8601" in out
    assert "- skipped" in out
    assert "is forgotten" in out
    assert "40 records: 36 readings, 2 refused, 1 skipped, 1 without a value" in out
    assert "refused: 1 × not_json, such as" in out
    assert "features that no record has: wind" in out


def test_numbers_that_no_feature_uses_and_a_clock_that_is_ahead_are_named(filled, check, tmp_path):
    topic = filled(records(rows(lambda i, t: {"ts": t + 3_600_000, "a": {"temp": 1, "rpm": 2}, "seq": i}), MACHINES))
    file = tmp_path / "input.toml"
    file.write_text('[input]\nfields = { temp = "a.temp" }\n')
    code, out, _ = check(topic, "--input", file)
    assert code == 0
    assert "numbers that no feature uses: a.rpm, seq" in out
    assert "60 min ahead of their records" in out and "wrong clock, unit or time zone" in out


def test_nothing_is_written_and_no_group_is_joined(filled, check, kafka, broker):
    """Of what other tests do on the same Kafka at the time, nothing is looked at."""

    def state():
        admin = KafkaAdminClient(bootstrap_servers=broker)
        groups = {group["group_id"] for group in admin.list_groups()}
        committed = admin.list_group_offsets(sorted(groups)) if groups else {}
        with_it = {name for name, places in committed.items() if any(place.topic == topic for place in places)}
        admin.close()
        consumer = kafka.consumer()
        consumer.assign(topic, dict.fromkeys(range(3), 0))
        ends = consumer.end_offsets(range(3))
        consumer.close()
        return "tidecast" in groups, with_it, {name for name in kafka.topics() if topic in name}, ends

    topic = filled(SHAPES["telegraf"].batch)
    before = state()
    for client in CLIENTS:
        assert check(topic, "--client", client)[0] == 0
        assert check(topic, "--client", client, "--propose")[0] == 0
        assert check(f"{topic}-x", "--client", client)[0] == 1
    assert state() == before


def test_a_topic_that_is_empty_or_missing_is_one_sentence(check, topic):
    empty = topic(2, "plant")
    code, out, err = check(empty)
    assert (code, out) == (1, "") and err == f"tidecast: {empty} holds no record. Send some, then check again.\n"
    code, out, err = check(f"{empty}-x")
    assert (code, out) == (1, "") and err.startswith(f"tidecast: there is no topic {empty}-x.") and err.count("\n") == 1


WRONG = {
    "no file": (None, "there is no such file"),
    "no TOML": ("[input\n", "is not TOML"),
    "no table": ("[other]\n", "has no table [input]"),
    "an unknown name": ('[input]\ntimes = "ts"\n', "times"),
    "a wrong path": ('[input]\ntime = "a..b["\n', "path"),
    "a preset that is not there": ('[input]\npreset = "telegram"\n', "preset"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_table_is_one_sentence_that_names_the_file(what, check, tmp_path):
    text, says = WRONG[what]
    file = tmp_path / "input.toml"
    if text is not None:
        file.write_text(text)
    code, out, err = check("none", "--input", file)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("tidecast: ") and says in err and str(file) in err


@pytest.mark.parametrize("command", ["serve", "route", "watch", "doctor", "input check"])
def test_each_command_says_the_same_of_a_wrong_table(command, tmp_path, topics, model):
    t = topics()
    file = tmp_path / "input.toml"
    file.write_text('[input]\ntimes = "ts"\n')
    servers, topic = t.flags[:2]
    flags = {
        "serve": ["--model", model, *t.flags],
        "watch": [servers, topic, "--watch-port=0"],
        "route": [servers, "--source-topic=none", "--http-port=0"],
    }.get(command)
    code, out, err = tidecast(*command.split(), *(flags or [servers, topic, "--model", model]), "--input", file)
    assert code == 2 and out == "", err
    last = err.splitlines()[-1]
    assert last.startswith("tidecast: ") and "times" in last and str(file) in last and "Traceback" not in err


def test_json_that_is_our_own_needs_no_table(filled, check):
    topic = filled(SHAPES["our own form"].batch)
    code, out, _ = check(topic)
    assert code == 0 and "without --input they are read too" in out
    assert json.loads(SHAPES["our own form"].batch.values[0])["ts"] == T0


@pytest.mark.parametrize("block", ["check-topic", "check-own-topic"])
def test_the_commands_of_the_pages_can_be_typed_one_after_the_other(block, filled, broker, tmp_path):
    topic = filled(SHAPES["telegraf"].batch)
    typed = re.sub(r"(--topic) [a-z-]+", rf"\1 {topic}", printed(block)).replace("127.0.0.1:9092", broker)
    bin_first = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {"PATH": bin_first, "HOME": str(tmp_path), "TIDECAST_BOOTSTRAP_SERVERS": broker}
    done = subprocess.run(["bash", "-ec", typed], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert tomllib.loads((tmp_path / "input.toml").read_text())["input"]["preset"] == "telegraf"
    assert done.stdout.count("40 records: 40 readings, none refused") == {"check-topic": 1, "check-own-topic": 2}[block]


def test_the_page_shows_what_is_printed(filled, check):
    topic = filled(SHAPES["telegraf"].batch)
    (shown,) = [each.text for each in blocks() if each.page == "docs/your-own-topic.md" and each.language == "text"]
    assert check(topic)[1].replace(topic, "plant").endswith(shown)


def test_an_avro_topic_is_read_once_the_url_of_its_registry_is_written(filled, check, tmp_path, registry):
    schema = {"type": "record", "name": "Reading", "fields": [
        {"name": "machine", "type": "string"}, {"name": "temp", "type": ["null", "double"]},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}}]}  # fmt: skip
    serializer = AvroSerializer(registry_client(registry), json.dumps(schema))
    context = SerializationContext("plant-input-check", MessageField.VALUE)
    values = rows(lambda i, t: serializer({"machine": f"m{i % 3}", "temp": 20.5, "at": t * 1_000}, context))
    topic, file = filled(records(values)), tmp_path / "input.toml"
    code, out, err = check(topic, "--propose")
    assert code == 1, err
    file.write_text(out.replace("http://127.0.0.1:8081", registry))
    code, out, err = check(topic, "--input", file, "--propose")
    assert code == 0, err
    assert tomllib.loads(out)["input"] == {
        "format": "avro", "key": "machine", "time": "at", "fields": {"temp": "temp"}, "schema": {"registry": registry},
    }  # fmt: skip
    file.write_text(out)
    code, out, err = check(topic, "--input", file)
    assert code == 0 and "40 records: 40 readings, none refused" in out, err
    assert "= m0  2023-11-14T22:52:20Z  temp 20.5" in out
    nobody = tmp_path / "away.toml"
    nobody.write_text(file.read_text().replace(registry, f"http://127.0.0.1:{free_port()}"))
    code, out, err = check(topic, "--input", nobody)
    assert code == 1 and "schema registry" in err and err.count("\n") == 1
