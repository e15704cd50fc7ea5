"""States and offsets that do not fit each other: the worker refuses in one sentence, which names the fix."""

import os
import re
import signal

import pytest
from kafka import KafkaAdminClient

from tests.support.counted import command_in
from tests.support.serving import serving
from tidecast.service.broker.topics import CHANGELOG_CONFIG

# Nearly nothing is flushed while it runs: a kill leaves a long replay to do, and soon another may take its place.
QUIET = ("--changelog-seconds=3600", "--session-timeout-seconds=6")


def test_offsets_set_back_behind_the_states_are_refused_and_after_the_reset_all_is_answered_again(counted, model):
    t = counted()
    t.feed(20)
    t.live(model)
    t.set_back({0: 6})
    said = t.refused(model)
    assert f"the changelog is ahead of the group '{t.group}'" in said
    assert f"a state holds offset 59 of {t.readings}-0, but the group has committed 6" in said
    t.run(command_in(said))
    t.live(model, until=20 * 6 + 18 * 3)
    for key, partition in t.series.items():
        assert t.answered()[key] == [*range(20), *(range(2, 20) if partition == 0 else ())]
    reset = [series for series in t.kept() if t.series[series] == 0]
    assert len(reset) == 3


def test_states_whose_offsets_are_gone_are_refused_and_after_the_reset_all_is_answered_anew(counted, model):
    t = counted()
    t.feed(5)
    t.live(model)
    admin = KafkaAdminClient(bootstrap_servers=t.bootstrap_servers)
    admin.delete_groups([t.group])
    admin.close()
    said = t.refused(model)
    assert "the changelog has 3 states for" in said and f"the group '{t.group}' has no offset there" in said
    t.run(command_in(said))
    t.live(model, until=60)
    assert t.answered() == {key: [*range(5), *range(5)] for key in t.series}
    assert {state[0] for state in t.kept().values()} == {5.0}, "the states began anew with the readings"


@pytest.mark.parametrize("left", [0, 7], ids=["all of it", "a part of it"])
def test_a_replay_range_that_retention_has_deleted_is_refused_unless_the_gap_is_accepted(counted, model, left):
    t = counted(partitions=1)
    t.feed(20)
    t.live(model, *QUIET, signum=signal.SIGKILL)
    committed, text = t.committed()[0]
    assert committed == 60 and text != "s=60", "the kill has left a replay to do"
    t.delete_readings({0: committed - left})
    said = t.refused(model, "--session-timeout-seconds=6")
    assert f"{t.readings}-0 begins at offset {60 - left}" in said and "retention has deleted that range" in said
    t.feed(3)
    t.live(model, *accepting(said))
    assert t.answered() == {key: [*range(23)] for key in t.series}, "what was answered before is not answered again"
    t.feed(3)
    t.live(model)  # and without the flag from then on
    assert t.answered() == {key: [*range(26)] for key in t.series}


def test_unread_readings_that_retention_has_deleted_are_not_skipped_silently(counted, model):
    t = counted(partitions=1)
    t.feed(5)
    t.live(model)
    t.feed(10)
    t.delete_readings({0: 15 + 6})
    said = t.refused(model)
    assert f"{t.readings}-0 begins at offset 21" in said and "retention has deleted 6 of them" in said
    t.live(model, *accepting(said), until=3 * (15 - 2))
    t.feed(1)
    t.live(model, until=3 * (16 - 2))
    assert t.answered() == {key: [*range(5), *range(7, 16)] for key in t.series}


def test_a_running_worker_whose_unread_readings_retention_deletes_ends_unless_the_gap_is_accepted(counted, model):
    t = counted(partitions=1)
    t.feed(5)
    with serving("--model", model, *t.flags) as worker:
        t.read(t.forecasts, 15)
        os.kill(worker.process.pid, signal.SIGSTOP)
        t.feed(10)
        t.delete_readings({0: 15 + 6})
        os.kill(worker.process.pid, signal.SIGCONT)
        code, log = worker.end(signum=None)
    said = log.splitlines()[-1]
    assert code == 1 and "Traceback" not in log, log
    assert f"{t.readings}-0 begins at offset 21" in said and "retention has deleted 6 of them" in said
    t.live(model, *accepting(said), until=3 * (15 - 2))
    t.feed(1)
    t.live(model, until=3 * (16 - 2))
    assert t.answered() == {key: [*range(5), *range(7, 16)] for key in t.series}


def empty(t):
    """The changelog as somebody leaves it who deletes the topic and makes it anew."""
    t.delete_topic(t.states)
    t.broker.create_topic(t.states, t.count, CHANGELOG_CONFIG)


def test_a_changelog_that_is_empty_although_states_were_written_is_refused_unless_a_cold_start_is_accepted(
    counted, model
):
    t = counted()
    t.feed(5)
    t.live(model)
    empty(t)
    said = t.refused(model)
    assert re.search(rf"the group '{t.group}' has committed offset 15 of {t.readings}-[01]", said)
    assert f"the changelog {t.states} is empty" in said and "its states are lost" in said
    t.feed(2)
    t.live(model, *accepting(said))
    assert t.answered() == {key: [*range(7)] for key in t.series}, "what was answered before is not answered again"
    assert {state[0] for state in t.kept().values()} == {2.0}, "cold from there on"
    t.feed(1)
    t.live(model)  # and without the flag from then on
    assert {state[0] for state in t.kept().values()} == {3.0}


def test_a_group_that_never_had_a_state_to_write_is_not_taken_for_one_that_lost_them(counted, model):
    t = counted()
    t.send((0, b"s0-0", b"no reading") for _ in range(5))
    with serving("--model", model, "--start=latest", *t.flags) as worker:  # commits where it begins, 5 and 0
        worker.wait_for("its offsets", lambda: all(t.committed().values()))
        assert worker.end()[0] == 0
    t.send((1, b"s1-0", b"no reading") for _ in range(5))
    with serving("--model", model, *t.flags) as worker:
        worker.wait_for("its dead letters", lambda: worker.metric("tidecast_dead_letters_total") == 5)
        assert worker.end()[0] == 0
    t.feed(3)
    t.live(model)
    t.check()


def test_after_a_reset_of_all_states_the_group_continues_cold(counted, model):
    t = counted()
    t.feed(4)
    t.live(model)
    t.run(
        f"tidecast state reset --all --bootstrap-servers {t.bootstrap_servers} --changelog-topic {t.states} "
        f"--input-topic {t.readings} --group {t.group}"
    )
    t.feed(2)
    t.live(model)
    assert t.answered() == {key: [*range(6)] for key in t.series}
    assert {state[0] for state in t.kept().values()} == {2.0}


def accepting(said):
    """The flags that a sentence names to continue all the same."""
    return re.search(r"--accept-gap( true)?", said)[0].split()
