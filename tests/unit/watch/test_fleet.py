"""All series at a glance: the worst first, nothing hidden, and quick with many."""

import time

import pytest

from tests.support.watching import HORIZON, HOUR, START, fill, forecast, reading, surprised
from tidecast.service.watch import fleet as fleet_module
from tidecast.service.watch.fleet import FINE, MAX_ROWS, WAITING, Fleet
from tidecast.service.watch.store import Store

STEPS = 60


@pytest.fixture
def store():
    return Store(max_series=20_000, points=100, max_bytes=256 << 20)


@pytest.fixture
def plant(store):
    """Twelve machines of three sites: one drifts up, one is silent, one has not warmed up."""
    for n in range(12):
        name = f"site{n % 3}/machine-{n:02}"
        surprised(store, name, range(STEPS), skip=range(40, STEPS) if n == 5 else (), warm=999 if n == 7 else 10)
    surprised(store, "site1/pump", range(STEPS), lambda i: 6.0 if i >= 44 else 0.0)
    return Fleet(store)


def test_what_needs_attention_comes_first_with_its_reason(plant):
    rows = plant.rows("", "")
    assert [(row["series"], row["kind"]) for row in rows["rows"][:3]] == [
        ("site1/pump", "higher"), ("site2/machine-05", "silent"), ("site0/machine-00", "fine"),
    ]  # fmt: skip
    assert rows["attention"] == 2
    assert rows["kinds"] == {"higher": 1, "silent": 1}
    assert (rows["known"], rows["fine"], rows["waiting"]) == (13, 10, 1)
    pump, silent = rows["rows"][:2]
    assert (pump["target"], pump["ahead"], pump["times_out"], pump["of"]) == ("temp", 1, 16, 16)
    assert pump["values"][-1] == pytest.approx(reading(STEPS - 1).value("temp") + 6, rel=1e-5)
    assert (silent["since"], silent["times_out"]) == (START + 39 * HOUR, 20)


def test_groups_say_how_many_of_theirs_need_attention_the_worst_first(plant):
    assert plant.rows("", "")["groups"] == [
        {"group": "site1/", "series": 5, "attention": 1},
        {"group": "site2/", "series": 4, "attention": 1},
        {"group": "site0/", "series": 4, "attention": 0},
    ]
    inside = plant.rows("", "site2/")
    assert (inside["known"], inside["found"], inside["attention"], inside["groups"]) == (13, 4, 1, [])


def test_words_are_found_in_any_order_and_case(plant):
    assert [row["series"] for row in plant.rows("05 SITE2", "")["rows"]] == ["site2/machine-05"]
    assert plant.rows("05 site1", "")["found"] == 0


def test_each_series_has_a_cell_and_names_are_sent_once(plant):
    first = plant.cells("", "", -1)
    assert len(first["names"]) == len(first["states"]) == 13
    states = dict(zip(first["names"], first["states"], strict=True))
    assert states["site0/machine-00"] == FINE
    assert states["site1/machine-07"] == WAITING
    assert states["site1/pump"] > FINE
    again = plant.cells("", "", first["version"])
    assert "names" not in again
    assert again["states"] == first["states"]


def test_a_new_series_sends_the_names_again(plant, store, monkeypatch):
    version = plant.cells("", "", -1)["version"]
    fill(store, "another", range(3))
    monkeypatch.setattr(fleet_module, "AGE_S", 0.0)
    assert "another" in plant.cells("", "", version)["names"]


def test_a_series_alone_is_never_behind_the_others(store):
    surprised(store, "a", range(40))
    assert Fleet(store).rows("", "")["attention"] == 0


def test_a_clock_a_year_ahead_makes_no_other_series_silent(store):
    for n in range(5):
        surprised(store, f"s{n}", range(40))
    store.add_reading("s0", reading(40 + 365 * 24), 0.0)
    store.add_forecast("s0", forecast(40 + 365 * 24), 0.0)
    assert [row["kind"] for row in Fleet(store).rows("", "")["rows"]] == ["fine"] * 5


def test_a_series_that_starts_again_is_judged_afresh(store):
    surprised(store, "a", range(STEPS), lambda i: 9.0 if i >= 30 else 0.0)
    assert Fleet(store).rows("", "")["attention"] == 1
    store.forget("a")
    surprised(store, "a", range(20))
    assert Fleet(store).rows("", "")["attention"] == 0


def test_readings_that_are_ahead_of_their_forecasts_are_judged_all_the_same(store):
    # The page reads two topics: the readings of a while may come before the forecasts of it.
    for i in range(STEPS):
        store.add_reading("a", reading(i, temp=1_000.0 + i), 0.0)
    for i in range(STEPS):
        surprises = {f"surprise_temp_{lead}": 50.0 for lead in (1, HORIZON) if i >= lead}
        store.add_forecast("a", forecast(i, score=surprises), 0.0)
    assert Fleet(store).rows("", "")["kinds"] == {"higher": 1}


def test_an_alarm_of_the_model_is_a_finding(store):
    surprised(store, "a", range(STEPS))
    for i in range(STEPS, STEPS + 3):
        score = {"surprise_temp_1": 0.1, "alarm_temp": 1.0} if i == STEPS else {"surprise_temp_1": 0.1}
        store.add_reading("a", reading(i), 0.0)
        store.add_forecast("a", forecast(i, score=score), 0.0)
    row = Fleet(store).rows("", "")["rows"][0]
    assert (row["kind"], row["since"]) == ("unusual", START + STEPS * HOUR)


def test_missing_readings_do_not_mix_up_which_forecast_was_for_which(store):
    gaps = [i for i in range(STEPS) if i % 5 == 3]
    surprised(store, "a", range(STEPS), lambda i: 6.0 if i >= 30 else 0.0, skip=gaps)
    assert Fleet(store).rows("", "")["rows"][0]["kind"] == "higher"


def test_twenty_thousand_series_take_a_small_part_of_a_second(store):
    one = [(reading(i), forecast(i, warm=True)) for i in range(2)]
    for n in range(20_000):
        for measured, made in one:
            store.add_reading(f"site{n % 50}/machine-{n:05}", measured, 0.0)
            store.add_forecast(f"site{n % 50}/machine-{n:05}", made, 0.0)
    fleet = Fleet(store)
    began = time.process_time()
    answer = fleet.rows("", "")
    assert time.process_time() - began < 2.0  # 0.1 on a quiet machine
    assert (answer["found"], len(answer["rows"]), len(answer["groups"])) == (20_000, MAX_ROWS, 40)
