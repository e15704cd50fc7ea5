"""`tidecast doctor` on a real Kafka: each wrong state has its own line, and nothing is written."""

import http.server
import json
import re
import threading
import time
from collections import defaultdict

import pytest
from confluent_kafka import Producer
from kafka import KafkaAdminClient, KafkaProducer

from tests.contract.broker_contract import Member
from tests.support.counted import command_in
from tests.support.models import STEP_MS
from tests.support.printed import blocks, commands, printed
from tests.support.serving import serving
from tests.support.unowned import left_out
from tidecast.service import cli
from tidecast.service.broker.connect import CLIENTS
from tidecast.service.broker.embedded.server import free_port
from tidecast.service.broker.partitioner import partition_for
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.broker.topics import CHANGELOG_CONFIG, DECISIONS_CONFIG


@pytest.fixture
def doctor(capsys, monkeypatch):
    """`doctor(*flags)`: the exit code, and `check -> [(state, text)]`."""
    for name in ("MODEL", "BOOTSTRAP_SERVERS", "GROUP"):
        monkeypatch.delenv(f"TIDECAST_{name}", raising=False)

    def examine(*flags):
        code = cli.main(["doctor", *map(str, flags)])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        found = defaultdict(list)
        for line in said.out.splitlines()[:-1]:
            state, checks, text = re.fullmatch(r"(ok|note|wrong|not checked) +([a-z, ]+): (.*)", line).groups()
            for check in checks.split(", "):
                found[check].append((state, text))
        assert said.out.splitlines()[-1].endswith("Nothing was written to Kafka.")
        assert code == (1 if any(state == "wrong" for lines in found.values() for state, _ in lines) else 0)
        return code, dict(found)

    return examine


def wrong(found, *, notes=False):
    """`check -> text` of all that is wrong."""
    states = ("wrong", "note") if notes else ("wrong",)
    return {check: text for check, lines in found.items() for state, text in lines if state in states}


def put(t, records):
    """Produce (partition, key, value, timestamp) records; a timestamp None = now."""
    producer, out = t.broker.producer(), OutgoingBatch(t.readings)
    for partition, key, value, timestamp in records:
        out.append(key, value, partition=partition, timestamp=timestamp)
    producer.produce(out)
    producer.flush(30)
    producer.close()


def fresh(t, steps, fields=lambda i: {"value": i % 50, "wind": 2.0}, ahead_ms=0):
    """Readings of each series that end now, at the model's step."""
    now = int(time.time() * 1_000) + ahead_ms
    put(t, [(p, key, json.dumps({"ts": now - (steps - i) * STEP_MS, **fields(i)}).encode(), None)
            for i in range(steps) for key, p in t.series.items()])  # fmt: skip


@pytest.mark.parametrize("client", CLIENTS)
def test_all_is_well_with_each_client_and_nothing_is_written(counted, model, doctor, client):
    t = counted()
    fresh(t, 10, ahead_ms=-10 * STEP_MS)
    with serving("--model", model, *t.flags) as worker:
        t.read(t.forecasts, 60)
        code, found = doctor("--model", model, *t.flags, f"--client={client}")
        assert code == 0 and not wrong(found), found
        assert found["members"] == [("ok", f"the group '{t.group}' has 1 member")]
        worker.end()
    fresh(t, 2)
    before = all_of(t)
    code, found = doctor("--model", model, *t.flags, f"--client={client}")
    assert code == 0, found
    assert all_of(t) == before
    assert found["members"] == [("ok", f"the group '{t.group}' has no members: no worker runs")]
    assert "committed in 2 of 2 partitions, 12 readings wait" in found["offsets"][0][1]
    assert "(6 series) 72 would be answered" in found["readings"][0][1]


def test_the_topic_of_decisions_is_examined_where_there_are_shadows(counted, doctor, tmp_path):
    t = counted()
    missing, hasty, fine = (f"decisions-{name}-{t.group}" for name in ("missing", "hasty", "fine"))
    t.broker.create_topic(hasty, 2)
    t.broker.create_topic(fine, 1, config=DECISIONS_CONFIG)
    flags = [*t.flags, f"--shadow={tmp_path / 'not-there-yet'}", "--promote=auto"]
    found = doctor(*flags, f"--decisions-topic={missing}")[1]
    assert f"there is no topic {missing}" in wrong(found)["topics"]
    found = doctor(*flags, f"--decisions-topic={hasty}")[1]
    assert f"{hasty} has 2 partitions, not one" in wrong(found)["topics"]
    assert "does not keep decisions for ever" in wrong(found)["topics"]
    code, found = doctor(*flags, f"--decisions-topic={fine}")
    assert code == 0 and ("ok", f"{fine} keeps decisions in one order") in found["topics"]
    assert found["rights"][0][1].endswith("and follow decisions")
    assert not any("decisions" in text for lines in doctor(*t.flags)[1].values() for _, text in lines)


def all_of(t):
    """The topics, what the group has committed, and where each topic ends."""
    consumer, ends = t.broker.consumer(), {}
    for topic in (t.readings, t.forecasts, t.dead, t.states):
        count = t.broker.partitions(topic)
        consumer.assign(topic, dict.fromkeys(range(count), 0))
        ends[topic] = consumer.end_offsets(range(count))
    consumer.close()
    mine = {name for name in t.broker.topics() if name.rpartition("-")[2] == t.group.rpartition("-")[2]}
    return mine, t.committed(), ends


def test_partitions_that_the_group_has_left_out_are_wrong(kafka, counted, doctor):
    t = counted(partitions=4)
    members = []

    def second():
        members.append(Member(kafka, t.readings, t.group))
        return members[0].consumer

    members.append(left_out(kafka, t.readings, t.group, second))
    _, found = doctor(*t.flags)
    ((state, text),) = found["members"]
    left = ", ".join(str(p) for p in range(4) if not any(p in m.assigned for m in members))
    assert state == "wrong" and f"2 partitions of {t.readings} ({left}) have no owner although the group" in text
    for member in members:
        member.consumer.close()


def test_an_unused_group_and_missing_topics_are_not_made(broker, counted, doctor):
    t = counted()
    flags = [f"{flag}-x" if "topic" in flag or "group" in flag else flag for flag in t.flags]
    missing = [topic + "-x" for topic in (t.readings, t.forecasts, t.dead, t.states)]
    code, found = doctor(*flags)
    assert code == 1
    said = wrong(found)
    assert said.keys() == {"topics"} and f"there is no topic {missing[0]} and no topic {missing[1]}" in said["topics"]
    assert found["records"] == [("not checked", f"there is no topic {missing[0]}")]
    assert found["model"] == [("not checked", "no --model")]
    admin = KafkaAdminClient(bootstrap_servers=broker)
    assert not any(group["group_id"] == f"{t.group}-x" for group in admin.list_groups())
    admin.close()
    assert not set(missing) & set(t.broker.topics())
    t.run(command_in(said["topics"]))
    code, found = doctor(*flags)
    assert code == 0, found
    assert found["records"] == [("not checked", f"{missing[0]} holds no record")]
    assert "has committed nothing yet" in found["offsets"][0][1]


def test_an_unknown_name_a_closed_port_and_a_web_server_have_each_their_own_line(doctor):
    code, found = doctor("--bootstrap-servers=no.such.name.invalid:9092")
    assert code == 1 and wrong(found).keys() == {"name"}
    assert "the name no.such.name.invalid is not known here" in wrong(found)["name"]
    assert found["login"] == [("not checked", "first correct what is wrong with: name")]
    port = free_port()
    assert f"nothing listens on port {port}" in wrong(doctor(f"--bootstrap-servers=127.0.0.1:{port}")[1])["port"]
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        said = wrong(doctor(f"--bootstrap-servers=127.0.0.1:{web.server_port}")[1])
        web.shutdown()
    assert said.keys() == {"port"} and "speaks HTTP, not Kafka" in said["port"]


def test_one_server_of_two_that_is_away_is_a_note(broker, doctor):
    code, found = doctor(f"--bootstrap-servers=127.0.0.1:{free_port()},{broker}", "--input-topic=none")
    assert found["port"][0][0] == "note" and "nothing listens" in found["port"][0][1] and found["port"][1][0] == "ok"
    assert found["login"][0][0] == "ok"
    assert code == 1  # for the topics


def test_topics_that_do_not_fit_are_said_as_a_start_says_it(counted, doctor):
    t = counted()
    t.feed(1)
    narrow, deleting = t.forecasts + "-narrow", t.states + "-deleting"
    t.broker.create_topic(narrow, 1)
    t.broker.create_topic(deleting, 2, {"cleanup.policy": "delete"})
    said = wrong(doctor(*t.flags, f"--output-topic={narrow}")[1])
    assert f"{t.readings} has 2 partitions and {narrow} 1; they must have the same number" in said["topics"]
    said = wrong(doctor(*t.flags, f"--changelog-topic={deleting}")[1])
    assert "must be compacted" in said["topics"] and "--add-config cleanup.policy=compact" in said["topics"]


def test_settings_of_topics_that_lose_or_refuse_records_are_found(counted, model, doctor):
    t = counted()
    small, quick, compacted, strict = (t.forecasts + "-small", t.readings + "-q", t.readings + "-c", t.forecasts + "-s")
    t.broker.create_topic(small, 2, {"max.message.bytes": "300"})
    t.broker.create_topic(quick, 2, {"retention.ms": "600000"})
    t.broker.create_topic(compacted, 2, CHANGELOG_CONFIG)
    t.broker.create_topic(strict, 2, {"min.insync.replicas": "2"})
    fresh(t, 2)
    _, found = doctor("--model", model, *t.flags, f"--output-topic={small}")
    assert re.search(r"has \d+ bytes, and .*-small takes 300\. .*max\.message\.bytes=\d+", wrong(found)["record size"])
    assert "keeps readings for 10 min" in wrong(doctor(*t.flags, f"--input-topic={quick}")[1], notes=True)["retention"]
    assert "is compacted" in wrong(doctor(*t.flags, f"--input-topic={compacted}")[1])["retention"]
    said = wrong(doctor(*t.flags, f"--output-topic={strict}")[1])["copies"]
    assert "1 copy in sync and min.insync.replicas=2" in said and said.endswith("min.insync.replicas=1")


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_the_codec_of_the_newest_records_is_named(counted, doctor, codec):
    t = counted(1, 1)
    producer = KafkaProducer(bootstrap_servers=t.bootstrap_servers, compression_type=codec)
    for step in range(50):
        producer.send(t.readings, t.reading(step), b"s0-0", partition=0)
    producer.flush()
    producer.close()
    said = doctor(*t.flags)[1]["records"][0][1]
    assert re.search(rf"the newest 50 records of 1 partition; compression: .*{codec} \(\d+ batch", said)


def send_with_kafka_python(t, keys):
    producer = KafkaProducer(bootstrap_servers=t.bootstrap_servers)  # as Java's
    for key in keys:
        producer.send(t.readings, t.reading(0), key)
    producer.flush()
    producer.close()


def send_with_librdkafka(t, keys):
    producer = Producer({"bootstrap.servers": t.bootstrap_servers})
    for key in keys:
        producer.produce(t.readings, t.reading(0), key)
    assert producer.flush(30) == 0


def send_to_one_partition(t, keys):
    put(t, [(0, key, t.reading(0), None) for key in keys])


@pytest.mark.parametrize(
    "send, state, expected",
    [
        (send_with_kafka_python, "ok", "where Java's default partitioner (murmur2) puts them"),
        (send_with_librdkafka, "note", "where librdkafka's default partitioner (consistent_random, crc32) puts"),
        (send_to_one_partition, "note", "each key is in one partition"),
    ],
)
def test_the_partitioner_of_the_keys_is_named(counted, doctor, send, state, expected):
    t = counted(4, 1)
    send(t, [b"sensor-%d" % i for i in range(40)])
    code, found = doctor(*t.flags)
    assert code == 0 and found["partitioner"][0][0] == state and expected in found["partitioner"][0][1]


def test_a_key_in_two_partitions_is_wrong(counted, doctor):
    t = counted(4, 1)
    put(t, [(partition, b"pump-7", t.reading(0), None) for partition in (1, 3)])
    said = wrong(doctor(*t.flags)[1])["partitioner"]
    assert "1 key is in more than one partition, such as 'pump-7' in 1 and 3" in said


def test_clocks_that_are_ahead_are_found(counted, model, doctor):
    t = counted(1, 1)
    fresh(t, 3)
    found = doctor("--model", model, *t.flags)[1]
    assert found["clock"][0][0] == "ok" and found["times"][0][0] == "ok"
    fresh(t, 3, ahead_ms=3 * 3_600_000)
    said = wrong(doctor("--model", model, *t.flags)[1])["times"]
    assert "3 of 6 readings have a time after that of their record, by up to 3 h" in said and "UTC" in said
    assert doctor(*t.flags)[1]["times"] == [("not checked", "no --model")]
    put(t, [(0, b"s0-0", t.reading(0), int(time.time() * 1_000) + 1_800_000)])
    said = wrong(doctor(*t.flags)[1])["clock"]
    assert re.search(r"is (30|29) min ahead of this machine's clock, by its producer's clock \(CreateTime\)", said)


def test_old_readings_are_a_note_and_kafkas_clock_is_named(counted, model, doctor):
    t = counted(1, 1)
    t.readings += "-stamped"
    t.broker.create_topic(t.readings, 1, {"message.timestamp.type": "LogAppendTime"})
    t.feed(3)
    found = doctor("--model", model, *t.flags)[1]
    assert "by Kafka's clock (LogAppendTime)" in found["clock"][0][1]
    assert found["times"][0][0] == "note" and "before those of their records" in found["times"][0][1]


def test_a_renamed_field_is_named_with_what_is_there_instead(counted, model, doctor):
    t = counted(1, 1)
    fresh(t, 5, lambda i: {"value": 1.0, "wind_kmh": 3.0})
    _, found = doctor("--model", model, *t.flags)
    said = wrong(found)["features"]
    assert "no reading has a value for wind" in said and "fields that it does not read: wind_kmh." in said
    assert found["readings"][0][0] == "ok", "a missing value is answered"
    u = counted(1, 1)
    fresh(u, 5, lambda i: {"val": 1.0, "wnd": 3.0})
    said = [text for state, text in doctor("--model", model, *u.flags)[1]["readings"] if state == "wrong"]
    assert "5 dead letters" in said[0] and "0 would be answered" in said[0]
    assert f"5 × no_features, such as {u.readings}-0, offset 0:" in said[1] and "val, wnd" in said[1]


def test_dead_letters_duplicates_tombstones_and_missing_values_are_counted(counted, model, doctor):
    t = counted(1, 1)
    fresh(t, 3, lambda i: {"value": 1.0, **({"wind": 1.0} if i == 0 else {})})
    again = t.read(t.readings, 3)[-1][2]
    put(t, [(0, b"s0-0", again, None), (0, b"s0-0", b"{", None), (0, b"gone", None, None), (0, None, again, None)])
    _, found = doctor("--model", model, *t.flags)
    lines = found["readings"]
    expected = "of the newest 7 records (2 series) 3 would be answered, 2 dead letters, 1 duplicate, 1 tombstone"
    assert lines[0] == ("wrong", expected)
    assert any("1 × not_json" in text for _, text in lines) and any("1 × missing_key" in text for _, text in lines)
    assert found["features"][0][0] == "note" and "wind in " in found["features"][0][1]


def test_readings_at_another_step_than_the_models_are_found(counted, model, doctor):
    t = counted(1, 1)
    now = int(time.time() * 1_000)
    sent = [json.dumps({"ts": now - (20 - i) * 10_000, "value": 1.0, "wind": 1.0}).encode() for i in range(20)]
    put(t, [(0, b"s0-0", value, None) for value in sent])
    said = wrong(doctor("--model", model, *t.flags)[1])["step"]
    assert "are 10 s apart (the median), and the model's step is 60 s" in said


def test_only_the_newest_thousand_are_read_the_same_share_of_each_partition(counted, doctor):
    t = counted(2, 1)
    put(t, [(0, b"s0-0", t.reading(i), None) for i in range(3_000)] + [(1, b"s1-0", t.reading(0), None)] * 10)
    assert "read the newest 1,000 records of 2 partitions" in doctor(*t.flags)[1]["records"][0][1]


def test_offsets_that_do_not_fit_the_input_are_said_as_a_worker_says_it(counted, model, doctor):
    t = counted()
    t.feed(3)
    t.live(model)
    t.set_back({0: 1_000})
    said = wrong(doctor("--model", model, *t.flags)[1])["offsets"]
    assert f"{t.readings}-0 ends at offset 9, but was read up to 1000: the topic was made again" in said
    assert "tidecast state reset --all" in said
    t.set_back({0: 3})
    t.delete_readings({0: 6})
    said = wrong(doctor("--model", model, *t.flags)[1])["offsets"]
    assert "retention has deleted 3 of them" in said


def test_a_model_that_cannot_be_read_is_said_and_all_else_is_checked(counted, doctor, tmp_path):
    t = counted(1, 1)
    fresh(t, 2)
    _, found = doctor("--model", tmp_path / "none", *t.flags)
    assert wrong(found).keys() == {"model"} and "none" in wrong(found)["model"]
    assert found["readings"] == [("not checked", "first correct what is wrong with: model")]
    assert found["records"][0][0] == "ok"


def telegraf(t, tmp_path, partition_of):
    """Ten steps of three hosts without keys in Telegraf's form, and the table that reads them."""
    now = int(time.time() * 1_000) - 10 * STEP_MS
    sent = [(partition_of(host, step), None, json.dumps({
        "fields": {"value": 1.0, "wind": 2.0, "load": 3}, "tags": {"host": f"h{host}"}, "name": "m",
        "timestamp": now + step * STEP_MS}).encode(), None) for step in range(10) for host in range(3)]  # fmt: skip
    put(t, [*sent, (0, None, b'{"timestamp": "soon", "tags": {"host": "h0"}}', None)])
    file = tmp_path / "input.toml"
    file.write_text('[input]\nkey = "tags.host"\ntime = "timestamp"\nfields = "fields"\n')
    return f"--input={file}"


def test_with_input_the_readings_are_those_of_the_table(counted, model, doctor, tmp_path):
    t = counted(2, 0)
    table = telegraf(t, tmp_path, lambda host, step: host % 2)
    code, found = doctor("--model", model, *t.flags, table)
    assert code == 1
    assert found["partitioner"] == [("ok", "each of 3 series has its readings in one partition")]
    assert "(3 series) 30 would be answered, 1 dead letter" in found["readings"][0][1]
    assert "the time at 'timestamp' is 'soon'" in found["readings"][1][1]
    for check in ("times", "features", "step"):
        assert found[check][0][0] == "ok", found[check]
    assert wrong(found).keys() == {"readings"}
    without = doctor("--model", model, *t.flags)[1]
    assert "0 would be answered" in without["readings"][0][1]


def test_with_input_a_series_in_two_partitions_is_wrong_and_route_is_named(counted, doctor, tmp_path):
    t = counted(2, 0)
    table = telegraf(t, tmp_path, lambda host, step: step % 2)
    said = wrong(doctor(*t.flags, table)[1])["partitioner"]
    assert "3 of 3 series have their readings in several partitions, such as 'h0' in 0 and 1" in said
    assert "`tidecast route`" in said


def test_every_connection_error_names_the_doctor(capsys):
    assert cli.main(["topics", f"--bootstrap-servers=127.0.0.1:{free_port()}", "--broker-timeout-seconds=1"]) == 1
    assert capsys.readouterr().err.rstrip().endswith("To find out more: tidecast doctor, with the same flags.")


def test_wrong_usage_is_exit_code_2(capsys):
    assert cli.main(["doctor", "--bootstrap-servers=kafka"]) == 2
    assert cli.main(["doctor", "--no-such-flag"]) == 2


def test_the_page_shows_what_is_printed(counted, model, capsys):
    """The names of the page's plant in place of this test's; its numbers may differ."""
    t = counted(2, 0)
    keys = [b"pump-%d" % i for i in range(1, 7)]
    t.series = {key: partition_for(key, 2) for key in keys}
    fresh(t, 100, lambda i: {"value": 1.0, "wind_kmh": 3.0})
    put(t, [(t.series[b"pump-3"], b"pump-3", b'{"ts": 1795990000, "value": 3.1}', None)] * 3)
    (words,) = commands(printed("doctor"))
    assert cli.main([str(model) if word == "build/weather" else word for word in words[1:]] + t.flags) == 1
    out = capsys.readouterr().out
    names = {"readings": t.readings, "forecasts": t.forecasts, "state": t.states}
    for shown, name in {**{f"plant-{kind}": name for kind, name in names.items()}, "plant": t.group}.items():
        out = out.replace(name, shown)
    out = out.replace(t.dead, "dead-letters").replace("counting@", "pumps@")
    (shown,) = [block.text for block in blocks() if "Nothing was written to Kafka" in block.text]
    numbers = re.compile(r"[0-9][0-9.:,]*( ms| s| min)?|@[0-9a-f]+")
    assert numbers.sub("#", shown) == numbers.sub("#", out), out
