"""The judge of promotions finds what a worker could do wrong; in a short storm nothing is. More: `make chaos`."""

from dataclasses import replace

import numpy as np
import pytest

from tests.chaos.promoted import GroupRun, PromoteStorm, judge_group_states, judge_order
from tests.chaos.report import Report
from tests.chaos.scenario import Scenario
from tests.chaos.topics import Names, read_all
from tests.chaos.verifier import verify
from tests.support.models import counting_models
from tests.support.shadowed import Decides
from tests.support.world import World
from tidecast.service.model.session import Model
from tidecast.service.state.codec import Codec

NAMES = Names("readings", "forecasts", "dead-letters", "tidecast-state")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return [Model.load(path) for path in counting_models(tmp_path_factory.mktemp("models"), 3)]


@pytest.fixture
def world(models):
    """Three models, of which two were promoted, one after the other."""
    world = World(models[0])
    world.send(0, 40, rubbish=False)
    world.live(shadows=models[1:], policy=Decides((8, models[1].spec.id), (20, models[2].spec.id)))
    return world


def judged(world, models, forecasts=None, states=None):
    """Kinds of faults, and how many, with other forecasts or states than those that there are."""
    runs, found = [], []

    def run_of(models, readings, answers):
        found.append(readings)
        runs.append(GroupRun(models, readings, answers))
        return runs[0]

    report = verify(world.broker, models, NAMES, run_of=run_of, rtol=0.0, atol=0.0)
    decided = [model.spec.id for model in models]
    judge_order(read_all(world.broker, NAMES.forecasts) if forecasts is None else forecasts, models, decided, report)
    states = read_all(world.broker, NAMES.changelog) if states is None else states
    judge_group_states(states, models, found[0], runs[0], report)
    return dict(report.found), report


def test_what_a_worker_does_in_memory_has_no_fault(world, models):
    faults, report = judged(world, models)
    assert faults == {}
    assert report.champions == 4 and report.states == 4 and report.forecasts == 40 * 4


def test_a_forecast_of_a_model_that_has_not_stepped_all_readings_is_found(models):
    world = World(models[0])
    world.send(0, 10, rubbish=False)
    world.live(shadows=models[2:])
    world.send(10, 20, rubbish=False)
    world.live(shadows=models[1:], policy=Decides((1, models[1].spec.id)))  # it begins with the eleventh reading
    faults, _ = judged(world, models)
    assert faults["wrong"] == 10 * 4
    assert faults["states wrong"] > 0


def test_partitions_that_go_back_to_an_earlier_champion_or_skip_one_are_found(world, models):
    forecasts = read_all(world.broker, NAMES.forecasts)
    again = [*forecasts, next(record for record in forecasts if record.partition == 1)]
    assert judged(world, models, forecasts=again)[0] == {"champions not as decided": 1}
    second = models[1].spec.id.encode()
    skipped = [record for record in forecasts if second not in record.value]
    assert judged(world, models, forecasts=skipped)[0] == {"champions not as decided": 2}


def test_states_that_are_wrong_behind_or_go_back_are_found(world, models):
    states = read_all(world.broker, NAMES.changelog)
    codec = Codec(*sorted((model.spec for model in models), key=lambda spec: spec.hash))
    last = codec.decode(states[-1].value)
    for nth, part in enumerate(codec.states.slices):
        other = last.state.copy()
        other[part] += 1
        columns = [np.array([v], np.int64) for v in (last.offset, last.last_ts, last.steps, last.seen_ms)]
        value = codec.encode(*columns, other[np.newaxis])[0]
        faults, report = judged(world, models, states=[*states[:-1], replace(states[-1], value=value)])
        assert faults == {"states wrong": 1}
        assert codec.members[nth].hash in report.examples["states wrong"][0]
    key = states[-1].key
    assert judged(world, models, states=[r for r in states if r.key != key])[0] == {"states behind": 1}
    first = next(r for r in states if r.key == key)
    if first is not states[-1]:
        assert "states that go back" in judged(world, models, states=[*states, first])[0]


def test_a_report_says_how_often_champions_changed():
    assert "champions of partitions changed: 3" in str(Report(champions=3))


def test_a_report_says_that_kafka_itself_left_a_transaction_undecided():
    assert "Kafka skipped the markers of 1 transactions: A2 in docs/upstream.md" in str(Report(skipped_markers=1))


@pytest.mark.timeout(500)
@pytest.mark.parametrize("client", ["confluent", "kafka-python"])
@pytest.mark.long
def test_models_that_are_promoted_under_kills_answer_each_reading_once_and_as_if_they_had_run_alone(tmp_path, client):
    storm = Scenario(client=client, partitions=4, series=50, rate=500.0, pause=(0.5, 2.0), calm=2.0,
                     promotes=4, kills=4, freezes=1, brokers=1, evicts=1)  # fmt: skip
    outcome = PromoteStorm(storm, tmp_path, counting_models(tmp_path / "models", 3)).run()
    print((tmp_path / "storm.log").read_text())  # shown where the test fails
    assert outcome.report.ok, f"{outcome.report}\n" + "\n".join(outcome.ended)
    assert outcome.met["promote"] == 4 and outcome.report.champions >= 4 * 4
    assert outcome.moving >= outcome.met.total() / 3, "most of it hit a group at rest, which proves little"
