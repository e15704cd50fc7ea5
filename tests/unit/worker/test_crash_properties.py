"""Whatever is committed when, and whenever the process dies: no step of any series is lost, doubled or mixed."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.lives import lives
from tests.support.models import START_MS, STEP_MS
from tests.support.streams import Sent, cut, fates, model, poisoned, streams
from tidecast.service.pipeline.pipeline import Pipeline, Policy
from tidecast.service.state.codec import Codec
from tidecast.service.state.flush import RollingFlush
from tidecast.service.state.record import AheadClock


def states(line: Pipeline) -> dict[bytes, tuple[list[float], int, int, AheadClock | None]]:
    table = line.store
    found = {}
    for key in table:
        slot = table.find(key)
        assert slot is not None
        found[key] = (
            table.states[slot].tolist(),
            int(table.steps[slot]),
            int(table.last_ts[slot]),
            table.ahead.get(slot),
        )
    return found


def _sent(step: int, seconds: int) -> Sent:
    ts = START_MS + step * STEP_MS
    return Sent(b"a", b'{"ts": %d, "value": 1, "wind": 1}' % ts, ts, (1.0, 1.0), START_MS + seconds * 1_000)


def in_time(stream: list[Sent]) -> list[Sent]:
    """The same, no record older than the one before it."""
    newest = accumulate((sent.timestamp for sent in stream), max)
    return [replace(sent, timestamp=timestamp) for sent, timestamp in zip(stream, newest, strict=True)]


@pytest.mark.slow
# A late reading takes no step, but the series was seen: it must not expire because the process died after that.
@example([_sent(1, 0), _sent(0, 60), _sent(2, 150)], [1, 1, 1], ["crash", "commit", "commit"], 100_000, 1.0)
@settings(deadline=None, max_examples=200)
@given(
    st.one_of(streams(), poisoned()),
    st.lists(st.integers(1, 6), max_size=20),
    st.lists(st.sampled_from(["continue", "continue", "commit", "commit", "commit all", "crash"]), max_size=40),
    st.sampled_from([0, 30_000, 100_000]),
    st.sampled_from([1.0, 3.0, 50.0]),
)
def test_a_process_that_dies_anywhere_leaves_no_trace(
    stream: list[Sent], sizes: list[int], fortunes: list[str], ttl: int, seconds: float
) -> None:
    stream = [replace(s, partition=0 if s.key in (None, b"", b"a", b"b") else 1) for s in stream]
    if ttl:  # where the times of a partition's records go back, the cut decides when an idle series expires
        stream = in_time(stream)
    policy = Policy(series_ttl_ms=ttl, max_future_ms=0, max_gap_steps=10, late_recovery_readings=3)
    calm = Pipeline(model(), policy, output_topic="forecasts", dead_letter_topic="dead-letters")
    expected = fates([calm.process(batch) for batch in cut(stream, [])])

    kafka, process = lives(stream, policy, seconds, sizes, fortunes)

    assert fates(kafka.results) == expected
    found, wanted = states(process.line), states(calm)
    if ttl == 0:
        assert found == wanted
    else:  # an idle series may be gone already in the one, and not yet in the other
        assert all(found[key] == wanted[key] for key in found.keys() & wanted.keys())


def test_what_is_flushed_for_good_needs_no_replay() -> None:
    line = Pipeline(model(), Policy(), output_topic="f", dead_letter_topic="d")
    flush = RollingFlush(line.store, Codec(model().spec), topic="states", group="g", seconds=10.0,
                         bytes_per_second=1e9, clock=lambda: 0.0)  # fmt: skip
    stream = [Sent(b"s%d" % i, b'{"ts": 1700000000000, "value": 1}', 0, (1.0, 1.0), 0) for i in range(20)]
    line.process(cut(stream, [])[0])
    assert flush.snapshot_offsets({0: 20}) == {0: 0}
    assert sum(map(len, flush.due([0]))) == 20
    assert flush.snapshot_offsets({0: 20}) == {0: 20}
    assert np.all(line.store.dirty_since == -1)


def test_a_flush_costs_by_the_number_of_series_not_of_readings() -> None:
    now = [0.0]
    line = Pipeline(model(), Policy(), output_topic="f", dead_letter_topic="d")
    flush = RollingFlush(line.store, Codec(model().spec), topic="states", group="g", seconds=10.0,
                         bytes_per_second=1e9, clock=lambda: now[0])  # fmt: skip
    written, offset = 0, 0
    for turn in range(200):  # 100 series, each read 200 times in 20 s
        value = b'{"ts": %d, "value": 1}' % (1_700_000_000_000 + turn * 60_000)
        batch = cut([Sent(b"s%d" % i, value, 0, (1.0, 1.0), 0) for i in range(100)], [])[0]
        batch.offsets = list(range(offset, offset + 100))
        offset += 100
        line.process(batch)
        now[0] += 0.1
        written += sum(map(len, flush.due()))
        assert offset - flush.snapshot_offsets({0: offset})[0] <= 100 * 101, (
            "a series waited longer than the flush may take"
        )
    assert written <= 2.1 * 100 + 200, "more than each series once in 10 s"
