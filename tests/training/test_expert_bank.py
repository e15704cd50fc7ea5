"""The bank of linear experts: what each is solved from, and that clusters find series of one kind."""

from __future__ import annotations

import numpy as np

from tidecast.training.linear.expert_bank import FEWEST_SERIES, ExpertBank, cluster_count, expert_count, fit_expert_bank
from tidecast.training.linear.ridge import Scaled

STEPS, HISTORY = 400, 30


def _stretch(values: np.ndarray) -> Scaled:
    ts = np.arange(len(values)) * 3_600_000
    return Scaled(values[:, None].astype(float), np.zeros((len(values), 0)), (), ts)


def _bank(series: dict[str, np.ndarray], horizon: int = 2, lags: tuple[int, ...] = (24,)):
    return fit_expert_bank(
        [_stretch(v) for v in series.values()], list(series), history=HISTORY, horizon=horizon, lags=list(lags),
        train_until=300 * 3_600_000, validate_until=STEPS * 3_600_000,
    )  # fmt: skip


def _best(bank, values: np.ndarray) -> float:
    """Mean absolute error of the best expert on the last steps."""
    errors = []
    for weights, bias in zip(bank.weights[0], bank.bias[0], strict=True):
        said = [weights @ values[t - HISTORY + 1 : t + 1] + bias for t in range(350, STEPS - 2)]
        truth = [values[t + 1 : t + 1 + len(bias)] for t in range(350, STEPS - 2)]
        errors.append(np.abs(np.array(said) - truth).mean())
    return min(errors)


def test_there_are_as_many_experts_as_the_state_has_room_for():
    noise = np.random.default_rng(0).normal(size=(FEWEST_SERIES, STEPS)).cumsum(axis=1)
    for count in (1, FEWEST_SERIES):
        bank = _bank({f"s{i}": noise[i] for i in range(count)})
        assert bank.weights.shape == (1, expert_count(count, [24]), 2, HISTORY)
        assert bank.bias.shape == (1, expert_count(count, [24]), 2)


def test_a_level_that_training_never_saw_is_forecast_as_well():
    walk = np.random.default_rng(1).normal(size=STEPS).cumsum() * 0.1
    values = walk + np.sin(np.arange(STEPS) / 4)
    bank = _bank({"s": values})
    for weights, bias in zip(bank.weights[0], bank.bias[0], strict=True):
        low = weights @ values[100 : 100 + HISTORY] + bias
        np.testing.assert_allclose(weights @ (values[100 : 100 + HISTORY] + 1000) + bias, low + 1000, atol=1e-6)


def test_the_seasonal_mean_is_the_mean_of_the_same_hour_of_past_days():
    values = np.tile(np.arange(24.0), 20)[:STEPS]
    weights = _bank({"s": values}).weights[0, -1]
    np.testing.assert_allclose(weights @ values[100 - HISTORY + 1 : 101], values[101:103])


def test_series_of_two_kinds_find_an_expert_each():
    # One kind keeps its direction, the other reverses at each step: one linear map is wrong for both.
    generator, series = np.random.default_rng(2), {}
    for i in range(12):
        values, noise = np.zeros(STEPS), generator.normal(size=STEPS)
        for t in range(1, STEPS):
            values[t] = (0.95 if i % 2 else -0.95) * values[t - 1] + noise[t]
        series[f"s{i}"] = values
    bank = _bank(series, horizon=1)
    shared = ExpertBank(bank.weights[:, :2], bank.bias[:, :2])  # without clusters
    assert cluster_count(len(series)) > 1
    found, alone = ([_best(b, values) for values in series.values()] for b in (bank, shared))
    assert np.mean(found) < 0.9  # of the noise, 0.8 can't be known
    assert np.mean(alone) > 1.0
