"""The loop over the in-memory broker: what is emitted, what is committed, in which order, and how it ends."""

import logging

import pytest

from tests.support.models import START_MS, STEP_MS, CountingReference, counting_model
from tests.support.world import ObservedConsumer, ObservedProducer, Spy, World
from tidecast.service.broker.topics import CHANGELOG_CONFIG
from tidecast.service.config.settings import Settings, default
from tidecast.service.errors import BrokerError, BrokerUnavailable, DeadLetterFlood, MemberEvicted, TidecastError
from tidecast.service.model.session import Model
from tidecast.service.observability.liveness import STALLED_SECONDS, Liveness
from tidecast.service.stop_flag import StopFlag
from tidecast.service.worker.served_models import ServedModels


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Model.load(counting_model(tmp_path_factory.mktemp("model")))


class Bench(World):
    """A world with the settings' defaults, at least once."""

    def __init__(self, model, **settings):
        plain = {"instance": "auto", "delivery": "at-least-once"}
        plain |= {name: default(name) for name in ("max_poll_records", "commit_interval_ms")}
        super().__init__(model, **plain | settings)

    def worker(self, idle=5, **options):
        self.spy = Spy()
        return super().worker(self.spy, idle, **options)

    def run(self, **options):
        return self.worker(**options).run()


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
    assert bench.spy.count("produce forecasts") == 4
    assert [f["targets"]["value"]["p50"] for _, _, f in bench.forecasts()] == expected(*((s, s) for s in range(4)))


def test_offsets_are_committed_only_after_kafka_has_the_forecasts(bench):
    bench.reading(b"a", 0)
    bench.send_value(b"a", b"{", partition=0)
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
    assert 2 * 2 <= bench.spy.count("commit") <= 2 * 4
    assert bench.committed()[0] == (30, 30)


def test_a_second_worker_continues_where_the_first_committed(bench):
    bench.reading(b"a", 0)
    bench.run()
    bench.reading(b"a", 1)
    bench.run()
    assert [f["ts"] for _, _, f in bench.forecasts()] == [START_MS, START_MS + STEP_MS]


def test_stop_answers_and_commits_what_was_polled(bench):
    bench.reading(b"a", 0)
    worker = bench.worker()
    bench.spy.on_poll = lambda: worker.stop() if bench.spy.count("poll") == 3 else None
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
    assert bench.spy.count("flush") == 1, "waiting for an absent broker twice doubles the time to restart"
    assert bench.metric("transactions_total", outcome="failed") == 1
    bench.run()
    assert [f["ts"] for _, _, f in bench.forecasts()] in ([START_MS], [START_MS, START_MS])
    assert bench.committed()[0] == (1, 1)


def test_a_broker_that_comes_back_in_time_costs_nothing_but_the_wait(bench, monkeypatch, caplog):
    bench.reading(b"a", 0)
    worker = bench.worker()
    flush, waits = ObservedProducer.flush, []

    def slow(producer, timeout_s):
        waits.append(timeout_s)
        if len(waits) <= 3:
            bench.now += timeout_s
            raise BrokerError("no answer")
        flush(producer, timeout_s)

    monkeypatch.setattr(ObservedProducer, "flush", slow)
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
        bench.now += timeout_s
        raise BrokerError("no answer")

    monkeypatch.setattr(ObservedProducer, "flush", never)
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
    assert bench.metric("transactions_total", outcome="committed") == bench.spy.count("commit") - 1
    assert bench.committed()[0] == (8, 8)


def test_a_commit_that_kafka_does_not_answer_is_asked_for_again_and_waited_for(model):
    bench = Bench(model, max_poll_records=1, commit_interval_ms=20)
    for step in range(12):
        bench.reading(b"a", step)
    worker = bench.worker()
    bench.observed.silent = True
    worker.run()
    soon = bench.spy.count("commit") - bench.metric("transactions_total", outcome="committed")
    assert soon > 1, "those that were waited for count, and each stands for one without an answer besides"
    assert bench.committed()[0] == (12, 12)


def test_a_commit_that_is_refused_once_is_tried_again(bench, caplog):
    bench.reading(b"a", 0)
    worker = bench.worker(idle=10)
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
    worker = bench.worker(idle=1_000)
    bench.spy.fail["commit"] = [BrokerError("not authorised")] * 1_000
    with pytest.raises(BrokerError, match="not authorised"):
        worker.run()
    assert bench.now < 1_010


def test_an_old_refusal_for_partitions_that_left_does_not_make_the_next_one_the_last(model):
    bench = Bench(model, broker_timeout_seconds=5)
    bench.reading(b"a", 0)
    worker = bench.worker(idle=10)
    bench.spy.fail["commit"] = [BrokerError("not a member")] * 1_000

    def thrown_out():
        if bench.spy.count("poll") == 3:
            bench.observed.on_revoked({0, 1})
            bench.observed.on_assigned({0, 1})
            bench.now += 100
            bench.spy.fail["commit"] = [BrokerError("the group is rebalancing")]
            bench.reading(b"b", 0, partition=1)

    bench.spy.on_poll = thrown_out
    assert worker.run() == 0
    assert bench.committed()[1] == (1, 1)


def test_a_last_commit_that_is_refused_does_not_end_as_a_success(bench):
    bench.reading(b"a", 0)
    worker = bench.worker(idle=5)
    bench.spy.fail["commit"] = [BrokerError("no")] * 1_000
    with pytest.raises(BrokerError, match=r"could not be committed.*Nothing is lost"):
        worker.run()


def test_a_worker_that_stops_while_the_group_rebalances_has_not_failed_and_claims_no_commit(bench, caplog):
    caplog.set_level(logging.INFO)
    bench.reading(b"a", 0)
    worker = bench.worker(idle=5)
    bench.spy.fail["commit"] = [MemberEvicted("committing")] * 1_000
    assert worker.run() == 0
    assert bench.committed() == {0: None, 1: None}
    assert "answered and committed" not in caplog.text
    assert "stopped: the group has rebalanced, and the next owner" in caplog.text


def test_an_idle_worker_whose_broker_stays_away_ends_with_an_error(model):
    bench = Bench(model, broker_timeout_seconds=20)
    worker = bench.worker(idle=10_000)
    bench.spy.on_poll = lambda: bench.spy.fail.setdefault("partitions", [BrokerError("no answer")] * 100)
    with pytest.raises(BrokerError, match="no answer"):
        worker.run()
    assert 1_030 <= bench.now < 1_040


def test_a_restore_that_can_never_end_is_tried_with_growing_waits_said_once_and_ends_the_worker(
    model, monkeypatch, caplog
):
    asked = []

    def away(self, partitions):
        asked.append(bench.now)
        raise BrokerUnavailable("Kafka does not say where the log begins")

    monkeypatch.setattr(ObservedConsumer, "beginning_offsets", away, raising=False)
    bench = Bench(model, broker_timeout_seconds=20)
    with pytest.raises(BrokerUnavailable, match="where the log begins"):
        bench.worker(idle=10_000).run()
    assert 20 <= asked[-1] - asked[0] < 30 and len(asked) < 20
    assert caplog.text.count("a restore could not be ended") == 1


def test_a_connection_that_is_lost_while_the_group_is_joined_is_waited_for(bench):
    bench.reading(b"a", 0)
    worker = bench.worker()
    bench.spy.fail["poll"] = [BrokerUnavailable("the connection is lost")] * 2
    assert worker.run() == 0
    assert bench.committed()[0] == (1, 1)


def test_a_connection_that_stays_lost_while_the_group_is_joined_ends_the_worker(model, monkeypatch):
    bench = Bench(model, broker_timeout_seconds=20)
    worker = bench.worker()
    worker.prepare()
    for call in ("poll", "partitions"):
        bench.spy.fail[call] = [BrokerUnavailable("no answer")] * 1_000
    monkeypatch.setattr(StopFlag, "wait", lambda self, seconds: setattr(bench, "now", bench.now + seconds))
    with pytest.raises(BrokerError, match="no answer"):
        worker.run()
    assert 1_020 <= bench.now < 1_045


def test_an_idle_worker_whose_broker_comes_back_continues(model):
    bench = Bench(model, broker_timeout_seconds=20)
    worker = bench.worker(idle=1_000)
    bench.spy.on_poll = lambda: bench.spy.fail.setdefault("partitions", [BrokerError("no answer")] * 3)
    assert worker.run() == 0


def test_a_bug_while_processing_stops_the_worker_with_the_offsets_and_skips_nothing(bench, monkeypatch, caplog):
    bench.reading(b"a", 0)
    bench.run()  # commits the first
    bench.reading(b"a", 1, partition=0)
    bench.reading(b"b", 0, partition=1)
    worker = bench.worker()

    def broken(self, batch):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(ServedModels, "process", broken)
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
    process = ServedModels.process
    monkeypatch.setattr(ServedModels, "process", lambda self, b: process(self, b) if b.offsets == [0] else 1 / 0)
    with pytest.raises(TidecastError, match=r"offsets 1\.\.1"):
        worker.run()
    assert bench.committed()[0] == (1, 0)  # its state may not be written: the bug has left the table half done
    assert len(bench.forecasts()) == 1


def test_a_flood_of_dead_letters_stops_the_worker_with_the_reasons_and_keeps_them(model):
    bench = Bench(model, dead_letter_limit=2)
    for value in (b"{", b"[]", b"{", b"{"):
        bench.send_value(b"a", value)
    with pytest.raises(
        DeadLetterFlood, match=r"4 dead letters within 60 s.*limit of 2 .*: not_json 3, wrong_type 1.*dead-letters"
    ):
        bench.run()
    assert len(bench.read("dead-letters")) == 4
    assert bench.committed()[0] == (4, 4)


def test_a_flood_of_dead_letters_that_could_not_be_written_is_not_said_to_be_in_the_topic(model):
    bench = Bench(model, dead_letter_limit=2)
    for _ in range(4):
        bench.send_value(b"a", b"{")
    worker = bench.worker()
    bench.spy.fail["commit"] = [BrokerError("no")] * 1_000
    with pytest.raises(DeadLetterFlood, match=r"4 dead letters.*The last of them could not be written") as raised:
        worker.run()
    assert "They are in the topic" not in str(raised.value)


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


def test_a_changelog_that_is_not_compacted_is_refused_with_the_command_that_fixes_it(model):
    bench = Bench(model, changelog_topic="plain")
    bench.broker.create_topic("plain", 2)
    with pytest.raises(BrokerError, match=r"plain must be compacted.*'delete'.*--entity-name plain --add-config clean"):
        bench.run()


def test_start_latest_leaves_what_was_there_before_and_answers_what_comes(model):
    bench = Bench(model, start="latest")
    bench.reading(b"a", 0)
    worker = bench.worker(idle=3)

    def later():
        if bench.spy.count("poll") == 2:
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
    bench.spy.on_poll = lambda: seen.append(worker.not_ready())
    worker.run()
    assert seen[-1] == {}
    assert "worker" in worker.not_ready()


def test_a_loop_that_stalls_is_not_live_but_one_that_waits_for_kafka_is(bench):
    worker = bench.worker()
    assert worker.not_live() is None
    bench.now += STALLED_SECONDS + 1
    assert "has not turned for 31 s" in worker.not_live()
    liveness = Liveness(lambda: bench.now)
    with liveness.allow(60):
        bench.now += STALLED_SECONDS + 60
        assert liveness.not_live() is None
    assert liveness.not_live() is None
    bench.now += STALLED_SECONDS + 1
    assert liveness.not_live()


def test_a_series_can_be_looked_at_while_the_worker_runs(bench):
    for step in range(3):
        bench.reading("häfen/1".encode(), step, value=step)
    worker = bench.worker()
    seen = []
    bench.spy.on_poll = lambda: seen.append((worker.series("häfen/1"), worker.series("none")))
    worker.run()
    found, none = seen[-1]
    assert none is None
    assert (found["series"], found["steps"], found["ts"], found["warm"]) == ("häfen/1", 3, START_MS + 2 * STEP_MS, True)
    assert found["state"]["count"] == [3.0]


def test_series_of_partitions_that_left_are_forgotten_and_their_offsets_committed(bench):
    bench.reading(b"a", 0, partition=0)
    bench.reading(b"b", 0, partition=1)
    worker = bench.worker(idle=4)
    seen = {}

    def rebalance():
        polls = bench.spy.count("poll")
        if polls == 3 and "other" not in seen:
            seen["other"] = bench.broker.consumer(group="tidecast")
            seen["other"].subscribe("readings", lambda p: None, lambda p: None)
            seen["other"].poll(0, 1)

    bench.spy.on_poll = rebalance
    worker.run()
    assert worker.assigned == set()
    assert worker.series("a") is None and worker.series("b") is None
    assert bench.committed() == {0: (1, 1), 1: (1, 1)}


def test_what_happened_is_counted(bench):
    for step in (0, 1, 1, 0, 4):  # one duplicate, one late, two steps missing
        bench.reading(b"a", step)
    bench.send_value(b"a", b"{")
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
