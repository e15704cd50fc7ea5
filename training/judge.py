"""What the truth says of earlier forecasts, and what follows from it for the next: score, interval width, balance.

Each forecast of a scored lead waits in a queue in the state until its truth comes. Then it is scored; its interval is
widened or narrowed; and the two paths behind it, the linear one and the recurrent one, are held against each other, so
that a series on which one of them fails goes on with the other.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from service.spec import Diagnostic
from training.config import Config
from training.experts import NOTHING, PRIOR_STEPS, WORST
from training.units import Units

EDGE = 0.1  # of an interval's width, over which a hit becomes a miss
NARROWEST_SPAN = 1e-6  # of an interval, in deviations
NARROWEST, WIDEST = -1.5, 3.0  # intervals shrink to a quarter at the least, and grow twentyfold at the most
WIDEST_LOG = 1.5  # of logarithms: there an interval is a factor, and twenty times one is no forecast
FORGETTING = 0.01  # of the two paths' running errors, a step
DECISIVENESS = 40.0  # how sharply the better path is preferred
LINEAR, RECURRENT = 0, 1  # the paths
QUEUED = 5  # columns of a queue: the median, the interval's ends, and the medians of the two paths


class Due(NamedTuple):
    """What has come true at this step."""

    x: Tensor  # [batch, features] raw
    observed: Tensor  # [batch, targets] bool
    clipped: Tensor  # [batch, targets] bool
    now: Tensor  # [batch, targets] scaled
    scale: Tensor  # [batch, targets] of the local units
    naive: dict[int, Tensor]  # scored lead -> [batch, targets] scaled: the value that many steps before
    age: Tensor  # [batch, 1] steps before this one
    seen: Tensor  # [batch, targets] 1 where a value was observed before


class Judge(nn.Module):
    """Scores at `scored` leads; its part of the state is `widening`, `path_errors` and a queue for each lead."""

    calibration: Tensor  # [horizon, targets, quantiles]
    between: Tensor  # [horizon, scored] weights of the scored leads for each lead
    prior: Tensor  # [scored, 2, targets] the paths' running errors before anything is known

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.targets, self.d = config.targets, len(config.targets)
        self.scored, self.adaptation = config.score_horizons, config.model.interval_adaptation
        self.quantiles = config.model.quantiles
        self.center = min(range(len(self.quantiles)), key=lambda i: abs(self.quantiles[i] - 0.5))
        self.level = round(self.quantiles[-1] - self.quantiles[0], 6)
        self.widest = WIDEST_LOG if config.model.transform == "log" else WIDEST
        self.register_buffer("calibration", torch.ones(config.model.horizon, self.d, len(self.quantiles)))
        self.register_buffer("between", _between(self.scored, config.model.horizon))
        self.register_buffer("prior", torch.ones(len(self.scored), 2, self.d))

    @property
    def layout(self) -> list[tuple[str, tuple[int, ...]]]:
        """Its slices of the state, in order."""
        queues = [(f"pending_{h}", (h, self.d, QUEUED)) for h in self.scored]
        return [("widening", (len(self.scored), self.d)), ("path_errors", (len(self.scored), 2, self.d)), *queues]

    @property
    def diagnostics(self) -> list[Diagnostic]:
        """The columns of `score`, in order."""
        out = []
        for h in self.scored:
            for t in self.targets:
                tail = f"{t}_{h}"
                out.append(Diagnostic(f"absolute_error_{tail}", "absolute_error", t, h))
                out.append(Diagnostic(f"naive_error_{tail}", "naive_error", t, h))
                out.append(Diagnostic(f"inside_{tail}", "inside", t, h, self.level))
                out.append(Diagnostic(f"surprise_{tail}", "surprise", t, h))
        return out + [Diagnostic(f"clipped_{t}", "clipped", t, 0) for t in self.targets]

    def forward(self, units: Units, due: Due, parts: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(score [batch, columns], widening after, path errors after) of one step.

        Adaptive conformal inference (Gibbs and Candès 2021): a miss widens, a hit narrows a little, so that in the long
        run the widest interval holds what it says, whatever the series does.
        """
        truth = torch.where(due.observed, due.x[:, : self.d], torch.zeros_like(due.now))  # [batch, targets] raw
        nothing = torch.full_like(truth, float("nan"))
        least = NARROWEST_SPAN * units.small()
        columns, moves, errors = [], [], []
        for i, h in enumerate(self.scored):
            queued = parts[f"pending_{h}"][:, 0]  # [batch, targets, QUEUED] scaled
            middle, lower, upper = units.unscale(queued[..., :3]).unbind(dim=-1)
            naive = units.unscale(due.naive[h][..., None])[..., 0]
            error = torch.abs(truth - middle)
            scored = due.observed & (due.age >= h) & (due.seen > 0)
            inside = ((truth >= lower) & (truth <= upper)).to(truth.dtype)
            surprise = error / torch.clamp((upper - lower) / 2, min=least)
            for column in (error, torch.abs(truth - naive), inside, surprise):
                columns.append(torch.where(scored, column, nothing))
            # Not the yes or no of `inside`: rounding must not decide it one way in torch and the other in onnxruntime.
            edge = torch.clamp(EDGE * (upper - lower), min=least)
            held = torch.clamp(torch.minimum(truth - lower, upper - truth) / edge + 0.5, min=0.0, max=1.0)
            moves.append(torch.where(scored, self.level - held, torch.zeros_like(held)))

            missed = torch.abs(due.now[:, None] - queued[..., 3:].transpose(1, 2)) / due.scale[:, None]
            known = torch.clamp(due.age - h, min=0.0)[:, :, None]  # errors so far
            rate = torch.clamp(1 / (known + PRIOR_STEPS), min=FORGETTING)
            old = parts["path_errors"][:, i]  # [batch, paths, targets]
            errors.append(torch.where(scored[:, None], old + rate * (missed.clamp(max=WORST) - old), old))
        by_target = torch.stack(columns, dim=2).reshape(-1, self.d, len(self.scored), 4)
        clipped = torch.where(due.clipped, torch.ones_like(truth), nothing)  # said only where it happened
        score = torch.cat([by_target.permute(0, 2, 1, 3).flatten(1), clipped], dim=1)
        moved = parts["widening"] + self.adaptation * torch.stack(moves, dim=1)  # [batch, scored, targets]
        return score, torch.clamp(moved, min=NARROWEST, max=self.widest), torch.stack(errors, dim=1)

    def balance(self, outs: Tensor, linear: Tensor, errors: Tensor) -> Tensor:
        """Quantiles moved towards the linear path as far as that did better of late.

        outs [batch, horizon, targets, quantiles], linear [batch, horizon, targets], errors [batch, scored, 2, targets].
        """
        share = (errors[:, :, LINEAR] - errors[:, :, RECURRENT]) / (errors.amin(dim=2) + NOTHING)
        weight = torch.matmul(self.between, torch.sigmoid(DECISIVENESS * share))  # [batch, horizon, targets]
        return outs + ((1 - weight) * (linear - outs[..., self.center]))[..., None]

    def calibrate(self, outs: Tensor, widening: Tensor | None = None) -> Tensor:
        """Stretch each quantile about the median, keeping the order; outs [..., horizon, targets, quantiles].

        By what validation rows asked for, and by what the series itself has asked for since: `widening`
        [..., scored, targets], in logarithms, given for some leads and interpolated between them.
        """
        middle = outs[..., self.center : self.center + 1]
        factor = self.calibration
        if widening is not None and self.adaptation > 0:
            factor = factor * torch.exp(torch.matmul(self.between, widening))[..., None]
        moved = middle + factor * (outs - middle)
        columns = [middle]
        for k in range(self.center + 1, len(self.quantiles)):
            columns.append(torch.maximum(columns[-1], moved[..., k : k + 1]))
        for k in range(self.center - 1, -1, -1):
            columns.insert(0, torch.minimum(columns[0], moved[..., k : k + 1]))
        return torch.cat(columns, dim=-1)

    def enqueue(self, parts: dict[str, Tensor], said: Tensor, linear: Tensor, recurrent: Tensor) -> list[Tensor]:
        """The queues, with what is forecast now: quantiles [batch, horizon, targets, quantiles], paths [..., targets].

        All scaled.
        """
        queues = []
        for h in self.scored:
            ends = said[:, h - 1][..., [self.center, 0, len(self.quantiles) - 1]]  # [batch, targets, 3]
            fresh = torch.cat([ends, linear[:, h - 1, :, None], recurrent[:, h - 1, :, None]], dim=-1)
            queues.append(torch.cat([parts[f"pending_{h}"][:, 1:], fresh[:, None]], dim=1))
        return queues


def _between(scored: list[int], horizon: int) -> Tensor:
    """[horizon, scored]: each lead's weights of its scored neighbours, linear in the logarithm of the lead."""
    at = [math.log(h) for h in scored]
    weights = torch.zeros(horizon, len(scored))
    for lead in range(1, horizon + 1):
        x = min(max(math.log(lead), at[0]), at[-1])
        right = next(i for i, a in enumerate(at) if a >= x)
        left = max(right - 1, 0)
        share = 1.0 if right == left else (x - at[left]) / (at[right] - at[left])
        weights[lead - 1, right] += share
        weights[lead - 1, left] += 1.0 - share
    return weights
