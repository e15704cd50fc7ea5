"""The order of all tests, the threads of their processes, and the one Kafka of a run."""

import gc
import logging
import os

import pytest

from tests.support.kafka import SharedKafka, ask_for_kafka, use_archive
from tests.support.weather import trained

# Files of half a minute or more, the longest first: if one of them began last, it would run alone while the other
# processes wait.
LONG = [
    "test_security.py",
    "test_changing_topics.py",
    "test_dashboards.py",
    "test_broker_port.py",
    "test_restore.py",
    "test_short_storm.py",
    "test_promoted.py",
    "test_shadow.py",
    "test_schema_registry.py",
    "test_starter.py",
    "test_adapt.py",
    "test_routed.py",
    "test_route.py",
    "test_worker.py",
    "test_refused_restore.py",
    "test_readme.py",
    "test_doctor.py",
    "test_embedded_broker.py",
    "test_demo.py",
    "test_taxi.py",
    "test_refusals.py",
    "test_transactions.py",
    "test_confluent.py",
    "test_watchdog.py",
    "test_watch_page.py",
    "test_namesakes.py",
    "test_make.py",
]
NO_KAFKA = {"unit", "docs", "training", "deploy"}
# More threads than cores wait for each other, some of them by spinning. Set before a test loads numpy or torch.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
SHARED_KAFKA = pytest.StashKey[SharedKafka]()


def pytest_configure(config):
    use_archive()
    if not hasattr(config, "workerinput"):
        config.stash[SHARED_KAFKA] = SharedKafka()


def pytest_unconfigure(config):
    if SHARED_KAFKA in config.stash:
        config.stash[SHARED_KAFKA].stop()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """Tell a process of pytest-xdist where to ask for Kafka."""
    node.workerinput["shared_kafka"] = node.config.stash[SHARED_KAFKA].port


@pytest.fixture(autouse=True)
def logging_as_before():
    """A command that a test has run sends no later test's log to a stream that is closed by then."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


@pytest.fixture(scope="session")
def broker(request):
    """The bootstrap servers of the one Kafka that all tests share: no test may stop it. See `own_kafka`."""
    given = getattr(request.config, "workerinput", None)
    return ask_for_kafka(given["shared_kafka"] if given else request.config.stash[SHARED_KAFKA].port)


@pytest.fixture(scope="session")
def weather(tmp_path_factory, request):
    """A folder in which the README's commands for training have been run; its model is in build/weather."""
    base = tmp_path_factory.getbasetemp()
    return trained((base.parent if hasattr(request.config, "workerinput") else base) / "weather")


def pytest_collection_modifyitems(items):
    """What needs no Kafka first, in its own order; then the long files; then the others."""

    def turn(item):
        if NO_KAFKA.intersection(item.path.relative_to(item.config.rootpath).parts):
            return -1
        return LONG.index(item.path.name) if item.path.name in LONG else len(LONG)

    items.sort(key=turn)


def pytest_collection_finish():
    """What is imported by now stays in memory: so a garbage collection is cheap, and comes often."""
    gc.collect()
    gc.freeze()
