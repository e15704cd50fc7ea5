"""The verifier must find each fault that a worker could make: on topics in memory, a right one and spoilt ones."""

import dataclasses
import json
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest

from tests.chaos.feed import START_MS, feed
from tests.chaos.linear import LinearRun
from tests.chaos.readings import Fate, Readings
from tests.chaos.topics import Names, read_all
from tests.chaos.verifier import verify
from tests.support.models import CountingReference, counting_model
from tidecast.service.broker.memory.broker import MemoryBroker
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.model.session import Model
from tidecast.service.pipeline.pipeline import Pipeline, Policy
from tidecast.service.state.codec import Codec

RECORDS, SERIES, PARTITIONS = 1_500, 20, 4
NAMES = Names("readings", "forecasts", "dead")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Model.load(counting_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def answered(model):
    """A broker whose readings are answered rightly, in several batches, and those answers."""
    broker = MemoryBroker()
    for name in (NAMES.readings, NAMES.forecasts):
        broker.create_topic(name, PARTITIONS)
    broker.create_topic(NAMES.dead_letters, 1)
    records = OutgoingBatch(NAMES.readings)
    for key, value in islice(feed(model.spec, SERIES, seed=3), RECORDS):
        records.append(key, value)
    broker.producer().produce(records)
    pipeline = Pipeline(model, Policy(), output_topic=NAMES.forecasts, dead_letter_topic=NAMES.dead_letters)
    consumer = broker.consumer()
    consumer.assign(NAMES.readings, dict.fromkeys(range(PARTITIONS), -2))
    forecasts, letters = [], []
    while len(batch := consumer.poll(0, 200)):
        result = pipeline.process(batch)
        forecasts.append(result.forecasts)
        letters.append(result.dead_letters)
    return SimpleNamespace(broker=broker, spec=model.spec, forecasts=rows(forecasts), letters=rows(letters))


def readings_of(answered):
    return Readings(answered.spec, read_all(answered.broker, NAMES.readings))


def rows(batches):
    return [
        [p, key, value, list(headers)]
        for b in batches
        for p, key, value, headers in zip(b.partitions, b.keys, b.values, b.headers, strict=True)
    ]


def write(broker, topic, records):
    out = OutgoingBatch(topic)
    for partition, key, value, headers in records:
        out.append(key, value, partition=partition, headers=headers)
    broker.producer().produce(out)


def judged(answered, model, **options):
    write(answered.broker, NAMES.forecasts, answered.forecasts)
    write(answered.broker, NAMES.dead_letters, answered.letters)
    options = {"rtol": 0, "atol": 0} | options
    return verify(answered.broker, [model], NAMES, **options)


@pytest.mark.parametrize("needed", [5, 4, 0])
def test_a_worker_that_takes_up_a_series_too_early_or_never_after_its_clock_was_ahead_is_found(model, needed):
    broker = MemoryBroker()
    for name in (NAMES.readings, NAMES.forecasts, NAMES.dead_letters):
        broker.create_topic(name, 1)
    records, step = OutgoingBatch(NAMES.readings), model.spec.step_ms
    for at in (*range(10), 10 + 1_439, *range(11, 40), *range(20, 30), *range(40, 50)):
        now = {1_449: 10}.get(at, 39 if len(records) > 39 and at < 30 else at) * step + START_MS
        value = json.dumps({"ts": START_MS + at * step, "value": at % 7, "wind": 1}).encode()
        records.append(b"a", value, timestamp=now)
    broker.producer().produce(records)
    policy = Policy(late_recovery_readings=needed)
    pipeline = Pipeline(model, policy, output_topic=NAMES.forecasts, dead_letter_topic=NAMES.dead_letters)
    consumer = broker.consumer()
    consumer.assign(NAMES.readings, {0: -2})
    while len(batch := consumer.poll(0, 7)):
        broker.producer().produce(pipeline.process(batch).forecasts)
    report = verify(broker, [model], NAMES, rtol=0, atol=0)
    assert report.forecasts == {5: 46, 4: 47, 0: 11}[needed]
    assert report.ok == (needed == 5), report


def two_of_one_series(forecasts, apart=3):
    """The places of two forecasts of one series in the list."""
    mine = [i for i, row in enumerate(forecasts) if row[1] == forecasts[0][1]]
    return mine[0], mine[apart]


def test_right_answers_pass_and_all_kinds_of_records_were_among_them(answered, model):
    report = judged(answered, model)
    assert report.ok, report
    assert report.forecasts == len(answered.forecasts) > 1_000
    assert report.dead_letters == len(answered.letters) > 5
    fates = readings_of(answered).fates
    assert sum(fate is Fate.NOTHING for fate in fates.values()) > 10
    assert sum(fate is Fate.DEAD for fate in fates.values()) == report.dead_letters


def test_the_linear_run_is_that_of_the_model_in_plain_python(answered, model):
    readings = readings_of(answered)
    run = LinearRun([model], readings)
    for one in readings.series.values():
        reference, chain = CountingReference(), run.answering(one.key, 0)
        for i, (x, ts) in enumerate(zip(one.x, one.ts, strict=True)):
            y = reference.step(x, ts)
            assert chain.y[i, :, 0, :].tolist() == y
            assert chain.state(i).tolist() == reference.state


def test_a_lost_forecast_is_found(answered, model):
    del answered.forecasts[500]
    assert judged(answered, model).found == {"missing": 1}


def test_a_doubled_forecast_is_found(answered, model):
    answered.forecasts.append(answered.forecasts[700])
    assert judged(answered, model).found == {"doubled": 1}


def test_two_forecasts_of_a_series_in_the_wrong_order_are_found(answered, model):
    a, b = two_of_one_series(answered.forecasts, apart=1)
    answered.forecasts[a], answered.forecasts[b] = answered.forecasts[b], answered.forecasts[a]
    assert judged(answered, model).found == {"out of order": 1}


def test_two_forecasts_with_each_others_numbers_are_found(answered, model):
    a, b = two_of_one_series(answered.forecasts)
    one, other = (json.loads(answered.forecasts[nth][2]) for nth in (a, b))
    answered.forecasts[a][2] = json.dumps(other | {"source": one["source"]}).encode()
    answered.forecasts[b][2] = json.dumps(one | {"source": other["source"]}).encode()
    assert judged(answered, model).found == {"wrong": 2}


@pytest.mark.parametrize("factor, found", [(1 + 3e-4, {"wrong": 1}), (1 + 3e-5, {})])
def test_a_number_that_is_off_by_more_than_allowed_is_found(answered, model, factor, found):
    forecast = json.loads(answered.forecasts[900][2])
    forecast["targets"]["value"]["p50"][1] *= factor
    answered.forecasts[900][2] = json.dumps(forecast).encode()
    assert judged(answered, model, rtol=1e-4, atol=1e-5).found == found


@pytest.mark.parametrize(
    "name, value", [("warm", False), ("ts", 1), ("model", "other@1"), ("targets", {}), ("score", {})]
)
def test_a_forecast_that_says_something_else_is_found(answered, model, name, value):
    forecast = json.loads(answered.forecasts[900][2])
    answered.forecasts[900][2] = json.dumps(forecast | {name: value}).encode()
    assert judged(answered, model).found == {"wrong": 1}


def test_a_series_that_began_again_cold_is_found_in_every_later_forecast(answered, model):
    """What a worker without the state does after it took a partition over."""
    key = answered.forecasts[0][1]
    mine = [row for row in answered.forecasts if row[1] == key]
    one, half = readings_of(answered).series[key], len(mine) // 2
    reference = CountingReference()
    for row, x, ts in zip(mine[half:], one.x[half:], one.ts[half:], strict=True):
        y = np.array(reference.step(x, ts)).T.tolist()
        forecast = json.loads(row[2])
        forecast["targets"]["value"] = dict(zip(("p10", "p50", "p90"), y, strict=True))
        row[2] = json.dumps(forecast).encode()
    assert judged(answered, model).found == {"wrong": len(mine) - half}


def test_a_forecast_in_another_partition_or_on_another_key_is_found(answered, model):
    answered.forecasts[3][0] = (answered.forecasts[3][0] + 1) % PARTITIONS
    answered.forecasts[4][1] = b"nobody"
    found = judged(answered, model).found
    assert found["misplaced"] == 2 and set(found) <= {"misplaced", "out of order"}


def test_forecasts_that_nobody_asked_for_are_found(answered, model):
    fates = readings_of(answered).fates
    partition, offset = next(place for place, fate in fates.items() if fate is Fate.NOTHING)
    row = answered.forecasts[5]
    others = (f"{NAMES.readings}-{partition}-{offset}", f"{NAMES.readings}-0-999999", "other-0-0", "")
    for source in others:
        answered.forecasts.append([*row[:2], json.dumps(json.loads(row[2]) | {"source": source}).encode(), []])
    assert judged(answered, model).found == {"forecasts of no valid reading": 4}


def test_dead_letters_that_are_missing_doubled_or_unasked_for_are_found(answered, model):
    assert len(answered.letters) > 3
    answered.letters[1] = answered.letters[2]
    place = json.loads(answered.forecasts[0][2])["source"].split("-")[1:]
    headers = dict(answered.letters[3][3]) | {
        "tidecast.partition": place[0].encode(),
        "tidecast.offset": place[1].encode(),
    }
    answered.letters.append([*answered.letters[3][:3], [*headers.items()]])
    found = judged(answered, model).found
    assert found == {"dead letters missing": 1, "dead letters doubled": 1, "dead letters of no bad record": 1}


# The changelog ------------------------------------------------------------------------------------------------


@pytest.fixture
def states(answered, model):
    """The last state of each series, as (partition, key, fields), ready to be spoilt."""
    readings = readings_of(answered)
    run = LinearRun([model], readings)
    found = []
    for key, one in readings.series.items():
        n, chain = len(one.ts), run.answering(key, 0)
        found.append(
            {
                "partition": one.partition,
                "key": key,
                "offset": one.offsets[-1],
                "ts": one.ts[-1],
                "steps": n,
                "state": chain.state(n - 1).copy(),
                "before": (one.offsets[-2], one.ts[-2], n - 1, chain.state(n - 2).copy()),
            }
        )
    return found


def judged_states(answered, model, states, tombstones=(), **options):
    """What was found in the changelog alone."""
    codec = Codec(model.spec)
    names = dataclasses.replace(NAMES, changelog="changelog")
    answered.broker.create_topic("changelog", PARTITIONS)
    records = []
    for s in states:
        columns = [np.array([s[name]], np.int64) for name in ("offset", "ts", "steps", "ts")]
        records.append([s["partition"], s["key"], codec.encode(*columns, s["state"][np.newaxis])[0], []])
    write(answered.broker, "changelog", [*records, *([p, key, None, []] for p, key in tombstones)])
    write(answered.broker, NAMES.forecasts, answered.forecasts)
    write(answered.broker, NAMES.dead_letters, answered.letters)
    report = verify(answered.broker, [model], names, rtol=0, atol=0, **options)
    return report.found


def older(state):
    offset, ts, steps, values = state["before"]
    return state | {"offset": offset, "ts": ts, "steps": steps, "state": values}


def test_right_states_pass_also_where_an_older_one_came_before(answered, model, states):
    assert judged_states(answered, model, [older(states[0]), *states]) == {}


def test_a_state_that_differs_in_one_number_is_found(answered, model, states):
    states[4]["state"][0] += 1
    assert judged_states(answered, model, states) == {"states wrong": 1}


def test_a_state_with_another_count_of_steps_is_found(answered, model, states):
    states[4]["steps"] += 1
    assert judged_states(answered, model, states) == {"states wrong": 1}


def test_states_that_are_missing_or_too_old_after_a_clean_stop_are_found(answered, model, states):
    gone = states.pop()
    states[0] = older(states[0])
    tombstone = (states[1]["partition"], states[1]["key"])
    assert judged_states(answered, model, states, [tombstone]) == {"states behind": 3}
    assert gone["steps"] > 1


def test_a_state_may_be_older_than_the_end_but_not_than_the_snapshot_offset(answered, model, states):
    snapshot = dict.fromkeys(range(PARTITIONS), 10**9)
    late = states[0]
    states[0] = older(late)
    snapshot[late["partition"]] = late["offset"]  # it promises every reading before that one
    assert judged_states(answered, model, states, flushed=snapshot) == {}
    snapshot[late["partition"]] += 1
    names = dataclasses.replace(NAMES, changelog="changelog")
    assert verify(answered.broker, [model], names, rtol=0, atol=0, flushed=snapshot).found == {"states behind": 1}


def test_a_state_that_was_overwritten_by_an_older_one_is_found(answered, model, states):
    """As a zombie that is not fenced would do."""
    found = judged_states(answered, model, [*states, older(states[0])])
    assert found == {"states that go back": 1, "states behind": 1}


def test_a_state_on_another_series_key_is_found(answered, model, states):
    a, b = next((a, b) for a in states for b in states if a is not b and a["partition"] == b["partition"])
    a["key"], b["key"] = b["key"], a["key"]
    assert judged_states(answered, model, states) == {"states of no reading": 2, "states behind": 2}
