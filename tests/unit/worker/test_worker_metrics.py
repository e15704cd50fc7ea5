"""What a worker tells of its dealings with Kafka and of its states, for alerts: in a small world in memory."""

import itertools

import pytest

from tests.support.models import counting_model
from tests.support.world import SERIES, Fault, Killed, World
from tidecast.service.errors import BrokerError
from tidecast.service.model.session import Model
from tidecast.service.observability.liveness import Liveness


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Model.load(counting_model(tmp_path_factory.mktemp("model")))


def test_the_limit_of_series_is_a_metric(model):
    world = World(model, max_series=7)
    world.send(0, 5)
    world.worker()
    assert world.metric_sum("max_series") == 7


def test_when_kafka_last_answered_and_last_took_a_commit_are_metrics(model):
    world = World(model)
    world.send(0, 5)
    world.worker()
    assert world.metric_sum("last_commit_timestamp_seconds") == 0, "none yet"
    world.live()
    assert world.metric_sum("kafka_answer_timestamp_seconds") > 1.7e9
    assert world.metric_sum("last_commit_timestamp_seconds") > 1.7e9


def test_an_idle_worker_tells_of_each_answer_and_of_none_that_did_not_come():
    now, heard = [0.0], []
    pulse = Liveness(lambda: now[0], lambda: heard.append(now[0]))

    def away():
        raise BrokerError("nobody answers")

    for now[0], ask in ((5.0, away), (11.0, lambda: None), (15.0, away), (22.0, away), (30.0, lambda: None)):
        pulse.probe(ask, 60.0)
    assert heard == [11.0, 30.0], "at 5 and 15 s it was not asked yet, at 22 s there was no answer"


def test_a_transaction_that_failed_is_counted_with_its_start_over(model):
    world = World(model)
    world.send(0, 20)
    world.live(Fault("commit_transaction", 3, BrokerError("the broker was away")), idle=80)
    world.check()
    assert world.metric_sum("start_overs_total") == 1
    assert world.metric_sum("restoring_partitions") == 0, "all are restored again"
    assert world.metric_sum("restore_remaining_records") == 0


def test_states_written_to_the_changelog_and_those_not_yet_written_are_counted(model):
    world = World(model, changelog_seconds=3600.0)
    world.send(0, 10)
    unwritten = []

    def until_read():
        if world.metric_sum("readings_total"):
            unwritten.append(worker.unwritten_series)
            worker.stop()

    worker = world.worker(between_batches=until_read)
    worker.run()
    assert unwritten[0] > 0, "what was read is not in the changelog yet"
    assert world.metric_sum("changelog_records_total") >= unwritten[0], "written as it stopped"


def test_readings_that_a_restart_reads_again_are_counted_apart(model):
    world = World(model, changelog_seconds=3600.0)
    world.send(0, 20, rubbish=False)
    world.live(Fault("commit_transaction", 8, Killed()))
    world.live()
    world.check()
    assert world.metric_sum("replayed_readings_total") > 0
    assert world.metric_sum("readings_total") < 20 * len(SERIES)


class NoCommit(Fault):
    """From some commit on Kafka refuses each, as where a topic is gone."""

    def around(self, call, do):
        if call == "commit_transaction":
            self.left -= 1
            if self.left < 0:
                raise BrokerError("no such topic")
        return do()


def test_counters_equal_the_topics_while_commits_fail_and_the_lag_shows_what_waits(model):
    world = World(model, broker_timeout_seconds=20)
    world.send(0, 30, rubbish=True)
    lags = []

    class Observed(NoCommit):
        def around(self, call, do):
            if call == "poll":
                lags.append(world.metric_sum("lag_records"))
            return super().around(call, do)

    worker = world.worker(Observed(nth=4), idle=10_000)
    with pytest.raises(BrokerError, match="no such topic"):
        worker.run()
    forecasts, dead = len(world.read("forecasts")), len(world.read("dead-letters"))
    assert world.metric_sum("forecasts_total") == forecasts > 0
    assert world.metric_sum("dead_letters_total") == dead
    committed = sum(offset for offset, _ in (found for found in world.committed().values() if found))
    assert lags[-1] == len(world.sent) - committed > 0
    assert "commits" in worker.not_ready()


def test_what_a_worker_has_not_committed_when_it_ends_is_not_counted(model):
    """It ended because a topic was gone: its last batch was emitted, and counted as it left its group."""
    world = World(model, commit_interval_ms=60_000)
    world.send(0, 30)

    class Gone(Fault):
        emitted = False

        def around(self, call, do):
            if call == "poll" and self.emitted:
                raise BrokerError("there is no topic dead-letters")
            self.emitted = self.emitted or call == "produce forecasts"
            return do()

    with pytest.raises(BrokerError, match="no topic"):
        world.worker(Gone(), idle=10_000).run()
    assert world.metric_sum("forecasts_total") == len(world.read("forecasts")) == 0


def test_a_commit_that_fails_for_a_while_is_retried_with_growing_waits_and_then_counted(model):
    world = World(model)
    world.send(0, 20)

    tries = []

    class Away(Fault):
        def around(self, call, do):
            if call == "commit_transaction":
                tries.append(world.now)
                if 3 <= len(tries) < 9:
                    raise BrokerError("the broker is away")
            return do()

    world.live(Away(), idle=400)
    world.check()
    waits = [b - a for a, b in itertools.pairwise(tries[2:9])]
    assert all(wait >= least for wait, least in zip(waits, (0, 0.5, 1, 2, 4, 5), strict=True)), waits
    assert world.metric_sum("forecasts_total") == len(world.read("forecasts"))
