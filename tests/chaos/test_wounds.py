"""What the verifier expects where topics, states or clocks were hurt on purpose; and that it still finds faults."""

from itertools import islice

import pytest

from tests.chaos.around import readings_of_a_jump
from tests.chaos.feed import feed
from tests.chaos.topics import Lost, Names, read_all
from tests.chaos.verifier import Wounds, verify
from tests.support.models import counting_model
from tidecast.service.broker.memory.broker import MemoryBroker
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.model.session import Model
from tidecast.service.pipeline.pipeline import Pipeline, Policy

RECORDS, SERIES, PARTITIONS = 1_500, 20, 4
NAMES = Names("readings", "forecasts", "dead")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Model.load(counting_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def broker():
    made = MemoryBroker()
    for name in (NAMES.readings, NAMES.forecasts):
        made.create_topic(name, PARTITIONS)
    made.create_topic(NAMES.dead_letters, 1)
    return made


def send(broker, records):
    out = OutgoingBatch(NAMES.readings)
    for key, value, *stamp in records:
        out.append(key, value, timestamp=stamp[0] if stamp else None)
    broker.producer().produce(out)


def answer(broker, model, between=lambda nth, pipeline: None):
    """Answer all readings, rightly, 200 at a time; `between` is called before each time."""
    pipeline = Pipeline(model, Policy(), output_topic=NAMES.forecasts, dead_letter_topic=NAMES.dead_letters)
    consumer, nth = broker.consumer(), 0
    consumer.assign(NAMES.readings, dict.fromkeys(range(PARTITIONS), -2))
    while len(batch := consumer.poll(0, 200)):
        between(nth, pipeline)
        nth += 1
        result = pipeline.process(batch)
        broker.producer().produce(result.forecasts)
        broker.producer().produce(result.dead_letters)


def judged(broker, model, **wounds):
    return verify(broker, [model], NAMES, wounds=Wounds(**wounds), rtol=0, atol=0)


def test_answers_that_went_with_a_deleted_topic_are_not_missing_but_later_ones_are(broker, model):
    send(broker, islice(feed(model.spec, SERIES, 3), RECORDS))
    answer(broker, model)
    there = read_all(broker, NAMES.forecasts)
    for name in (NAMES.forecasts, NAMES.dead_letters):
        broker.delete_topic(name)
        broker.create_topic(name, PARTITIONS)
    kept, committed = there[::2], dict.fromkeys(range(PARTITIONS), RECORDS)
    lost = {NAMES.forecasts: Lost(kept, committed), NAMES.dead_letters: Lost([], committed)}
    report = judged(broker, model, lost=lost)
    assert report.ok and report.gone > RECORDS / 3, report
    lost[NAMES.forecasts] = Lost(kept, committed | {0: 10})
    assert judged(broker, model, lost=lost).found["missing"] > 10
    lost[NAMES.forecasts] = Lost([*kept, kept[0]], committed)
    assert judged(broker, model, lost=lost).found["doubled"] == 1


def test_a_series_whose_clock_jumps_is_answered_as_without_faults(broker, model):
    send(broker, islice(readings_of_a_jump(b"jump", model.spec), 100))
    answer(broker, model)
    report = judged(broker, model)
    assert report.ok and report.forecasts > 90, report


def test_a_series_whose_state_was_set_aside_begins_again_once_and_no_other_does(broker, model):
    send(broker, islice(feed(model.spec, SERIES, 3), RECORDS))
    answer(broker, model, lambda nth, pipeline: pipeline.store.discard(b"series-3") if nth == 3 else None)
    report = judged(broker, model, set_aside={b"series-3": 1})
    assert report.ok and report.restarts == 1, report
    assert judged(broker, model).found["wrong"] > 10
    assert judged(broker, model, set_aside={b"series-4": 1}).found["wrong"] > 10
    assert judged(broker, model, set_aside={b"series-3": 2}).found == {"set aside without a restart": 1}
