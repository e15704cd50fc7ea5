"""The decisions topic: all workers of a group find the same champion in it."""

import json

import msgspec
import pytest

from tidecast.service.broker.memory.broker import MemoryBroker
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.champion.comparison import Evidence
from tidecast.service.champion.decisions import Decision, DecisionReader, History, read_history, write_decision
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError

SETTINGS = Settings(broker_timeout_seconds=2.0)
A, B, C = "m@aaaaaaaaaaaa", "m@bbbbbbbbbbbb", "m@cccccccccccc"
EVIDENCE = Evidence(
    series=3, readings=900, span_seconds=86_400.0, e_value=123.4, needed=100.0, loss={"value": {"1": 0.95}}
)


def decision(was, to, by="command", group="tidecast", **more):
    return Decision(ts=1_700_000_000_000, group=group, was=was, to=to, by=by, **more)


@pytest.fixture
def broker():
    made = MemoryBroker()
    made.create_topic("tidecast-decisions", 1)
    return made


def test_a_record_is_plain_json_with_the_names_of_the_docs(broker):
    write_decision(broker, SETTINGS, decision(A, B, by="auto", after=-1, evidence=EVIDENCE))
    consumer = broker.consumer()
    consumer.assign("tidecast-decisions", {0: 0})
    batch = consumer.poll(0.0, 10)
    assert batch.keys == [b"tidecast"]
    assert json.loads(batch.values[0]) == {
        "ts": 1_700_000_000_000,
        "group": "tidecast",
        "from": A,
        "to": B,
        "by": "auto",
        "after": -1,
        "evidence": {
            "series": 3,
            "readings": 900,
            "span_seconds": 86_400.0,
            "e_value": 123.4,
            "needed": 100.0,
            "loss": {"value": {"1": 0.95}},
        },
    }


def test_a_worker_reads_what_was_decided_about_its_group_and_then_what_is_new(broker):
    write_decision(broker, SETTINGS, decision(A, B))
    write_decision(broker, SETTINGS, decision(A, C, group="other"))
    reader = DecisionReader(broker, SETTINGS)
    assert [(each.number, each.decision.to) for each in reader.read_to_end()] == [(0, B)]
    assert reader.history.champion == B
    assert reader.poll() == []
    write_decision(broker, SETTINGS, decision(B, A, by="rollback"))
    (found,) = reader.poll()
    assert (found.number, found.decision.to, reader.history.champion) == (2, A, A)


def test_an_automatic_decision_that_came_too_late_is_void_for_every_worker():
    history = History()
    assert history.champion is None
    assert not history.add(0, decision(A, B, by="auto", after=-1)).void
    assert not history.add(4, decision(B, C)).void
    assert history.add(5, decision(B, A, by="auto", after=0)).void
    assert history.champion == C and history.last.number == 4
    assert not history.add(6, decision(C, B, by="auto", after=4)).void
    assert not history.add(7, decision("", A)).void
    assert history.champion == A


@pytest.mark.parametrize("value", [b"", b"{", b"\xff", b"[]", b'{"ts": 1, "group": "tidecast", "to": "x"}', None])
def test_a_record_that_is_no_decision_is_said_counted_and_ignored(broker, value, caplog):
    out = OutgoingBatch("tidecast-decisions")
    out.append(b"tidecast", value, partition=0)
    broker.producer().produce(out)
    write_decision(broker, SETTINGS, decision(A, B))
    reader = DecisionReader(broker, SETTINGS)
    assert [each.decision.to for each in reader.read_to_end()] == [B]
    assert reader.unreadable == 1
    assert "is no decision" in caplog.text


def test_fields_of_a_later_version_are_no_error(broker):
    out = OutgoingBatch("tidecast-decisions")
    text = msgspec.json.encode(decision(A, B)).replace(b"{", b'{"later": 1, ', 1)
    out.append(b"tidecast", text, partition=0)
    broker.producer().produce(out)
    assert read_history(broker, SETTINGS).champion == B


def test_without_the_topic_the_error_has_the_command_that_makes_it():
    broker = MemoryBroker()
    broker.create_topic("readings", 6)
    with pytest.raises(BrokerError, match=r"no topic tidecast-decisions.*tidecast topics create --partitions 6"):
        read_history(broker, SETTINGS)
