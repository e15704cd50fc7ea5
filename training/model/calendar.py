"""Where in the day, the week and the year a time lies: waves for the cell, and the slots of the linear path."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

DAY_MS, WEEK_MS, YEAR_MS = 86_400_000, 604_800_000, 31_556_952_000
PERIODS = {"day": DAY_MS, "week": WEEK_MS, "year": YEAR_MS}
FINEST_SLOT_MS = 1_800_000  # slots of at least half an hour: finer ones have too few rows each


class Calendar(nn.Module):
    """The periods of a model. A period's remainder is taken once, of all of them in one call."""

    offsets: Tensor  # [rows, 1] ms that each remainder looks back
    periods: Tensor  # [rows, 1] ms
    turns: Tensor  # [periods, 1] radians a ms

    def __init__(self, names: list[str], step_ms: int, back: int) -> None:
        """`back`: slots are also given for the moment so many steps back; 0 = not."""
        super().__init__()
        self.names, self.back = names, back
        self.part = {name: max(min(step_ms, PERIODS[name]), FINEST_SLOT_MS) for name in names if name != "year"}
        self.count = {name: -(-PERIODS[name] // part) for name, part in self.part.items()}  # slots of each period
        # Where the day's slots lie in the week's, the week's slot says both.
        nested = len(self.part) == 2 and self.part["day"] == self.part["week"] and DAY_MS % self.part["day"] == 0
        self.asked = ["week"] if nested else list(self.part)  # whose slot is looked up
        rows = [(0, PERIODS[name]) for name in names]
        rows += [(back * step_ms, PERIODS[name]) for name in self.asked if back]
        offsets, periods = zip(*rows, strict=True) if rows else ((), ())
        self.register_buffer("offsets", torch.tensor(offsets, dtype=torch.int64)[:, None], persistent=False)
        self.register_buffer("periods", torch.tensor(periods, dtype=torch.int64)[:, None], persistent=False)
        turns = torch.tensor([2 * math.pi / PERIODS[name] for name in names])
        self.register_buffer("turns", turns[:, None], persistent=False)

    def forward(self, ts: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """(sines and cosines [periods, batch] each; the slot [batch] of each period in `asked`; the same, back then).

        ts [batch] ms. Whole milliseconds: exact.
        """
        if not self.names:
            return [], [], []
        times = ts[None] - self.offsets if self.back else ts[None]
        phases = torch.remainder(times, self.periods)  # [rows, batch]
        angles = phases[: len(self.names)].to(torch.float32) * self.turns
        rows = [self.names.index(name) for name in self.asked]
        then = range(len(self.names), len(self.periods))
        slots = [slot_of(phases[row], self.part[name]) for row, name in zip(rows, self.asked, strict=True)]
        slots_then = [slot_of(phases[row], self.part[name]) for row, name in zip(then, self.asked, strict=bool(then))]
        return [torch.sin(angles), torch.cos(angles)], slots, slots_then


def slot_of(phase: Tensor, part: int) -> Tensor:
    """phase // part of whole ms, as int64; exact, as doubles hold all of them."""
    return (phase.to(torch.float64) / part).to(torch.int64)
