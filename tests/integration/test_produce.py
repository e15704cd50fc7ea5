"""`tidecast produce` as its users run it: a process of its own, into a real Kafka."""

import json
import re
import signal
import time

import pytest

from tests.support.worker_process import PATIENCE, Command, tidecast

T0 = 1_700_000_400_000
HOUR = 3_600_000


def produce(*flags):
    """Run to its end: (exit code, stdout, stderr)."""
    return tidecast("produce", *flags)


@pytest.fixture
def read(kafka):
    """`read(topic)`: (key, value, partition) of every record, in the order of each partition."""

    def all_of(topic):
        consumer = kafka.consumer()
        partitions = range(kafka.partitions(topic))
        consumer.assign(topic, dict.fromkeys(partitions, -2))
        expected, records = sum(consumer.end_offsets(partitions).values()), []
        deadline = time.monotonic() + PATIENCE
        while len(records) < expected and time.monotonic() < deadline:
            batch = consumer.poll(1.0, 10_000)
            records += zip(batch.keys, map(json.loads, batch.values), batch.partitions, strict=True)
        consumer.close()
        return records

    return all_of


def write_csv(path, hours, keys="xyz"):
    rows = [f"{key},{T0 + i * HOUR},{i + 0.5},{'NA' if i % 3 == 0 else i}" for key in keys for i in range(hours)]
    path.write_text("key,t,a,b\n" + "\n".join(rows) + "\n")
    return path


COLUMNS = ("--time", "t", "--series", "key", "--features", "a,b")


def test_a_file_arrives_whole_with_every_series_in_order_on_one_partition(broker, topic, read, tmp_path):
    name = topic(partitions=4)
    path = write_csv(tmp_path / "f.csv", hours=400)
    code, out, err = produce(path, *COLUMNS, "--speed", "max", "--bootstrap-servers", broker, "--input-topic", name)
    assert (code, out) == (0, ""), err
    assert "sent 1,200 readings of 3 series" in err
    records = read(name)
    for key in (b"x", b"y", b"z"):
        mine = [(value, partition) for k, value, partition in records if k == key]
        assert [value for value, _ in mine] == [
            {"ts": T0 + i * HOUR, "a": i + 0.5, "b": None if i % 3 == 0 else float(i)} for i in range(400)
        ]
        assert len({partition for _, partition in mine}) == 1


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_paced_stream_with_what_was_due_sent_and_counted(broker, topic, read, tmp_path, signum):
    name = topic(partitions=2)
    path = write_csv(tmp_path / "f.csv", hours=3)
    flags = ["--speed", "1", "--bootstrap-servers", broker, "--input-topic", name]  # the second hour is never reached
    process = Command("produce", path, *COLUMNS, *flags)
    process.wait_for("the readings of the first hour", lambda: len(read(name)) == 3)
    code, err = process.end(signum)
    assert code == 0, err
    assert "sent 3 readings of 3 series" in err and "Traceback" not in err
    assert sorted((key, value["ts"]) for key, value, _ in read(name)) == [(b"x", T0), (b"y", T0), (b"z", T0)]


def test_sines_arrive_with_times_of_now(broker, topic, read):
    name = topic(partitions=2)
    before = time.time() * 1_000
    flags = ["--series", 5, "--rate", 2, "--limit", 50, "--speed", "max"]
    code, _, err = produce("sine", *flags, "--bootstrap-servers", broker, "--input-topic", name)
    assert code == 0, err
    records = read(name)
    assert len(records) == 50 and len({key for key, _, _ in records}) == 5
    assert abs(min(value["ts"] for _, value, _ in records) - before) < 60_000


def test_the_machines_own_readings_arrive_until_the_limit(broker, topic, read):
    name = topic(partitions=1)
    flags = ["--interval", "50ms", "--limit", 7, "--name", "box", "--bootstrap-servers", broker, "--input-topic", name]
    code, _, err = produce("machine", *flags)
    assert code == 0, err
    records = read(name)
    assert len(records) == 7
    assert {b"box/cpu_percent", b"box/memory_percent"} <= {key for key, _, _ in records}


def test_a_topic_that_is_not_there_is_named_with_the_command_that_makes_it(broker, tmp_path):
    path = write_csv(tmp_path / "f.csv", hours=2)
    code, _, err = produce(path, *COLUMNS, "--bootstrap-servers", broker, "--input-topic", "not-there")
    assert code == 1
    assert re.search(rf"no topic 'not-there'.*tidecast topics create --bootstrap-servers {broker}", err)
    assert "Traceback" not in err
