"""A worker that routes: each reading comes once to the partition of its series, also where something dies or fails."""

import json

import pytest

from tests.support.models import START_MS, STEP_MS
from tests.support.world import Fault, Killed, Spy, World
from tidecast.service.broker.partitioner import partition_for
from tidecast.service.broker.port import Batch, OutgoingBatch
from tidecast.service.broker.topics import check_topics
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError, BrokerUnavailable, DeadLetterFlood
from tidecast.service.input.config import InputConfig, parse_input
from tidecast.service.input.rejected import DeadLetterReason
from tidecast.service.worker.delivery import delivery_as_set
from tidecast.service.worker.partition import Partition
from tidecast.service.worker.positions import CommittedPositions
from tidecast.service.worker.router import Router
from tidecast.service.worker.topic_watch import TopicWatch

SOURCE, TARGET = 4, 3  # partitions
TABLE = {"key": "sensor", "time": "at"}
STEPS = ("begin", "produce readings", "produce dead-letters", "commit_transaction")


class RouteWorld(World):
    """A source topic of four partitions, a topic of readings of three, and workers that route between them."""

    def __init__(self, table=TABLE, features=None, **settings):
        usual = {"source_topic": "source", "max_poll_records": 3, "commit_interval_ms": 20, "instance": "one"}
        super().__init__(None)
        self.given = Settings(**usual | settings)
        self.settings, self.config, self.features = self.given.for_route(), parse_input(table), features
        self.broker.delete_topic("readings")
        self.broker.create_topic("readings", TARGET)
        self.broker.create_topic("source", SOURCE)
        self.sent = []

    def work(self):
        return Router(self.settings, self.config, self.features)

    def send_record(self, value, key=None, partition=0, **more):
        producer, out = self.broker.producer(), OutgoingBatch("source")
        out.append(key, value if value is None else json.dumps(value).encode(), partition=partition, **more)
        producer.produce(out)

    def send(self, first, last):
        """A reading of each of five sensors for each of these steps, with null keys, one partition after the other."""
        for step in range(first, last):
            for number in range(5):
                bad = step % 4 == 3 and number == 1
                value = "no reading" if bad else {"sensor": f"s{number}", "at": START_MS + step * STEP_MS, "v": step}
                self.send_record(value, partition=len(self.sent) % SOURCE)
                self.sent.append((None if bad else f"s{number}", step))

    def read(self, topic):
        consumer = self.broker.consumer()
        consumer.assign(topic, dict.fromkeys(range(self.broker.partitions(topic)), 0))
        found = []
        while batch := consumer.poll(0.0, 1_000):
            found += zip(batch.partitions, batch.keys, batch.values, batch.headers, batch.timestamps, strict=True)
        return found

    def routed(self):
        return [(p, key, None if value is None else json.loads(value)) for p, key, value, *_ in self.read("readings")]

    def check(self):
        """Each reading once, in the partition of its series, and each bad record once among the dead letters."""
        found = [(key.decode(), reading["v"]) for _, key, reading in self.routed()]
        assert sorted(found) == sorted((series, step) for series, step in self.sent if series is not None)
        assert all(p == partition_for(key, TARGET) for p, key, _ in self.routed())
        assert len(self.read("dead-letters")) == sum(series is None for series, _ in self.sent)
        consumer = self.broker.consumer(group="tidecast-route")
        consumer.assign("source", {})
        committed = consumer.committed(range(SOURCE))
        assert sum(known[0] for known in committed.values()) == len(self.sent)


@pytest.fixture
def world():
    return RouteWorld()


def test_readings_with_null_keys_come_to_the_partition_of_their_series_with_key_time_and_trace(world):
    headers = [("traceparent", b"00-1"), ("other", b"x")]
    world.send_record({"sensor": "a", "at": START_MS, "t": 21.5, "h": None}, partition=2, headers=headers, timestamp=77)
    world.live()
    (partition, key, value, found, timestamp) = world.read("readings")[0]
    assert (partition, key, timestamp) == (partition_for(b"a", TARGET), b"a", 77)
    assert value == b'{"ts":%d,"t":21.5}' % START_MS
    assert list(found) == [("traceparent", b"00-1")]


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
def test_all_readings_of_all_partitions_are_routed_once_and_counted(delivery):
    world = RouteWorld(delivery=delivery)
    world.send(0, 12)
    world.live()
    world.check()
    assert world.metric("routed_readings_total") == 57
    assert world.metric("readings_total") == 60
    assert world.metric("dead_letters_total", reason="missing_key") == 3
    assert world.metric("forecasts_total") is None, "a router has no forecasts"
    world.send(12, 16)
    world.live()
    world.check()


def at_each_step(test):
    before_and_after = pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    times = pytest.mark.parametrize("nth", [1, 2, 5])
    return before_and_after(times(pytest.mark.parametrize("step", STEPS)(test)))


@at_each_step
def test_a_router_killed_at_any_step_of_a_commit_loses_and_doubles_nothing(world, step, nth, after):
    world.send(0, 12)
    world.live(Fault(step, nth, Killed(), after))
    world.send(12, 16)
    world.live()
    world.check()


@at_each_step
def test_a_call_that_fails_at_any_step_of_a_commit_is_overcome_by_the_same_router(world, step, nth, after):
    world.send(0, 12)
    world.live(Fault(step, nth, BrokerError("the broker was away"), after), idle=80)
    world.check()


def test_at_least_once_a_router_killed_before_its_commit_repeats_readings_and_loses_none():
    world = RouteWorld(delivery="at-least-once")
    world.send(0, 12)
    world.live(Fault("commit", 3, Killed()))
    world.live()
    found = {(key.decode(), reading["v"]) for _, key, reading in world.routed()}
    assert found == {(series, step) for series, step in world.sent if series is not None}
    assert len(world.routed()) > len(found)


def test_offsets_are_committed_even_where_records_hold_no_reading():
    world = RouteWorld(TABLE | {"skip_if": {"kind": "alarm"}})
    for step in range(5):
        world.send_record({"sensor": "a", "kind": "alarm", "at": START_MS + step, "v": 1})
    spy = Spy()
    world.live(spy)
    assert spy.count("commit_transaction") > 0 and spy.count("produce readings") == 0
    assert world.metric("input_skipped_total") == 5
    assert world.metric("readings_total") == 0


def test_a_router_without_committed_offsets_starts_where_the_setting_says():
    world = RouteWorld(start="latest")
    world.send(0, 2)
    world.live()
    assert world.routed() == []
    world.send(2, 3)
    world.live()
    assert [reading["v"] for _, _, reading in world.routed()] == [2] * 5


def test_a_tombstone_of_a_known_key_is_passed_on_to_the_partition_of_its_series():
    world = RouteWorld({"key_regex": "sensors/(.*)", "time": "at"})
    world.send_record({"at": START_MS, "v": 1}, key=b"sensors/a", partition=1)
    world.send_record(None, key=b"sensors/a", partition=1)
    world.live()
    partition = partition_for(b"a", TARGET)
    assert world.routed() == [(partition, b"a", {"ts": START_MS, "v": 1}), (partition, b"a", None)]
    assert world.metric("routed_readings_total") == 1


def test_a_tombstone_of_which_no_one_knows_the_series_is_counted_and_not_passed_on(world):
    world.send_record(None, key=b"what", partition=1)
    world.live()
    assert world.routed() == [] and world.read("dead-letters") == []
    assert world.metric("input_skipped_total") == 1


def test_a_dead_letter_has_the_record_as_it_came_and_where_it_came_from(world):
    world.send_record({"at": START_MS, "v": 1}, key=b"raw", partition=3, headers=[("h", b"x")])
    world.live()
    (_, key, value, headers, _) = world.read("dead-letters")[0]
    found = dict(headers)
    assert (key, json.loads(value)) == (b"raw", {"at": START_MS, "v": 1})
    assert found["tidecast.reason"] == b"missing_key" and b"'sensor'" in found["tidecast.message"]
    assert (found["tidecast.topic"], found["tidecast.partition"], found["tidecast.offset"]) == (b"source", b"3", b"0")
    assert (found["tidecast.group"], found["h"]) == (b"tidecast-route", b"x")


@pytest.mark.parametrize("table", [{"time": "at"}, {"key": "@key", "time": "at"}])
def test_a_reading_without_a_key_is_a_dead_letter_where_the_key_names_the_series(table):
    world = RouteWorld(table)
    world.send_record({"at": START_MS, "v": 1})
    world.send_record({"at": START_MS, "v": 1}, key=b"\xff")
    world.live()
    assert world.routed() == []
    reasons = [dict(headers)["tidecast.reason"] for *_, headers, _ in world.read("dead-letters")]
    assert reasons == [b"missing_key", b"bad_key"]


@pytest.mark.parametrize("order", [[0], [0, 1], [1, 0]])
def test_without_named_features_a_reading_without_a_number_is_a_dead_letter_whatever_else_is_in_its_batch(order):
    records = [{"sensor": "a", "at": START_MS, "v": None}, {"sensor": "a", "at": START_MS + 1, "v": 2.5}]
    world = RouteWorld()
    for at in order:
        world.send_record(records[at])
    world.live()
    assert [dict(headers)["tidecast.reason"] for *_, headers, _ in world.read("dead-letters")] == [b"no_features"]
    assert [reading for _, _, reading in world.routed()] == [{"ts": START_MS + 1, "v": 2.5}] * (len(order) - 1)


@pytest.mark.parametrize("order", [[0], [0, 1], [1, 0]])
def test_a_null_of_the_long_form_is_counted_as_unused_where_no_features_are_named(order):
    records = [{"sensor": "a", "at": START_MS + n, "metric": "t", "v": v} for n, v in enumerate((None, 2.5))]
    world = RouteWorld(TABLE | {"name": "metric", "value": "v"})
    for at in order:
        world.send_record(records[at])
    world.live()
    assert [reading for _, _, reading in world.routed()] == [{"ts": START_MS + 1, "t": 2.5}] * (len(order) - 1)
    assert (world.metric("input_unused_values_total"), world.metric("input_skipped_total")) == (1, 1)


def test_without_named_features_a_reading_has_its_own_numbers_whatever_else_is_in_its_batch():
    values = [{"v": 1.5, "w": "text"}, {"v": "up", "w": 3}, {"w": 5, "x": [1]}, {"ts": 9, "w": 6}]
    wanted = [{"v": 1.5}, {"w": 3}, {"w": 5}, {"w": 6}]
    for most in (1, 100):
        world = RouteWorld(max_poll_records=most)
        for value in values:
            world.send_record({"sensor": "a", "at": START_MS, **value})
        world.live()
        assert [reading for _, _, reading in world.routed()] == [{"ts": START_MS, **each} for each in wanted]


@pytest.mark.parametrize(
    ("table", "features"),
    [(TABLE, ["v", "w"]), (TABLE | {"fields": {"v": "v", "w": "w"}}, None)],
    ids=["of a model", "in the table"],
)
def test_with_named_features_only_these_are_written_and_a_reading_whose_values_are_all_null_is_one(table, features):
    world = RouteWorld(table, features)
    for value in ({"v": 1, "x": 3}, {"v": None}, {"x": 3}):
        world.send_record({"sensor": "a", "at": START_MS, **value})
    world.live()
    assert [r for _, _, r in world.routed()] == [{"ts": START_MS, "v": 1}, {"ts": START_MS, "v": None, "w": None}]
    assert [dict(h)["tidecast.reason"] for *_, h, _ in world.read("dead-letters")] == [b"no_features"]


def test_several_readings_of_one_record_are_routed_each_to_its_series_and_a_bad_one_is_one_dead_letter():
    world = RouteWorld({"explode": "all", "key": "sensor", "time": "/at"})
    world.send_record({"at": START_MS, "all": [{"sensor": "a", "v": 1}, {"v": 2}, {"sensor": "b", "v": 3}, {"v": 4}]})
    world.live()
    assert sorted((key, reading["v"]) for _, key, reading in world.routed()) == [(b"a", 1), (b"b", 3)]
    assert len(world.read("dead-letters")) == 1
    assert world.metric("readings_total") == 3, "two routed, one dead letter"


def test_names_of_the_long_form_that_are_no_feature_are_counted_once_committed_and_logged_once(caplog):
    table = TABLE | {"name": "metric", "value": "v"}
    world = RouteWorld(table, ["t"], max_poll_records=2)
    for step in range(30):
        for metric in ("t", f"other-{step}"):
            world.send_record({"sensor": "a", "at": START_MS + step, "metric": metric, "v": 1})
    with caplog.at_level("WARNING"):
        world.live(Fault("commit_transaction", 2, BrokerError("away")), idle=80)
    assert world.metric("input_unused_values_total") == 30
    assert len(world.routed()) == 30
    lines = [r for r in caplog.records if "no feature" in r.message]
    named = [name for line in lines for name in line.names]
    assert len(named) == len(set(named)) == 20
    assert "later names are only counted" in lines[-1].message and "later" not in lines[0].message


def test_too_many_dead_letters_end_the_router_with_the_reasons():
    world = RouteWorld(dead_letter_limit=5)
    for _ in range(20):
        world.send_record({"v": 1})
    with pytest.raises(DeadLetterFlood, match=r"dead letters within.*missing_key"):
        world.worker().run()


def test_a_start_says_which_topic_is_missing_and_how_to_make_it(world):
    world.broker.delete_topic("dead-letters")
    with pytest.raises(
        BrokerError, match=r"no topic dead-letters.*tidecast topics create --partitions 3 --source-topic"
    ):
        world.worker().run()
    world.broker.delete_topic("source")
    with pytest.raises(BrokerError, match=r"no topic source.*--source-topic"):
        world.worker().run()


class Kafka:
    """What a consumer says of partition 0: the offset 5 is committed, and the log begins later or does not answer."""

    def __init__(self, first):
        self.first = first

    def committed(self, partitions):
        if self.first is None:
            raise BrokerUnavailable("Kafka does not answer")
        return dict.fromkeys(partitions, (5, ""))

    def beginning_offsets(self, partitions):
        return dict.fromkeys(partitions, self.first)


@pytest.mark.parametrize(("first", "start"), [(2, 5), (5, 5), (14, 14)])
def test_a_source_that_retention_has_shortened_is_refused_unless_the_gap_is_accepted(first, start):
    def found(**more):
        partitions = {0: Partition()}
        settings = Settings(source_topic="source", **more).for_route()
        return CommittedPositions(settings, partitions, lambda: 0.0).advance(Kafka(first), 0.2)[0]

    if first > 5:
        with pytest.raises(BrokerError, match=r"source-0 begins at offset 14.*--accept-gap"):
            found()
    assert found(accept_gap=True).replay_from == start


def test_kafka_is_asked_again_where_it_does_not_say_what_is_committed_and_only_for_so_long():
    partitions, now = {0: Partition()}, [0.0]
    positions = CommittedPositions(Settings(source_topic="source").for_route(), partitions, lambda: now[0])
    assert positions.advance(Kafka(None), 0.2) == {} and partitions[0].restoring and positions.waiting
    assert positions.advance(Kafka(2), 0.2) == {}, "it is asked again only after a wait"
    now[0] = 59.0
    assert positions.advance(Kafka(None), 0.2) == {}
    now[0] = 70.0
    with pytest.raises(BrokerUnavailable):
        positions.advance(Kafka(None), 0.2)
    now[0] = 80.0
    assert positions.advance(Kafka(2), 0.2)[0].committed == 5 and not partitions[0].restoring


def test_a_source_that_was_made_again_ends_the_router_with_the_command_that_sets_its_offsets_back(world):
    watch = TopicWatch(world.broker, world.settings)
    watch.start(check_topics(world.broker, world.settings))
    world.broker.delete_topic("source")
    world.broker.create_topic("source", SOURCE)
    found = str(watch.look())
    assert "the topic source was deleted" in found
    assert "--group tidecast-route --topic source --reset-offsets" in found and "tidecast state" not in found
    watch.stop()


def test_the_same_records_give_the_same_bytes_however_they_are_cut():
    router = Router(Settings(source_topic="s").for_route(), InputConfig(key="k", time="at"), None)
    records = [
        {"k": f"s{i % 3}", "at": START_MS + i, **{name: i / 7 for name in "abc" if (i + ord(name)) % 3}}
        for i in range(40)
    ]
    values = [json.dumps(record).encode() for record in records]
    batch = Batch("s", [0] * 40, list(range(40)), [5] * 40, [None] * 40, values, [()] * 40)

    def routed(size):
        parts = [batch.take(range(start, min(start + size, 40))) for start in range(0, 40, size)]
        found = [result.forecasts for part in parts for result in router.process(part)]
        return [(k, v) for each in found for k, v in zip(each.keys, each.values, strict=True)]

    assert routed(1) == routed(7) == routed(40)
    assert len(routed(1)) == 40


def test_a_router_and_a_worker_of_one_name_do_not_fence_each_other(world):
    ids = []
    world.broker.producer = lambda transactional_id=None: ids.append(transactional_id)
    for settings in (world.given, world.settings):
        delivery_as_set(settings, world.broker)
    assert ids == ["tidecast-one", "tidecast-route:one"]


def test_every_reason_of_a_dead_letter_has_a_count(world):
    world.live()
    assert all(world.metric("dead_letters_total", reason=each) == 0 for each in DeadLetterReason)
