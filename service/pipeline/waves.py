"""Event time, computed on whole columns: which readings are late, and in which wave each step runs.

Readings are sorted by series, and within a series in the order of their arrival.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tidecast.service.timestamps import MAX_TS_MS, NEVER

Int64 = NDArray[np.int64]
Mask = NDArray[np.bool_]

_SPAN = MAX_TS_MS - NEVER + 1
MAX_SERIES = 2**63 // _SPAN - 1  # the most series that one call of `newest_before` can keep apart


@dataclass(slots=True)
class WaveSteps:
    """Steps through the model in the order of their waves. A reading has its imputed steps first, then its own."""

    records: Int64  # [steps] the record that each belongs to
    slots: Int64  # [steps]
    ts: Int64  # [steps] ms
    imputed: Mask  # [steps] fills a gap: all values are missing
    restart: Mask  # [steps] from the initial state
    waves: Int64  # [waves + 1] bounds

    def calls(self, most: int) -> Iterator[tuple[int, int]]:
        """(start, end) of the steps of one model call: a wave, or a part of a wave of at most `most` steps."""
        for start, end in pairwise(self.waves.tolist()):
            for begin in range(start, end, most):
                yield begin, min(begin + most, end)


def stable_order(keys: Int64) -> Int64:
    """A stable argsort of `keys` [n], where 0 <= keys and n < 2**31."""
    # Faster than numpy's own: its fastest sort is of plain integers.
    both = keys << 32 | np.arange(len(keys))
    both.sort()
    return both & 0xFFFF_FFFF


def newest_before(slots: Int64, ts: Int64, last_ts: Int64, first: Mask) -> Int64:
    """The newest time of each reading's series before that reading: it decides whether the reading is late.

    Args:
        slots: [readings], sorted; a series' readings are in the order of their arrival.
        ts: [readings] ms.
        last_ts: [readings] ms, the last ts of the reading's series in the store, or NEVER.
        first: [readings], see `first_of_series`.

    Returns:
        [readings] ms, NEVER before the first reading of a new series.
    """
    if np.count_nonzero(first) == len(slots):
        return last_ts
    # One running maximum over all readings, each series raised above the one before, is a running maximum within each.
    lift = (np.cumsum(first) - 1) * _SPAN - NEVER
    newest = np.maximum.accumulate(np.where(first, np.maximum(ts, last_ts), ts) + lift) - lift
    before = last_ts.copy()
    later = np.flatnonzero(~first)
    before[later] = newest[later - 1]
    return before


def first_of_series(slots: Int64) -> Mask:
    """[readings] sorted by slot -> True at the first reading of each series."""
    first = np.empty(len(slots), dtype=np.bool_)
    first[:1] = True
    np.not_equal(slots[1:], slots[:-1], out=first[1:])
    return first


def arrange_in_waves(
    records: Int64,
    slots: Int64,
    ts: Int64,
    previous: Int64,
    imputed: Int64,
    restart: Mask,
    step_ms: int,
    first: Mask,
) -> WaveSteps:
    """Readings sorted by series and time, with `imputed` steps due before each, as steps sorted by wave.

    Wave n holds the n-th step of every series that has one. `first`: see `first_of_series`.
    """
    if np.count_nonzero(first) == len(slots) and not np.count_nonzero(imputed):  # nearly all small batches
        return WaveSteps(records, slots, ts, imputed > 0, restart, np.array([0, len(records)]))
    runs = imputed + 1
    of = np.repeat(np.arange(len(records)), runs)  # [steps] the reading that each belongs to
    begins = np.cumsum(runs) - runs  # [readings] its first step
    nth = np.arange(len(of)) - begins[of]  # [steps] 0, 1, … within the reading
    is_imputed = nth < imputed[of]
    series = np.cumsum(first) - 1  # [readings]
    wave = np.arange(len(of)) - begins[first][series][of]  # [steps]
    order = stable_order(wave)
    bounds = np.concatenate(([0], np.cumsum(np.bincount(wave)))).astype(np.int64)
    of = of[order]
    is_imputed = is_imputed[order]
    return WaveSteps(
        records=records[of],
        slots=slots[of],
        ts=np.where(is_imputed, previous[of] + (nth[order] + 1) * step_ms, ts[of]),
        imputed=is_imputed,
        restart=restart[of],
        waves=bounds,
    )
