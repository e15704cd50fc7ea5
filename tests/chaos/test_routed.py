"""The judge of what was routed finds each kind of fault; and a short storm over `route` and `serve`."""

import json
from dataclasses import replace
from itertools import islice

import pytest

from tests.chaos.feed import feed
from tests.chaos.readings import Record
from tests.chaos.report import Report
from tests.chaos.routed import RouteStorm, enveloped, judge_routing
from tests.chaos.scenario import Scenario
from tests.support.models import counting_models
from tidecast.service.broker.partitioner import partition_for
from tidecast.service.model.session import Model

PARTITIONS = 4


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return Model.load(counting_models(tmp_path_factory.mktemp("model"), 1)[0]).spec


@pytest.fixture
def routed(spec):
    """Source, what a router makes of it, and its dead letters."""
    source, done, dead, at = [], [], [], [0] * 3
    for _, value, _, partition in islice(enveloped(feed(spec, 10, seed=1), 3), 3_000):
        source.append(Record(partition, at[partition], None, value, {}, 1_000 + at[partition]))
        at[partition] += 1
    for r in source:
        headers = {"tidecast.partition": b"%d" % r.partition, "tidecast.offset": b"%d" % r.offset}
        if b'"sensor"' not in r.value:
            dead.append(replace(r, headers=headers))
            continue
        found = json.loads(r.value)
        key, value = found["sensor"].encode(), json.dumps({"ts": found["at"], **found["fields"]}).encode()
        done.append(Record(partition_for(key, PARTITIONS), len(done), key, value, {}, r.timestamp))
    return source, done, dead


def judged(spec, source, done, dead):
    report = Report()
    judge_routing(source, done, dead, spec, PARTITIONS, report)
    return dict(report.found)


def test_what_is_routed_well_is_found_to_be_so(spec, routed):
    assert judged(spec, *routed) == {}
    assert len(routed[1]) > 2_000 and len(routed[2]) > 10


def test_a_reading_that_is_lost_or_doubled_or_another_is_found(spec, routed):
    source, done, dead = routed
    assert judged(spec, source, done[:7] + done[8:], dead) == {"not routed": 1}
    assert judged(spec, source, [*done, done[7]], dead) == {"routed, and never sent so often": 1}
    other = replace(done[7], value=done[7].value.replace(b'"ts": 1', b'"ts": 2'))
    assert judged(spec, source, [*done[:7], other, *done[8:]], dead) == {
        "not routed": 1,
        "routed, and never sent so often": 1,
    }
    assert "not routed" in judged(spec, source, [*done[:7], replace(done[7], timestamp=1), *done[8:]], dead)


def test_readings_of_a_series_in_another_order_or_partition_are_found(spec, routed):
    source, done, dead = routed
    mine = [at for at, r in enumerate(done) if r.key == done[0].key][:2]
    done[mine[0]], done[mine[1]] = done[mine[1]], done[mine[0]]
    assert judged(spec, source, done, dead) == {"routed out of order": 1}
    done[mine[0]], done[mine[1]] = done[mine[1]], replace(done[mine[0]], partition=PARTITIONS)
    assert judged(spec, source, done, dead) == {"routed to another partition": 1}


def test_dead_letters_that_are_missing_or_doubled_are_found(spec, routed):
    source, done, dead = routed
    assert judged(spec, source, done, dead[1:]) == {"dead letters of the routers missing": 1}
    assert judged(spec, source, done, [*dead, dead[0]]) == {
        "dead letters of the routers doubled, or of no bad record": 1
    }


@pytest.mark.timeout(400)
@pytest.mark.parametrize("client", ["confluent", "kafka-python"])
@pytest.mark.long
def test_kills_and_evictions_of_routers_and_workers_lose_and_double_nothing(tmp_path, client):
    storm = Scenario(client=client, workers=2, routers=2, partitions=4, sources=3, series=50, rate=500.0,
                     pause=(0.5, 2.0), calm=2.0, kills=4, evicts=2, brokers=1)  # fmt: skip
    outcome = RouteStorm(storm, tmp_path, counting_models(tmp_path / "models", 1)).run()
    print((tmp_path / "storm.log").read_text())  # shown where the test fails
    assert outcome.report.ok, f"{outcome.report}\n" + "\n".join(outcome.ended)
    assert outcome.met.total() >= 5
