"""A storm of a minute or two, and the proof that a storm can find something. The long ones: `make chaos`."""

import dataclasses

import pytest

from tests.chaos.scenario import LONG, Scenario
from tests.chaos.storm import Storm
from tests.support.models import counting_models

SHORT = {"partitions": 4, "series": 50, "rate": 500.0, "pause": (0.5, 2.0), "calm": 2.0}
pytestmark = pytest.mark.timeout(400)


def blow(tmp_path, scenario):
    outcome = Storm(scenario, tmp_path, counting_models(tmp_path / "models", scenario.swaps + 1)).run()
    print((tmp_path / "storm.log").read_text())  # shown where the test fails
    return outcome


def check(outcome, *, blows, handed_over):
    # A worker that gave up and was started again is a finding of the long storms (`make chaos`), not of this one.
    assert outcome.report.ok, f"{outcome.report}\n" + "\n".join(outcome.ended)
    assert outcome.met.total() >= blows
    assert outcome.moving >= outcome.met.total() / 3, "most of it hit a group at rest, which proves little"
    assert outcome.report.hand_overs.total() >= handed_over, "hardly a series met a change of models"


@pytest.mark.long
def test_kills_freezes_restarts_and_new_models_lose_duplicate_or_mix_no_forecast(tmp_path):
    storm = Scenario(client="confluent", kills=5, freezes=1, brokers=1, rolls=1, changes=1, swaps=2, **SHORT)
    check(blow(tmp_path, storm), blows=10, handed_over=50)


@pytest.mark.long
def test_kills_evictions_and_a_restart_of_kafka_lose_or_duplicate_no_forecast_with_kafka_python(tmp_path):
    storm = Scenario(client="kafka-python", kills=3, brokers=1, swaps=1, evicts=2, **SHORT)
    check(blow(tmp_path, storm), blows=5, handed_over=25)


@pytest.mark.long
def test_a_storm_finds_the_doubled_forecasts_of_at_least_once_delivery(tmp_path):
    """At-least-once, killed between its forecasts and its commit, answers twice: a storm must see that."""
    outcome = blow(
        tmp_path,
        Scenario(
            delivery="at-least-once",
            commit_interval_ms=5_000,
            workers=1,
            partitions=2,
            series=10,
            rate=200.0,
            kills=2,
            pause=(3.0, 4.0),
            calm=3.0,
        ),
    )
    found = outcome.report.found
    assert found["doubled"] > 0 and not found["missing"], outcome.report


def test_a_seed_decides_which_faults_come_in_which_order():
    storm = dataclasses.replace(LONG, seed=5)
    assert storm.misfortunes() == dataclasses.replace(LONG, seed=5).misfortunes()
    assert storm.misfortunes() != dataclasses.replace(LONG, seed=6).misfortunes()
    kinds = [kind for _, kind in storm.misfortunes()]
    assert len(kinds) == 72 and kinds.index("add") < kinds.index("remove")
    assert Scenario(seed=5).misfortunes() == []
