"""A loop that is stuck, in a worker as its users run it: it says so, shows where, and makes way for a new one."""

import pytest

from tests.models import counting_model
from tests.serving import Serve

# The limits are those of a test; what hangs is a commit, which ignores its own.
STUCK = """
import functools, sys, threading
import service.watchdog, service.worker
from service.broker.kafka_python_transactions import TransactionalProducer

def waits_for_ever(self, *what):
    threading.Event().wait()

TransactionalProducer.commit_transaction = waits_for_ever
service.worker.STALLED_SECONDS = 1.0
service.watchdog.LOOK_SECONDS = 0.1
service.watchdog.Watchdog = functools.partial(service.watchdog.Watchdog, end_seconds=2.0)

from service.cli import main
sys.exit(main())
"""


class Stuck(Serve):
    program = ("-c", STUCK, "serve")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return counting_model(tmp_path_factory.mktemp("model"))


def test_a_worker_stuck_in_a_commit_leaves_its_stacks_and_ends_with_a_failure(topics, model):
    t = topics()
    worker = Stuck("--model", model, "--broker-timeout-seconds=1", *t.flags)
    try:
        worker.ready()
        t.send([(0, b"s", b'{"ts": 1700000000000, "value": 1, "wind": 2}')])
        worker.wait_for("the report", lambda: "what every thread does stands below" in worker.log)
        status, page = worker.get("/livez")
        code, log = worker.end(signum=None)
    finally:
        worker.process.kill()
        worker.process.wait()
    assert (status, code) == (503, 1) and "has not turned for" in page
    assert log.count("stuck: the loop has not turned for") == 1 and log.count("giving up") == 1
    reported, told = log.index("CRITICAL stuck"), log.index("giving up")
    assert reported < log.index("in waits_for_ever") < told, "the report does not show where it is stuck"
    assert "Traceback" not in log
