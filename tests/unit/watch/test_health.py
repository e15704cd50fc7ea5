"""What the live page takes for a series that needs attention, and what it does not."""

import math
from pathlib import Path

import numpy as np
import pytest

from tidecast.service.watch.fleet import SILENT_STEPS
from tidecast.service.watch.health import (
    ERRATIC_SIZE,
    LARGEST,
    MEMORY,
    MOVED,
    MOVED_NEXT,
    SPIKE_SIZE,
    STUCK_TIMES,
    WINDOW,
    LeadHealth,
    SeriesHealth,
    TargetHealth,
)

HOUR = 3_600_000
HALF_WIDTH = 1.645  # of the 90 % interval, in deviations


def target(far=24):
    return TargetHealth(LeadHealth(1), LeadHealth(far) if far else None)


def judge(one, errors, start=0):
    """Errors in deviations, the same at both leads; the kind after each."""
    kinds = []
    for t, error in enumerate(errors, start):
        side = 1 if error > 0 else -1
        one.judge(t * HOUR, HOUR, abs(error) / HALF_WIDTH, abs(error) / HALF_WIDTH, (side, side))
        kinds.append(one.kind)
    return kinds


def usual(count, seed=1):
    return np.random.default_rng(seed).normal(size=count).tolist()


def test_a_healthy_series_of_a_year_is_left_alone():
    assert set(judge(target(), usual(8_760))) == {""}


@pytest.mark.parametrize(("sign", "kind"), [(1, "higher"), (-1, "lower")])
@pytest.mark.parametrize("far", [24, None])
def test_a_level_that_moves_is_found_within_a_day_with_its_direction_and_its_beginning(sign, kind, far):
    one = target(far)
    judge(one, usual(100))
    kinds = judge(one, [sign * 4 + error for error in usual(24, seed=2)], start=100)
    assert kinds[-1] == kind
    found = one.finding("temp")
    assert (found.kind, found.target, found.of) == (kind, "temp", WINDOW)
    assert found.times == WINDOW
    assert 95 * HOUR <= found.since <= 105 * HOUR
    assert found.severity > 0.7


def test_a_finding_ends_once_the_series_is_as_forecast_again():
    one = target()
    judge(one, [*usual(100), *[4.0] * 24])
    assert one.kind == "higher"
    kinds = judge(one, usual(60, seed=3), start=124)
    assert kinds[-1] == ""
    assert one.finding("temp") is None
    assert kinds.index("") < 4 * MEMORY


def test_noise_that_grows_is_found_as_that():
    one = target()
    judge(one, usual(100))
    kinds = judge(one, (4 * np.array(usual(40, seed=4))).tolist(), start=100)
    assert "erratic" in kinds


def test_one_far_reading_is_a_spike_for_a_while():
    one = target()
    judge(one, usual(100))
    assert judge(one, [HALF_WIDTH * 6], start=100) == ["spike"]
    assert judge(one, usual(WINDOW + 1, seed=5), start=101)[-1] == ""


def test_one_reading_however_far_is_no_trend():
    one = target()
    judge(one, [*usual(100), 1e12])
    assert abs(one.near.signed) <= 1 + LARGEST / MEMORY
    assert one.kind == "spike"


def test_before_some_readings_are_judged_nothing_is_said():
    assert set(judge(target(), [100.0] * (WINDOW - 1))) == {""}


def test_what_the_model_does_not_score_says_nothing():
    one = target()
    for t in range(50):
        one.judge(t * HOUR, HOUR, math.nan, math.nan, (1, 1))
    assert one.near.judged == 0
    assert one.finding("temp") is None


def test_a_sensor_that_repeats_its_value_is_stuck():
    one = target()
    for t in range(40):
        one.repeat(float(t), t * HOUR)
    for t in range(40, 40 + STUCK_TIMES):
        assert one.finding("temp") is None
        one.repeat(7.0, t * HOUR)
    found = one.finding("temp")
    assert (found.kind, found.since, found.times) == ("stuck", 40 * HOUR, STUCK_TIMES)
    one.repeat(8.0, 99 * HOUR)
    assert one.finding("temp") is None


def test_a_rain_gauge_that_is_often_zero_for_long_is_not_stuck():
    one = target()
    for t in range(400):
        one.repeat(0.0 if t % 41 < 40 else 1.0, t * HOUR)
        assert one.finding("rain") is None or t < 81


def test_a_value_that_never_changed_is_a_constant_and_not_stuck():
    one = target()
    for t in range(500):
        one.repeat(1.0, t * HOUR)
    assert one.finding("mode") is None


def test_of_several_targets_the_most_severe_one_is_said():
    health = SeriesHealth({"a": target(), "b": target()})
    judge(health.targets["a"], [*usual(100), *[3.0] * 30])
    judge(health.targets["b"], [*usual(100), *[9.0] * 30])
    assert health.finding().target == "b"


def test_an_alarm_of_the_model_s_own_score_is_shown_for_a_while():
    one = target()
    judge(one, usual(100))
    one.alarm(100 * HOUR)
    assert judge(one, usual(1, seed=6), start=100) == ["unusual"]
    assert one.finding("temp").since == 100 * HOUR
    assert judge(one, usual(WINDOW + 1, seed=6), start=101)[-1] == ""


def test_the_limits_on_the_page_of_the_docs_are_those_of_the_code():
    page = (Path(__file__).parents[3] / "docs" / "live-page.md").read_text("utf-8")
    for words in (
        f"running mean over {MEMORY} readings is beyond {MOVED:g} at the longest",
        f"or beyond {ERRATIC_SIZE:g} at the shortest",
        f"of the last {WINDOW}, had a surprise of {SPIKE_SIZE:g} or more",
        f"the same value {STUCK_TIMES} times in a row",
        f"more than {SILENT_STEPS} of its steps behind",
        f"A larger surprise than {LARGEST:g} counts as {LARGEST:g}",
        f"the first limit is {MOVED_NEXT:g} there",
    ):
        assert words in page
