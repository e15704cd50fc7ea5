"""The live page on a real Kafka: what comes on the topics is on the page, and nothing that happens to Kafka ends it."""

import base64
import contextlib
import http.client
import time
from urllib.parse import quote

import msgspec
import pytest

from tests.support.kafka import own_kafka
from tests.support.models import START_MS, STEP_MS
from tests.support.serving import PATIENCE, Topics
from tests.support.watching import Watch
from tests.support.worker_process import WorkerProcess
from tidecast.service.broker.connect import CLIENTS, connect
from tidecast.service.broker.port import OutgoingBatch


@contextlib.contextmanager
def watching(topics, *flags):
    watch = Watch(
        f"--bootstrap-servers={topics.bootstrap_servers}",
        f"--input-topic={topics.readings}",
        f"--output-topic={topics.forecasts}",
        f"--client={topics.client}",
        "--watch-port=0",
        *flags,
    )
    try:
        watch.wait_for("its address", lambda: "url=http://" in watch.log)
        yield watch
    finally:
        watch.end()


def value(i, **fields):
    return msgspec.json.encode({"ts": START_MS + i * STEP_MS, **(fields or {"value": float(i), "wind": 1.0})})


def history(watch, name, readings=0, forecasts=0):
    def found():
        shown = watch.json(f"/api/history?series={quote(name, safe='')}")
        enough = shown and len(shown["readings"][0]) >= readings and len(shown["past"][0]) >= forecasts
        return shown if enough else None

    return watch.until(f"{readings} readings and {forecasts} forecasts of {name}", found)


@pytest.mark.parametrize("client", CLIENTS)
def test_readings_and_what_a_worker_answers_are_on_the_page_while_it_works(topics, model):
    t = topics(2)
    t.send([(0, b"a", value(i)) for i in range(5)] + [(1, "häfen/<1>".encode(), value(0))])
    with watching(t) as watch:
        assert history(watch, "a", readings=5)["past"][0] == []
        watch.until("readings that wait", lambda: watch.status()["waiting"] == 6)
        worker = WorkerProcess(*t.flags, f"--model={model}")
        try:
            shown = history(watch, "a", readings=5, forecasts=5)
            assert shown["targets"] == ["value"]
            assert shown["fan"]["made"] == START_MS + 4 * STEP_MS
            t.send([(0, b"a", value(5))])
            shown = history(watch, "a", readings=6, forecasts=6)
            assert shown["readings"][1] == [0, 1, 2, 3, 4, 5]
            watch.until("all are answered", lambda: watch.status()["waiting"] == 0)
            assert watch.json("/api/series")["names"] == ["a", "häfen/<1>"]
        finally:
            worker.end()


def test_the_page_waits_for_topics_that_are_made_later(topics, kafka):
    t = topics(1)
    kafka.delete_topic(t.forecasts)
    with watching(t) as watch:
        state = watch.until("it waits", lambda: (s := watch.status())["kafka"] == "waiting" and s)
        assert t.forecasts in state["reason"]
        kafka.create_topic(t.forecasts, 1)
        t.send([(0, b"a", value(0))])
        history(watch, "a", readings=1)


def test_invalid_records_and_tombstones_do_not_stop_the_page(topics):
    t = topics(1)
    rubbish = [b"", b"\x00\x01\x02", b"{}", b"[" * 5000, b'{"ts": 1e400}', b"x" * 100_000]
    t.send(
        [(0, b"gone", value(0)), *((0, b"a", each) for each in rubbish), (0, b"\xff", value(0)), (0, None, value(0))]
    )
    t.send([(0, b"gone", None), (0, b"a", value(1))])
    with watching(t) as watch:
        assert history(watch, "a", readings=1)["readings"][1] == [1]
        assert watch.json("/api/series")["names"] == ["a"]
        assert watch.status()["refused"] == len(rubbish) + 2


def test_readings_of_another_shape_are_on_the_page_with_their_forecasts(topics, model, tmp_path):
    t = topics(1)
    file = tmp_path / "input.toml"
    file.write_text('[input]\nexplode = "readings"\nkey = "id"\ntime = "../at"\n')
    t.send([(0, None, msgspec.json.encode({"at": START_MS + i * STEP_MS, "readings": [
        {"id": name, "value": float(i), "wind": 1.0} for name in ("a", "b")]})) for i in range(5)])  # fmt: skip
    t.send([(0, None, b'{"at": 1}')])
    with watching(t, f"--input={file}") as watch:
        assert history(watch, "a", readings=5)["readings"][1] == [0, 1, 2, 3, 4]
        assert watch.json("/api/series")["names"] == ["a", "b"]
        worker = WorkerProcess(*t.flags, f"--model={model}", f"--input={file}")
        try:
            assert history(watch, "b", readings=5, forecasts=5)["targets"] == ["value"]
            watch.until("all are answered", lambda: watch.status()["waiting"] == 0)
        finally:
            worker.end()
        assert watch.status()["refused"] == 1


def test_only_the_newest_records_are_read_at_the_start(topics):
    t = topics(1)
    t.send([(0, b"a", value(i)) for i in range(1000)])
    with watching(t, "--watch-start-records=100") as watch:
        shown = history(watch, "a", readings=50)
        assert 50 <= len(shown["readings"][0]) <= 100
        assert shown["readings"][1][-1] == 999


def test_what_a_transaction_has_not_committed_is_not_shown(topics):
    t = topics(1)
    producer = t.broker.producer(transactional_id=f"tx-{t.group}")
    with watching(t) as watch:
        watch.until("it reads", lambda: watch.status()["kafka"] == "live")
        producer.begin()
        out = OutgoingBatch(t.readings)
        out.append(b"secret", value(0), partition=0)
        producer.produce(out)
        producer.flush(PATIENCE)
        time.sleep(1.0)
        producer.close()
        t.broker.producer(transactional_id=f"tx-{t.group}").close()  # which aborts what is open
        t.send([(0, b"seen", value(0))])
        history(watch, "seen", readings=1)
        assert watch.json("/api/series")["names"] == ["seen"]


def test_the_page_outlives_kafka_and_says_so(tmp_path):
    own = own_kafka(tmp_path / "kafka")
    own.start(print)
    try:
        t = Topics(own.bootstrap_servers)
        t.send([(0, b"a", value(0))])
        with watching(t) as watch:
            history(watch, "a", readings=1)
            own.kill()
            watch.until("it says so", lambda: watch.status()["kafka"] in ("away", "connecting"))
            assert history(watch, "a", readings=1)  # what was seen stays
            own.start(print)
            port = connect(own.bootstrap_servers, timeout_s=PATIENCE)
            assert port.partitions(t.readings) == 1
            port.close()
            t.send([(0, b"a", value(1))])
            history(watch, "a", readings=2)
            watch.until("it is live", lambda: watch.status()["kafka"] == "live")
        t.broker.close()
    finally:
        own.stop()


def test_it_ends_on_sigterm_with_0_and_the_password_is_nowhere(topics, tmp_path):
    t = topics(1)
    (tmp_path / "password").write_text("hush-hush\n")
    watch = Watch(*[f for f in t.flags if f.startswith(("--boot", "--input", "--output", "--client"))],
                  "--watch-port=0", f"--watch-password-file={tmp_path / 'password'}", "--log-level=debug")  # fmt: skip
    host = watch.wait_for(
        "its address", lambda: "url=http://" in watch.log and watch.log.split("url=http://")[1].split()[0]
    )
    connection = http.client.HTTPConnection(host, timeout=10)
    basic = base64.b64encode(b"me:hush-hush").decode()
    for headers, code in (({}, 401), ({"Authorization": f"Basic {basic}"}, 200)):
        connection.request("GET", "/api/about", headers=headers)
        response = connection.getresponse()
        assert response.status == code
        assert b"hush" not in response.read()
    connection.close()
    assert watch.end()[0] == 0
    assert "hush" not in watch.log
    assert basic not in watch.log
