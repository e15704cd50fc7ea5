import logging

import pytest

from tidecast.service.errors import BrokerError, BrokerUnavailable, Rejected
from tidecast.service.worker.retries import FIRST_WAIT_S, LONGEST_WAIT_S, Retries


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def of(clock, timeout_s=60.0, **more):
    return Retries("failed", "succeeded again", timeout_s, clock, **more)


def test_each_failure_doubles_the_wait_up_to_the_longest(clock):
    retries, waits = of(clock), []
    for _ in range(7):
        retries.add(BrokerUnavailable("gone"))
        waits.append(retries.seconds_to_wait)
        clock.now += retries.seconds_to_wait
    assert waits == [0.5, 1.0, 2.0, 4.0, LONGEST_WAIT_S, LONGEST_WAIT_S, LONGEST_WAIT_S]


def test_the_first_attempt_after_a_rebalance_can_follow_at_once(clock):
    retries = of(clock, first_wait_s=0.0)
    retries.add(BrokerError("moved on"))
    assert retries.seconds_to_wait == 0
    retries.add(BrokerError("moved on"))
    assert retries.seconds_to_wait == FIRST_WAIT_S


def test_what_kafka_refuses_is_raised_after_ten_seconds(clock):
    """Not at once: a broker that has just started may not know a topic yet."""
    retries = of(clock)
    retries.add(Rejected("no right"))
    clock.now += 10
    with pytest.raises(Rejected, match="no right"):
        retries.add(Rejected("no right"))


def test_only_a_success_ends_the_time_limit(clock):
    retries = of(clock, timeout_s=60)
    retries.add(BrokerUnavailable("gone"))
    clock.now += 59
    retries.add(BrokerUnavailable("gone for another reason"))
    clock.now += 1
    with pytest.raises(BrokerUnavailable):
        retries.add(BrokerUnavailable("gone"))


def test_after_a_success_the_time_limit_and_the_waits_begin_anew(clock, caplog):
    retries = of(clock, timeout_s=60)
    for _ in range(3):
        retries.add(BrokerUnavailable("gone"))
    clock.now += 59
    caplog.clear()
    with caplog.at_level(logging.INFO):
        retries.end()
        retries.end()
    assert [r.message for r in caplog.records] == ["succeeded again"]
    assert retries.reason is None
    clock.now += 30
    retries.add(BrokerUnavailable("gone"))
    assert retries.seconds_to_wait == FIRST_WAIT_S


def test_a_reason_is_logged_once_until_it_changes(clock, caplog):
    retries = of(clock)
    for reason in ("a", "a", "a", "b", "b", "a"):
        retries.add(BrokerUnavailable(reason))
    assert [r.reason for r in caplog.records] == ["a", "b", "a"]
    assert retries.reason == "a"


def test_ten_seconds_with_nothing_to_commit_end_a_failure_that_another_member_answers_for(clock, caplog):
    retries = of(clock)
    retries.note_idle()
    retries.add(BrokerError("moved on"))
    retries.note_idle()
    clock.now += 9
    retries.note_idle()
    assert retries.reason
    clock.now += 1
    caplog.clear()
    retries.note_idle()
    assert retries.reason is None and not caplog.records, "nothing was committed, so nothing says so"


def test_a_failure_ends_the_idle_time(clock):
    retries = of(clock)
    retries.add(BrokerError("moved on"))
    retries.note_idle()
    clock.now += 9
    retries.add(BrokerError("moved on"))
    clock.now += 2
    retries.note_idle()
    clock.now += 9
    retries.note_idle()
    assert retries.reason
