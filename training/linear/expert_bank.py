"""The linear experts besides the primary ridge: each forecasts a target from its own recent past alone.

No expert knows a level: each predicts z[t+h] - z[t] from differences to z[t]. The graph weighs them, for each series
and target, by how well each did recently (see `ExpertMixture.mix`), so that each series uses what suits it, also
when it changes. All are solved from one pair of moment matrices (gram, cross) for each unit, a unit being one
target of one series: a ridge of short memory for each target, a ridge over all units, a seasonal mean, and, where there
are many series, ridges of clusters of them, found as k-means finds its means (Späth 1979, clusterwise regression).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tidecast.training.linear.ridge import CHUNK_ROWS, FARTHEST, PENALTIES, Floats, Scaled, ahead, filled, taps, windows

SHORT = 48  # values that the expert of short memory looks back
SEASONS = 7  # at most, in the seasonal mean
MOST_UNITS = 256  # beyond it units are thinned evenly
FEWEST_SERIES, MOST_CLUSTERS = 8, 8
STARTS, ROUNDS = 8, 20


@dataclass(frozen=True, slots=True)
class ExpertBank:
    """Weights in scaled units on the own past of a target, the newest value last."""

    weights: Floats  # [targets, experts, horizon, history]
    bias: Floats  # [targets, experts, horizon]


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over the rows of a unit: all that least squares needs."""

    gram: Floats  # [taps + 1, taps + 1], the last column being ones
    cross: Floats  # [taps + 1, horizon]
    square: Floats  # [horizon]

    @classmethod
    def zeros(cls, used: int, horizon: int) -> Moments:
        """Of no rows."""
        return cls(np.zeros((used + 1, used + 1)), np.zeros((used + 1, horizon)), np.zeros(horizon))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.gram + other.gram, self.cross + other.cross, self.square + other.square)

    def scaled(self, by: float) -> Moments:
        """With another weight."""
        return Moments(self.gram * by, self.cross * by, self.square * by)

    def loss(self, weights: Floats) -> Floats:
        """Sum of squared errors of each lead; weights [taps + 1, horizon]."""
        out: Floats = (
            self.square - 2 * (weights * self.cross).sum(axis=0) + (weights * (self.gram @ weights)).sum(axis=0)
        )
        return np.maximum(out, 0.0)


def expert_count(series: int, lags: list[int]) -> int:
    """How many experts a bank has."""
    return 2 + 2 * bool(lags) + cluster_count(series)


def cluster_count(series: int) -> int:
    """How many clusters so many series are put into."""
    return 0 if series < FEWEST_SERIES else min(series // 2, MOST_CLUSTERS)


def fit_expert_bank(
    stretches: list[Scaled],
    names: list[str],
    *,
    history: int,
    horizon: int,
    lags: list[int],
    train_until: int,
    validate_until: int,
) -> ExpertBank:
    """Fit on rows before `train_until`, choose penalties on rows before `validate_until` (ms)."""
    used = taps(history, horizon, lags)
    training = _moments(stretches, names, used, history, horizon, -(1 << 62), train_until)
    validation = _moments(stretches, names, used, history, horizon, train_until, validate_until)
    nothing = Moments.zeros(len(used), horizon)
    pooled = _ridge(sum(training.values(), nothing), sum(validation.values(), nothing))
    recent = np.append(np.flatnonzero(used >= history - SHORT), len(used))
    weights, biases = [], []
    for d in range(stretches[0].z.shape[1]):
        units = sorted(unit for unit in training if unit[1] == d)
        fitted, checked = [training[u] for u in units], [validation.get(u, nothing) for u in units]
        found = [_ridge(sum(fitted, nothing), sum(checked, nothing), recent), pooled]
        found += _clustered(fitted, checked, cluster_count(len(set(names))))
        bank = [_unfolded(w, used, history) for w in found]
        if lags:
            bank.append((_seasonal_mean(history, horizon, lags[0]), np.zeros(horizon)))
            bank.append((_seasonal_mean(history, horizon, lags[-1]), np.zeros(horizon)))
        weights.append(np.stack([w for w, _ in bank]))
        biases.append(np.stack([b for _, b in bank]))
    return ExpertBank(np.stack(weights), np.stack(biases))


def _moments(
    stretches: list[Scaled],
    names: list[str],
    used: NDArray[np.int64],
    history: int,
    horizon: int,
    since: int,
    until: int,
) -> dict[tuple[str, int], Moments]:
    """Of each unit that has whole rows; rows of a unit count for one in all, or the longest series would decide."""
    out: dict[tuple[str, int], Moments] = {}
    every = max(1, len(stretches) // MOST_UNITS)
    for name, stretch in list(zip(names, stretches, strict=True))[::every]:
        z, _ = filled(stretch)
        truth = np.where((stretch.ts < until)[:, None], stretch.z, np.nan)
        future, past = (
            ahead(truth, horizon),
            windows(z, history),
        )  # [steps, horizon, targets], [steps, history, targets]
        origins = np.flatnonzero((stretch.ts >= since) & (stretch.ts < until))
        for d in range(z.shape[1]):
            at = origins[np.isfinite(future[origins, :, d]).all(axis=1)]
            if stretch.scale is not None:
                at = at[np.isfinite(stretch.scale[at, d])]
            for start in range(0, len(at), CHUNK_ROWS):
                rows = at[start : start + CHUNK_ROWS]
                newest = z[rows, d][:, None]
                x, y = past[rows][:, used, d] - newest, future[rows, :, d] - newest
                if stretch.scale is not None:
                    scale = stretch.scale[rows, d][:, None]
                    x, y = (x / scale).clip(-FARTHEST, FARTHEST), (y / scale).clip(-FARTHEST, FARTHEST)
                x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
                new = Moments(x.T @ x, x.T @ y, np.square(y).sum(axis=0))
                old = out.get((name, d))
                out[name, d] = new if old is None else old + new
    return out


def _ridge(training: Moments, validation: Moments, columns: NDArray[np.int64] | None = None) -> Floats:
    """[taps + 1, horizon]: for each lead the penalty that validation prefers; other columns stay 0."""
    columns = np.arange(len(training.gram)) if columns is None else columns
    values, vectors = np.linalg.eigh(training.gram[np.ix_(columns, columns)])
    rotated = vectors.T @ training.cross[columns]
    best = np.full(training.cross.shape[1], np.inf)
    out = np.zeros_like(training.cross)
    for penalty in PENALTIES:
        weights = np.zeros_like(training.cross)
        weights[columns] = vectors @ (rotated / (np.maximum(values, 0) + penalty)[:, None])
        loss = validation.loss(weights)
        better = loss < best
        best[better], out[:, better] = loss[better], weights[:, better]
    return out


def _clustered(training: list[Moments], validation: list[Moments], count: int) -> list[Floats]:
    """Ridges of `count` clusters of units: the best of some random starts, each refined until nothing moves."""
    if count == 0 or not training:
        return []
    power = np.array([max(float(m.square.sum()), 1e-12) for m in training])
    training = [m.scaled(1.0 / p) for m, p in zip(training, power, strict=True)]  # each unit weighs the same
    rescale = float(np.mean(power))
    validation = [m.scaled(rescale / p) for m, p in zip(validation, power, strict=True)]
    training = [m.scaled(rescale) for m in training]
    nothing = Moments.zeros(len(training[0].gram) - 1, training[0].cross.shape[1])
    best: tuple[float, list[Floats]] = (np.inf, [])
    for start in range(STARTS):
        belongs = np.random.default_rng(start).integers(count, size=len(training))
        means = [np.zeros_like(nothing.cross)] * count
        by_mean = np.full((count, len(training)), np.inf)  # [clusters, units]
        for _ in range(ROUNDS):
            for c in range(count):
                members = np.flatnonzero(belongs == c)
                if len(members):
                    fitted, checked = [training[i] for i in members], [validation[i] for i in members]
                    means[c] = _ridge(sum(fitted, nothing), sum(checked, nothing))
                    by_mean[c] = [float(m.loss(means[c]).sum()) for m in training]
            moved = np.argmin(by_mean, axis=0)
            if (moved == belongs).all():
                break
            belongs = moved
        total = float(by_mean.min(axis=0).sum())
        if total < best[0]:
            best = (total, means)
    return best[1]


def _unfolded(weights: Floats, used: NDArray[np.int64], history: int) -> tuple[Floats, Floats]:
    """Weights on differences to the newest value, as weights on the past: ([horizon, history], bias [horizon])."""
    horizon = weights.shape[1]
    out = np.zeros((horizon, history))
    out[:, used] = weights[:-1].T
    out[:, -1] = 1.0 - out.sum(axis=1)
    return out, weights[-1]


def _seasonal_mean(history: int, horizon: int, lag: int) -> Floats:
    """[horizon, history]: the mean of what was there one, two, ... seasons before each step ahead."""
    out = np.zeros((horizon, history))
    for step in range(horizon):
        newest = history + step - lag * (1 + step // lag)  # one or more seasons before that step
        at = np.arange(newest, -1, -lag)[:SEASONS]
        out[step, at] = 1.0 / len(at)
    return out
