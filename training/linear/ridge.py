"""The linear path: a direct multi-horizon ridge autoregression with calendar slots, solved in closed form.

For each lead h it predicts z[t+h] - z[t] from the differences of past values to the newest one, the newest value
itself, covariates and slot-of-day / slot-of-week indicators; so that shrinking to nothing leaves persistence. The
penalty is chosen on validation rows, for each lead and target by itself. Hoerl and Kennard 1970; the direct strategy:
Ben Taieb et al. 2012.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PENALTIES = tuple(10.0 ** np.arange(-2, 5.5, 0.5))
SLOT_SCALES = (1.0, 3.0, 10.0)  # a slot is seen rarely: how much more freely than a past value it may be fitted
CHUNK_ROWS = 2048
MOST_ROWS = 120_000  # beyond it rows are thinned evenly: the solution no longer moves
DENSE_HISTORY = 1024  # longer histories use the newest values and the surroundings of each lag
RECENT = 96
OTHERS_NEWEST = 6  # how many of the other targets' newest values a target may be regressed on
FARTHEST = 8.0  # local units: one wild jump must not bend the fit of all series


@dataclass(frozen=True, slots=True)
class Scaled:
    """One stretch, scaled, with NaN; and the slot of each calendar period."""

    z: Floats  # [steps, targets]
    covariates: Floats  # [steps, covariates]
    slots: tuple[NDArray[np.int64], ...]  # [steps] each
    ts: NDArray[np.int64]
    center: Floats | None = None  # [steps, targets] of the local units; None = 0 and 1
    scale: Floats | None = None  # [steps, targets], NaN where they mean nothing yet


@dataclass(frozen=True, slots=True)
class Ridge:
    """What the graph multiplies with, all in scaled units."""

    weights: Floats  # [horizon * targets, history * targets + covariates]
    bias: Floats  # [horizon * targets]
    slots: tuple[Floats, ...]  # [slots, horizon * targets] for each calendar period

    def forecast(self, stretch: Scaled, history: int) -> Floats:
        """Scaled forecasts [steps, horizon * targets] of a stretch, missing values carried forward."""
        z, covariates = filled(stretch)
        past = windows(z, history)
        rows = []
        for start in range(0, len(z), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            flat = past[part].reshape(len(past[part]), -1)
            out = np.concatenate([flat, covariates[part]], axis=1) @ self.weights.T + self.bias
            for table, slot in zip(self.slots, stretch.slots, strict=True):
                out += table[slot[part]]
            rows.append(out)
        return np.concatenate(rows)


def carried_forward(column: Floats) -> Floats:
    """Each missing value replaced by the last one before it; those before the first by the first, all missing by 0."""
    there = np.isfinite(column)
    if not there.any():
        return np.zeros_like(column)
    last = np.maximum.accumulate(np.where(there, np.arange(len(column)), -1))
    out: Floats = column[np.where(last < 0, int(np.argmax(there)), last)]
    return out


def filled(stretch: Scaled) -> tuple[Floats, Floats]:
    """(z, covariates) without NaN."""
    z = np.stack([carried_forward(c) for c in stretch.z.T], axis=1)
    columns = [
        np.where(np.isfinite(c), c, 0.0) if not np.isfinite(c).any() else carried_forward(c)
        for c in stretch.covariates.T
    ]
    return z, np.stack(columns, axis=1) if columns else np.zeros((len(z), 0))


def windows(z: Floats, history: int) -> NDArray[np.float64]:
    """[steps, history, targets]: the newest value last; before the first reading the past is as its value."""
    padded = np.concatenate([np.repeat(z[:1], history - 1, axis=0), z])
    return sliding_window_view(padded, history, axis=0).transpose(0, 2, 1)


def ahead(z: Floats, horizon: int) -> Floats:
    """[steps, horizon, targets]: the values that follow each step, NaN past the end."""
    padded = np.concatenate([z[1:], np.full((horizon, z.shape[1]), np.nan)])
    return sliding_window_view(padded, horizon, axis=0)[: len(z)].transpose(0, 2, 1)


def taps(history: int, horizon: int, lags: list[int]) -> NDArray[np.int64]:
    """Indices into the history (the newest is history - 1) that the ridge uses, the newest one left out."""
    if history <= DENSE_HISTORY:
        return np.arange(history - 1)
    near = set(range(history - RECENT, history - 1))
    for lag in lags:
        near |= set(range(history - 1 - lag - 2, history - lag + min(horizon, RECENT) + 2))
    return np.array(sorted(i for i in near if 0 <= i < history - 1))


class _Design:
    """Rows of the regression, made in chunks: differences, newest values, covariates | slots."""

    def __init__(self, history: int, horizon: int, lags: list[int], slot_counts: tuple[int, ...]) -> None:
        self.history, self.horizon, self.slot_counts = history, horizon, slot_counts
        self.taps = taps(history, horizon, lags)

    def views(self, target: int, targets: int, covariates: int) -> list[NDArray[np.int64]]:
        """The columns that one target may be regressed on: its own past alone, or the others' newest values too.

        All of the others' past would be fitted to noise: the channels of one machine move together.
        """
        start = len(self.taps) * targets
        rest = np.arange(start + targets, start + targets + covariates + sum(self.slot_counts))
        own = np.arange(target, start, targets)
        alone = np.concatenate([own, [start + target], rest])
        if targets == 1:
            return [alone]
        near = np.flatnonzero(self.taps >= self.history - OTHERS_NEWEST)
        others = np.array([i * targets + t for i in near for t in range(targets) if t != target], dtype=np.int64)
        together = np.concatenate([own, others, np.arange(start, start + targets), rest])
        return [alone, together]

    def chunks(
        self, stretches: list[Scaled], since: int, until: int, thin: int
    ) -> Iterator[tuple[Floats, Floats, Floats]]:
        """(dense [rows, features], targets [rows, horizon * targets] with NaN, newest [rows, targets])."""
        for stretch in stretches:
            z, covariates = filled(stretch)
            truth = np.where((stretch.ts < until)[:, None], stretch.z, np.nan)
            future, past = ahead(truth, self.horizon), windows(z, self.history)
            origins = np.flatnonzero((stretch.ts >= since) & (stretch.ts < until))[::thin]
            if stretch.scale is not None:
                origins = origins[np.isfinite(stretch.scale[origins]).all(axis=1)]
            for start in range(0, len(origins), CHUNK_ROWS):
                at = origins[start : start + CHUNK_ROWS]
                newest, past_at, future_at = z[at], past[at], future[at]
                if stretch.center is not None and stretch.scale is not None:
                    center, scale = stretch.center[at][:, None], stretch.scale[at][:, None]
                    past_at, future_at = (past_at - center) / scale, (future_at - center) / scale
                    past_at, future_at = past_at.clip(-FARTHEST, FARTHEST), future_at.clip(-FARTHEST, FARTHEST)
                    newest = past_at[:, -1]
                parts = [(past_at[:, self.taps] - newest[:, None]).reshape(len(at), -1), newest, covariates[at]]
                for slot, count in zip(stretch.slots, self.slot_counts, strict=True):
                    one = np.zeros((len(at), count))
                    one[np.arange(len(at)), slot[at]] = 1.0
                    parts.append(one)
                delta = (future_at - newest[:, None]).reshape(len(at), -1)
                yield np.concatenate(parts, axis=1), delta, newest


def fit_ridge(
    stretches: list[Scaled],
    *,
    history: int,
    horizon: int,
    lags: list[int],
    slot_counts: tuple[int, ...],
    train_until: int,
    validate_until: int,
) -> Ridge:
    """Fit on rows before `train_until`, choose the penalties on rows before `validate_until` (ms)."""
    targets = stretches[0].z.shape[1]
    covariates = stretches[0].covariates.shape[1]
    design = _Design(history, horizon, lags, slot_counts)
    dense = len(design.taps) * targets + targets + covariates
    width = dense + sum(slot_counts)
    outputs = horizon * targets
    total = sum(int((s.ts < train_until).sum()) for s in stretches)
    thin = max(1, total // MOST_ROWS)

    gram, cross = np.zeros((width, width)), np.zeros((width, outputs))
    sum_x, sum_y, rows = np.zeros(width), np.zeros(outputs), 0
    bridge = _mostly_incomplete(stretches, horizon, train_until)
    source = [_bridged(s, train_until) for s in stretches] if bridge else stretches
    for x, y, _ in design.chunks(source, -(1 << 62), train_until, thin):
        whole = np.isfinite(y).all(axis=1)
        x, y = x[whole], y[whole]
        gram += x.T @ x
        cross += x.T @ y
        sum_x, sum_y, rows = sum_x + x.sum(axis=0), sum_y + y.sum(axis=0), rows + len(x)
    if rows == 0:
        return _unfolded(design, np.zeros((width, outputs)), np.zeros(outputs), targets, covariates)
    mean_x, mean_y = sum_x / rows, sum_y / rows
    gram -= rows * np.outer(mean_x, mean_x)
    cross -= rows * np.outer(mean_x, mean_y)

    check = list(design.chunks(stretches, train_until, validate_until, max(1, thin // 4)))
    best = np.full(outputs, np.inf)
    weights = np.zeros((width, outputs))
    for target in range(targets):
        mine = np.arange(target, outputs, targets)  # the outputs of this target, one for each lead
        for columns in design.views(target, targets, covariates):
            for slot_scale in SLOT_SCALES if slot_counts else SLOT_SCALES[:1]:
                scale = np.where(columns < dense, 1.0, slot_scale)
                values, vectors = np.linalg.eigh(gram[np.ix_(columns, columns)] * np.outer(scale, scale))
                rotated = vectors.T @ (cross[np.ix_(columns, mine)] * scale[:, None])
                for penalty in PENALTIES:
                    candidate = scale[:, None] * (vectors @ (rotated / (np.maximum(values, 0) + penalty)[:, None]))
                    loss = _loss(check, columns, mine, candidate, mean_y[mine] - mean_x[columns] @ candidate)
                    better = loss < best[mine]
                    best[mine[better]] = loss[better]
                    weights[:, mine[better]] = 0.0
                    weights[np.ix_(columns, mine[better])] = candidate[:, better]
    return _unfolded(design, weights, mean_y - mean_x @ weights, targets, covariates)


def _loss(
    check: list[tuple[Floats, Floats, Floats]],
    columns: NDArray[np.int64],
    outputs: NDArray[np.int64],
    weights: Floats,
    bias: Floats,
) -> Floats:
    """Mean squared error of some outputs, from some columns, over the rows where it is known."""
    total, count = np.zeros(len(bias)), np.zeros(len(bias))
    for x, y, _ in check:
        error = np.square(x[:, columns] @ weights + bias - y[:, outputs])
        known = np.isfinite(error)
        total += np.where(known, error, 0.0).sum(axis=0)
        count += known.sum(axis=0)
    return total / np.maximum(count, 1)


def _unfolded(design: _Design, weights: Floats, bias: Floats, targets: int, covariates: int) -> Ridge:
    """Weights on differences, as weights on the raw history: what the graph multiplies with."""
    outputs = weights.shape[1]
    used = len(design.taps) * targets
    past = np.zeros((design.history, targets, outputs))
    past[design.taps] = weights[:used].reshape(len(design.taps), targets, outputs)
    past[-1] = weights[used : used + targets] - past.sum(axis=0)
    for d in range(targets):  # the output is a difference from the newest value: add that back
        past[-1, d, d::targets] += 1.0
    start = used + targets
    flat = np.concatenate([past.reshape(-1, outputs), weights[start : start + covariates]])
    start += covariates
    tables = []
    for count in design.slot_counts:
        tables.append(weights[start : start + count])
        start += count
    return Ridge(weights=flat.T.copy(), bias=bias, slots=tuple(tables))


def _mostly_incomplete(stretches: list[Scaled], horizon: int, until: int) -> bool:
    whole = total = 0
    for s in stretches:
        z = s.z[s.ts < until]
        holes = np.concatenate([[0], np.cumsum(~np.isfinite(z).all(axis=1))])
        if len(z) > horizon:
            total += len(z) - horizon
            whole += int((holes[1 + horizon :] - holes[1:-horizon] == 0).sum())
    return whole < 0.5 * total


def _bridged(stretch: Scaled, until: int) -> Scaled:
    """Missing values before `until` interpolated, where otherwise too few whole rows would be left."""
    z = stretch.z.copy()
    upto = int((stretch.ts < until).sum())
    for column in z.T:
        there = np.flatnonzero(np.isfinite(column[:upto]))
        if len(there) > 1:
            inner = np.arange(there[0], there[-1] + 1)
            column[inner] = np.interp(inner, there, column[there])
    return replace(stretch, z=z)
