"""What a worker refuses on a real Kafka: one sentence, exit code 1, and a command that fixes it."""

import re
import time

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from tests.support.counted import Counted, command_in
from tests.support.kafka import own_kafka
from tests.support.serving import PATIENCE, serving
from tidecast.service import cli
from tidecast.service.broker.connect import CLIENTS
from tidecast.service.broker.topics import CHANGELOG_CONFIG


def test_a_changelog_with_another_number_of_partitions_is_refused_and_one_that_fits_is_accepted(counted, model):
    t = counted()
    t.states += "-wide"
    t.broker.create_topic(t.states, 3, CHANGELOG_CONFIG)
    t.feed(3)
    said = t.refused(model)
    assert f"{t.readings} has 2 partitions and {t.states} 3; they must have the same number" in said
    assert f"Delete {t.states}, or name another with --changelog-topic" in said
    t.delete_topic(t.states)
    t.run(command_in(said))
    t.live(model)
    t.check()


def test_an_output_with_another_number_of_partitions_is_refused_and_one_that_fits_is_accepted(counted, model):
    t = counted()
    t.forecasts += "-narrow"
    t.broker.create_topic(t.forecasts, 1)
    t.feed(3)
    said = t.refused(model)
    assert f"{t.readings} has 2 partitions and {t.forecasts} 1; they must have the same number" in said
    t.delete_topic(t.forecasts)
    t.run(command_in(said))
    t.live(model)
    t.check()


def test_missing_topics_are_refused_and_the_command_in_the_error_creates_them(counted, model):
    t = counted()
    t.states, t.dead = t.states + "-new", t.dead + "-new"
    t.feed(3)
    said = t.refused(model)
    assert f"there is no topic {t.dead} and no topic {t.states}" in said
    t.run(command_in(said))
    t.live(model)
    t.check()


@pytest.mark.parametrize("policy", ["delete", "compact,delete"])
def test_a_changelog_that_loses_quiet_series_is_refused_until_it_is_compacted(counted, model, policy):
    t = counted()
    t.states += "-deleting"
    t.broker.create_topic(t.states, 2, {"cleanup.policy": policy})
    t.feed(3)
    said = t.refused(model)
    assert f"the changelog {t.states} must be compacted" in said and f"got '{policy}'" in said
    command = re.search(r"kafka-configs.sh .*", said)[0].split()
    assert command[1:3] == ["--bootstrap-server", t.bootstrap_servers]
    assert command[-4:-1] == ["--entity-name", t.states, "--add-config"]
    admin = KafkaAdminClient(bootstrap_servers=t.bootstrap_servers)  # what that command does
    name, value = command[-1].split("=")
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, t.states, {name: value})])
    admin.close()
    t.live(model)
    t.check()


def test_a_second_group_on_a_changelog_is_refused_until_it_has_its_own(counted, model):
    t = counted()
    t.feed(4)
    t.live(model)
    mine, theirs = t.group, t.group + "-second"
    t.group = theirs
    said = t.refused(model)
    assert f"holds states of the group '{mine}'" in said
    assert f"Give the group '{theirs}' a --changelog-topic of its own" in said
    t.states, shared = t.states + "-second", t.states
    t.run(command_in(t.refused(model)))
    t.live(model, until=2 * 24)
    assert t.answered() == {key: [*range(4), *range(4)] for key in t.series}
    t.group, t.states = mine, shared
    t.feed(1)
    t.live(model, until=2 * 24 + 6)
    assert {state[0] for state in t.kept().values()} == {5.0}, "the first group's states are untouched"


def test_of_two_workers_with_one_name_one_ends_with_the_reason_and_every_reading_is_answered_once(counted, model):
    t = counted()
    flags = ("--model", model, "--instance=same", *t.flags)
    t.feed(5)
    with serving(*flags) as first:
        t.read(t.forecasts, 30)
        with serving(*flags) as second:
            deadline = time.monotonic() + 2 * PATIENCE
            while first.process.poll() is None and second.process.poll() is None and time.monotonic() < deadline:
                t.feed(1)
                time.sleep(0.5)
            ended, other = (first, second) if first.process.poll() is not None else (second, first)
            code, log = ended.end(signum=None)
            assert code == 1 and "Traceback" not in log, log
            said = log.splitlines()[-1]
            assert "another process has the name 'same'" in said and "Give every worker a name of its own" in said
            t.feed(5)
            t.read(t.forecasts, t.steps * 6)
            assert other.end()[0] == 0
    t.check()


def test_a_kafka_without_a_transaction_coordinator_is_named_and_the_other_delivery_works(model, tmp_path, capsys):
    """A single broker whose transaction log is meant for three, as an image's defaults may be."""
    alone = own_kafka(tmp_path / "kafka", properties={"transaction.state.log.replication.factor": "3"})
    with alone:
        for client in CLIENTS:
            t = Counted(alone.bootstrap_servers, 1, 1, client=client)
            t.feed(3)
            said = t.refused(model, "--broker-timeout-seconds=5")
            assert f"Kafka at {alone.bootstrap_servers} answers, but has no transaction coordinator" in said
            assert "transaction.state.log.replication.factor=1" in said and "--delivery at-least-once" in said
            t.live(model, "--delivery=at-least-once")
            assert cli.main(["doctor", *t.flags]) == 1
            found = capsys.readouterr().out
            said = said.removeprefix("tidecast: ").partition(" To find out more")[0]
            assert f"wrong        transactions: {said}" in found
            assert cli.main(["doctor", *t.flags, "--delivery=at-least-once"]) == 0
            t.broker.close()
