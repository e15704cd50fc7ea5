"""What a forecast must beat: persistence, seasonal naive, a linear autoregression. All made online, as the model is.

Each has intervals too, from its own errors on training rows, by lead and series: Gaussian ones around the linear
autoregression (their root mean square), the errors' own quantiles around the other two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from tidecast.service.timestamps import format_duration
from tidecast.training.config import Config
from tidecast.training.data.dataset import Dataset
from tidecast.training.data.stretch import Stretch
from tidecast.training.evaluation.metrics import mae, mean
from tidecast.training.linear.ridge import Scaled, ahead, carried_forward, fit_ridge
from tidecast.training.model.calendar import FINEST_SLOT_MS, PERIODS

Floats = NDArray[np.float64]
LEAST_ERRORS = 30  # a series with fewer on training rows has the intervals of all series together
MOST_ERRORS = 20_000  # of all series together, thinned evenly beyond it


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


class Scales:
    """Mean and standard deviation of each target on each series' training rows; of all rows where a series has none."""

    def __init__(self, config: Config, dataset: Dataset) -> None:
        targets = len(config.targets)
        rows: dict[str, list[Floats]] = {}
        for s in dataset.stretches:
            known = s.x[s.ts < config.train_until_ms, :targets].astype(np.float64)
            rows.setdefault(s.series, []).append(known)
        together = _moments(np.concatenate([part for parts in rows.values() for part in parts]))
        self._of = {series: _moments(np.concatenate(parts), together) for series, parts in rows.items()}

    def __getitem__(self, series: str) -> tuple[Floats, Floats]:
        """(mean [targets], standard deviation [targets]) in raw units; the deviation is above 0."""
        return self._of[series]


def _moments(rows: Floats, otherwise: tuple[Floats, Floats] | None = None) -> tuple[Floats, Floats]:
    middle = mean(rows)
    spread = np.sqrt(mean(np.square(rows - middle)))
    if otherwise is not None:
        enough = np.isfinite(rows).sum(axis=0) >= 2
        middle, spread = np.where(enough, middle, otherwise[0]), np.where(enough, spread, otherwise[1])
    return np.nan_to_num(middle), np.where(spread > 1e-9 * np.maximum(1.0, np.abs(middle)), spread, 1.0)


class LinearAutoregression:
    """Direct ridge autoregression on the targets' own past: `history` values, so every lag of the model.

    One for all series, each scaled by its own training rows. With `slots` ("day", "week") it knows the calendar too.
    """

    def __init__(
        self, config: Config, dataset: Dataset, slots: Sequence[str] = (), scales: Scales | None = None
    ) -> None:
        self.config, self.targets, self.slots = config, len(config.targets), slots
        self.scales = scales or Scales(config, dataset)
        self.ridge = fit_ridge(
            [self._scaled(s) for s in dataset.stretches],
            history=config.history,
            horizon=config.model.horizon,
            lags=config.lag_steps,
            slot_counts=tuple(PERIODS[name] // self._slot_ms for name in slots),
            train_until=config.train_until_ms,
            validate_until=config.validate_until_ms,
        )

    @property
    def _slot_ms(self) -> int:
        return max(self.config.step_ms, FINEST_SLOT_MS)

    def _scaled(self, stretch: Stretch) -> Scaled:
        middle, spread = self.scales[stretch.series]
        z = (stretch.x[:, : self.targets].astype(np.float64) - middle) / spread
        slots = tuple((stretch.ts % PERIODS[name]) // self._slot_ms for name in self.slots)
        return Scaled(z, np.zeros((len(z), 0)), slots, stretch.ts)

    def forecast(self, stretch: Stretch) -> Floats:
        """[steps, horizon, targets], raw units."""
        middle, spread = self.scales[stretch.series]
        out = self.ridge.forecast(self._scaled(stretch), self.config.history)
        shaped: Floats = out.reshape(len(out), self.config.model.horizon, self.targets) * spread + middle
        return shaped


class ErrorQuantiles:
    """What must be added to a method's point forecasts to have its quantiles: [horizon, targets, quantiles]."""

    def __init__(
        self,
        forecast: Callable[[Stretch], Floats],
        config: Config,
        dataset: Dataset,
        *,
        levels: Sequence[float],
        gaussian: bool,
        skip: int = 0,
    ) -> None:
        """`skip`: so many first steps of a stretch lack the past that the method looks back on."""
        found: dict[str, list[Floats]] = {}
        for s in dataset.stretches:
            training = int((s.ts < config.train_until_ms).sum())
            if training < 2:
                continue
            part = Stretch(s.series, s.ts[:training], s.x[:training], s.rows[:training])
            truth = ahead(part.x[:, : len(config.targets)].astype(np.float64), config.model.horizon)
            errors = truth - forecast(part)  # [steps, horizon, targets]
            found.setdefault(s.series, []).append(errors[skip if skip < training // 2 else 0 :])
        self._levels, self._gaussian = levels, gaussian
        every = [e for parts in found.values() for e in parts]
        thin = max(1, sum(map(len, every)) // MOST_ERRORS)
        self._together = self._offsets(np.concatenate([e[::thin] for e in every]))
        self._of = {}
        for series, parts in found.items():
            errors = np.concatenate(parts)
            enough = (np.isfinite(errors).sum(axis=0) >= LEAST_ERRORS)[..., None]
            self._of[series] = np.where(enough, self._offsets(errors), self._together)

    def _offsets(self, errors: Floats) -> Floats:
        if self._gaussian:
            deviation = np.sqrt(mean(np.square(errors)))[..., None]
            offsets: Floats = deviation * np.array([NormalDist().inv_cdf(q) for q in self._levels])
        else:
            known = np.where(np.isfinite(errors).any(axis=0), errors, 0.0)
            offsets = np.moveaxis(np.nanquantile(known, self._levels, axis=0), 0, -1)
        return np.nan_to_num(offsets)

    def quantiles(self, forecasts: Floats, series: str) -> Floats:
        """[origins, horizon, targets] -> [origins, horizon, targets, quantiles]."""
        out: Floats = forecasts[..., None] + self._of.get(series, self._together)
        return out


def season_name(config: Config, season: int) -> str:
    """ "1d" for 24 steps of an hour."""
    return format_duration(season * config.step_ms)
