"""The closed-form path: it finds a known autoregression, and shrinks to persistence when there is nothing to find."""

from __future__ import annotations

import numpy as np

from tidecast.training.linear.ridge import Scaled, ahead, fit_ridge, taps


def _scaled(z, slots=()):
    return Scaled(z[:, None], np.zeros((len(z), 0)), slots, np.arange(len(z)))


def _fit(stretch, **changes):
    options = {"history": 6, "horizon": 2, "lags": [], "slot_counts": (), "train_until": 1500, "validate_until": 1900}
    return fit_ridge([stretch], **{**options, **changes})


def test_a_known_autoregression_is_found():
    generator = np.random.default_rng(0)
    z = np.zeros(2000)
    for t in range(2, 2000):
        z[t] = 0.5 * z[t - 1] + 0.3 * z[t - 2] + generator.normal()
    ridge = _fit(_scaled(z))
    np.testing.assert_allclose(ridge.weights[0, -2:], [0.3, 0.5], atol=0.06)
    assert np.abs(ridge.weights[0, :-2]).max() < 0.06


def test_a_random_walk_is_left_at_persistence():
    z = np.cumsum(np.random.default_rng(1).normal(size=2000))
    z = (z - z[:1500].mean()) / z[:1500].std()
    stretch = _scaled(z)
    out = _fit(stretch).forecast(stretch, 6)
    truth = ahead(z[:, None], 2)[1900:, :, 0]
    ours = np.nanmean(np.abs(out[1900:] - truth), axis=0)
    naive = np.nanmean(np.abs(z[1900:, None] - truth), axis=0)
    assert (ours < 1.05 * naive).all()


def test_slots_learn_what_only_the_calendar_knows():
    generator = np.random.default_rng(2)
    pattern = generator.normal(size=50) * 3
    z = pattern[np.arange(2000) % 50] + generator.normal(size=2000) * 0.1
    slots = (np.arange(2000) % 50,)
    stretch = _scaled(z, slots)
    with_slots = _fit(stretch, slot_counts=(50,)).forecast(stretch, 6)[1900:-2]
    plain = _fit(_scaled(z)).forecast(_scaled(z), 6)[1900:-2]
    truth = ahead(z[:, None], 2)[1900:-2, :, 0]
    assert np.abs(with_slots - truth).mean() < 0.2 * np.abs(plain - truth).mean()


def test_missing_targets_do_not_spoil_the_fit():
    generator = np.random.default_rng(3)
    z = np.zeros(2000)
    for t in range(1, 2000):
        z[t] = 0.8 * z[t - 1] + generator.normal()
    z[generator.random(2000) < 0.4] = np.nan
    ridge = _fit(_scaled(z))
    assert np.isfinite(ridge.weights).all()
    assert 0.3 < ridge.weights[0].sum() < 1.0


def test_long_histories_use_the_newest_values_and_the_lags():
    used = taps(2017, 5, [288, 2016])
    assert len(used) < 200
    assert {2016 - 288, 2016 - 2016, 2015} <= set(used.tolist())
    assert 2016 not in used
