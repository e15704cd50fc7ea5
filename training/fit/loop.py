"""The training loop: truncated backpropagation through time over lanes, with the state carried and detached.

A lane is a stretch of one series; `lanes` of them are trained side by side, window after window. The hidden state goes
from window to window without its gradient, so that the model learns from a longer past than a window holds (Williams
and Peng 1990). The loss is the quantile (pinball) loss of every lead (Koenker and Bassett 1978), in units of what the
linear path leaves over; validation decides when to stop, on an exponential average of the weights, and the best are
kept.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tidecast.training.config import Config
from tidecast.training.data.dataset import Dataset
from tidecast.training.fit.prepare import Prepared, fit_linear_path, fit_scalers, prepare
from tidecast.training.fit.resolve_config import resolve_config
from tidecast.training.model.expert_mixture import WORST
from tidecast.training.model.forecaster import Forecaster
from tidecast.training.progress import Progress

WINDOWS_PER_LANE = 12  # fewer lanes on short data: each must hold some windows, or nothing is carried
CONTEXT_STEPS = 512  # steps before the validation rows that warm the state up
AVERAGING = 0.97  # decay of the weights' exponential average, for each update


@dataclass(slots=True)
class History:
    """Losses by epoch, and how the training ended."""

    train: list[list[float]] = field(default_factory=list)  # [member][epoch] mean loss
    validation: list[list[float]] = field(default_factory=list)
    best_epoch: list[int] = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False


def fit(config: Config, dataset: Dataset, progress: Progress) -> tuple[Forecaster, History]:
    """Fit a forecaster. Ctrl-C ends it early and keeps the best so far."""
    started = time.monotonic()
    torch.manual_seed(config.fit.seed)
    torch.set_num_threads(config.fit.threads or os.cpu_count() or 1)
    config = resolve_config(config, dataset)
    model = Forecaster(config)
    fit_scalers(model, dataset, config.train_until_ms)
    progress.stage("solving the linear path")
    fit_linear_path(model, dataset, config)
    progress.stage("folding the readings into the model's inputs")
    prepared = prepare(model, dataset, config, progress.fraction)
    history = History()
    for member in range(config.fit.members):
        torch.manual_seed(config.fit.seed * 1000 + member)
        _fit_member(model, member, prepared, config, history, progress, started)
        if history.interrupted:
            for other in range(member + 1, config.fit.members):  # an ensemble needs each of its members
                model.cells[other].load_state_dict(model.cells[member].state_dict())
                model.heads[other].load_state_dict(model.heads[member].state_dict())
            break
    model.eval()
    weigh_paths(model, prepared, config)
    calibrate(model, prepared, config)
    history.seconds = time.monotonic() - started
    return model, history


def _fit_member(
    model: Forecaster, member: int, data: Prepared, config: Config, history: History, progress: Progress, started: float
) -> None:
    """Train one member of the ensemble; leaves its best weights in the model."""
    fit = config.fit
    parts = nn.ModuleList([model.cells[member], model.heads[member]])
    average = AveragedModel(parts, multi_avg_fn=get_ema_multi_avg_fn(AVERAGING))  # type: ignore[no-untyped-call]
    optimizer = torch.optim.AdamW(parts.parameters(), lr=fit.learning_rate, weight_decay=fit.weight_decay)
    best, best_loss, best_epoch = copy.deepcopy(parts.state_dict()), math.inf, -1
    train_losses: list[float] = []
    validation_losses: list[float] = []
    history.train.append(train_losses)
    history.validation.append(validation_losses)
    generator = np.random.default_rng([fit.seed, member])
    task = progress.epochs(f"member {member + 1} of {fit.members}" if fit.members > 1 else "training", fit.epochs)
    try:
        for epoch in range(fit.epochs):
            for group in optimizer.param_groups:  # one warm-up epoch, then a cosine down to a twentieth
                turn = epoch / max(1, fit.epochs - 1)
                group["lr"] = fit.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * turn)))
            train_losses.append(run_epoch(model, member, parts, average, optimizer, data, config, generator))
            current = copy.deepcopy(parts.state_dict())
            parts.load_state_dict(average.module.state_dict())
            validation_losses.append(validate(model, member, data, config))
            if validation_losses[-1] < best_loss:
                best, best_loss, best_epoch = copy.deepcopy(parts.state_dict()), validation_losses[-1], epoch
            parts.load_state_dict(current)
            task(epoch + 1, train_losses[-1], validation_losses[-1], best_loss)
            out_of_time = (
                fit.max_minutes and time.monotonic() - started > 60 * fit.max_minutes * (member + 1) / fit.members
            )
            if epoch - best_epoch >= fit.patience or out_of_time:
                break
    except KeyboardInterrupt:
        history.interrupted = True
    parts.load_state_dict(best)
    history.best_epoch.append(best_epoch + 1)


def run_epoch(
    model: Forecaster,
    member: int,
    parts: nn.Module,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    data: Prepared,
    config: Config,
    generator: np.random.Generator,
) -> float:
    """One pass over the training rows; the mean loss."""
    model.train()
    allowed = torch.from_numpy(data.ts < config.train_until_ms)
    total, count = 0.0, 0
    for lanes in cut_into_lanes(data, config, generator):
        hidden: Tensor | None = None
        longest = max(end - start for start, end in lanes)
        for begin in range(0, longest, config.fit.window):
            at, inside = steps_of_window(lanes, begin, config.fit.window)
            out, hidden = model.roll(member, data.inputs[at], data.linear[at], hidden)
            hidden = hidden.detach()
            truth = data.future(at, model.h, allowed)
            truth = torch.where(inside[..., None, None], truth, torch.full((), float("nan")))
            loss = pinball(model, out, truth)
            if loss is None:
                continue
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parts.parameters(), config.fit.clip)
            optimizer.step()
            average.update_parameters(parts)
            total, count = total + loss.item(), count + 1
    return total / max(count, 1)


def cut_into_lanes(data: Prepared, config: Config, generator: np.random.Generator) -> Iterator[list[tuple[int, int]]]:
    """Groups of at most `lanes` spans of training steps; where a series is cut moves from epoch to epoch."""
    fit = config.fit
    spans = []
    for start, end in data.spans:
        end = start + int((data.ts[start:end] < config.train_until_ms).sum())
        if end - start > 1:
            spans.append((start, end))
    total = sum(end - start for start, end in spans)
    wanted = max(1, min(fit.lanes, total // (WINDOWS_PER_LANE * fit.window)))
    length = max(-(-total // wanted), min(2 * fit.window, total))
    pieces = []
    for start, end in spans:
        cut = start + (int(generator.integers(1, length)) if end - start > length else 0)
        edges = [start, *range(cut, end, length), end] if cut > start else [*range(start, end, length), end]
        pieces += [(a, b) for a, b in pairwise(edges) if b > a]
    order = generator.permutation(len(pieces))
    pieces = [pieces[i] for i in order]
    for first in range(0, len(pieces), fit.lanes):
        yield pieces[first : first + fit.lanes]


def steps_of_window(lanes: list[tuple[int, int]], begin: int, window: int) -> tuple[Tensor, Tensor]:
    """Steps of a window of each lane [lanes, window], and which of them are inside their lane."""
    starts = torch.tensor([start for start, _ in lanes])[:, None]
    ends = torch.tensor([end for _, end in lanes])[:, None]
    at = starts + begin + torch.arange(window)
    return torch.minimum(at, ends - 1), at < ends


def pinball(model: Forecaster, out: Tensor, truth: Tensor) -> Tensor | None:
    """Mean quantile loss in units of the spread; out [..., horizon, targets, quantiles], truth [..., horizon, targets].

    None where no truth is known.
    """
    known = torch.isfinite(truth)
    if not known.any():
        return None
    error = (truth.nan_to_num()[..., None] - out) / model.spread
    level = torch.tensor(model.quantiles)
    loss = torch.maximum(level * error, (level - 1) * error)
    return 2 * (loss.mean(dim=-1) * known).sum() / known.sum()


def outputs(model: Forecaster, member: int, data: Prepared, since: int, until: int) -> tuple[Tensor, Tensor, Tensor]:
    """(quantiles, linear, truth) of forecasts with a target in [since, until) ms; a row each, NaN for other leads."""
    model.eval()
    mask = torch.from_numpy((data.ts >= since) & (data.ts < until))
    outs, lines, truths = [], [], []
    with torch.no_grad():
        for start, end in data.spans:
            ts = data.ts[start:end]
            begin, stop = start + int((ts < since).sum()), start + int((ts < until).sum())
            if stop == begin:
                continue
            origins = max(start, begin - model.h)
            at = torch.arange(max(start, origins - CONTEXT_STEPS), stop)
            out, _ = model.roll(member, data.inputs[None, at], data.linear[None, at])
            keep = at >= origins
            outs.append(out[0, keep])
            lines.append(data.linear[at[keep]].reshape(-1, model.h, model.d))
            truths.append(data.future(at[keep], model.h, mask))
    return torch.cat(outs), torch.cat(lines), torch.cat(truths)


def validate(model: Forecaster, member: int, data: Prepared, config: Config) -> float:
    """The loss on validation rows; infinite where none of them is known."""
    out, _, truth = outputs(model, member, data, config.train_until_ms, config.validate_until_ms)
    loss = pinball(model, out, truth)
    return math.inf if loss is None else float(loss)


def calibrate(model: Forecaster, data: Prepared, config: Config) -> None:
    """Set the factor by which each quantile's distance from the median must grow for it to be right, for each lead.

    In the spirit of conformalised quantile regression (Romano, Patterson and Candès 2019), multiplicative. Validation
    rows decide, unless the training rows ask for more: a calm season must not narrow the stormy one that follows.
    """
    calm = _factors(model, data, config, -(1 << 62), config.train_until_ms)
    recent = _factors(model, data, config, config.train_until_ms, config.validate_until_ms)
    model.calibration.factors.copy_(torch.maximum(calm, recent).clamp(0.4, 3.0))


def _factors(model: Forecaster, data: Prepared, config: Config, since: int, until: int) -> Tensor:
    """[horizon, targets, quantiles], 1 where too few rows say anything about a tail."""
    scaled, linear, truth = _ensemble(model, data, config, since, until)  # [rows, horizon, targets, quantiles]
    scaled = balanced(model, scaled, linear)
    middle = scaled[..., model.calibration.center]
    factors = torch.ones_like(model.calibration.factors)
    for k, level in enumerate(model.quantiles):
        if k == model.calibration.center:
            continue
        ratio = (truth - middle) / (scaled[..., k] - middle)
        share = level if k > model.calibration.center else 1 - level
        factor = torch.nanquantile(ratio, share, dim=0).nan_to_num(1.0)  # [horizon, targets]
        trusted = torch.isfinite(ratio).sum(dim=0) >= 50
        factors[..., k] = torch.where(trusted, factor, torch.ones(()))
    return factors


def balanced(model: Forecaster, out: Tensor, linear: Tensor) -> Tensor:
    """Quantiles [rows, horizon, targets, quantiles] of a series without readings yet: the two paths, weighted."""
    share = model.calibration.share(model.calibration.prior[..., None]).reshape(linear.shape[1:])
    return out + ((1 - share) * (linear - out[..., model.calibration.center]))[..., None]


def weigh_paths(model: Forecaster, data: Prepared, config: Config) -> None:
    """Set the prior errors of the two paths, used before a series has readings: those on validation rows."""
    scaled, linear, truth = _ensemble(model, data, config, config.train_until_ms, config.validate_until_ms)
    paths = torch.stack([linear, scaled[..., model.calibration.center]], dim=1)  # [rows, paths, horizon, targets]
    errors = (paths - truth[:, None]).abs().clamp(max=WORST).nanmean(dim=0).nan_to_num(1.0)
    model.calibration.prior.copy_(errors[:, [h - 1 for h in model.calibration.scored]].transpose(0, 1))


def _ensemble(
    model: Forecaster, data: Prepared, config: Config, since: int, until: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`outputs` of all members together."""
    parts = [outputs(model, m, data, since, until) for m in range(config.fit.members)]
    return torch.stack([out for out, _, _ in parts]).mean(dim=0), parts[0][1], parts[0][2]
