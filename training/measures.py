"""One small pure function for each measure, under its usual name. NaN in a truth leaves that forecast out.

Shapes: truth [..., targets-free], forecasts alike; every mean is over the first axis, so that a horizon axis stays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def _mean(values: Floats) -> Floats:
    known = np.isfinite(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    out: Floats = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return out


def mae(truth: Floats, forecast: Floats) -> Floats:
    """Mean absolute error: [rows, horizon] -> [horizon]."""
    return _mean(np.abs(forecast - truth))


def rmse(truth: Floats, forecast: Floats) -> Floats:
    """Root of the mean squared error: [rows, horizon] -> [horizon]."""
    out: Floats = np.sqrt(_mean(np.square(forecast - truth)))
    return out


def coverage(truth: Floats, lower: Floats, upper: Floats) -> Floats:
    """Share of truths inside of the interval, its ends included: [rows, horizon] -> [horizon]."""
    return _mean(np.where(np.isfinite(truth), (truth >= lower) & (truth <= upper), np.nan))


def width(truth: Floats, lower: Floats, upper: Floats) -> Floats:
    """Mean width of the interval where the truth is known: [rows, horizon] -> [horizon]."""
    return _mean(np.where(np.isfinite(truth), upper - lower, np.nan))


def quantile_loss(truth: Floats, forecast: Floats, level: float) -> Floats:
    """Pinball loss of one quantile (Koenker and Bassett 1978): [rows, horizon] -> [horizon]."""
    error = truth - forecast
    return _mean(np.maximum(level * error, (level - 1) * error))
