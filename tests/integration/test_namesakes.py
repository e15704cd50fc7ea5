"""Two workers with one name: the one that was started later continues, the other ends and says why."""

import json
import re
import signal
import time

import pytest

from tests.support.models import START_MS, STEP_MS, counting_model
from tests.support.serving import PATIENCE, serving

SESSION = 6  # s


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return counting_model(tmp_path_factory.mktemp("model"))


def reading(step):
    return b'{"ts": %d, "value": 1, "wind": 2}' % (START_MS + step * STEP_MS)


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
@pytest.mark.parametrize("asleep", [False, True], ids=["awake", "asleep"])
def test_of_two_workers_with_one_name_the_newer_continues_and_the_older_ends(topics, model, delivery, asleep):
    t = topics(partitions=2)
    flags = (
        "--model",
        model,
        "--instance=one",
        f"--delivery={delivery}",
        f"--session-timeout-seconds={SESSION}",
        *t.flags,
    )
    sent = 0

    def send():
        nonlocal sent
        t.send((p, b"s%d" % p, reading(sent)) for p in range(2))
        sent += 1

    with serving(*flags) as older:
        older.ready()
        send()
        older.wait_for("forecasts", lambda: older.metric("tidecast_forecasts_total") == 2)
        if asleep:
            older.process.send_signal(signal.SIGSTOP)
        with serving(*flags) as newer:
            newer.ready()
            send()
            if asleep:
                newer.wait_for("forecasts", lambda: newer.metric("tidecast_forecasts_total") >= 2)
                time.sleep(SESSION + 1)
                older.process.send_signal(signal.SIGCONT)
            deadline = time.monotonic() + PATIENCE
            while older.process.poll() is None and time.monotonic() < deadline:
                send()
                time.sleep(0.2)
            code, log = older.end(signum=None)
            send()
            found = t.read(t.forecasts, 2 * sent)
            assert newer.end()[0] == 0, newer.log
    assert code == 1 and "Traceback" not in log
    assert re.search(r"another process has the name 'one'.*--instance", log.splitlines()[-1]), log
    answered = {json.loads(value)["source"] for _, _, value, _ in found}
    assert len(answered) == 2 * sent, "a reading was not answered"
    if delivery == "exactly-once":
        assert len(found) == len(answered), "a reading was answered twice"
