"""A group on a real Kafka: whoever is a member gets its share, whatever came between it and its joining."""

import threading
import time

import pytest
from kafka import KafkaAdminClient, TopicPartition, errors
from kafka.admin import MemberToRemove

from tests.contract.broker_contract import PATIENCE_S, Member, drain, fill, poll_until
from tidecast.service.broker.port import Membership
from tidecast.service.errors import BrokerError, InstanceFenced


def settle(members, each):
    poll_until([m.consumer for m in members], lambda: all(len(m.assigned) == each for m in members))
    together = set().union(*(m.assigned for m in members))
    assert together == set(range(each * len(members)))


def close(members):
    for member in members:
        member.consumer.close()


def test_a_member_whose_join_ends_while_it_does_not_poll_gets_its_share(kafka, broker, topic):
    """kafka-python forgot a join that it had begun because the topic grew, if a poll ran out before the join ended."""
    name = topic(partitions=2)
    leader = Member(kafka, name, name)
    poll_until([leader.consumer], lambda: len(leader.assigned) == 2)
    other = Member(kafka, name, name)
    settle([leader, other], each=1)
    admin = KafkaAdminClient(bootstrap_servers=broker)
    admin.create_partitions({name: 4})
    admin.close()
    # The leader hears of it during a poll, joins, and waits for the other, which does not poll yet.
    hear = threading.Timer(0.5, leader.consumer._kafka._client.cluster.request_update)
    hear.start()
    leader.consumer.poll(1.5, 500)
    hear.join()
    # Now the other joins too, and the leader is busy with something else.
    poll_until([other.consumer], lambda: len(other.assigned) == 2)
    settle([leader, other], each=2)
    close([leader, other])


def test_a_member_that_the_group_has_thrown_out_joins_again_and_gets_its_share(kafka, broker, topic):
    """As after a stop of the process for longer than its session, of which it knows nothing when it continues."""
    name = topic(partitions=4)
    members = [Member(kafka, name, name) for _ in range(2)]
    settle(members, each=2)
    for out in members:
        others = [m for m in members if m is not out]
        member_id = out.consumer._kafka._coordinator.group_metadata().member_id
        admin = KafkaAdminClient(bootstrap_servers=broker)
        admin.remove_group_members(name, [MemberToRemove(member_id=member_id)])
        admin.close()
        poll_until([m.consumer for m in others], lambda others=others: len(others[0].assigned) == 4)
        out.told.clear()
        poll_until([m.consumer for m in members], lambda out=out: out.told)
        settle(members, each=2)
    close(members)


def test_a_member_that_was_evicted_and_one_that_is_new_both_get_a_share_and_no_partition_is_without_an_owner(
    kafka, broker, topic
):
    """An evicted member of kafka-python claimed what it had lost. It was to give one of these up to the new member, had
    nothing to give up, and nobody asked for the rebalance that would have followed."""
    name = topic(partitions=5)
    members = [Member(kafka, name, name) for _ in range(2)]
    poll_until([m.consumer for m in members], lambda: sorted(len(m.assigned) for m in members) == [2, 3])
    out = max(members, key=lambda m: len(m.assigned))  # from which the new member gets its share
    member_id = out.consumer._kafka._coordinator.group_metadata().member_id
    admin = KafkaAdminClient(bootstrap_servers=broker)
    admin.remove_group_members(name, [MemberToRemove(member_id=member_id)])
    new = Member(kafka, name, name)

    def both_wait():
        found = admin.describe_groups([name])[name]
        return found["group_state"] == "PreparingRebalance" and len(found["members"]) == 3

    poll_until([out.consumer, new.consumer], both_wait)  # for the third, so that all three join together
    members.append(new)
    poll_until([m.consumer for m in members], lambda: sorted(len(m.assigned) for m in members) == [1, 2, 2])
    assert set().union(*(m.assigned for m in members)) == set(range(5))
    admin.close()
    close(members)


@pytest.mark.parametrize("another", [True, False])
def test_a_named_member_that_did_not_poll_for_too_long_does_not_take_its_name_back_from_another(kafka, topic, another):
    """As after a stop of the process for minutes; kafka-python forgets then who it was."""
    name = topic(partitions=2)
    stopped = Member(kafka, name, name, Membership("one"))
    poll_until([stopped.consumer], lambda: len(stopped.assigned) == 2)
    coordinator = stopped.consumer._kafka._coordinator
    limit, coordinator.heartbeat.config["max_poll_interval_ms"] = (
        coordinator.heartbeat.config["max_poll_interval_ms"],
        1,
    )
    poll_until([], lambda: coordinator._generation.generation_id < 0)
    coordinator.heartbeat.config["max_poll_interval_ms"] = limit
    stopped.told.clear()
    if another:
        newer = Member(kafka, name, name, Membership("one"))
        poll_until([newer.consumer], lambda: len(newer.assigned) == 2)
        with pytest.raises(InstanceFenced, match="another process has the name 'one'"):
            poll_until([stopped.consumer], lambda: False)
        newer.consumer.verify_instance()
        close([newer])
    else:
        poll_until([stopped.consumer], lambda: stopped.told and len(stopped.assigned) == 2)
    close([stopped])


def test_members_that_join_at_the_same_moment_all_get_their_share(kafka, topic):
    for _ in range(5):
        name = topic(partitions=4)
        members = [Member(kafka, name, name) for _ in range(2)]
        settled = threading.Event()

        def work(member, done=settled):
            while not done.is_set():
                member.consumer.poll(0.03, 500)

        threads = [threading.Thread(target=work, args=(member,)) for member in members]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + PATIENCE_S
        while (shares := sorted(len(m.assigned) for m in members)) != [2, 2] and time.monotonic() < deadline:
            time.sleep(0.01)
        settled.set()
        for thread in threads:
            thread.join()
        assert shares == [2, 2]
        close(members)


def test_a_first_join_that_kafka_forgot_with_its_own_restart_is_begun_again(kafka, topic, monkeypatch):
    """A Kafka that is killed during a join takes the id that it gave then for that of a replaced member."""
    name = topic(partitions=2)
    newcomer = Member(kafka, name, name, Membership("one"))
    coordinator = newcomer.consumer._kafka._coordinator
    join, refusals = coordinator.ensure_active_group_async, [errors.FencedInstanceIdError()] * 2

    async def forgetful(timeout_ms=None):
        if refusals:
            raise refusals.pop()
        return await join(timeout_ms=timeout_ms)

    monkeypatch.setattr(coordinator, "ensure_active_group_async", forgetful)
    poll_until([newcomer.consumer], lambda: len(newcomer.assigned) == 2)
    assert not refusals
    fill(kafka, name, 1, partition=0)
    drain(
        newcomer.consumer, 1
    )  # only a member whose join has ended reads; it is assigned its partitions a moment before
    refusals.append(errors.FencedInstanceIdError())  # now it has a place that another can have taken
    coordinator.request_rejoin()
    with pytest.raises(InstanceFenced):
        poll_until([newcomer.consumer], lambda: not refusals and not newcomer.assigned)
    close([newcomer])


def test_a_partition_that_the_group_has_just_taken_away_can_still_be_paused_and_resumed(kafka, topic):
    """The library takes partitions away in a thread of its own; the member hears of it in its next poll."""
    name = topic(partitions=2)
    member = Member(kafka, name, name)
    poll_until([member.consumer], lambda: len(member.assigned) == 2)
    library = member.consumer._kafka
    library._subscription.assign_from_subscribed([TopicPartition(name, 0)])  # as during a rebalance
    member.consumer.pause([0, 1])
    member.consumer.seek(1, 0)
    member.consumer.resume([0, 1])
    with pytest.raises(BrokerError):
        member.consumer.seek(2, 0)
    close([member])
