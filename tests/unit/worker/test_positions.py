"""What a worker has read and committed is compared with what Kafka has: after each rebalance, and every ten seconds."""

import pytest

from tests.support.models import counting_model
from tests.support.world import ObservedBroker, ObservedConsumer, Spy, World
from tidecast.service.broker.port import OutgoingBatch
from tidecast.service.errors import BrokerError, Rejected
from tidecast.service.model.session import Model

STORED = ("tidecast", "readings")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Model.load(counting_model(tmp_path_factory.mktemp("model")))


def fed(model, **settings):
    """Six readings of one series in partition 0, and a spy on a worker's calls."""
    world, spy = World(model, **settings), Spy()
    for step in range(6):
        world.reading(b"a", step, value=step)
    return world, spy


def test_readings_that_another_member_has_answered_meanwhile_are_not_answered_again(model):
    """A member that was evicted during a join, and believes that it kept its partition."""
    world, spy = fed(model)

    def answered_by_another():
        known = world.broker.commits.get(STORED, {})
        if spy.on_poll and 0 in known and known[0][0] == 6:
            spy.on_poll = None
            for step in (6, 7, 8):
                world.reading(b"a", step, value=step)
            known[0] = (8, known[0][1])
            world.observed.on_assigned(set())  # the new generation

    spy.on_poll = answered_by_another
    assert world.worker(spy, idle=60).run() == 0
    assert [f["ts"] for *_, f in world.forecasts()] == sorted({f["ts"] for *_, f in world.forecasts()})
    assert len(world.forecasts()) == 7, "steps 6 and 7 are the other member's"
    assert world.committed()[0][0] == 9
    assert world.metric("start_overs_total") == 1


def test_a_log_that_ends_before_what_was_read_ends_the_worker_with_the_command_that_helps(model):
    world, spy = fed(model)

    def emptied():
        if spy.on_poll and world.broker.commits.get(STORED, {}).get(0, (0,))[0] == 6:
            spy.on_poll = None
            log = world.broker.logs["readings"][0]
            for column in (log.keys, log.values, log.headers, log.timestamps):
                del column[2:]
            world.now += 11

    spy.on_poll = emptied
    with pytest.raises(BrokerError, match=r"readings-0 ends at offset 2, but was read up to 6.*--all"):
        world.worker(spy, idle=60).run()


def test_a_broker_that_has_just_started_and_does_not_know_the_topic_or_its_end_does_not_end_the_worker(model):
    world, spy = fed(model)
    worker = world.worker(spy, idle=400)
    answers = [Rejected("no such topic"), {0: 2, 1: 0}]
    plain = world.observed.consumer

    def forgetful(**options):
        consumer = plain(**options)
        known = consumer.end_offsets

        def ends(partitions):
            answer = answers.pop(0) if answers and world.committed()[0] else known(partitions)
            if isinstance(answer, Exception):
                raise answer
            return answer

        consumer.end_offsets = ends
        return consumer

    world.observed.consumer = forgetful
    assert worker.run() == 0
    assert not answers and len(world.forecasts()) == 6


def test_what_kafka_has_is_asked_for_every_ten_seconds_and_not_more(model):
    world, spy = fed(model)
    asked, worker = [], world.worker(spy, idle=500)  # of 0.2 s each
    plain = world.observed.consumer

    def counting(**options):
        consumer = plain(**options)
        committed = consumer.committed
        consumer.committed = lambda partitions: asked.append(world.now) or committed(partitions)
        return consumer

    world.observed.consumer = counting
    began = world.now
    assert worker.run() == 0
    assert 9 <= len(asked) <= 13, asked
    assert world.now - began > 90


def gaps(world, first, last):
    """Readings of one series, and before each of them a record that was never committed: readers skip its offset."""
    for step in range(first, last):
        producer, out = world.broker.producer(transactional_id="other"), OutgoingBatch("readings")
        out.append(b"x", b"{", partition=0)
        producer.begin()
        producer.produce(out)
        producer.end(commit=False)
        world.reading(b"a", step)


@pytest.mark.parametrize("lost", [False, True], ids=["only gaps", "lost records"])
def test_a_broker_that_has_just_started_and_does_not_know_the_topic_yet_ends_no_worker_and_hides_no_loss(model, lost):
    world = World(model, max_poll_records=1)
    gaps(world, 0, 12)
    worker, answers = world.worker(idle=20), []

    def beginning_offsets(partitions):
        if not partitions or not world.forecasts():
            return dict.fromkeys(partitions, 0)
        answers.append(len(answers) < 2)
        if answers[-1]:
            raise Rejected("asking for the offsets of readings: Kafka has no such topic")
        return dict.fromkeys(partitions, 1_000 if lost else 0)

    world.observed.consumer = lambda **options: _told(ObservedBroker.consumer(world.observed, **options))

    def _told(consumer):
        if isinstance(consumer, ObservedConsumer):
            consumer.beginning_offsets = beginning_offsets
        return consumer

    if lost:
        with pytest.raises(BrokerError, match="retention has deleted"):
            worker.run()
    else:
        assert worker.run() == 0
        assert len(world.forecasts()) == 12
    assert answers.count(True) == 2 and answers.count(False) > 0
