"""Records of any shape in the pipeline: each of their readings is answered as one of tidecast's own format is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.models import START_MS, STEP_MS, counting_model
from tidecast.service.broker.port import Batch
from tidecast.service.input.config import parse_input
from tidecast.service.model.session import Model
from tidecast.service.pipeline.pipeline import BatchResult, Pipeline, Policy

INPUT = parse_input(
    {
        "explode": "readings",
        "key": "{/site}/{id}",
        "time": "at",
        "time_unit": "s",
        "fields": {"value": "v", "wind": "w"},
    }
)
Item = tuple[str, int, object]  # id, step, value
_models: list[Model] = []


@pytest.fixture(scope="module", autouse=True)
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    _models.append(Model.load(counting_model(tmp_path_factory.mktemp("model"))))
    return _models[-1]


def pipeline(mapped: bool = True, **policy: Any) -> Pipeline:
    table = INPUT if mapped else None
    return Pipeline(
        _models[-1],
        Policy(max_future_ms=0, **policy),
        output_topic="forecasts",
        dead_letter_topic="dead-letters",
        input_config=table,
    )


def record(*items: Item) -> bytes:
    readings = [{"id": name, "at": (START_MS + step * STEP_MS) // 1_000, "v": v, "w": 2} for name, step, v in items]
    return json.dumps({"site": "north", "readings": readings}).encode()


def batch(values: Sequence[bytes | None], *, first: int = 0, partitions: Sequence[int] | None = None) -> Batch:
    n = len(values)
    offsets = list(range(first, first + n))
    return Batch("plant", [*(partitions or [0] * n)], offsets, [0] * n, [b"raw"] * n, [*values], [()] * n)


def texts(result: BatchResult) -> list[tuple[bytes | None, object]]:
    """Key and forecast, without the place of its reading."""
    return [
        (key, {name: part for name, part in json.loads(value or b"").items() if name != "source"})
        for key, value in zip(result.forecasts.keys, result.forecasts.values, strict=True)
    ]


def messages(result: BatchResult) -> list[str]:
    return [dict(headers)["tidecast.message"].decode() for headers in result.dead_letters.headers]


items = st.tuples(st.sampled_from("ab"), st.integers(0, 6), st.one_of(st.integers(0, 9), st.none(), st.just("on")))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(items, max_size=4), max_size=8), st.lists(st.integers(1, 4), max_size=8))
def test_several_readings_of_one_record_are_answered_like_one_record_each(
    records: list[list[Item]], sizes: list[int]
) -> None:
    values = [record(*each) for each in records]
    line, at, results = pipeline(), 0, []
    for size in [*sizes, len(values)]:
        results.append(line.process(batch(values[at : at + size], first=at)))
        at += size
    alone = [(n, item) for n, each in enumerate(records) for item in each]
    plain = pipeline(mapped=False)
    canonical = [
        json.dumps({"ts": START_MS + step * STEP_MS, "value": value, "wind": 2}).encode()
        for _, (_, step, value) in alone
    ]
    one = batch(canonical)
    one.keys = [f"north/{name}".encode() for _, (name, _, _) in alone]
    expected = plain.process(one)

    assert [text for result in results for text in texts(result)] == texts(expected)
    bad = [n for n, (_, _, value) in alone if value == "on"]
    assert sum(result.counts.skipped for result in results) == records.count([])
    letters = [int(dict(headers)["tidecast.offset"]) for result in results for headers in result.dead_letters.headers]
    assert letters == sorted(set(bad))
    for result in results:
        counts, dead = result.counts, sum(result.counts.dead_letters.values())
        assert dead == len(result.dead_letters)
        assert counts.readings == counts.forecasts + counts.duplicates + counts.late + dead
    for key in {*line.store} | {*plain.store}:
        mine, theirs = line.store.find(key), plain.store.find(key)
        assert mine is not None and theirs is not None
        assert line.store.states[mine].tolist() == plain.store.states[theirs].tolist()


def test_a_dead_letter_is_the_record_as_it_came_once_for_all_its_bad_readings() -> None:
    value = record(("a", 0, "on"), ("a", 1, 3), ("b", 0, "off"))
    result = pipeline().process(batch([value], first=7))
    assert (result.dead_letters.keys, result.dead_letters.values) == ([b"raw"], [value])
    assert [text.partition(";")[0] for text in messages(result)] == ["'value' must be a number, got 'on'"]
    assert [key for key, _ in texts(result)] == [b"north/a"]
    assert (result.counts.readings, result.counts.forecasts) == (2, 1)


def test_a_series_whose_readings_lie_in_two_partitions_is_said_and_not_answered_twice() -> None:
    line = pipeline()
    first = line.process(batch([record(("a", 0, 1)), record(("a", 1, 1))], partitions=[0, 3]))
    second = line.process(batch([record(("a", 2, 1)), record(("b", 2, 1))], first=2, partitions=[3, 3]))
    assert [key for key, _ in texts(first) + texts(second)] == [b"north/a", b"north/b"]
    assert first.counts.dead_letters["other_partition"] == second.counts.dead_letters["other_partition"] == 1
    assert "in 0 and, this one, in 3. Let `tidecast route` bring them together" in messages(second)[0]


def test_after_a_restore_only_the_readings_that_a_state_lacks_are_applied() -> None:
    values = [record(("a", 0, 1), ("b", 0, 1)), record(("a", 1, 5), ("b", 1, 5)), record(("a", 2, 7), ("b", 2, 7))]
    whole = pipeline()
    expected = texts(whole.process(batch(values)))[4:]
    restored = pipeline()
    restored.process(batch(values[:2]))  # the state of b is newer than that of a
    older = pipeline()
    older.process(batch(values[:1]))
    slot, old = restored.store.find(b"north/a"), older.store.find(b"north/a")
    for column in ("states", "last_ts", "steps", "offsets"):
        getattr(restored.store, column)[slot] = getattr(older.store, column)[old]
    restored.replay(0, 2)
    again = restored.process(batch(values[1:], first=1))
    assert texts(again) == expected
    assert again.counts.replayed == 2
