"""From a reading to the inputs of the recurrent cell; nothing in it is trained by gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tidecast.training.config import Config
from tidecast.training.model.calendar import Calendar
from tidecast.training.model.expert_mixture import ExpertMixture, error_of
from tidecast.training.model.online_calibration import OnlineCalibration
from tidecast.training.model.scaling import Units

CLOCK = 1 << 22  # a time in ms as two float32 that are each exact


class Memory(NamedTuple):
    """The state of `observe`, unpacked. The queues hold their oldest entry after a step, but not before one."""

    values: Tensor  # [batch, (history + hindsight) * targets] scaled, filled, newest last
    covariates: Tensor  # [(1 + hindsight) * covariates, batch] scaled, last known, newest last
    expected: Tensor  # [targets, batch] the linear forecast of the next value
    seen: Tensor  # [targets, batch] 1 once a value was observed
    age: Tensor  # [1, batch] steps so far
    clock: Tensor  # [2, batch] the last event time, only where readings are irregular
    expert_errors: Tensor  # [experts * targets, batch] running mean error of each linear expert


class StepFeatures(NamedTuple):
    """The result of `observe`, [rows, batch] each; center and scale None = 0 and 1: all series share one scale."""

    inputs: Tensor  # [inputs, batch] of the recurrent cell, not yet normalised
    linear: Tensor  # [horizon * targets, batch] in local units
    naive: Tensor  # [scored * targets, batch] scaled: the values as many steps ago as a scored lead is long
    now: Tensor  # [targets, batch] scaled, filled
    observed: Tensor  # [targets, batch] bool: now, and before too
    clipped: Tensor  # [targets, batch] bool
    center: Tensor | None  # [targets, batch] scaled; with `scale`, the series' local units
    scale: Tensor | None  # [targets, batch]


class StretchFeatures(NamedTuple):
    """The results of `observe` for whole stretches, [n, steps, rows] each; the rows as in `StepFeatures`."""

    inputs: Tensor
    linear: Tensor
    center: Tensor
    scale: Tensor


class FeatureBuilder(nn.Module):
    """Scaling, filling of missing values, lags, calendar and the linear forecast: all that comes before the cell."""

    input_mean: Tensor  # [inputs]
    input_std: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        model = config.model
        self.targets, self.covariates = config.targets, config.data.covariates
        self.d, self.c, self.h = len(self.targets), len(self.covariates), model.horizon
        self.quantiles, self.q = list(model.quantiles), len(model.quantiles)
        self.history, self.lags, self.step_ms = config.history, config.lag_steps, config.step_ms
        self.members_count = config.fit.members
        self.settled_after = min(self.history, 48)  # steps until local units mean something
        self.leads = sorted({1, *(max(1, round(self.h * f)) for f in (0.25, 0.5, 0.75)), self.h})

        self.units = Units(self.d, self.d + self.c, model.transform, local=model.scale == "local")
        self.calibration = OnlineCalibration.of(config)
        experts = 1 + (model.experts or 0)
        self.calendar = Calendar(
            [name for name in ("day", "week", "year") if name in model.calendar],
            self.step_ms,
            ExpertMixture.looks_back(experts, self.h),
        )
        # The value before, the lags, the naive forecasts.
        picks = [1, *(lag - 1 for lag in self.lags), *self.calibration.scored]
        self.experts = ExpertMixture(experts, self.h, self.d, self.c, self.history, picks, self.calendar)
        self.hindsight = self.experts.hindsight
        width = self.input_width
        self.register_buffer("input_mean", torch.zeros(width))
        self.register_buffer("input_std", torch.ones(width))

    @property
    def input_width(self) -> int:
        """Inputs of the recurrent cell: see `observe`."""
        per_target = 4 + len(self.leads) + len(self.lags)
        return per_target * self.d + 2 * self.c + 2 * len(self.calendar.names) + (1 if self.step_ms == 0 else 0)

    def observe(self, x: Tensor, ts: Tensor, memory: Memory) -> tuple[StepFeatures, Memory]:
        """Scale, fill, lags, calendar, linear forecast; nothing in it is trained by gradient.

        x [batch, features], ts [batch]; `memory` without the oldest entries of its queues.
        """
        d, c = self.d, self.c
        raw = x.T  # [features, batch]
        there = ~torch.isnan(raw)
        z, inside = self.units.scale(raw)
        known = torch.cat([memory.expected, memory.covariates[-c:]]) if c else memory.expected
        z = torch.where(there, z, known)
        now, was_there = z[:d], there.to(z.dtype)
        seen = torch.maximum(memory.seen, was_there[:d])
        first = seen > memory.seen
        values = self._filled(torch.cat([memory.values, now.T], dim=1), now, first)
        covariates = torch.cat([memory.covariates, z[d:]]) if self.hindsight else z[d:]

        past, back, center, scale = self._in_local_units(values)
        scored = self.calibration.scored
        products = self.experts(past, back)
        lags, naive = products.picked.split_with_sizes([(1 + len(self.lags)) * d, len(scored) * d])

        waves, slots, slots_then = self.calendar(ts)
        errors = memory.expert_errors.reshape(-1, d, x.shape[0]) if self.hindsight else memory.expert_errors
        if self.hindsight:
            said = self.experts.finish(
                products.then, covariates[:c], slots_then
            )  # [experts, hindsight, targets, batch]
            error = error_of(said, torch.unflatten(products.since, 0, (-1, d)))
            errors = self.experts.review(errors, error, memory.age)
        forecasts = self.experts.finish(products.now, covariates[len(covariates) - c :], slots)
        leads = self.experts.mix(forecasts, errors)  # [horizon * targets, batch]

        newest, error, expected = now, (now - memory.expected) * memory.seen, leads[:d]  # 0 where nothing was expected
        if center is not None and scale is not None:
            newest, error, expected = (now - center) / scale, error / scale, expected * scale + center
            naive = naive * self._each(scale, len(scored)) + self._each(center, len(scored))
        rows = [(lead - 1) * d + t for lead in self.leads for t in range(d)]
        some = leads if len(rows) == len(leads) else leads.index_select(0, torch.tensor(rows))
        ahead = torch.cat([lags, some]) - self._each(newest, 1 + len(self.lags) + len(self.leads))
        parts = [newest, was_there[:d], error, ahead, *waves]
        parts += [covariates[len(covariates) - c :], was_there[d:]] if c else []
        clock = memory.clock
        if self.step_ms == 0:
            clock, passed = self._tick(ts, memory)
            parts.append(passed)
        low, high = self.units.low[:d, None], self.units.high[:d, None]
        after = Memory(
            values=values,
            covariates=covariates,
            expected=torch.clamp(expected, min=low, max=high),
            seen=seen,
            age=memory.age + 1,  # a float32: stays where it cannot grow
            clock=clock,
            expert_errors=errors.flatten(0, 1) if self.hindsight else errors,
        )
        clipped, again = there[:d] ^ inside[:d], there[:d] ^ first
        return StepFeatures(torch.cat(parts), leads, naive, now, again, clipped, center, scale), after

    def _filled(self, values: Tensor, now: Tensor, first: Tensor) -> Tensor:
        """Past values [batch, steps * targets]; where now [targets, batch] is the first ever, the past is as this."""
        if self.d == 1:
            return torch.where(first.T, now.T, values)
        apart = torch.unflatten(values, 1, (-1, self.d))
        return torch.where(first.T[:, None], now.T[:, None], apart).flatten(1)

    def _in_local_units(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Past values in the series' local units of now and of `hindsight` steps ago, and those of now."""
        if not self.units.local:
            return values, values, None, None
        apart = torch.unflatten(values, 1, (-1, self.d))
        center, scale = self.units.locate(apart[:, self.hindsight :])
        past = ((apart - center[:, None]) / scale[:, None]).flatten(1)
        if not self.hindsight:
            return past, past, center.T, scale.T
        center_then, scale_then = self.units.locate(apart[:, : self.history])
        return past, ((apart - center_then[:, None]) / scale_then[:, None]).flatten(1), center.T, scale.T

    def _each(self, rows: Tensor, count: int) -> Tensor:
        """Rows of the targets for `count` times the targets."""
        return rows if self.d == 1 else rows.repeat(count, 1)

    def _tick(self, ts: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """The clock after this reading, and log seconds since the one before [1, batch]."""
        lower = torch.remainder(ts, CLOCK)
        upper = (ts - lower).to(torch.float32) / CLOCK  # a multiple of a power of two: exact
        clock = torch.stack([upper, lower.to(torch.float32)])  # [2, batch]
        passed = (clock[:1] - memory.clock[:1]) * CLOCK + (clock[1:] - memory.clock[1:])
        return clock, torch.log1p(torch.clamp(passed, min=0.0) / 1000.0) * torch.clamp(memory.age, max=1.0)

    def normalise(self, inputs: Tensor) -> Tensor:
        """Inputs [inputs, batch] of the cell at zero mean and unit variance on training rows.

        Clamped, as the cell extrapolates badly.
        """
        return torch.clamp((inputs - self.input_mean[:, None]) / self.input_std[:, None], min=-8.0, max=8.0)
