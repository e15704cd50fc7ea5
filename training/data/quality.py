"""What was found in a file of readings on its way to the trainer, and where; see `training.report.data_section`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tidecast.service.timestamps import missing_steps

if TYPE_CHECKING:
    from tidecast.training.data.stretch import Stretch

OFF = 0.1  # of a step: a reading further than this from where its step is due is irregular

SHOWN = 3  # outliers of each feature, and constants, that are named; the rest are counted

Floats = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Gap:
    """A place where steps are missing, after the reading at `after` (ms)."""

    steps: int
    series: str
    after: int


@dataclass(frozen=True, slots=True)
class Outlier:
    """A reading that the filter does not believe, and what it was made into (NaN = masked)."""

    series: str
    ts: int  # ms
    value: float
    became: float


@dataclass(frozen=True, slots=True)
class Range:
    """A feature in training rows, after outliers were treated; NaN where it has no value there."""

    low: float
    median: float
    high: float
    constant: list[str]  # the series in which it never changes


@dataclass(slots=True)
class DataQuality:
    """Counted while the file becomes stretches. Outliers, fills and ranges are of training rows alone."""

    series: int = 0
    contradictions: int = 0  # duplicates whose values are not those of the reading that stays
    unsorted: int = 0  # rows earlier than the one before them of their series
    irregular: int = 0  # readings more than OFF of a step from where they are due
    gaps: int = 0  # places where at most max_gap steps are missing
    longest: Gap | None = None  # of all gaps, also those that start a series again
    in_a_row: dict[str, int] = field(default_factory=dict)  # feature -> most missing values one after the other
    filled: dict[str, int] = field(default_factory=dict)  # feature -> missing values and silent steps filled
    outliers: dict[str, list[Outlier]] = field(default_factory=dict)  # feature -> the first SHOWN, by time
    ranges: dict[str, Range] = field(default_factory=dict)  # by feature
    of_series: dict[str, Range] = field(default_factory=dict)  # of the first feature, by series

    def count_order(self, ts: Int64, x: Floats, kept: NDArray[np.bool_], unsorted: int) -> None:
        """One series, sorted: times [readings], values [readings, features], and which readings stay."""
        self.series += 1
        self.unsorted += unsorted
        stays = np.maximum.accumulate(np.where(kept, np.arange(len(ts)), 0))  # [readings] the one that stays instead
        same = (x == x[stays]) | (np.isnan(x) & np.isnan(x[stays]))
        self.contradictions += int((~same.all(axis=1)).sum())

    def count_gaps(self, series: str, ts: Int64, step_ms: int, max_gap: int) -> None:
        """The times of one series that stay [readings], ascending."""
        if step_ms == 0 or len(ts) < 2:
            return
        apart = np.diff(ts)
        whole = np.maximum(np.rint(apart / step_ms), 1)
        self.irregular += int((np.abs(apart - whole * step_ms) > OFF * step_ms).sum())
        silent = missing_steps(ts[1:], ts[:-1], step_ms)
        self.gaps += int(((silent > 0) & (silent <= max_gap)).sum())
        worst = int(np.argmax(silent))
        if silent[worst] > (self.longest.steps if self.longest else 0):
            self.longest = Gap(int(silent[worst]), series, int(ts[worst]))

    def add_outliers(self, series: str, feature: str, ts: Int64, before: Floats, after: Floats) -> None:
        """Outliers of one feature in a stretch, [outliers] each, as they were and as they are now."""
        new = [Outlier(series, *cells) for cells in zip(ts.tolist(), before.tolist(), after.tolist(), strict=True)]
        earliest = sorted([*self.outliers.get(feature, []), *new[:SHOWN]], key=lambda outlier: outlier.ts)
        self.outliers[feature] = earliest[:SHOWN]

    def measure_missing_runs(self, stretches: list[Stretch], features: list[str]) -> None:
        """Runs of missing values, in readings; before outliers are masked."""
        for f, name in enumerate(features):
            self.in_a_row[name] = max((_longest_run(np.isnan(s.x[s.rows >= 0, f])) for s in stretches), default=0)

    def measure_ranges(self, stretches: list[Stretch], features: list[str], until: int) -> None:
        """Ranges of training rows, those before `until` (ms)."""
        for f, name in enumerate(features):
            by_series: dict[str, list[Floats]] = {}
            for s in stretches:
                by_series.setdefault(s.series, []).append(s.x[s.ts < until, f].astype(np.float64))
            known = {key: all_of[np.isfinite(all_of)] for key, parts in by_series.items()
                     if len(all_of := np.concatenate(parts))}  # fmt: skip
            values = np.concatenate([*known.values(), np.empty(0)])
            constant = [key for key, of in known.items() if len(of) > 1 and of.min() == of.max()]
            self.ranges[name] = _range(values, constant)
            if f == 0:
                self.of_series = {key: _range(of, [key] if key in constant else []) for key, of in known.items()}


def _range(known: Floats, constant: list[str]) -> Range:
    low, median, high = np.percentile(known, [0, 50, 100]).tolist() if len(known) else [float("nan")] * 3
    return Range(low, median, high, constant)


def _longest_run(mask: NDArray[np.bool_]) -> int:
    ends = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return int((ends[1::2] - ends[::2]).max()) if len(ends) else 0
