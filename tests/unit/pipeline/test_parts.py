"""What becomes of each part of a reading: joined, repeated, late, or dropped; and of the readings that lack some."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.support.models import START_MS, STEP_MS, CountingReference
from tests.support.streams import model
from tidecast.service.broker.port import Batch
from tidecast.service.errors import UsageError
from tidecast.service.input.config import parse_input
from tidecast.service.pipeline.batch import BatchResult
from tidecast.service.pipeline.pipeline import Pipeline, Policy
from tidecast.service.state.waiting import MAX_GROUPS, Group, Waiting

LONG = {"time": "at", "name": "metric", "value": "reading"}


class Line:
    """A pipeline and what it answers: `send` takes (metric, seconds after the start, value)."""

    def __init__(self, policy: Policy | None = None, **table: Any) -> None:
        policy = policy or Policy()
        self.line = Pipeline(model(), policy, output_topic="f", dead_letter_topic="d", input_config=parse_input(table))
        self.offset = 0

    def send(self, *parts: tuple[str, float, float | None], key: bytes = b"s") -> list[float]:
        """The seconds after the start of each reading that these parts make."""
        values = [
            json.dumps({"metric": name, "at": START_MS + round(at * 1_000), "reading": value}).encode()
            for name, at, value in parts
        ]
        return self.raw(*values, key=key)

    def raw(self, *values: bytes | None, key: bytes = b"s", partition: int = 0) -> list[float]:
        n = len(values)
        offsets = list(range(self.offset, self.offset + n))
        batch = Batch("r", [partition] * n, offsets, [START_MS] * n, [key] * n, [*values], [()] * n)
        self.offset += n
        self.result: BatchResult = self.line.process(batch)
        return [(json.loads(v or b"")["ts"] - START_MS) / 1_000 for v in self.result.forecasts.values]

    @property
    def counts(self) -> Any:
        return self.result.counts

    @property
    def waiting(self) -> list[Group]:
        store = self.line.store
        slot = store.find(b"s")
        return [] if slot is None or slot not in store.waiting else store.waiting[slot].groups


def test_the_long_form_is_joined_without_a_setting_and_the_model_sees_whole_readings() -> None:
    line, want = Line(**LONG), CountingReference()
    assert line.send(("value", 0, 1), ("wind", 0, 2), ("wind", 60, 4)) == [0]
    assert line.send(("value", 60, 3)) == [60]
    want.step((1, 2), START_MS), want.step((3, 4), START_MS + STEP_MS)
    slot = line.line.store.find(b"s")
    assert line.line.store.states[slot].tolist() == want.state
    assert line.counts.parts == {"taken": 1, "repeated": 0, "late": 0, "dropped": 0}
    assert line.counts.missing == {} and line.counts.incomplete == 0


@pytest.mark.parametrize("off", [{"join": False}, {"explode": "all"}])
def test_no_part_waits_where_the_join_is_off_or_a_record_has_all_values_of_its_time(off: dict[str, Any]) -> None:
    line = Line(**LONG, **off)
    part = {"metric": "value", "at": START_MS, "reading": 1}
    value = json.dumps({"all": [part]} if "explode" in off else part).encode()
    assert line.raw(value) == [0]


def test_a_null_is_there_and_a_part_that_never_comes_is_missing_once_a_later_one_is_there() -> None:
    line, want = Line(**LONG), CountingReference()
    assert line.send(("value", 0, None), ("wind", 0, 2)) == [0]
    assert (line.counts.missing["value"], line.counts.incomplete) == (1, 0)
    assert line.send(("value", 60, 1)) == []
    assert line.send(("value", 120, 5)) == [60]
    assert (line.counts.missing["wind"], line.counts.incomplete) == (1, 1)
    want.step((math.nan, 2), START_MS), want.step((1, math.nan), START_MS + STEP_MS)
    assert line.line.store.states[line.line.store.find(b"s")].tolist() == want.state
    assert line.waiting == [Group(START_MS + 120_000, {"value": 5.0})]


def test_a_reading_waits_for_its_deadline_in_the_time_of_its_series_and_no_longer() -> None:
    line = Line(**LONG, join={"deadline": "2min"})
    assert line.send(("value", 0, 1), ("value", 60, 1), ("value", 119, 1)) == []
    assert line.send(("value", 120, 1)) == [0]
    assert line.send(("wind", 60, 1)) == [60]


def test_a_reading_that_is_whole_is_answered_at_once_with_those_before_it() -> None:
    line = Line(**LONG, join={"deadline": "1h"})
    assert line.send(("value", 0, 1), ("wind", 60, 1), ("value", 120, 1), ("value", 180, 1)) == []
    assert line.send(("wind", 120, 1)) == [0, 60, 120]
    assert line.counts.incomplete == 2
    sources = [json.loads(v or b"")["source"] for v in line.result.forecasts.values]
    assert sources == ["r-0-4"] * 3, "the record that closed them stands for them"


def test_times_within_the_tolerance_are_one_and_the_reading_has_that_of_its_first_part() -> None:
    line = Line(**LONG, join={"tolerance": "2s"})
    assert line.send(("value", 10, 1), ("wind", 12, 2)) == [10]
    assert line.send(("value", 72.5, 1), ("wind", 70, 2)) == [], "2.5 s apart: two readings"
    assert line.send(("wind", 71.3, 3)) == [70, 72.5], "it belongs to the nearer one"


def test_a_second_value_in_one_reading_is_a_duplicate_and_the_first_stays() -> None:
    line, want = Line(Policy(dead_letter_duplicate=True), **LONG, join={"deadline": "1h"}), CountingReference()
    assert line.send(("value", 0, 1), ("value", 0, 9)) == []
    assert (line.counts.duplicates, line.counts.readings) == (1, 1)
    assert line.counts.parts == {"taken": 1, "repeated": 1, "late": 0, "dropped": 0}
    (headers,) = line.result.dead_letters.headers
    assert dict(headers)["tidecast.reason"] == b"duplicate"
    assert dict(headers)["tidecast.message"] == b"what this part has at 2023-11-14T22:13:00Z was there already"
    line.send(("wind", 0, 2))
    want.step((1, 2), START_MS)
    assert line.line.store.states[line.line.store.find(b"s")].tolist() == want.state


@pytest.mark.parametrize(("at", "late", "duplicates"), [(0, 0, 1), (1.5, 0, 1), (-1.5, 0, 1), (-60, 1, 0)])
def test_a_part_whose_reading_was_answered_is_late_and_changes_nothing(at: float, late: int, duplicates: int) -> None:
    line = Line(**LONG, join={"tolerance": "2s"})
    line.send(("value", 0, 1), ("wind", 0, 2))
    before = line.line.store.states.copy()
    assert line.send(("wind", at, 3)) == []
    assert (line.counts.late, line.counts.duplicates, line.counts.parts["late"]) == (late, duplicates, 1)
    assert (line.line.store.states == before).all() and line.waiting == []


def test_at_most_so_many_readings_of_a_series_wait_then_the_oldest_is_answered() -> None:
    line = Line(**LONG, join={"deadline": "7d"})
    assert line.send(*(("value", 60 * i, 1) for i in range(MAX_GROUPS))) == []
    assert line.send(("value", 60 * MAX_GROUPS, 1)) == [0]
    assert len(line.waiting) == MAX_GROUPS


def test_parts_that_wait_are_dropped_and_counted_with_their_series() -> None:
    line = Line(Policy(max_series=1), **LONG)
    line.send(("value", 0, 1))
    line.raw(None)
    assert line.counts.parts["dropped"] == 1 and line.waiting == []
    line.send(("value", 0, 1), ("value", 60, 1))
    line.send(("value", 0, 1), key=b"another")
    assert line.counts.parts["dropped"] == 1 and line.counts.resets["evicted"] == 1


def test_one_sensor_far_ahead_does_not_silence_the_others_of_its_series() -> None:
    line = Line(**LONG)
    assert line.send(("value", 0, 1), ("wind", 0, 1), ("wind", 80_000, 1)) == [0]
    assert line.send(("value", 60, 1), ("wind", 60, 1), ("value", 120, 1), ("wind", 120, 1)) == [60, 120]
    assert line.waiting == [Group(START_MS + 80_000_000, {"wind": 1.0})]


def test_a_series_whose_clock_was_ahead_starts_again_although_parts_wait_that_are_ahead_too() -> None:
    line = Line(Policy(late_recovery_readings=2, max_gap_steps=3), **LONG)
    assert line.send(("value", 0, 1), ("wind", 0, 1), ("value", 80_000, 1), ("wind", 80_000, 1)) == [0, 80_000]
    assert line.send(("value", 60, 1), ("wind", 60, 1)) == []
    assert line.send(("value", 80_060, 1)) == [], "it waits, and is no reading that was answered in between"
    assert line.send(("value", 120, 1), ("wind", 120, 1)) == [120], "the second true time: what came of it is a reading"
    assert line.counts.clock_recoveries == 1 and line.counts.duplicates == 1
    assert line.send(("value", 180, 1), ("wind", 180, 1)) == [180]
    assert line.waiting == [Group(START_MS + 80_060_000, {"value": 1.0})]


def test_sparse_records_of_any_format_are_joined_where_the_table_says_so() -> None:
    line = Line(join={})
    assert line.raw(b'{"ts": %d, "value": 1}' % START_MS) == []
    assert line.raw(b'{"ts": %d, "wind": null, "more": 1}' % START_MS) == [0]
    assert line.raw(b'{"ts": %d, "wind": 1, "value": 3}' % (START_MS + STEP_MS)) == [60]


def test_a_part_of_another_partition_is_refused_and_does_not_complete_a_reading() -> None:
    line = Line(key="id", join={})
    part = b'{"id": "s", "ts": %d, "%b": 1}'
    line.raw(part % (START_MS, b"value"))
    assert line.raw(part % (START_MS, b"wind"), partition=1) == []
    assert line.counts.dead_letters["other_partition"] == 1
    assert line.raw(part % (START_MS, b"wind")) == [0]


def test_what_waits_of_features_that_the_model_does_not_have_is_dropped_and_all_of_it_without_a_join() -> None:
    def restored(**table: Any) -> Line:
        line = Line(**table)
        store = line.line.store
        slot = store.add(b"s", 0)
        store.waiting[slot] = Waiting(-1, [Group(START_MS, {"gone": 1.0}), Group(START_MS + 60_000, {"wind": 2.0})])
        return line

    line = restored(**LONG)
    assert line.line.adopt(1) == 0
    assert line.line.adopt(0) == 1
    assert line.waiting == [Group(START_MS + 60_000, {"wind": 2.0})]
    assert line.send(("value", 60, 1)) == [60]
    assert line.counts.parts["dropped"] == 1
    line = restored()
    assert line.line.adopt(0) == 2 and line.waiting == []


@pytest.mark.parametrize(
    ("join", "says"),
    [
        ({"tolerance": "soon"}, "join.tolerance: a duration is a number and a unit, got 'soon'"),
        ({"deadline": "8d"}, "join.deadline is too long, got '8d'"),
        ({"limit": "1s"}, "unknown field `limit`"),
    ],
)
def test_a_join_that_cannot_be_read_is_refused_with_the_name_of_the_setting(join: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_input({"join": join})
