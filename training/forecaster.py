"""The whole forecaster as one torch module: everything that the ONNX graph computes and remembers.

    y, next_state, score = forecaster(x, ts, state)

One step reads top to bottom: `observe` (scale, fill what is missing, lags, calendar, the linear forecast), the
recurrent cell, `head` (quantiles that cannot cross), `calibrate`, `judge` (score the earlier forecasts), pack. The
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
from training.recurrent import Head, Recurrent

DAY_MS, WEEK_MS, YEAR_MS = 86_400_000, 604_800_000, 31_556_952_000
PERIODS = {"day": DAY_MS, "week": WEEK_MS, "year": YEAR_MS}
FINEST_SLOT_MS = 1_800_000  # slots of half an hour at the least: finer ones have too few rows each
CLOCK = 1 << 22  # a time in ms as two float32 that are each exact
SMALLEST_SCALE = 1e-6  # of a series that does not move
SMALLEST_LOG_SCALE = 0.01
FAR_BELOW = 10.0  # times smaller than all that was trained on: what is smaller still counts as this
EDGE = 0.1  # of an interval's width, over which a hit becomes a miss
NARROWEST_SPAN = 1e-6  # of an interval, in deviations
NARROWEST, WIDEST = -1.5, 3.0  # intervals shrink to a quarter at the least, and grow twentyfold at the most
WIDEST_LOG = 1.5  # of logarithms: there an interval is a factor, and twenty times one is no forecast
LIMIT = 1.0  # a value further outside the trained range than this many ranges is clipped


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
    center: Tensor  # [batch, targets] scaled; with `scale`, the series' local units
    scale: Tensor  # [batch, targets]


class Forecaster(nn.Module):
    """A stateful quantile forecaster in raw units; `state` is flat, its parts are named in `slices`."""

    floor: Tensor  # [features] the smallest value that has a logarithm here; only with `log`
    mean: Tensor  # [features], and so the others: raw units (or their logarithms) to scaled ones
    std: Tensor
    low: Tensor  # [features] scaled; what lies outside is clipped
    high: Tensor
    spread: Tensor  # [horizon, targets, 1] deviation of what the linear path leaves over
    calibration: Tensor  # [horizon, targets, quantiles]
    between: Tensor  # [horizon, scored] weights of the scored leads for each lead
    input_mean: Tensor  # [inputs]
    input_std: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        model = config.model
        self.targets, self.covariates = config.targets, config.data.covariates
        self.d, self.c, self.h = len(self.targets), len(self.covariates), model.horizon
        self.quantiles, self.q = list(model.quantiles), len(model.quantiles)
        self.center = min(range(self.q), key=lambda i: abs(self.quantiles[i] - 0.5))
        self.history, self.lags, self.step_ms = config.history, config.lag_steps, config.step_ms
        self.calendar = list(model.calendar)
        self.score_horizons, self.members_count = config.score_horizons, config.fit.members
        self.local, self.log = model.scale == "local", model.transform == "log"
        self.settled_after = min(self.history, 48)  # steps until local units mean something
        self.adaptation = model.interval_adaptation
        self.level = round(self.quantiles[-1] - self.quantiles[0], 6)
        self.leads = sorted({1, *(max(1, round(self.h * f)) for f in (0.25, 0.5, 0.75)), self.h})

        features = self.d + self.c
        self.register_buffer("floor", torch.full((features,), 1e-6))  # [features]
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.register_buffer("low", torch.full((features,), -10.0))  # scaled
        self.register_buffer("high", torch.full((features,), 10.0))
        slots = {name: (PERIODS[name], self.slot_ms(name), self.slot_count(name)) for name in self.slotted}
        self.experts = Experts(1 + (model.experts or 0), self.h, self.d, self.c, self.history, slots)
        self.hindsight = self.experts.hindsight
        self.register_buffer("spread", torch.ones(self.h, self.d, 1))  # of what the linear path leaves over
        self.register_buffer("calibration", torch.ones(self.h, self.d, self.q))
        self.register_buffer("between", _between(self.score_horizons, self.h))
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
        parts.append(("widening", (len(self.score_horizons), self.d)))
        parts += [(f"pending_{h}", (h, self.d, 3)) for h in self.score_horizons]
        slices, start = [], 0
        for name, shape in parts:
            slices.append(StateSlice(name=name, start=start, shape=shape))
            start += math.prod(shape)
        return slices

    @property
    def diagnostics(self) -> list[Diagnostic]:
        """The columns of `score`, in order."""
        out = []
        for h in self.score_horizons:
            for t in self.targets:
                tail = f"{t}_{h}"
                out.append(Diagnostic(f"absolute_error_{tail}", "absolute_error", t, h))
                out.append(Diagnostic(f"naive_error_{tail}", "naive_error", t, h))
                out.append(Diagnostic(f"inside_{tail}", "inside", t, h, self.level))
                out.append(Diagnostic(f"surprise_{tail}", "surprise", t, h))
        return out

    def initial_state(self) -> Tensor:
        """[state]; nothing seen yet: zeros, but for what the linear experts may be trusted with."""
        state = torch.zeros(self.state_size)
        part = next(s for s in self.slices if s.name == "expert_errors")
        if size := math.prod(part.shape):
            state[part.start : part.start + size] = self.experts.prior.flatten()
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
        score, widening = self.judge(x, view.observed, memory, parts)
        calibrated = self.calibrate(self.average(outs), widening)  # [batch, horizon, targets, quantiles] local units
        scaled = calibrated * view.scale[:, None, :, None] + view.center[:, None, :, None]
        pending = self.enqueue(parts, scaled)
        flat = [part.flatten(1) for part in (*after, *hidden, widening, *pending)]
        return self.unscale(scaled), torch.cat([part for part in flat if part.shape[1] > 0], dim=1), score

    def observe(self, x: Tensor, ts: Tensor, memory: Memory) -> tuple[View, Memory]:
        """Scale, fill, lags, calendar, linear forecast; nothing in it is trained by gradient."""
        there = ~torch.isnan(x)  # [batch, features]
        z = torch.clamp((self.bend(x) - self.mean) / self.std, min=self.low, max=self.high)
        z = torch.where(there, z, torch.cat([memory.expected, memory.covariates[:, -1]], dim=1))
        now, covariates = z[:, : self.d], torch.cat([memory.covariates[:, 1:], z[:, None, self.d :]], dim=1)
        observed = there[:, : self.d]
        first = (observed & (memory.seen == 0))[:, None]  # [batch, 1, targets]: the past is as this first value
        shifted = torch.cat([memory.values[:, 1:], now[:, None]], dim=1)
        values = torch.where(first, now[:, None].expand_as(shifted), shifted)  # [batch, history + hindsight, targets]

        center, scale = self.locate(values[:, self.hindsight :])  # [batch, targets]
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
            expected=torch.clamp(leads[:, 0] * scale + center, min=self.low[: self.d], max=self.high[: self.d]),
            seen=torch.maximum(memory.seen, observed.to(z.dtype)),
            age=torch.clamp(memory.age + 1, max=1e6),
            clock=clock,
            expert_errors=errors,
        )
        return View(torch.cat(parts, dim=1), leads.flatten(1), observed, center, scale), after

    def review(self, values: Tensor, covariates: Tensor, ts: Tensor, memory: Memory) -> Tensor:
        """The experts' running errors, with what each would have said `hindsight` steps ago about what came since."""
        if not self.hindsight:
            return memory.expert_errors
        then, since = values[:, : self.history], values[:, self.history :]
        center, scale = self.locate(then)
        past, truth = (then - center[:, None]) / scale[:, None], (since - center[:, None]) / scale[:, None]
        said = self.experts(past, covariates[:, 0], ts - self.hindsight * self.step_ms)[:, :, : self.hindsight]
        return self.experts.review(memory.expert_errors, error_of(said, truth), memory.age)

    def locate(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Where the series' own recent past lies and how wide it is, [batch, targets] each: its local units.

        With one scale for all series these are 0 and 1. Otherwise series of any size look alike to the model
        (Kim et al. 2022, reversible instance normalisation).
        """
        if not self.local:
            return torch.zeros_like(values[:, 0]), torch.ones_like(values[:, 0])
        center = values.mean(dim=1)
        deviation = (values - center[:, None]).abs().mean(dim=1) * 1.2533  # a normal's deviation
        return center, deviation + (SMALLEST_LOG_SCALE if self.log else 0.01 * center.abs()) + SMALLEST_SCALE

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
        centre = raw[..., self.center : self.center + 1] + 0.5  # the bias starts at -0.5
        columns = [centre]
        for k in range(self.center + 1, self.q):
            columns.append(columns[-1] + F.softplus(raw[..., k : k + 1]))
        for k in range(self.center - 1, -1, -1):
            columns.insert(0, columns[0] - F.softplus(raw[..., k : k + 1]))
        return middle + self.spread * torch.cat(columns, dim=-1)

    def average(self, outs: list[Tensor]) -> Tensor:
        """The members' quantiles, averaged level by level."""
        return outs[0] if len(outs) == 1 else torch.stack(outs).mean(dim=0)

    def calibrate(self, scaled: Tensor, widening: Tensor | None = None) -> Tensor:
        """Stretch each quantile about the median, keeping the order.

        By what validation rows asked for, and by what the series itself has asked for since: `widening`
        [..., scored, targets], in logarithms, given for some leads and interpolated between them.
        """
        middle = scaled[..., self.center : self.center + 1]
        factor = self.calibration
        if widening is not None and self.adaptation > 0:
            factor = factor * torch.exp(torch.matmul(self.between, widening))[..., None]
        moved = middle + factor * (scaled - middle)
        columns = [middle]
        for k in range(self.center + 1, self.q):
            columns.append(torch.maximum(columns[-1], moved[..., k : k + 1]))
        for k in range(self.center - 1, -1, -1):
            columns.insert(0, torch.minimum(columns[0], moved[..., k : k + 1]))
        return torch.cat(columns, dim=-1)

    def bend(self, x: Tensor) -> Tensor:
        """Targets as their logarithms, where the model works in them; x [..., features] raw."""
        if not self.log:
            return x
        return torch.cat([torch.log(torch.maximum(x[..., : self.d], self.floor[: self.d])), x[..., self.d :]], dim=-1)

    def unscale(self, scaled: Tensor) -> Tensor:
        """Raw units; [..., targets, columns]."""
        out = scaled * self.std[: self.d, None] + self.mean[: self.d, None]
        return torch.exp(out) if self.log else out

    def judge(self, x: Tensor, observed: Tensor, memory: Memory, parts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Score what was forecast for this step, and widen or narrow the intervals by it: (score, widening).

        Adaptive conformal inference (Gibbs and Candès 2021): a miss widens, a hit narrows a little, so that in the long
        run the widest interval holds what it says, whatever the series does.
        """
        truth = torch.where(observed, x[:, : self.d], torch.zeros_like(x[:, : self.d]))  # [batch, targets]
        nothing = torch.full_like(truth, float("nan"))
        columns, moves = [], []
        for h in self.score_horizons:
            due = self.unscale(parts[f"pending_{h}"][:, 0])  # [batch, targets, (middle, lower, upper)]
            middle, lower, upper = due[..., 0], due[..., 1], due[..., 2]
            naive = self.unscale(memory.values[:, self.history + self.hindsight - h, :, None])[..., 0]
            error = torch.abs(truth - middle)
            scored = observed & (memory.age >= h) & (memory.seen > 0)
            inside = ((truth >= lower) & (truth <= upper)).to(truth.dtype)
            surprise = error / torch.clamp((upper - lower) / 2, min=NARROWEST_SPAN * self.std[: self.d])
            for column in (error, torch.abs(truth - naive), inside, surprise):
                columns.append(torch.where(scored, column, nothing))
            # Not the yes or no of `inside`: rounding must not decide it one way in torch and the other in onnxruntime.
            edge = torch.clamp(EDGE * (upper - lower), min=NARROWEST_SPAN * self.std[: self.d])
            held = torch.minimum(truth - lower, upper - truth) / edge + 0.5  # [batch, targets]
            moves.append(
                torch.where(scored, self.level - torch.clamp(held, min=0.0, max=1.0), torch.zeros_like(inside))
            )
        by_target = torch.stack(columns, dim=2).reshape(-1, self.d, len(self.score_horizons), 4)
        score = by_target.permute(0, 2, 1, 3).flatten(1)
        moved = parts["widening"] + self.adaptation * torch.stack(moves, dim=1)  # [batch, scored, targets]
        return score, torch.clamp(moved, min=NARROWEST, max=WIDEST_LOG if self.log else WIDEST)

    def enqueue(self, parts: dict[str, Tensor], scaled: Tensor) -> list[Tensor]:
        """What is forecast now waits for its truth: the queue of each scored lead, [batch, h, targets, 3]."""
        queues = []
        for h in self.score_horizons:
            fresh = scaled[:, h - 1][..., [self.center, 0, self.q - 1]]  # [batch, targets, 3]
            queues.append(torch.cat([parts[f"pending_{h}"][:, 1:], fresh[:, None]], dim=1))
        return queues

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
        ys = []
        for t in range(x.shape[1]):
            _, widening = self.judge(x[:, t], view.observed[:, t], memory, parts)
            _, memory = self.observe(x[:, t], ts[:, t], memory)
            calibrated = self.calibrate(outs[:, t], widening)
            scaled = calibrated * view.scale[:, t, None, :, None] + view.center[:, t, None, :, None]
            queues = self.enqueue(parts, scaled)
            parts = {"widening": widening}
            parts |= {f"pending_{h}": queue for h, queue in zip(self.score_horizons, queues, strict=True)}
            ys.append(self.unscale(scaled))
        return torch.stack(ys, dim=1)


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
