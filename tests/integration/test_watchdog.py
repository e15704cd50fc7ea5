"""A loop that is stuck, in a worker as its users run it: it says so, shows where, and makes way for a new one."""

from contextlib import contextmanager

import pytest

from tests.support.models import counting_model
from tests.support.worker_process import WorkerProcess

# What hangs is a commit, which ignores its own limit. The loop's limit is that of a test from then on, not before: on a
# busy machine a worker takes its time to start.
STUCK = """
import functools, sys, threading
from tidecast.service.observability import liveness, watchdog
from tidecast.service.worker import worker
from tidecast.service.broker.kafka_python.transactions import KafkaPythonTransactionalProducer

class Observed(liveness.Liveness):
    def __init__(self, *what):
        super().__init__(*what)
        Observed.last = self

def waits_for_ever(self, *what):
    Observed.last.allowed = 1.0
    threading.Event().wait()

KafkaPythonTransactionalProducer.commit_transaction = waits_for_ever
worker.Liveness = Observed
watchdog.CHECK_SECONDS = 0.1
watchdog.Watchdog = functools.partial(watchdog.Watchdog, end_seconds=2.0)

from tidecast.service.cli import main
sys.exit(main())
"""

# Here it hangs inside of a library, and Python gets no turn: a mutex is waited for that nobody lets go.
STUCK_INSIDE = """
import ctypes, sys
from tidecast.service.broker.kafka_python.transactions import KafkaPythonTransactionalProducer

library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)

def waits_inside(self, *what):
    print("waiting", file=sys.stderr, flush=True)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)

KafkaPythonTransactionalProducer.commit_transaction = waits_inside

from tidecast.service.cli import main
sys.exit(main())
"""


class Stuck(WorkerProcess):
    program = ("-c", STUCK, "serve")


class StuckInside(WorkerProcess):
    program = ("-c", STUCK_INSIDE, "serve")


@pytest.fixture
def client():
    return "kafka-python"  # which hangs in what is replaced above


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return counting_model(tmp_path_factory.mktemp("model"))


@contextmanager
def at_work(kind, model, topics, *flags):
    """A worker of that kind that is given a reading."""
    worker = kind("--model", model, *flags, *topics.flags)
    try:
        worker.ready()
        topics.send([(0, b"s", b'{"ts": 1700000000000, "value": 1, "wind": 2}')])
        yield worker
    finally:
        worker.kill()


def test_a_worker_that_hangs_in_a_commit_logs_its_stacks_and_fails(topics, model):
    with at_work(Stuck, model, topics()) as worker:
        worker.wait_for("the report", lambda: "the stacks of all threads follow" in worker.log)
        status, page = worker.get("/livez")
        code, log = worker.end(signum=None)
    assert (status, code) == (503, 1) and "has not turned for" in page
    assert log.count("stuck: the loop has not turned for") == 1 and log.count("giving up") == 1
    reported, told = log.index("CRITICAL stuck"), log.index("giving up")
    assert reported < log.index("in waits_for_ever") < told, "the report does not show where it is stuck"
    assert "Traceback" not in log


def test_sigterm_ends_a_worker_that_hangs_inside_of_its_client_library(topics, model):
    """It did nothing: Python's handlers wait until the library is back, and so did the time limit that they start."""
    with at_work(StuckInside, model, topics(), "--shutdown-timeout-seconds=1") as worker:
        worker.wait_for("the commit", lambda: "waiting" in worker.log)
        code, log = worker.end()
    assert code == 1 and "in waits_inside" in log[log.index("not stopped within the limit, giving up") :]
