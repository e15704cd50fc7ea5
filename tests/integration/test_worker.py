"""The worker as its users run it: a process of its own, against a real Kafka."""

import json
import re
import signal
import socket
import time
from collections import Counter

import psutil
import pytest

from tests.support.kafka import own_kafka
from tests.support.models import POISON_STATE, START_MS, STEP_MS, CountingReference, counting_model
from tests.support.serving import Topics, serving
from tidecast.service.broker.connect import CLIENTS, connect
from tidecast.service.input.rejected import DeadLetterReason

# Reasons that only an --input has: test_input.py, test_schema_registry.py
WITH_INPUT = {DeadLetterReason.BAD_FORMAT, DeadLetterReason.UNKNOWN_SCHEMA, DeadLetterReason.OTHER_PARTITION}
both_clients = pytest.mark.parametrize("client", CLIENTS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return counting_model(tmp_path_factory.mktemp("model"))


def reading(step, value=1.0):
    return json.dumps({"ts": START_MS + step * STEP_MS, "value": value, "wind": 2.0}).encode()


def sources(records):
    return Counter(json.loads(value)["source"] for _, _, value, _ in records)


@both_clients
def test_readings_of_four_partitions_are_answered_on_their_own_key_and_partition(topics, model):
    t = topics(partitions=4)
    series = {f"s{i}".encode(): i % 4 for i in range(12)}
    t.send(
        (p, key, reading(step, step + p), [("traceparent", b"00-1")]) for step in range(20) for key, p in series.items()
    )
    with serving("--model", model, *t.flags) as worker:
        found = t.read(t.forecasts, 240)
        code, log = worker.end()
    assert (code, worker.out) == (0, ""), log
    assert len(found) == 240
    for key, partition in series.items():
        reference = CountingReference()
        mine = [(p, json.loads(value), headers) for p, k, value, headers in found if k == key]
        for step, (p, forecast, headers) in enumerate(mine):
            y = reference.step([step + partition, 2.0], START_MS + step * STEP_MS)
            assert p == partition
            assert forecast["ts"] == START_MS + step * STEP_MS
            assert [forecast["targets"]["value"][q] for q in ("p10", "p50", "p90")] == [
                list(c) for c in zip(*y, strict=True)
            ]
            assert headers == {"traceparent": b"00-1"}
            assert forecast["source"].startswith(f"{t.readings}-{partition}-")
        assert len(mine) == 20
    assert {p: c[0] for p, c in t.committed().items()} == dict.fromkeys(range(4), 60)


@both_clients
def test_sigterm_answers_and_commits_what_was_read_and_the_next_worker_repeats_nothing(topics, model):
    t = topics(partitions=2)
    n = 20_000
    t.send((i % 2, b"s%d" % (i % 50), reading(i // 50)) for i in range(n))
    with serving("--model", model, "--max-poll-records", 200, *t.flags) as first:
        first.wait_for("forecasts", lambda: first.metric("tidecast_forecasts_total") > 0)
        code, log = first.end()
    assert code == 0, log
    assert "stopped: all that was read is answered and committed" in log
    done = sum(c[0] for c in t.committed().values() if c)
    assert done > 0
    assert len(t.read(t.forecasts, done)) == done, "each committed reading has one forecast, and none is uncommitted"
    with serving("--model", model, *t.flags) as second:
        found = t.read(t.forecasts, n)
        assert second.end()[0] == 0
    assert set(sources(found).values()) == {1}
    assert len(found) == n


@both_clients
def test_two_workers_share_the_partitions_and_one_takes_over_from_the_other(topics, model):
    t = topics(partitions=4)
    with serving("--model", model, *t.flags) as first, serving("--model", model, *t.flags) as second:
        first.ready()
        second.ready()
        held = r"(?m)^tidecast_series{"
        for worker in (first, second):
            worker.wait_for("half of the partitions", lambda w=worker: len(re.findall(held, w.get("/metrics")[1])) == 2)
        t.send((p, b"s%d" % p, reading(step)) for step in range(50) for p in range(4))
        assert len(t.read(t.forecasts, 200)) == 200
        for worker in (first, second):  # its metrics may be a second old
            worker.wait_for("half of them", lambda w=worker: w.metric("tidecast_forecasts_total") == 100)
        assert first.end()[0] == 0
        second.wait_for("all partitions", lambda: len(re.findall(held, second.get("/metrics")[1])) == 4)
        t.send((p, b"s%d" % p, reading(50)) for p in range(4))
        found = t.read(t.forecasts, 204)
        assert second.end()[0] == 0
    assert set(sources(found).values()) == {1}


def test_a_dead_letter_of_every_reason_keeps_the_record_and_says_why(topics, model):
    t = topics()
    good = json.loads(reading(0))
    bad = {
        DeadLetterReason.NOT_JSON: (b"k", b"{"),
        DeadLetterReason.WRONG_TYPE: (b"k", json.dumps({**good, "value": "hot"}).encode()),
        DeadLetterReason.MISSING_KEY: (None, reading(0)),
        DeadLetterReason.BAD_KEY: (b"\xff\xfe", reading(0)),
        DeadLetterReason.MISSING_TIME: (b"k", b'{"value": 1}'),
        DeadLetterReason.TIME_OUT_OF_RANGE: (b"k", json.dumps({**good, "ts": 10**17}).encode()),
        DeadLetterReason.NO_FEATURES: (b"k", b'{"ts": 1700000000000, "Value": 1, "Wind": 2}'),
        DeadLetterReason.VALUE_OUT_OF_RANGE: (b"k", json.dumps({**good, "value": 1e300}).encode()),
        DeadLetterReason.SCHEMA_REGISTRY_FRAMING: (b"k", b"\x00\x00\x00\x00\x07" + reading(0)),
        DeadLetterReason.TOO_LARGE: (b"k", reading(0) + b" " * (1 << 20)),
        DeadLetterReason.LATE: (b"time", reading(4)),
        DeadLetterReason.DUPLICATE: (b"time", reading(5)),
        DeadLetterReason.NON_FINITE_STATE: (b"poison", reading(0, POISON_STATE)),
    }
    assert set(bad) == set(DeadLetterReason) - WITH_INPUT
    t.send([(0, b"time", reading(5)), *((0, key, value, [("trace", b"x")]) for key, value in bad.values())])
    flags = ("--dead-letter-late", "--dead-letter-duplicate")
    with serving("--model", model, *flags, *t.flags) as worker:
        letters = t.read(t.dead, len(bad))
        worker.wait_for("their count", lambda: worker.metric("tidecast_dead_letters_total") == len(bad))
        code, log = worker.end()
    assert code == 0, log
    assert len(letters) == len(bad)
    for offset, (reason, (key, value)) in enumerate(bad.items(), start=1):
        mine = [letter for letter in letters if letter[3]["tidecast.reason"] == reason.encode()]
        assert [(k, v) for _, k, v, _ in mine] == [(key, value)], reason
        headers = mine[0][3]
        assert headers["trace"] == b"x"
        assert headers["tidecast.topic"] == t.readings.encode()
        assert headers["tidecast.partition"] == b"0" and headers["tidecast.offset"] == str(offset).encode()
        assert headers["tidecast.group"] == t.group.encode()
        assert len(headers["tidecast.message"]) > 10


def test_late_duplicate_and_gap_are_dealt_with_and_counted(topics, model):
    t = topics()
    steps = [0, 1, 1, 0, 4, 100]  # a duplicate, a late one, two missing, more missing than are filled
    t.send((0, b"s", reading(step)) for step in steps)
    with serving("--model", model, *t.flags) as worker:
        found = [json.loads(v) for _, _, v, _ in t.read(t.forecasts, 4)]
        counted = {
            name: worker.metric(f"tidecast_{name}_total")
            for name in ("readings", "forecasts", "duplicate_readings", "late_readings", "silent_steps", "gaps")
        }
        status, body = worker.get("/series/s")
        worker.end()
    assert [(f["ts"] - START_MS) // STEP_MS for f in found] == [0, 1, 4, 100]
    assert [f["warm"] for f in found] == [False, False, True, False]
    assert counted == {
        "readings": 6,
        "forecasts": 4,
        "duplicate_readings": 1,
        "late_readings": 1,
        "silent_steps": 2,
        "gaps": 2,
    }
    assert status == 200 and json.loads(body)["state"]["count"] == [1.0], "it started again after the long gap"


def test_too_many_dead_letters_end_the_worker_with_the_reasons(topics, model):
    t = topics()
    t.send((0, b"k", b"{") for _ in range(30))
    with serving("--model", model, "--dead-letter-limit", 10, *t.flags) as worker:
        code, log = worker.end(signum=None)
    assert code == 1
    assert "not_json 30" in log and "Traceback" not in log
    assert len(t.read(t.dead, 30)) == 30


def test_topics_that_do_not_fit_are_refused_with_the_command_that_fixes_it(topics, model):
    t = topics(partitions=2)
    t.forecasts += "-narrow"
    t.broker.create_topic(t.forecasts, 1)
    with serving("--model", model, *t.flags) as worker:
        code, log = worker.end(signum=None)
    assert code == 1
    assert "tidecast topics create --partitions 2" in log and "Traceback" not in log


@both_clients
def test_a_broker_that_does_not_answer_is_waited_for_only_so_long(model, client):
    flags = (f"--client={client}", "--bootstrap-servers=127.0.0.1:1", "--broker-timeout-seconds=1", "--http-port=0")
    with serving("--model", model, *flags) as worker:
        code, log = worker.end(signum=None)
    assert code == 1
    assert "127.0.0.1:1" in log.splitlines()[-1] and "Traceback" not in log


@both_clients
def test_sigterm_ends_a_worker_that_still_waits_for_its_broker(model, client):
    flags = (f"--client={client}", "--bootstrap-servers=127.0.0.1:1", "--broker-timeout-seconds=600", "--http-port=0")
    with serving("--model", model, *flags) as worker:
        worker.wait_for("the search", lambda: "looking for Kafka" in worker.log)
        assert worker.get("/livez")[0] == 200
        assert worker.get("/readyz")[0] == 503
        assert worker.end()[0] == 0


def test_a_model_that_is_not_there_is_refused_before_the_broker_is_asked():
    with serving("--model=nowhere", "--http-port=0") as worker:
        code, log = worker.end(signum=None)
    assert code == 1
    assert "nowhere" in log.splitlines()[-1] and "Traceback" not in log


def test_a_second_worker_on_the_same_port_says_which_flag_to_use(model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serving("--model", model, f"--http-port={port}") as worker:
            code, log = worker.end(signum=None)
    assert code == 1
    assert f"port {port} of 127.0.0.1 is taken" in log.splitlines()[-1] and "--http-port" in log.splitlines()[-1]


def test_a_broker_that_crashes_is_waited_for_and_one_that_stays_away_ends_the_worker(model, tmp_path, client):
    with own_kafka(tmp_path / "broker") as kafka:
        t = Topics(kafka.bootstrap_servers, client=client)
        flags = ("--broker-timeout-seconds=30", *t.flags)
        with serving("--model", model, *flags) as worker:
            t.send((0, b"s", reading(step)) for step in range(10))
            worker.wait_for("the first forecasts", lambda: worker.metric("tidecast_forecasts_total") == 10)
            kafka.kill()
            time.sleep(2)
            kafka.start()
            t.broker.close()
            t.broker = connect(kafka.bootstrap_servers, timeout_s=30)
            t.send((0, b"s", reading(step)) for step in range(10, 20))
            found = t.read(t.forecasts, 20)
            assert [json.loads(v)["ts"] for *_, v, _ in found][-1] == START_MS + 19 * STEP_MS
            assert worker.end()[0] == 0
        with serving("--model", model, "--broker-timeout-seconds=5", *t.flags) as worker:
            worker.ready()
            kafka.kill()
            code, log = worker.end(signum=None)
        t.broker.close()
    assert code == 1
    assert kafka.bootstrap_servers in log.splitlines()[-1] and "Traceback" not in log


def test_a_worker_with_a_thousand_series_needs_less_than_250_mb(topics, model, record_property):
    t = topics(partitions=4)
    began = time.monotonic()
    with serving("--model", model, *t.flags, preloaded=False) as worker:
        worker.ready()
        record_property("ready_seconds", round(time.monotonic() - began, 2))
        t.send((i % 4, b"series-%d" % (i % 1_000), reading(i // 1_000)) for i in range(20_000))
        worker.wait_for("all forecasts", lambda: worker.metric("tidecast_forecasts_total") == 20_000)
        worker.wait_for("all series", lambda: worker.metric("tidecast_series") == 1_000)
        rss = psutil.Process(worker.process.pid).memory_info().rss / 1e6
        assert worker.end()[0] == 0
    record_property("rss_mb", round(rss))
    assert rss < 250


def test_sigusr1_shows_what_every_thread_does_and_the_worker_continues(topics, model):
    t = topics()
    with serving("--model", model, *t.flags) as worker:
        worker.ready()
        for shown in range(1, 21):  # often: walking the stacks of threads that run must not crash it
            worker.process.send_signal(signal.SIGUSR1)
            worker.wait_for("the stacks", lambda n=shown: worker.log.count("Current thread") >= n)
        assert "worker.py" in worker.log
        t.send([(0, b"s", reading(0))])
        assert len(t.read(t.forecasts, 1)) == 1
        assert worker.end(signal.SIGINT)[0] == 0
