"""The series store: slots are assigned, found, reused and freed without one series affecting another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tidecast.service.model.spec import StateSlice
from tidecast.service.pipeline.waves import MAX_SERIES, first_of_series, newest_before
from tidecast.service.state.codec import Snapshots
from tidecast.service.state.key_index import KeyIndex
from tidecast.service.state.store import SeriesStore
from tidecast.service.timestamps import NEVER, missing_steps

INITIAL = np.array([0.5, -1.0, 2.0], dtype=np.float32)


def table(max_series: int = 1000) -> SeriesStore:
    return SeriesStore(INITIAL, max_series, [StateSlice("level", 0, (1,)), StateSlice("cell", 1, (1, 2))])


@pytest.mark.parametrize("max_series", [1000, 10**15])
def test_growing_keeps_every_state_also_where_no_machine_has_room_for_the_most_series(max_series: int) -> None:
    series = table(max_series)
    for i in range(1000):
        slot = series.add(b"%d" % i, 0)
        series.states[slot] = i
        series.last_ts[slot] = i
    assert series.full == (max_series == 1000)
    assert len(series) == 1000 <= len(series.states)
    for i in range(1000):
        slot = series.find(b"%d" % i)
        assert slot is not None
        assert series.states[slot].tolist() == [i] * 3
        assert series.last_ts[slot] == i


def test_a_reused_slot_starts_from_the_initial_state() -> None:
    series = table(1)
    slot = series.add(b"a", 3)
    series.states[slot], series.steps[slot], series.last_ts[slot], series.offsets[slot] = 9.0, 9, 9, 9
    assert series.remove(b"a")
    assert not series.remove(b"a")
    assert series.add(b"b", 1) == slot
    assert series.states[slot].tolist() == INITIAL.tolist()
    assert (series.steps[slot], series.last_ts[slot], series.offsets[slot]) == (0, NEVER, -1)
    assert series.find(b"a") is None


def test_the_first_to_be_dropped_is_the_least_recently_seen() -> None:
    series = table()
    for key in (b"a", b"b", b"c"):
        series.add(key, 0)
    series.mark_seen(series.find_all([b"a"]))
    assert series.least_recent() == b"b"
    assert list(series) == [b"b", b"c", b"a"]


# Also such as differ only beyond what a row holds, or in how many zeros they end with.
lengths = st.sampled_from([0, 1, 6, 7, 8, 14, 15, 16, 31, 32, 55, 56, 62, 63, 64, 65, 80])
odd = st.builds(lambda n, byte, end: bytes([byte]) * n + end, lengths, st.sampled_from([0, 97]), st.binary(max_size=1))
asked = st.one_of(st.integers(0, 40).map(lambda i: b"%d" % i), odd)
without_a_key = st.sampled_from([[], [], [], [None]])


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.lists(asked, min_size=2, max_size=40), without_a_key), max_size=12))
def test_with_the_key_index_each_key_finds_its_own_series(
    turns: list[tuple[bool, list[bytes], list[None]]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tidecast.service.state.store._INDEX_FROM_SERIES", 0)
        patch.setattr("tidecast.service.state.store._INDEX_FROM_KEYS", 2)
        patch.setattr("tidecast.service.state.key_index._CELLS", 0.05)  # many share one
        series = table()
        for come, names, nameless in turns:
            keys = [*names, *nameless]
            for _ in range(2):  # the second time as the first has left it
                assert series.find_all(keys).tolist() == [series.find(key) if key in series else -1 for key in keys]
            for key in keys:
                if key and come and key not in series:
                    series.add(key, 0)
                elif key and not come:
                    series.remove(key)


def test_of_keys_that_were_found_before_few_are_looked_up_again() -> None:
    keys, asked_for = [b"sensor-%d" % i for i in range(1_000)], []

    def look_up(some: Sequence[bytes | None]) -> NDArray[np.int64]:
        asked_for.append(len(some))
        return np.array([keys.index(key) for key in some if key], dtype=np.int64)

    index = KeyIndex(1_000)
    for _ in range(4):
        assert index.find(keys, look_up).tolist() == list(range(1_000))
    assert asked_for[0] == 1_000
    assert sum(asked_for[1:]) < 300  # in the first round some took others' cells
    assert sum(asked_for[2:]) < 100


def test_many_are_dropped_in_the_order_in_which_they_were_last_seen() -> None:
    series, numbers = table(200), np.random.default_rng(0).permutation(200).tolist()
    for number in range(200):
        series.add(b"%d" % number, 0)
    series.mark_seen(series.find_all([b"%d" % number for number in numbers]))
    gone = []
    for _ in range(200):
        gone.append(series.least_recent())
        series.remove(gone[-1])
        series.add(b"new %d" % len(gone), 0)
    assert gone == [b"%d" % number for number in numbers]


@given(st.integers(1, 40), st.lists(st.lists(st.integers(0, 60), max_size=30), max_size=12))
def test_for_any_arrivals_the_least_recently_seen_are_dropped_first(max_series: int, seen: list[list[int]]) -> None:
    series, expected = table(max_series), dict[bytes, None]()
    for numbers in seen:
        known = [key for key in (b"%d" % number for number in numbers) if key in expected]
        series.mark_seen(series.find_all(known))
        for key in known:  # all at once, as a batch of readings of series that are known
            expected[key] = expected.pop(key)
        for key in (b"%d" % number for number in numbers):  # and one by one, where others have to go
            if key in expected:
                series.mark_seen_one(series.find(key) or 0)
                expected.pop(key)
            elif len(expected) == max_series:
                assert series.full
                assert series.least_recent() == next(iter(expected))
                expected.pop(next(iter(expected)))
                series.remove(series.least_recent())
                series.add(key, 0)
            else:
                series.add(key, 0)
            expected[key] = None
    assert list(series) == list(expected)
    assert series.keys_of_partition(0) == list(expected)


class PlainStore:
    """A store as a plain dict, least recently seen first."""

    def __init__(self, max_series: int) -> None:
        self.max_series, self.rows = max_series, dict[bytes, tuple[int, int]]()

    def restore(self, key: bytes, partition: int, number: int) -> None:
        if self.rows.pop(key, None) is None and len(self.rows) >= self.max_series:
            del self.rows[next(iter(self.rows))]
        self.rows[key] = partition, number


keys = st.lists(st.integers(0, 11).map(lambda i: b"%d" % i), unique=True, max_size=12)


@given(st.lists(st.tuples(keys, st.integers(0, 2)), max_size=6), st.sampled_from([1, 2, 5, 8, 100]))
def test_series_restored_many_at_a_time_are_those_restored_one_by_one(
    batches: list[tuple[list[bytes], int]], max_series: int
) -> None:
    many, single, expected = table(max_series), table(max_series), PlainStore(max_series)
    number = 0
    for batch, partition in batches:
        column = np.arange(number, number + len(batch), dtype=np.int64)
        number += len(batch)
        states = np.stack([column] * 3, axis=1).astype(np.float32)
        many.restore(batch, partition, Snapshots(column, column + 1, column + 2, column + 3, states))
        for key, n, state in zip(batch, column.tolist(), states, strict=True):
            one = np.array([n], dtype=np.int64)
            single.restore([key], partition, Snapshots(one, one + 1, one + 2, one + 3, state[np.newaxis]))
            expected.restore(key, partition, n)
    for found in (many, single):
        assert list(found) == list(expected.rows)
        assert np.count_nonzero(found.partitions >= 0) == len(expected.rows)
        for key, (partition, n) in expected.rows.items():
            slot = found.find(key)
            assert slot is not None
            assert found.key_of(slot) == key
            assert found.states[slot].tolist() == [n] * 3
            row = found.offsets[slot], found.last_ts[slot], found.steps[slot], found.seen_ms[slot]
            assert row == (n, n + 1, n + 2, n + 3)
            assert (found.partitions[slot], found.dirty_since[slot]) == (partition, -1)


def test_revoked_partitions_take_only_their_own_series() -> None:
    series = table()
    for i in range(200):
        series.add(b"%d" % i, i % 4)
    assert series.revoke({1, 3, 77}) == 100
    assert series.revoke({1}) == 0
    assert {int(key) % 4 for key in series} == {0, 2}
    assert np.count_nonzero(series.partitions >= 0) == 100


def test_idle_series_of_one_partition_are_removed() -> None:
    series = table()
    for i in range(4):
        series.seen_ms[series.add(b"%d" % i, i % 2)] = i
    assert series.remove_idle(0, 2) == 1
    assert sorted(series) == [b"1", b"2", b"3"]


def test_a_snapshot_names_the_slices_of_the_state() -> None:
    series = table()
    slot = series.add("Zürich".encode(), 3)
    assert series.snapshot("Zürich".encode()) == {
        "series": "Zürich",
        "partition": 3,
        "offset": -1,
        "ts": None,
        "steps": 0,
        "state": {"level": [0.5], "cell": [[-1.0, 2.0]]},
    }
    series.last_ts[slot] = 7
    assert (series.snapshot("Zürich".encode()) or {})["ts"] == 7
    assert series.snapshot(b"nobody") is None


def test_the_newest_time_before_each_reading_considers_store_and_batch() -> None:
    slots = np.array([2, 2, 2, 2, 5, 5, 9])
    ts = np.array([10, 30, 20, 40, 10, 10, 10])
    last = np.array([15, 15, 15, 15, NEVER, NEVER, 10])
    assert newest_before(slots, ts, last, first_of_series(slots)).tolist() == [15, 15, 30, 30, NEVER, 10, 10]


def test_times_at_both_ends_of_the_range_do_not_mix_series() -> None:
    slots = np.arange(200_000) // 2
    ts = np.tile(np.array([7_258_118_400_000, -2_208_988_800_000]), 100_000)
    assert MAX_SERIES > 100_000
    before = newest_before(slots, ts, np.full(len(ts), NEVER), first_of_series(slots))
    assert (before[::2] == NEVER).all()
    assert (before[1::2] == 7_258_118_400_000).all()


@pytest.mark.parametrize(
    ("ts", "missing"),
    [(1001, 0), (1049, 0), (1100, 0), (1149, 0), (1150, 1), (1200, 1), (1249, 1), (1250, 2), (3100, 20)],
)
def test_a_gap_is_counted_to_the_nearest_step(ts: int, missing: int) -> None:
    assert missing_steps(np.array([ts]), np.array([1000]), 100).tolist() == [missing]


def test_there_is_no_gap_before_the_first_reading_nor_without_a_step() -> None:
    assert missing_steps(np.array([10**9]), np.array([NEVER]), 100).tolist() == [0]
    assert missing_steps(np.array([10**9]), np.array([0]), 0).tolist() == [0]
