"""What a forecast must beat: persistence, seasonal naive, a linear autoregression. All made online, as the model is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.timestamps import format_duration
from training.config import Config
from training.data import Dataset, Stretch
from training.forecaster import PERIODS
from training.linear import Scaled, ahead, carried_forward, fit_ridge
from training.measures import mae

Floats = NDArray[np.float64]


def known_values(stretch: Stretch, targets: int) -> Floats:
    """[steps, targets]: the targets, a missing one as the last that was known."""
    return np.stack([carried_forward(c) for c in stretch.x[:, :targets].astype(np.float64).T], axis=1)


def persistence(values: Floats, horizon: int) -> Floats:
    """The last known value, for every lead: [steps, horizon, targets]."""
    return np.repeat(values[:, None], horizon, axis=1)


def seasonal_naive(values: Floats, horizon: int, season: int) -> Floats:
    """The value one season before the target (whole seasons, for leads past one): [steps, horizon, targets]."""
    leads = np.arange(1, horizon + 1)
    back = leads - season * -(-leads // season)
    at = np.arange(len(values))[:, None] + back  # [steps, horizon]
    out: Floats = values[np.maximum(at, 0)]
    return out


def choose_season(config: Config, dataset: Dataset) -> int:
    """Of the seasons that the config knows (lags, calendar), the one with the least error on validation rows, in steps.

    0 where it knows none.
    """
    step = config.step_ms
    seasons = set(config.lag_steps)
    if step:
        seasons |= {PERIODS[name] // step for name in config.model.calendar if name != "year"}
    best, best_error = 0, np.inf
    for season in sorted(seasons):
        errors = []
        for stretch in dataset.stretches:
            values = known_values(stretch, len(config.targets))
            inside = (stretch.ts >= config.train_until_ms) & (stretch.ts < config.validate_until_ms)
            truth = ahead(np.where(inside[:, None], stretch.x[:, : len(config.targets)], np.nan), config.model.horizon)
            errors.append(mae(truth, seasonal_naive(values, config.model.horizon, season)))
        error = float(np.nanmean(errors)) if np.isfinite(errors).any() else np.inf
        if error < best_error:
            best, best_error = season, error
    return best


class LinearAutoregression:
    """Direct ridge autoregression on the targets' own past: `history` values, so every lag of the model."""

    def __init__(self, config: Config, dataset: Dataset) -> None:
        self.config, self.targets = config, len(config.targets)
        rows = np.concatenate([s.x[s.ts < config.train_until_ms, : self.targets] for s in dataset.stretches])
        self.mean = np.nanmean(rows.astype(np.float64), axis=0)
        std = np.nanstd(rows.astype(np.float64), axis=0)
        self.std = np.where(std > 0, std, 1.0)
        self.ridge = fit_ridge(
            [self._scaled(s) for s in dataset.stretches],
            history=config.history,
            horizon=config.model.horizon,
            lags=config.lag_steps,
            slot_counts=(),
            train_until=config.train_until_ms,
            validate_until=config.validate_until_ms,
        )

    def _scaled(self, stretch: Stretch) -> Scaled:
        z = (stretch.x[:, : self.targets].astype(np.float64) - self.mean) / self.std
        return Scaled(z, np.zeros((len(z), 0)), (), stretch.ts)

    def forecast(self, stretch: Stretch) -> Floats:
        """[steps, horizon, targets], raw units."""
        out = self.ridge.forecast(self._scaled(stretch), self.config.history)
        shaped: Floats = out.reshape(len(out), self.config.model.horizon, self.targets) * self.std + self.mean
        return shaped


def season_name(config: Config, season: int) -> str:
    """ "1d" for 24 steps of an hour."""
    return format_duration(season * config.step_ms)
