"""The whole forecaster as one torch module: everything that the ONNX graph computes and remembers.

    y, next_state, score = forecaster(x, ts, state)

One step reads top to bottom: `observe` (scale, fill what is missing, lags, calendar, the linear forecast), the
recurrent cell, `head` (quantiles that cannot cross), `conclude` (score the earlier forecasts, weigh the two paths,
calibrate), `pack`. The
linear forecast is a mixture of `training.model.expert_mixture`, solved in closed form; the recurrent path learns what
it leaves
over. A missing value is replaced by the linear forecast that was made for it one step earlier, so that a window can be
trained on in one pass (`window`) and still equal the folded step.

Inside, the batch is the last axis, and leads and targets are rows, by lead: what is said of a row then meets the whole
batch at once, and taking rows apart costs nothing. Only what is multiplied by a matrix of weights (past values, the
cell's input and state) has the batch first, so that the order of its sums is the same for every batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tidecast.service.model.spec import Diagnostic
from tidecast.training.config import Config
from tidecast.training.model.calendar import Calendar
from tidecast.training.model.expert_mixture import ExpertMixture, error_of
from tidecast.training.model.online_calibration import Observed, OnlineCalibration, QuantileFan
from tidecast.training.model.recurrent import Head, Recurrent
from tidecast.training.model.scaling import Units
from tidecast.training.model.state_layout import Parts, StateLayout

CLOCK = 1 << 22  # a time in ms as two float32 that are each exact
SOFTPLUS_FROM = 80.0  # beyond it exp would leave float32


class Memory(NamedTuple):
    """What `observe` remembers, unpacked. The queues hold their oldest entry after a step, but not before one."""

    values: Tensor  # [batch, (history + hindsight) * targets] scaled, filled, newest last
    covariates: Tensor  # [(1 + hindsight) * covariates, batch] scaled, last known, newest last
    expected: Tensor  # [targets, batch] the linear forecast of the next value
    seen: Tensor  # [targets, batch] 1 once a value was observed
    age: Tensor  # [1, batch] steps so far
    clock: Tensor  # [2, batch] the last event time, only where readings are irregular
    expert_errors: Tensor  # [experts * targets, batch] running mean error of each linear expert


class StepFeatures(NamedTuple):
    """What `observe` hands on, [rows, batch] each; None = 0 and 1, where all series share one scale."""

    inputs: Tensor  # [inputs, batch] of the recurrent cell, not yet normalised
    linear: Tensor  # [horizon * targets, batch] in local units
    naive: Tensor  # [scored * targets, batch] scaled: the values as many steps ago as a scored lead is long
    now: Tensor  # [targets, batch] scaled, filled
    observed: Tensor  # [targets, batch] bool: now, and before too
    clipped: Tensor  # [targets, batch] bool
    center: Tensor | None  # [targets, batch] scaled; with `scale`, the series' local units
    scale: Tensor | None  # [targets, batch]


class StretchFeatures(NamedTuple):
    """What `observe` saw of whole stretches, [n, steps, rows] each; the rows as in `StepFeatures`."""

    inputs: Tensor
    linear: Tensor
    center: Tensor
    scale: Tensor


class Forecaster(nn.Module):
    """A stateful quantile forecaster in raw units; `state` is flat, its parts are named in `slices`."""

    spread: Tensor  # [horizon, targets, 1] deviation of what the linear path leaves over
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
        self.calibration = OnlineCalibration(config)
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
        self.register_buffer("spread", torch.ones(self.h, self.d, 1))  # of what the linear path leaves over
        width = self.input_width
        self.register_buffer("input_mean", torch.zeros(width))
        self.register_buffer("input_std", torch.ones(width))

        self.cells = nn.ModuleList(
            Recurrent(model.cell, width, model.hidden, model.layers, model.dropout) for _ in range(self.members_count)
        )
        outputs = self.q * self.h * self.d
        self.heads = nn.ModuleList(
            Head(model.hidden + width, model.hidden, outputs, model.dropout) for _ in range(self.members_count)
        )
        self.dropout = nn.Dropout(model.dropout)
        self.layout = self._layout()
        self.slices, self.state_size = self.layout.slices, self.layout.size

    # ------------------------------------------------------------------ shapes and layout

    @property
    def input_width(self) -> int:
        """Inputs of the recurrent cell: see `observe`."""
        per_target = 4 + len(self.leads) + len(self.lags)
        return per_target * self.d + 2 * self.c + 2 * len(self.calendar.names) + (1 if self.step_ms == 0 else 0)

    def _layout(self) -> StateLayout:
        first: Parts = [("values", (self.history + self.hindsight, self.d))]
        for m, cell in enumerate(self.cells):
            assert isinstance(cell, Recurrent)
            first.append((f"hidden_{m}", cell.state_shape))
        rest: Parts = [
            ("covariates", (1 + self.hindsight, self.c)),
            ("expected", (self.d,)),
            ("seen", (self.d,)),
            ("age", (1,)),
            ("clock", (2 if self.step_ms == 0 else 0,)),
            ("expert_errors", (self.experts.count if self.hindsight else 0, self.d)),
            *self.calibration.layout,
        ]
        queues = ["values", "covariates", *(name for name, _ in rest if name.startswith("pending_"))]
        return StateLayout(first, rest, queues)

    @property
    def diagnostics(self) -> list[Diagnostic]:
        """The columns of `score`, in order."""
        return self.calibration.diagnostics

    def initial_state(self) -> Tensor:
        """[state]; nothing seen yet: zeros, but for what the linear experts and the two paths may be trusted with."""
        state = torch.zeros(self.state_size)
        for name, prior in (("expert_errors", self.experts.prior), ("path_errors", self.calibration.prior)):
            part = next(s for s in self.slices if s.name == name)
            if size := math.prod(part.shape):
                state[part.start : part.start + size] = prior.flatten()
        return state

    def memory(self, oldest: dict[str, Tensor], kept: dict[str, Tensor]) -> Memory:
        """What `observe` goes on from, out of `StateLayout.unpack`."""
        # With no hindsight there is one set of covariates, the last known: not a queue.
        queues = {"values": kept["values"], "covariates": (kept if self.hindsight else oldest)["covariates"]}
        return Memory(**{name: queues.get(name, oldest[name]) for name in Memory._fields})

    def pack(self, after: Memory, hidden: list[Tensor], judged: list[Tensor]) -> Tensor:
        """The state [batch, state], by `slices`; hidden [batch, .] of each member, the judge's parts [., batch]."""
        columns = torch.cat([part for part in (*after[1:], *judged) if len(part)])
        return torch.cat([after.values, *hidden, columns.T], dim=1)

    # ------------------------------------------------------------------ the path of a reading

    def forward(self, x: Tensor, ts: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step. x [batch, features] raw, ts [batch] ms, state [batch, state]: y, next_state, score."""
        oldest, kept = self.layout.unpack(state)
        memory = self.memory(oldest, kept)
        view, after = self.observe(x, ts, memory)
        hidden, fans = [], []
        inputs = self.normalise(view.inputs).T
        for m, (cell, head) in enumerate(zip(self.cells, self.heads, strict=True)):
            top, following = cell(inputs, oldest[f"hidden_{m}"])
            hidden.append(following)
            fans.append(self.head(head, top, inputs))
        y, judged, score = self.conclude(x, view, memory, after, oldest, kept, self.average(fans))
        return y, self.pack(after, hidden, judged), score

    def conclude(
        self,
        x: Tensor,
        view: StepFeatures,
        before: Memory,
        after: Memory,
        oldest: dict[str, Tensor],
        kept: dict[str, Tensor],
        fan: QuantileFan,
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """From the recurrent path's quantiles about the linear one to y: (y, the judge's slices after, score)."""
        due = Observed(x.T[: self.d], view.observed, view.clipped, view.now, view.scale, view.naive, before.age)
        score, widening, errors = self.calibration(self.units, due, oldest)
        middle = view.linear + self.calibration.share(errors) * fan.middle
        said = self.calibration.quantile_rows(QuantileFan(middle, self.calibration.stretched(fan.reach, widening)))
        linear, recurrent = view.linear, view.linear + fan.middle
        if view.center is not None and view.scale is not None:
            center, scale = view.center.repeat(self.h, 1), view.scale.repeat(self.h, 1)
            said, linear, recurrent = (part * scale + center for part in (said, linear, recurrent))
        raw = self.units.unscale(said)  # [quantiles, horizon * targets, batch]
        fresh = self.calibration.enqueued(raw, linear, recurrent)
        queues = [part for h, new in zip(self.calibration.scored, fresh, strict=True)
                  for part in (kept.get(f"pending_{h}"), new) if part is not None]  # fmt: skip
        y = self.calibration.by_lead(raw).T.reshape(-1, self.h, self.d, self.q)
        return y, [widening, errors.flatten(0, 2), *queues], score

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

    def head(self, head: nn.Module, top: Tensor, inputs: Tensor) -> QuantileFan:
        """Quantiles about the linear forecast, in local units, [rows, ...]; top [..., hidden], inputs [..., inputs]."""
        raw = head(torch.cat([self.dropout(top), inputs], dim=-1)).movedim(-1, 0)
        centre, raw = raw.split_with_sizes([self.h * self.d, (self.q - 1) * self.h * self.d])
        spread = self.spread.reshape(-1, *[1] * (raw.dim() - 1))
        widths = torch.log(1 + torch.exp(torch.clamp(raw, max=SOFTPLUS_FROM)))  # softplus, by fast functions
        reach = self.calibration.outwards(torch.unflatten(widths, 0, (self.q - 1, self.h * self.d)), torch.add) * spread
        return QuantileFan((centre + 0.5) * spread, reach)  # the bias starts at -0.5

    def average(self, fans: list[QuantileFan]) -> QuantileFan:
        """The members' quantiles, averaged level by level."""
        if len(fans) == 1:
            return fans[0]
        return QuantileFan(*(torch.stack(part).mean(dim=0) for part in zip(*fans, strict=True)))

    # ------------------------------------------------------------------ the same, over windows

    def prepare(self, x: Tensor, ts: Tensor) -> StretchFeatures:
        """Fold `observe` over whole stretches, once: x [n, steps, features], ts [n, steps]."""
        memory = self.memory(*self.layout.unpack(self.initial_state().expand(x.shape[0], -1)))
        views = []
        with torch.no_grad():
            for t in range(x.shape[1]):
                view, after = self.observe(x[:, t], ts[:, t], memory)
                queues = {
                    "values": after.values[:, self.d :],
                    "covariates": after.covariates[self.hindsight and self.c :],
                }
                memory = after._replace(**queues)
                center = torch.zeros(self.d, x.shape[0]) if view.center is None else view.center
                scale = torch.ones(self.d, x.shape[0]) if view.scale is None else view.scale
                views.append((view.inputs, view.linear, center, scale))
        return StretchFeatures(*(torch.stack(column).permute(2, 0, 1) for column in zip(*views, strict=True)))

    def roll(self, member: int, inputs: Tensor, linear: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One member over a window in one pass: normalised inputs [n, steps, inputs], hidden [n, *state_shape] or None.

        linear [n, steps, horizon * targets]. Returns scaled quantiles [n, steps, horizon, targets, quantiles], not
        calibrated, and the hidden state after.
        """
        fan, hidden = self._rolled(member, inputs, hidden)
        rows = self.calibration.quantile_rows(fan._replace(middle=fan.middle + linear.movedim(-1, 0)))
        return torch.unflatten(rows.movedim((0, 1), (-1, -2)), -2, (self.h, self.d)), hidden

    def _rolled(self, member: int, inputs: Tensor, hidden: Tensor | None = None) -> tuple[QuantileFan, Tensor]:
        cell = self.cells[member]
        assert isinstance(cell, Recurrent)
        tops, hidden = cell.roll(inputs, hidden)
        return self.head(self.heads[member], tops, inputs), hidden

    def window(self, x: Tensor, ts: Tensor) -> Tensor:
        """Forecasts y [n, steps, horizon, targets, quantiles], raw units, of whole stretches from the initial state.

        The recurrent cell takes the window in one pass; only what feeds on the forecasts themselves goes step by step.
        """
        inputs = self.prepare(x, ts).inputs
        inputs = self.normalise(inputs.flatten(0, 1).T).T.reshape(inputs.shape)
        fan = self.average([self._rolled(m, inputs)[0] for m in range(self.members_count)])
        state = self.initial_state().expand(x.shape[0], -1)
        ys = []
        for t in range(x.shape[1]):
            oldest, kept = self.layout.unpack(state)
            before = self.memory(oldest, kept)
            view, after = self.observe(x[:, t], ts[:, t], before)
            now = QuantileFan(*(part[..., t] for part in fan))
            y, judged, _ = self.conclude(x[:, t], view, before, after, oldest, kept, now)
            state = self.pack(after, [oldest[f"hidden_{m}"] for m in range(self.members_count)], judged)
            ys.append(y)
        return torch.stack(ys, dim=1)
