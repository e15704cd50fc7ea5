"""The verifier must tell a right change of models from a wrong one: synthetic answers by several counting models."""

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest

from tests.chaos.feed import feed
from tests.chaos.handover import BACK, CARRIED, OLDER, REBUILT, Change, HandOvers
from tests.chaos.played import LONGER, NAMES, NEW, OLD, Take, carried, judged, last_of, play, rebuilt
from tests.chaos.readings import Readings, Series
from tests.chaos.topics import read_all
from tests.support.models import FEATURES, START_MS, counting_models
from tidecast.service.broker.memory.broker import MemoryBroker
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.model.session import Model

RECORDS, SERIES, PARTITIONS = 1_200, 12, 3
AT = 40  # readings of each series before the first change


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return [Model.load(path) for path in counting_models(tmp_path_factory.mktemp("models"), 3)]


@pytest.fixture
def topics(models):
    """Readings without anything bad among them, and nothing answered yet."""
    broker = MemoryBroker()
    for name in (NAMES.readings, NAMES.forecasts, NAMES.changelog):
        broker.create_topic(name, PARTITIONS)
    broker.create_topic(NAMES.dead_letters, 1)
    out = OutgoingBatch(NAMES.readings)
    for key, value in islice(feed(models[0].spec, SERIES, seed=3), RECORDS):
        if value.startswith(b'{"ts": 1') and value.count(b":") == 1 + len(FEATURES):
            out.append(key, value)
    broker.producer().produce(out)
    readings = Readings(models[0].spec, read_all(broker, NAMES.readings))
    assert min(len(one.ts) for one in readings.series.values()) > AT + 40
    return SimpleNamespace(broker=broker, readings=readings)


def first_of(topics):
    return next(iter(topics.readings.series.values()))


def handed(report):
    return {kind: n for kind, n in report.hand_overs.items() if n}


def test_a_replay_that_begins_at_a_late_reading_takes_it_for_the_first_and_fills_what_is_missing(models):
    model, step, x = models[LONGER], models[LONGER].spec.step_ms, [[float(n)] * len(FEATURES) for n in range(10)]
    one = Series(b"a", 0, offsets=[*range(6), *range(8, 12)], ts=[START_MS + n * step for n in range(10)], x=x)
    one.passed = [(6, one.ts[3], x[3]), (7, one.ts[2], x[2])]  # before the reading 6, which is at offset 8
    change = Change(one, LONGER, 9, 9, before=[])
    found = [s for s in HandOvers(models, None, {}, None).rebuilt(change) if s.first == 6]
    state = model.initial_state[np.newaxis]
    for n, values in ((3, x[3]), (4, [np.nan] * len(FEATURES)), (5, [np.nan] * len(FEATURES))):
        _, state, _ = model.step(np.array([values], np.float32), np.array([one.ts[n]]), state)
    assert [s.begun for s in found] == [6, 3, 2]
    np.testing.assert_array_equal(found[1].state, state[0])


# What is right ------------------------------------------------------------------------------------------------


def test_a_state_carried_over_passes(topics, models):
    report = judged(topics, models, [carried(AT, NEW)])
    assert report.ok and handed(report) == {CARRIED: SERIES}, report
    assert report.serving == dict.fromkeys(range(PARTITIONS), models[NEW].spec.id)


@pytest.mark.parametrize("back", [1, 17, AT])
def test_a_state_carried_from_before_a_crash_passes(topics, models, back):
    take = carried(AT, NEW, back) if back < AT else Take(AT, NEW, 0)  # nothing was written before the crash
    report = judged(topics, models, [take])
    assert report.ok and handed(report) == {OLDER: SERIES}, report


@pytest.mark.parametrize("over", [3, 20, AT])
def test_a_state_of_another_layout_made_from_recent_readings_passes(topics, models, over):
    report = judged(topics, models, [rebuilt(AT, LONGER, over)])
    assert report.ok and handed(report) == {REBUILT: SERIES}, report


def test_a_partition_rebuilt_from_one_offset_passes_where_each_series_has_its_own_count(topics, models):
    def takes(one):
        begin = sum(offset < 100 for offset in one.offsets)
        return [Take(AT, LONGER, begin)]

    report = judged(topics, models, takes)
    assert report.ok and handed(report) == {REBUILT: SERIES}, report


def test_several_changes_pass_each_series_at_its_own_reading(topics, models):
    def takes(one):
        at = AT + one.offsets[0] % 7
        return [carried(at, NEW, back=at % 3), rebuilt(at + 5, LONGER, 30)]

    report = judged(topics, models, takes)
    assert report.ok and report.hand_overs[REBUILT] == SERIES, report
    assert report.hand_overs[CARRIED] + report.hand_overs[OLDER] == SERIES, report


def test_a_change_back_passes_and_is_counted(topics, models):
    report = judged(topics, models, [carried(AT, NEW), carried(AT + 5, OLD, 2), carried(AT + 9, NEW)])
    assert report.ok and handed(report) == {CARRIED: 2 * SERIES, OLDER: SERIES, BACK: SERIES}, report


def test_a_series_that_began_after_the_change_passes(topics, models):
    takes = [Take(0, NEW, 0)]
    report = judged(topics, models, takes)
    assert report.ok and not handed(report), report


def test_states_of_both_models_pass_where_both_stepped(topics, models):
    def written(one, records):
        places = [(0, 10), (0, AT - 5), (1, AT - 4), (1, AT - 1), (1, AT + 3)]
        return [*(records[place] for place in places), last_of(one, records)]

    assert judged(topics, models, [carried(AT, NEW, back=4)], written=written).ok


def test_states_of_the_old_layout_pass_before_those_of_the_new_one(topics, models):
    def written(one, records):
        return [records[0, 10], records[0, AT - 1], records[1, AT - 1], last_of(one, records)]

    assert judged(topics, models, [rebuilt(AT, LONGER, 20)], written=written).ok


# What is wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "take",
    [
        pytest.param(Take(AT, NEW, AT, AT - 2), id="lost a step"),
        pytest.param(Take(AT, NEW, AT - 1, AT - 1), id="doubled a step"),
        pytest.param(Take(AT, NEW, AT - 10, AT - 12), id="lost a step before a crash"),
        pytest.param(Take(AT, NEW, AT - 10, AT - 10), id="doubled a step after a crash"),
        pytest.param(Take(AT, NEW, AT), id="began cold"),
        pytest.param(Take(AT, NEW, AT - 10), id="began cold with the layout carried"),
        pytest.param(Take(AT, LONGER, AT), id="began cold with another layout"),
        pytest.param(Take(AT, LONGER, AT - 2), id="was not warmed up"),
        pytest.param(Take(AT, LONGER, AT - 9, AT - 10), id="took the numbers of another layout"),
    ],
)
def test_a_hand_over_is_found_that(topics, models, take):
    def takes(one):
        return [take] if one is first_of(topics) else [carried(AT, NEW)]

    one = first_of(topics)
    report = judged(topics, models, takes)
    assert report.found["wrong"] == len(one.ts) - AT, report
    assert sum(report.hand_overs.values()) == SERIES - 1


def test_a_step_lost_later_by_the_new_model_is_found(topics, models):
    def takes(one):
        return [carried(AT, NEW), *([Take(AT + 20, NEW, AT + 20, AT + 18)] if one is first_of(topics) else [])]

    report = judged(topics, models, takes)
    assert report.found["wrong"] == len(first_of(topics).ts) - AT - 20, report


def test_numbers_of_the_old_model_under_the_name_of_the_new_one_are_found(topics, models):
    def spoil(rows):
        for _, answer in rows[AT:]:
            answer["model"] = models[NEW].spec.id

    def takes(one):
        return [] if one is first_of(topics) else [carried(AT, NEW)]

    report = judged(topics, models, takes, spoil)
    assert report.found["wrong"] == len(first_of(topics).ts) - AT, report


@pytest.mark.parametrize("name", ["the old one", "nobody@123"])
def test_one_forecast_under_another_models_name_is_found_and_those_after_it_still_pass(topics, models, name):
    def spoil(rows):
        rows[AT + 10][1]["model"] = models[OLD].spec.id if name == "the old one" else name

    assert judged(topics, models, [carried(AT, NEW)], spoil).found == {"wrong": 1}


def test_a_reading_answered_by_both_models_is_found(topics, models):
    one = first_of(topics)
    twice, _ = play(one, [Take(0, OLD, 0)], models)

    def spoil(rows):
        rows.insert(AT + 1, (rows[AT][0], twice[AT]))

    assert judged(topics, models, [carried(AT, NEW)], spoil).found == {"doubled": 1, "wrong": 1}


def test_an_old_model_that_continues_after_a_change_to_another_layout_is_found(topics, models):
    """As a worker would that has not noticed: its own chain continues."""
    one = first_of(topics)
    continued, _ = play(one, [Take(0, OLD, 0), carried(10, NEW)], models)

    def spoil(rows):
        for i in range(AT + 4, AT + 9):
            rows[i] = rows[i][0], continued[i]

    report = judged(topics, models, [carried(10, NEW), rebuilt(AT, LONGER, 20)], spoil)
    assert report.found["wrong"] >= 5, report


@pytest.mark.parametrize(
    "take, first, then",
    [
        pytest.param(carried(AT, NEW, back=4), (1, AT - 3), (0, AT - 2), id="of the same layout"),
        pytest.param(rebuilt(AT, LONGER, 20), (1, AT - 1), (0, AT - 1), id="of another layout"),
    ],
)
def test_a_state_of_the_old_model_after_one_of_the_new_one_is_found(topics, models, take, first, then):
    def written(one, records):
        return [records[first], records[then], last_of(one, records)]

    assert judged(topics, models, [take], written=written).found == {"states that go back": 1}


@pytest.mark.parametrize(
    "take, at",
    [
        pytest.param(rebuilt(AT, LONGER, AT), AT - 25, id="from before its rebuilding"),
        pytest.param(rebuilt(AT, LONGER, 21), AT - 1, id="that another count of readings gave"),
        pytest.param(carried(AT, NEW), AT, id="that another model left"),
    ],
)
def test_a_state_is_found(topics, models, take, at):
    _, others = play(first_of(topics), [Take(0, OLD, 0), take], models)

    def written(one, records):
        return [others[1, at], last_of(one, records)]

    assert judged(topics, models, [rebuilt(AT, LONGER, 20)], written=written).found == {"states wrong": 1}


def test_a_last_state_of_the_old_model_is_found(topics, models):
    found = judged(topics, models, [carried(AT, NEW)], written=lambda one, records: [records[0, AT - 1]]).found
    assert found == {"states behind": 1}
