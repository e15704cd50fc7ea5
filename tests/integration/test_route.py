"""`tidecast route` in front of `tidecast serve`, as their users run them, against a real Kafka."""

import json
import time
import uuid
from collections import Counter
from contextlib import ExitStack, contextmanager

import pytest

from tests.chaos.administration import Administration
from tests.chaos.topics import read_all
from tests.support.models import START_MS, STEP_MS, CountingReference, counting_model
from tests.support.serving import serving
from tests.support.worker_process import PATIENCE, WorkerProcess, tidecast
from tidecast.service.broker.connect import CLIENTS
from tidecast.service.broker.partitioner import partition_for
from tidecast.service.broker.port import OutgoingBatch

both_clients = pytest.mark.parametrize("client", CLIENTS)
TABLE = """
[input]
key = "{tags.site}/{tags.host}"
time = "at"
fields = { value = "fields.value", wind = "fields.wind" }
"""
SOURCES = 4


class RouteProcess(WorkerProcess):
    program = ("-m", "tidecast", "route")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return counting_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def source(topics, tmp_path):
    """The topics of a worker with three partitions, and a source with four."""
    t = topics(partitions=3)
    t.source, t.route_group = f"source-{uuid.uuid4().hex[:8]}", f"{t.group}-route"
    t.broker.create_topic(t.source, SOURCES)
    table = tmp_path / "input.toml"
    table.write_text(TABLE)
    t.route_flags = [
        f"--bootstrap-servers={t.bootstrap_servers}",
        f"--source-topic={t.source}",
        f"--input-topic={t.readings}",
        f"--dead-letter-topic={t.dead}",
        f"--route-group={t.route_group}",
        f"--input={table}",
        f"--client={t.client}",
        "--http-port=0",
    ]
    return t


@contextmanager
def routing(t, *flags):
    router = RouteProcess(*t.route_flags, *flags)
    try:
        yield router
    except BaseException:
        router.show()
        raise
    finally:
        router.kill()


def record(host, step, value=1.0):
    fields = {"value": value, "wind": 2.0, "other": "text"}
    at = START_MS + step * STEP_MS
    return json.dumps({"tags": {"site": "north", "host": host}, "fields": fields, "at": at}).encode()


def send(t, records):
    """Values with null keys, each to a partition of the source, perhaps with a timestamp."""
    producer, out = t.broker.producer(), OutgoingBatch(t.source)
    headers = [("traceparent", b"00-1"), ("other", b"x")]
    for partition, value, *stamp in records:
        out.append(None, value, partition=partition, headers=headers, timestamp=stamp[0] if stamp else None)
    producer.produce(out)
    producer.flush(PATIENCE)
    producer.close()


class Reader:
    """Reads one topic, as a consumer does that wants no aborted records."""

    def __init__(self, t, topic):
        self.consumer, self.found = t.broker.consumer(), []
        self.consumer.assign(topic, dict.fromkeys(range(t.broker.partitions(topic)), -2))

    def until(self, n):
        for _ in range(int(PATIENCE / 0.2)):
            if len(self.found) >= n:
                return self.found
            b = self.consumer.poll(0.2, 10_000)
            self.found += zip(b.partitions, b.keys, b.values, map(dict, b.headers), strict=True)
        raise AssertionError(f"{len(self.found)} of {n} records came")


@both_clients
def test_sensors_whose_readings_lie_in_all_partitions_with_null_keys_are_answered_each_reading_once(source, model):
    t, hosts, steps = source, [f"h{i}" for i in range(8)], 6
    with routing(t) as router, serving("--model", model, *t.flags) as worker, ExitStack() as ended:
        routed = Reader(t, t.readings)
        ended.callback(routed.consumer.close)
        for step in range(steps):  # one after the other: across partitions, only time makes an order
            send(t, [((i + step) % SOURCES, record(host, step, step)) for i, host in enumerate(hosts)])
            routed.until((step + 1) * len(hosts))
        found = t.read(t.forecasts, steps * len(hosts))
        send(t, [(0, record("h0", 2, 5.0)), (1, b'{"at": 5}'), (2, record("h1", steps))])
        worker.wait_for("the late reading", lambda: worker.metric("tidecast_late_readings_total") == 1)
        letters = t.read(t.dead, 1)
        t.read(t.forecasts, len(found) + 1)
        total = steps * len(hosts) + 2
        router.wait_for("its count", lambda: router.metric("tidecast_routed_readings_total") == total)
        assert router.metric("tidecast_dead_letters_total") == 1
        for one in (router, worker):
            code, log = one.end()
            assert code == 0, log
    assert len(found) == steps * len(hosts)
    for i, host in enumerate(hosts):
        reference, key = CountingReference(), f"north/{host}".encode()
        mine = [(p, json.loads(value), headers) for p, k, value, headers in found if k == key]
        assert len(mine) == steps, host
        for step, (partition, forecast, headers) in enumerate(mine):
            y = reference.step([float(step), 2.0], START_MS + step * STEP_MS)
            assert partition == partition_for(key, 3)
            assert [forecast["targets"]["value"][q] for q in ("p10", "p50", "p90")] == [
                list(column) for column in zip(*y, strict=True)
            ], (i, step)
            assert forecast["source"].startswith(f"{t.readings}-{partition}-")
            assert headers == {"traceparent": b"00-1"}
    (_, key, value, headers) = letters[0]
    assert (key, value, headers["tidecast.topic"]) == (None, b'{"at": 5}', t.source.encode())
    assert headers["tidecast.partition"] == b"1" and headers["tidecast.reason"] == b"missing_key"


@both_clients
def test_what_has_waited_in_all_partitions_is_routed_in_the_order_of_its_times_so_that_none_of_it_is_late(
    source, model
):
    t, hosts, steps = source, 20, 300
    began = int(time.time() - 3_600) * 1_000
    send(t, [
        ((i + step * 7) % SOURCES, record(f"h{i}", step), began + step * 1_000 + i)
        for step in range(steps) for i in range(hosts)
    ])  # fmt: skip
    with routing(t, "--max-poll-records=500") as router, serving("--model", model, *t.flags) as worker:
        found = t.read(t.forecasts, hosts * steps)
        worker.wait_for("all", lambda: worker.metric("tidecast_forecasts_total") == hosts * steps)
        assert worker.metric("tidecast_late_readings_total") == 0
        for one in (router, worker):
            code, log = one.end()
            assert code == 0, log
    assert len(found) == hosts * steps


def test_parts_of_readings_with_null_keys_are_routed_and_joined_by_the_worker(source, model, tmp_path):
    t, hosts, steps = source, 5, 20
    long, join = tmp_path / "long.toml", tmp_path / "join.toml"
    long.write_text('[input]\nkey = "sensor"\ntime = "at"\nname = "metric"\nvalue = "v"\n')
    join.write_text("[input]\njoin = true\n")
    began = int(time.time() - 3_600) * 1_000
    parts = [
        {"sensor": f"h{i}", "at": START_MS + step * STEP_MS, "metric": metric, "v": v}
        for step in range(steps) for i in range(hosts) for metric, v in (("value", step), ("wind", 2.0), ("other", 1.0))
    ]  # fmt: skip
    send(t, [(n % SOURCES, json.dumps(part).encode(), began + 10 * n) for n, part in enumerate(parts)])
    with (
        routing(t, f"--input={long}", f"--model={model}") as router,
        serving("--model", model, f"--input={join}", *t.flags) as worker,
    ):
        found = t.read(t.forecasts, hosts * steps)
        worker.wait_for("all", lambda: worker.metric("tidecast_forecasts_total") == hosts * steps)
        assert worker.metric("tidecast_duplicate_readings_total") == 0
        unused = hosts * steps
        router.wait_for("others", lambda: router.metric("tidecast_input_unused_values_total") == unused)
        for one in (router, worker):
            code, log = one.end()
            assert code == 0, log
    assert "give `tidecast serve` a table that has only [input.join]" in router.log
    for i in range(hosts):
        reference, mine = CountingReference(), [json.loads(v) for _, k, v, _ in found if k == b"h%d" % i]
        for step, forecast in enumerate(mine):
            y = reference.step([float(step), 2.0], START_MS + step * STEP_MS)
            assert [forecast["targets"]["value"][q] for q in ("p10", "p50", "p90")] == [
                list(column) for column in zip(*y, strict=True)
            ]


@both_clients
def test_routers_that_are_killed_evicted_added_and_stopped_lose_and_double_no_reading(source):
    t, hosts, sent = source, 40, 0
    fast = ("--max-poll-records=100", "--session-timeout-seconds=6")

    def some(count):
        nonlocal sent
        send(t, [(i % SOURCES, record(f"h{i % hosts}", i // hosts)) for i in range(sent, sent + count)])
        sent += count

    def routes(router):
        before = router.metric("tidecast_routed_readings_total")

        def more():
            if router.metric("tidecast_routed_readings_total") > before:
                return True
            some(hosts)  # the others may have routed all that there was
            return False

        router.wait_for("what it routes", more)

    some(8_000)
    with ExitStack() as stack:
        first, second = (stack.enter_context(routing(t, f"--instance=r{i}", *fast)) for i in (1, 2))
        routes(first)
        first.kill()
        again = stack.enter_context(routing(t, "--instance=r1", *fast))
        some(6_000)
        routes(second)
        assert Administration(t.bootstrap_servers).evict(t.route_group, "r2")
        third = stack.enter_context(routing(t, "--instance=r3", *fast))
        for router in (again, second, third):
            router.ready()
        some(2_000)
        routes(third)
        assert again.end()[0] == 0
        Reader(t, t.readings).until(sent)
        for router in (second, third):
            code, log = router.end()
            assert code == 0, log
    found = read_all(t.broker, t.readings)
    assert Counter((r.key, json.loads(r.value)["ts"]) for r in found) == Counter(
        (f"north/h{i % hosts}".encode(), START_MS + i // hosts * STEP_MS) for i in range(sent)
    )
    assert all(r.partition == partition_for(r.key, 3) for r in found)


def test_a_route_whose_topics_are_missing_says_the_command_that_makes_them_and_it_does(source, tmp_path):
    t = source
    names = {"--input-topic": f"{t.readings}-2", "--dead-letter-topic": f"{t.dead}-2"}
    flags = [f"{name}={value}" for name, value in names.items()]
    with routing(t, *flags) as router:
        code, log = router.end(signum=None)
    assert code == 1 and "Traceback" not in log
    (command,) = [line.split("tidecast topics ", 1)[1] for line in log.splitlines() if "tidecast topics " in line]
    more = [f"--output-topic={t.forecasts}-2", f"--changelog-topic={t.states}-2"]
    code, _out, log = tidecast("topics", *command.split(), *more)
    assert code == 0, log
    assert t.broker.partitions(names["--input-topic"]) == SOURCES
    with routing(t, *flags) as router:
        router.ready()
        assert router.end()[0] == 0
