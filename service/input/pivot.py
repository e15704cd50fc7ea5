"""Values that come one by one, each with its series, time and feature, to readings that hold all features of a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Cells:
    """Values as parallel columns [values]."""

    series: Int64  # number of the series
    ts: Int64  # ms
    feature: Int64  # number of the feature
    value: Floats  # NaN = missing


@dataclass(frozen=True, slots=True)
class Pivoted:
    """Readings in the order of time; those of one time in the order of their series' numbers."""

    series: Int64  # [readings]
    ts: Int64  # [readings] ms
    x: Floats  # [readings, features], NaN = missing
    doubled: int  # values that found one in their place: the first stays
    contradictions: int  # of those, values that are not the same as the first


def pivot(cells: Cells, features: int, tolerance_ms: int = 0) -> Pivoted:
    """One reading for each series and time; times within the tolerance are one, the earliest of them."""
    ts = joined_times(cells.series, cells.ts, tolerance_ms)
    order = np.lexsort((cells.series, ts))  # stable: values of one place stay in their order
    series, ts = cells.series[order], ts[order]
    begins = np.ones(len(ts), dtype=bool)
    begins[1:] = (np.diff(ts) != 0) | (np.diff(series) != 0)
    reading = np.cumsum(begins) - 1
    x = np.full((int(begins.sum()), features), np.nan)
    value = cells.value[order]
    there = ~np.isnan(value)
    place = (reading * features + cells.feature[order])[there]
    value = value[there]
    x.reshape(-1)[place[::-1]] = value[::-1]  # the last that is written stays: the first of the file
    doubled = len(place) - int(np.count_nonzero(~np.isnan(x)))
    contradictions = int((x.reshape(-1)[place] != value).sum()) if doubled else 0
    return Pivoted(series[begins], ts[begins], x, doubled, contradictions)


def joined_times(series: Int64, ts: Int64, tolerance_ms: int) -> Int64:
    """[values] ms: the time of the reading that each becomes part of.

    In each series a reading begins at the earliest time that is left, and takes what is at most the tolerance later.
    """
    if tolerance_ms <= 0 or not len(ts):
        return ts
    order = np.lexsort((ts, series))
    sorted_ts, sorted_series = ts[order], series[order]
    begins = np.ones(len(ts), dtype=bool)
    begins[1:] = (np.diff(sorted_ts) > tolerance_ms) | (np.diff(sorted_series) != 0)
    starts = np.flatnonzero(begins)
    ends = np.append(starts[1:], len(ts))
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):  # few are longer than the tolerance
        while sorted_ts[end - 1] - sorted_ts[start] > tolerance_ms:
            start += int(np.searchsorted(sorted_ts[start:end], sorted_ts[start] + tolerance_ms, side="right"))
            begins[start] = True
    first = np.maximum.accumulate(np.where(begins, np.arange(len(ts)), 0))
    joined = np.empty_like(ts)
    joined[order] = sorted_ts[first]
    return joined
