"""A model that harms who runs it harms only the process that checks it: the worker forecasts on, and can be ended."""

import shutil
import sys

import psutil
import pytest

from tests.integration.test_model_swap import SERIES, feed
from tests.support import hostile
from tests.support.models import SUCCESSORS, counting_model, publish
from tests.support.serving import serving
from tidecast.service.broker.embedded.server import free_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the worker is looked at from outside")


def checking(worker):
    """The process in which this worker checks a model, once there is one."""

    def look():
        children = psutil.Process(worker.process.pid).children()
        return next((c for c in children if any("check_candidate" in word for word in c.cmdline())), None)

    return worker.wait_for("the check", look)


def gone(process):
    """Whether it has ended, although whoever adopted it may not have asked for its exit code yet."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_worker_forecasts_on_and_can_be_ended_while_it_checks_a_model_that_never_ends(topics, tmp_path):
    place = counting_model(tmp_path / "served")
    t = topics(partitions=2)
    with serving("--model", place, "--model-watch-seconds=0.1", *t.flags, preloaded=False) as worker:
        feed(t, 0, 3)
        t.read(t.forecasts, SERIES * 3)
        publish(hostile.long_self_test(tmp_path / "long"), place)
        worker.wait_for("the refusal", lambda: 'model_swaps_total{outcome="refused"} 1' in worker.get("/metrics")[1])
        assert "the new model is refused, the old one stays in service" in worker.log
        publish(hostile.endless(tmp_path / "endless", SUCCESSORS[1]), place)
        check = checking(worker)
        feed(t, 3, 6)
        t.read(t.forecasts, SERIES * 6)  # which reads what is committed
        assert check.is_running(), "the readings were answered during the check"
        code, log = worker.end()
    assert code == 0, log
    assert gone(check)
    assert log.count("the new model is refused") == 1


def test_a_start_with_a_model_that_never_ends_can_be_ended_at_once_and_ends_by_itself(tmp_path):
    place = hostile.endless(tmp_path / "model")
    flags = ("--model", place, f"--bootstrap-servers=127.0.0.1:{free_port()}", "--http-port=0")
    with serving(*flags, preloaded=False) as worker:
        check = checking(worker)
        worker.process.terminate()
        assert worker.process.wait(10) == 0
        psutil.wait_procs([check], timeout=10)
        assert gone(check)
    shutil.rmtree(place)
    hostile.much_metadata(place)
    with serving(*flags, preloaded=False) as worker:
        code, log = worker.end(signum=None)
    assert code == 1 and log.splitlines()[-1].startswith("tidecast: the model has more than 2097152 bytes of metadata")
