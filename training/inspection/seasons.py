"""Seasons of a series: what repeats by the day, by the week, or with another period.

Autocorrelation shows that something repeats. How much it explains is measured on data that the profile was not made
from: the profile (mean by phase) of the first half is compared with the second half.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tidecast.service.timestamps import format_duration
from tidecast.training.inspection.columns import Floats, Int64

DAY, WEEK, YEAR = 86_400_000, 604_800_000, 31_556_952_000
MAX_GRID = 400_000  # steps of one series that are looked at
LEAST_SHARE = 0.05  # of the variance about the moving level, for a season to be worth naming
LEAST_PEAK = 0.1  # of the autocorrelation, and as much above the valley before it
LEAST_CYCLES = 4


@dataclass(frozen=True, slots=True)
class Season:
    """One period and how strong it is."""

    steps: int
    period: str  # "1d"
    autocorrelation: float
    explained: (
        float  # share of the later half's variance about the moving level that the earlier half's profile explains
    )


@dataclass(frozen=True, slots=True)
class Seasons:
    """What was found for one column, over all series (the median one)."""

    day: Season | None  # None where the data have too few days, or the step is too long
    week: Season | None
    strongest: Season | None  # of all periods, the one that its autocorrelation peaks at
    week_beyond_day: float  # what a weekly profile explains more than a daily one


def on_grid(ts: Int64, values: Floats, step_ms: int) -> Floats:
    """[steps] one series on its regular grid, NaN where nothing was read; at most MAX_GRID steps, the first ones."""
    at = np.rint((ts - ts[0]) / step_ms).astype(np.int64)
    keep = at < MAX_GRID
    grid = np.full(int(at[keep].max()) + 1, np.nan)
    grid[at[keep]] = values[keep]
    return grid


def find_seasons(grids: list[Floats], step_ms: int) -> Seasons:
    """Seasons of one column from each of its series' grids (see `on_grid`)."""
    found = [_of_one(grid, step_ms) for grid in grids]
    strongest = [s.strongest.steps for s in found if s.strongest]
    chosen = int(np.median(strongest)) if len(strongest) * 2 > len(found) else 0
    nearest = min(strongest, key=lambda steps: abs(steps - chosen)) if chosen else 0
    return Seasons(
        day=_middle([s.day for s in found]),
        week=_middle([s.week for s in found]),
        strongest=_middle([s.strongest for s in found if s.strongest and s.strongest.steps == nearest]),
        week_beyond_day=float(np.median([s.week_beyond_day for s in found])) if found else 0.0,
    )


def autocorrelation(grid: Floats) -> Floats:
    """[lags] of a grid with holes, lag 0 first, up to a third of its length; over pairs that are both known."""
    known = np.isfinite(grid)
    if known.sum() < 3:
        return np.zeros(1)
    at = np.arange(len(grid))
    slope = np.polyfit(at[known], grid[known], 1)
    x = np.where(known, grid - np.polyval(slope, at), 0.0)
    size = 1 << int(np.ceil(np.log2(2 * len(grid))))
    lags = max(2, len(grid) // 3)

    def correlate(a: Floats) -> Floats:
        f = np.fft.rfft(a, size)
        return np.asarray(np.fft.irfft(f * np.conj(f), size)[:lags])

    pairs = correlate(known.astype(np.float64))
    sums = correlate(x) / np.maximum(pairs, 1.0)
    return np.where(pairs > 2, sums / sums[0] if sums[0] > 0 else 0.0, 0.0)


def explained(grid: Floats, period: int, level_over: int | None = None) -> float:
    """Share of the second half's variance about its moving level that the first half's profile explains, at least 0.

    The moving level is the mean over one `period`, or over `level_over` steps.
    """
    if period < 2 or len(grid) < LEAST_CYCLES * period:
        return 0.0
    rest = grid - moving_level(grid, level_over or period)
    half = len(grid) // 2
    at = np.arange(len(grid)) % period
    first, later = np.isfinite(rest), np.isfinite(rest)
    first[half:] = False
    later[:half] = False
    counts = np.bincount(at[first], minlength=period)
    profile = np.bincount(at[first], rest[first], minlength=period) / np.maximum(counts, 1)
    if later.sum() < period or not rest[later].any():
        return 0.0
    return max(0.0, 1 - float(((rest[later] - profile[at[later]]) ** 2).mean() / (rest[later] ** 2).mean()))


def moving_level(grid: Floats, period: int) -> Floats:
    """[steps] the centred mean over one period, of known values; the ends lean on what there is."""
    known = np.isfinite(grid)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, grid, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    start = np.clip(np.arange(len(grid)) - period // 2, 0, max(0, len(grid) - period))
    end = np.minimum(start + period, len(grid))
    level = (sums[end] - sums[start]) / np.maximum(counts[end] - counts[start], 1)
    return np.where(counts[end] > counts[start], level, np.nan)


def _of_one(grid: Floats, step_ms: int) -> Seasons:
    # About a straight line, and about ever more local levels: the year's arch hides a day's wave.
    levels = [max(2, len(grid) // 8)]
    if 16 * WEEK // step_ms <= len(grid):
        levels.append(2 * WEEK // step_ms)
    whole, *locals_ = [autocorrelation(grid), *(autocorrelation(grid - moving_level(grid, over)) for over in levels)]
    local = locals_[0]

    def season(steps: int) -> Season | None:
        if steps < 2 or len(grid) < LEAST_CYCLES * steps:
            return None
        return Season(
            steps,
            format_duration(steps * step_ms),
            float(local[steps] if 8 * steps <= len(grid) else whole[steps]),
            explained(grid, steps),
        )

    day = season(DAY // step_ms) if DAY % step_ms == 0 else None
    week = season(WEEK // step_ms) if WEEK % step_ms == 0 else None
    beyond = 0.0
    if week is not None:
        # The daily profile about the same moving level as the weekly one, so that the two shares can be compared.
        beyond = week.explained - (explained(grid, day.steps, week.steps) if day is not None else 0.0)
    natural = [s.steps for s in (day, week) if s is not None]
    peaks = [season(peak) for acf in (whole, *locals_) if (peak := _peak(acf, natural))]
    strong = [p for p in (*peaks, day, week) if p and p.explained >= LEAST_SHARE and p.autocorrelation > LEAST_PEAK]
    # A long period that holds whole short ones explains what they do: of equals, the shortest.
    best = max((peak.explained for peak in strong), default=0.0)
    strongest = min((p for p in strong if p.explained >= 0.85 * best), key=lambda p: p.steps, default=None)
    return Seasons(day, week, strongest, beyond)


def _peak(acf: Floats, natural: list[int]) -> int:
    """The lag of the peak that stands highest above the valley before it; of equals the shortest. 0 = none."""
    inner = np.flatnonzero((acf[1:-1] > acf[:-2]) & (acf[1:-1] >= acf[2:])) + 1
    inner = inner[inner >= 2]
    inner = inner[inner * LEAST_CYCLES <= 3 * len(acf)]
    if not len(inner):
        return 0
    lowest = np.minimum.accumulate(acf)
    height = acf[inner] - lowest[inner]
    height = np.where(acf[inner] > LEAST_PEAK, height, 0.0)
    if height.max() < LEAST_PEAK:
        return 0
    lag = int(inner[np.argmax(height >= 0.9 * height.max())])
    near = min(natural, key=lambda steps: abs(steps - lag), default=lag)
    return near if abs(near - lag) <= max(1, round(0.02 * near)) else lag


def _middle(seasons: list[Season | None]) -> Season | None:
    there = [s for s in seasons if s is not None]
    if not there:
        return None
    return Season(
        there[0].steps, there[0].period,
        float(np.median([s.autocorrelation for s in there])), float(np.median([s.explained for s in there])),
    )  # fmt: skip
