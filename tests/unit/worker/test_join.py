"""Workers that join parts: killed at any call to Kafka, stopped, given a newer model. Judged by a plain join."""

import json
import logging
from itertools import islice

import pytest

from tests.chaos.joined import TABLE, JoinedReadings, parts
from tests.chaos.promoted import GroupRun, judge_group_states
from tests.chaos.topics import Names, read_all
from tests.chaos.verifier import verify
from tests.support.models import START_MS, SUCCESSORS, counting_model
from tests.support.shadowed import Decides
from tests.support.world import Fault, Killed, Spy, World
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.model.session import Model
from tidecast.service.state.record import read_header

NAMES = Names("readings", "forecasts", "dead-letters", "tidecast-state")
CALLS = ("poll", "begin", "produce forecasts", "produce tidecast-state", "commit_transaction")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [Model.load(counting_model(folder / str(i), v)) for i, v in enumerate(SUCCESSORS[:2])]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "input.toml"
    path.write_text(TABLE)
    return path


def world_of(model, table, records=400, **settings):
    world = World(model, input=str(table), max_poll_records=10, **settings)
    out = OutgoingBatch("readings")
    for key, value in islice(parts(model.spec, 6, seed=5), records):
        out.append(key, value, partition=int(key[-1:]) % 2)
    world.broker.producer().produce(out)
    return world


def judged(world, *models):
    report = verify(world.broker, models, NAMES, read=JoinedReadings, rtol=0, atol=0)
    assert report.ok, report
    return report


def waiting(world):
    """key -> how many parts of it wait, as the changelog has it."""
    latest = {key: value for _, key, value, _ in world.read("tidecast-state")}
    found = {key: read_header(value).waiting for key, value in latest.items()}
    return {key: parts.parts for key, parts in found.items() if parts is not None}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("after", [False, True])
def test_a_worker_that_is_killed_at_any_call_loses_no_part(models, table, call, after):
    world = world_of(models[0], table)
    for nth in (1, 2, 5, 9):
        world.live(Fault(call, nth, Killed(), after))
    world.live()
    report = judged(world, models[0])
    assert report.forecasts > 100


@pytest.mark.parametrize("call", CALLS)
def test_shadows_step_the_joined_readings_and_one_of_them_takes_over_under_kills(models, table, call):
    world, runs, found = world_of(models[0], table), [], []
    to = [models[1].spec.id, models[0].spec.id]
    for nth in (2, 5, 9):
        policy = Decides((4, to[0]), (9, to[1]), (14, to[0]))
        world.live(Fault(call, nth, Killed()), shadows=models[1:], policy=policy)
    world.live(shadows=models[1:], policy=Decides((4, to[1]), (9, to[0]), first=3))

    def run_of(models, readings, answers):
        found.append(readings)
        runs.append(GroupRun(models, readings, answers))
        return runs[0]

    report = verify(world.broker, models, NAMES, read=JoinedReadings, run_of=run_of, rtol=0, atol=0)
    judge_group_states(read_all(world.broker, NAMES.changelog), models, found[0], runs[0], report)
    assert report.ok, report
    assert report.forecasts > 100
    assert {f["model"] for _, _, f in world.forecasts()} == set(to)


def test_at_least_once_repeats_no_reading_after_a_stop_in_good_order(models, table):
    world = world_of(models[0], table, delivery="at-least-once")
    for batches in (3, 4, 5):
        world.live(batches=batches)
    world.live()
    judged(world, models[0])


def test_parts_still_wait_after_a_stop_and_are_joined_by_the_next_worker(models, table):
    world = world_of(models[0], table, records=0)
    for feature in models[0].spec.features:
        value = json.dumps({"at": START_MS, "metric": feature, "reading": 1}).encode()
        world.send_value(b"s", value)
        world.live()
        assert world.metric("parts_total", outcome="taken") == 1
        if feature == models[0].spec.features[0]:
            assert waiting(world) == {b"s": 1}
            assert not world.forecasts()
    assert waiting(world) == {}
    ((_, key, told),) = world.forecasts()
    assert (key, told["ts"], told["source"]) == (b"s", START_MS, "readings-0-1")
    assert world.metric("incomplete_readings_total") == 0


def test_a_newer_model_of_the_same_layout_joins_the_parts_that_the_older_one_has_taken(models, table):
    world = world_of(models[0], table)
    world.live(newer=models[1], after=20)
    report = judged(world, *models)
    assert sum(report.hand_overs.values()) == 6, "each series has changed over once"


def test_a_worker_without_a_join_says_once_that_waiting_parts_are_dropped(models, table, caplog):
    world = world_of(models[0], table, records=30)
    world.live()
    waited = sum(waiting(world).values())
    assert waited > 2
    table.write_text(TABLE.replace('{ tolerance = "2s", deadline = "2min" }', "false"))
    world.send_value(b"series-0", b'{"at": 1, "metric": "value", "reading": 1}')
    world.send_value(b"series-1", b'{"at": 1, "metric": "value", "reading": 1}', partition=1)
    with caplog.at_level(logging.WARNING):
        world.live()
    said = [r for r in caplog.records if "parts of readings that waited to be joined are dropped" in r.message]
    assert sum(r.parts for r in said) == waited and len(said) <= 2, "once for each partition"
    assert world.metric("parts_total", outcome="dropped") == waited


def test_the_page_of_a_series_shows_what_waits(models, table):
    world = world_of(models[0], table, records=0)
    world.send_value(b"s", json.dumps({"at": START_MS, "metric": "wind", "reading": None}).encode())
    spy, seen = Spy(), []
    worker = world.worker(spy)
    spy.on_poll = lambda: seen.append(worker.series("s"))
    worker.run()
    shown = seen[-1]
    assert shown["ts"] is None and shown["steps"] == 0 and shown["warm"] is False
    assert [(group["ts"], list(group["values"])) for group in shown["waiting"]] == [(START_MS, ["wind"])]
