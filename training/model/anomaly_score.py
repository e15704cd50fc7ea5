"""An anomaly score of each value: how far it takes the series out of all that was seen of it, from four views.

Each view is a number that follows the series: the value itself; how far it is lately from what is usual at this hour of
the week; how far the last day's worth of readings is from the last weeks'; and how much it varies. Of each, the range
seen so far is kept, and forgotten slowly. What leaves a range, in widths of the range, is the view's excess; their sum
is compared with a limit of the series' own. The limit rises at each alarm and falls between, so that in the long run
there are as many alarms a week as were asked for (a stochastic approximation, Robbins and Monro 1951). Nothing in it
depends on the unit of the values. The recipe was found on the Numenta Anomaly Benchmark: `tidecast recipe nab`.

All of it counts readings, not time, but for the hour of the week and the week of the alarms.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tidecast.service.model.spec import Diagnostic
from tidecast.training.model.calendar import WEEK_MS
from tidecast.training.model.state_layout import columns

VIEWS = ("value", "hour_of_week", "level", "variation")
HOURS, HOUR_MS = 168, 3_600_000
LEAST_GAIN = 0.05  # of an hour's mean, a visit
USUAL = 4_000.0  # readings that the mean looks back over which stands in for hours not visited yet
LATELY, SHORT, LONG = 6.0, 24.0, 300.0  # readings that running means look back over
MIDDLE_SPAN, RANGE_SPAN = 2_000.0, 8_000.0  # readings over which a range's middle moves, and a range is forgotten
QUIET = 100.0  # readings at first, without any excess
FIRST_LIMIT = 0.066  # widths of a range
RAISE = 0.25  # of the limit's logarithm, at an alarm
ADAPTS_FROM = 300.0  # readings
SILENCE = 120.0  # readings after an alarm, in which only a larger excess counts
RAW_LIMIT = 1e15  # of values: a float32 holds the squares of what is smaller
LARGEST = 100.0  # excess of a view, in widths of its range
TINY = 1e-30
MEANS = 6  # running means: lately, short, long; the middle and the square of the variation; of hours not visited


class AnomalyScore(nn.Module):
    """Scores in 0 to 1; from 0.5 on it is an alarm. State slices are [rows] for each column: see `layout`."""

    def __init__(self, alarms_a_week: float, step_ms: int) -> None:
        super().__init__()
        self.lowering = RAISE * alarms_a_week * step_ms / WEEK_MS

    @property
    def layout(self) -> list[tuple[str, int]]:
        """Its slices of the state: name, rows of each column."""
        return [
            ("anomaly_hours", 2 * HOURS),
            ("anomaly_means", MEANS),
            ("anomaly_ranges", 3 * len(VIEWS)),
            ("anomaly_alarm", 5),
        ]

    @staticmethod
    def diagnostics(targets: list[str]) -> list[Diagnostic]:
        """The columns of `score`: of each target alarm, the whole, and each view's part with the sign of its side."""
        out = []
        for target in targets:
            out.append(Diagnostic(f"alarm_{target}", "alarm", target, 0))
            out.append(Diagnostic(f"anomaly_{target}", "anomaly", target, 0))
            out += [Diagnostic(f"anomaly_{view}_{target}", "anomaly_view", target, 0) for view in VIEWS]
        return out

    def of_targets(self, x: Tensor, ts: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The columns of `score` [batch, columns], and the slices of the state [rows * targets, batch] after it.

        x [targets, batch] raw, NaN = missing; ts [batch] ms; state [rows * targets, batch] each.
        """
        d, batch = x.shape[0], x.shape[1]
        there = ~torch.isnan(x)
        value = torch.where(there, x, torch.zeros(())).clamp(-RAW_LIMIT, RAW_LIMIT)
        found, parts = self(
            columns(value, d),
            columns(there.to(x.dtype), d),
            ts if d == 1 else ts.repeat(d),
            {name: columns(state[name], d) for name, _ in self.layout},
        )
        by_target = found.reshape(len(VIEWS) + 2, d, batch).permute(2, 1, 0).reshape(batch, -1)
        return by_target, [part.reshape(-1, batch) for part in parts]

    def forward(
        self, value: Tensor, there: Tensor, ts: Tensor, state: dict[str, Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """[2 + views, columns] scores, and the slices of the state after the reading.

        The rows of scores: 1 = alarm, the whole in 0 to 1, then each view's part. NaN = no value, no alarm, no excess.

        value [1, columns], limited, anything where it is missing; there [1, columns] 1 or 0 = missing; ts [columns] ms.
        """
        seen, anchor, logarithm, height, since = state["anomaly_alarm"].split_with_sizes([1] * 5)
        first = seen < 1
        anchor = torch.where(first, value, anchor)
        x = value - anchor
        hours, means, signals = self._signals(x, ts, seen, state)
        excess, side, ranges = self._excess(signals, seen, state["anomaly_ranges"])
        total = excess.sum(dim=0, keepdim=True)

        since = since + 1
        height = torch.where(since > SILENCE, torch.zeros(()), height)
        counts = total > height
        said = torch.where(counts, total, torch.zeros(()))
        height = torch.maximum(height, said)
        since = torch.where(counts, torch.zeros(()), since)
        ratio = said / (FIRST_LIMIT * torch.exp(logarithm))
        alarm = ratio >= 1
        moved = (logarithm + RAISE * alarm.to(x.dtype) - self.lowering).clamp(min=0.0)
        logarithm = torch.where(seen >= ADAPTS_FROM, moved, logarithm)
        score = ratio / (1 + ratio)
        share = side * excess / torch.clamp(total, min=TINY) * score

        known, nothing = there > 0, torch.full((), float("nan"))
        alarms = torch.where(alarm, torch.ones(()), nothing)
        columns = torch.cat([alarms, score, torch.where((excess > 0) & counts, share, nothing)])
        after = [hours, means, ranges, torch.cat([seen + 1, anchor, logarithm, height, since])]
        before = [state[name] for name, _ in self.layout]
        kept = [torch.where(known, new, old) for new, old in zip(after, before, strict=True)]
        return torch.where(known, columns, nothing), kept

    def _signals(self, x: Tensor, ts: Tensor, seen: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The hours and the running means after a reading, and what the views follow [views, columns]."""
        first = seen < 1
        lately, short, long, middle, square, usual = state["anomaly_means"].split_with_sizes([1] * MEANS)
        usual = torch.where(first, x, usual)
        at = torch.remainder(torch.div(ts, HOUR_MS, rounding_mode="floor"), HOURS)[None]
        hours = state["anomaly_hours"]
        mean, visits = torch.gather(hours, 0, at), torch.gather(hours, 0, at + HOURS)
        fresh = visits < 1
        away = x - torch.where(fresh, usual, mean)
        visits = visits + 1
        mean = torch.where(fresh, x, mean + torch.clamp(1 / visits, min=LEAST_GAIN) * (x - mean))
        hours = torch.scatter(hours, 0, torch.cat([at, at + HOURS]), torch.cat([mean, visits]))
        usual = usual + (x - usual) / torch.clamp(seen + 1, max=USUAL)
        lately = lately + (away - lately) / LATELY
        short, long = short + (x - short) / SHORT, long + (x - long) / LONG
        middle = torch.where(first, x, middle)
        difference = x - middle
        middle = middle + difference / SHORT
        square = (1 - 1 / SHORT) * (square + difference * difference / SHORT)

        def unbiased(running: Tensor, span: float) -> Tensor:
            return running / (1 - torch.exp((seen + 1) * math.log(1 - 1 / span)))

        signals = torch.cat(
            [x, unbiased(lately, LATELY), unbiased(short, SHORT) - unbiased(long, LONG), torch.sqrt(square)]
        )
        return hours, torch.cat([lately, short, long, middle, square, usual]), signals

    @staticmethod
    def _excess(signals: Tensor, seen: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """How far each view leaves its range, in widths; on which side, 1 or -1; and the ranges after it."""
        first = seen < 1
        high, low, middle = (torch.where(first, signals, part) for part in state.chunk(3))
        width = high - low
        above, below = signals - high, low - signals
        out = torch.maximum(above, below).clamp(min=0.0)
        excess = (out / torch.clamp(width, min=TINY)).clamp(max=LARGEST)
        excess = torch.where(seen >= QUIET, excess, torch.zeros(()))
        middle = middle + (signals - middle) / torch.clamp(seen + 1, max=MIDDLE_SPAN)
        high, low = high - (high - middle) / RANGE_SPAN, low - (low - middle) / RANGE_SPAN
        most = torch.where((seen >= QUIET) & (width > 0), width, torch.full((), float("inf")))
        high = high + torch.minimum((signals - high).clamp(min=0.0), most)
        low = low - torch.minimum((low - signals).clamp(min=0.0), most)
        return excess, torch.where(above > below, 1.0, -1.0), torch.cat([high, low, middle])
