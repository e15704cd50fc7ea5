"""The Hampel filter finds what a person would, and nothing in what is ordinary."""

import numpy as np
import pytest

from tidecast.service.errors import UsageError
from tidecast.training.data.outliers import hampel_limits, treat


def wave(steps=500, seed=0):
    return 50 + 10 * np.sin(2 * np.pi * np.arange(steps) / 24) + np.random.default_rng(seed).normal(0, 0.5, steps)


def outliers(values):
    return treat(values, "keep")[1]


def test_single_spikes_are_found_and_the_wave_is_left_alone():
    values = wave()
    assert not outliers(values).any()
    values[[100, 101, 300]] = [120, 125, -40]
    assert np.flatnonzero(outliers(values)).tolist() == [100, 101, 300]


def test_missing_values_are_never_outliers_and_do_not_hide_their_neighbours():
    values = wave()
    values[90:110] = np.nan
    values[115] = 200
    assert np.flatnonzero(outliers(values)).tolist() == [115]


def test_a_switch_or_rain_has_no_outliers_although_most_windows_have_no_spread():
    rain = np.zeros(300)
    rain[[50, 51, 120, 200]] = [1.0, 3.0, 0.2, 9.0]
    assert not outliers(rain).any()


def test_a_coarse_sensor_may_go_up_by_one_of_its_units():
    values = np.round(wave() / 5) * 5
    assert not outliers(values).any()


def test_clipping_ends_at_the_limit_masking_leaves_a_hole_keeping_changes_nothing():
    values = wave()
    values[200] = 500
    kept, found = treat(values, "keep")
    clipped, _ = treat(values, "clip")
    masked, _ = treat(values, "mask")
    assert np.flatnonzero(found).tolist() == [200]
    assert np.array_equal(kept, values)
    assert values[190:211].min() < clipped[200] < 100
    assert np.isnan(masked[200]) and np.array_equal(np.delete(masked, 200), np.delete(values, 200))
    assert values[200] == 500  # not in place
    limits = hampel_limits(values)
    assert clipped[200] == limits.median[200] + limits.reach[200]


def test_long_series_are_filtered_in_pieces_without_seams(monkeypatch):
    values = wave(3000)
    values[[999, 1000, 1001, 2500]] = 300
    whole = outliers(values)
    monkeypatch.setattr("tidecast.training.data.outliers._CHUNK", 1000)
    assert np.array_equal(outliers(values), whole)
    assert whole.sum() == 4


def test_an_empty_an_unknown_and_a_short_series_are_no_error():
    assert len(outliers(np.empty(0))) == 0
    assert not outliers(np.full(50, np.nan)).any()
    assert not outliers(np.array([1.0, 2.0, 1000.0])).any()


@pytest.mark.parametrize(("window", "threshold"), [(2, 3.0), (13, 0.0), (13, -1.0), (13, float("nan"))])
def test_a_window_or_threshold_that_cannot_be_is_refused(window, threshold):
    with pytest.raises(UsageError, match=r"window|outlier_threshold"):
        hampel_limits(wave(), window, threshold)
