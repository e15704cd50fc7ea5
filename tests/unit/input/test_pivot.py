"""Values that come one by one become readings: each value in its place, whatever their order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tidecast.service.input.pivot import Cells, joined_times, pivot

CELLS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(0, 2), st.one_of(st.just(np.nan), st.integers(-5, 5))),
    min_size=1,
    max_size=40,
)


def cells_of(rows: list[tuple[int, int, int, float]]) -> Cells:
    series, ts, feature, value = zip(*rows, strict=True)
    return Cells(np.array(series), np.array(ts), np.array(feature), np.array(value, dtype=np.float64))


def one_by_one(
    rows: list[tuple[int, int, int, float]], tolerance: int
) -> tuple[dict[tuple[int, int, int], float], int]:
    """(series, time, feature) -> value as a person would do it, and how many values found one in their place."""
    start: dict[tuple[int, int], int] = {}
    for series in {row[0] for row in rows}:
        begin = None
        for ts in sorted({row[1] for row in rows if row[0] == series}):
            if begin is None or ts - begin > tolerance:
                begin = ts
            start[series, ts] = begin
    found: dict[tuple[int, int, int], float] = {}
    doubled = 0
    for series, ts, feature, value in rows:
        place = series, start[series, ts], feature
        if value == value:
            doubled += place in found
            found.setdefault(place, value)
    return found, doubled


@given(CELLS, st.integers(0, 9))
def test_each_value_is_in_the_reading_of_its_series_and_time_and_the_first_of_two_stays(rows, tolerance):
    wanted, doubled = one_by_one(rows, tolerance)
    found = pivot(cells_of(rows), 3, tolerance)
    got = {
        (series, ts, feature): x
        for series, ts, row in zip(found.series.tolist(), found.ts.tolist(), found.x.tolist(), strict=True)
        for feature, x in enumerate(row)
        if x == x
    }
    assert got == wanted
    assert found.doubled == doubled
    assert len(set(zip(found.series.tolist(), found.ts.tolist(), strict=True))) == len(found.ts)
    assert (np.diff(found.ts) >= 0).all()


def test_the_same_value_again_is_no_contradiction_and_another_is():
    found = pivot(cells_of([(0, 5, 0, 1.0), (0, 5, 0, 1.0), (0, 5, 0, 2.0), (0, 5, 1, 7.0)]), 2)
    assert (found.doubled, found.contradictions) == (2, 1)
    assert found.x.tolist() == [[1.0, 7.0]]


def test_a_row_without_a_value_leaves_its_place_to_a_later_one_and_still_makes_a_reading():
    found = pivot(cells_of([(0, 5, 0, np.nan), (0, 5, 0, 3.0), (0, 9, 1, np.nan)]), 2)
    assert found.ts.tolist() == [5, 9] and found.doubled == 0
    np.testing.assert_array_equal(found.x, [[3.0, np.nan], [np.nan, np.nan]])


def test_a_reading_holds_no_time_later_than_the_tolerance_however_close_the_times_follow():
    ts = np.arange(0, 100, 3)
    assert sorted(set(joined_times(np.zeros(len(ts), dtype=np.int64), ts, 10).tolist())) == list(range(0, 100, 12))
