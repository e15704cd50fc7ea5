"""The verifier must tell a right change of models from a wrong one: synthetic answers by several counting models."""

import copy
import json
from dataclasses import dataclass
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest

from service.broker.base import Outgoing
from service.broker.memory import MemoryBroker
from service.changelog import Codec
from service.model import Model
from tests.chaos.feed import feed
from tests.chaos.handover import BACK, CARRIED, OLDER, REBUILT
from tests.chaos.readings import Readings
from tests.chaos.topics import Names, read_all
from tests.chaos.verifier import verify
from tests.models import FEATURES, SUCCESSORS, CountingReference, counting_models

RECORDS, SERIES, PARTITIONS = 1_200, 12, 3
NAMES = Names("readings", "forecasts", "dead", "changelog")
OLD, NEW, LONGER = 0, 1, 2  # NEW has the layout of OLD, LONGER another one
AT = 40  # readings of each series before the first change


@dataclass(frozen=True)
class Take:
    """From the reading `at` on `model` answers; it steps from `first` on, from the state after the reading `source`.

    `source` None = the model's initial state. In good order, `source` is `first` - 1.
    """

    at: int
    model: int
    first: int
    source: int | None = None


def carried(at, model, back=0):
    return Take(at, model, at - back, at - back - 1)


def rebuilt(at, model, over):
    return Take(at, model, at - over)


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
    out = Outgoing(NAMES.readings)
    for key, value in islice(feed(models[0].spec, SERIES, seed=3), RECORDS):
        if value.startswith(b'{"ts": 1') and value.count(b":") == 1 + len(FEATURES):
            out.append(key, value)
    broker.producer().produce(out)
    readings = Readings(models[0].spec, read_all(broker, NAMES.readings))
    assert min(len(one.ts) for one in readings.series.values()) > AT + 40
    return SimpleNamespace(broker=broker, readings=readings)


def play(one, takes, models):
    """What the models would answer, and the changelog record after each of these readings.

    Returns:
        forecasts: a dict for each reading.
        records: (take, reading) -> changelog record, of silent steps too.
    """
    forecasts, records, shown = [], {}, {}
    for nth, take in enumerate(takes):
        model = models[take.model]
        if take.source is None:
            series, begun = CountingReference(SUCCESSORS[take.model]), take.first
        else:
            before, begun = shown[take.source]
            series = copy.copy(before)
            series.variant = SUCCESSORS[take.model]
        end = takes[nth + 1].at if nth + 1 < len(takes) else len(one.ts)
        for i in range(take.first, end):
            earlier, ts = series.count, one.ts[i]
            p10, p50, p90 = zip(*series.step(one.x[i], ts), strict=True)
            steps = i + 1 - begun
            columns = [np.array([v], np.int64) for v in (one.offsets[i], ts, steps, ts)]
            state = np.array([series.state], np.float32)
            records[nth, i] = Codec(model.spec).encode(*columns, state)[0]
            if i < take.at:
                continue
            shown[i] = copy.copy(series), begun
            forecasts.append(
                {
                    "ts": ts,
                    "step_ms": model.spec.step_ms,
                    "model": model.spec.id,
                    "warm": steps >= model.spec.warmup_steps,
                    "targets": {"value": {"p10": p10, "p50": p50, "p90": p90}},
                    "score": {"missing": series.missing} | ({"earlier": earlier} if earlier else {}),
                }
            )
    return forecasts, records


def judged(topics, models, takes, spoil=None, written=None):
    """The report on all series answered by these takes.

    Args:
        topics: the fixture.
        models: the fixture.
        takes: one for each model, or a function of the series that gives them.
        spoil: is given the forecasts of the first series, to change them.
        written: is given the first series and its records (see `play`), and gives those that are in the changelog, in
            order [the last one].
    """
    forecasts, states = Outgoing(NAMES.forecasts), Outgoing(NAMES.changelog)
    for nth, one in enumerate(topics.readings.series.values()):
        own = [Take(0, OLD, 0), *(takes(one) if callable(takes) else takes)]
        answers, records = play(one, own, models)
        sources = [f"{NAMES.readings}-{one.partition}-{offset}" for offset in one.offsets]
        rows = list(zip(sources, answers, strict=True))
        if spoil and not nth:
            spoil(rows)
        for source, answer in rows:
            headers = [("source", source.encode())]
            forecasts.append(one.key, json.dumps(answer).encode(), partition=one.partition, headers=headers)
        for record in written(one, records) if written and not nth else [last_of(one, records)]:
            states.append(one.key, record, partition=one.partition)
    topics.broker.producer().produce(forecasts)
    topics.broker.producer().produce(states)
    return verify(topics.broker, models, NAMES, rtol=0, atol=0)


def last_of(one, records):
    return records[max(nth for nth, _ in records), len(one.ts) - 1]


def first_of(topics):
    return next(iter(topics.readings.series.values()))


def handed(report):
    return {kind: n for kind, n in report.hand_overs.items() if n}


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


def answered_since(topics, at):
    return sum(len(one.ts) - at for one in topics.readings.series.values())


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


def test_an_old_model_that_goes_on_after_a_hand_over_to_another_layout_is_found(topics, models):
    """As a worker would that was not told: its own chain goes on."""
    one = first_of(topics)
    going_on, _ = play(one, [Take(0, OLD, 0), carried(10, NEW)], models)

    def spoil(rows):
        for i in range(AT + 4, AT + 9):
            rows[i] = rows[i][0], going_on[i]

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
