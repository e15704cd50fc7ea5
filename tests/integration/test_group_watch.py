"""A partition that the group has left without an owner gets one, on a real Kafka."""

import json
import time
from contextlib import ExitStack

import pytest

from tests.contract.broker_contract import Member, poll_until
from tests.support.models import START_MS, counting_model
from tests.support.serving import serving
from tests.support.unowned import left_out
from tidecast.service.broker.connect import CLIENTS
from tidecast.service.broker.port import Membership
from tidecast.service.worker.group_watch import GroupWatch, unowned

QUIET_S = 5.0  # members hear of a rebalance within 1 s


@pytest.mark.parametrize("client", CLIENTS)
def test_a1_what_a_killed_member_was_to_give_up_has_no_owner_until_the_watch_makes_the_group_assign_it(
    ports, topic, client
):
    """Made as docs/upstream.md, A1, says."""
    port, name = ports[client], topic(partitions=4)
    members = []

    def second():
        members.append(Member(port, name, name, Membership("two")))
        return members[0].consumer

    members.append(left_out(port, name, name, second))
    consumers = [m.consumer for m in members]
    deadline = time.monotonic() + QUIET_S
    poll_until(consumers, lambda: time.monotonic() > deadline)
    found = unowned(port, name, name)
    assert found is not None and len(found.members) == 2, "fixed: remove GroupWatch and A1 of docs/upstream.md"
    owned = members[0].assigned | members[1].assigned
    assert found.partitions == tuple(sorted({0, 1, 2, 3} - owned))
    counted = []
    watch = GroupWatch(port, name, name, counted.append)
    watch.look()
    watch.look()
    assert counted == [len(found.partitions)]
    poll_until(consumers, lambda: [len(m.assigned) for m in members] == [2, 2])
    assert members[0].assigned | members[1].assigned == {0, 1, 2, 3}
    assert port.group_members(name, name) is None or unowned(port, name, name) is None
    for member in members:
        member.consumer.close()


def test_a_worker_says_which_partitions_its_group_has_left_out_and_answers_their_readings(kafka, topics, tmp_path):
    t = topics(partitions=4)
    reading = json.dumps({"ts": START_MS, "value": 1.0, "wind": 2.0}).encode()
    t.send((partition, b"s%d" % partition, reading) for partition in range(4))
    worker = None

    def start():
        nonlocal worker
        flags = ("--model", counting_model(tmp_path), "--instance=two", *t.flags)
        worker = ended.enter_context(serving(*flags))

    with ExitStack() as ended:
        back = left_out(kafka, t.readings, t.group, start)

        def counts():
            back.consumer.poll(0.1, 500)
            return worker.metric("tidecast_unowned_partitions_total")

        assert worker.wait_for("its count", counts) == 2
        worker.wait_for("their forecasts", lambda: counts() and worker.metric("tidecast_forecasts_total") == 2)
        assert "the group has left partitions without an owner" in worker.log
        back.consumer.close()
        assert worker.end()[0] == 0


def test_a_member_that_is_not_there_cannot_be_evicted_and_that_is_no_error(kafka, topic):
    name = topic(partitions=1)
    member = Member(kafka, name, name)
    poll_until([member.consumer], lambda: len(member.assigned) == 1)
    kafka.evict(name, "nobody")
    assert list(kafka.group_members(name, name).values()) == [{0}]
    assert kafka.group_members(name, "another topic") == {}
    assert kafka.group_members("no such group", name) is None
    member.consumer.close()
