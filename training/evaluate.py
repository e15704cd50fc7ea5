"""Holds a model's forecasts of the test rows against what happened, beside the baselines, in original units.

The model is run as it is served: its single step, folded over the readings in order by onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.errors import DataError
from training.baselines import (
    LinearAutoregression,
    choose_season,
    known_values,
    persistence,
    season_name,
    seasonal_naive,
)
from training.config import Config
from training.data import Dataset, Stretch
from training.linear import ahead
from training.measures import coverage, mae, quantile_loss, rmse, width

Floats = NDArray[np.float64]
Step = Callable[
    [NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]],
    tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
]
MODEL = "tidecast"


class Scores(msgspec.Struct, frozen=True):
    """One method on one target, by lead (index 0 is one step ahead), in the target's unit."""

    mae: list[float]
    rmse: list[float]


class Intervals(msgspec.Struct, frozen=True):
    """The widest interval of the model on one target, by lead, and the mean quantile loss over all quantiles."""

    level: float
    coverage: list[float]
    width: list[float]
    quantile_loss: list[float]


class Evaluation(msgspec.Struct, frozen=True):
    """What `metrics.json` holds."""

    rows: int  # test readings that a forecast was held against
    scores: dict[str, dict[str, Scores]]  # target -> method -> scores
    intervals: dict[str, Intervals]  # target -> intervals
    season: str | None

    def summary(self) -> dict[str, float]:
        """A few numbers for the model's spec, means over the leads."""
        out = {}
        for target, methods in self.scores.items():
            for method, scores in methods.items():
                out[f"{target}.{method}.mae"] = float(np.nanmean(scores.mae))
            out[f"{target}.coverage"] = float(np.nanmean(self.intervals[target].coverage))
        return out


@dataclass(frozen=True, slots=True)
class Track:
    """One stretch's forecasts from the origins that reach test rows."""

    series: str
    ts: NDArray[np.int64]  # [origins] ms
    truth: Floats  # [origins, horizon, targets], NaN outside of the test rows
    y: Floats  # [origins, horizon, targets, quantiles]
    origins: NDArray[np.int64]  # [origins] steps in the stretch
    stretch: Stretch


def tracks(step: Step, initial: NDArray[np.float32], config: Config, dataset: Dataset) -> list[Track]:
    """Fold the model over every stretch and keep what is held against test rows.

    Raises:
        DataError: no reading lies in the test rows.
    """
    horizon, targets = config.model.horizon, len(config.targets)
    out = []
    for group in _groups(dataset.stretches):
        steps = max(len(s.ts) for s in group)
        first = [int(np.searchsorted(s.ts, config.validate_until_ms)) for s in group]
        kept: list[list[NDArray[np.float32]]] = [[] for _ in group]
        x = np.full((steps, len(group), group[0].x.shape[1]), np.nan, np.float32)  # [steps, series, features]
        ts = np.zeros((steps, len(group)), np.int64)
        for i, s in enumerate(group):
            x[: len(s.ts), i], ts[: len(s.ts), i] = s.x, s.ts
        state = np.tile(initial, (len(group), 1))  # [series, state]
        for t in range(steps):
            y, state, _ = step(x[t], ts[t], state)
            for i, s in enumerate(group):
                if first[i] - horizon <= t < len(s.ts):
                    kept[i].append(y[i])
        for i, s in enumerate(group):
            inside = s.ts >= config.validate_until_ms
            if not inside.any():
                continue
            truth = ahead(np.where(inside[:, None], s.x[:, :targets].astype(np.float64), np.nan), horizon)
            origins = np.arange(max(0, first[i] - horizon), len(s.ts))
            out.append(Track(s.series, s.ts[origins], truth[origins], np.stack(kept[i]).astype(np.float64), origins, s))
    if not out:
        raise DataError("there are no test rows", do="validate_until must lie before the end of the data.")
    return out


def _groups(stretches: list[Stretch]) -> Iterator[list[Stretch]]:
    """Stretches of like length go through the model together."""
    order = sorted(stretches, key=lambda s: -len(s.ts))
    while order:
        group = [s for s in order if len(s.ts) * 2 >= len(order[0].ts)][:512]
        yield group
        order = [s for s in order if not any(s is g for g in group)]


def evaluate(found: list[Track], config: Config, dataset: Dataset) -> Evaluation:
    """Measure the model and the baselines on the same forecasts."""
    horizon, quantiles = config.model.horizon, config.model.quantiles
    center = min(range(len(quantiles)), key=lambda i: abs(quantiles[i] - 0.5))
    season = choose_season(config, dataset)
    linear = LinearAutoregression(config, dataset)
    forecasts: dict[str, list[Floats]] = {MODEL: [t.y[..., center] for t in found], "persistence": []}
    if season:
        forecasts["seasonal naive"] = []
    forecasts["linear autoregression"] = []
    for track in found:
        values = known_values(track.stretch, len(config.targets))
        forecasts["persistence"].append(persistence(values, horizon)[track.origins])
        if season:
            forecasts["seasonal naive"].append(seasonal_naive(values, horizon, season)[track.origins])
        forecasts["linear autoregression"].append(linear.forecast(track.stretch)[track.origins])
    truth = np.concatenate([t.truth for t in found])  # [rows, horizon, targets]
    y = np.concatenate([t.y for t in found])  # [rows, horizon, targets, quantiles]
    stacked = {name: np.concatenate(parts) for name, parts in forecasts.items()}
    scores, intervals = {}, {}
    for d, target in enumerate(config.targets):
        now = truth[..., d]
        scores[target] = {
            name: Scores(mae(now, f[..., d]).tolist(), rmse(now, f[..., d]).tolist()) for name, f in stacked.items()
        }
        low, high = y[..., d, 0], y[..., d, -1]
        losses = [quantile_loss(now, y[..., d, k], q) for k, q in enumerate(quantiles)]
        intervals[target] = Intervals(
            level=round(quantiles[-1] - quantiles[0], 6),
            coverage=coverage(now, low, high).tolist(),
            width=width(now, low, high).tolist(),
            quantile_loss=np.mean(losses, axis=0).tolist(),
        )
    rows = int(sum(((t.stretch.ts >= config.validate_until_ms) & (t.stretch.rows >= 0)).sum() for t in found))
    return Evaluation(rows, scores, intervals, season_name(config, season) if season else None)
