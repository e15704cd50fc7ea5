import pytest

from tests.contract.broker_contract import BrokerContract, Member, drain, fill
from tests.contract.transaction_contract import TransactionContract
from tidecast.service.broker.memory.broker import MemoryBroker
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.errors import BrokerError


class TestMemoryBroker(BrokerContract, TransactionContract):
    @pytest.fixture
    def port(self):
        self.broker = MemoryBroker()
        return self.broker

    def evict(self, port, member):
        group = member.consumer._member
        group.members.remove(member.consumer)
        group.owner.clear()

    def offer(self, port, topic, group):
        producer, consumer = port.producer(transactional_id=topic), port.consumer(group=group)
        consumer.assign(topic, {0: -2})
        producer.begin()
        producer.offer(topic, {0: (7, "s=7")}, consumer)
        return lambda: producer.end(commit=True)

    def impatient(self):
        self.broker.timeout_s = 0.1
        return self.broker

    def test_a_member_that_lost_its_partitions_is_refused_a_commit(self, port, topic):
        fill(port, topic, 4, partition=0)
        first = Member(port, topic, topic)
        drain(first.consumer, 4)
        second = Member(port, topic, topic)
        first.consumer.poll(0, 1)  # releases two of the four
        second.consumer.poll(0, 1)
        with pytest.raises(BrokerError, match="group has moved on"):
            first.consumer.commit(dict.fromkeys(second.assigned, 4))

    def test_a_topic_without_partitions_is_refused(self, port):
        with pytest.raises(BrokerError, match="at least one partition"):
            port.create_topic("none", 0)

    def test_records_without_a_key_are_spread(self, port, topic, reader):
        outgoing = OutgoingBatch(topic)
        for _ in range(8):
            outgoing.append(None, b"v")
        port.producer().produce(outgoing)
        assert set(drain(reader, 8).partitions) == {0, 1, 2, 3}
