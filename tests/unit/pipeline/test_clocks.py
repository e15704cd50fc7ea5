"""One reading far ahead of its time silences no series for long, and old readings that come again start none again."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.models import START_MS, STEP_MS, counting_model
from tests.support.streams import Sent, cut, model, poisoned
from tidecast.service.model.session import Model
from tidecast.service.pipeline.batch import BatchCounts
from tidecast.service.pipeline.pipeline import Pipeline, Policy

DAY = 1_439  # steps: 24 h less a minute
LIMIT = 25  # steps: the gap limit of the default policy


def sent(step: float, at: float, key: bytes = b"a") -> Sent:
    """A reading of this step, whose record has the time of the step `at`."""
    ts = START_MS + round(step * STEP_MS)
    value = json.dumps({"ts": ts, "value": 1, "wind": 2}).encode()
    return Sent(key, value, ts, (1.0, 2.0), START_MS + round(at * STEP_MS))


def true(first: int, end: int) -> list[Sent]:
    return [sent(step, step) for step in range(first, end)]


def run(
    stream: list[Sent], *, size: int = 1_000, using: Model | None = None, now: int = 0, **policy: object
) -> tuple[list[int], BatchCounts]:
    """The numbers of the records that are answered, and the sums of some counts. `now`: the step of the wall clock."""
    line = Pipeline(using or model(), Policy(**policy), output_topic="f", dead_letter_topic="d",
                    wall=lambda: (START_MS + now * STEP_MS) / 1_000)  # fmt: skip
    total, answered = BatchCounts(), []
    for batch in cut(stream, [size] * len(stream)):
        result = line.process(batch)
        answered += result.positions.offsets.tolist()
        total.late += result.counts.late
        total.recovered += result.counts.recovered
        total.clock_recoveries += result.counts.clock_recoveries
        total.resets["clock"] += result.counts.resets["clock"]
    return answered, total


@pytest.mark.parametrize("size", [1, 3, 1_000])
def test_one_reading_a_day_ahead_silences_its_series_for_four_readings_only(size: int) -> None:
    other = [sent(step, step, b"other") for step in range(80)]
    stream = [*true(0, 10), sent(10 + DAY, 10), *other, *true(11, 71)]
    answered, counts = run(stream, size=size)
    assert answered == [i for i in range(len(stream)) if not 91 <= i < 95]
    assert (counts.late, counts.recovered, counts.clock_recoveries, counts.resets["clock"]) == (4, [b"a"], 1, 1)


@pytest.mark.parametrize(("needed", "silent"), [(1, 0), (2, 1), (0, 60)])
def test_the_setting_says_after_how_many_readings(needed: int, silent: int) -> None:
    answered, _ = run([sent(DAY, 0), *true(1, 61)], late_recovery_readings=needed)
    assert len(answered) == 61 - silent


def test_a_device_whose_clock_was_ahead_for_long_is_answered_once_it_is_put_right() -> None:
    answered, counts = run([*[sent(step + 600, step) for step in range(100)], *true(100, 160)])
    assert answered == [*range(100), *range(104, 160)]
    assert counts.clock_recoveries == 1


def test_a_series_of_a_model_without_a_step_recovers_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    irregular = Model.load(counting_model(tmp_path_factory.mktemp("model"), step_ms=0))
    answered, _ = run([*true(0, 3), sent(DAY, 3), *true(4, 24)], using=irregular)
    assert answered == [*range(4), *range(8, 24)]


@pytest.mark.parametrize("size", [1, 1_000])
def test_true_readings_out_of_order_or_sent_twice_end_the_silence_too(size: int) -> None:
    order = [4, 4, 6, 5, 5, 7, 8, 9, 10]
    answered, _ = run([sent(DAY, 3), *[sent(step, step) for step in order]], size=size)
    assert answered == [0, 8, 9], "4, 6, 7 and 8 count; 9 is the fifth"


def test_readings_of_a_second_clock_in_between_are_no_row() -> None:
    """Two devices with one key, one a day ahead: no reading of the other is answered, and none is answered twice."""
    stream = [sent(step + DAY * (step % 2), step) for step in range(1, 60)]
    answered, counts = run(stream)
    assert (answered, counts.clock_recoveries) == (list(range(0, 59, 2)), 0)


def test_readings_late_by_less_than_the_gap_limit_never_start_a_series_again() -> None:
    answered, counts = run([sent(30 + LIMIT, 30), *true(31, 31 + LIMIT)])
    assert (answered, counts.clock_recoveries) == ([0], 0)


OLD = {
    "an hour once more, as a buffer sends it after a reconnect": [sent(step, 200) for step in range(140, 200)],
    "the hole after a reconnect, before which the newest came": [sent(step, 261) for step in range(200, 260)],
    "the hole, in records that have the time of their reading": true(200, 260),
    "all records from the beginning": true(0, 200),
}


@pytest.mark.parametrize("old", OLD)
@pytest.mark.parametrize("newest", [199, 260])
def test_a_backfill_starts_no_series_again_in_the_past(old: str, newest: int) -> None:
    stream = [*true(0, 200), sent(newest, newest), *OLD[old]]
    answered, counts = run(stream)
    assert counts.clock_recoveries == 0
    assert [stream[i].ts for i in answered] == sorted({stream[i].ts for i in answered}), "an old time was forecast"


def test_a_backfill_into_a_series_that_is_ahead_does_not_start_it_again_in_the_past() -> None:
    backfill = [sent(step, 100) for step in range(10, 70)]
    answered, counts = run([*true(90, 100), sent(100 + DAY, 100), *backfill, *true(101, 110)])
    assert answered == [*range(11), *range(75, 80)], "only the readings that are true"
    assert counts.clock_recoveries == 1


@settings(deadline=None, max_examples=50)
@given(poisoned(), st.integers(1, 12), st.sampled_from([0, 24]))
def test_without_a_reading_ahead_of_its_time_no_backfill_starts_a_series_again(
    stream: list[Sent], size: int, max_gap: int
) -> None:
    in_time = [s for s in stream if s.ts <= s.timestamp + STEP_MS]
    last = max((s.timestamp for s in stream), default=0)  # not always that of the last record
    again = [replace(s, timestamp=last) for s in in_time]
    _, counts = run(in_time + again + in_time, size=size, max_gap_steps=max_gap, late_recovery_readings=2)
    assert counts.clock_recoveries == 0


def test_a_record_without_a_timestamp_is_compared_with_the_wall_clock() -> None:
    def undated(step: int) -> Sent:
        return replace(sent(step, 0), timestamp=-1)

    stream = [undated(10 + DAY), *map(undated, range(10, 30)), undated(11 + 2 * DAY)]
    answered, _ = run(stream, now=10, max_future_ms=86_400_000)
    assert answered == [0, *range(5, 21)]
    line = Pipeline(model(), Policy(), output_topic="f", dead_letter_topic="d", wall=lambda: START_MS / 1_000)
    result = line.process(cut([undated(0), undated(2 * DAY)], [])[0])
    assert len(result.forecasts) == 1
    (headers,) = map(dict, result.dead_letters.headers)
    assert headers["tidecast.reason"] == b"time_out_of_range"
    assert b"the record has no timestamp" in headers["tidecast.message"]
