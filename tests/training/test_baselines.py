"""Measures and baselines, compared with values computed by hand."""

from __future__ import annotations

import numpy as np

from tidecast.training.evaluation.baselines import LinearAutoregression, choose_season, persistence, seasonal_naive
from tidecast.training.evaluation.evaluate import Track, evaluate
from tidecast.training.evaluation.metrics import coverage, mae, quantile_loss, rmse, width


def test_measures_leave_out_what_is_unknown():
    truth = np.array([[1.0, np.nan], [3.0, 5.0]])
    forecast = np.array([[2.0, 9.0], [1.0, 8.0]])
    np.testing.assert_allclose(mae(truth, forecast), [1.5, 3.0])
    np.testing.assert_allclose(rmse(truth, forecast), [np.sqrt(2.5), 3.0])
    np.testing.assert_allclose(coverage(truth, forecast - 1, forecast + 1), [0.5, 0.0])
    np.testing.assert_allclose(width(truth, forecast - 1, forecast + 2), [3.0, 3.0])
    np.testing.assert_allclose(quantile_loss(truth, forecast, 0.9), [(0.1 + 1.8) / 2, 0.3])


def test_persistence_repeats_the_last_known_value():
    out = persistence(np.array([[1.0], [2.0]]), 3)
    np.testing.assert_array_equal(out[:, :, 0], [[1, 1, 1], [2, 2, 2]])


def test_seasonal_naive_uses_only_the_past_even_beyond_one_season():
    values = np.arange(10.0)[:, None]
    out = seasonal_naive(values, 5, 3)[:, :, 0]
    np.testing.assert_array_equal(out[9], [7, 8, 9, 7, 8])


def test_the_season_is_the_one_that_validation_rows_prefer(config, dataset):
    assert choose_season(config, dataset) == 24


def test_the_linear_autoregression_does_not_look_ahead(config, dataset):
    linear = LinearAutoregression(config, dataset)
    stretch = dataset.stretches[0]
    out = linear.forecast(stretch)
    cut = type(stretch)(stretch.series, stretch.ts[:300], stretch.x[:300], stretch.rows[:300])
    np.testing.assert_allclose(linear.forecast(cut), out[:300])


def test_a_perfect_forecast_scores_zero_and_is_covered(config, dataset):
    from tidecast.training.linear.ridge import ahead

    tracks = []
    for stretch in dataset.stretches:
        inside = stretch.ts >= config.validate_until_ms
        if inside.any():
            truth = ahead(np.where(inside[:, None], stretch.x[:, :1].astype(float), np.nan), 3)
            y = np.repeat(np.nan_to_num(truth)[..., None], 7, axis=-1)
            origins = np.arange(len(stretch.ts))
            tracks.append(Track(stretch.series, stretch.ts, truth, y, origins, stretch))
    found = evaluate(tracks, config, dataset)
    assert found.scores["load"]["tidecast"].mae == [0, 0, 0]
    assert found.intervals["load"].coverage == [1, 1, 1]
    assert found.scores["load"]["persistence"].mae[0] > 0
    assert found.season == "1d"
