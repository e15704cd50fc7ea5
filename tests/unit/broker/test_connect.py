import logging
import sys

import pytest
from msgspec.structs import replace

from tidecast.service.broker.connect import connect_from_settings
from tidecast.service.broker.kafka_python.broker import KafkaPythonBroker
from tidecast.service.config.settings import Settings
from tidecast.service.errors import UsageError


@pytest.fixture
def without_confluent(monkeypatch):
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    monkeypatch.delitem(sys.modules, "tidecast.service.broker.confluent.broker", raising=False)


def chosen(**more):
    broker = connect_from_settings(Settings(), **more)
    broker.close()
    return type(broker).__name__


def test_by_default_a_worker_uses_the_fast_client_where_it_is_installed_and_its_log_says_so(caplog):
    pytest.importorskip("confluent_kafka")
    with caplog.at_level(logging.INFO, "tidecast.broker"):
        assert chosen(worker=True) == "ConfluentBroker"
    assert [record.client for record in caplog.records] == ["confluent"]


def test_without_the_fast_client_a_worker_uses_kafka_python_and_its_log_says_so(without_confluent, caplog):
    with caplog.at_level(logging.INFO, "tidecast.broker"):
        assert chosen(worker=True) == "KafkaPythonBroker"
    assert [record.client for record in caplog.records] == ["kafka-python"]


def test_other_commands_use_kafka_python_by_default():
    assert chosen() == "KafkaPythonBroker"


def test_a_client_that_was_asked_for_and_is_not_installed_is_refused_and_not_replaced(without_confluent):
    with pytest.raises(UsageError, match="pip install 'tidecast"):
        connect_from_settings(replace(Settings(), client="confluent"), worker=True)


def test_a_client_that_was_asked_for_is_used_by_every_command():
    broker = connect_from_settings(replace(Settings(), client="kafka-python"), worker=True)
    assert isinstance(broker, KafkaPythonBroker)
    broker.close()
