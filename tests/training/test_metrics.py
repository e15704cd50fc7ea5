"""Each measure by hand on numbers small enough to check on paper, and the intervals of the baselines."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tidecast.training.data.stretch import Stretch
from tidecast.training.evaluation.baselines import ErrorQuantiles, LinearAutoregression, Scales, persistence
from tidecast.training.evaluation.evaluate import LINEAR, MODEL, evaluate, tracks
from tidecast.training.evaluation.metrics import (
    crps,
    level_weights,
    mape,
    mase,
    mean,
    naive_scale,
    nrmse,
    pinball,
    smape,
    symmetric_pairs,
)

LEVELS = [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95]


def test_smape_is_in_per_cent_and_at_most_200():
    truth = np.array([[100.0, 1.0, 0.0, np.nan]])
    forecast = np.array([[50.0, -1.0, 0.0, 3.0]])
    np.testing.assert_allclose(smape(truth, forecast), [200 * 50 / 150, 200, 0, np.nan])


def test_mase_divides_by_the_naive_error_of_the_series_own_past():
    assert naive_scale(np.array([1.0, 2.0, 4.0, 8.0]), 1) == pytest.approx(7 / 3)
    assert naive_scale(np.array([1.0, 2.0, 4.0, np.nan, 9.0]), 2) == pytest.approx((3 + 5) / 2)
    truth, forecast = np.array([[1.0], [2.0], [5.0]]), np.array([[2.0], [4.0], [5.5]])
    scale = np.array([1.0, 4.0, 0.0])  # the last series is constant: it has no scale and does not count
    np.testing.assert_allclose(mase(truth, forecast, scale), [(1 + 0.5) / 2])


def test_nrmse_and_mape_are_those_of_the_taxi_paper():
    truth, forecast = np.array([[2.0], [4.0], [6.0]]), np.array([[3.0], [4.0], [3.0]])
    np.testing.assert_allclose(mape(truth, forecast), [4 / 12])
    np.testing.assert_allclose(nrmse(truth, forecast), [np.sqrt(10 / 3) / np.std([2, 4, 6])])


def test_crps_of_quantiles_comes_near_the_closed_form_of_a_gaussian():
    from statistics import NormalDist

    generator = np.random.default_rng(0)
    truth = generator.normal(0, 1, (20_000, 1))
    levels = list(np.linspace(0.005, 0.995, 100))
    quantiles = np.tile([NormalDist().inv_cdf(q) for q in levels], (len(truth), 1, 1))
    np.testing.assert_allclose(crps(truth, quantiles, levels), [1 / np.sqrt(np.pi)], rtol=0.02)  # for a perfect N(0, 1)
    wrong = crps(truth, 2 * quantiles, levels)
    assert wrong[0] > 1.05 * crps(truth, quantiles, levels)[0]


def test_crps_of_the_median_alone_is_the_absolute_error():
    truth, median = np.array([[1.0], [5.0]]), np.array([[[2.0]], [[2.0]]])
    np.testing.assert_allclose(crps(truth, median, [0.5]), [2.0])
    np.testing.assert_allclose(pinball(truth, median, [0.5]), [1.0])


def test_level_weights_share_out_the_whole_of_zero_to_one():
    np.testing.assert_allclose(level_weights(LEVELS), [0.075, 0.1, 0.2, 0.25, 0.2, 0.1, 0.075])
    assert symmetric_pairs(LEVELS) == [(0, 6), (1, 5), (2, 4)]
    assert symmetric_pairs([0.1, 0.5, 0.6]) == [(0, 2)]


def test_a_mean_of_nothing_is_nan_without_a_warning():
    assert np.isnan(mean([np.nan, np.nan]))


def noise(rows: int, columns: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (rows, columns))


def test_gaussian_intervals_of_the_linear_autoregression_hold_what_they_say(config, dataset):
    linear = LinearAutoregression(config, dataset)
    errors = ErrorQuantiles(linear.forecast, config, dataset, levels=LEVELS, gaussian=True)
    stretch = dataset.stretches[0]
    points = linear.forecast(stretch)
    y = errors.quantiles(points, stretch.series)
    assert y.shape == (*points.shape, 7)
    np.testing.assert_allclose(y[..., 3], points)
    np.testing.assert_allclose(y[..., 6] - points, points - y[..., 0])
    truth = stretch.x[1:350, 0]
    known = np.isfinite(truth)
    held = (truth >= y[:349, 0, 0, 0]) & (truth <= y[:349, 0, 0, -1])
    assert 0.8 < held[known].mean() <= 1


def test_empirical_intervals_follow_skewed_errors(config, dataset):
    steps = 400
    values = np.cumsum(np.random.default_rng(1).exponential(1.0, steps))  # it only ever rises
    ts = config.train_until_ms - (steps + 1 - np.arange(steps)) * config.step_ms
    stretch = Stretch("up", ts, np.stack([values, values], axis=1).astype(np.float32), np.arange(steps))
    rising = dataclasses.replace(dataset, stretches=[stretch])
    errors = ErrorQuantiles(
        lambda s: persistence(s.x[:, :1].astype(float), 3), config, rising, levels=LEVELS, gaussian=False
    )
    offsets = errors.quantiles(np.zeros((1, 3, 1)), "up")[0, :, 0]
    assert (offsets[:, 0] >= 0).all()  # the naive value is never too high
    assert (np.diff(offsets, axis=-1) >= 0).all()
    assert offsets[2, 3] > 2 * offsets[0, 3]


def test_scaled_scores_do_not_depend_on_the_unit(config, dataset, monkeypatch):
    def made(factor: float):
        stretches = [
            Stretch(s.series, s.ts, (s.x * np.float32(factor)).astype(np.float32), s.rows) for s in dataset.stretches
        ]
        other = dataclasses.replace(dataset, stretches=stretches)

        def step(x, ts, state):
            last = np.where(np.isfinite(x[:, :1]), x[:, :1], state)  # [batch, 1]
            spread = np.linspace(-2, 2, 7, dtype=np.float32) * factor
            y = last[:, None, :, None] + spread
            return np.repeat(y, 3, axis=1), last, np.zeros((len(x), 0), np.float32)

        found = tracks(step, np.zeros(1, np.float32), config, other)
        return evaluate(found, config, other, scaled=True).scores["load"], evaluate(found, config, other).scores["load"]

    (one, raw), (ten, raw_ten) = made(1.0), made(16.0)
    for method in one:
        for name in ("mae", "rmse", "crps", "pinball", "mase", "nrmse"):
            np.testing.assert_allclose(getattr(one[method], name), getattr(ten[method], name), rtol=1e-3)
    np.testing.assert_allclose(raw_ten[MODEL].mae, 16 * np.array(raw[MODEL].mae), rtol=1e-4)
    np.testing.assert_allclose(raw[LINEAR].mase, one[LINEAR].mase, rtol=1e-9)
    assert raw[LINEAR].intervals[0].level == pytest.approx(0.9)


def test_each_series_is_scaled_by_its_own_training_rows(config):
    def stretch(name: str, values: np.ndarray) -> Stretch:
        ts = config.train_until_ms + (np.arange(len(values)) - 50) * config.step_ms  # the last 50 are not training
        return Stretch(name, ts, np.stack([values, values], axis=1).astype(np.float32), np.arange(len(values)))

    small, large = noise(100, 1, 0)[:, 0], 1000 * noise(100, 1, 1)[:, 0] + 5000
    late = noise(40, 1, 2)[:, 0]
    parts = [stretch("small", small), stretch("large", large)]
    unseen = Stretch("late", parts[0].ts[60:], np.stack([late, late], axis=1).astype(np.float32), np.arange(40))

    class Data:
        stretches = [*parts, unseen]  # noqa: RUF012

    scales = Scales(config, Data)
    np.testing.assert_allclose(scales["small"][1], [small[:50].std()], rtol=1e-5)
    np.testing.assert_allclose(scales["large"][0], [large[:50].mean()], rtol=1e-5)
    together = np.concatenate([small[:50], large[:50]]).astype(np.float32)
    np.testing.assert_allclose(scales["late"][1], [together.std()], rtol=1e-5)
