"""The linear experts of the graph, and how much each is trusted: a mixture that follows each series as it changes.

The first expert is the primary ridge of `training.linear.ridge`, which knows all targets, covariates and the calendar;
the others are the bank of `training.linear.expert_bank`. Their forecasts are averaged by weights that fall with each
expert's running error: the exponentially weighted average forecaster (Cesa-Bianchi and Lugosi 2006, chapter 2), with
forgetting, in units of the best expert's error, so that it is the same for a series of any size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tidecast.training.model.calendar import Calendar

FARTHEST_HINDSIGHT = 96  # at most so many steps back, the experts' forecasts are scored
FORGETTING = (0.0025, 0.005, 0.01, 0.02, 0.05)  # of the running errors, a step; validation rows choose one
PRIOR_STEPS = 20.0  # that the errors on validation rows count for
DECISIVENESS = 13.0  # how sharply the better experts are preferred
WORST = 5.0  # one wild jump must not decide for long
NOTHING = 0.03  # errors far below this do not tell experts apart


SAME_SUM = 128  # inputs of a product whose columns are a batch: beyond it onnxruntime sums some batches in two parts


def error_of(said: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error over the leads: said [experts, leads, targets, batch], truth [leads, targets, batch]."""
    return (said - truth).abs().clamp(max=WORST).mean(dim=1)


class Products(NamedTuple):
    """What one matrix makes of past values: all that is linear in them. Rows by lead, then by target."""

    now: Tensor  # [count * horizon * targets, batch] the experts' forecasts, without covariates and calendar
    picked: Tensor  # [picks * targets, batch] past values themselves
    then: Tensor  # [count * hindsight * targets, batch] the forecasts of `hindsight` steps ago
    since: Tensor  # [hindsight * targets, batch] what came after that


class ExpertMixture(nn.Module):
    """`count` linear forecasters of every lead of every target, in the units that their past comes in."""

    weight: Tensor  # [horizon * targets, history * targets + covariates]
    bias: Tensor  # [horizon * targets]
    bank_weight: Tensor  # [targets, history, (count - 1) * horizon]
    bank_bias: Tensor  # [targets, 1, (count - 1) * horizon]
    matrix: Tensor  # [rows, (history + hindsight) * targets] what past values are multiplied with: see `assemble`
    offset: Tensor  # [rows]
    prior: Tensor  # [count, targets] the running errors before anything is known
    forgetting: Tensor  # [] share of the running errors that is replaced at each step

    def __init__(
        self,
        count: int,
        horizon: int,
        targets: int,
        covariates: int,
        history: int,
        picks: list[int],
        calendar: Calendar,
    ) -> None:
        """`picks`: steps back from the newest, of the values that are wanted themselves."""
        super().__init__()
        self.count, self.h, self.d, self.history, self.picks = count, horizon, targets, history, picks
        self.hindsight = self.looks_back(count, horizon)
        self.slots, self.asked = calendar.count, calendar.asked
        self.register_buffer("weight", torch.zeros(horizon * targets, history * targets + covariates))
        self.register_buffer("bias", torch.zeros(horizon * targets))
        for name, parts in self.slots.items():
            self.register_buffer(f"slots_{name}", torch.zeros(parts, horizon * targets))
        self.register_buffer("bank_weight", torch.zeros(targets, history, (count - 1) * horizon))
        self.register_buffer("bank_bias", torch.zeros(targets, 1, (count - 1) * horizon))
        self.register_buffer("prior", torch.ones(count, targets))
        self.register_buffer("forgetting", torch.tensor(FORGETTING[2]))
        self.assemble()

    def assemble(self) -> None:
        """Make of the weights what a step multiplies with; to be called again when they change."""
        near = self._matrix(self.hindsight, self.h, self.picks)
        far = self._matrix(0, self.hindsight, list(reversed(range(self.hindsight))))
        self.sizes = [len(part) for part in (*near[0], *far[0])]  # as `Products`
        self.register_buffer("matrix", torch.cat([*near[0], *far[0]]), persistent=False)
        self.register_buffer("offset", torch.cat([*near[1], *far[1]]), persistent=False)
        for name in self.asked:  # where the slots of shorter periods lie in its own, they are in its table too
            inside = [other for other in self.slots if other not in self.asked]
            table = self.get_buffer(f"slots_{name}")
            for other in inside:
                shorter = self.get_buffer(f"slots_{other}")
                table = table + shorter.repeat(len(table) // len(shorter), 1)
            self.register_buffer(f"table_{name}", table.clone(), persistent=False)

    @staticmethod
    def looks_back(count: int, horizon: int) -> int:
        """How many steps back the forecasts of `count` experts are scored; 0 = not."""
        return min(horizon, FARTHEST_HINDSIGHT) if count > 1 else 0

    def forward(self, past: Tensor, back: Tensor) -> Products:
        """past [batch, (history + hindsight) * targets], the newest value last.

        `back` is the same in the units of `hindsight` steps ago, or `past` itself where units do not change: then one
        matrix does for both.
        """
        at = len(self.matrix) if back is past else sum(self.sizes[:2])
        rows = F.linear(past, self.matrix[:at], self.offset[:at]).T
        if at < len(self.matrix):
            rows = torch.cat([rows, F.linear(back, self.matrix[at:], self.offset[at:]).T])
        found = iter(rows.split_with_sizes([size for size in self.sizes if size]))
        now, picked, then, since = (next(found) if size else past[:, :0].T for size in self.sizes)
        if self.count > 1 and self.d > 1:
            now = torch.cat([now, self._banks(past, self.hindsight, self.h)])
            then = torch.cat([then, self._banks(back, 0, self.hindsight)])
        return Products(now, picked, then, since)

    def _matrix(self, start: int, leads: int, picks: list[int]) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and biases of the forecasts from the values from `start` on, and of picks.

        Each bank of a target sees that target alone: a single target's is in the matrix too, see `_banks` for others.
        """
        d, steps, rows = self.d, self.history + self.hindsight, leads * self.d
        weight, bias = self.weight[:rows, : self.history * d], self.bias[:rows]
        if self.count > 1 and d == 1:
            near = self._leads(leads)
            weight = torch.cat([weight, self.bank_weight[0].T[near]])
            bias = torch.cat([bias, self.bank_bias[0, 0, near]])
        padded = F.pad(weight, (start * d, (self.hindsight - start) * d))
        columns = torch.tensor([(steps - 1 - pick) * d + t for pick in picks for t in range(d)], dtype=torch.int64)
        one_hot = (torch.arange(steps * d) == columns[:, None]).to(torch.float32)
        return [padded, one_hot], [bias, torch.zeros(len(one_hot))]

    def _banks(self, past: Tensor, start: int, leads: int) -> Tensor:
        """Forecasts [others * leads * targets, batch] of all but the first expert, each from its target alone."""
        window = torch.unflatten(past, 1, (-1, self.d))[:, start : start + self.history].permute(2, 0, 1)
        near = self._leads(leads)
        said = torch.matmul(window, self.bank_weight[:, :, near]) + self.bank_bias[:, :, near]
        return said.permute(2, 0, 1).flatten(0, 1)

    def _leads(self, leads: int) -> list[int]:
        """The first leads of each expert of a bank."""
        return [e * self.h + lead for e in range(self.count - 1) for lead in range(leads)]

    def finish(self, products: Tensor, covariates: Tensor, slots: list[Tensor]) -> Tensor:
        """The forecasts [count, leads, targets, batch], with covariates [covariates, batch] and slots [batch] each.

        `slots` are of the periods in `asked`.
        """
        rows = len(products) // self.count
        first = products[:rows]
        if len(covariates):
            first = first + times(self.weight[:rows, self.history * self.d :], covariates)
        for name, slot in zip(self.asked, slots, strict=True):
            first = first + F.embedding(slot, self.get_buffer(f"table_{name}")[:, :rows]).T
        if self.count == 1:
            return torch.unflatten(first, 0, (1, rows // self.d, self.d))
        return torch.unflatten(torch.cat([first, products[rows:]]), 0, (self.count, rows // self.d, self.d))

    def review(self, errors: Tensor, error: Tensor, age: Tensor) -> Tensor:
        """Running errors [count, targets, batch] after one more `error`; age [1, batch] = steps before this."""
        weight = torch.minimum(
            age + (PRIOR_STEPS - self.hindsight), 1 / self.forgetting
        )  # errors so far, and the prior
        return errors + torch.where(age > self.hindsight + 1, (error - errors) / weight, torch.zeros(()))

    def mix(self, forecasts: Tensor, errors: Tensor) -> Tensor:
        """Forecasts [leads * targets, batch] of [count, leads, targets, batch], weighted by recent errors.

        The weights are a softmax. The best expert's is above exp(-DECISIVENESS) before they are made to sum to 1.
        """
        if self.count == 1:
            return forecasts.flatten(0, 2)
        share = errors / (errors.amin(dim=0, keepdim=True) + NOTHING)  # [count, targets, batch]
        weights = torch.exp(-DECISIVENESS * share)
        return ((weights[:, None] * forecasts).sum(dim=0) / weights.sum(dim=0)).flatten(0, 1)


def times(weight: Tensor, columns: Tensor) -> Tensor:
    """weight [outputs, inputs] @ columns [inputs, batch], summed in an order that does not depend on the batch."""
    out = torch.matmul(weight[:, :SAME_SUM], columns[:SAME_SUM])
    for start in range(SAME_SUM, len(columns), SAME_SUM):
        out = out + torch.matmul(weight[:, start : start + SAME_SUM], columns[start : start + SAME_SUM])
    return out
