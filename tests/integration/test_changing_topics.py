"""Topics that are deleted or made again under a running worker."""

import json
import shlex

import pytest

from tests.support.models import START_MS, STEP_MS
from tests.support.serving import serving
from tests.support.worker_process import tidecast
from tidecast.service.broker.connect import CLIENTS
from tidecast.service.broker.topics import CHANGELOG_CONFIG


@pytest.fixture(params=CLIENTS)
def client(request):
    return request.param


def reading(step):
    return json.dumps({"ts": START_MS + step * STEP_MS, "value": 1.0, "wind": 2.0}).encode()


def ended(worker):
    """The last line of a worker that ends by itself, and its log."""
    code, log = worker.end(signum=None)
    assert code == 1 and "Traceback" not in log, log
    assert len(log.splitlines()) < 60, log
    return log.splitlines()[-1], log


@pytest.mark.parametrize("which", ["readings", "forecasts", "states"])
def test_a_topic_that_is_deleted_ends_the_worker_with_the_sentence_of_a_start(topics, model, which):
    t = topics()
    with serving("--model", model, "--broker-timeout-seconds=30", *t.flags) as worker:
        t.send((0, b"s", reading(step)) for step in range(10))
        worker.wait_for("the forecasts", lambda: worker.metric("tidecast_forecasts_total") == 10)
        gone = getattr(t, which)
        t.broker.delete_topic(gone)
        if which != "readings":
            t.send((0, b"s", reading(step)) for step in range(10, 20))
        said, log = ended(worker)
    assert f"there is no topic {gone}" in said and "tidecast topics create" in said, log


def test_an_input_that_is_made_again_ends_the_worker_and_after_the_printed_command_all_is_answered(topics, model):
    t = topics()
    with serving("--model", model, *t.flags) as worker:
        t.send((0, b"s", reading(step)) for step in range(10))
        worker.wait_for("the forecasts", lambda: worker.metric("tidecast_forecasts_total") == 10)
        t.broker.delete_topic(t.readings)
        worker.wait_for("its end", lambda: t.broker.describe(t.readings) is None)
        t.broker.create_topic(t.readings, 1)
        said, log = ended(worker)
    assert t.readings in said and "tidecast state reset --all" in said, log
    t.send((0, b"s", reading(step)) for step in range(20, 25))
    code, out, err = tidecast(*shlex.split(said[said.index("tidecast state reset") :])[1:])
    assert code == 0, out + err
    with serving("--model", model, *t.flags) as worker:
        t.read(t.forecasts, 15)
        assert worker.end()[0] == 0


def test_a_changelog_that_is_made_again_ends_the_worker(topics, model):
    t = topics()
    with serving("--model", model, *t.flags) as worker:
        worker.ready()
        t.broker.delete_topic(t.states)
        worker.wait_for("its end", lambda: t.broker.describe(t.states) is None)
        t.broker.create_topic(t.states, 1, CHANGELOG_CONFIG)
        said, log = ended(worker)
    assert f"the topic {t.states} was deleted and made again" in said, log
