"""Scores earlier forecasts once their truth is known, and adapts the interval width and the weights of the two paths.

Each forecast of a scored lead waits in a queue in the state until its truth comes. Then it is scored, its interval is
widened or narrowed, and the errors of its two paths, the linear and the recurrent one, are compared. A series on which
one path fails continues with the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tidecast.service.model.spec import Diagnostic
from tidecast.training.config import Config
from tidecast.training.model.expert_mixture import NOTHING, PRIOR_STEPS, WORST, times

EDGE = 0.1  # of an interval's width, over which a hit becomes a miss
NARROWEST_SPAN = 1e-6  # of an interval, in deviations
NARROWEST, WIDEST = -1.5, 3.0  # an interval shrinks to a quarter at most, and grows twentyfold at most
WIDEST_LOG = 1.5  # of logarithms: there an interval is a factor, and twenty times one is no forecast
FORGETTING = 0.01  # of the two paths' running errors, a step
DECISIVENESS = 40.0  # how sharply the better path is preferred
LINEAR, RECURRENT = 0, 1  # the paths
QUEUED = 3  # rows of a queue: the median and the interval's ends, raw; then the medians of the two paths, scaled


class Observed(NamedTuple):
    """What has come true at this step."""

    x: Tensor  # [targets, batch] raw, NaN = missing
    observed: Tensor  # [targets, batch] bool: now, and before too
    clipped: Tensor  # [targets, batch] bool
    now: Tensor  # [targets, batch] scaled
    scale: Tensor | None  # [targets, batch] of the local units; None = 1
    naive: Tensor  # [scored * targets, batch] raw: the values as many steps before as a lead is long
    age: Tensor  # [1 or targets, batch] steps before this one
    least: Tensor  # [targets, 1 or batch] raw: the narrowest an interval counts as


class QuantileFan(NamedTuple):
    """Quantiles of each lead and target as one and what lies on its two sides."""

    middle: Tensor  # [horizon * targets, ...] the quantile nearest to the median
    reach: Tensor  # [quantiles - 1, horizon * targets, ...] distances from it, by `OnlineCalibration.order`


class OnlineCalibration(nn.Module):
    """Scores at `scored` leads; its part of the state is `widening`, `path_errors` and a queue for each lead.

    A model with one path (`paths` = 0) has no `path_errors`.
    """

    factors: Tensor  # [horizon, targets, quantiles]
    between: Tensor  # [horizon, scored] weights of the scored leads for each lead
    prior: Tensor  # [scored, 2, targets] the paths' running errors before anything is known

    def __init__(
        self, targets: list[str], horizon: int, scored: list[int], quantiles: list[float], adaptation: float,
        widest: float, *, paths: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.targets, self.d, self.h, self.paths = targets, len(targets), horizon, paths
        self.scored, self.adaptation, self.widest = scored, adaptation, widest
        self.quantiles, self.q = quantiles, len(quantiles)
        self.center = min(range(self.q), key=lambda i: abs(self.quantiles[i] - 0.5))
        # The quantiles from the centre outwards: below and above in turn, then what is left of the longer side.
        away = range(1, self.q)
        rings = [[k for k in (self.center - i, self.center + i) if 0 <= k < self.q] for i in away]
        self.order = [self.center, *(k for ring in rings for k in ring)]
        self.rings = [ring for ring in rings if ring]
        self.level = round(self.quantiles[-1] - self.quantiles[0], 6)
        self.register_buffer("factors", torch.ones(horizon, self.d, self.q))
        self.register_buffer("between", _between(self.scored, horizon))
        self.register_buffer("prior", torch.ones(len(self.scored), paths, self.d))

    @classmethod
    def of(cls, config: Config) -> OnlineCalibration:
        """That of a trained model."""
        widest = WIDEST_LOG if config.model.transform == "log" else WIDEST
        model = config.model
        return cls(config.targets, model.horizon, config.score_horizons, model.quantiles, model.interval_adaptation,
                   widest, paths=2)  # fmt: skip

    @property
    def layout(self) -> list[tuple[str, tuple[int, ...]]]:
        """Its slices of the state, in order."""
        queues = [(f"pending_{h}", (h, QUEUED + self.paths, self.d)) for h in self.scored]
        paths = [("path_errors", (len(self.scored), self.paths, self.d))] if self.paths else []
        return [("widening", (len(self.scored), self.d)), *paths, *queues]

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

    def forward(self, due: Observed, parts: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """score [batch, columns]; after this step: widening [rows, batch], path errors [scored, paths, targets, batch].

        `parts`: its own slices of the state, [rows, batch] each; of the queues only the oldest forecasts.

        Adaptive conformal inference (Gibbs and Candès 2021): a miss widens, a hit narrows a little, so that in the long
        run the widest interval holds what it says, whatever the series does.
        """
        count, d = len(self.scored), self.d
        queued = torch.cat([parts[f"pending_{h}"] for h in self.scored]).reshape(count, QUEUED + self.paths, d, -1)
        middle, lower, upper, paths = queued.split_with_sizes(
            [1, 1, 1, self.paths], dim=1
        )  # [scored, ., targets, batch]
        naive = due.naive.reshape(count, 1, d, -1)
        leads = torch.tensor(self.scored, dtype=torch.float32)[:, None, None, None]
        scored = (due.age >= leads) & due.observed  # [scored, 1, targets, batch]
        nothing = torch.full((), float("nan"))

        error = torch.abs(due.x - torch.cat([middle, naive], dim=1))
        width, inside = upper - lower, torch.minimum(due.x - lower, upper - due.x)  # how far inside the interval
        surprise = error[:, :1] / torch.maximum(width * 0.5, due.least)
        columns = torch.cat([error, (inside >= 0).to(error.dtype), surprise], dim=1)
        columns = torch.where(scored, columns, nothing)
        columns = columns.flatten(0, 2) if d == 1 else columns.transpose(1, 2).flatten(0, 2)
        clipped = torch.where(due.clipped, torch.ones(()), nothing)  # said only where it happened
        score = torch.cat([columns, clipped]).T

        # Not the yes or no of `inside`: rounding must not decide it one way in torch and the other in onnxruntime.
        widening = parts["widening"]
        if self.adaptation > 0:
            edge = torch.maximum(width * (EDGE / self.adaptation), due.least / self.adaptation)
            middling = self.adaptation * (self.level - 0.5)
            move = torch.clamp(
                middling - inside / edge, min=self.adaptation * (self.level - 1), max=self.adaptation * self.level
            )
            moved = widening + torch.where(scored, move, torch.zeros(())).flatten(0, 2)
            widening = torch.clamp(moved, min=NARROWEST, max=self.widest)

        if not self.paths:
            return score, widening, paths
        missed = torch.abs(due.now - paths)  # [scored, 2, targets, batch]
        missed = (missed if due.scale is None else missed / due.scale).clamp(max=WORST)
        known = (due.age + (PRIOR_STEPS - leads)).clamp(max=1 / FORGETTING)  # errors so far, and what the prior counts
        old = parts["path_errors"].reshape(count, 2, d, -1)
        errors = old + torch.where(scored, (missed - old) / known, torch.zeros(()))
        return score, widening, errors

    def share(self, errors: Tensor) -> Tensor:
        """How far each lead goes with the recurrent path: [horizon * targets, batch] in (0, 1), 0 = linear alone.

        errors [scored, 2, targets, batch], the two paths' running errors.
        """
        linear, recurrent = errors.split_with_sizes([1, 1], dim=1)
        better = (linear - recurrent) / (torch.minimum(linear, recurrent) + NOTHING)
        return self.interpolated(torch.sigmoid(DECISIVENESS * better).flatten(1))

    def stretched(self, reach: Tensor, widening: Tensor | None = None) -> Tensor:
        """Distances from the median as they are to be, still in order; [quantiles - 1, horizon * targets, batch].

        Scaled by the factors from validation rows and by the series' own `widening` since then
        [scored * targets, batch], in logarithms, given for some leads and interpolated between them.
        """
        factor = self.factors.permute(2, 0, 1).flatten(1)[self.order[1:], :, None]
        if widening is not None and self.adaptation > 0:
            factor = factor * torch.exp(self.interpolated(widening.reshape(len(self.scored), -1)))
        return self.outwards(factor * reach, torch.maximum)

    def outwards(self, rows: Tensor, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Fold `join` over each side from the centre outwards; rows [quantiles - 1, ...] by `order`."""
        if not len(rows):
            return rows
        parts = list(rows.split_with_sizes([len(ring) for ring in self.rings]))
        for i in range(1, len(parts)):
            inner, outer = self.rings[i - 1], self.rings[i]
            # Where only one side continues: its own row of the ring before.
            before = (
                parts[i - 1]
                if len(inner) == len(outer)
                else parts[i - 1][:1]
                if outer[0] < self.center
                else parts[i - 1][1:]
            )
            parts[i] = join(before, parts[i])
        return torch.cat(parts)

    def quantile_rows(self, fan: QuantileFan) -> Tensor:
        """The quantiles [quantiles, horizon * targets, ...], ascending; they cannot cross."""
        if self.q == 1:
            return fan.middle[None]
        at = [self.order.index(k) - 1 if k != self.center else 0 for k in range(self.q)]
        sign = torch.sign(torch.arange(self.q) - self.center).to(fan.middle.dtype)
        return fan.middle + sign.reshape(-1, *[1] * fan.middle.dim()) * fan.reach.index_select(0, torch.tensor(at))

    def enqueued(self, said: Tensor, *paths: Tensor) -> list[Tensor]:
        """What joins each queue: [(QUEUED + paths) * targets, batch] for each scored lead.

        said [quantiles, horizon * targets, batch] raw; the paths [horizon * targets, batch] scaled.
        """
        pool = torch.cat([said.flatten(0, 1), *paths])
        kinds = (self.center, 0, self.q - 1, *(self.q + path for path in range(self.paths)))
        rows = [[(kind * self.h + h - 1) * self.d + t for kind in kinds for t in range(self.d)] for h in self.scored]
        return [pool.index_select(0, torch.tensor(each)) for each in rows]

    def interpolated(self, rows: Tensor) -> Tensor:
        """[scored, targets * batch], given for the scored leads, for all of them: [horizon * targets, batch]."""
        out = times(self.between, rows)
        return out if self.d == 1 else out.reshape(self.h * self.d, -1)

    def by_lead(self, rows: Tensor) -> Tensor:
        """[quantiles, horizon * targets, batch] as [horizon * targets * quantiles, batch]."""
        size = self.h * self.d
        return rows.flatten(0, 1).index_select(0, torch.arange(self.q * size).reshape(self.q, size).T.flatten())


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
