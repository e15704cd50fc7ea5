"""All of a model that is computed, not learned by gradient: scalers, the linear path, the tensors to fit on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.config import Config
from training.data import Dataset, Stretch
from training.forecaster import LIMIT, PERIODS, Forecaster
from training.linear import Scaled, fit_ridge


@dataclass(frozen=True, slots=True)
class Prepared:
    """All stretches one after the other, each followed by `horizon` empty steps, so that no target crosses a border."""

    inputs: Tensor  # [steps, inputs] normalised
    linear: Tensor  # [steps, horizon * targets] scaled
    z: Tensor  # [steps, targets] scaled, not clipped, NaN = missing
    ts: NDArray[np.int64]  # [steps] ms; the empty steps hold the largest value there is
    spans: list[tuple[int, int]]  # of each stretch: first step, step after its last


def fit_scalers(model: Forecaster, dataset: Dataset, until: int) -> None:
    """Mean, deviation and limits of each feature, from readings before `until` (ms) and nothing later."""
    rows = np.concatenate([s.x[s.ts < until] for s in dataset.stretches]).astype(np.float64)  # [readings, features]
    for f, column in enumerate(rows.T):
        known = column[np.isfinite(column)]
        if len(known) == 0:
            continue  # a covariate that training never saw: mean 0, deviation 1
        mean = np.float32(known.mean())
        std = np.float32(known.std())
        std = std if std > 1e-6 * max(1.0, abs(float(mean))) else np.float32(1.0)  # a constant column
        low, high = (known.min() - mean) / std, (known.max() - mean) / std
        reach = LIMIT * max(high - low, 1.0)
        for name, value in (("mean", mean), ("std", std), ("low", low - reach), ("high", high + reach)):
            model.get_buffer(name)[f] = float(value)


def scaled(model: Forecaster, stretch: Stretch) -> Scaled:
    """A stretch as `training.linear` takes it."""
    z = (stretch.x.astype(np.float64) - model.mean.numpy()) / model.std.numpy()
    z = np.clip(z, model.low.numpy(), model.high.numpy())
    slots = tuple((stretch.ts % PERIODS[name]) // model.slot_ms(name) for name in model.slotted)
    return Scaled(z[:, : model.d], z[:, model.d :], slots, stretch.ts)


def fit_linear_path(model: Forecaster, dataset: Dataset, config: Config) -> None:
    """Solve the ridge and put it into the model's buffers."""
    ridge = fit_ridge(
        [scaled(model, s) for s in dataset.stretches],
        history=model.history,
        horizon=model.h,
        lags=model.lags,
        slot_counts=tuple(model.slot_count(name) for name in model.slotted),
        train_until=config.train_until_ms,
        validate_until=config.validate_until_ms,
    )
    model.linear_weight.copy_(torch.from_numpy(ridge.weights))
    model.linear_bias.copy_(torch.from_numpy(ridge.bias))
    for name, table in zip(model.slotted, ridge.slots, strict=True):
        model.get_buffer(f"slots_{name}").copy_(torch.from_numpy(table))


def prepare(model: Forecaster, dataset: Dataset, config: Config, progress: Callable[[float], None]) -> Prepared:
    """Fold the model's `observe` over every stretch; sets the inputs' mean and deviation and the residuals' spread."""
    folded = _fold(model, dataset.stretches, progress)
    pad = model.h
    inputs, linear, z, ts, spans, start = [], [], [], [], [], 0
    mean, std = model.mean[: model.d], model.std[: model.d]
    for stretch, (u, base) in zip(dataset.stretches, folded, strict=True):
        inputs += [u, u.new_zeros(pad, u.shape[1])]
        linear += [base, base.new_zeros(pad, base.shape[1])]
        values = (torch.from_numpy(stretch.x[:, : model.d]) - mean) / std  # [steps, targets]
        z += [values, torch.full((pad, model.d), float("nan"))]
        ts += [stretch.ts, np.full(pad, np.iinfo(np.int64).max)]
        spans.append((start, start + len(stretch.ts)))
        start += len(stretch.ts) + pad
    out = Prepared(torch.cat(inputs), torch.cat(linear), torch.cat(z), np.concatenate(ts), spans)

    training = torch.from_numpy(out.ts < config.train_until_ms)
    model.input_mean.copy_(out.inputs[training].mean(dim=0))
    deviation = out.inputs[training].std(dim=0)
    model.input_std.copy_(torch.where(deviation > 1e-4, deviation, torch.ones_like(deviation)))
    origins = training.nonzero()[:, 0]
    truth = future(out.z, origins, model.h, torch.from_numpy(out.ts < config.train_until_ms))
    residual = truth - out.linear[origins].reshape(-1, model.h, model.d)
    spread = residual.pow(2).nanmean(dim=0).sqrt().nan_to_num(1.0).clamp(min=1e-3)
    model.spread.copy_(spread[..., None])
    return Prepared(model.normalise(out.inputs), out.linear, out.z, out.ts, out.spans)


def future(z: Tensor, origins: Tensor, horizon: int, allowed: Tensor) -> Tensor:
    """What follows each origin: [origins..., horizon, targets], NaN where it is missing or not `allowed` [steps]."""
    at = (origins[..., None] + torch.arange(1, horizon + 1)).clamp(max=len(z) - 1)
    return torch.where(allowed[at][..., None], z[at], torch.full((), float("nan")))


def _fold(
    model: Forecaster, stretches: list[Stretch], progress: Callable[[float], None]
) -> list[tuple[Tensor, Tensor]]:
    """`model.prepare` of each stretch; stretches of like length go together, so that padding stays small."""
    order = sorted(range(len(stretches)), key=lambda i: -len(stretches[i].ts))
    out: dict[int, tuple[Tensor, Tensor]] = {}
    done, total = 0, sum(len(s.ts) for s in stretches)
    while order:
        longest = len(stretches[order[0]].ts)
        group = [i for i in order if len(stretches[i].ts) * 2 >= longest][:512]
        order = [i for i in order if i not in set(group)]
        x = torch.full((len(group), longest, model.d + model.c), float("nan"))  # [n, steps, features]
        ts = torch.zeros((len(group), longest), dtype=torch.int64)
        for row, i in enumerate(group):
            steps = len(stretches[i].ts)
            x[row, :steps] = torch.from_numpy(stretches[i].x)
            ts[row, :steps] = torch.from_numpy(stretches[i].ts)
        inputs, linear = model.prepare(x, ts)
        for row, i in enumerate(group):
            steps = len(stretches[i].ts)
            out[i] = (inputs[row, :steps], linear[row, :steps])
            done += steps
        progress(done / total)
    return [out[i] for i in range(len(stretches))]
