"""What the live page remembers and sends: bounded, in order, and right whatever comes in on the topics."""

import math

import msgspec
import pytest

from tests.support.watching import HORIZON, HOUR, START, fill, forecast, forecast_value, level, reading
from tidecast.service.watch.messages import answered_reading, decode_forecast, decode_measurement, series_name
from tidecast.service.watch.store import Store
from tidecast.service.watch.stream_stats import StreamStats
from tidecast.service.watch.updates import Choice, Subscription, full_content, quality


@pytest.fixture
def store():
    return Store(max_series=100, points=50, max_bytes=10 << 20)


def drawn(store, name="a", **choice):
    return full_content(store.get(name), Choice(name, **choice))


def test_a_viewer_sees_readings_and_the_forecast_that_was_made_so_many_steps_before(store):
    fill(store, "a", range(20))
    shown = drawn(store, ahead=3)
    assert shown["readings"][0] == [START + i * HOUR for i in range(20)]
    assert shown["readings"][1] == pytest.approx([level(i) for i in range(20)], rel=1e-6)
    due, low, middle, high, _, made = shown["past"]
    assert due == [at + 3 * HOUR for at in made]
    assert middle[:17] == pytest.approx([level(i) for i in range(3, 20)], rel=1e-6)
    assert all(a < b < c for a, b, c in zip(low, middle, high, strict=True))


def test_the_fan_says_the_time_that_each_step_is_for(store):
    fill(store, "a", range(3))
    fan = drawn(store)["fan"]
    assert fan["made"] == START + 2 * HOUR
    assert fan["ts"] == [START + (3 + k) * HOUR for k in range(HORIZON)]
    assert fan["quantiles"] == ["p5", "p25", "p50", "p75", "p95"]
    assert fan["values"][fan["middle"]][0] == pytest.approx(level(3), rel=1e-6)


def test_of_many_quantiles_the_outermost_the_quartiles_and_the_median_are_drawn():
    names = ["p95", "p2.5", "p50", "p10", "p25", "p75", "p97.5"]
    value = {"ts": START, "step_ms": HOUR, "targets": {"t": {name: [float(name[1:])] for name in names}}}
    shape = decode_forecast(msgspec.json.encode(value))[0].shape
    assert shape.quantiles == ("p2.5", "p25", "p50", "p75", "p97.5")
    assert shape.level == 0.95


def test_a_viewer_is_sent_only_updates_which_add_up_to_the_full_content(store):
    fill(store, "a", range(10))
    subscription = Subscription(store, Choice("a", ahead=2))
    kind, first = subscription.next_event()
    assert kind == "all"
    assert subscription.next_event() is None
    fill(store, "a", range(10, 13))
    kind, more = subscription.next_event()
    assert kind == "more"
    expected = drawn(store, ahead=2)
    assert [a + b for a, b in zip(first["readings"], more["readings"], strict=True)] == expected["readings"]
    assert [a + b for a, b in zip(first["past"], more["past"], strict=True)] == expected["past"]
    assert more["fan"] == expected["fan"]
    assert more["quality"] == expected["quality"]


def test_a_viewer_who_missed_more_than_is_kept_is_sent_everything_again(store):
    fill(store, "a", range(10))
    subscription = Subscription(store, Choice("a"))
    subscription.next_event()
    fill(store, "a", range(10, 100))
    kind, content = subscription.next_event()
    assert kind == "all"
    assert len(content["readings"][0]) == 50


def test_a_series_that_is_not_known_yet_is_shown_once_it_comes(store):
    subscription = Subscription(store, Choice("a"))
    assert subscription.next_event()[1]["known"] is False
    assert subscription.next_event() is None
    fill(store, "a", range(2))
    assert subscription.next_event()[1]["known"] is True


def test_a_tombstone_drops_the_series_and_its_viewer_is_updated(store):
    fill(store, "a", range(2))
    subscription = Subscription(store, Choice("a"))
    subscription.next_event()
    store.forget("a")
    assert subscription.next_event()[1]["known"] is False
    assert (len(store), store.bytes) == (0, 0)


def test_readings_that_are_late_or_come_twice_are_not_drawn(store):
    assert store.add_reading("a", reading(5), 0.0)
    assert not store.add_reading("a", reading(5), 0.0)
    assert not store.add_reading("a", reading(4), 0.0)
    assert len(drawn(store)["readings"][0]) == 1


def test_forecasts_that_are_repeated_are_drawn_once(store):
    fill(store, "a", range(5))
    for i in range(5):
        assert not store.add_forecast("a", forecast(i), 0.0)
    assert len(drawn(store)["past"][0]) == 5


def test_a_series_that_restarts_in_the_past_is_drawn_again(store):
    fill(store, "a", range(100, 105))
    subscription = Subscription(store, Choice("a"))
    subscription.next_event()
    store.add_forecast("a", forecast(3), 0.0)
    store.add_reading("a", reading(4), 0.0)
    kind, content = subscription.next_event()
    assert kind == "all"
    assert content["readings"][0] == [START + 4 * HOUR]


def test_the_memory_stays_within_its_limit_with_many_series():
    store = Store(max_series=20_000, points=500, max_bytes=4 << 20)
    made = [(reading(i), forecast(i)) for i in range(12)]
    for r, f in made:
        for n in range(1_000):
            store.add_reading(f"s{n}", r, 0.0)
            store.add_forecast(f"s{n}", f, 0.0)
            assert store.bytes <= 4 << 20
    assert len(store) == 1_000
    assert all(store.get(f"s{n}").forecasts for n in range(1_000))
    kept = [store.get(f"s{n}") for n in range(1_000)]
    assert store.bytes == sum(each.bytes for one in kept for each in (*one.readings, *one.forecasts))


def test_beyond_the_limit_the_least_recently_updated_series_is_evicted():
    store = Store(max_series=3, points=5, max_bytes=1 << 20)
    for i, name in enumerate(["a", "b", "c", "a", "d", "a", "e"]):
        store.add_reading(name, reading(i), 0.0)
    assert store.search("", 10)[1] == ["a", "d", "e"]


def test_the_search_finds_what_begins_with_the_text_before_what_holds_it(store):
    for name in ("pump-7", "Valve/PUMP", "pump-10", "<img>", "häfen"):
        fill(store, name, range(1))
    assert store.search("pump", 10) == (3, ["pump-10", "pump-7", "Valve/PUMP"])
    assert store.search("PUMP", 2) == (3, ["pump-10", "pump-7"])
    assert store.search("HÄ", 10) == (1, ["häfen"])
    assert store.search("nothing", 10) == (0, [])
    assert store.search("", 2)[0] == 5


def test_skill_and_coverage_come_from_the_scores_nearest_to_the_chosen_steps_ahead():
    def score(lead, error, naive, inside):
        return {f"absolute_error_temp_{lead}": error, f"naive_error_temp_{lead}": naive, f"inside_temp_{lead}": inside}

    made = [forecast(i, score=score(1, 1.0, 4.0, 1.0) | score(12, 3.0, 4.0, float(i % 2))) for i in range(10)]
    made.append(forecast(10, score={"absolute_error_temp_1": None}))
    made.append(forecast(11, score=score(1, 1.0, 4.0, 1.0) | score(12, 3.0, 4.0, 1.0)))
    near, far = quality(made, "temp", 2), quality(made, "temp", 11)
    assert (near["ahead"], near["count"], near["skill"], near["coverage"]) == (1, 11, 0.75, 1.0)
    assert (far["ahead"], far["count"], far["skill"]) == (12, 11, 0.25)
    assert far["coverage"] == pytest.approx(6 / 11)
    assert quality(made, "another", 1) is None


def test_an_irregular_series_is_matched_reading_by_reading(store):
    for i, ts in enumerate([0, 5, 6, 30, 31]):
        store.add_reading(
            "a", decode_measurement(msgspec.json.encode({"ts": START + ts * 1000, "temp": float(i)})), 0.0
        )
        value = msgspec.json.decode(forecast_value(0, step_ms=0, horizon=3))
        store.add_forecast("a", decode_forecast(msgspec.json.encode({**value, "ts": START + ts * 1000}))[0], 0.0)
    shown = drawn(store, ahead=2)
    assert shown["past"][0] == [START + ts * 1000 for ts in (6, 30, 31)]
    assert shown["fan"]["guessed"] is True


def test_another_target_of_the_same_model_is_drawn_when_chosen(store):
    for i in range(3):
        store.add_reading("a", reading(i, temp=level(i), wind=1.5), 0.0)
        store.add_forecast("a", forecast(i, targets=("temp", "wind")), 0.0)
    assert drawn(store)["target"] == "temp"
    wind = drawn(store, target="wind")
    assert (wind["targets"], wind["readings"][1]) == (["temp", "wind"], [1.5] * 3)
    assert drawn(store, target="nonsense")["target"] == "temp"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b"\xff\xfe",
        b'{"ts": "soon"}',
        b'{"ts": 5e99}',
        b'{"value": 1}',
        b'{"ts": {}}',
        b"[" * 9999,
    ],
)
def test_a_record_that_is_not_a_reading_is_ignored(value):
    assert decode_measurement(value) is None


def test_of_a_reading_only_numbers_are_kept():
    value = {"ts": "2023-11-14T22:00:00Z", "a": 1, "b": None, "c": "x", "d": True, "e": [1], "f": 2.5}
    found = decode_measurement(msgspec.json.encode(value))
    assert (found.ts, found.names) == (1_699_999_200_000, ("a", "b", "f"))
    assert found.value("a") == 1
    assert math.isnan(found.value("b"))
    assert math.isnan(found.value("c"))


@pytest.mark.parametrize(
    "change",
    [
        {"targets": {}},
        {"targets": {"t": {}}},
        {"targets": {"t": {"p50": []}}},
        {"targets": {"t": {"median": [1]}}},
        {"targets": {"t": {"p50": ["x"]}}},
        {"targets": {"t": {"p150": [1]}}},
        {"targets": {"t": {"p10": [1], "p50": [1, 2]}}},
        {"targets": {"t": {"p50": [1]}, "u": {"p10": [1]}}},
        {"targets": {"t": {"p50": [1.0] * 30_000}}},
        {"ts": 10**30},
        {"step_ms": -1},
        {"targets": 5},
    ],
)
def test_a_record_that_is_not_a_forecast_is_ignored(change):
    value = {"ts": START, "step_ms": HOUR, "targets": {"t": {"p50": [1.0]}}}
    assert decode_forecast(msgspec.json.encode(value)) is not None
    text = repr({**value, **change}).replace("'", '"')
    assert decode_forecast(text.encode()) is None


def test_a_record_whose_key_is_not_a_series_name_is_ignored():
    assert [series_name(key) for key in (b"a", "ü".encode(), None, b"", b"\xff", b"x" * 2000)] == ["a", "ü", None] + [
        None
    ] * 3


def test_readings_without_a_forecast_count_as_waiting():
    stats = StreamStats()
    for offset in range(10):
        stats.reading(0, offset, 1_000 + offset, 1.0, awaited=offset != 9)
    stats.forecast((0, 5), 1.0)
    shown = stats.snapshot(2.0, 5_000)
    assert (shown["waiting"], shown["waiting_s"]) == (3, pytest.approx(3.994))
    stats.forecast((0, 8), 2.0)
    assert stats.snapshot(2.0, 5_000)["waiting"] == 0
    stats.reading(0, 8, 0, 2.0, awaited=True)  # the forecast came in first, over the other connection
    assert stats.snapshot(2.0, 5_000)["waiting"] == 0


def test_the_rate_is_that_of_the_last_whole_seconds():
    stats = StreamStats()
    for tick in range(100):
        stats.reading(0, tick, 0, tick / 10, awaited=False)
    assert stats.snapshot(10.0, 0)["readings_per_s"] == 10
    assert stats.snapshot(20.0, 0)["readings_per_s"] == 0


def test_the_reading_that_a_forecast_answers_is_read_from_its_source():
    assert answered_reading("my-topic-3-17", "my-topic") == (3, 17)
    assert [answered_reading(s, "my-topic") for s in ("other-3-17", "my-topic-3", "my-topic-x-1", "")] == [None] * 4
