"""Memory and descriptors of a worker that has much to do stay where they are. The long form: `tests.chaos.long_run`."""

import pytest

from tests.chaos.long_run import Figures, run


@pytest.mark.timeout(240)
def test_a_worker_that_runs_on_and_on_does_not_grow(tmp_path):
    figures = run(tmp_path, seconds=36, rate=3_000, series=500)
    print(figures)
    assert figures.readings > 36 * 2_000, figures
    # A list that keeps 50 bytes of each reading would make 9 MB a minute of it; a slope over so short a time is rough.
    assert figures.mb_a_minute < 4.5, figures
    assert figures.more_descriptors <= 0, figures


def test_a_leak_of_fifty_bytes_a_reading_would_be_seen():
    figures = Figures(readings=3_000 * 36)
    for second in range(36):
        figures.at.append(second)
        figures.rss_mb.append(120 + second * 3_000 * 50 / 1e6 + (second % 5) * 0.2)
        figures.descriptors.append(20 + second // 12)
        figures.threads.append(9)
    assert figures.mb_a_minute > 4.5
    assert figures.more_descriptors > 0
    assert 40 < figures.bytes_a_reading < 60
