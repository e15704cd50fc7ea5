"""A worker that dies, or whose Kafka fails, between any two steps of a commit: every reading is answered once."""

import contextlib
import json
import threading

import msgspec
import pytest

from tests.support.models import START_MS, STEP_MS, CountingReference, counting_model
from tests.support.world import SERIES, Fault, Killed, Observer, World, linear
from tidecast.service.broker.port import Membership
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError, ChangelogError, Fenced, InstanceFenced, MemberEvicted
from tidecast.service.model.compatibility import layout_hash
from tidecast.service.model.session import Model
from tidecast.service.pipeline.pipeline import Pipeline
from tidecast.service.state.codec import Codec
from tidecast.service.worker import restore
from tidecast.service.worker.delivery import ExactlyOnce
from tidecast.service.worker.partition import Partition
from tidecast.service.worker.restore import Restore
from tidecast.service.worker.served_models import ServedModels

STEPS = ("begin", "produce forecasts", "produce dead-letters", "produce tidecast-state", "commit_transaction")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Model.load(counting_model(tmp_path_factory.mktemp("model")))


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


def test_with_a_backlog_the_next_readings_are_processed_while_a_commit_is_made_and_not_emitted_before_its_end(model):
    world, processed, seen = World(model), threading.Event(), []
    world.send(0, 10)

    class Slow(Fault):
        committing = False

        def around(self, call, do):
            assert not self.committing, f"{call} during a commit"
            if call != "commit_transaction" or threading.current_thread() is threading.main_thread():
                return do()
            self.committing = True
            seen.append(processed.wait(10))
            self.committing = False
            return do()

    process, commit = Pipeline.process, ExactlyOnce.commit

    def noted(self, batch):
        processed.set()
        return process(self, batch)

    def begun(self, *given, **more):
        processed.clear()  # here, as the thread that commits may begin after the next readings are processed
        return commit(self, *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pipeline, "process", noted)
        patch.setattr(ExactlyOnce, "commit", begun)
        world.live(Slow())
    assert seen and all(seen)
    world.check()


def test_a_worker_whose_name_another_has_taken_ends_with_an_error_and_the_newer_continues(model):
    world = World(model)
    world.send(0, 10)
    newer = world.broker.consumer(group="tidecast", membership=Membership("one"))

    class Taken(Fault):
        def around(self, call, do):
            if call == "commit_transaction" and newer is not None:
                newer.subscribe("readings", lambda new: None, lambda gone: None)
                newer.poll(0.0, 1)
                raise Fenced("another has taken the transactional id")
            return do()

    with pytest.raises(
        InstanceFenced, match=r"another process has the name 'one'.*joined later and continues.*name of its own"
    ):
        world.live(Taken(), idle=1_000)
    newer.verify_instance()  # the older one has not taken the name back
    newer.close()
    world.live()
    world.check()


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
    layout = layout_hash(model.spec).hex()
    text = f"s=20 f=1 l={layout} m={model.spec.id}"
    assert consumer.committed([0, 1]) == {0: (20, text), 1: (20, text)}


def restoring(world):
    partitions = {0: Partition(), 1: Partition()}
    models = ServedModels(world.settings, world.model, partitions, lambda: world.now)
    return partitions, Restore(world.broker, world.settings, partitions, models, lambda: world.now)


def test_partitions_that_leave_while_they_are_restored_are_forgotten_and_may_come_back(model, monkeypatch):
    monkeypatch.setattr(restore, "_BATCH", 1)
    world = World(model)
    world.send(0, 4)
    world.live()
    partitions, doing = restoring(world)
    consumer = _joined(world)
    assert doing.advance(consumer, 0.0) == {} and doing.remaining > 0
    partitions.clear()
    assert doing.advance(consumer, 0.0) == {} and doing.remaining == 0
    partitions[1] = Partition()
    found = {}
    while partitions[1].restoring:
        found |= doing.advance(consumer, 0.0)
    assert {number: (r.committed, r.series) for number, r in found.items()} == {1: (8, 2)}


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


def test_two_groups_on_one_changelog_are_distinguished(model):
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


def test_a_replay_range_that_retention_has_deleted_is_refused_and_can_be_accepted(model):
    world = World(model, changelog_seconds=3_600.0)
    world.send(0, 10)
    world.live(Fault("commit_transaction", 5, Killed()))
    # the kill has left a replay to do; now its range is gone
    consumer_class = type(world.broker.consumer())
    real = consumer_class.beginning_offsets

    def shortened(self, partitions):
        committed = world.broker.commits["tidecast", "readings"]
        return {p: (committed[p][0] if self._topic == "readings" else o) for p, o in real(self, partitions).items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(consumer_class, "beginning_offsets", shortened)
        with pytest.raises(BrokerError, match=r"retention has deleted.*accept-gap"):
            world.live()
        world.settings = msgspec.structs.replace(world.settings, accept_gap=True)
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


def test_a_zombie_that_restores_what_its_successor_has_changed_does_not_report_kafka_as_inconsistent(model):
    """It asks for the committed offset, the successor commits more, and then it reads the successor's states."""
    world = World(model)
    world.send(0, 4)
    world.live()
    partitions, doing = restoring(world)
    zombie = _joined(world)
    committed = zombie.committed
    earlier = [{number: (2, text) for number, (_, text) in committed({0, 1}).items()}]  # when it asks first
    zombie.committed = lambda asked: earlier.pop() if earlier else committed(asked)
    found = {}
    while any(partition.restoring for partition in partitions.values()):
        found |= doing.advance(zombie, 0.0)
    assert not earlier
    assert {number: r.committed for number, r in found.items()} == {0: 8, 1: 8}


def test_at_least_once_a_zombie_does_not_write_its_old_states_over_its_successor_s(model):
    world = World(model, delivery="at-least-once", instance="auto", changelog_seconds=3_600.0, max_poll_records=100)
    world.send(0, 4, rubbish=False)

    class Frozen(Observer):
        """Before its first commit, until others have its partitions and have left again."""

        thawed = False

        def around(self, call, do):
            if call == "commit" and not self.thawed:
                self.thawed = True
                group = world.broker.groups["tidecast", "readings"]
                group.members.clear()
                group.owner.clear()
                world.live()
                world.send(4, 10, rubbish=False)
                world.live()
            return do()

    frozen = Frozen()
    with contextlib.suppress(BrokerError):
        world.live(frozen)
    assert frozen.thawed
    world.send(10, 12, rubbish=False)
    world.live()
    reference = {key: CountingReference() for key in SERIES}
    assert len(list(linear(world.sent, reference))) == 48
    latest = {key: value for _, key, value, _ in world.read("tidecast-state")}
    codec = Codec(model.spec)
    assert {k: codec.decode(v).state.tolist() for k, v in latest.items()} == {k: reference[k].state for k in SERIES}


def test_a_worker_that_is_evicted_repeatedly_is_not_taken_for_one_whose_name_is_in_use(model):
    """As one that wakes from a long pause: until it polls its way back into the group, each commit is refused."""
    world = World(model)
    world.send(0, 10)
    left = [7]

    class Out(Fault):
        def around(self, call, do):
            if call == "commit_transaction" and left[0] > 0:
                left[0] -= 1
                raise MemberEvicted("committing offsets")
            return do()

    world.live(Out(), idle=200)
    assert left == [0]
    world.check()
