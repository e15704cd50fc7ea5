"""Topics that change while a worker runs, on the in-memory broker."""

import logging
import time

import pytest

from tidecast.service.broker.memory.broker import MemoryBroker
from tidecast.service.broker.topics import check_topics, create_topics
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError, BrokerUnavailable
from tidecast.service.worker.topic_watch import TopicWatch

SETTINGS = Settings()
TOPICS = (SETTINGS.input_topic, SETTINGS.output_topic, SETTINGS.dead_letter_topic, SETTINGS.changelog_topic)


@pytest.fixture
def broker():
    made = MemoryBroker()
    create_topics(made, SETTINGS, partitions=2)
    return made


@pytest.fixture
def watch(broker):
    made = TopicWatch(broker, SETTINGS, seconds=0.01)
    made.start(check_topics(broker, SETTINGS))
    yield made
    made.stop()


def found(watch):
    """What the loop gets, within some seconds."""
    deadline = time.monotonic() + 20
    with pytest.raises(BrokerError) as raised:
        while time.monotonic() < deadline:
            watch.check()
            time.sleep(0.01)
    return str(raised.value)


def again(broker, topic, partitions=2):
    config = broker.topic_config(topic)
    broker.delete_topic(topic)
    broker.create_topic(topic, partitions, config)


def test_topics_that_stay_as_they_are_are_no_finding(watch, broker):
    assert watch.look() is None
    watch.check()


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_that_is_gone_ends_the_worker_with_the_sentence_of_a_start(watch, broker, topic):
    broker.delete_topic(topic)
    with pytest.raises(BrokerError) as start:
        check_topics(broker, SETTINGS)
    assert found(watch) == str(start.value)
    assert f"there is no topic {topic}" in str(start.value)


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_that_is_made_again_ends_the_worker_and_says_how_to_continue(watch, broker, topic):
    again(broker, topic)
    said = found(watch)
    assert f"the topic {topic} was deleted and made again" in said
    assert ("tidecast state reset --all" in said) == (topic == SETTINGS.input_topic)


def test_partitions_that_are_added_to_the_input_alone_end_the_worker(watch, broker):
    more(broker, SETTINGS.input_topic, 3)
    said = found(watch)
    assert "has 3 partitions" in said and "tidecast topics create --partitions 3" in said


def test_partitions_that_are_added_to_all_topics_are_said_once_and_the_worker_continues(watch, broker, caplog):
    watch.stop()
    with caplog.at_level(logging.WARNING):
        for topic in TOPICS:
            more(broker, topic, 3)
        assert watch.look() is None and watch.look() is None
    assert sorted(record.topic for record in caplog.records) == sorted(TOPICS)


def test_what_is_seen_only_once_is_not_believed(broker):
    """A broker that has just started may not know a topic yet."""
    answers = [True, False] * 20

    class Forgetful:
        def __getattr__(self, name):
            return getattr(broker, name)

        def describe(self, topic):
            if topic == SETTINGS.dead_letter_topic and answers and answers.pop(0):
                return None
            return broker.describe(topic)

    watch = TopicWatch(Forgetful(), SETTINGS, seconds=0.001)
    watch.start(check_topics(broker, SETTINGS))
    while answers:
        time.sleep(0.01)
    watch.check()
    watch.stop()


def test_a_kafka_that_is_away_is_no_finding(broker):
    class Away:
        def describe(self, topic):
            raise BrokerUnavailable("away")

    assert TopicWatch(Away(), SETTINGS).look() is None


def more(broker, topic, partitions):
    """As an administrator adds partitions: the topic stays the same."""
    (log, *_) = broker.logs[topic]
    while len(broker.logs[topic]) < partitions:
        broker.logs[topic].append(type(log)())
