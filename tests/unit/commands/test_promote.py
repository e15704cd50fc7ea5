"""`tidecast promote`: what it writes, lists and refuses."""

import json

import pytest

from tests.support.models import Variant, counting_model
from tests.unit.champion.test_decisions import EVIDENCE, SETTINGS, A, B, C, decision
from tidecast.service import cli
from tidecast.service.broker.memory.broker import MemoryBroker
from tidecast.service.champion.decisions import read_history, write_decision
from tidecast.service.model.session import Model
from tidecast.service.state.offset_metadata import Committed


@pytest.fixture
def memory(monkeypatch):
    broker = MemoryBroker()
    broker.create_topic("readings", 2)
    broker.create_topic("tidecast-decisions", 1)
    monkeypatch.setattr("tidecast.service.commands.promote.connect_from_settings", lambda config: broker)
    return broker


def commit(broker, *models, members=(A, B, C)):
    """As workers do: one model for each partition."""
    hashes = tuple(model.rpartition("@")[2] for model in members)
    consumer = broker.consumer(group="tidecast")
    consumer.assign("readings", {})
    for partition, model in enumerate(models):
        text = Committed(1, 0, True, b"12345678", model, hashes).text
        consumer.commit({partition: 1}, text)
    consumer.close()


def run(*words):
    return cli.main(["promote", *words])


def last(broker):
    found = read_history(broker, SETTINGS).last
    return found and (found.decision.was, found.decision.to, found.decision.by)


def test_a_directory_is_promoted_by_the_id_of_its_model(memory, tmp_path, capsys):
    path = counting_model(tmp_path / "new", Variant(multiplier=37))
    new = Model.load(path).spec.id
    commit(memory, A, A, members=(A, new))
    assert run(str(path)) == 0
    assert last(memory) == (A, new, "command")
    assert capsys.readouterr().out == f"{new} is to answer for tidecast, in the place of {A}\n"


def test_a_name_is_enough_where_only_one_model_has_it(memory, capsys):
    write_decision(memory, SETTINGS, decision("starter@111111111111", "trained@222222222222"))
    assert run("starter") == 0
    assert last(memory) == ("trained@222222222222", "starter@111111111111", "command")
    write_decision(memory, SETTINGS, decision("", "starter@333333333333"))
    assert run("starter") == 2
    assert "several models have the name 'starter'" in capsys.readouterr().err


def test_a_model_that_nobody_knows_is_refused_with_those_that_are_known(memory, capsys):
    commit(memory, A, B)
    assert run("weather") == 2
    assert last(memory) is None
    error = capsys.readouterr().err
    assert "there is no model 'weather' in the group" in error and f"Known: {A}, {B}." in error


def test_a_model_that_the_workers_do_not_run_is_refused_before_anything_is_written(memory, capsys):
    commit(memory, A, A, members=(A, B))
    assert run(C) == 1
    assert last(memory) is None
    assert f"the workers of tidecast do not run {C}" in capsys.readouterr().err
    write_decision(memory, SETTINGS, decision(C, A))
    assert run("--rollback") == 1
    assert last(memory)[1] == A
    commit(memory, A, A, members=())  # without shadows
    assert run(B) == 1


def test_the_champion_is_not_promoted_again(memory, capsys):
    assert run(B) == run(B) == 0
    assert len(read_history(memory, SETTINGS).decisions) == 1
    assert f"{B} is the champion of tidecast already" in capsys.readouterr().out


def test_a_rollback_goes_to_the_model_before_and_a_second_one_back_again(memory):
    commit(memory, A, A)
    assert run(B) == run("--rollback") == 0
    assert last(memory) == (B, A, "rollback")
    assert run("--rollback") == 0
    assert last(memory) == (A, B, "rollback")


def test_after_a_hot_swap_of_the_champion_a_rollback_goes_to_the_newer_one(memory):
    write_decision(memory, SETTINGS, decision(B, A))
    commit(memory, C, C, members=(B, C))  # C has taken the place of A
    assert run(B) == 0
    commit(memory, B, B, members=(B, C))
    assert run("--rollback") == 0
    assert last(memory) == (B, C, "rollback")


def test_a_rollback_without_a_decision_is_refused(memory, capsys):
    assert run("--rollback") == 1
    assert "there is no model to go back to: tidecast-decisions holds no decision about tidecast" in (
        capsys.readouterr().err
    )
    write_decision(memory, SETTINGS, decision("", B))
    assert run("--rollback") == 1
    assert "does not say which one was before. Name the model" in capsys.readouterr().err


def test_waiting_ends_when_all_partitions_are_committed_by_the_model(memory, capsys):
    commit(memory, B, B)
    assert run(B, "--wait", "5") == 0
    assert f"all partitions are committed by {B}" in capsys.readouterr().out


def test_waiting_in_vain_says_who_answers_and_that_the_decision_stands(memory, capsys):
    commit(memory, A, B)
    assert run(B, "--wait", "0.1") == 1
    error = capsys.readouterr().err
    assert f"not all partitions are committed by {B}" in error and f"{A}, {B}" in error
    assert "The decision stands." in error
    assert last(memory)[1] == B


def test_the_list_has_each_decision_with_its_evidence(memory, capsys):
    write_decision(memory, SETTINGS, decision(A, B, by="auto", after=-1, evidence=EVIDENCE))
    write_decision(memory, SETTINGS, decision(B, A, by="rollback"))
    write_decision(memory, SETTINGS, decision(B, C, by="auto", after=0, evidence=EVIDENCE))
    write_decision(memory, SETTINGS, decision(B, C, group="other"))
    assert run("--list") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"0  2023-11-14T22:13:20Z  {A} -> {B}  by auto  900 readings of 3 series, e-value 123.4 of 100, "
        "loss of the champion's: value 1 ahead 0.950",
        f"1  2023-11-14T22:13:20Z  {B} -> {A}  by rollback",
        f"2  2023-11-14T22:13:20Z  {B} -> {C}  by auto  900 readings of 3 series, e-value 123.4 of 100, "
        "loss of the champion's: value 1 ahead 0.950  void: somebody else decided before",
    ]
    assert run("--list", "--json") == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["number"], each["from"], each["to"], each.get("void")) for each in listed] == [
        (0, A, B, None),
        (1, B, A, None),
        (2, B, C, True),
    ]
    assert listed[0]["evidence"]["loss"] == {"value": {"1": 0.95}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "takes MODEL, --rollback or --list"),
        ([A, "--rollback"], "takes MODEL, --rollback or --list"),
        (["--list", "--wait", "3"], "--wait is a number of seconds above 0, for MODEL and --rollback"),
        ([A, "--wait", "0"], "--wait is a number of seconds above 0"),
        ([A, "--json"], "--json is for --list"),
    ],
)
def test_wrong_use_is_refused(memory, words, message, capsys):
    assert run(*words) == 2
    assert message in capsys.readouterr().err


def test_without_the_topic_nothing_is_written_and_the_error_says_how_to_make_it(memory, capsys):
    memory.delete_topic("tidecast-decisions")
    assert run(A) == 1
    assert "there is no topic tidecast-decisions" in capsys.readouterr().err
    assert "tidecast-decisions" not in memory.topics()
