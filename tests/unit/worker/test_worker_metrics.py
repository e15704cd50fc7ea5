"""What a worker tells of its dealings with Kafka and of its states, for alerts: in a small world in memory."""

import pytest

from tests.support.models import counting_model
from tests.support.world import SERIES, Fault, Killed, World
from tidecast.service.errors import BrokerError
from tidecast.service.model.session import Model
from tidecast.service.observability.liveness import Liveness


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Model.load(counting_model(tmp_path_factory.mktemp("model")))


def value(worker, name):
    """The sum over all labels."""
    return sum(
        sample.value for family in worker._metrics.families() for sample in family.samples if sample.name == name
    )


def test_the_cap_of_series_stands_beside_how_many_are_held(model):
    world = World(model, max_series=7)
    world.send(0, 5)
    worker = world.worker()
    assert value(worker, "tidecast_max_series") == 7


def test_when_kafka_last_answered_and_last_took_a_commit_is_told(model):
    world = World(model)
    world.send(0, 5)
    assert value(world.worker(), "tidecast_last_commit_timestamp_seconds") == 0, "none yet"
    worker = world.live()
    assert value(worker, "tidecast_kafka_answer_timestamp_seconds") > 1.7e9
    assert value(worker, "tidecast_last_commit_timestamp_seconds") > 1.7e9


def test_an_idle_worker_tells_of_each_answer_and_of_none_that_did_not_come():
    now, heard = [0.0], []
    pulse = Liveness(lambda: now[0], lambda: heard.append(now[0]))

    def away():
        raise BrokerError("nobody answers")

    for now[0], ask in ((5.0, away), (11.0, lambda: None), (15.0, away), (22.0, away), (30.0, lambda: None)):
        pulse.probe(ask, 60.0)
    assert heard == [11.0, 30.0], "at 5 and 15 s it was not asked yet, at 22 s there was no answer"


def test_a_transaction_that_came_to_nothing_is_counted_with_its_start_over(model):
    world = World(model)
    world.send(0, 20)
    worker = world.live(Fault("commit_transaction", 3, BrokerError("the broker was away")), idle=80)
    world.check()
    assert value(worker, "tidecast_start_overs_total") == 1
    assert value(worker, "tidecast_restoring_partitions") == 0, "all are restored again"
    assert value(worker, "tidecast_restore_remaining_records") == 0


def test_states_written_to_the_changelog_and_those_still_to_be_are_told(model):
    world = World(model, changelog_seconds=3600.0)
    world.send(0, 10)
    unwritten = []

    def until_read():
        if value(worker, "tidecast_readings_total"):
            unwritten.append(worker._models.series_counts({0, 1}, unwritten=True))
            worker.stop()

    worker = world.worker(clock=lambda: world.now, tidy=until_read)
    worker.run()
    assert sum(unwritten[0].values()) > 0, "what was read is not in the changelog yet"
    assert value(worker, "tidecast_changelog_records_total") >= sum(unwritten[0].values()), "written as it stopped"


def test_readings_that_a_restart_reads_again_are_counted_apart(model):
    world = World(model, changelog_seconds=3600.0)
    world.send(0, 20, rubbish=False)
    world.live(Fault("commit_transaction", 8, Killed()))
    worker = world.live()
    world.check()
    assert value(worker, "tidecast_replayed_readings_total") > 0
    assert value(worker, "tidecast_readings_total") < 20 * len(SERIES)
