"""Scores a model's forecasts of the test rows against the truth, next to the baselines, in original units.

The model is run as it is served: its single step, folded over the readings in order by onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidecast.service.errors import DataError
from tidecast.training.config import Config
from tidecast.training.data.dataset import Dataset
from tidecast.training.data.stretch import Stretch
from tidecast.training.evaluation.baselines import (
    ErrorQuantiles,
    LinearAutoregression,
    Scales,
    choose_season,
    known_values,
    persistence,
    season_name,
    seasonal_naive,
)
from tidecast.training.evaluation.metrics import (
    coverage,
    crps,
    mae,
    mape,
    mase,
    mean,
    naive_scale,
    nrmse,
    pinball,
    rmse,
    smape,
    symmetric_pairs,
    width,
)
from tidecast.training.linear.ridge import ahead

Floats = NDArray[np.float64]
Step = Callable[
    [NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]],
    tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
]
MODEL, LINEAR = "tidecast", "linear autoregression"


class IntervalScores(msgspec.Struct, frozen=True):
    """One interval by lead: what share of the truths it held, and its mean width in the target's unit."""

    level: float
    coverage: list[float]
    width: list[float]


class MethodScores(msgspec.Struct, frozen=True):
    """One method on one target, by lead (index 0 is one step ahead); see `training.evaluation.metrics` for each."""

    mae: list[float]
    rmse: list[float]
    mase: list[float]
    smape: list[float]  # per cent
    mape: list[float]  # a share, not per cent
    nrmse: list[float]
    pinball: list[float]
    crps: list[float]
    intervals: list[IntervalScores]  # the widest first


class Evaluation(msgspec.Struct, frozen=True):
    """What `metrics.json` holds."""

    rows: int  # test readings that forecasts were scored on
    scores: dict[str, dict[str, MethodScores]]  # target -> method -> scores
    intervals: dict[str, IntervalScores]  # target -> the model's widest
    season: str | None
    scaled: bool = False  # in units of the training rows' standard deviation, not in the targets' own

    def summary(self) -> dict[str, float]:
        """A few numbers for the model's spec, means over the leads."""
        out = {}
        for target, methods in self.scores.items():
            for method, scores in methods.items():
                out[f"{target}.{method}.mae"] = float(mean(scores.mae))
            out[f"{target}.coverage"] = float(mean(self.intervals[target].coverage))
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
    """Fold the model over every stretch and keep the forecasts that have a target in the test rows.

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


def evaluate(
    found: list[Track],
    config: Config,
    dataset: Dataset,
    *,
    scaled: bool = False,
    season: int | None = None,
    baselines: bool = True,
) -> Evaluation:
    """Measure the model and the baselines on the same forecasts.

    `scaled`: every value less the mean, over the standard deviation, of its target on its series' training rows.
    `season` in steps instead of the one that validation rows prefer; 0 = none.
    """
    levels = config.model.quantiles
    season = choose_season(config, dataset) if season is None else season
    scales = Scales(config, dataset)
    truth = _stacked([t.truth for t in found], found, scales, scaled)
    naive = _naive_scales(found, config, dataset, season)  # [rows, targets]
    if scaled:
        naive = naive / np.concatenate([np.repeat(scales[t.series][1][None], len(t.ts), axis=0) for t in found])
    scores: dict[str, dict[str, MethodScores]] = {target: {} for target in config.targets}
    for name, points, quantiles in _methods(found, config, dataset, season, scales, baselines):
        point = _stacked(points, found, scales, scaled)  # [rows, horizon, targets]
        y = _stacked(quantiles, found, scales, scaled)  # [rows, horizon, targets, quantiles]
        for d, target in enumerate(config.targets):
            scores[target][name] = measure(truth[..., d], point[..., d], y[..., d, :], levels, naive[:, d])
    widest = {target: methods[MODEL].intervals[0] for target, methods in scores.items()}
    rows = int(sum(((t.stretch.ts >= config.validate_until_ms) & (t.stretch.rows >= 0)).sum() for t in found))
    return Evaluation(rows, scores, widest, season_name(config, season) if season else None, scaled)


def measure(truth: Floats, point: Floats, y: Floats, levels: list[float], naive: Floats) -> MethodScores:
    """All measures of one target: truth and point [rows, horizon], y [rows, horizon, quantiles], naive [rows]."""
    intervals = []
    for low, high in symmetric_pairs(levels):
        bounds = y[..., low], y[..., high]
        held, wide = coverage(truth, *bounds).tolist(), width(truth, *bounds).tolist()
        intervals.append(IntervalScores(round(levels[high] - levels[low], 6), held, wide))
    return MethodScores(
        mae=mae(truth, point).tolist(),
        rmse=rmse(truth, point).tolist(),
        mase=mase(truth, point, naive).tolist(),
        smape=smape(truth, point).tolist(),
        mape=mape(truth, point).tolist(),
        nrmse=nrmse(truth, point).tolist(),
        pinball=pinball(truth, y, levels).tolist(),
        crps=crps(truth, y, levels).tolist(),
        intervals=intervals,
    )


def _methods(
    found: list[Track], config: Config, dataset: Dataset, season: int, scales: Scales, baselines: bool
) -> Iterator[tuple[str, list[Floats], list[Floats]]]:
    """(name, point forecasts, quantiles) of each track, the model first; one method at a time, as they are large."""
    levels, horizon, targets = config.model.quantiles, config.model.horizon, len(config.targets)
    center = min(range(len(levels)), key=lambda i: abs(levels[i] - 0.5))
    yield MODEL, [t.y[..., center] for t in found], [t.y for t in found]
    if not baselines:
        return
    linear = LinearAutoregression(config, dataset, scales=scales)
    methods: dict[str, tuple[Callable[[Stretch], Floats], int]] = {
        "persistence": (lambda s: persistence(known_values(s, targets), horizon), 0),
        "seasonal naive": (lambda s: seasonal_naive(known_values(s, targets), horizon, season), season),
        LINEAR: (linear.forecast, config.history),
    }
    for name, (forecast, skip) in methods.items():
        if name == "seasonal naive" and not season:
            continue
        errors = ErrorQuantiles(
            forecast, config, dataset, levels=levels, gaussian=forecast == linear.forecast, skip=skip
        )
        points = [forecast(t.stretch)[t.origins] for t in found]
        yield name, points, [errors.quantiles(p, t.series) for p, t in zip(points, found, strict=True)]


def _stacked(parts: list[Floats], found: list[Track], scales: Scales, scaled: bool) -> Floats:
    """Rows of all tracks one after the other, [rows, horizon, targets(, quantiles)], in raw units or scaled."""
    if not scaled:
        return np.concatenate(parts)
    out = []
    for part, track in zip(parts, found, strict=True):
        middle, spread = scales[track.series]
        shape = (-1, *[1] * (part.ndim - 3))  # [targets] or [targets, 1]
        out.append((part - middle.reshape(shape)) / spread.reshape(shape))
    return np.concatenate(out)


def _naive_scales(found: list[Track], config: Config, dataset: Dataset, season: int) -> Floats:
    """What MASE divides each row by, [rows, targets]: of the row's series, before the test rows begin."""
    targets = len(config.targets)
    past: dict[str, list[Floats]] = {}  # series -> [steps, targets], with a season of nothing between stretches
    for s in dataset.stretches:
        values = s.x[s.ts < config.validate_until_ms, :targets].astype(np.float64)
        gap = np.full((max(season, 1), targets), np.nan)
        past.setdefault(s.series, []).append(np.concatenate([values, gap]))
    of = {
        series: np.array([naive_scale(c, max(season, 1)) for c in np.concatenate(parts).T])
        for series, parts in past.items()
    }
    return np.concatenate([np.repeat(of[t.series][None], len(t.ts), axis=0) for t in found])
