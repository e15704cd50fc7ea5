"""The starter: a whole forecaster that needs no training, as one torch module that keeps the graph's contract.

    y, next_state, score = starter(x, ts, state)

All that it knows of a series is learned from it, in its state: see `training.model.online_mixture`. Intervals are
normal ones of the running errors, widened and narrowed by `training.model.online_calibration`. A missing value is
replaced by the forecast made for it one step earlier. Inside, the batch is the last axis, and each target of each
series is a column of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import NormalDist

import torch
from torch import Tensor, nn

from tidecast.service.model.spec import Diagnostic
from tidecast.training.model.anomaly_score import RAW_LIMIT, AnomalyScore
from tidecast.training.model.online_calibration import NARROWEST_SPAN, WIDEST, Observed, OnlineCalibration
from tidecast.training.model.online_mixture import OnlineMixture
from tidecast.training.model.online_recipe import Recipe
from tidecast.training.model.state_layout import Parts, StateLayout, columns

ADAPTATION = 0.02  # of intervals, as a trained model's
WAITING = 2  # rows of a forecast that waits for its truth: its middle and its width
SPREAD = 1.4  # deviations in mean absolute errors: a normal's is 1.25, but errors have longer tails


@dataclass(frozen=True, kw_only=True)
class StarterShape:
    """All that a starter is made from. Features are the targets, then the others."""

    targets: list[str]
    others: list[str]
    step_ms: int
    horizon: int
    quantiles: list[float]
    recipe: Recipe = field(default_factory=Recipe)
    alarms_a_week: float = 0.0  # 0 = no anomaly score

    @property
    def scored(self) -> list[int]:
        """Steps ahead at which it scores itself."""
        return sorted({1, self.horizon})


class Starter(nn.Module):
    """A stateful quantile forecaster in raw units; `state` is flat, its parts are named in `slices`."""

    def __init__(self, shape: StarterShape) -> None:
        super().__init__()
        self.shape, self.d, self.h = shape, len(shape.targets), shape.horizon
        self.features = self.d + len(shape.others)
        self.mixture = OnlineMixture(shape.step_ms, shape.horizon, shape.recipe)
        self.calibration = OnlineCalibration(
            shape.targets, shape.horizon, shape.scored, shape.quantiles, ADAPTATION, WIDEST, paths=0
        )
        self.anomalies = AnomalyScore(shape.alarms_a_week, shape.step_ms) if shape.alarms_a_week > 0 else None
        rest: Parts = [("expected", (self.d,)), *((name, (rows, self.d)) for name, rows in self.mixture.layout)]
        rest.append(("widening", (len(shape.scored), self.d)))
        rest += [(f"pending_{h}", (h, WAITING, self.d)) for h in shape.scored]
        if self.anomalies is not None:
            rest += [(name, (rows, self.d)) for name, rows in self.anomalies.layout]
        queues = [*self.mixture.queues, *(name for name, _ in rest if name.startswith("pending_"))]
        self.layout = StateLayout([], rest, queues)
        self.slices, self.state_size = self.layout.slices, self.layout.size
        self.normal = torch.tensor([NormalDist().inv_cdf(q) * SPREAD for q in shape.quantiles])

    @property
    def diagnostics(self) -> list[Diagnostic]:
        """The columns of `score`, in order."""
        anomalies = [] if self.anomalies is None else self.anomalies.diagnostics(self.shape.targets)
        return [*self.calibration.diagnostics, *anomalies]

    @property
    def warmup(self) -> int:
        """Steps after which forecasts are trusted: two of the shortest season, or some dozens."""
        return max(48, min(2 * self.mixture.spans[0], 600))

    def initial_state(self) -> Tensor:
        """[state] before any reading: zeros, except that all experts start alike."""
        state = torch.zeros(self.state_size)
        part = next(each for each in self.slices if each.name == "errors")
        first = self.mixture.first_errors().repeat_interleave(self.d)
        state[part.start : part.start + len(first)] = first
        return state

    def forward(self, x: Tensor, ts: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step. x [batch, features] raw, ts [batch] ms, state [batch, state]: y, next_state, score."""
        batch, d = x.shape[0], self.d
        oldest, kept = self.layout.unpack(state)
        raw = x.T[:d]  # [targets, batch]
        limited = raw.clamp(-RAW_LIMIT, RAW_LIMIT)
        there = ~torch.isnan(raw)
        now = torch.where(there, limited, oldest["expected"])
        said, parts = self.mixture(
            columns(now, d),
            columns(there.to(x.dtype), d),
            ts if d == 1 else ts.repeat(d),
            {name: columns(part, d) for name, part in oldest.items() if name in self._own},
            {name: columns(part, d) for name, part in kept.items() if name in self._own},
        )
        age = oldest["age"] - 1  # the first forecast, with its guessed width, is not scored
        due = Observed(
            x=torch.where(there, limited, raw), observed=there & (age > 0), clipped=there & (limited != raw), now=now,
            scale=None, naive=self._naive(parts[0]), age=age,
            least=torch.clamp(NARROWEST_SPAN * torch.sqrt(oldest["variance"]), min=1e-30),
        )  # fmt: skip
        waiting = {f"pending_{h}": self._interval(oldest[f"pending_{h}"]) for h in self.shape.scored}
        score, widening, _ = self.calibration(due, {"widening": oldest["widening"], **waiting})
        middle = (columns(now, d) + said.ahead).reshape(self.h * d, batch)
        width = said.width.reshape(self.h * d, batch) * torch.exp(
            self.calibration.interpolated(widening.reshape(len(self.shape.scored), -1))
        )
        y = (middle[:, None] + self.normal[:, None] * width[:, None]).reshape(-1, batch).T  # [batch, leads, ...]
        pool = torch.stack([middle, width])
        queues = []
        for h in self.shape.scored:
            new = pool[:, (h - 1) * d : h * d].reshape(WAITING * d, batch)
            queues += [kept[f"pending_{h}"], new] if h > 1 else [new]
        after = [said.following, *parts]
        rows = [part.reshape(-1, batch) for part in after] + [widening, *queues]
        if self.anomalies is not None:
            found, kept_of_anomalies = self.anomalies.of_targets(raw, ts, oldest)
            score, rows = torch.cat([score, found], dim=1), [*rows, *kept_of_anomalies]
        return y.reshape(-1, self.h, d, len(self.normal)), torch.cat(rows).T, score

    @property
    def _own(self) -> set[str]:
        return {name for name, _ in self.mixture.layout}

    def _interval(self, due: Tensor) -> Tensor:
        """The median and the interval's ends [3 * targets, batch] of the middle and the width that waited."""
        middle, width = due.split_with_sizes([self.d, self.d])
        ends = [self.normal[k] for k in (self.calibration.center, 0, -1)]
        return torch.cat([middle + end * width for end in ends])

    def _naive(self, values: Tensor) -> Tensor:
        """The values as many steps ago as each scored lead is long: [scored * targets, batch]."""
        at = [self.mixture.kept - 1 - lead for lead in self.shape.scored]
        return values.index_select(0, torch.tensor(at)).reshape(len(at) * self.d, -1)
