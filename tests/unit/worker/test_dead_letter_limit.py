from types import SimpleNamespace

import pytest

from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.errors import DeadLetterFlood
from tidecast.service.input.rejected import DeadLetterReason
from tidecast.service.pipeline.batch import BatchCounts
from tidecast.service.worker.dead_letter_limit import DeadLetterLimit


def batch(readings, *bad):
    """A result with so many readings, of which those of these keys are dead letters."""
    letters = OutgoingBatch("dead-letters")
    for key in bad:
        letters.append(key, b"{")
    counts = BatchCounts(readings=readings)
    counts.dead_letters[DeadLetterReason.NOT_JSON] = len(bad)
    return SimpleNamespace(counts=counts, dead_letters=letters)


@pytest.fixture
def now():
    return [0.0]


def test_dead_letters_that_trickle_do_not_reach_the_limit(now):
    limit = DeadLetterLimit(2, 60.0, lambda: now[0])
    for _ in range(10):
        limit.add(batch(1, b"k"))
        limit.check("dead-letters")
        now[0] += 31


def test_no_limit_means_no_limit(now):
    limit = DeadLetterLimit(0, 60.0, lambda: now[0])
    limit.add(batch(10_000, *[b"k"] * 10_000))
    limit.check("dead-letters")


def test_more_than_the_limit_and_than_half_of_the_readings_end_the_worker_with_the_reasons(now):
    limit = DeadLetterLimit(10, 60.0, lambda: now[0])
    for _ in range(11):
        limit.add(batch(2, b"a", b"b"))
    with pytest.raises(DeadLetterFlood, match=r"22 dead letters within 60 s.*half of the readings: not_json 22"):
        limit.check("dead-letters")


def test_rubbish_of_one_key_stops_no_other_series_and_is_said_once_in_a_window(now, caplog):
    limit = DeadLetterLimit(1_000, 60.0, lambda: now[0])
    for _ in range(10 * 60):  # ten minutes of 17 bad records and 20 good ones a second
        limit.add(batch(37, *[b"broken\xff"] * 17))
        limit.check("dead-letters")
        now[0] += 1
    assert 9 <= len(caplog.records) <= 10
    assert {record.key for record in caplog.records} == {"broken\\xff"}


def test_what_is_older_than_the_window_is_forgotten(now):
    limit = DeadLetterLimit(10, 60.0, lambda: now[0])
    limit.add(batch(10, *[b"a"] * 10))
    now[0] = 61.0
    limit.add(batch(10, *[b"a"] * 10))
    limit.check("dead-letters")
