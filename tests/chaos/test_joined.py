"""The judge of joined readings finds each kind of fault; and a short storm over parts."""

import json
from itertools import islice

import pytest

from tests.chaos.joined import TABLE, JoinedReadings, JoinStorm, parts
from tests.chaos.scenario import Scenario
from tests.chaos.topics import Names
from tests.chaos.verifier import verify
from tests.support.models import counting_models
from tidecast.service.broker.memory.broker import MemoryBroker
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.input.config import read_input
from tidecast.service.model.session import Model
from tidecast.service.pipeline.pipeline import Pipeline, Policy
from tidecast.service.state.codec import Codec
from tidecast.service.state.flush import RollingFlush
from tidecast.service.state.record import read_header, state_bytes, write_record

NAMES, PARTITIONS = Names("readings", "forecasts", "dead", "states"), 4


@pytest.fixture
def judged(tmp_path):
    """The faults of a run in memory; `spoil` is given forecasts and states, as [partition, key, value]."""
    model, table = Model.load(counting_models(tmp_path, 1)[0]), tmp_path / "input.toml"
    table.write_text(TABLE)

    def run(spoil=lambda forecasts, states: None):
        broker = MemoryBroker()
        for name in (NAMES.readings, NAMES.forecasts, NAMES.changelog):
            broker.create_topic(name, PARTITIONS)
        broker.create_topic(NAMES.dead_letters, 1)
        records = OutgoingBatch(NAMES.readings)
        for key, value in islice(parts(model.spec, 20, seed=3), 3_000):
            records.append(key, value)
        broker.producer().produce(records)
        line = Pipeline(model, Policy(), output_topic=NAMES.forecasts, dead_letter_topic=NAMES.dead_letters,
                        input_config=read_input(table))  # fmt: skip
        flush = RollingFlush(line.store, Codec(model.spec), topic=NAMES.changelog, group="g", seconds=1.0,
                             bytes_per_second=1e9, clock=lambda: 0.0)  # fmt: skip
        consumer = broker.consumer()
        consumer.assign(NAMES.readings, dict.fromkeys(range(PARTITIONS), -2))
        forecasts, states, counts = [], [], []
        while len(batch := consumer.poll(0, 200)):
            result = line.process(batch)
            broker.producer().produce(result.dead_letters)
            forecasts += map(list, zip(result.forecasts.partitions, result.forecasts.keys, result.forecasts.values,
                                       strict=True))  # fmt: skip
            counts.append(result.counts)
            for out in flush.due(range(PARTITIONS)):
                states += map(list, zip(out.partitions, out.keys, out.values, strict=True))
        spoil(forecasts, states)
        for topic, rows in ((NAMES.forecasts, forecasts), (NAMES.changelog, states)):
            out = OutgoingBatch(topic)
            for partition, key, value in rows:
                out.append(key, value, partition=partition)
            broker.producer().produce(out)
        report = verify(broker, [model], NAMES, read=JoinedReadings, rtol=0, atol=0)
        return report, counts

    return run


def test_what_is_joined_well_is_found_to_be_so(judged):
    report, counts = judged()
    assert report.ok, report
    assert report.forecasts > 1_000 and report.dead_letters > 10 and report.states == 20
    for kind in ("taken", "repeated", "late"):
        assert sum(c.parts[kind] for c in counts) > 5, f"no part of this storm is {kind}"
    assert sum(c.incomplete for c in counts) > 10


def test_a_forecast_that_is_lost_doubled_or_of_another_reading_is_found(judged):
    def edit(forecasts, states):
        row = next(row for row in forecasts if b"-" in row[2])
        told = json.loads(row[2])
        row[2] = json.dumps(told | {"ts": told["ts"] + 60_000}).encode()

    assert dict(judged(lambda f, s: f.pop(7))[0].found) == {"missing": 1}
    assert dict(judged(lambda f, s: f.append(f[-1]))[0].found) == {"doubled": 1}
    assert dict(judged(edit)[0].found) == {"forecasts of no valid reading": 1, "missing": 1}


def test_a_state_that_lacks_a_waiting_part_or_has_another_is_found(judged):
    def edit(change):
        def spoil(forecasts, states):
            row = next(row for row in reversed(states) if read_header(row[2]).waiting)
            header = read_header(row[2])
            change(header.waiting.groups)
            row[2] = write_record(header, state_bytes(row[2]))

        return spoil

    def other_value(groups):
        name = next(iter(groups[0].values))
        groups[0].values[name] = 101.0

    def other_time(groups):
        groups[-1].ts += 1

    for change in (other_value, other_time):
        assert dict(judged(edit(change))[0].found) == {"states wrong": 1}


def test_a_last_state_that_was_not_written_is_found(judged):
    def spoil(forecasts, states):
        key = states[-1][1]
        last = max(at for at, row in enumerate(states) if row[1] == key)
        del states[last]

    assert dict(judged(spoil)[0].found) == {"states behind": 1}


@pytest.mark.timeout(400)
@pytest.mark.long
def test_kills_and_evictions_lose_no_part_and_take_none_twice(tmp_path):
    storm = Scenario(client="confluent", joins=True, partitions=4, series=50, rate=1_000.0, pause=(0.5, 2.0), calm=2.0,
                     kills=4, evicts=2, brokers=1)  # fmt: skip
    outcome = JoinStorm(storm, tmp_path, counting_models(tmp_path / "models", 1)).run()
    print((tmp_path / "storm.log").read_text())  # shown where the test fails
    assert outcome.report.ok, f"{outcome.report}\n" + "\n".join(outcome.ended)
    assert outcome.met.total() >= 5
    assert outcome.moving >= outcome.met.total() / 3, "most of it hit a group at rest, which proves little"
