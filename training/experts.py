"""The linear experts of the graph, and how much each is trusted: a mixture that follows each series as it changes.

The first expert is the primary ridge of `training.linear`, which knows all targets, covariates and the calendar; the
others are the bank of `training.bank`. Their forecasts are averaged by weights that fall with each expert's running
error: the exponentially weighted average forecaster (Cesa-Bianchi and Lugosi 2006, chapter 2), with forgetting, in
units of the best expert's error, so that it is the same for a series of any size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FARTHEST_HINDSIGHT = 96  # steps back at the most from which the experts are judged
FORGETTING = (0.0025, 0.005, 0.01, 0.02, 0.05)  # of the running errors, a step; validation rows choose one
PRIOR_STEPS = 20.0  # that the errors on validation rows count for
DECISIVENESS = 13.0  # how sharply the better experts are preferred
WORST = 5.0  # one wild jump must not decide for long
NOTHING = 0.03  # errors far below this do not tell experts apart


def error_of(said: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error over the leads: said [batch, experts, leads, targets], truth [batch, leads, targets]."""
    return (said - truth[:, None]).abs().clamp(max=WORST).mean(dim=2)


class Experts(nn.Module):
    """`count` linear forecasters of every lead of every target, in the units that their past comes in."""

    weight: Tensor  # [horizon * targets, history * targets + covariates]
    bias: Tensor  # [horizon * targets]
    bank_weight: Tensor  # [targets, history, (count - 1) * horizon]
    bank_bias: Tensor  # [targets, 1, (count - 1) * horizon]
    prior: Tensor  # [count, targets] the running errors before anything is known
    forgetting: Tensor  # [] share of the running errors that is replaced at each step

    def __init__(
        self,
        count: int,
        horizon: int,
        targets: int,
        covariates: int,
        history: int,
        slots: dict[str, tuple[int, int, int]],
    ) -> None:
        """`slots`: of each calendar period its length, the length of one slot (ms) and how many there are."""
        super().__init__()
        self.count, self.h, self.d, self.history, self.slots = count, horizon, targets, history, slots
        self.hindsight = min(horizon, FARTHEST_HINDSIGHT) if count > 1 else 0  # steps back from which they are judged
        self.register_buffer("weight", torch.zeros(horizon * targets, history * targets + covariates))
        self.register_buffer("bias", torch.zeros(horizon * targets))
        for name, (_, _, parts) in slots.items():
            self.register_buffer(f"slots_{name}", torch.zeros(parts, horizon * targets))
        self.register_buffer("bank_weight", torch.zeros(targets, history, (count - 1) * horizon))
        self.register_buffer("bank_bias", torch.zeros(targets, 1, (count - 1) * horizon))
        self.register_buffer("prior", torch.ones(count, targets))
        self.register_buffer("forgetting", torch.tensor(FORGETTING[2]))

    def forward(self, past: Tensor, covariates: Tensor, ts: Tensor) -> Tensor:
        """Forecasts [batch, count, horizon, targets] from past [batch, history, targets], covariates [batch, .], ts."""
        primary = F.linear(torch.cat([past.flatten(1), covariates], dim=1), self.weight, self.bias)
        for name, (period, part, _) in self.slots.items():
            slot = whole_parts(torch.remainder(ts, period), part)  # [batch] int64: exact
            primary = primary + self.get_buffer(f"slots_{name}")[slot]
        primary = primary.reshape(-1, 1, self.h, self.d)
        if self.count == 1:
            return primary
        bank = (
            torch.matmul(past.permute(2, 0, 1), self.bank_weight) + self.bank_bias
        )  # [targets, batch, others * horizon]
        others = bank.reshape(self.d, -1, self.count - 1, self.h).permute(1, 2, 3, 0)
        return torch.cat([primary, others], dim=1)

    def review(self, errors: Tensor, error: Tensor, age: Tensor) -> Tensor:
        """Running errors [batch, count, targets] after one more `error`; age [batch, 1] = steps before this."""
        known = torch.clamp(age - self.hindsight, min=0.0)[:, :, None]  # errors so far
        rate = torch.maximum(1 / (known + PRIOR_STEPS), self.forgetting)
        return torch.where((age > self.hindsight + 1)[:, :, None], errors + rate * (error - errors), errors)

    def mix(self, forecasts: Tensor, errors: Tensor) -> Tensor:
        """Forecasts [batch, horizon, targets], averaged by how well each expert did of late."""
        if self.count == 1:
            return forecasts[:, 0]
        share = errors / (errors.amin(dim=1, keepdim=True) + NOTHING)  # [batch, count, targets]
        weights = torch.softmax(-DECISIVENESS * share, dim=1)
        return (weights[:, :, None] * forecasts).sum(dim=1)


def whole_parts(ms: Tensor, part: int) -> Tensor:
    """ms // part as int64. The exporter divides integers as float32, which is exact enough only for whole multiples."""
    return torch.round((ms - torch.remainder(ms, part)).to(torch.float32) / part).to(torch.int64)
