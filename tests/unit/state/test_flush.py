"""Which states the rolling flush writes: the longest waiting, of every partition alike, each once in its time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.models import counting_spec
from tidecast.service.state.codec import Codec
from tidecast.service.state.flush import RollingFlush
from tidecast.service.state.store import SeriesStore

SPEC = counting_spec()


class Flushed:
    """A table with series in partitions, its flush, and a clock."""

    def __init__(self, owners: list[int], seconds: float = 10.0, bytes_per_second: float = 1e9) -> None:
        self.now = 0.0
        self.store = SeriesStore(np.zeros(4, dtype=np.float32), 20_000)
        self.slots = [self.store.add(b"%d" % i, partition) for i, partition in enumerate(owners)]
        self.flush = RollingFlush(self.store, Codec(SPEC), topic="states", group="g", seconds=seconds,
                                  bytes_per_second=bytes_per_second, clock=lambda: self.now)  # fmt: skip

    def read(self, series: list[int], offset: int) -> None:
        """The next reading of each, at `offset` and after."""
        self.store.mark_dirty(np.array([self.slots[i] for i in series]), np.arange(offset, offset + len(series)))

    def due(self, everything_of: tuple[int, ...] = ()) -> list[int]:
        return [int(key) for out in self.flush.due(everything_of) for key in out.keys if key is not None]


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.lists(st.integers(-1, 3), max_size=80),
    st.lists(st.one_of(st.just(-1), st.integers(0, 50)), min_size=80, max_size=80),
    st.sets(st.integers(0, 5)),
)
def test_a_replay_begins_at_the_first_reading_that_no_written_state_includes(
    owners: list[int], since: list[int], asked: set[int]
) -> None:
    world = Flushed(owners)
    for slot, owner, offset in zip(world.slots, owners, since, strict=False):
        world.store.dirty_since[slot] = offset if owner >= 0 else -1
    expected = {
        p: min([30, *(o for owner, o in zip(owners, since, strict=False) if owner == p and o >= 0)]) for p in asked
    }
    assert world.flush.snapshot_offsets(dict.fromkeys(asked, 30)) == expected


@pytest.mark.parametrize("series", [1, 7, 100, 20_000])
@pytest.mark.parametrize("turn", [0.1, 0.5, 3.0])
def test_most_states_are_written_within_the_time_and_the_longest_waiting_first(series: int, turn: float) -> None:
    rng = np.random.default_rng(series)
    owners, order = rng.integers(0, 4, series).tolist(), rng.permutation(series).tolist()
    world = Flushed(owners)
    world.read(order, 0)
    written: list[int] = []
    while world.now < 10.0 + 2 * turn:
        world.now += turn
        written += world.due()
        world.read(written[-1:], 1_000)  # one that has just been written is read again: it must wait for its turn
    assert len(written) >= 0.6 * len(owners), "an even share at each turn, of what is left"
    first_time = list(dict.fromkeys(written))
    for partition in set(owners):
        mine = [i for i in first_time if owners[i] == partition]
        assert mine == [i for i in order if owners[i] == partition][: len(mine)]


def test_no_partition_waits_until_the_others_are_written() -> None:
    world = Flushed([i % 4 for i in range(4_000)])
    world.read(list(range(4_000)), 0)
    for _ in range(20):
        world.now += 0.1
        owners = [i % 4 for i in world.due()]
        assert max(owners.count(p) for p in range(4)) - min(owners.count(p) for p in range(4)) <= 1


def test_what_is_written_is_bounded_by_the_bytes_a_second() -> None:
    size = Codec(SPEC).record_bytes
    world = Flushed([0] * 1_000, bytes_per_second=50.0 * size)
    world.read(list(range(1_000)), 0)
    written = 0
    for _ in range(10):
        world.now += 0.1
        written += len(world.due())
    assert 40 <= written <= 50


def test_partitions_that_leave_are_written_at_once_and_the_others_in_their_turn() -> None:
    world = Flushed([i % 2 for i in range(200)])
    world.read(list(range(200)), 0)
    world.now += 0.1
    assert sorted(world.due()) == [0, 1]
    world.now += 0.1
    written = world.due((0,))
    assert {i for i in written if i % 2 == 0} == set(range(2, 200, 2))
    assert [i for i in written if i % 2] == [3]


def test_a_series_that_was_removed_while_it_waited_is_not_written() -> None:
    world = Flushed([0] * 100)
    world.read(list(range(100)), 0)
    world.now += 0.1
    assert world.due() == [0]
    assert world.store.remove(b"1")
    world.slots[1] = world.store.add(b"1000", 0)
    world.store.pending_tombstones.clear()
    world.now += 0.1
    assert world.due() == [2]


def test_a_worker_that_hands_over_many_series_has_few_of_their_records_at_a_time() -> None:
    world = Flushed([i % 2 for i in range(20_000)])
    world.read(list(range(20_000)), 0)
    sizes = [len(out) for out in world.flush.due((0, 1))]
    assert sum(sizes) == 20_000
    assert max(sizes) <= 5_000
    assert world.due((0, 1)) == []


def test_few_states_wait_until_they_are_worth_requests_of_their_own_and_no_longer_than_a_second() -> None:
    world = Flushed([0, 1])
    world.read([0, 1], 0)
    world.now += 0.9
    assert not world.flush.worthwhile()
    world.now += 0.1
    assert world.flush.worthwhile()
    world.due()
    assert not world.flush.worthwhile(), "some have just been written"
    world.store.remove(b"0")
    assert world.flush.worthwhile(), "a series that is forgotten is forgotten for others too"


def test_many_states_are_not_saved_up() -> None:
    world = Flushed([0] * 20_000)
    world.now += 0.9
    assert world.flush.worthwhile()


def test_states_that_are_to_be_written_at_once_do_not_wait() -> None:
    world = Flushed([0], seconds=0.1)
    world.now += 0.01
    assert world.flush.worthwhile()
