"""One real Kafka for the whole run; every test makes topics of its own in it."""

import uuid

import pytest

from tests.support.counted import Counted
from tests.support.models import counting_model
from tests.support.registry import running as running_registry
from tests.support.serving import CLIENT, Topics
from tidecast.service.broker.connect import CLIENTS, connect


@pytest.fixture(scope="session")
def ports(broker):
    """The port to it by the name of the client library."""
    made = {client: connect(broker, client=client, timeout_s=30) for client in CLIENTS}
    yield made
    for port in made.values():
        port.close()


@pytest.fixture(scope="session")
def kafka(ports):
    """The port to it through kafka-python."""
    return ports["kafka-python"]


@pytest.fixture
def client():
    """The client library of the workers that a test starts; a module that runs with each has a fixture of its own."""
    return CLIENT


@pytest.fixture
def topic(kafka):
    """`topic(partitions=4, name="t", config=None)` makes a topic with a name that nobody else has, and returns it."""

    def make(partitions=4, name="t", config=None):
        unique = f"{name}-{uuid.uuid4().hex[:8]}"
        assert kafka.create_topic(unique, partitions, config)
        return unique

    return make


@pytest.fixture
def topics(broker, client):
    made = []

    def make(partitions=1):
        made.append(Topics(broker, partitions, client=client))
        return made[-1]

    yield make
    for one in made:
        one.broker.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The counting model's directory."""
    return counting_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def registry(tmp_path_factory):
    """The URL of the Confluent API of a real schema registry, which tests share: they make subjects of their own."""
    with running_registry(tmp_path_factory.mktemp("registry")) as url:
        yield url


@pytest.fixture
def counted(broker, client):
    """`counted(partitions=2, each=3)` makes the topics of one test, and knows what must come of their readings."""
    made = []

    def make(partitions=2, each=3):
        made.append(Counted(broker, partitions, each, client=client))
        return made[-1]

    yield make
    for one in made:
        one.broker.close()
