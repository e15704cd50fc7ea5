import pytest

from tidecast.service import cli
from tidecast.service.broker.memory.broker import MemoryBroker
from tidecast.service.broker.topics import CHANGELOG_CONFIG, check_topics, create_topics
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError


@pytest.fixture
def memory(monkeypatch):
    broker = MemoryBroker()
    monkeypatch.setattr("tidecast.service.commands.topics.connect_from_settings", lambda config: broker)
    return broker


def test_create_makes_missing_topics_and_lists_existing_ones(memory, capsys):
    memory.create_topic("forecasts", 6)
    assert cli.main(["topics", "create"]) == 0
    assert memory.topics() == {
        "readings": 6,
        "forecasts": 6,
        "dead-letters": 6,
        "tidecast-state": 6,
        "tidecast-decisions": 1,
    }
    assert memory.topic_config("tidecast-decisions")["retention.ms"] == "-1"
    assert memory.topic_config("tidecast-state").items() >= CHANGELOG_CONFIG.items()
    check_topics(memory, Settings())
    out = capsys.readouterr().out
    assert "readings               6 partitions  created\n" in out
    assert "forecasts              6 partitions  exists\n" in out


def test_the_list_says_what_each_topic_is_for(memory, capsys):
    cli.main(["topics", "create", "--partitions", "2"])
    memory.create_topic("other", 1)
    capsys.readouterr()
    assert cli.main(["topics"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "dead-letters           2 partitions  dead letters",
        "forecasts              2 partitions  output",
        "other                  1 partitions",
        "readings               2 partitions  input",
        "tidecast-decisions     1 partitions  decisions",
        "tidecast-state         2 partitions  changelog",
    ]


def test_a_number_of_partitions_unlike_the_existing_topics_is_refused_with_the_right_command(memory):
    memory.create_topic("readings", 6)
    with pytest.raises(BrokerError, match=r"readings has 6 partitions.*tidecast topics create --partitions 6"):
        create_topics(memory, Settings(), partitions=4)
    assert memory.topics() == {"readings": 6}


def test_topics_with_different_partitions_are_refused_and_none_is_created(memory):
    memory.create_topic("readings", 6)
    memory.create_topic("forecasts", 4)
    with pytest.raises(BrokerError, match=r"readings has 6 partitions and forecasts has 4.*--output-topic forecasts-6"):
        create_topics(memory, Settings())
    assert "dead-letters" not in memory.topics()


def test_a_changelog_with_other_partitions_is_refused_with_the_right_command(memory):
    memory.create_topic("tidecast-state", 3, CHANGELOG_CONFIG)
    memory.create_topic("readings", 6)
    with pytest.raises(BrokerError, match=r"6 partitions and tidecast-state has 3.*--changelog-topic tidecast-state-6"):
        create_topics(memory, Settings())
    assert "forecasts" not in memory.topics()


@pytest.mark.parametrize("policy", ["delete", "compact,delete"])
def test_a_changelog_whose_states_would_be_deleted_is_refused_by_create(memory, policy):
    memory.create_topic("tidecast-state", 4, {"cleanup.policy": policy})
    with pytest.raises(BrokerError, match=rf"tidecast-state must be compacted.*got '{policy}'.*kafka-configs\.sh"):
        create_topics(memory, Settings())
    assert memory.topics() == {"tidecast-state": 4}


@pytest.mark.parametrize("flag", ["--partitions", "--replication-factor"])
def test_a_number_below_one_is_refused(memory, flag, capsys):
    assert cli.main(["topics", "create", flag, "0"]) == 2
    assert f"{flag} must be at least 1, got 0" in capsys.readouterr().err


def test_the_topics_of_a_route_get_as_many_partitions_as_its_source(memory, capsys):
    memory.create_topic("sensors", 6)
    assert cli.main(["topics", "create", "--source-topic", "sensors"]) == 0
    assert memory.topics()["readings"] == memory.topics()["tidecast-state"] == 6
    check_topics(memory, Settings(source_topic="sensors").for_route())
    capsys.readouterr()
    assert cli.main(["topics", "--source-topic", "sensors"]) == 0
    assert "sensors                6 partitions  source\n" in capsys.readouterr().out


def test_the_source_and_the_topic_of_readings_may_differ_in_their_partitions(memory):
    memory.create_topic("sensors", 6)
    assert cli.main(["topics", "create", "--source-topic", "sensors", "--partitions", "3"]) == 0
    assert memory.topics()["sensors"] == 6 and memory.topics()["readings"] == 3
    check_topics(memory, Settings(source_topic="sensors").for_route())


def test_a_source_topic_that_is_not_there_is_never_made(memory, capsys):
    assert cli.main(["topics", "create", "--source-topic", "sensors"]) == 1
    assert "there is no topic sensors" in capsys.readouterr().err
    assert memory.topics() == {}
