"""`tidecast state` on a changelog in memory: what it shows, what it writes, and what it refuses."""

from __future__ import annotations

import base64
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.models import START_MS, STATE, STEP_MS, counting_model, counting_spec
from tidecast.service import cli
from tidecast.service.broker.memory.broker import MemoryBroker, MemoryConsumer
from tidecast.service.broker.partitioner import partition_for
from tidecast.service.broker.port import Batch, OutgoingBatch
from tidecast.service.broker.topics import CHANGELOG_CONFIG
from tidecast.service.commands import state
from tidecast.service.errors import DataError
from tidecast.service.model.compatibility import layout_hash
from tidecast.service.state import export_file
from tidecast.service.state.changelog_admin import SeriesLocation
from tidecast.service.state.codec import Codec
from tidecast.service.state.record import AheadClock, RecordHeader, write_record
from tidecast.service.state.waiting import Group, Waiting
from tidecast.service.timestamps import NEVER

CODEC = Codec(counting_spec())
TOPIC = "tidecast-state"


class Bench:
    """A broker with two partitions, 20 readings in each, and what was put into its changelog."""

    def __init__(self):
        self.broker = MemoryBroker()
        self.broker.create_topic("readings", 2)
        self.broker.create_topic(TOPIC, 2, CHANGELOG_CONFIG)
        for partition in (0, 1):
            for _ in range(20):
                self.put("readings", partition, b"k", b"{}")

    def put(self, topic, partition, key, value):
        out = OutgoingBatch(topic)
        out.append(key, value, partition=partition)
        self.broker.producer().produce(out)

    def flush(self, key, offset, partition=0, steps=1):
        self.put(TOPIC, partition, key, record(offset, steps))

    def live(self):
        """The changelog's last value of each key, with its partition."""
        found = {}
        for partition in (0, 1):
            log = self.broker.log(TOPIC, partition)
            for key, value in zip(log.keys, log.values, strict=True):
                found[(partition, key)] = value
        return {place: value for place, value in found.items() if value is not None}

    def worker(self, committed=True):
        """A member of the group that lives; it has committed something if asked for."""
        member = self.broker.consumer(group="tidecast")
        member.subscribe("readings", lambda _: None, lambda _: None)
        member.poll(0, 100)
        if committed:
            member.commit({0: 5}, "s=5")
        return member


def record(offset, steps=1, ahead=None):
    columns = [np.array([v], dtype=np.int64) for v in (offset, START_MS + offset * STEP_MS, steps, START_MS)]
    return CODEC.encode(
        *columns, np.array([[steps, 0.5, -0.0, offset]], dtype=np.float32), {0: ahead} if ahead else {}
    )[0]


WHOLE = record(3)


def exported(*lines):
    """A file with these lines, as an export writes it: each line's checksum is made anew."""
    texts = []
    for line in lines:
        try:
            header = RecordHeader(
                bytes.fromhex(line["layout"]), *(line[n] for n in ("offset", "last_ts", "steps", "seen_ms")), 0
            )
            value = write_record(header, base64.b64decode(line["state"]))
            place = SeriesLocation(line["partition"], line["series"].encode())
            line = line | {"crc": export_file.checksum(place, line["partitions"], value)}
        except (ValueError, struct.error):
            pass  # no such record can be written
        texts.append(json.dumps(line))
    return "\n\n".join([*texts, json.dumps({"states": len(lines)})]).replace('{"states": ', '{"states":') + "\n"


@pytest.fixture
def bench(monkeypatch):
    bench = Bench()
    monkeypatch.setattr(state, "connect_from_settings", lambda config: bench.broker)
    return bench


@pytest.fixture
def run(bench, capfdbinary):
    """`run("list", "--json")` gives (exit code, stdout, stderr)."""

    def run(*args):
        capfdbinary.readouterr()
        code = cli.main(["state", *args])
        out, err = capfdbinary.readouterr()
        return code, out.decode(), err.decode()

    return run


def test_the_list_has_the_last_state_of_each_series_and_no_deleted_one(bench, run):
    for offset in (3, 7):
        bench.flush(b"b", offset, partition=1, steps=offset)
    bench.flush(b"a", 2)
    bench.flush(b"gone", 4)
    bench.put(TOPIC, 0, b"gone", None)
    assert run() == run("list")
    assert run("list")[1].splitlines() == [
        "series  partition  offset  last reading          steps",
        "a               0       2  2023-11-14T22:15:00Z      1",
        "b               1       7  2023-11-14T22:20:00Z      7",
    ]
    lines = [json.loads(line) for line in run("list", "--json")[1].splitlines()]
    assert lines[1] == {"series": "b", "partition": 1, "offset": 7, "ts": START_MS + 7 * STEP_MS, "steps": 7}


def test_a_short_list_says_that_there_is_more(bench, run):
    for i in range(5):
        bench.flush(b"s%d" % i, i)
    code, out, err = run("--limit", "2")
    assert (code, len(out.splitlines()), err) == (0, 3, "3 more; leave out --limit to list all\n")


def test_an_empty_changelog_is_an_empty_list(run):
    assert run("list", "--json") == (0, "", "")


def test_a_series_is_shown_by_the_names_that_the_model_gives_its_parts(bench, run, tmp_path):
    bench.flush(b"a", 2, steps=9)
    model = str(counting_model(tmp_path))
    shown = json.loads(run("show", "--json", "a", "--model", model)[1])
    assert shown.pop("state") == {name: [v] for name, v in zip(STATE, [9.0, 0.5, 0.0, 2.0], strict=True)}
    header = json.loads(run("show", "a", "--json")[1])
    assert shown == header  # without a model only what needs none
    assert header["layout"] == layout_hash(counting_spec()).hex()
    text = run("show", "a", "--model", model)[1]
    assert "missing     [0.5]\n" in text and "ts          2023-11-14T22:15:00Z\n" in text


def test_a_state_of_another_model_is_not_shown_under_wrong_names(bench, run, tmp_path):
    model = str(counting_model(tmp_path))
    bench.put(TOPIC, 0, b"a", Codec(counting_spec(state_size=5)).encode(
        *[np.zeros(1, dtype=np.int64)] * 4, np.zeros((1, 5), dtype=np.float32))[0])  # fmt: skip
    code, _, err = run("show", "a", "--model", model)
    assert code == 1 and "tidecast-state-0, offset 0, series 'a'" in err and "another model, layout" in err
    assert json.loads(run("show", "a", "--json")[1])["state_size"] == 5


def test_a_series_that_is_in_two_partitions_is_shown_and_deleted_in_both(bench, run):
    bench.flush(b"a", 2)
    bench.flush(b"a", 3, partition=1)
    assert [json.loads(line)["partition"] for line in run("show", "a", "--json")[1].splitlines()] == [0, 1]
    run("reset", "a")
    assert bench.live() == {}


def test_reset_deletes_the_named_series_and_no_other(bench, run):
    for key in (b"a", b"b", b"c"):
        bench.flush(key, 1)
    assert run("reset", "a", "c") == (0, "", "deleted 2 states in tidecast-state\n")
    assert [key for _, key in bench.live()] == [b"b"]
    assert run("reset", "--all")[0] == 0
    assert bench.live() == {}


def test_reset_of_an_unknown_series_names_it_and_deletes_nothing(bench, run):
    bench.flush(b"a", 1)
    code, _, err = run("reset", "a", "typo")
    assert code == 1 and "has no state of 'typo'" in err and "tidecast state list" in err
    assert len(bench.live()) == 1


@pytest.mark.parametrize("action", [("reset", "a"), ("reset", "--all"), ("import", "FILE", "--replace")])
def test_the_states_of_a_running_group_are_not_changed(bench, run, tmp_path, action):
    bench.flush(b"a", 1)
    file = tmp_path / "states"
    run("export", str(file))
    action = [str(file) if word == "FILE" else word for word in action]
    worker = bench.worker()
    before = len(bench.broker.log(TOPIC, 0))
    code, _, err = run(*action)
    assert code == 1 and "the group tidecast is not stopped" in err and "--force" in err
    assert len(bench.broker.log(TOPIC, 0)) == before
    assert bench.broker.commits[("tidecast", "readings")] == {0: (5, "s=5")}
    assert run(*action, "--force")[0] == 0
    worker.close()
    bench.flush(b"a", 1)
    assert run(*action)[0] == 0
    assert bench.broker.commits[("tidecast", "readings")] == {0: (5, "s=5")}  # asking changes no offset


def test_a_group_that_never_committed_counts_as_stopped(bench, run):
    bench.flush(b"a", 1)
    bench.worker(committed=False)
    assert run("reset", "a")[0] == 0


def test_an_export_that_is_imported_again_is_the_same_to_the_byte(bench, run, tmp_path):
    for i in range(30):
        bench.flush(f"ü{i}".encode(), i % 20, partition=i % 2, steps=i)
    before, file = bench.live(), str(tmp_path / "states.jsonl")
    assert run("export", file) == (0, "", "wrote 30 states of tidecast-state\n")
    assert (tmp_path / "states.jsonl").stat().st_mode & 0o777 == 0o600, "only its owner may read the states"
    run("reset", "--all")
    assert run("import", file) == (0, "", "wrote 30 states to tidecast-state, deleted 0\n")
    assert bench.live() == before
    assert run("export", "-")[1].encode() == (tmp_path / "states.jsonl").read_bytes()


def test_a_series_whose_clock_is_ahead_is_listed_and_shown_and_survives_an_export(bench, run, tmp_path):
    bench.put(TOPIC, 1, b"a", record(7, ahead=AheadClock(START_MS, 3, START_MS + 1, 9)))
    file = str(tmp_path / "states.jsonl")
    before = bench.live()
    assert json.loads(run("list", "--json")[1])["offset"] == 7
    assert json.loads(run("show", "a", "--json")[1])["state_size"] == 4
    assert run("export", file)[0] == run("reset", "--all")[0] == run("import", file)[0] == 0
    assert bench.live() == before
    assert run("import", file, "--replace", "--new-input")[0] == 0
    (value,) = bench.live().values()
    assert CODEC.decode(value).ahead == AheadClock(START_MS), "the offset of another topic means nothing"


def test_a_series_of_which_parts_wait_is_listed_and_shown_and_survives_an_export(bench, run, tmp_path):
    header = RecordHeader(CODEC.layout, 7, NEVER, 0, START_MS, 4, None, Waiting(-1, [Group(START_MS, {"wind": 2.5})]))
    bench.put(TOPIC, 1, b"a", write_record(header, bytes(16)))
    file = str(tmp_path / "states.jsonl")
    before = bench.live()
    assert json.loads(run("list", "--json")[1])["ts"] is None
    assert run("list")[1].splitlines()[1].split() == ["a", "1", "7", "-", "0"]
    assert json.loads(run("show", "a", "--json")[1])["waiting"] == [{"ts": START_MS, "values": {"wind": 2.5}}]
    assert "waiting" in run("show", "a")[1]
    assert run("export", file)[0] == run("reset", "--all")[0] == run("import", file)[0] == 0
    assert bench.live() == before


def test_an_exported_line_can_be_read_by_another_program(bench, run):
    bench.flush(b"a", 4, partition=1, steps=6)
    text, last = run("export", "-")[1].splitlines()
    line = json.loads(text)
    assert json.loads(last) == {"states": 1}
    record = bench.live()[(1, b"a")]
    assert line.pop("crc") == zlib.crc32(b"1/2\na\n" + record[:-4])
    numbers = np.frombuffer(base64.b64decode(line.pop("state")), dtype="<f4")
    assert numbers.tolist() == [6.0, 0.5, -0.0, 4.0]
    assert line == {
        "series": "a", "partition": 1, "partitions": 2, "offset": 4, "last_ts": START_MS + 4 * STEP_MS, "steps": 6,
        "seen_ms": START_MS, "layout": layout_hash(counting_spec()).hex(),
    }  # fmt: skip


def test_import_over_states_needs_to_be_asked_for_and_then_leaves_only_the_files(bench, run, tmp_path):
    file = str(tmp_path / "states.jsonl")
    bench.flush(b"a", 1)
    run("export", file)
    bench.flush(b"b", 2)
    code, _, err = run("import", file)
    assert code == 1 and "has states of 2 series already" in err and "--replace" in err
    assert run("import", file, "--replace")[2] == "wrote 1 states to tidecast-state, deleted 1\n"
    assert [key for _, key in bench.live()] == [b"a"]


@pytest.fixture
def line(bench, run):
    """The fields of one good line, of an otherwise empty changelog."""
    bench.flush(b"a", 4)
    found = json.loads(run("export", "-")[1].splitlines()[0])
    run("reset", "a")
    return found


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"offset": 20}, "includes the reading at offset 20, but the input topic ends at 20"),
        ({"partitions": 8}, r"from partition 0 of 8, the changelog has 2"),
        ({"partition": 2}, r"from partition 2 of 2, the changelog has 2"),
        ({"state": base64.b64encode(b"abc").decode()}, "cut short"),
        ({"state": base64.b64encode(np.float32(np.nan).tobytes()).decode()}, "not finite"),
        ({"state": "?"}, "not a state"),
        ({"layout": "00"}, "not a state"),
        ({"steps": 2**63}, "not a state"),
        ({"series": ""}, "not a state"),
        ({"more": 1}, "not a state"),
    ],
)
def test_a_file_with_one_bad_line_is_refused_by_its_number_and_nothing_is_written(
    bench, run, line, tmp_path, change, says
):
    file = tmp_path / "states.jsonl"
    file.write_text(exported(line, line | {"series": "b"} | change))
    code, _, err = run("import", str(file))
    assert code == 1 and "states.jsonl, line 3" in err and says in err, err
    assert err.count("\n") == 1
    assert bench.live() == {}


def test_a_series_that_comes_twice_is_refused(run, line, tmp_path):
    file = tmp_path / "states.jsonl"
    file.write_text(exported(line, line))
    assert "line 3: the series 'a' occurs twice, first in line 1" in run("import", str(file))[2]


def test_states_can_move_to_another_cluster_with_other_offsets(bench, run, line, tmp_path):
    file = tmp_path / "states.jsonl"
    names = [f"s{i}" for i in range(10)]
    file.write_text(exported(*(line | {"series": n, "offset": 999, "partitions": 8} for n in names)))
    assert run("import", str(file), "--new-input")[0] == 0
    assert {key.decode(): partition for partition, key in bench.live()} == {
        name: partition_for(name.encode(), 2) for name in names
    }
    assert {CODEC.decode(value).offset for value in bench.live().values()} == {-1}


def test_a_damaged_record_is_named_with_the_command_that_deletes_it(bench, run):
    bench.put(TOPIC, 1, b"a", record(1)[:-1])
    code, _, err = run("list")
    assert code == 1 and "tidecast-state-1, offset 0, series 'a': a changelog record is damaged" in err
    assert "tidecast state reset a" in err
    assert run("reset", "a")[0] == 0
    assert run("list", "--json") == (0, "", "")


def test_damaged_states_are_listed_as_such_and_left_out_of_an_export_which_says_so_and_fails(bench, run, tmp_path):
    bench.flush(b"good", 4)
    bench.put(TOPIC, 0, b"bad", record(1)[:-1] + b"?")
    bench.put(TOPIC, 1, b"ahead", record(20))
    bench.put(TOPIC, 1, b"\xff", record(3))
    code, out, err = run("list")
    assert code == 1 and [line.split()[:3] for line in out.splitlines()[1:]] == [
        ["ahead", "1", "damaged"],
        ["bad", "0", "damaged"],
        ["good", "0", "4"],
        ["\\xff", "1", "damaged"],
    ]
    file = tmp_path / "states.jsonl"
    assert run("export", str(file))[::2] == (1, "wrote 1 states of tidecast-state\n" + err)
    for says in (
        "tidecast-state-0, offset 1, series 'bad': a changelog record is damaged: its checksum is wrong",
        "series 'ahead': a changelog record includes the reading at offset 20, but the input topic ends at 20",
        "the key of a changelog record is not UTF-8",
        "3 states cannot be used",
    ):
        assert says in err, err
    assert run("import", str(file), "--replace")[0] == 0
    assert [key for _, key in bench.live()] == [b"good"]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 7))
def test_a_wrong_bit_or_a_cut_anywhere_in_a_state_is_listed_and_not_exported_and_no_other_state_is_lost(
    bench, run, at, bit
):
    bench.flush(b"good", 4)
    for value in (WHOLE[:at] + bytes([WHOLE[at] ^ 1 << bit]) + WHOLE[at + 1 :], WHOLE[:at]):
        bench.put(TOPIC, 0, b"bad", value)
        code, out, _ = run("list", "--json")
        found = [json.loads(line) for line in out.splitlines()]
        assert code == 1 and [("damaged" in line, line["series"]) for line in found] == [(True, "bad"), (False, "good")]
        code, out, _ = run("export", "-")
        assert code == 1 and [json.loads(line).get("series") for line in out.splitlines()] == ["good", None]


def test_an_exported_file_with_one_wrong_bit_or_without_its_end_is_refused(bench, run, tmp_path):
    for i in range(3):
        bench.flush(b"s%d" % i, i)
    file = tmp_path / "states.jsonl"
    run("export", str(file))
    whole = file.read_bytes()
    want = export_file.read_states(file, 2)

    @settings(deadline=None, max_examples=300)
    @given(st.integers(0, len(whole) - 1), st.integers(0, 7))
    def refused(at, bit):
        for text in (whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :], whole[:at]):
            file.write_bytes(text)
            try:
                found = export_file.read_states(file, 2)
            except DataError:
                continue
            assert found == want  # the last newline, or bits of base64 that mean nothing

    refused()


@pytest.mark.parametrize("name", ["consistent", "murmur2"])
def test_an_import_that_would_put_states_where_their_readings_are_not_names_the_partitioner(
    bench, run, line, tmp_path, name
):
    names = [f"s{i}" for i in range(40)]
    for each in names[:30]:
        bench.put("readings", partition_for(each.encode(), 2, name), each.encode(), b"{}")
    file = tmp_path / "states.jsonl"
    file.write_text(exported(*(line | {"series": n, "partitions": 8} for n in names)))
    code, _, err = run("import", str(file), "--new-input")
    assert code == (0 if name == "murmur2" else 1)
    if code:
        assert "of 30 series are read in another partition" in err and "--partitioner consistent: it puts all" in err
        assert bench.live() == {}
        assert run("import", str(file), "--new-input", "--partitioner", name)[0] == 0
    assert {key.decode(): p for p, key in bench.live()} == {n: partition_for(n.encode(), 2, name) for n in names}


def test_states_keep_their_partition_where_the_new_input_has_as_many(bench, run, line, tmp_path):
    file = tmp_path / "states.jsonl"
    names = [f"s{i}" for i in range(10)]
    file.write_text(exported(*(line | {"series": n, "partition": i % 2} for i, n in enumerate(names))))
    assert run("import", str(file), "--new-input")[0] == 0
    assert {key.decode(): p for p, key in bench.live()} == {n: i % 2 for i, n in enumerate(names)}


def test_a_damaged_record_that_a_later_one_replaces_does_no_harm(bench, run):
    bench.put(TOPIC, 1, b"a", b"{}")
    bench.flush(b"a", 3, partition=1)
    assert json.loads(run("list", "--json")[1])["offset"] == 3


def test_a_topic_that_is_not_a_changelog_is_refused(bench, run):
    bench.put(TOPIC, 0, None, b"{}")
    code, _, err = run("list")
    assert code == 1 and "a record without a key; tidecast-state is not a changelog" in err


def test_a_missing_changelog_is_refused_with_the_command_that_creates_it(bench, run):
    code, _, err = run("list", "--changelog-topic", "other")
    assert code == 1 and "there is no changelog other" in err
    assert "tidecast topics create --partitions 2 --changelog-topic other" in err
    bench.broker.delete_topic("readings")
    bench.flush(b"a", 1)
    assert run("reset", "a")[0] == 0  # without an input topic there is no worker to ask


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["list", "a"], "tidecast state list: unrecognized arguments: a"),
        (["show"], "tidecast state show: the following arguments are required: SERIES"),
        (["show", "a", "b"], "tidecast state show: unrecognized arguments: b"),
        (["reset"], "takes SERIES… or --all"),
        (["reset", "a", "--all"], "takes SERIES… or --all, got 'a'"),
        (["import", "f", "--partitioner", "fnv1a"], "Give --new-input too"),
        (["export"], "the following arguments are required: FILE"),
        (["list", "--force"], "tidecast state list has no --force. It is for: reset, import."),
        (["export", "f", "--new-input"], "tidecast state export has no --new-input. It is for: import."),
        (["list", "--limit", "0"], "--limit must be at least 1"),
        (["list", "--jsn"], "Did you mean --json?"),
        (["show", "JFK", "--model-sha25=0"], "Did you mean --model-sha256?"),
        (["reset", "JFK", "--model-sha256=0"], "tidecast state reset has no --model-sha256. It is for: show."),
        (["lst"], "Did you mean list?"),
    ],
)
def test_wrong_use_is_one_sentence(run, args, says):
    code, out, err = run(*args)
    assert (code, out) == (2, "") and says in err and err.count("\n") == 1, err


def test_an_error_names_a_file_that_cannot_be_read_or_written(bench, run, tmp_path):
    assert run("import", str(tmp_path / "none"))[:2] == (1, "")
    code, _, err = run("export", str(tmp_path / "no" / "dir"))
    assert code == 2 and "cannot write" in err and "another FILE" in err


def test_reading_ends_while_a_worker_keeps_writing(bench, run, monkeypatch):
    bench.flush(b"a", 1)
    poll = MemoryConsumer.poll

    def busy(self, timeout_s, max_records):
        bench.flush(b"a", 2)
        bench.flush(b"later", 3)
        return poll(self, timeout_s, max_records)

    monkeypatch.setattr(MemoryConsumer, "poll", busy)
    lines = [json.loads(line) for line in run("list", "--json")[1].splitlines()]
    assert [(line["series"], line["offset"]) for line in lines] == [("a", 1)]  # as it was at the beginning


def test_a_changelog_that_is_not_read_to_its_end_is_an_error(bench, run, monkeypatch):
    bench.flush(b"a", 1)
    monkeypatch.setattr(MemoryConsumer, "poll", lambda self, timeout_s, max_records: Batch(TOPIC))
    code, out, err = run("list", "--broker-timeout-seconds", "1")
    assert (code, out) == (1, "") and "nothing arrived for 1 s before its end" in err


def test_the_states_of_several_models_are_shown_by_model_and_come_back_from_a_file_unchanged(bench, run, tmp_path):
    one, two = counting_spec(), counting_spec(hash="1" * 64)
    codec, columns = Codec(one, two), [np.full(1, 3, dtype=np.int64)] * 4
    value = codec.encode(*columns, np.arange(10, dtype=np.float32)[np.newaxis])[0]
    bench.put(TOPIC, 0, b"a", value)
    assert json.loads(run("show", "a", "--json")[1])["models"] == ["0" * 12, "1" * 12]
    file = tmp_path / "states"
    assert run("export", str(file))[0] == 0
    assert run("reset", "a")[0] == 0
    assert run("import", str(file))[0] == 0
    assert bench.live() == {(0, b"a"): value}
