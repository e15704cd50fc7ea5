"""All of a model that is computed, not learned by gradient: scalers, the linear path, the tensors to fit on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tidecast.training.config import Config
from tidecast.training.data.dataset import Dataset
from tidecast.training.data.stretch import Stretch
from tidecast.training.fit.expert_priors import set_expert_priors
from tidecast.training.linear.expert_bank import fit_expert_bank
from tidecast.training.linear.ridge import CHUNK_ROWS, Scaled, filled, fit_ridge, windows
from tidecast.training.model.calendar import PERIODS
from tidecast.training.model.features import StretchFeatures
from tidecast.training.model.forecaster import Forecaster
from tidecast.training.model.scaling import FAR_BELOW, LIMIT


@dataclass(frozen=True, slots=True)
class Prepared:
    """All stretches one after the other, each followed by `horizon` empty steps, so that no target crosses a border."""

    inputs: Tensor  # [steps, inputs] normalised
    linear: Tensor  # [steps, horizon * targets] scaled
    z: Tensor  # [steps, targets] scaled, not clipped, NaN = missing
    ts: NDArray[np.int64]  # [steps] ms; the empty steps hold the largest value there is
    center: Tensor  # [steps, targets] scaled; with `scale`, the local units that inputs, linear and outputs are in
    scale: Tensor  # [steps, targets], NaN where local units mean nothing yet
    spans: list[tuple[int, int]]  # of each stretch: first step, step after its last

    def future(self, origins: Tensor, horizon: int, allowed: Tensor) -> Tensor:
        """What follows each origin in its local units: [origins..., horizon, targets].

        NaN where it is missing or not `allowed` [steps], and where the origin has no local units yet.
        """
        at = (origins[..., None] + torch.arange(1, horizon + 1)).clamp(max=len(self.z) - 1)
        truth = (self.z[at] - self.center[origins][..., None, :]) / self.scale[origins][..., None, :]
        return torch.where(allowed[at][..., None], truth, torch.full((), float("nan")))


def fit_scalers(model: Forecaster, dataset: Dataset, until: int) -> None:
    """Mean, deviation and limits of each feature, from readings before `until` (ms) and nothing later."""
    rows = np.concatenate([s.x[s.ts < until] for s in dataset.stretches]).astype(np.float64)  # [readings, features]
    units = model.units
    if units.transform == "log":
        lowest = np.nan_to_num(np.nanmin(rows[:, : model.d], axis=0), nan=1.0)
        units.floor[: model.d] = torch.from_numpy(lowest / FAR_BELOW)
    for f, column in enumerate(units.bend(torch.from_numpy(rows.T)).numpy()):
        known = column[np.isfinite(column)]
        if len(known) == 0:
            continue  # a covariate that training never saw: mean 0, deviation 1
        # In local units a common mean would only cost digits where series differ by orders of magnitude.
        mean = np.float32(0.0 if units.local and units.transform != "log" and f < model.d else known.mean())
        std = np.float32(known.std())
        std = std if std > 1e-6 * max(1.0, abs(float(mean))) else np.float32(1.0)  # a constant column
        low, high = (known.min() - mean) / std, (known.max() - mean) / std
        reach = LIMIT * max(high - low, 1.0)
        for name, value in (("mean", mean), ("std", std), ("low", low - reach), ("high", high + reach)):
            units.get_buffer(name)[f] = float(value)


def scaled(model: Forecaster, stretch: Stretch) -> Scaled:
    """A stretch as `tidecast.training.linear.ridge` takes it."""
    z = model.units.scale(torch.from_numpy(stretch.x.T.astype(np.float64)))[0].T.numpy()
    slots = tuple((stretch.ts % PERIODS[name]) // part for name, part in model.calendar.part.items())
    out = Scaled(z[:, : model.d], z[:, model.d :], slots, stretch.ts)
    if not model.units.local:
        return out
    center, scale = [], []
    past = windows(filled(out)[0], model.history)  # [steps, history, targets]
    for start in range(0, len(z), CHUNK_ROWS):
        located = model.units.locate(torch.from_numpy(past[start : start + CHUNK_ROWS].copy()))
        center.append(located[0].numpy())
        scale.append(located[1].numpy())
    scales = np.concatenate(scale)
    scales[: model.settled_after] = np.nan
    return replace(out, center=np.concatenate(center), scale=scales)


def fit_linear_path(model: Forecaster, dataset: Dataset, config: Config) -> None:
    """Solve the ridge and put it into the model's buffers."""
    stretches = [scaled(model, s) for s in dataset.stretches]
    ridge = fit_ridge(
        stretches,
        history=model.history,
        horizon=model.h,
        lags=model.lags,
        slot_counts=tuple(model.calendar.count.values()),
        train_until=config.train_until_ms,
        validate_until=config.validate_until_ms,
    )
    linear = model.experts
    linear.weight.copy_(torch.from_numpy(ridge.weights))
    linear.bias.copy_(torch.from_numpy(ridge.bias))
    for name, table in zip(model.calendar.count, ridge.slots, strict=True):
        linear.get_buffer(f"slots_{name}").copy_(torch.from_numpy(table))
    if linear.count > 1:
        bank = fit_expert_bank(
            stretches,
            [s.series for s in dataset.stretches],
            history=model.history,
            horizon=model.h,
            lags=model.lags,
            train_until=config.train_until_ms,
            validate_until=config.validate_until_ms,
        )
        weights = torch.from_numpy(bank.weights.reshape(model.d, -1, model.history))
        linear.bank_weight.copy_(weights.transpose(1, 2))
        linear.bank_bias.copy_(torch.from_numpy(bank.bias.reshape(model.d, 1, -1)))
    linear.assemble()
    if linear.count > 1:
        set_expert_priors(model, stretches, config)


def prepare(model: Forecaster, dataset: Dataset, config: Config, progress: Callable[[float], None]) -> Prepared:
    """Fold the model's `observe` over every stretch; sets the inputs' mean and deviation and the residuals' spread."""
    folded = _fold(model, dataset.stretches, progress)
    pad = model.h
    columns: list[list[Tensor]] = [[] for _ in range(5)]
    ts, spans, start = [], [], 0
    mean, std = model.units.mean[: model.d], model.units.std[: model.d]
    empty = (0.0, 0.0, float("nan"), 0.0, 1.0)
    for stretch, view in zip(dataset.stretches, folded, strict=True):
        z = (model.units.bend(torch.from_numpy(stretch.x.T))[: model.d].T - mean) / std  # [steps, targets]
        scale = view.scale.clone()
        if model.units.local:
            scale[: model.settled_after] = float("nan")
        parts = (view.inputs, view.linear, z, view.center, scale)
        for column, values, fill in zip(columns, parts, empty, strict=True):
            column += [values, torch.full((pad, values.shape[1]), fill)]
        ts += [stretch.ts, np.full(pad, np.iinfo(np.int64).max)]
        spans.append((start, start + len(stretch.ts)))
        start += len(stretch.ts) + pad
    inputs, linear, z, center, scale = (torch.cat(column) for column in columns)
    out = Prepared(inputs, linear, z, np.concatenate(ts), center, scale, spans)

    training = torch.from_numpy(out.ts < config.train_until_ms)
    model.input_mean.copy_(out.inputs[training].mean(dim=0))
    deviation = out.inputs[training].std(dim=0)
    model.input_std.copy_(torch.where(deviation > 1e-4, deviation, torch.ones_like(deviation)))
    origins = training.nonzero()[:, 0]
    truth = out.future(origins, model.h, training)
    residual = truth - out.linear[origins].reshape(-1, model.h, model.d)
    spread = residual.pow(2).nanmean(dim=0).sqrt().nan_to_num(1.0).clamp(min=1e-3)
    model.spread.copy_(spread[..., None])
    return replace(out, inputs=model.normalise(out.inputs.T).T.contiguous())


def _fold(model: Forecaster, stretches: list[Stretch], progress: Callable[[float], None]) -> list[StretchFeatures]:
    """`model.prepare` of each stretch; stretches of like length go together, so that padding stays small."""
    order = sorted(range(len(stretches)), key=lambda i: -len(stretches[i].ts))
    out: dict[int, StretchFeatures] = {}
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
        seen = model.prepare(x, ts)
        for row, i in enumerate(group):
            steps = len(stretches[i].ts)
            out[i] = StretchFeatures(*(column[row, :steps] for column in seen))
            done += steps
        progress(done / total)
    return [out[i] for i in range(len(stretches))]
