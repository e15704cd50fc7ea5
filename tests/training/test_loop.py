"""Training: it learns, it stops when asked and keeps the best, and the seed decides everything."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tidecast.training.fit.loop import balanced, calibrate, cut_into_lanes, fit, outputs, pinball
from tidecast.training.fit.prepare import prepare
from tidecast.training.progress import Progress


def _fit(config, dataset):
    return fit(config, dataset, Progress(quiet=True))


def test_training_lowers_the_loss_on_training_rows(changed, dataset):
    config = changed(fit={"epochs": 12, "patience": 12, "learning_rate": 0.01})
    _, history = _fit(config, dataset)
    assert history.train[0][-1] < 0.95 * history.train[0][0]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(fitted, changed, dataset):
    one = fitted.model
    two, _ = _fit(changed(), dataset)
    other, _ = _fit(changed(fit={"seed": 1}), dataset)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_ctrl_c_keeps_the_best_so_far(changed, dataset):
    class Interrupting(Progress):
        def epochs(self, name, total):
            def done(epoch, train, validation, best):
                if epoch == 3:
                    raise KeyboardInterrupt

            return done

    model, history = fit(changed(fit={"epochs": 50, "patience": 50, "members": 2}), dataset, Interrupting(quiet=True))
    assert history.interrupted
    assert len(history.validation[0]) == 3
    assert history.best_epoch[0] >= 1
    for a, b in zip(model.cells[0].parameters(), model.cells[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_early_stopping_ends_the_training(changed, dataset):
    _, history = _fit(changed(fit={"epochs": 200, "patience": 2, "learning_rate": 0.3}), dataset)
    assert len(history.validation[0]) < 200
    assert min(history.validation[0]) == history.validation[0][history.best_epoch[0] - 1]


def test_lanes_cover_every_training_step_once_and_none_of_validation(fitted, config, dataset):
    data = prepare(copy.deepcopy(fitted.model), dataset, config, lambda done: None)
    generator = np.random.default_rng(0)
    covered = [step for group in cut_into_lanes(data, config, generator) for a, b in group for step in range(a, b)]
    assert len(covered) == len(set(covered))
    assert set(covered) == set(np.flatnonzero(data.ts < config.train_until_ms).tolist())


def test_the_pinball_loss_is_least_at_the_quantile(fitted):
    model = fitted.model
    truth = torch.randn(4000, 3, 1)
    level = torch.tensor(model.quantiles)
    right = torch.distributions.Normal(0.0, 1.0).icdf(level).expand(4000, 3, 1, -1)
    best = pinball(model, right, truth)
    assert best is not None
    for shift in (-0.3, 0.3):
        worse = pinball(model, right + shift, truth)
        assert worse is not None
        assert worse > best


def test_unknown_truths_do_not_count(fitted):
    model = fitted.model
    out, truth = torch.zeros(10, 3, 1, len(model.quantiles)), torch.ones(10, 3, 1)
    whole = pinball(model, out, truth)
    truth[4:] = float("nan")
    torch.testing.assert_close(pinball(model, out, truth), whole)
    assert pinball(model, out, torch.full((10, 3, 1), float("nan"))) is None


def test_calibration_makes_validation_intervals_cover_what_they_say(fitted, config, dataset):
    model = copy.deepcopy(fitted.model)
    data = prepare(model, dataset, config, lambda done: None)
    with torch.no_grad():
        model.calibration.factors.fill_(0.1)
        calibrate(model, data, config)
        out, linear, truth = outputs(model, 0, data, config.train_until_ms, config.validate_until_ms)
        scaled = balanced(model, out, linear)
        middle = scaled[..., model.calibration.center : model.calibration.center + 1]
        scaled = middle + model.calibration.factors * (scaled - middle)
    known = torch.isfinite(truth)
    inside = ((truth >= scaled[..., 0]) & (truth <= scaled[..., -1]))[known].float().mean().item()
    assert inside == pytest.approx(0.9, abs=0.08) or inside > 0.9
