"""Running means by the time of the day and of the week, for each series on its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tidecast.training.model.calendar import DAY_MS, slot_of
from tidecast.training.model.online_recipe import Season

Read = tuple[int, int]  # which season, and how many steps from now


class SeasonalTables(nn.Module):
    """One table after the other: [rows, columns]. Columns are series, or the targets of each."""

    def __init__(self, seasons: Sequence[Season], step_ms: int) -> None:
        super().__init__()
        self.seasons, self.step_ms = list(seasons), step_ms
        self.names = ["day" if season.period_ms == DAY_MS else "week" for season in self.seasons]
        self.present = [(i, 0) for i in range(len(self.seasons))]
        self.has_day = "day" in self.names
        self.rows = sum(season.slots for season in self.seasons)
        self.starts = [sum(season.slots for season in self.seasons[:i]) for i in range(len(self.seasons))]

    def phases(self, ts: Tensor) -> Tensor:
        """Whole steps since each season's period began: [seasons, batch] of ts [batch] ms."""
        into = torch.remainder(ts[None], torch.tensor([[season.period_ms] for season in self.seasons]))
        last = self._of([season.steps - 1 for season in self.seasons])
        return torch.minimum(slot_of(into, self.step_ms).to(torch.float32), last)

    def read(self, tables: Tensor, phases: Tensor, reads: Sequence[Read]) -> Tensor:
        """[reads, columns]"""
        return torch.gather(tables, 0, self._rows(phases, reads))

    def visit(self, tables: Tensor, phases: Tensor, surprise: Tensor, there: Tensor, age: Tensor) -> Tensor:
        """The tables after a value that is `surprise` [seasons, columns] from what they say.

        there [1, columns] 1 or 0, age [1, columns] steps before this.
        """
        steps = self._of([season.steps for season in self.seasons])
        width = self._of([season.per_slot for season in self.seasons])
        gain = self._of([season.gain / season.per_slot for season in self.seasons])
        inside = phases - torch.floor(phases / width) * width
        visits = torch.floor(age / steps) * width + torch.minimum(age, inside) + 1
        rows = self._rows(phases, self.present)
        moved = torch.gather(tables, 0, rows) + there * torch.maximum(1 / visits, gain) * surprise
        return torch.scatter(tables, 0, rows, moved)

    def _rows(self, phases: Tensor, reads: Sequence[Read]) -> Tensor:
        """Which row of the tables each read is."""
        seasons = [self.seasons[i] for i, _ in reads]
        steps = self._of([season.steps for season in seasons])
        offsets = self._of([offset % season.steps for season, (_, offset) in zip(seasons, reads, strict=True)])
        at = phases.index_select(0, torch.tensor([i for i, _ in reads])) + offsets
        at = torch.where(at >= steps, at - steps, at)
        if any(season.per_slot != 1 for season in seasons):
            at = torch.floor((at + 0.5) / self._of([season.per_slot for season in seasons]))
        return (at + self._of([self.starts[i] for i, _ in reads])).to(torch.int64)

    @staticmethod
    def _of(numbers: Sequence[float]) -> Tensor:
        return torch.tensor([[float(number)] for number in numbers])
