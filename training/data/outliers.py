"""Outliers in training rows: the Hampel filter, and what to do with what it finds.

A reading is an outlier where it lies further than `threshold` robust deviations from the median of its window
(Hampel 1974, "The influence curve and its role in robust estimation"; as a moving filter: Pearson 2002, "Outliers in
process modeling and identification"). A robust deviation is 1.4826 times the median absolute deviation (MAD), which
for normal noise is the standard deviation.

The window is centred: it looks half a window ahead, so it is for training rows only (give it no later rows).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tidecast.service.errors import UsageError

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Treatment = Literal["keep", "clip", "mask"]

TO_DEVIATION = 1.4826  # MAD to standard deviation, for normal noise
WINDOW = 13  # steps: wide enough to outvote a burst of six, narrow enough to follow a daily wave
THRESHOLD = 6.0
LEAST_KNOWN = 4  # known values in a window; with fewer, nothing there is an outlier
LEAST_CHANGES = 3.0  # a reading within so many usual changes (the median of those that are not 0) is no outlier
_CHUNK = 65_536  # rows of windows at a time, to bound memory


@dataclass(frozen=True, slots=True)
class Limits:
    """The band that the filter allows around each reading: `median` ± `reach`."""

    median: Floats  # [steps] of the window; NaN where it knows too little
    reach: Floats  # [steps] threshold times the robust deviation; infinite where no limit can be given

    def exceeded_by(self, values: Floats) -> Mask:
        """[steps] True where a reading is an outlier; a missing one never is."""
        with np.errstate(invalid="ignore"):
            return np.asarray(np.abs(values - self.median) > self.reach)


def hampel_limits(values: Floats, window: int = WINDOW, threshold: float = THRESHOLD) -> Limits:
    """The band that the Hampel filter allows around each reading.

    A window of equal values has no spread and would call every other value an outlier (the MAD "implodes").
    So the deviation is at least that of the whole series about its moving median; where even that is 0 (more than half
    of the readings equal their neighbours: rain, counts, a switch), there are no outliers. And a sensor that reports in
    coarse units may go up or down by LEAST_CHANGES of its usual changes.

    Args:
        values: [steps] one series in order of time, NaN = missing; missing values are not counted.
        window: steps in a window, at least 3; an even number counts as the next odd one.
        threshold: robust deviations that are allowed.

    Raises:
        UsageError: window or threshold out of range.
    """
    if window < 3:
        raise UsageError("a Hampel window must be at least 3 steps", got=window)
    if not threshold > 0:
        raise UsageError("outlier_threshold must be above 0", got=threshold)
    values = np.asarray(values, dtype=np.float64)
    side = window // 2
    padded = np.pad(values, side, constant_values=np.nan)
    median, deviation = np.empty(len(values)), np.empty(len(values))
    for start in range(0, len(values), _CHUNK):
        end = min(start + _CHUNK, len(values))
        rows = np.lib.stride_tricks.sliding_window_view(padded[start : end + 2 * side], 2 * side + 1)
        median[start:end] = _medians(rows)
        deviation[start:end] = _medians(np.abs(rows - median[start:end, None]))
    judged = (~np.isnan(median)) & (~np.isnan(values))
    usual = float(np.median(np.abs(values[judged] - median[judged]))) if judged.any() else 0.0
    if usual == 0:
        return Limits(median, np.full(len(values), np.inf))
    changes = np.abs(np.diff(values[~np.isnan(values)]))
    least = LEAST_CHANGES * float(np.median(changes[changes > 0])) if (changes > 0).any() else 0.0
    reach = np.maximum(threshold * TO_DEVIATION * np.maximum(deviation, usual), least)
    return Limits(median, np.where(np.isnan(median), np.inf, reach))


def treat(values: Floats, treatment: Treatment, threshold: float = THRESHOLD) -> tuple[Floats, Mask]:
    """One series with its outliers kept, clipped to the nearest limit, or masked (NaN), and which they were.

    Args:
        values: [steps], NaN = missing; not changed in place.
        treatment: "keep" only reports.
        threshold: as in `hampel_limits`.
    """
    values = np.asarray(values, dtype=np.float64)
    limits = hampel_limits(values, threshold=threshold)
    found = limits.exceeded_by(values)
    if treatment == "keep":
        return values, found
    if treatment == "mask":
        return np.where(found, np.nan, values), found
    nearest = limits.median + np.sign(values - limits.median) * np.where(found, limits.reach, 0.0)
    return np.where(found, nearest, values), found


def _medians(rows: Floats) -> Floats:
    """[rows, window] -> [rows]: medians of the known values, NaN where fewer than LEAST_KNOWN are."""
    ordered = np.sort(rows, axis=1)  # NaN last
    known = (~np.isnan(ordered)).sum(axis=1)
    at = np.arange(len(rows))
    low = ordered[at, np.maximum((known - 1) // 2, 0)]
    high = ordered[at, np.maximum(known // 2, 0).clip(max=rows.shape[1] - 1)]
    return np.where(known >= min(LEAST_KNOWN, rows.shape[1]), (low + high) / 2, np.nan)
