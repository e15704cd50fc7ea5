"""What the online mixture sees of a series: past values, running means and tables, relative to the value at an origin.

Each origin has features of its own time (`common_block`) and of the moment that is forecast from it (`own_block`). What
lies before the first reading counts as the value at the origin; what lies less than a week after it, as the day's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tidecast.training.model.online_recipe import Recipe
from tidecast.training.model.seasonal_tables import Read, SeasonalTables


class Memory(NamedTuple):
    """What features are made of; columns are series, or the targets of each."""

    values: Tensor  # [kept, columns] the newest last
    tables: Tensor  # [rows, columns] deviations from the long mean
    means: Tensor  # [2, origins, columns] the short and the long running mean as they were at the origins
    phases: Tensor  # [seasons, columns]
    anchor: Tensor  # [1, columns] what the means are relative to
    age: Tensor  # [1, columns] steps before this one, from the first reading on
    scale: Tensor  # [1, columns]


class Known(NamedTuple):
    """A feature of each origin, and the age from which it is known."""

    name: str
    reads: Sequence[Read | int]  # of each origin or moment: from a table, or a value so many steps back
    ages: list[int]
    instead: int | None = None  # the feature that takes its place before; None = nothing


class FeatureBlock(nn.Module):
    """Features [features, moments, columns] of some origins: values, then means, then what tables say, then waves."""

    def __init__(
        self, tables: SeasonalTables, recipe: Recipe, kept: int, origins: list[int],
        values: list[Known], said: list[Known], *, common: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tables, self.limit, self.common = tables, recipe.feature_limit, common
        self.origins = [kept - 1 - back for back in origins]
        self.picks = [kept - 1 - back for known in values for back in known.reads if isinstance(back, int)]
        self.reads = [read for known in said for read in known.reads if not isinstance(read, int)]
        self.wide = max((len(known.reads) for known in (*values, *said)), default=len(origins))
        always = [0] * self.wide
        means = [Known("short mean", [], always), Known("long mean", [], always)] if common else []
        self.known = [*values, *means, *said]
        self.names = [known.name for known in self.known]
        self.waves = recipe.waves if common and tables.has_day else 0
        self.angles = [2 * math.pi * back / tables.seasons[0].steps for back in origins] if self.waves else []
        self.waved = [self.names.index(name) for name in ("1 back", "now by day")] if self.waves else []
        self.names += [f"{self.names[i]}, wave {k}" for k in range(2 * self.waves) for i in self.waved]

    def __len__(self) -> int:
        return len(self.names)

    def forward(self, memory: Memory) -> Tensor:
        """In running deviations, limited."""
        origin = memory.values.index_select(0, torch.tensor(self.origins))  # [origins, columns]
        away = (memory.means - (origin - memory.anchor)) / memory.scale  # [2, origins, columns]
        parts = []
        if self.picks:
            picked = memory.values.index_select(0, torch.tensor(self.picks))
            parts.append((picked.reshape(-1, self.wide, picked.shape[-1]) - origin) / memory.scale)
        if self.common:
            parts.append(away)
        if self.reads:
            said = self.tables.read(memory.tables, memory.phases, self.reads)
            parts.append(said.reshape(-1, self.wide, said.shape[-1]) + away[1:])
        z = torch.cat(parts)
        ages = torch.tensor([[[float(age)] for age in known.ages] for known in self.known])
        seen = torch.where(memory.age >= ages, z, torch.zeros(()))
        at = [i if known.instead is None else known.instead for i, known in enumerate(self.known)]
        if at != list(range(len(at))):
            seen = torch.where(memory.age >= ages, z, seen.index_select(0, torch.tensor(at)))
        if self.waves:
            waved = seen.index_select(0, torch.tensor(self.waved))
            waves = self._waves(memory.phases[:1])[:, None]  # [2 * waves, 1, origins, columns]
            seen = torch.cat([seen, (waves * waved).flatten(0, 1)])
        return seen.clamp(-self.limit, self.limit)

    def _waves(self, phase: Tensor) -> Tensor:
        """Cosines and sines of the time of the day at the origins: [2 * waves, origins, columns]."""
        orders = torch.arange(1.0, self.waves + 1)[:, None]
        turn = phase * (orders * (2 * math.pi / self.tables.seasons[0].steps))  # [waves, columns]
        back = orders * torch.tensor([self.angles])  # [waves, origins]
        cosine, sine = torch.cos(turn)[:, None], torch.sin(turn)[:, None]
        cosine_back, sine_back = torch.cos(back)[..., None], torch.sin(back)[..., None]
        return torch.cat([cosine * cosine_back + sine * sine_back, sine * cosine_back - cosine * sine_back])


def nearest(recipe: Recipe, *, wide: bool) -> list[int]:
    """Steps back of the nearest values that are features."""
    return sorted({*recipe.near, *(recipe.more_near if wide else ())})


def common_block(tables: SeasonalTables, recipe: Recipe, kept: int, origins: list[int], *, wide: bool) -> FeatureBlock:
    """The features of the origins' own time: `origins` are steps back; `wide`: more of them."""
    values, said = [], []
    near_ones = nearest(recipe, wide=wide)
    for near in near_ones:
        backs = [near + o for o in origins]
        values.append(Known(f"{near} back", backs, backs))
    for i, (name, season) in enumerate(zip(tables.names, tables.seasons, strict=True)):
        day = None if i == 0 else len(near_ones)
        if season.lag:
            backs = [season.steps + o for o in origins]
            values.append(Known(f"{name} back", backs, backs, day))
        said.append(Known(f"now by {name}", [(i, -o) for o in origins], list(origins)))
    if wide and tables.has_day and tables.seasons[0].lag:
        backs = [tables.seasons[0].steps + 1 + o for o in origins]
        values.append(Known("day and a step back", backs, backs))
    day_table = len(values) + 2
    if len(said) > 1:
        said[1] = said[1]._replace(instead=day_table)
    if wide and said:
        last = len(said) - 1
        reads = [(last, -o - 1) for o in origins]
        said.append(Known("a step ago", reads, [o + 1 for o in origins], day_table if last else None))
    return FeatureBlock(tables, recipe, kept, origins, values, said, common=True)


def own_block(tables: SeasonalTables, recipe: Recipe, kept: int, leads: list[int], *, ahead: bool) -> FeatureBlock:
    """The features of the moment that is forecast: so many steps `ahead` of now, or now itself, as many steps later."""
    values, said = [], []
    for i, (name, season) in enumerate(zip(tables.names, tables.seasons, strict=True)):
        if season.lag:
            backs = [season.back(lead) + (0 if ahead else lead) for lead in leads]
            values.append(Known(f"then, {name} back", backs, backs, 0 if i else None))
        at = [(i, lead if ahead else 0) for lead in leads]
        said.append(Known(f"then by {name}", at, [season.back(lead) if ahead else season.steps for lead in leads]))
    if len(said) > 1:
        said[1] = said[1]._replace(instead=len(values))
    return FeatureBlock(tables, recipe, kept, [0] if ahead else leads, values, said, common=False)


def simple_forecasts(names: list[str], seasons: list[str]) -> list[dict[int, float]]:
    """What forecasts without learning say, as weights of features by their place in `names`.

    Persistence is none of them. The others repeat a day or a week ago, or what a table says, or the change since.
    """
    at = {name: i for i, name in enumerate(names)}
    out: list[dict[int, float]] = [{}, {at["short mean"]: 1.0}]
    for season in seasons:
        for then, now in ((f"then, {season} back", f"{season} back"), (f"then by {season}", f"now by {season}")):
            if then in at:
                out += [{at[then]: 1.0}, {at[then]: 1.0, at[now]: -1.0}]
    return out
