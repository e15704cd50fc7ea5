"""`tidecast state` against a real Kafka: transactions, compacted topics and a group that lives."""

import json

import numpy as np
import pytest
from confluent_kafka import Producer
from kafka import KafkaProducer

from tests.support.models import counting_spec
from tests.support.serving import PATIENCE
from tidecast.service import cli
from tidecast.service.broker.partitioner import PARTITIONERS
from tidecast.service.broker.topics import check_compacted
from tidecast.service.config import loader
from tidecast.service.state import export_file, placement
from tidecast.service.state.changelog_admin import SeriesLocation
from tidecast.service.state.codec import Codec

CODEC = Codec(counting_spec())


def record(offset):
    columns = [np.array([v], dtype=np.int64) for v in (offset, 1_700_000_000_000, offset, 0)]
    return CODEC.encode(*columns, np.full((1, 4), offset, dtype=np.float32))[0]


@pytest.fixture
def bench(topics):
    return topics(2)


@pytest.fixture
def run(bench, capfdbinary):
    def run(*args):
        capfdbinary.readouterr()
        flags = [flag for flag in bench.flags if "output" not in flag and "dead" not in flag and "http" not in flag]
        code = cli.main(["state", *args, *flags])
        out, err = capfdbinary.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err.decode()

    return run


def test_states_of_a_stopped_group_are_what_was_committed_and_can_be_moved_and_forgotten(bench, run, tmp_path):
    bench.send([(p, b"k", b"{}") for p in (0, 1) for _ in range(10)])
    raw = KafkaProducer(bootstrap_servers=bench.bootstrap_servers, transactional_id=bench.group)
    raw.init_transactions()
    for commit, values in ((True, {b"a": record(3), b"b": record(4), b"c": record(5)}), (False, {b"a": record(9)})):
        raw.begin_transaction()
        for key, value in values.items():
            raw.send(bench.states, key=key, value=value, partition=0 if key == b"a" else 1)
        raw.flush()
        raw.commit_transaction() if commit else raw.abort_transaction()
    raw.begin_transaction()  # stays open: what follows the end offset of read_committed is nobody's yet
    raw.send(bench.states, key=b"a", value=record(8), partition=0)
    raw.flush()

    code, lines, _ = run("list", "--json")
    assert code == 0
    assert [(line["series"], line["partition"], line["offset"]) for line in lines] == [
        ("a", 0, 3),
        ("b", 1, 4),
        ("c", 1, 5),
    ]
    raw.abort_transaction()
    raw.close()
    file = str(tmp_path / "states.jsonl")
    assert run("export", file)[0] == 0
    assert run("reset", "a", "c")[0] == 0
    assert [line["series"] for line in run("list", "--json")[1]] == ["b"]
    code, _, err = run("import", file)
    assert code == 1 and "has states of 1 series already" in err
    assert run("import", file, "--replace")[0] == 0
    assert run("list", "--json")[1] == lines
    check_compacted(bench.broker, loader.load({"changelog_topic": bench.states}, {}))


def test_a_group_with_members_is_refused_and_its_offsets_stay(bench, run):
    bench.send([(0, b"k", b"{}")] * 5)
    producer = KafkaProducer(bootstrap_servers=bench.bootstrap_servers)
    producer.send(bench.states, key=b"a", value=record(3), partition=0)
    producer.close()
    member, assigned = bench.broker.consumer(group=bench.group), set()
    member.subscribe(bench.readings, assigned.update, assigned.difference_update)
    for _ in range(int(PATIENCE / 0.1)):
        member.poll(0.1, 100)
        if len(assigned) == 2:
            break
    member.commit({0: 4}, "s=2")
    code, _, err = run("reset", "a")
    assert code == 1 and f"the group {bench.group} is not stopped" in err and err.count("\n") == 1
    assert member.committed([0, 1]) == {0: (4, "s=2"), 1: None}
    assert [line["series"] for line in run("list", "--json")[1]] == ["a"]
    member.close()
    assert run("reset", "a")[0] == 0
    assert run("list", "--json")[1] == []
    asking = bench.broker.consumer(group=bench.group)
    asking.assign(bench.readings, {0: 0})
    assert asking.committed([0]) == {0: (4, "s=2")}
    asking.close()


@pytest.mark.parametrize("partitioner", sorted(PARTITIONERS))
def test_states_are_imported_into_the_partitions_in_which_a_producer_puts_their_readings(
    bench, run, tmp_path, partitioner
):
    """Without the flag an import is refused, and its sentence has the flag."""
    names = [f"s{i}" for i in range(40)]
    file = tmp_path / "states.jsonl"
    lines = [export_file.to_line(SeriesLocation(0, name.encode()), 3, record(1)) for name in names]
    file.write_bytes(b"".join([*lines, export_file.last_line(len(lines))]))
    producer = Producer({"bootstrap.servers": bench.bootstrap_servers, "partitioner": partitioner})
    for name in names:
        producer.produce(bench.readings, b"{}", name.encode())
    producer.flush(PATIENCE)
    code, _, err = run("import", str(file), "--new-input")
    assert (code == 0) is (partitioner == "murmur2")
    if code:
        assert f"Give --partitioner {partitioner}: it puts all but 0" in err, err
        assert run("import", str(file), "--new-input", "--partitioner", partitioner)[0] == 0
    read_in = placement.partitions_read(bench.broker, loader.load({"input_topic": bench.readings}, {}))
    assert {line["series"]: line["partition"] for line in run("list", "--json")[1]} == {
        key.decode(): partition for key, partition in read_in.items()
    }
    assert len(read_in) == 40 and set(read_in.values()) == {0, 1}
