"""The loop over the in-memory broker: what is emitted, what is committed, in which order, and how it ends."""

import json
import logging

import pytest

from tests.support.models import START_MS, STEP_MS, CountingReference, counting_model
from tidecast.service.broker.memory.broker import MemoryBroker
from tidecast.service.broker.port import Outgoing
from tidecast.service.broker.topics import CHANGELOG_CONFIG
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError, DeadLetterFlood, PutOut, TidecastError, Unanswered
from tidecast.service.model.session import Model
from tidecast.service.observability.liveness import STALLED_SECONDS
from tidecast.service.observability.metrics import Metrics
from tidecast.service.pipeline.dead_letters import DeadLetterReason
from tidecast.service.state.offset_metadata import Committed
from tidecast.service.worker.dead_letter_limit import DeadLetterLimit
from tidecast.service.worker.worker import Worker


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Model.load(counting_model(tmp_path_factory.mktemp("model")))


class Clock:
    """Time that passes only when the loop polls or a test says so."""

    def __init__(self):
        self.now = 1_000.0

    def __call__(self):
        return self.now


class Spy:
    """A broker that notes what the worker asks for, and stops the worker once nothing more arrives.

    `fail` maps a call to the errors it raises, one for each time. While `silent`, only commits that wait are answered.
    """

    def __init__(self, broker, clock, idle_polls=5):
        self.broker, self.clock, self.idle_polls = broker, clock, idle_polls
        self.calls, self.fail, self.worker, self.on_poll = [], {}, None, None
        self.silent = False

    def note(self, call):
        self.calls.append(call)
        if self.fail.get(call):
            raise self.fail[call].pop(0)

    def topic_config(self, topic):
        return self.broker.topic_config(topic)

    def partitions(self, topic):
        self.note("partitions")
        return self.broker.partitions(topic)

    def consumer(self, **options):
        inner = self.broker.consumer(**options)
        return SpyConsumer(self, inner) if options.get("group") else inner

    def producer(self, **options):
        return SpyProducer(self, self.broker.producer(**options))


class SpyConsumer:
    def __init__(self, spy, inner):
        self.spy, self.inner = spy, inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def poll(self, timeout_s, max_records):
        self.spy.note("poll")
        if self.spy.on_poll:
            self.spy.on_poll(self)
        batch = self.inner.poll(0.0, max_records)
        self.spy.clock.now += 0.01 if len(batch) else timeout_s
        if not len(batch):
            self.spy.idle_polls -= 1
            if self.spy.idle_polls <= 0:
                self.spy.worker.stop()
        return batch

    def commit(self, offsets, metadata=""):
        self.spy.note("commit")
        self.inner.commit(offsets, metadata)

    def commit_soon(self, offsets, metadata=""):
        """The answer comes with the poll after next."""
        self.asked_at, self.refused = self.spy.calls.count("poll"), None
        try:
            self.commit(offsets, metadata)
        except BrokerError as error:
            self.refused = error

    def commit_answered(self):
        if self.spy.silent or self.spy.calls.count("poll") < self.asked_at + 2:
            return False
        if self.refused is not None:
            raise self.refused
        return True

    def close(self):
        self.spy.note("leave")
        self.inner.close()


class SpyProducer:
    def __init__(self, spy, inner):
        self.spy, self.inner = spy, inner

    def produce(self, outgoing):
        self.spy.note(f"produce {outgoing.topic}")
        self.inner.produce(outgoing)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def flush(self, timeout_s):
        self.spy.note("flush")
        self.inner.flush(timeout_s)

    def begin(self):
        self.spy.note("begin")
        self.inner.begin()

    def commit_transaction(self, topic, offsets, consumer, timeout_s):
        self.spy.note("commit_transaction")
        self.inner.commit_transaction(topic, offsets, consumer.inner, timeout_s)


class Bench:
    """A worker over a memory broker with two partitions."""

    def __init__(self, model, **settings):
        self.model, self.clock = model, Clock()
        self.broker = MemoryBroker()
        self.settings = Settings(**{"delivery": "at-least-once"} | settings)
        for topic in ("readings", "forecasts", "dead-letters"):
            self.broker.create_topic(topic, 2)
        self.broker.create_topic("tidecast-state", 2, CHANGELOG_CONFIG)

    def send(self, key, value, partition=0, timestamp=None):
        producer = self.broker.producer()
        out = Outgoing("readings")
        out.append(key, value if value is None or isinstance(value, bytes) else json.dumps(value).encode(),
                   partition=partition, timestamp=timestamp)  # fmt: skip
        producer.produce(out)
        producer.flush(1)

    def reading(self, key, step, value=1.0, partition=0):
        self.send(key, {"ts": START_MS + step * STEP_MS, "value": value, "wind": 2.0}, partition)

    def worker(self, **spy):
        self.spy = Spy(self.broker, self.clock, **spy)
        self.metrics = Metrics(self.model.spec, DeadLetterReason, wall=lambda: START_MS / 1_000 + 3_600)
        worker = Worker(self.settings, self.model, self.spy, self.metrics, clock=self.clock, wall=self.clock)
        self.spy.worker = worker
        return worker

    def run(self, **spy):
        return self.worker(**spy).run()

    def read(self, topic):
        """All records of a topic: (partition, key, value, headers)."""
        consumer = self.broker.consumer()
        consumer.assign(topic, {0: -2, 1: -2})
        found = []
        while len(batch := consumer.poll(0, 1_000)):
            found += zip(batch.partitions, batch.keys, batch.values, map(dict, batch.headers), strict=True)
        return found

    def forecasts(self):
        return [(p, key, json.loads(value)) for p, key, value, _ in self.read("forecasts")]

    def committed(self, group="tidecast"):
        """partition -> (offset, snapshot offset), None where nothing is."""
        consumer = self.broker.consumer(group=group)
        consumer.assign("readings", {})
        known = consumer.committed([0, 1])
        return {p: c and (c[0], Committed.parse(*c).snapshot) for p, c in known.items()}

    def metric(self, name, **labels):
        return self.metrics.registry.get_sample_value(f"tidecast_{name}", labels)


@pytest.fixture
def bench(model):
    return Bench(model)


def expected(*readings):
    """The medians of the counting model's forecasts, folded over (step, value)."""
    reference = CountingReference()
    return [[row[1] for row in reference.step([value, 2.0], START_MS + step * STEP_MS)] for step, value in readings]


def test_each_reading_is_answered_on_its_own_key_and_partition_with_the_state_of_those_before(bench):
    for step in range(3):
        bench.reading(b"a", step, value=step, partition=0)
        bench.reading(b"b", step, value=10 + step, partition=1)
    assert bench.run() == 0
    for key, partition, first in ((b"a", 0, 0), (b"b", 1, 10)):
        found = [(p, f["targets"]["value"]["p50"]) for p, k, f in bench.forecasts() if k == key]
        assert found == [(partition, y) for y in expected(*((s, first + s) for s in range(3)))]


def test_state_is_carried_from_poll_to_poll(model):
    bench = Bench(model, max_poll_records=1)
    for step in range(4):
        bench.reading(b"a", step, value=step)
    bench.run()
    assert bench.spy.calls.count("produce forecasts") == 4
    assert [f["targets"]["value"]["p50"] for _, _, f in bench.forecasts()] == expected(*((s, s) for s in range(4)))


def test_offsets_are_committed_only_after_kafka_has_the_forecasts(bench):
    bench.reading(b"a", 0)
    bench.send(b"a", b"{", partition=0)
    bench.run()
    calls = [c for c in bench.spy.calls if c not in ("poll", "partitions")]
    assert calls == [
        "produce forecasts",
        "produce dead-letters",
        "flush",
        "commit",
        "flush",  # and at the end, with the states
        "commit",  # as it was, for Kafka to refuse it to a zombie before that writes its states
        "produce tidecast-state",
        "flush",
        "commit",
        "leave",
    ]
    assert bench.committed()[0] == (2, 2)


def test_commits_are_an_interval_apart_while_readings_arrive(model):
    bench = Bench(model, max_poll_records=1, commit_interval_ms=100)
    for step in range(30):  # a poll takes 10 ms
        bench.reading(b"a", step)
    bench.run()
    assert 2 * 2 <= bench.spy.calls.count("commit") <= 2 * 4
    assert bench.committed()[0] == (30, 30)


def test_a_second_worker_goes_on_where_the_first_committed(bench):
    bench.reading(b"a", 0)
    bench.run()
    bench.reading(b"a", 1)
    bench.run()
    assert [f["ts"] for _, _, f in bench.forecasts()] == [START_MS, START_MS + STEP_MS]


def test_stop_answers_and_commits_what_was_polled(bench):
    bench.reading(b"a", 0)
    worker = bench.worker()
    bench.spy.on_poll = lambda consumer: worker.stop() if bench.spy.calls.count("poll") == 3 else None
    assert worker.run() == 0
    assert len(bench.forecasts()) == 1
    assert bench.committed()[0] == (1, 1)
    assert bench.spy.calls[-1] == "leave"


def test_a_crash_between_emit_and_commit_repeats_forecasts_and_loses_none(bench):
    bench.reading(b"a", 0)
    worker = bench.worker()
    bench.spy.fail["flush"] = [BrokerError("away")]
    with pytest.raises(BrokerError, match="away"):
        worker.run()
    assert bench.committed()[0] is None
    assert bench.spy.calls.count("flush") == 1, "waiting for an absent broker twice doubles the time to restart"
    assert bench.metric("transactions_total", outcome="failed") == 1
    bench.run()
    assert [f["ts"] for _, _, f in bench.forecasts()] in ([START_MS], [START_MS, START_MS])
    assert bench.committed()[0] == (1, 1)


def test_a_broker_that_comes_back_in_time_costs_nothing_but_the_wait(bench, monkeypatch, caplog):
    bench.reading(b"a", 0)
    worker = bench.worker()
    flush, waits = SpyProducer.flush, []

    def slow(producer, timeout_s):
        waits.append(timeout_s)
        if len(waits) <= 3:
            bench.clock.now += timeout_s
            raise BrokerError("no answer")
        flush(producer, timeout_s)

    monkeypatch.setattr(SpyProducer, "flush", slow)
    assert worker.run() == 0
    assert bench.committed()[0] == (1, 1)
    assert len([r for r in caplog.records if r.message == "Kafka does not answer, waiting"]) == 3


def test_a_broker_that_stays_away_ends_the_worker_when_its_time_is_up(model, monkeypatch):
    bench = Bench(model, broker_timeout_seconds=12)
    bench.reading(b"a", 0)
    worker = bench.worker()
    waits = []

    def never(producer, timeout_s):
        waits.append(timeout_s)
        bench.clock.now += timeout_s
        raise BrokerError("no answer")

    monkeypatch.setattr(SpyProducer, "flush", never)
    with pytest.raises(BrokerError, match="no answer"):
        worker.run()
    assert sum(waits) == pytest.approx(12)
    assert bench.committed()[0] is None


def test_readings_are_answered_while_kafka_has_yet_to_answer_a_commit(model):
    bench = Bench(model, max_poll_records=1, commit_interval_ms=20)
    for step in range(8):
        bench.reading(b"a", step)
    bench.run()
    calls = [c for c in bench.spy.calls if c in ("poll", "commit", "produce forecasts")]
    asked = calls.index("commit")
    assert "produce forecasts" in calls[asked + 1 : asked + 3]
    assert bench.metric("transactions_total", outcome="committed") == bench.spy.calls.count("commit") - 1
    assert bench.committed()[0] == (8, 8)


def test_a_commit_that_kafka_does_not_answer_is_asked_for_again_and_waited_for(model):
    bench = Bench(model, max_poll_records=1, commit_interval_ms=20)
    for step in range(12):
        bench.reading(b"a", step)
    worker = bench.worker()
    bench.spy.silent = True
    worker.run()
    soon = bench.spy.calls.count("commit") - bench.metric("transactions_total", outcome="committed")
    assert soon > 1, "those that were waited for count, and each stands for one without an answer besides"
    assert bench.committed()[0] == (12, 12)


def test_a_commit_that_is_refused_once_is_tried_again(bench, caplog):
    bench.reading(b"a", 0)
    worker = bench.worker(idle_polls=10)
    bench.spy.fail["commit"] = [BrokerError("the group is rebalancing")]
    with caplog.at_level(logging.WARNING, "tidecast"):
        assert worker.run() == 0
    assert bench.committed()[0] == (1, 1)
    assert len(bench.forecasts()) == 1
    assert bench.metric("transactions_total", outcome="failed") == 1
    assert bench.metric("transactions_total", outcome="committed") == 2, "and the states, at the end"
    assert len([r for r in caplog.records if "not committed" in r.message]) == 1


def test_a_commit_that_is_refused_for_too_long_ends_the_worker(model):
    bench = Bench(model, broker_timeout_seconds=5)
    bench.reading(b"a", 0)
    worker = bench.worker(idle_polls=1_000)
    bench.spy.fail["commit"] = [BrokerError("not authorised")] * 1_000
    with pytest.raises(BrokerError, match="not authorised"):
        worker.run()
    assert bench.clock.now < 1_010


def test_an_old_refusal_for_partitions_that_left_does_not_make_the_next_one_the_last(model):
    bench = Bench(model, broker_timeout_seconds=5)
    bench.reading(b"a", 0)
    worker = bench.worker(idle_polls=10)
    bench.spy.fail["commit"] = [BrokerError("not a member")] * 1_000

    def thrown_out(consumer):
        if bench.spy.calls.count("poll") == 3:
            worker._assignment.on_revoked({0, 1})
            bench.clock.now += 100
            bench.spy.fail["commit"] = [BrokerError("the group is rebalancing")]
            bench.reading(b"b", 0, partition=1)

    bench.spy.on_poll = thrown_out
    assert worker.run() == 0
    assert bench.committed()[1] == (1, 1)


def test_a_last_commit_that_is_refused_does_not_end_as_a_success(bench):
    bench.reading(b"a", 0)
    worker = bench.worker(idle_polls=5)
    bench.spy.fail["commit"] = [BrokerError("no")] * 1_000
    with pytest.raises(BrokerError, match=r"could not be committed.*Nothing is lost"):
        worker.run()


def test_a_worker_that_stops_while_the_group_shares_out_again_has_not_failed(bench):
    bench.reading(b"a", 0)
    worker = bench.worker(idle_polls=5)
    bench.spy.fail["commit"] = [PutOut("committing")] * 1_000
    assert worker.run() == 0
    assert bench.committed() == {0: None, 1: None}


def test_an_idle_worker_whose_broker_stays_away_ends_with_an_error(model):
    bench = Bench(model, broker_timeout_seconds=20)
    worker = bench.worker(idle_polls=10_000)
    bench.spy.on_poll = lambda consumer: bench.spy.fail.setdefault("partitions", [BrokerError("no answer")] * 100)
    with pytest.raises(BrokerError, match="no answer"):
        worker.run()
    assert 1_030 <= bench.clock.now < 1_040


def test_a_connection_that_is_lost_while_the_group_is_joined_is_waited_for(bench):
    bench.reading(b"a", 0)
    worker = bench.worker()
    bench.spy.fail["poll"] = [Unanswered("the connection is lost")] * 2
    assert worker.run() == 0
    assert bench.committed()[0] == (1, 1)


def test_a_connection_that_stays_lost_while_the_group_is_joined_ends_the_worker(model, monkeypatch):
    bench = Bench(model, broker_timeout_seconds=20)
    worker = bench.worker()
    worker.prepare()
    for call in ("poll", "partitions"):
        bench.spy.fail[call] = [Unanswered("no answer")] * 1_000
    monkeypatch.setattr(
        worker._stopping, "wait", lambda seconds: setattr(bench.clock, "now", bench.clock.now + seconds)
    )
    with pytest.raises(BrokerError, match="no answer"):
        worker.run()
    assert 1_020 <= bench.clock.now < 1_045


def test_an_idle_worker_whose_broker_comes_back_goes_on(model):
    bench = Bench(model, broker_timeout_seconds=20)
    worker = bench.worker(idle_polls=1_000)
    bench.spy.on_poll = lambda consumer: bench.spy.fail.setdefault("partitions", [BrokerError("no answer")] * 3)
    assert worker.run() == 0


def test_a_bug_while_processing_stops_the_worker_with_the_offsets_and_skips_nothing(bench, monkeypatch, caplog):
    bench.reading(b"a", 0)
    bench.run()  # commits the first
    bench.reading(b"a", 1, partition=0)
    bench.reading(b"b", 0, partition=1)
    worker = bench.worker()

    def broken(batch):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(worker._models, "process", broken)
    with pytest.raises(
        TidecastError, match=r"readings-0 offsets 1\.\.1, readings-1 offsets 0\.\.0: ZeroDivisionError: oops"
    ):
        worker.run()
    assert bench.committed() == {0: (1, 1), 1: (0, 0)}
    assert bench.spy.calls[-1] == "leave", "the others of the group take over at once"
    assert "ZeroDivisionError" in caplog.text


def test_what_came_before_a_bug_is_committed(model, monkeypatch):
    bench = Bench(model, max_poll_records=1)
    bench.reading(b"a", 0)
    bench.reading(b"a", 1)
    worker = bench.worker()
    process = worker._models.process
    monkeypatch.setattr(worker._models, "process", lambda b: process(b) if b.offsets == [0] else 1 / 0)
    with pytest.raises(TidecastError, match=r"offsets 1\.\.1"):
        worker.run()
    assert bench.committed()[0] == (1, 0)  # its state may not be written: the bug has left the table half done
    assert len(bench.forecasts()) == 1


def test_a_flood_of_dead_letters_stops_the_worker_with_the_reasons_and_keeps_them(model):
    bench = Bench(model, dead_letter_limit=2)
    for value in (b"{", b"[]", b"{", b"{"):
        bench.send(b"a", value)
    with pytest.raises(
        DeadLetterFlood, match=r"4 dead letters within 60 s.*limit of 2: not_json 3, wrong_type 1.*dead-letters"
    ):
        bench.run()
    assert len(bench.read("dead-letters")) == 4
    assert bench.committed()[0] == (4, 4)


def test_dead_letters_that_trickle_do_not_reach_the_limit():
    clock = Clock()
    flood = DeadLetterLimit(2, 60.0, clock)
    for _ in range(10):
        flood.add({DeadLetterReason.NOT_JSON: 1})
        flood.check("dead-letters")
        clock.now += 31


def test_no_limit_means_no_limit():
    flood = DeadLetterLimit(0, 60.0, Clock())
    flood.add({DeadLetterReason.NOT_JSON: 10**9})
    flood.check("dead-letters")


@pytest.mark.parametrize("missing", ["readings", "forecasts", "dead-letters", "tidecast-state"])
def test_a_missing_topic_is_refused_with_the_command_that_makes_it(bench, missing):
    bench.broker.delete_topic(missing)
    with pytest.raises(BrokerError, match=f"no topic {missing}.*tidecast topics create --partitions 2"):
        bench.run()


def test_topics_with_different_partitions_are_refused(model):
    bench = Bench(model, output_topic="narrow")
    bench.broker.create_topic("narrow", 1)
    with pytest.raises(
        BrokerError, match=r"readings has 2 partitions and narrow 1.*topics create --partitions 2 --output-topic narrow"
    ):
        bench.run()


def test_a_changelog_with_other_partitions_than_the_input_is_refused(model):
    bench = Bench(model, changelog_topic="narrow")
    bench.broker.create_topic("narrow", 1, CHANGELOG_CONFIG)
    with pytest.raises(
        BrokerError, match=r"readings has 2 partitions and narrow 1.*create --partitions 2 --changelog-topic narrow"
    ):
        bench.run()


def test_a_changelog_that_is_not_compacted_is_refused_with_the_command_that_mends_it(model):
    bench = Bench(model, changelog_topic="plain")
    bench.broker.create_topic("plain", 2)
    with pytest.raises(BrokerError, match=r"plain must be compacted.*'delete'.*--entity-name plain --add-config clean"):
        bench.run()


def test_start_latest_leaves_what_was_there_before_and_answers_what_comes(model):
    bench = Bench(model, start="latest")
    bench.reading(b"a", 0)
    worker = bench.worker(idle_polls=3)

    def later(consumer):
        if bench.spy.calls.count("poll") == 2:
            bench.reading(b"a", 1)

    bench.spy.on_poll = later
    worker.run()
    assert [f["ts"] for _, _, f in bench.forecasts()] == [START_MS + STEP_MS]
    assert bench.committed()[0] == (2, 2)


def test_start_latest_does_not_skip_where_the_group_has_committed(model):
    bench = Bench(model)
    bench.reading(b"a", 0)
    bench.run()
    bench.reading(b"a", 1)
    bench.settings = Settings(start="latest")
    bench.run()
    assert len(bench.forecasts()) == 2


def test_a_worker_is_ready_once_the_group_has_answered_and_no_longer_when_it_stops(bench):
    worker = bench.worker()
    assert "partitions" in worker.not_ready()
    seen = []
    bench.spy.on_poll = lambda consumer: seen.append(worker.not_ready())
    worker.run()
    assert seen[-1] == {}
    assert "worker" in worker.not_ready()


def test_a_loop_that_stands_still_is_not_live_but_one_that_waits_for_kafka_is(bench):
    worker = bench.worker()
    assert worker.not_live() is None
    bench.clock.now += STALLED_SECONDS + 1
    assert "has not turned for 31 s" in worker.not_live()
    with worker._pulse.allow(60):
        bench.clock.now += 60
        assert worker.not_live() is None
    assert worker.not_live() is None
    bench.clock.now += STALLED_SECONDS + 1
    assert worker.not_live()


def test_a_series_can_be_looked_at_while_the_worker_runs(bench):
    for step in range(3):
        bench.reading("häfen/1".encode(), step, value=step)
    worker = bench.worker()
    seen = []
    bench.spy.on_poll = lambda consumer: seen.append((worker.series("häfen/1"), worker.series("none")))
    worker.run()
    found, none = seen[-1]
    assert none is None
    assert (found["series"], found["steps"], found["ts"], found["warm"]) == ("häfen/1", 3, START_MS + 2 * STEP_MS, True)
    assert found["state"]["count"] == [3.0]


def test_series_of_partitions_that_left_are_forgotten_and_their_offsets_committed(bench):
    bench.reading(b"a", 0, partition=0)
    bench.reading(b"b", 0, partition=1)
    worker = bench.worker(idle_polls=4)
    seen = {}

    def rebalance(consumer):
        polls = bench.spy.calls.count("poll")
        if polls == 3 and "other" not in seen:
            seen["other"] = bench.broker.consumer(group="tidecast")
            seen["other"].subscribe("readings", lambda p: None, lambda p: None)
            seen["other"].poll(0, 1)

    bench.spy.on_poll = rebalance
    worker.run()
    assert worker._assignment.assigned == set()
    assert worker.series("a") is None and worker.series("b") is None
    assert bench.committed() == {0: (1, 1), 1: (1, 1)}


def test_what_happened_is_counted(bench):
    for step in (0, 1, 1, 0, 4):  # one duplicate, one late, two steps missing
        bench.reading(b"a", step)
    bench.send(b"a", b"{")
    bench.run()
    assert bench.metric("readings_total") == 6
    assert bench.metric("forecasts_total") == 3
    assert bench.metric("duplicate_readings_total") == 1
    assert bench.metric("late_readings_total") == 1
    assert bench.metric("dead_letters_total", reason="not_json") == 1
    assert bench.metric("gaps_total", action="filled") == 1
    assert bench.metric("silent_steps_total") == 2
    assert bench.metric("rebalances_total") == 1
    assert bench.metric("event_to_forecast_seconds_count") == 3
    assert bench.metric("batch_size_sum") == 5, "three readings and two silent steps"
    assert bench.metric("transactions_total", outcome="committed") == 2, "and the states, at the end"
    for stage in ("poll", "decode", "step", "encode", "emit", "commit"):
        assert bench.metric("stage_seconds_count", stage=stage) >= 1
