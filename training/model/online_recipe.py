"""The constants of the online mixture: one frozen record, so that a graph is a function of it and of the step."""

from __future__ import annotations

from dataclasses import dataclass

from tidecast.training.model.calendar import DAY_MS, WEEK_MS

LONGEST_LAG = 2_016  # steps, a week of 5 minutes: what lies further back than this is remembered by tables alone
COARSE_SLOTS = 168  # of the table of a period longer than that; of others, each step has a slot of its own
LEAST_DAY = 4  # steps in a day, below which it is no season
LEAST_SPANS = (24, 168)  # steps
LONGEST_SPAN = 2_016  # steps that a running mean looks back over, roughly


@dataclass(frozen=True, slots=True)
class Recipe:
    """Constants, chosen on rows that are not used for judging: see docs/starter.md."""

    near: tuple[int, ...] = (1, 3)  # steps back, of the nearest values that are features
    more_near: tuple[int, ...] = (2, 6)  # more of them where the horizon is short, and what lies a step before others
    short_horizon: int = 5  # steps
    waves: int = 2  # of the day, which the nearest change and the day's table are multiplied with
    leads: tuple[float, ...] = (1, 3, 8, 13, 19, 24)  # of the grid at a horizon of 24; at others as far apart
    feature_limit: float = 6.0  # deviations, of features and of the ridge's forecast
    target_limit: float = 12.0  # deviations, of what it learns from
    spike_limit: float = 6.0  # deviations from the short mean; beyond, a value is clipped for means and tables
    remember: tuple[float, ...] = (0.999,)  # of each ridge's sums, a step
    remember_near: tuple[float, ...] = (0.999, 0.995)  # the same where the horizon is short
    penalty: float = 1.0
    early_penalty: float = 100.0  # more at first; half of it two weeks later
    steps: tuple[float, ...] = (1.5,)  # towards the ridge's solution, at each reading
    weight_limit: float = 4.0
    outlier: float = 3.0  # running errors; what is further off is learned from as this
    worst: float = 5.0  # running errors; a larger one counts as this
    settled: int = 30  # truths from which both hold
    miss_gain: float = 0.01  # of these running errors
    day_gain: float = 1 / 15  # of a table, a visit
    week_gain: float = 1 / 6
    surprise: float = 4.0  # running surprises; a table moves by no more, from the third period on
    drift: float = 0.5  # how far the long mean follows as fast as the short one where all surprises have one sign
    error_span: float = 20.0  # steps that the running errors of the forecasts look back
    error_span_by_lead: float = 0.5  # more for each square of the lead
    longest_error_span: float = 600.0
    simple_power: int = 6  # the simple forecasts' weights are their errors to this power, inverted
    ridge_power: int = 4  # so are those of their average and of the ridge
    width_gain: float = 0.02  # of the running errors that intervals are made from
    width_cap: float = 30.0  # times the running error: a larger one counts as this


@dataclass(frozen=True, slots=True)
class Season:
    """A period of the calendar in steps, and how it is remembered."""

    period_ms: int
    steps: int  # in the period
    per_slot: float  # steps in a slot of the table
    slots: int
    lag: bool  # whether the value of a period ago is kept too
    gain: float  # of the table, a visit of a slot

    def back(self, lead: int) -> int:
        """Steps back from now to the latest value that is whole periods before `lead` steps ahead."""
        return self.steps * -(-lead // self.steps) - lead


def seasons_of(step_ms: int, horizon: int, recipe: Recipe) -> list[Season]:
    """Day and week, as far as there are some steps in them.

    Where the horizon is longer than a week, there is a table of some weeks: what it says then must not have been seen.
    """
    out = []
    for period, gain, least in ((DAY_MS, recipe.day_gain, LEAST_DAY), (WEEK_MS, recipe.week_gain, 2)):
        times = max(1, -(-horizon * step_ms // period)) if period == WEEK_MS else 1
        steps = round(times * period / step_ms)
        if steps < least:
            continue
        slots = steps if steps <= LONGEST_LAG else COARSE_SLOTS
        out.append(Season(times * period, steps, steps / slots, slots, steps <= LONGEST_LAG, gain))
    return out


def grid_of(horizon: int, recipe: Recipe) -> list[int]:
    """The leads that weights are learned for; those between take from their neighbours."""
    if horizon <= len(recipe.leads):
        return list(range(1, horizon + 1))
    stretch = (horizon - 1) / (recipe.leads[-1] - 1)
    return sorted({1, *(max(1, round(1 + (lead - 1) * stretch)) for lead in recipe.leads), horizon})


def spans_of(seasons: list[Season]) -> tuple[int, int]:
    """Steps that the short and the long running mean look back over, roughly: a day and a week, where they are longer
    than `LEAST_SPANS`.
    """
    spans = [min(season.steps, LONGEST_SPAN) for season in seasons]
    if not spans:
        return LEAST_SPANS
    return max(spans[0] if len(spans) > 1 else 0, LEAST_SPANS[0]), max(spans[-1], LEAST_SPANS[1])
