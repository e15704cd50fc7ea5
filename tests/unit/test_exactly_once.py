"""A worker that dies, or whose Kafka fails, between any two steps of a commit: every reading is answered once."""

import dataclasses
import json
import math

import pytest

from service.broker.base import Outgoing
from service.broker.memory import MemoryBroker
from service.changelog import Codec
from service.errors import BrokerError, ChangelogError, Fenced
from service.messages import DeadLetterReason
from service.metrics import Metrics
from service.model import Model
from service.settings import Settings
from service.worker import Worker
from tests.models import OFFSETS, START_MS, STEP_MS, CountingReference, counting_model

SERIES = (b"a", b"b", b"c", b"d")
TOPICS = ("readings", "forecasts", "dead-letters", "tidecast-state")
STEPS = ("begin", "produce forecasts", "produce dead-letters", "produce tidecast-state", "commit_transaction")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Model.load(counting_model(tmp_path_factory.mktemp("model")))


class Killed(BaseException):
    """kill -9: nothing more of this process happens, not even an `except Exception`."""


class Fault:
    """Raises `error` at the `nth` time of a call, before or after it is done."""

    def __init__(self, call="", nth=1, error=None, after=False):
        self.call, self.left, self.error, self.after = call, nth, error, after

    def around(self, call, do):
        hit = False
        if call == self.call and self.error is not None:
            self.left -= 1
            hit = self.left == 0
        if hit and not self.after:
            raise self.error
        do()
        if hit:
            raise self.error


class FaultyBroker:
    def __init__(self, broker, fault):
        self.broker, self.fault, self.dead = broker, fault, False

    def __getattr__(self, name):
        return getattr(self.broker, name)

    def producer(self, **options):
        return FaultyProducer(self, self.broker.producer(**options))


class FaultyProducer:
    def __init__(self, faulty, inner):
        self.fault, self.inner = faulty.fault, inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def begin(self):
        self.fault.around("begin", self.inner.begin)

    def produce(self, outgoing):
        self.fault.around(f"produce {outgoing.topic}", lambda: self.inner.produce(outgoing))

    def commit_transaction(self, topic, offsets, consumer, timeout_s):
        self.fault.around("commit_transaction",
                          lambda: self.inner.commit_transaction(topic, offsets, consumer, timeout_s))  # fmt: skip


class World:
    """Topics with two partitions, and the readings in them."""

    def __init__(self, model, **settings):
        self.model, self.broker, self.now = model, MemoryBroker(), 1_000.0
        self.settings = Settings(**{"instance": "one", "max_poll_records": 3, "commit_interval_ms": 20} | settings)
        for topic in TOPICS:
            self.broker.create_topic(topic, 2, {"cleanup.policy": "compact"} if topic == "tidecast-state" else None)
        self.sent = []  # (partition, key, value)

    def send(self, first, last):
        producer, out = self.broker.producer(), Outgoing("readings")
        for step in range(first, last):
            for number, key in enumerate(SERIES):
                value = json.dumps({"ts": START_MS + step * STEP_MS, "value": number, "wind": step}).encode()
                value = b"{" if step % 5 == 4 and number == 1 else value
                out.append(key, value, partition=number % 2)
                self.sent.append((number % 2, key, value))
        producer.produce(out)

    def live(self, fault=None, idle=8, batches=10_000):
        """One life of a worker; ends when nothing more arrives, after so many batches, or it is killed."""
        broker = FaultyBroker(self.broker, fault or Fault())
        worker = Worker(self.settings, self.model, broker, Metrics(self.model.spec, list(DeadLetterReason)),
                        clock=lambda: self.now)  # fmt: skip
        worker.prepare()
        consumer, left = worker._consumer, [idle, batches]
        poll = consumer.poll

        def counted(timeout_s, max_records):
            batch = poll(0.0, max_records)
            self.now += 0.01 if len(batch) else max(timeout_s, 0.01)
            left[0] -= 0 if len(batch) or worker._restore.partitions else 1
            left[1] -= len(batch) > 0
            if left[0] <= 0 or left[1] <= 0:
                worker.stop()
            return batch

        consumer.poll = counted
        try:
            worker.run()
        except Killed:
            self.broker.groups.clear()  # its session times out; nobody says goodbye
        return worker

    def read(self, topic):
        consumer = self.broker.consumer()
        consumer.assign(topic, dict.fromkeys(range(2), 0))
        found = []
        while batch := consumer.poll(0.0, 1_000):
            found += zip(batch.partitions, batch.keys, batch.values, batch.headers, strict=True)
        return found

    def check(self):
        """One answer for each reading, in order, as the plain loop has it; and the changelog's states are its."""
        reference = {key: CountingReference() for key in SERIES}
        expected, rubbish = {p: [] for p in range(2)}, 0
        for partition, key, reading in linear(self.sent, reference):
            if reading is None:
                rubbish += 1
                continue
            p50 = [row[1] for row in (OFFSETS + (reference[key].hash + 3 * reference[key].count)).tolist()]
            expected[partition].append((key, reading["ts"], p50))
        found = {p: [] for p in range(2)}
        for partition, key, value, _ in self.read("forecasts"):
            told = json.loads(value)
            found[partition].append((key, told["ts"], told["targets"]["value"]["p50"]))
        assert found == expected
        assert len(self.read("dead-letters")) == rubbish
        codec, latest = Codec(self.model.spec), {}
        for _, key, value, _ in self.read("tidecast-state"):
            latest[key] = value
        assert {key: codec.decode(value).state.tolist() for key, value in latest.items()} == {
            key: reference[key].state for key in SERIES
        }


def linear(sent, reference):
    """Step the references over what was sent, filling gaps; yields (partition, key, reading or None for rubbish)."""
    last = {}
    for partition, key, value in sent:
        if value == b"{":
            yield partition, key, None
            continue
        reading = json.loads(value)
        for missing in range(last.get(key, reading["ts"]) + STEP_MS, reading["ts"], STEP_MS):
            reference[key].step((math.nan, math.nan), missing)
        last[key] = reading["ts"]
        reference[key].step((reading["value"], reading["wind"]), reading["ts"])
        yield partition, key, reading


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("nth", [1, 2, 5])
@pytest.mark.parametrize("step", STEPS)
def test_a_worker_killed_at_any_step_of_a_commit_leaves_no_trace(model, step, nth, after):
    world = World(model)
    world.send(0, 8)
    world.live(Fault(step, nth, Killed(), after))
    world.send(8, 10)
    world.live()
    world.check()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("nth", [1, 2, 5])
@pytest.mark.parametrize("step", STEPS)
def test_a_call_that_fails_at_any_step_of_a_commit_is_overcome_by_the_same_worker(model, step, nth, after):
    world = World(model)
    world.send(0, 10)
    world.live(Fault(step, nth, BrokerError("the broker was away"), after), idle=80)
    world.check()


def test_a_worker_whose_name_another_has_taken_ends_and_says_so(model):
    world = World(model)
    world.send(0, 10)
    always = Fault("commit_transaction", 3, Fenced("another has taken over"))
    always.around = lambda call, do: always_fenced(call, do, always.error)
    with pytest.raises(Fenced, match=r"fenced 5 times.*another process has the --instance 'one'.*name of its own"):
        world.live(always, idle=1_000)
    world.live()
    world.check()


def always_fenced(call, do, error):
    if call == "commit_transaction":
        raise error
    do()


def test_a_fenced_worker_starts_over_from_what_is_committed(model):
    world = World(model)
    world.send(0, 10)
    world.live(Fault("commit_transaction", 3, Fenced("another has taken over")), idle=80)
    world.check()


def test_a_clean_stop_leaves_nothing_to_replay(model):
    world = World(model, changelog_seconds=3_600.0)
    world.send(0, 10)
    world.live()
    consumer = world.broker.consumer(group="tidecast")
    consumer.subscribe("readings", lambda new: None, lambda gone: None)
    consumer.poll(0.0, 1)
    assert consumer.committed([0, 1]) == {0: (20, "s=20"), 1: (20, "s=20")}


def test_partitions_that_leave_while_they_are_restored_are_all_let_go(model):
    world = World(model)
    world.send(0, 4)
    world.live()
    worker = Worker(world.settings, model, world.broker, Metrics(model.spec, list(DeadLetterReason)))
    worker.prepare()
    restore = worker._restore
    restore.begin({0, 1})
    restore._ask(_joined(world))
    assert restore.partitions == {0, 1}
    restore.drop({0, 1})
    assert restore.partitions == set()


def _joined(world):
    consumer = world.broker.consumer(group="tidecast")
    consumer.subscribe("readings", lambda new: None, lambda gone: None)
    consumer.poll(0.0, 1)
    return consumer


def test_a_kafka_that_does_not_say_at_once_what_is_committed_is_asked_again(model):
    world = World(model)
    world.send(0, 4)
    world.live()
    world.send(4, 6)
    consumer_class, silent = type(world.broker.consumer()), [3]
    real = consumer_class.committed

    def slow(self, partitions):
        silent[0] -= 1
        if silent[0] >= 0:
            raise BrokerError("no answer")
        return real(self, partitions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(consumer_class, "committed", slow)
        world.live()
    world.check()


@pytest.mark.parametrize("batches", [1, 2, 3, 5])
def test_a_worker_that_is_stopped_in_the_middle_of_its_replay_leaves_the_rest_of_it_to_do(model, batches):
    world = World(model, changelog_seconds=3_600.0, max_poll_records=2)
    world.send(0, 12)
    world.live(Fault("commit_transaction", 8, Killed()))
    world.live(batches=batches)
    world.live(batches=batches)
    world.live()
    world.check()


def test_two_groups_on_one_changelog_are_told_apart(model):
    world = World(model)
    world.send(0, 2)
    world.live()
    world.settings = Settings(group="other", instance="two")
    with pytest.raises(ChangelogError, match=r"holds states of the group 'tidecast'.*changelog-topic"):
        world.live()


def test_states_without_committed_offsets_are_refused_with_what_to_do(model):
    world = World(model)
    world.send(0, 2)
    world.live()
    world.broker.commits.clear()
    with pytest.raises(BrokerError, match=r"no offset there.*state reset"):
        world.live()


def test_offsets_that_were_set_back_behind_the_states_are_refused_with_what_to_do(model):
    world = World(model)
    world.send(0, 4)
    world.live()
    world.broker.commits["tidecast", "readings"][0] = (3, "s=3")
    with pytest.raises(BrokerError, match=r"ahead of the group.*committed 3.*state reset"):
        world.live()


def test_a_replay_range_that_retention_has_eaten_is_refused_and_can_be_accepted(model):
    world = World(model, changelog_seconds=3_600.0)
    world.send(0, 10)
    world.live(Fault("commit_transaction", 5, Killed()))
    # the kill has left a replay to do; now its range is gone
    consumer_class = type(world.broker.consumer())
    real = consumer_class.beginning_offsets

    def eaten(self, partitions):
        committed = world.broker.commits["tidecast", "readings"]
        return {p: (committed[p][0] if self._topic == "readings" else o) for p, o in real(self, partitions).items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(consumer_class, "beginning_offsets", eaten)
        with pytest.raises(BrokerError, match=r"retention has eaten.*accept-gap"):
            world.live()
        world.settings = dataclasses.replace(world.settings, accept_gap=True)
        world.live()
    answered = [json.loads(value)["ts"] for _, key, value, _ in world.read("forecasts") if key == b"a"]
    assert answered == [START_MS + step * STEP_MS for step in range(10)], "what was not answered yet still is, once"


def test_at_least_once_repeats_no_step_of_a_state_that_was_written(model):
    world = World(model, delivery="at-least-once", changelog_seconds=0.1)
    world.send(0, 6)
    world.live(Fault("produce tidecast-state", 3, Killed(), after=True))
    world.live()
    codec, latest = Codec(model.spec), {}
    for _, key, value, _ in world.read("tidecast-state"):
        latest[key] = codec.decode(value).state.tolist()
    reference = {key: CountingReference() for key in SERIES}
    list(linear(world.sent, reference))
    assert latest == {key: reference[key].state for key in SERIES}
