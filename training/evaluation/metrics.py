"""One small pure function for each measure, under its usual name. NaN in a truth leaves that forecast out.

Shapes: truth and forecast [rows, horizon], quantiles [rows, horizon, quantiles]; every mean is over the rows, so that
the leads stay: [horizon].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def mean(values: ArrayLike) -> Floats:
    """Mean of the finite values over the first axis; NaN where there is none, without a warning."""
    array = np.asarray(values, dtype=np.float64)
    known = np.isfinite(array)
    count = known.sum(axis=0)
    total = np.where(known, array, 0.0).sum(axis=0)
    out: Floats = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return out


def mae(truth: Floats, forecast: Floats) -> Floats:
    """Mean absolute error."""
    return mean(np.abs(forecast - truth))


def rmse(truth: Floats, forecast: Floats) -> Floats:
    """Root of the mean squared error."""
    out: Floats = np.sqrt(mean(np.square(forecast - truth)))
    return out


def mase(truth: Floats, forecast: Floats, scale: Floats) -> Floats:
    """Mean absolute scaled error (Hyndman and Koehler 2006); `scale` [rows] is each row's series' `naive_scale`."""
    usable = np.where(scale > 0, scale, np.nan)[:, None]  # a constant series has no scale: it is left out
    return mean(np.abs(forecast - truth) / usable)


def naive_scale(values: Floats, season: int) -> float:
    """Mean absolute error of the seasonal naive on a series [steps] that is all known by then, one step for each."""
    return float(mean(np.abs(values[season:] - values[:-season])))


def smape(truth: Floats, forecast: Floats) -> Floats:
    """Symmetric mean absolute percentage error, 0 to 200 %, as in the M4 competition (Makridakis et al. 2020)."""
    size = np.abs(truth) + np.abs(forecast)
    ratio = np.where(size > 0, 200 * np.abs(forecast - truth) / np.where(size > 0, size, 1.0), 0.0)
    return mean(np.where(np.isfinite(truth), ratio, np.nan))


def mape(truth: Floats, forecast: Floats) -> Floats:
    """Sum of the absolute errors over the sum of the absolute truths, as Cui, Ahmad and Hawkins 2016 define MAPE."""
    size = mean(np.abs(truth))
    out: Floats = mae(truth, forecast) / np.where(size > 0, size, np.nan)
    return out


def nrmse(truth: Floats, forecast: Floats) -> Floats:
    """RMSE over the standard deviation of the truths (Cui, Ahmad and Hawkins 2016)."""
    spread = np.sqrt(mean(np.square(truth - mean(truth))))
    out: Floats = rmse(truth, forecast) / np.where(spread > 0, spread, np.nan)
    return out


def coverage(truth: Floats, lower: Floats, upper: Floats) -> Floats:
    """Share of truths inside of the interval, its ends included."""
    return mean(np.where(np.isfinite(truth), (truth >= lower) & (truth <= upper), np.nan))


def width(truth: Floats, lower: Floats, upper: Floats) -> Floats:
    """Mean width of the interval where the truth is known."""
    return mean(np.where(np.isfinite(truth), upper - lower, np.nan))


def symmetric_pairs(levels: Sequence[float]) -> list[tuple[int, int]]:
    """Indices of the quantiles that bound an interval with as much below it as above, the widest first.

    Only the outermost pair where none is symmetric.
    """
    pairs = [
        (i, j) for i, low in enumerate(levels) for j, high in enumerate(levels) if i < j and abs(low + high - 1) < 1e-6
    ]
    return pairs or [(0, len(levels) - 1)]


def quantile_loss(truth: Floats, forecast: Floats, level: float) -> Floats:
    """Pinball loss of one quantile (Koenker and Bassett 1978)."""
    error = truth - forecast
    return mean(np.maximum(level * error, (level - 1) * error))


def pinball(truth: Floats, quantiles: Floats, levels: Sequence[float]) -> Floats:
    """Mean of the quantile losses, each level counting alike."""
    losses = [quantile_loss(truth, quantiles[..., k], level) for k, level in enumerate(levels)]
    out: Floats = np.mean(losses, axis=0)
    return out


def level_weights(levels: Sequence[float]) -> Floats:
    """How much of 0 to 1 lies nearest to each level, [quantiles]; they add up to 1.

    0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95 give 0.075, 0.1, 0.2, 0.25, 0.2, 0.1, 0.075.
    """
    grid = np.asarray(levels, dtype=np.float64)
    edges = np.concatenate([[0.0], (grid[1:] + grid[:-1]) / 2, [1.0]])
    out: Floats = np.diff(edges)
    return out


def crps(truth: Floats, quantiles: Floats, levels: Sequence[float]) -> Floats:
    """Continuous ranked probability score, from quantiles: 2 * sum over levels of weight * quantile loss.

    The score is twice the integral of the quantile loss over all levels (Laio and Tamea 2007; Gneiting and Ranjan
    2011); here its sum over the grid with `level_weights`. The tails beyond the outermost levels count as those do, so
    only scores from the same levels compare. With the median alone it is the mean absolute error.
    """
    weights = level_weights(levels)
    losses = [
        w * quantile_loss(truth, quantiles[..., k], q) for k, (w, q) in enumerate(zip(weights, levels, strict=True))
    ]
    out: Floats = 2 * np.sum(losses, axis=0)
    return out
