"""Each row of the table "what happens", one short test each: records in, process, look at what came out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

import numpy as np
import pytest

from tests.support.models import (
    POISON_FORECAST,
    POISON_STATE,
    QUANTILES,
    START_MS,
    STEP_MS,
    CountingReference,
    counting_model,
)
from tidecast.service.broker.port import Batch, Headers
from tidecast.service.config.settings import Settings
from tidecast.service.input.config import parse_input
from tidecast.service.model.session import Model
from tidecast.service.pipeline.pipeline import BatchResult, Pipeline, Policy

Record = tuple[bytes | None, bytes | None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.load(counting_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def irregular(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.load(counting_model(tmp_path_factory.mktemp("model"), step_ms=0))


def pipeline(model: Model, **policy: object) -> Pipeline:
    return Pipeline(model, Policy(**policy), output_topic="forecasts", dead_letter_topic="dead-letters")


def reading(step: float, value: float | None = 1.0, wind: float | None = 2.0) -> bytes:
    return json.dumps({"ts": START_MS + round(step * STEP_MS), "value": value, "wind": wind}).encode()


def batch(records: Iterable[Record], *, timestamp: int = 0, partition: int = 0, first: int = 0) -> Batch:
    made = Batch("readings")
    for offset, (key, value) in enumerate(records, start=first):
        made.partitions.append(partition)
        made.offsets.append(offset)
        made.timestamps.append(timestamp)
        made.keys.append(key)
        made.values.append(value)
        made.headers.append(())
    return made


def forecasts(result: BatchResult) -> list[tuple[bytes | None, list[list[float]], bool]]:
    """Key, [horizon][quantiles] and warm of every forecast."""
    found = []
    for key, value in zip(result.forecasts.keys, result.forecasts.values, strict=True):
        parsed = json.loads(value or b"")
        target = parsed["targets"]["value"]
        y = [list(column) for column in zip(*(target[f"p{q * 100:g}"] for q in QUANTILES), strict=True)]
        found.append((key, y, parsed["warm"]))
    return found


def answers(result: BatchResult) -> list[list[list[float]]]:
    return [y for _, y, _ in forecasts(result)]


def expected(steps: Iterable[tuple[int, float, float]]) -> list[list[list[float]]]:
    """What one series alone answers to (step, value, wind)."""
    reference = CountingReference()
    return [reference.step((value, wind), START_MS + step * STEP_MS) for step, value, wind in steps]


def reasons(result: BatchResult) -> list[str]:
    return [dict(headers)["tidecast.reason"].decode() for headers in result.dead_letters.headers]


NAN = math.nan


def test_state_is_carried_from_reading_to_reading_and_batch_to_batch(model: Model) -> None:
    line = pipeline(model)
    first = line.process(batch([(b"a", reading(0)), (b"a", reading(1, 3)), (b"a", reading(2, 4))]))
    second = line.process(batch([(b"a", reading(3, 5))], first=3))
    assert answers(first) + answers(second) == expected([(0, 1, 2), (1, 3, 2), (2, 4, 2), (3, 5, 2)])
    assert first.counts.waves == [1, 1, 1]


def test_series_do_not_see_each_other_and_share_waves(model: Model) -> None:
    result = pipeline(model).process(batch((key, reading(i, i)) for i in range(3) for key in (b"a", b"b", b"c")))
    assert result.counts.waves == [3, 3, 3]
    alone = expected([(0, 0, 2), (1, 1, 2), (2, 2, 2)])
    assert answers(result) == [y for y in alone for _ in range(3)]
    assert result.forecasts.keys == [b"a", b"b", b"c"] * 3


def test_a_forecast_goes_to_its_reading_s_partition_and_says_where_it_comes_from(model: Model) -> None:
    made = batch([(b"a", reading(0)), (b"b", b"?"), (b"c", reading(0))], partition=4, first=70)
    trace: Headers = [("traceparent", b"00-1"), ("other", b"x")]
    made.headers[2] = trace
    out = pipeline(model).process(made)
    assert out.forecasts.topic == "forecasts"
    assert out.forecasts.partitions == [4, 4]
    assert out.forecasts.keys == [b"a", b"c"]
    assert [json.loads(value)["source"] for value in out.forecasts.values] == ["readings-4-70", "readings-4-72"]
    assert [list(headers) for headers in out.forecasts.headers] == [[], [trace[0]]]
    assert out.positions.offsets.tolist() == [70, 72]
    assert out.event_times.tolist() == [START_MS, START_MS]
    assert out.scores.shape == (2, 2)


def test_a_dead_letter_keeps_the_record_and_says_why_and_where(model: Model) -> None:
    made = batch([(b"a", b"20.1,3")], timestamp=123, partition=2, first=9)
    made.headers[0] = [("mine", b"\xff")]
    letters = pipeline(model, group="g").process(made).dead_letters
    assert (letters.topic, letters.keys, letters.values) == ("dead-letters", [b"a"], [b"20.1,3"])
    assert (letters.partitions, letters.timestamps) == ([None], [123])
    headers = dict(letters.headers[0])
    assert headers.pop("tidecast.message").startswith(b"the value is not JSON")
    assert headers == {
        "mine": b"\xff",
        "tidecast.reason": b"not_json",
        "tidecast.topic": b"readings",
        "tidecast.partition": b"2",
        "tidecast.offset": b"9",
        "tidecast.group": b"g",
    }


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (b"a", b"?", "not_json"),
        (b"a", b"[]", "wrong_type"),
        (b"a", b"{}", "missing_time"),
        (b"a", b'{"ts": 1}' + b" " * 2**20, "too_large"),
        (b"a", b"\x00\x00\x00\x00\x01{}", "schema_registry_framing"),
        (b"a", reading(0, 1e39), "value_out_of_range"),
        (b"a", b'{"ts": 99999999999999}', "time_out_of_range"),
        (None, reading(0), "missing_key"),
        (None, None, "missing_key"),
        (b"", reading(0), "bad_key"),
        (b"\xff", None, "bad_key"),
        (b"a", reading(0, POISON_STATE), "non_finite_state"),
    ],
)
def test_what_is_no_reading_is_a_dead_letter_and_makes_no_series(
    model: Model, key: bytes | None, value: bytes | None, reason: str
) -> None:
    line = pipeline(model)
    result = line.process(batch([(key, value), (b"other", reading(0))]))
    assert reasons(result) == [reason]
    assert answers(result) == expected([(0, 1, 2)])
    assert {r: n for r, n in result.counts.dead_letters.items() if n} == {reason: 1}
    if reason != "non_finite_state":
        assert list(line.store) == [b"other"]


def test_a_reading_too_far_ahead_of_its_record_is_out_of_range(model: Model) -> None:
    def outcome(policy_ms: int, timestamp: int) -> list[str]:
        made = batch([(b"a", reading(0)), (b"a", reading(2))], timestamp=timestamp)
        return reasons(pipeline(model, max_future_ms=policy_ms).process(made))

    assert outcome(STEP_MS, START_MS) == ["time_out_of_range"]
    assert outcome(2 * STEP_MS, START_MS) == []
    assert outcome(0, 1) == []  # no limit
    assert outcome(STEP_MS, 0) == outcome(STEP_MS, -1) == []  # the record has no time of its own


def test_a_reading_in_the_far_future_does_not_make_all_later_ones_late(model: Model) -> None:
    line = pipeline(model)
    result = line.process(batch([(b"a", reading(0)), (b"a", reading(1e6)), (b"a", reading(1))], timestamp=START_MS))
    assert reasons(result) == ["time_out_of_range"]
    assert answers(result) == expected([(0, 1, 2), (1, 1, 2)])


def test_duplicates_and_late_readings_leave_the_state_alone(model: Model) -> None:
    line = pipeline(model)
    values = [reading(0), reading(2, 5), reading(1, 9), reading(2, 9), reading(0, 9), reading(3, 7)]
    result = line.process(batch((b"a", v) for v in values))
    again = line.process(batch([(b"a", reading(3, 8)), (b"a", reading(2, 8)), (b"a", reading(4))]))
    want = expected([(0, 1, 2), (1, NAN, NAN), (2, 5, 2), (3, 7, 2), (4, 1, 2)])
    assert answers(result) + answers(again) == [want[i] for i in (0, 2, 3, 4)]
    assert (result.counts.late, result.counts.duplicates) == (2, 1)
    assert (again.counts.late, again.counts.duplicates) == (1, 1)
    assert len(result.dead_letters) == len(again.dead_letters) == 0


def test_late_readings_and_duplicates_are_dead_letters_where_that_is_asked_for(model: Model) -> None:
    records = [(b"a", reading(1)), (b"a", reading(0)), (b"a", reading(1))]
    late = pipeline(model, dead_letter_late=True).process(batch(records))
    duplicate = pipeline(model, dead_letter_duplicate=True).process(batch(records))
    assert (reasons(late), reasons(duplicate)) == (["late"], ["duplicate"])
    assert (late.counts.late, late.counts.duplicates) == (1, 1)
    assert late.counts.dead_letters["late"] == 1
    assert b"2023-11-14T22:13:00Z" in dict(late.dead_letters.headers[0])["tidecast.message"]


def test_a_gap_is_filled_with_imputed_steps(model: Model) -> None:
    result = pipeline(model).process(batch([(b"a", reading(0)), (b"b", reading(0)), (b"a", reading(3))]))
    want = expected([(0, 1, 2), (1, NAN, NAN), (2, NAN, NAN), (3, 1, 2)])
    assert answers(result) == [want[0], want[0], want[3]]
    assert result.counts.gaps == {"filled": 1, "restarted": 0}
    assert result.counts.imputed_steps == 2


def test_a_gap_over_the_limit_starts_the_series_again_cold(model: Model) -> None:
    line = pipeline(model, max_gap_steps=2)
    values = [reading(s) for s in (0, 1, 2, 5, 9, 10)]
    result = line.process(batch((b"a", v) for v in values))
    whole = expected([(s, 1, 2) for s in (0, 1, 2)] + [(3, NAN, NAN), (4, NAN, NAN), (5, 1, 2)])
    again = expected([(9, 1, 2), (10, 1, 2)])
    assert answers(result) == [*whole[:3], whole[5], *again]
    assert [warm for _, _, warm in forecasts(result)] == [False, False, True, True, False, False]
    assert result.counts.gaps == {"filled": 1, "restarted": 1}
    assert result.counts.resets["gap"] == 1


def test_imputed_steps_count_towards_warm(model: Model) -> None:
    result = pipeline(model).process(batch([(b"a", reading(0)), (b"a", reading(2))]))
    assert [warm for _, _, warm in forecasts(result)] == [False, True]


def test_a_reading_off_the_grid_is_the_next_step_and_never_two(model: Model) -> None:
    times = [0, 0.3, 1.4, 2.3, 3.79]
    result = pipeline(model).process(batch((b"a", reading(t)) for t in times))
    assert result.counts.imputed_steps == 0
    assert len(result.forecasts) == 5
    off = pipeline(model).process(batch([(b"a", reading(0)), (b"a", reading(1.5))]))
    assert off.counts.imputed_steps == 1


def test_an_irregular_model_has_no_gaps(irregular: Model) -> None:
    result = pipeline(irregular).process(batch([(b"a", reading(0)), (b"a", reading(50)), (b"a", reading(900))]))
    assert answers(result) == expected([(0, 1, 2), (50, 1, 2), (900, 1, 2)])
    assert result.counts.gaps == {"filled": 0, "restarted": 0}


def test_missing_values_reach_the_graph_as_nan(model: Model) -> None:
    values = [reading(0, None), b'{"ts": %d, "wind": NaN}' % (START_MS + STEP_MS)]
    result = pipeline(model).process(batch((b"a", v) for v in values))
    assert answers(result) == expected([(0, NAN, 2), (1, NAN, NAN)])
    assert result.scores[:, 0].tolist() == [1, 3]


@pytest.mark.parametrize("poison", [POISON_STATE, POISON_FORECAST])
def test_a_state_that_goes_non_finite_resets_that_series_alone(model: Model, poison: float) -> None:
    def run(value: float) -> tuple[Pipeline, BatchResult]:
        line = pipeline(model)
        records = [(b"%d" % s, reading(i, value if (i, s) == (1, 2) else s)) for i in range(3) for s in range(5)]
        return line, line.process(batch(records))

    (bad_line, bad), (good_line, good) = run(poison), run(1.0)
    assert reasons(bad) == ["non_finite_state"]
    assert bad.counts.resets["non_finite"] == 1
    others = [v for k, v in zip(good.forecasts.keys, good.forecasts.values, strict=True) if k != b"2"]
    assert [v for k, v in zip(bad.forecasts.keys, bad.forecasts.values, strict=True) if k != b"2"] == others
    for key in (b"0", b"1", b"3", b"4"):
        slot = bad_line.store.find(key), good_line.store.find(key)
        assert bad_line.store.states[slot[0]].tobytes() == good_line.store.states[slot[1]].tobytes()
    assert [(y, warm) for key, y, warm in forecasts(bad) if key == b"2"] == [
        (expected([(0, 2, 2)])[0], False),
        (expected([(2, 2, 2)])[0], False),
    ]


def test_after_a_reset_the_same_reading_is_still_a_duplicate(model: Model) -> None:
    line = pipeline(model)
    line.process(batch([(b"a", reading(0)), (b"a", reading(1, POISON_STATE))]))
    result = line.process(batch([(b"a", reading(1, POISON_STATE)), (b"a", reading(0)), (b"a", reading(2))]))
    assert (result.counts.duplicates, result.counts.late, len(result.dead_letters)) == (1, 1, 0)
    assert answers(result) == expected([(2, 1, 2)])


def test_an_imputed_step_that_is_not_finite_costs_its_reading_and_no_other(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_step = Model.step

    def step(self: Model, x, ts, state):  # type: ignore[no-untyped-def]
        y, next_state, score = model_step(self, x, ts, state)
        next_state[np.isnan(x[:, 0])] = np.inf
        return y, next_state, score

    monkeypatch.setattr(Model, "step", step)
    records = [(b"a", reading(0)), (b"b", reading(0)), (b"a", reading(4)), (b"b", reading(1)), (b"a", reading(5))]
    line = pipeline(model)
    result = line.process(batch(records))
    assert reasons(result) == ["non_finite_state"]
    assert dict(result.dead_letters.headers[0])["tidecast.offset"] == b"2"
    assert result.counts.resets["non_finite"] == 1
    a, b = expected([(0, 1, 2)])[0], expected([(0, 1, 2), (1, 1, 2)])
    assert answers(result) == [a, b[0], b[1], expected([(5, 1, 2)])[0]]


def test_a_tombstone_removes_its_series_between_two_readings(model: Model) -> None:
    line = pipeline(model)
    records = [(b"a", reading(5)), (b"b", reading(5)), (b"a", None), (b"a", reading(1)), (b"b", reading(6))]
    result = line.process(batch(records))
    b = expected([(5, 1, 2), (6, 1, 2)])
    assert answers(result) == [b[0], b[0], expected([(1, 1, 2)])[0], b[1]]
    assert result.counts.tombstones == 1
    assert result.counts.resets["tombstone"] == 1
    gone = line.process(batch([(b"a", None), (b"a", None), (b"never seen", None)]))
    assert (gone.counts.tombstones, gone.counts.resets["tombstone"], gone.counts.readings) == (3, 1, 0)
    assert list(line.store) == [b"b"]


def test_over_max_series_the_least_recently_seen_is_dropped(model: Model) -> None:
    line = pipeline(model, max_series=2)
    line.process(batch([(b"a", reading(0)), (b"b", reading(0)), (b"a", reading(1))]))
    result = line.process(batch([(b"c", reading(0)), (b"a", reading(2)), (b"b", reading(1))]))
    a = expected([(0, 1, 2), (1, 1, 2), (2, 1, 2)])
    assert answers(result) == [expected([(0, 1, 2)])[0], a[2], expected([(1, 1, 2)])[0]]
    assert result.counts.resets["evicted"] == 2
    assert sorted(line.store) == [b"a", b"b"]


def test_one_slot_serves_many_series_one_after_the_other(model: Model) -> None:
    line = pipeline(model, max_series=1)
    result = line.process(batch((key, reading(i)) for i, key in enumerate([b"a", b"a", b"b", b"b", b"a"])))
    assert answers(result) == [
        *expected([(0, 1, 2), (1, 1, 2)]),
        *expected([(2, 1, 2), (3, 1, 2)]),
        *expected([(4, 1, 2)]),
    ]
    assert len(line.store.states) == 1


def test_a_series_idle_past_its_time_starts_again_and_its_slot_is_freed(model: Model) -> None:
    line = pipeline(model, series_ttl_ms=10_000)
    line.process(batch([(b"a", reading(0)), (b"b", reading(0))], timestamp=START_MS))
    kept = line.process(batch([(b"a", reading(1))], timestamp=START_MS + 10_000))
    assert answers(kept) == expected([(0, 1, 2), (1, 1, 2)])[1:]
    result = line.process(batch([(b"a", reading(0))], timestamp=START_MS + 20_001))
    assert answers(result) == expected([(0, 1, 2)])  # late, had it been remembered
    assert list(line.store) == [b"a"]
    assert result.counts.resets["expired"] == 2


def test_a_partition_that_catches_up_does_not_lose_series_to_one_that_is_ahead(model: Model) -> None:
    line = pipeline(model, series_ttl_ms=10_000)
    line.process(batch([(b"old", reading(0))], timestamp=START_MS, partition=0))
    for seconds in range(0, 100_000, 5_000):
        line.process(batch([(b"new", reading(seconds))], timestamp=START_MS + 10**8 + seconds, partition=1))
    result = line.process(batch([(b"old", reading(1))], timestamp=START_MS + 1_000, partition=0))
    assert answers(result) == expected([(0, 1, 2), (1, 1, 2)])[1:]


def test_a_revoked_partition_takes_its_series_along(model: Model) -> None:
    line = pipeline(model)
    line.process(batch([(b"a", reading(0))], partition=0))
    line.process(batch([(b"b", reading(0))], partition=1))
    line.revoke({1})
    assert list(line.store) == [b"a"]
    assert answers(line.process(batch([(b"b", reading(1))], partition=1))) == expected([(1, 1, 2)])


def test_the_store_knows_where_each_series_is(model: Model) -> None:
    line = pipeline(model)
    line.process(batch([(b"a", reading(0)), (b"a", reading(2)), (b"a", reading(1))], partition=3, first=40))
    found = line.store.snapshot(b"a") or {}
    assert (found["partition"], found["offset"], found["steps"]) == (3, 41, 3)
    assert found["ts"] == START_MS + 2 * STEP_MS
    assert found["state"]["count"] == [3.0]


def test_what_holds_no_reading_is_counted_once_also_where_it_is_read_again_in_a_replay(model: Model) -> None:
    table = parse_input({"time": "ts", "name": "metric", "value": "v", "skip_if": {"kind": "alarm"}, "join": False})

    def line() -> Pipeline:
        return Pipeline(model, Policy(), output_topic="f", dead_letter_topic="d", input_config=table)

    def record(step: int, **more: object) -> bytes:
        return json.dumps({"ts": START_MS + step * STEP_MS, "v": 1.0, "metric": "value", **more}).encode()

    values = [record(step, **more) for step in range(3) for more in ({}, {"metric": "x"}, {"kind": "alarm"})]
    records = batch([(b"a", value) for value in values])
    counts = line().process(records).counts
    assert (counts.skipped, counts.unused_values, counts.unused_names) == (6, 3, ["x"])
    again = line()
    again.replay(0, until=4)
    counts = again.process(records).counts
    assert (counts.skipped, counts.unused_values, counts.replayed) == (4, 2, 2)


def test_an_empty_batch_leads_to_nothing(model: Model) -> None:
    result = pipeline(model, series_ttl_ms=1).process(Batch("readings"))
    assert len(result.forecasts) == len(result.dead_letters) == result.counts.readings == 0
    assert result.scores.shape == (0, 2)


def test_time_is_measured_for_each_stage_by_the_timer_that_is_given(model: Model) -> None:
    ticks = iter(range(100))
    line = Pipeline(model, Policy(), output_topic="f", dead_letter_topic="d", timer=lambda: float(next(ticks)))
    assert line.process(batch([(b"a", reading(0))])).counts.stage_seconds == {"decode": 1, "step": 1, "encode": 1}


def test_the_policy_follows_the_settings() -> None:
    settings = Settings(
        max_gap_steps=3, max_series=4, series_ttl_seconds=1.5, max_future_seconds=2.5, late_recovery_readings=6,
        dead_letter_late=True, group="g",
    )  # fmt: skip
    assert Policy.from_settings(settings, state_size=4) == Policy(3, 4, 1500, 2500, 6, dead_letter_late=True, group="g")
