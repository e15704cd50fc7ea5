"""The bugs of docs/upstream.md that show without a Kafka. A test that fails: the library has fixed it."""

import inspect
import socket
import types

import pytest
from kafka import KafkaProducer, TopicPartition
from kafka.consumer.subscription_state import SubscriptionState
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.base import Generation
from kafka.coordinator.consumer import ConsumerCoordinator
from kafka.net.transport import KafkaTCPTransport
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment

from tidecast.service.broker.kafka_python import handshake


def test_k1_kafka_python_still_refuses_a_record_without_key_and_value():
    producer = types.SimpleNamespace(_closed=False, config={"api_version": (4, 0)})
    with pytest.raises(ValueError, match="Need at least one"):
        KafkaProducer.send(producer, "topic")
        pytest.fail("fixed: remove KafkaPythonProducer._send_empty and K1 of docs/upstream.md")


def test_k2_kafka_python_still_drops_what_came_before_the_end_of_a_connection():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.sendall(b"the last words")
    theirs.close()
    received = []

    async def ready(_):
        pass

    transport = KafkaTCPTransport.__new__(KafkaTCPTransport)
    transport.__dict__.update(
        _sock=ours,
        _read=True,
        _closed=False,
        _net=types.SimpleNamespace(wait_read=ready),
        _protocol=types.SimpleNamespace(data_received=received.append, _sensors=None),
        abort=lambda error: None,
        _sock_recv=lambda: handshake.LIBRARY_RECEIVE(transport),
        __str__=lambda: "transport",
    )
    with pytest.raises(StopIteration):
        transport._read_from_sock().send(None)
    ours.close()
    assert not received, "fixed: remove _keep_last_bytes and K2 of docs/upstream.md"


def test_k3_the_transaction_calls_of_kafka_python_still_have_no_time_limit():
    for call in (
        KafkaProducer.init_transactions,
        KafkaProducer.send_offsets_to_transaction,
        KafkaProducer.commit_transaction,
    ):
        names = [name for name in inspect.signature(call).parameters if "timeout" in name]
        assert not names, f"{call.__name__} has {names}: use it in transactions.py, and remove K3 of docs/upstream.md"


def test_k16_an_evicted_member_of_kafka_python_still_claims_what_it_has_lost():
    subscription = SubscriptionState()
    subscription.subscribe(["topic"])
    subscription.assign_from_subscribed([TopicPartition("topic", 3)])
    assignor = CooperativeStickyAssignor()
    assignor.on_assignment(ConsumerProtocolAssignment(1, [("topic", [3])], b""), 7)
    coordinator = ConsumerCoordinator.__new__(ConsumerCoordinator)
    coordinator.__dict__.update(
        _generation=Generation(-1, "", None),
        _subscription=subscription,
        _assignors={assignor.name: assignor},
        config={"group_id": "group", "enable_auto_commit": False},
    )
    with pytest.raises(StopIteration):
        coordinator._on_join_prepare_async(-1, "").send(None)
    assert not subscription.assigned_partitions()
    ((_, sent),) = coordinator.group_protocols()
    assert sent.owned_partitions, "fixed: remove KafkaPythonMember._say_what_we_own and K16 of docs/upstream.md"
