"""The whole forecaster as one torch module: everything that the ONNX graph computes and remembers.

    y, next_state, score = forecaster(x, ts, state)

One step reads top to bottom: `observe` (scale, fill what is missing, lags, calendar, the linear forecast), the
recurrent cell, `head` (quantiles that cannot cross), `conclude` (score the earlier forecasts, weigh the two paths,
calibrate), pack. The
linear forecast is a mixture of `training.experts`, solved in closed form; the recurrent path learns what it leaves
over. A missing value is replaced by the linear forecast that was made for it one step earlier, so that a window can be
trained on in one pass (`window`) and still equal the folded step.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.spec import Diagnostic, StateSlice
from training.config import Config
from training.experts import Experts, error_of
from training.judge import Due, Judge
from training.recurrent import Head, Recurrent
from training.units import Units

DAY_MS, WEEK_MS, YEAR_MS = 86_400_000, 604_800_000, 31_556_952_000
PERIODS = {"day": DAY_MS, "week": WEEK_MS, "year": YEAR_MS}
FINEST_SLOT_MS = 1_800_000  # slots of half an hour at the least: finer ones have too few rows each
CLOCK = 1 << 22  # a time in ms as two float32 that are each exact


class Memory(NamedTuple):
    """What `observe` remembers, unpacked."""

    values: Tensor  # [batch, history + hindsight, targets] scaled, filled, newest last
    covariates: Tensor  # [batch, 1 + hindsight, covariates] scaled, last known, newest last
    expected: Tensor  # [batch, targets] the linear forecast of the next value
    seen: Tensor  # [batch, targets] 1 once a value was observed
    age: Tensor  # [batch, 1] steps so far, saturating
    clock: Tensor  # [batch, 2] the last event time, only where readings are irregular
    expert_errors: Tensor  # [batch, experts, targets] running mean error of each linear expert


class View(NamedTuple):
    """What `observe` hands on."""

    inputs: Tensor  # [batch, inputs] of the recurrent cell, not yet normalised
    linear: Tensor  # [batch, horizon * targets] scaled
    observed: Tensor  # [batch, targets] bool
    clipped: Tensor  # [batch, targets] bool
    center: Tensor  # [batch, targets] scaled; with `scale`, the series' local units
    scale: Tensor  # [batch, targets]


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
        self.calendar = list(model.calendar)
        self.members_count = config.fit.members
        self.settled_after = min(self.history, 48)  # steps until local units mean something
        self.leads = sorted({1, *(max(1, round(self.h * f)) for f in (0.25, 0.5, 0.75)), self.h})

        self.units = Units(self.d, self.d + self.c, model.transform, local=model.scale == "local")
        self.judge = Judge(config)
        slots = {name: (PERIODS[name], self.slot_ms(name), self.slot_count(name)) for name in self.slotted}
        self.experts = Experts(1 + (model.experts or 0), self.h, self.d, self.c, self.history, slots)
        self.hindsight = self.experts.hindsight
        self.register_buffer("spread", torch.ones(self.h, self.d, 1))  # of what the linear path leaves over
        width = self.input_width
        self.register_buffer("input_mean", torch.zeros(width))
        self.register_buffer("input_std", torch.ones(width))

        self.cells = nn.ModuleList(
            Recurrent(model.cell, width, model.hidden, model.layers, model.dropout) for _ in range(self.members_count)
        )
        outputs = self.h * self.d * self.q
        self.heads = nn.ModuleList(
            Head(model.hidden + width, model.hidden, outputs, model.dropout) for _ in range(self.members_count)
        )
        self.dropout = nn.Dropout(model.dropout)
        self.slices = self._layout()
        self.state_size = sum(math.prod(s.shape) for s in self.slices)

    # ------------------------------------------------------------------ shapes and layout

    @property
    def slotted(self) -> list[str]:
        """The calendar periods that have a learned value for each slot (the year has only waves)."""
        return [name for name in self.calendar if name != "year"]

    def slot_ms(self, name: str) -> int:
        """Length of one slot of a period."""
        return max(min(self.step_ms, PERIODS[name]), FINEST_SLOT_MS)

    def slot_count(self, name: str) -> int:
        """Slots in a period."""
        return -(-PERIODS[name] // self.slot_ms(name))

    @property
    def input_width(self) -> int:
        """Inputs of the recurrent cell: see `observe`."""

        per_target = 4 + len(self.leads) + len(self.lags)
        return per_target * self.d + 2 * self.c + 2 * len(self.calendar) + (1 if self.step_ms == 0 else 0)

    def _layout(self) -> list[StateSlice]:
        parts: list[tuple[str, tuple[int, ...]]] = [
            ("values", (self.history + self.hindsight, self.d)),
            ("covariates", (1 + self.hindsight, self.c)),
            ("expected", (self.d,)),
            ("seen", (self.d,)),
            ("age", (1,)),
            ("clock", (2 if self.step_ms == 0 else 0,)),
            ("expert_errors", (self.experts.count if self.hindsight else 0, self.d)),
        ]
        for m, cell in enumerate(self.cells):
            assert isinstance(cell, Recurrent)
            parts.append((f"hidden_{m}", cell.state_shape))
        parts += self.judge.layout
        slices, start = [], 0
        for name, shape in parts:
            slices.append(StateSlice(name=name, start=start, shape=shape))
            start += math.prod(shape)
        return slices

    @property
    def diagnostics(self) -> list[Diagnostic]:
        """The columns of `score`, in order."""
        return self.judge.diagnostics

    def initial_state(self) -> Tensor:
        """[state]; nothing seen yet: zeros, but for what the linear experts and the two paths may be trusted with."""
        state = torch.zeros(self.state_size)
        for name, prior in (("expert_errors", self.experts.prior), ("path_errors", self.judge.prior)):
            part = next(s for s in self.slices if s.name == name)
            if size := math.prod(part.shape):
                state[part.start : part.start + size] = prior.flatten()
        return state

    def unpack(self, state: Tensor) -> dict[str, Tensor]:
        """name -> [batch, *shape]."""
        flat = {s.name: state[:, s.start : s.start + math.prod(s.shape)] for s in self.slices}
        return {s.name: flat[s.name].reshape(state.shape[0], *s.shape) for s in self.slices}

    # ------------------------------------------------------------------ the path of a reading

    def forward(self, x: Tensor, ts: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step. x [batch, features] raw, ts [batch] ms, state [batch, state]: y, next_state, score."""
        parts = self.unpack(state)
        memory = Memory(*(parts[name] for name in Memory._fields))
        view, after = self.observe(x, ts, memory)
        hidden, outs = [], []
        inputs = self.normalise(view.inputs)
        for m, (cell, head) in enumerate(zip(self.cells, self.heads, strict=True)):
            top, following = cell(inputs, parts[f"hidden_{m}"])
            hidden.append(following)
            outs.append(self.head(head, top, inputs, view.linear))
        y, judged, score = self.conclude(x, view, memory, after, parts, self.average(outs))
        flat = [part.flatten(1) for part in (*after, *hidden, *judged)]
        return y, torch.cat([part for part in flat if part.shape[1] > 0], dim=1), score

    def conclude(
        self, x: Tensor, view: View, before: Memory, after: Memory, parts: dict[str, Tensor], outs: Tensor
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """From the paths' quantiles in local units to y in raw ones: (y, the judge's slices after, score)."""
        steps = {h: before.values[:, self.history + self.hindsight - h] for h in self.judge.scored}
        now = after.values[:, -1]
        due = Due(x, view.observed, view.clipped, now, view.scale, steps, before.age, before.seen)
        score, widening, errors = self.judge(self.units, due, parts)
        linear = view.linear.reshape(-1, self.h, self.d)
        said = self.judge.calibrate(self.judge.balance(outs, linear, errors), widening)
        center, scale = view.center[:, None], view.scale[:, None]
        scaled = said * scale[..., None] + center[..., None]  # [batch, horizon, targets, quantiles]
        recurrent = outs[..., self.judge.center] * scale + center  # [batch, horizon, targets]
        queues = self.judge.enqueue(parts, scaled, linear * scale + center, recurrent)
        return self.units.unscale(scaled), [widening, errors, *queues], score

    def observe(self, x: Tensor, ts: Tensor, memory: Memory) -> tuple[View, Memory]:
        """Scale, fill, lags, calendar, linear forecast; nothing in it is trained by gradient."""
        there = ~torch.isnan(x)  # [batch, features]
        z, clipped = self.units.scale(x)
        z = torch.where(there, z, torch.cat([memory.expected, memory.covariates[:, -1]], dim=1))
        now, covariates = z[:, : self.d], torch.cat([memory.covariates[:, 1:], z[:, None, self.d :]], dim=1)
        observed = there[:, : self.d]
        first = (observed & (memory.seen == 0))[:, None]  # [batch, 1, targets]: the past is as this first value
        shifted = torch.cat([memory.values[:, 1:], now[:, None]], dim=1)
        values = torch.where(first, now[:, None].expand_as(shifted), shifted)  # [batch, history + hindsight, targets]

        center, scale = self.units.locate(values[:, self.hindsight :])  # [batch, targets]
        past = (values[:, self.hindsight :] - center[:, None]) / scale[:, None]
        newest = past[:, -1]
        errors = self.review(values, covariates, ts, memory)
        leads = self.experts.mix(self.experts(past, covariates[:, -1], ts), errors)  # [batch, horizon, targets]
        waves = []
        for name in self.calendar:
            phase = torch.remainder(ts, PERIODS[name])  # [batch] int64: exact
            angle = phase.to(torch.float32) * (2 * math.pi / PERIODS[name])
            waves += [torch.sin(angle)[:, None], torch.cos(angle)[:, None]]
        error = torch.where(observed & (memory.seen > 0), (now - memory.expected) / scale, torch.zeros_like(now))
        parts = [newest, observed.to(z.dtype), error, newest - past[:, -2]]
        parts += [leads[:, lead - 1] - newest for lead in self.leads]
        parts += [past[:, self.history - lag] - newest for lag in self.lags]  # that lag before the next step
        parts += [covariates[:, -1], there[:, self.d :].to(z.dtype), *waves]
        clock = memory.clock
        if self.step_ms == 0:
            clock, since = self._tick(ts, memory)
            parts.append(since)
        after = Memory(
            values=values,
            covariates=covariates,
            expected=torch.clamp(
                leads[:, 0] * scale + center, min=self.units.low[: self.d], max=self.units.high[: self.d]
            ),
            seen=torch.maximum(memory.seen, observed.to(z.dtype)),
            age=torch.clamp(memory.age + 1, max=1e6),
            clock=clock,
            expert_errors=errors,
        )
        return View(torch.cat(parts, dim=1), leads.flatten(1), observed, clipped[:, : self.d], center, scale), after

    def review(self, values: Tensor, covariates: Tensor, ts: Tensor, memory: Memory) -> Tensor:
        """The experts' running errors, with what each would have said `hindsight` steps ago about what came since."""
        if not self.hindsight:
            return memory.expert_errors
        then, since = values[:, : self.history], values[:, self.history :]
        center, scale = self.units.locate(then)
        past, truth = (then - center[:, None]) / scale[:, None], (since - center[:, None]) / scale[:, None]
        said = self.experts(past, covariates[:, 0], ts - self.hindsight * self.step_ms)[:, :, : self.hindsight]
        return self.experts.review(memory.expert_errors, error_of(said, truth), memory.age)

    def _tick(self, ts: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """The clock after this reading, and log seconds since the one before [batch, 1]."""
        lower = torch.remainder(ts, CLOCK)
        upper = (ts - lower).to(torch.float32) / CLOCK  # a multiple of a power of two: exact
        clock = torch.stack([upper, lower.to(torch.float32)], dim=1)  # [batch, 2]
        passed = (clock[:, :1] - memory.clock[:, :1]) * CLOCK + (clock[:, 1:] - memory.clock[:, 1:])
        return clock, torch.log1p(torch.clamp(passed, min=0.0) / 1000.0) * torch.clamp(memory.age, max=1.0)

    def normalise(self, inputs: Tensor) -> Tensor:
        """Inputs of the cell at zero mean and unit variance on training rows; clamped, as it extrapolates badly."""
        return torch.clamp((inputs - self.input_mean) / self.input_std, min=-8.0, max=8.0)

    def head(self, head: nn.Module, top: Tensor, inputs: Tensor, linear: Tensor) -> Tensor:
        """Quantiles around the linear forecast [..., horizon, targets, quantiles], scaled; they cannot cross."""
        raw = head(torch.cat([self.dropout(top), inputs], dim=-1))
        raw = raw.reshape(*raw.shape[:-1], self.h, self.d, self.q)
        middle = linear.reshape(*linear.shape[:-1], self.h, self.d, 1)
        centre = raw[..., self.judge.center : self.judge.center + 1] + 0.5  # the bias starts at -0.5
        columns = [centre]
        for k in range(self.judge.center + 1, self.q):
            columns.append(columns[-1] + F.softplus(raw[..., k : k + 1]))
        for k in range(self.judge.center - 1, -1, -1):
            columns.insert(0, columns[0] - F.softplus(raw[..., k : k + 1]))
        return middle + self.spread * torch.cat(columns, dim=-1)

    def average(self, outs: list[Tensor]) -> Tensor:
        """The members' quantiles, averaged level by level."""
        return outs[0] if len(outs) == 1 else torch.stack(outs).mean(dim=0)

    # ------------------------------------------------------------------ the same, over windows

    def prepare(self, x: Tensor, ts: Tensor) -> View:
        """Fold `observe` over whole stretches, once: x [n, steps, features], ts [n, steps].

        Returns what it sees, with steps as the second axis: inputs are not normalised yet.
        """
        parts = self.unpack(self.initial_state().expand(x.shape[0], -1))
        memory = Memory(*(parts[name] for name in Memory._fields))
        views = []
        with torch.no_grad():
            for t in range(x.shape[1]):
                view, memory = self.observe(x[:, t], ts[:, t], memory)
                views.append(view)
        return View(*(torch.stack(column, dim=1) for column in zip(*views, strict=True)))

    def roll(self, member: int, inputs: Tensor, linear: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One member over a window in one pass: normalised inputs [n, steps, inputs], hidden [n, *state_shape] or None.

        Returns scaled quantiles [n, steps, horizon, targets, quantiles], not calibrated, and the hidden state after.
        """
        cell = self.cells[member]
        assert isinstance(cell, Recurrent)
        tops, hidden = cell.roll(inputs, hidden)
        return self.head(self.heads[member], tops, inputs, linear), hidden

    def window(self, x: Tensor, ts: Tensor) -> Tensor:
        """Forecasts y [n, steps, horizon, targets, quantiles], raw units, of whole stretches from the initial state.

        The recurrent cell takes the window in one pass; only what feeds on the forecasts themselves goes step by step.
        """
        view = self.prepare(x, ts)
        inputs = self.normalise(view.inputs)
        outs = self.average([self.roll(m, inputs, view.linear)[0] for m in range(self.members_count)])
        parts = self.unpack(self.initial_state().expand(x.shape[0], -1))
        memory = Memory(*(parts[name] for name in Memory._fields))
        names = [name for name, _ in self.judge.layout]
        ys = []
        for t in range(x.shape[1]):
            now, after = self.observe(x[:, t], ts[:, t], memory)
            y, judged, _ = self.conclude(x[:, t], now, memory, after, parts, outs[:, t])
            memory, parts = after, dict(zip(names, judged, strict=True))
            ys.append(y)
        return torch.stack(ys, dim=1)
