"""The memory and the descriptors of a busy worker do not grow. The long form: `tests.chaos.long_run`."""

import pytest

from tests.chaos.long_run import Figures, run
from tests.support.models import counting_model

WINDOW = 40_000  # readings over which it must be flat
MOST_BYTES = 25.0  # of memory for each of them; a list that keeps them would need 50 and more
LIMIT_SECONDS = 120.0


def settled(figures):
    return figures.readings[-1] - figures.readings[0] >= WINDOW and figures.last(WINDOW).flat(MOST_BYTES)


@pytest.mark.timeout(240)
def test_the_memory_of_a_busy_worker_stops_growing(broker, tmp_path):
    """How long a worker needs until its caches and buffers are full depends on the machine; a leak never ends."""
    figures = run(
        broker,
        counting_model(tmp_path),
        lambda so_far, at: settled(so_far) or at >= LIMIT_SECONDS,
        rate=4_000,
        series=500,
    )
    print(figures, figures.last(WINDOW), sep="\n")
    assert settled(figures), figures


@pytest.mark.parametrize(("leaked_bytes", "leaked_descriptors"), [(50, 0), (0, 1), (50, 1)])
def test_a_leak_is_never_taken_for_a_warm_up(leaked_bytes, leaked_descriptors):
    figures = Figures()
    for sample in range(240):
        figures.readings.append(2_000 * sample)
        figures.rss_mb.append(120 + 2_000 * sample * leaked_bytes / 1e6 + (sample % 5) * 0.2)
        figures.descriptors.append(20 + sample // 6 * leaked_descriptors)
        figures.threads.append(9)
        assert not settled(figures)


def test_a_long_warm_up_is_not_taken_for_a_leak():
    figures = Figures()
    for sample in range(240):
        figures.readings.append(2_000 * sample)
        figures.rss_mb.append(120 + 80 * min(sample, 60) / 60 + (sample % 5) * 0.2)
        figures.descriptors.append(20)
        figures.threads.append(9)
    assert not settled(
        Figures(*(each[:60] for each in (figures.readings, figures.rss_mb, figures.descriptors, figures.threads)))
    )
    assert settled(figures)
