"""The watchdog with a clock of the test's own."""

import logging
import threading

import pytest

from tidecast.service.observability.watchdog import Watchdog


class World:
    def __init__(self, end_seconds=300.0):
        self.now, self.reason, self.shown, self.ended, self.counted = 0.0, None, 0, 0, 0
        self.dog = Watchdog(
            lambda: self.reason,
            end_seconds=end_seconds,
            clock=lambda: self.now,
            dump=self._show,
            end=self._end,
            on_stall=self._count,
        )

    def _show(self):
        self.shown += 1

    def _end(self):
        self.ended += 1

    def _count(self):
        self.counted += 1

    def pass_(self, seconds):
        for _ in range(seconds):
            self.now += 1
            self.dog.check()


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING, "tidecast.watchdog")

    def lines(level):
        return [r.getMessage() for r in caplog.records if r.levelno == level]

    return lines


def test_a_loop_that_turns_is_left_alone(said):
    world = World()
    world.pass_(1_000)
    assert (world.shown, world.ended) == (0, 0)
    assert said(logging.CRITICAL) == said(logging.WARNING) == []


def test_a_stall_is_reported_once_with_the_stacks_and_a_new_one_again(said):
    world = World()
    for stalls in (1, 2):
        world.reason = "the loop has not turned for 31 s"
        world.pass_(100)
        assert (world.shown, world.ended, world.counted) == (stalls, 0, stalls)
        assert len(said(logging.CRITICAL)) == stalls and "has not turned for 31 s" in said(logging.CRITICAL)[-1]
        world.reason = None
        world.pass_(10)
        assert said(logging.WARNING) == ["the loop turns again"] * stalls


def test_a_stall_that_lasts_ends_the_process(said):
    world = World(end_seconds=60)
    world.reason = "the loop has not turned for 31 s"
    world.pass_(60)
    assert world.ended == 0
    world.pass_(1)
    assert (world.shown, world.ended) == (2, 1)
    assert "giving up" in said(logging.CRITICAL)[-1]


def test_a_process_that_was_stopped_as_a_whole_gets_the_time_to_turn_again(said):
    world = World(end_seconds=60)
    world.now += 1_000  # SIGSTOP: nobody has looked, and the loop could not turn
    world.reason = "the loop has not turned for 1000 s"
    world.pass_(9)
    world.reason = None
    world.pass_(5)
    assert (world.shown, world.ended) == (0, 0)
    world.reason = "the loop has not turned for 31 s"
    world.pass_(20)
    world.now += 1_000  # during a stall: it does not count as time to recover
    world.pass_(40)
    assert (world.shown, world.ended) == (1, 0)
    world.pass_(2)
    assert (world.shown, world.ended) == (2, 1)


def test_it_checks_by_itself_until_closed_even_if_a_check_fails(monkeypatch, said):
    monkeypatch.setattr("tidecast.service.observability.watchdog.CHECK_SECONDS", 0.01)
    looked = threading.Semaphore(0)

    def stalled():
        looked.release()
        raise RuntimeError("odd")

    with Watchdog(stalled):
        for _ in range(3):
            assert looked.acquire(timeout=10)
    assert said(logging.ERROR)
    assert "watchdog" not in {thread.name for thread in threading.enumerate()}
