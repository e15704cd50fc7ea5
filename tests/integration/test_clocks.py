"""A clock that is wrong, on a real Kafka, with workers that are killed while readings contradict it."""

import json
import signal
import time

import pytest

from tests.support.models import STEP_MS, counting_model
from tests.support.serving import Topics, serving
from tidecast.service.broker.port import OutgoingBatch

YEAR_2199 = 7_240_000_000_000


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
def test_a_reading_a_day_ahead_silences_its_series_for_four_readings_although_workers_are_killed_meanwhile(
    broker, tmp_path, delivery
):
    topics, model = Topics(broker), counting_model(tmp_path)
    flags = ["--model", model, "--delivery", delivery, *topics.flags]
    begin = (time.time_ns() // 1_000_000 // STEP_MS - 80) * STEP_MS
    producer = topics.broker.producer()

    def send(*times):
        """Readings of (ts, time of the record)."""
        out = OutgoingBatch(topics.readings)
        for ts, timestamp in times:
            value = json.dumps({"ts": ts, "value": 1, "wind": 2}).encode()
            out.append(b"a", value, partition=0, timestamp=timestamp)
        producer.produce(out)
        producer.flush(30)

    def true(first, end):
        return [(begin + step * STEP_MS, begin + step * STEP_MS) for step in range(first, end)]

    def committed():
        return topics.committed()[0] or (0, "")

    send(*true(0, 10), (begin + 10 * STEP_MS + 86_399_000, begin + 10 * STEP_MS), (YEAR_2199, -1), *true(11, 13))
    with serving(*flags, "--changelog-seconds", 3600) as worker:  # its successor replays all of them
        worker.wait_for("the commit", lambda: committed()[0] == 14)
        worker.end(signal.SIGKILL)
    send(*true(13, 14))
    with serving(*flags, "--changelog-seconds", 0.1) as worker:  # its successor finds them in the state
        worker.wait_for("the commit", lambda: committed()[0] == 15)
        worker.wait_for("the state", lambda: worker.metric("tidecast_unwritten_series") == 0)
        worker.end(signal.SIGKILL)
    send(*true(14, 71))
    with serving(*flags) as worker:
        worker.wait_for("the commit", lambda: committed()[0] == 72)
        worker.wait_for("the count", lambda: worker.metric("tidecast_clock_recoveries_total") == 1)
        code, log = worker.end()
    producer.close()
    assert code == 0
    assert [line for line in log.splitlines() if "it starts again" in line and "key=a" in line]
    times = [json.loads(value)["ts"] for _, _, value, _ in topics.read(topics.forecasts, 67)]
    want = [ts for ts, _ in [*true(0, 10), (begin + 10 * STEP_MS + 86_399_000, 0), *true(15, 71)]]
    assert times == want
    ((_, _, value, headers),) = topics.read(topics.dead, 1)
    assert json.loads(value)["ts"] == YEAR_2199
    assert headers["tidecast.reason"] == b"time_out_of_range"
