"""The whole forecaster as one torch module: everything that the ONNX graph computes and remembers.

    y, next_state, score = forecaster(x, ts, state)

One step is: `observe` (see `training.model.features`), the recurrent cell, `head` (quantiles that cannot cross),
`conclude` (score the earlier forecasts, weigh the two paths, calibrate), `pack`. The linear path is the mixture of
`training.model.expert_mixture`, solved in closed form; the recurrent path learns its residuals. A missing value is
replaced by the linear forecast made for it one step earlier. So a window can be trained on in one pass (`window`) and
still equal the folded steps.

Inside, the batch is the last axis; rows are leads and targets, ordered by lead. An operation on rows then covers the
whole batch, and splitting rows copies nothing. Only what is multiplied by a weight matrix (past values, the cell's
input and state) has the batch first, so that the order of its sums is the same for every batch size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tidecast.service.model.spec import Diagnostic
from tidecast.training.config import Config
from tidecast.training.model.anomaly_score import AnomalyScore
from tidecast.training.model.features import FeatureBuilder, Memory, StepFeatures, StretchFeatures
from tidecast.training.model.online_calibration import NARROWEST_SPAN, Observed, QuantileFan
from tidecast.training.model.online_mixture import OnlineMixture
from tidecast.training.model.online_recipe import Recipe
from tidecast.training.model.recurrent import Head, Recurrent
from tidecast.training.model.state_layout import Parts, StateLayout, columns

ONLINE = "online_"  # before the names of the online mixture's slices
DECISIVE = 12  # `simple_power` of the online mixture: a trained path that is better is hardly mixed with others
SOFTPLUS_FROM = 80.0  # beyond it exp would leave float32


class Forecaster(FeatureBuilder):
    """A stateful quantile forecaster in raw units; `state` is flat, its parts are named in `slices`."""

    spread: Tensor  # [horizon, targets, 1] deviation of what the linear path leaves over

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        model, width = config.model, self.input_width
        self.register_buffer("spread", torch.ones(self.h, self.d, 1))
        self.cells = nn.ModuleList(
            Recurrent(model.cell, width, model.hidden, model.layers, model.dropout) for _ in range(self.members_count)
        )
        outputs = self.q * self.h * self.d
        self.heads = nn.ModuleList(
            Head(model.hidden + width, model.hidden, outputs, model.dropout) for _ in range(self.members_count)
        )
        self.dropout = nn.Dropout(model.dropout)
        self.online: OnlineMixture | None = None
        if model.adapt == "online" and self.step_ms > 0:
            self.online = OnlineMixture(self.step_ms, self.h, Recipe(simple_power=DECISIVE), outside=True)
        self.anomalies = AnomalyScore(model.alarm_rate, self.step_ms) if model.alarm_rate > 0 else None
        self.layout = self._layout()
        self.slices, self.state_size = self.layout.slices, self.layout.size

    # ------------------------------------------------------------------ shapes and layout

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
        if self.online is not None:
            rest += [(ONLINE + name, (rows, self.d)) for name, rows in self.online.layout]
            queues += [ONLINE + name for name in self.online.queues]
        if self.anomalies is not None:
            rest += [(name, (rows, self.d)) for name, rows in self.anomalies.layout]
        return StateLayout(first, rest, queues)

    @property
    def diagnostics(self) -> list[Diagnostic]:
        """The columns of `score`, in order."""
        anomalies = [] if self.anomalies is None else self.anomalies.diagnostics(self.calibration.targets)
        return [*self.calibration.diagnostics, *anomalies]

    def initial_state(self) -> Tensor:
        """[state] before any reading: zeros, except the prior errors of the linear experts and of the two paths."""
        state = torch.zeros(self.state_size)
        for name, prior in (("expert_errors", self.experts.prior), ("path_errors", self.calibration.prior)):
            part = next(s for s in self.slices if s.name == name)
            if size := math.prod(part.shape):
                state[part.start : part.start + size] = prior.flatten()
        if self.online is not None:
            start = next(s.start for s in self.slices if s.name == f"{ONLINE}errors")
            first = self.online.first_errors().repeat_interleave(self.d)
            state[start : start + len(first)] = first
        return state

    def memory(self, oldest: dict[str, Tensor], kept: dict[str, Tensor]) -> Memory:
        """The input of `observe`, from the parts that `StateLayout.unpack` gives."""
        # With no hindsight there is one set of covariates, the last known: not a queue.
        queues = {"values": kept["values"], "covariates": (kept if self.hindsight else oldest)["covariates"]}
        return Memory(**{name: queues.get(name, oldest[name]) for name in Memory._fields})

    def pack(self, after: Memory, hidden: list[Tensor], calibrated: list[Tensor]) -> Tensor:
        """The state [batch, state], by `slices`; hidden [batch, .] of each member, calibrated [., batch]."""
        columns = torch.cat([part for part in (*after[1:], *calibrated) if len(part)])
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
        y, calibrated, score = self.conclude(x, ts, view, memory, after, oldest, kept, self.average(fans))
        if self.anomalies is not None:
            found, parts = self.anomalies.of_targets(x.T[: self.d], ts, oldest)
            score, calibrated = torch.cat([score, found], dim=1), [*calibrated, *parts]
        return y, self.pack(after, hidden, calibrated), score

    def conclude(
        self,
        x: Tensor,
        ts: Tensor,
        view: StepFeatures,
        before: Memory,
        after: Memory,
        oldest: dict[str, Tensor],
        kept: dict[str, Tensor],
        fan: QuantileFan,
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Combine the two paths and calibrate: (y, the slices of the calibration after this step, score).

        `fan`: the recurrent path's quantiles, relative to the linear path.
        """
        naive, least = self.units.unscale(view.naive), (NARROWEST_SPAN * self.units.small())[:, None]
        due = Observed(x.T[: self.d], view.observed, view.clipped, view.now, view.scale, naive, before.age, least)
        score, widening, errors = self.calibration(due, oldest)
        middle = view.linear + self.calibration.share(errors) * fan.middle
        said = self.calibration.quantile_rows(QuantileFan(middle, self.calibration.stretched(fan.reach, widening)))
        linear, recurrent = view.linear, view.linear + fan.middle
        if view.center is not None and view.scale is not None:
            center, scale = view.center.repeat(self.h, 1), view.scale.repeat(self.h, 1)
            said, linear, recurrent = (part * scale + center for part in (said, linear, recurrent))
        learned: list[Tensor] = []
        if self.online is not None:
            middle = said[self.calibration.center]
            better, learned = self._learn_on(self.online, x, ts, view.now, oldest, kept, middle)
            said = said + (better - middle)
        raw = self.units.unscale(said)  # [quantiles, horizon * targets, batch]
        fresh = self.calibration.enqueued(raw, linear, recurrent)
        queues = [part for h, new in zip(self.calibration.scored, fresh, strict=True)
                  for part in (kept.get(f"pending_{h}"), new) if part is not None]  # fmt: skip
        y = self.calibration.by_lead(raw).T.reshape(-1, self.h, self.d, self.q)
        return y, [widening, errors.flatten(0, 2), *queues, *learned], score

    def _learn_on(
        self, online: OnlineMixture, x: Tensor, ts: Tensor, now: Tensor, oldest: dict[str, Tensor],
        kept: dict[str, Tensor], middle: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
        """The trained path's `middle` [horizon * targets, batch] scaled, averaged with what the series itself teaches.

        Returns the same shape, and the slices of the online mixture's state [rows * targets, batch].
        """
        d, batch = self.d, x.shape[0]
        there = (~torch.isnan(x.T[:d])).to(x.dtype)
        names = [ONLINE + name for name, _ in online.layout]
        said, parts = online(
            columns(now, d),
            columns(there, d),
            ts if d == 1 else ts.repeat(d),
            *({name.removeprefix(ONLINE): columns(each[name], d) for name in names if name in each}
              for each in (oldest, kept)),
            columns(middle, d),
        )  # fmt: skip
        better = columns(now, d) + said.ahead
        return better.reshape(-1, batch), [part.reshape(-1, batch) for part in parts]

    def head(self, head: nn.Module, top: Tensor, inputs: Tensor) -> QuantileFan:
        """Quantiles about the linear forecast, in local units, [rows, ...]; top [..., hidden], inputs [..., inputs]."""
        raw = head(torch.cat([self.dropout(top), inputs], dim=-1))
        raw = raw.movedim(raw.dim() - 1, 0)  # the exporter does not take -1 here
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
        aside = [] if self.anomalies is None else [name for name, _ in self.anomalies.layout]  # no forecast needs it
        ys = []
        for t in range(x.shape[1]):
            oldest, kept = self.layout.unpack(state)
            before = self.memory(oldest, kept)
            view, after = self.observe(x[:, t], ts[:, t], before)
            now = QuantileFan(*(part[..., t] for part in fan))
            y, calibrated, _ = self.conclude(x[:, t], ts[:, t], view, before, after, oldest, kept, now)
            calibrated += [oldest[name] for name in aside]
            state = self.pack(after, [oldest[f"hidden_{m}"] for m in range(self.members_count)], calibrated)
            ys.append(y)
        return torch.stack(ys, dim=1)
