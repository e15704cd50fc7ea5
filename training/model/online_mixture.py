"""A forecaster that learns each series while it is served: nothing in it comes from training.

Simple forecasts (persistence, the values of a day and of a week ago, running means by the time of day and of the week,
the changes that these say, a running mean) are averaged by weights that fall with each one's running error, lead by
lead. A ridge that learns at each step sees all that they are made of, starts from that average, and is averaged with it
in the same way; so is a second one, which forgets faster, where the horizon is short. Each series and target is on its
own: a column. All is relative to the newest value and in running deviations, so that a series of any level and size is
treated alike.

What was said of the present is not remembered but computed again, from the past values that are kept; only the running
means are remembered as they were, or their forecasts would be judged with knowledge of the answer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tidecast.training.model.expert_mixture import times
from tidecast.training.model.online_features import Memory, common_block, nearest, own_block, simple_forecasts
from tidecast.training.model.online_recipe import Recipe, grid_of, seasons_of, spans_of
from tidecast.training.model.online_ridge import LEAST_MISS, OnlineRidge
from tidecast.training.model.seasonal_tables import SeasonalTables

TINY = 1e-30  # a variance below it is none
FIRST_WIDTH = 0.1  # of the first value: the error to expect while there is none to go by
LEAST_ERROR = 1e-25  # deviations; smaller errors do not tell forecasts apart
QUEUES = ("values", "short_means", "long_means")
TRUSTED, STRANGE = 0.3, 1.0  # first errors of another forecaster and of all else, in deviations
TRUSTED_FOR = 20.0  # truths that these count for
FAR_ANCHOR = 1e3  # deviations from the short mean to the anchor: beyond, the anchor moves there


class OnlineForecast(NamedTuple):
    """What `OnlineMixture` says after a reading, in the units of the values."""

    ahead: Tensor  # [horizon, columns] the middle forecasts, less the newest value
    following: Tensor  # [1, columns] what stands in for the next value if it is missing
    width: Tensor  # [horizon, columns] mean absolute errors to expect


class OnlineMixture(nn.Module):
    """State slices are [rows] for each column: see `layout`; those in `queues` have the newest entry last."""

    def __init__(self, step_ms: int, horizon: int, recipe: Recipe, *, outside: bool = False) -> None:
        """`outside`: another forecaster's values join the simple forecasts, and are trusted first."""
        super().__init__()
        self.h, self.recipe, self.outside = horizon, recipe, outside
        self.grid = grid_of(horizon, recipe)
        seasons = seasons_of(step_ms, horizon, recipe)
        self.spans = spans_of(seasons)
        self.days = seasons[0].steps if seasons else self.spans[0]
        self.reach = max(self.grid)  # steps back to the farthest origin that is learned from
        wide = horizon <= recipe.short_horizon
        lags = [season.steps + (wide and i == 0) for i, season in enumerate(seasons) if season.lag]
        self.kept = self.reach + 1 + max([*nearest(recipe, wide=wide), *lags])
        self.tables = SeasonalTables(seasons, step_ms)
        self.then = common_block(self.tables, recipe, self.kept, self.grid, wide=wide)
        self.then_own = own_block(self.tables, recipe, self.kept, self.grid, ahead=False)
        self.now = common_block(self.tables, recipe, self.kept, [0], wide=wide)
        self.now_own = own_block(self.tables, recipe, self.kept, list(range(1, horizon + 1)), ahead=True)
        names = [*self.now.names, *self.now_own.names, *(["outside"] if outside else [])]
        simple = simple_forecasts(names, self.tables.names)
        if outside:
            simple.append({names.index("outside"): 1.0})
        self.simple = torch.zeros(len(simple), len(names))  # their weights on the features
        for row, weights in enumerate(simple):
            for column, weight in weights.items():
                self.simple[row, column] = weight
        self.own = len(self.now_own) + outside
        self.ridges = [
            OnlineRidge(len(self.now), self.own, len(self.grid), recipe, remember, f"ridge_{i}_" if i else "")
            for i, remember in enumerate(recipe.remember_near if wide else recipe.remember)
        ]
        self.queues = [*QUEUES, *(self._waiting() if outside else [])]
        self.between = between(self.grid, horizon)

    @property
    def layout(self) -> list[tuple[str, int]]:
        """Its slices of the state: name, rows of each column."""
        count = len(self.grid)
        return [
            ("values", self.kept), ("age", 1), ("anchor", 1), ("variance", 1),
            ("short_means", self.reach), ("long_means", self.reach), ("tables", self.tables.rows),
            ("surprises", 3 if self.tables.seasons else 0),
            *(part for ridge in self.ridges for part in ridge.layout),
            ("errors", (len(self.simple) + 1 + len(self.ridges)) * count), ("widths", count),
            *(zip(self._waiting(), self.grid, strict=True) if self.outside else []),
        ]  # fmt: skip

    def _waiting(self) -> list[str]:
        """The queues of another forecaster's values, which wait for their truths."""
        return [f"outside_{lead}" for lead in self.grid]

    def first_errors(self) -> Tensor:
        """[(simple + mix + ridges) * grid] the running errors before anything is known."""
        errors = torch.full((len(self.simple) + 1 + len(self.ridges), len(self.grid)), STRANGE)
        if self.outside:
            errors[[len(self.simple) - 1, len(self.simple)]] = TRUSTED  # the other forecaster's, and the average
        return errors.flatten()

    def forward(
        self,
        now: Tensor,
        there: Tensor,
        ts: Tensor,
        oldest: dict[str, Tensor],
        kept: dict[str, Tensor],
        outside: Tensor | None = None,
    ) -> tuple[OnlineForecast, list[Tensor]]:
        """After a reading: its forecast, and the slices of the state [rows, columns], in the order of `layout`.

        now [1, columns] the value, or its stand-in where it is missing; there [1, columns] 1 or 0 = missing; ts
        [columns] ms; `oldest`, `kept`: its slices of the state, of the queues the oldest entry and the others;
        `outside` [horizon, columns] what another forecaster says now.
        """
        age = oldest["age"]
        anchor = torch.where((age < 1) & (there > 0), now, oldest["anchor"])
        means = [torch.cat([oldest[name], kept[name]]) if self.reach > 1 else oldest[name]
                 for name in ("short_means", "long_means")]  # fmt: skip
        at = torch.tensor([self.reach - lead for lead in self.grid])
        memory = Memory(
            values=torch.cat([kept["values"], now]),
            tables=oldest["tables"],
            means=torch.stack([each.index_select(0, at) for each in means]),
            phases=self.tables.phases(ts) if self.tables.seasons else ts[:0],
            anchor=anchor,
            age=age,
            scale=_scale(oldest["variance"], now - kept["values"][-1:]),
        )
        learned = self._learn(now, there, memory, oldest)

        memory, variance, surprises, low, high = self._remember(
            now, there, memory, [each[-1:] for each in means], oldest
        )
        ahead = memory.scale * self._ahead(memory, learned, outside)
        waiting = []
        for lead in self.grid if outside is not None else []:
            name, new = f"outside_{lead}", outside[lead - 1 : lead]  # type: ignore[index]
            waiting.append(torch.cat([kept[name], new]) if lead > 1 else new)
        width = times(self.between, self._widths(now, age, learned.widths))
        following = now + torch.minimum(torch.maximum(ahead[:1], (low - now).clamp(max=0)), (high - now).clamp(min=0))
        began = torch.maximum(there, (age > 0).to(there.dtype))
        short, long = memory.means.split_with_sizes([1, 1])
        far = torch.where(short[0].abs() > FAR_ANCHOR * memory.scale, short[0], torch.zeros(()))
        queues = [torch.cat([each[1:], new[0]]) - far for each, new in zip(means, (short, long), strict=True)]
        return OnlineForecast(ahead, following, width), [
            memory.values, age + began, anchor + far, variance, *queues, memory.tables, surprises,
            *(part for ridge in learned.ridges for part in ridge), learned.errors.flatten(0, 1), learned.widths,
            *waiting,
        ]  # fmt: skip

    def _learn(self, now: Tensor, there: Tensor, memory: Memory, oldest: dict[str, Tensor]) -> _Learned:
        """Compare what was said of the present with it."""
        recipe, count = self.recipe, len(self.grid)
        z = self.then(memory)
        if len(self.then_own):
            z = torch.cat([z, self.then_own(memory)])  # [features, leads, columns]
        origins = memory.values.index_select(0, torch.tensor(self.then.origins))  # [leads, columns]
        if self.outside:
            due = torch.cat([oldest[name] for name in self._waiting()])
            z = torch.cat([z, self._outside(due - origins, memory)])
        leads = torch.tensor(self.grid, dtype=now.dtype)[:, None]
        learn = there * (memory.age >= leads).to(now.dtype)
        told = torch.clamp(memory.age - (leads - 1), min=1.0)
        moved = now - origins
        truth = (moved / memory.scale).clamp(-recipe.target_limit, recipe.target_limit)

        errors = torch.unflatten(oldest["errors"], 0, (-1, count))  # [simple + mix + ridges, leads, columns]
        before, shares = self._weights(errors)
        mixed = (before * z).sum(dim=0)
        simple = torch.unflatten(torch.matmul(self.simple, z.flatten(1)), 1, (count, -1))
        said = torch.cat([simple, mixed[None], *(ridge.said(z, oldest)[None] for ridge in self.ridges)])
        _, most = self.ridges[0].limits(oldest["misses"], told)
        spans = (recipe.error_span + recipe.error_span_by_lead * leads.square()).clamp(max=recipe.longest_error_span)
        rate = learn * torch.maximum(1 / (told + (TRUSTED_FOR if self.outside else 0)), 1 / spans)
        errors = errors + rate * (torch.minimum((truth - said).abs(), most) - errors)
        prior, after = self._weights(errors)
        ridges = [ridge(z, truth, prior, learn, told, self.spans[1], oldest) for ridge in self.ridges]

        off = (moved - memory.scale * (shares * said[len(self.simple) :]).sum(dim=0)).abs()
        most = torch.where(oldest["widths"] > 0, recipe.width_cap * oldest["widths"], off)
        off = torch.where(told > 2, torch.minimum(off, most), off)
        widths = oldest["widths"] + learn * torch.clamp(1 / told, min=recipe.width_gain) * (off - oldest["widths"])
        return _Learned(ridges, errors, prior, after, widths)

    def _remember(
        self, now: Tensor, there: Tensor, memory: Memory, means: list[Tensor], oldest: dict[str, Tensor]
    ) -> _Remembered:
        """The memory with the present in it."""
        recipe, count, variance = self.recipe, memory.age + 1, oldest["variance"]
        level, first = now - memory.anchor, memory.age < 1
        short, long = (torch.where(first, level, mean) for mean in means)
        young = torch.clamp(2 * self.days / count, min=1.0)  # the deviation is not well known in the first two days
        spike = recipe.spike_limit * young * torch.sqrt(variance)
        calm = torch.minimum(torch.maximum(level, short - spike), short + spike)
        calm = torch.where(variance > TINY, calm, level)
        square = (calm - short) * (calm - short)
        variance = variance + there * torch.clamp(1 / count, min=1 / (2 * self.spans[1])) * (square - variance)
        scale, rate = _scale(variance, memory.scale), torch.clamp(1 / count, min=2 / (self.spans[1] + 1))
        tables, surprises = memory.tables, oldest["surprises"]
        if self.tables.seasons:
            unit = torch.where(count > self.days, memory.scale, scale)
            surprise = (calm - long) / unit - self.tables.read(tables, memory.phases, self.tables.present)
            known = (count > self.tables.seasons[-1].steps).to(now.dtype)
            surprises, usual, drift = self._surprises(surprise[-1:], there * known, count, surprises)
            rate = torch.maximum(rate, known * drift)
            limit = torch.where(count > 2 * self.tables.seasons[-1].steps, recipe.surprise * usual, torch.full((), 1e6))
            surprise = torch.minimum(torch.maximum(surprise, -limit), limit)
            tables = self.tables.visit(tables, memory.phases, surprise, there, memory.age)
        newest = torch.stack([short + there * torch.clamp(1 / count, min=2 / (self.spans[0] + 1)) * (calm - short),
                              long + there * rate * (calm - long)])  # fmt: skip
        after = memory._replace(tables=tables, means=newest, scale=scale)
        middle = short + memory.anchor
        return _Remembered(after, variance, surprises, middle - spike, middle + spike)

    def _surprises(
        self, surprise: Tensor, learn: Tensor, count: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The running surprises [3, columns] after one more; their usual size before it; how fast the level drifts.

        The first two are Trigg and Leach's (1967) tracking signal: where surprises are all of one sign, the level has
        moved, and the long mean follows as fast as the short one.
        """
        signed, size, last = state.split_with_sizes([1, 1, 1])
        usual = torch.clamp(last, min=LEAST_MISS)
        rate = learn / self.spans[0]
        signed, size = signed + rate * (surprise - signed), size + rate * (surprise.abs() - size)
        share = signed / torch.clamp(size, min=1e-6)
        square = share * share
        fourth = square * square
        drift = self.recipe.drift * 2 / (self.spans[0] + 1) * fourth * fourth
        week = self.tables.seasons[-1].steps
        least = torch.where(count > 2 * week, self.recipe.worst * usual, torch.full((), 1e6))
        since = torch.clamp(count - week, min=1.0)
        taken = torch.minimum(surprise.abs(), least)
        after = last + learn * torch.clamp(1 / since, min=1 / self.spans[1]) * (taken - last)
        return torch.cat([signed, size, after]), usual, drift

    def _outside(self, ahead: Tensor, memory: Memory) -> Tensor:
        """Another forecaster's values, less those at their origins, as a feature: [1, leads, columns]."""
        limit = self.recipe.target_limit
        return (ahead / memory.scale).clamp(-limit, limit)[None]

    def _ahead(self, memory: Memory, learned: _Learned, outside: Tensor | None) -> Tensor:
        """The forecasts of all leads [horizon, columns], in deviations from the newest value."""
        count = len(self.grid)
        limits = torch.tensor([self.recipe.target_limit, *[self.recipe.feature_limit] * len(self.ridges)])[
            :, None, None
        ]
        own_weights = [torch.unflatten(ridge[OnlineRidge.WEIGHTS], 0, (-1, count)) for ridge in learned.ridges]
        weights = torch.stack([learned.prior, *own_weights])
        common, own = weights.split_with_sizes([len(self.now), self.own], dim=1)
        said = torch.matmul(self.between, (common * self.now(memory)).sum(dim=1))  # [1 + ridges, horizon, columns]
        parts = [self.now_own(memory)] if len(self.now_own) else []
        if outside is not None:
            parts.append(self._outside(outside - memory.values[-1:], memory))
        if parts:
            said = said + (torch.matmul(self.between, own) * torch.cat(parts)).sum(dim=1)
        return (torch.matmul(self.between, learned.shares) * torch.clamp(said, -limits, limits)).sum(dim=0)

    def _weights(self, errors: Tensor) -> tuple[Tensor, Tensor]:
        """The simple forecasts' average as weights of features, and the shares of it and of the ridges in the whole.

        [features, leads, columns] and [1 + ridges, leads, columns], of errors [simple + 1 + ridges, leads, columns].
        """
        simple, both = errors.clamp(min=LEAST_ERROR).split_with_sizes([len(self.simple), 1 + len(self.ridges)])
        shares = _shares(simple, self.recipe.simple_power)
        return torch.unflatten(torch.matmul(self.simple.T, shares.flatten(1)), 1, (len(self.grid), -1)), _shares(
            both, self.recipe.ridge_power
        )

    def _widths(self, now: Tensor, age: Tensor, widths: Tensor) -> Tensor:
        """Widths [grid, columns]: of leads without an error yet by the first one's, as those of a random walk grow."""
        guess = FIRST_WIDTH * torch.where(now == 0, torch.ones(()), now.abs())
        shortest = torch.where(age >= 1, widths[:1], guess)
        leads = torch.tensor(self.grid, dtype=now.dtype)[:, None]
        return torch.where(age >= leads, widths, shortest * leads.sqrt())


class _Remembered(NamedTuple):
    memory: Memory
    variance: Tensor  # [1, columns]
    surprises: Tensor  # [3, columns]
    low: Tensor  # [1, columns] the range of usual values, with `high`
    high: Tensor


class _Learned(NamedTuple):
    ridges: list[list[Tensor]]  # the slices of each one's state
    errors: Tensor  # [simple + mix + ridges, leads, columns] running errors, in deviations
    prior: Tensor  # [features, leads, columns] weights of the simple forecasts' average
    shares: Tensor  # [1 + ridges, leads, columns] of this average and of the ridges
    widths: Tensor  # [leads, columns] running errors of the whole, in the units of the values


def _scale(variance: Tensor, instead: Tensor) -> Tensor:
    """The deviation; where there is none yet, the size of `instead`, or 1."""
    size = torch.where(instead == 0, torch.ones(()), instead.abs())
    return torch.where(variance > TINY, torch.sqrt(variance), size)


def _shares(errors: Tensor, power: int) -> Tensor:
    """Proportional to errors^-power, an even one, and 1 in sum, over the first axis."""
    ratio = errors.amin(dim=0, keepdim=True) / errors
    square = ratio * ratio
    weights = square
    for _ in range(power // 2 - 1):
        weights = weights * square
    return weights / weights.sum(dim=0, keepdim=True)


def between(grid: list[int], horizon: int) -> Tensor:
    """[horizon, grid]: each lead's weights of its neighbours in the grid, linear in the lead."""
    weights = torch.zeros(horizon, len(grid))
    for lead in range(1, horizon + 1):
        right = next(i for i, at in enumerate(grid) if at >= lead)
        left = right if grid[right] == lead else right - 1
        share = 1.0 if right == left else (lead - grid[left]) / (grid[right] - grid[left])
        weights[lead - 1, left] += 1.0 - share
        weights[lead - 1, right] += share
    return weights
