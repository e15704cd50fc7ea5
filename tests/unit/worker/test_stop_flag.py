"""Ctrl-C and SIGTERM end what waits in the main thread, wherever in its wait the signal meets it."""

import signal
import sys
import threading
import time

import pytest

from tidecast.service.feed.pacing import SystemClock
from tidecast.service.stop_flag import StopFlag


def waited(wait, stop, nth):
    """Wait, with a signal at the `nth` line of Python that the wait runs; None where it has fewer."""
    lines = 0

    def trace(frame, event, _):
        nonlocal lines
        lines += event == "line"
        if event == "line" and lines == nth:
            signal.raise_signal(signal.SIGUSR2)
        return trace

    before = signal.signal(signal.SIGUSR2, lambda signum, frame: stop())
    sys.settrace(trace)
    try:
        found = wait(0.01)
    finally:
        sys.settrace(None)
        signal.signal(signal.SIGUSR2, before)
    return found if lines >= nth else None


@pytest.mark.timeout(20)
@pytest.mark.parametrize("made", [StopFlag, SystemClock])
def test_a_signal_during_a_wait_is_neither_lost_nor_waited_for_for_ever(made):
    nth = 0
    while True:
        nth += 1
        flag = made()
        stop = flag.set if made is StopFlag else flag.stop
        if waited(flag.wait, stop, nth) is None:
            break
        assert flag.wait(0.0)
    assert nth > 3


def test_a_wait_that_times_out_returns_false_and_a_set_flag_ends_every_wait():
    flag, found = StopFlag(), []
    began = time.monotonic()
    assert not flag.wait(0.05)
    assert time.monotonic() - began >= 0.04
    waiting = [threading.Thread(target=lambda: found.append(flag.wait(30)), daemon=True) for _ in range(3)]
    for thread in waiting:
        thread.start()
    flag.set()
    for thread in waiting:
        thread.join(10)
    assert found == [True] * 3
    assert flag.wait(30)
