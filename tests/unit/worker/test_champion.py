"""A worker whose shadows are compared and promoted: by a test, by a command, back again, and after a restart."""

import pytest

from tests.support.models import Variant, counting_model
from tests.support.world import Killed, Spy, World
from tidecast.service.broker.topics import DECISIONS_CONFIG
from tidecast.service.champion.decisions import Decision, DecisionReader, read_history, write_decision
from tidecast.service.champion.follower import DecisionFollower
from tidecast.service.champion.policy import ChampionPolicy
from tidecast.service.model.session import Model
from tidecast.service.model.spec import Diagnostic
from tidecast.service.state.offset_metadata import Committed

ENOUGH = 12 * 144 + 200  # readings of each of a few series


def scoring(column):
    """The counting model scores how many values were missing, and how many steps it has made: which is its error?"""
    return [
        Diagnostic(name, "absolute_error" if name == column else "surprise", "value", 1)
        for name in ("missing", "earlier")
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model whose error grows, one whose error does not, and one that is as bad as the first."""
    folder = tmp_path_factory.mktemp("models")
    return [
        Model.load(counting_model(folder / str(i), Variant(multiplier=31 + 2 * i), diagnostics=scoring(column)))
        for i, column in enumerate(("earlier", "missing", "earlier"))
    ]


class ChampionWorld(World):
    """Lives of a worker with shadows; the thread that follows the decisions does its work at each poll."""

    def __init__(self, model, *shadows, **settings):
        usual = {"promote": "auto", "promote_seconds": 0.0, "max_poll_records": 400}
        super().__init__(model, **usual | settings)
        self.shadows = shadows
        self.broker.create_topic("tidecast-decisions", 1, DECISIONS_CONFIG)

    def life(self, at_poll=lambda polls: None, spy=None, **options):
        reader = DecisionReader(self.broker, self.settings)
        follower = DecisionFollower(self.broker, self.settings)
        follower.look(reader)
        spy = spy or Spy()

        def polled():
            at_poll(spy.count("poll"))
            follower.look(reader)

        spy.on_poll = polled
        proxy = MetricsOfTheNext()
        policy = ChampionPolicy(self.settings, follower, proxy)
        worker = self.worker(spy, shadows=self.shadows, policy=policy, **options)
        proxy.metrics = self.metrics
        try:
            worker.run()
        except Killed:
            self.broker.groups.clear()  # its session times out; it does not leave
        return worker

    def command(self, to, was="", by="command"):
        write_decision(self.broker, self.settings, Decision(ts=1, group="tidecast", was=was, to=to, by=by))

    def answered_by(self):
        """partition -> the ids of the models that answered, in order, without repetitions."""
        found = {0: [], 1: []}
        for partition, _, forecast in self.forecasts():
            if found[partition][-1:] != [forecast["model"]]:
                found[partition].append(forecast["model"])
        return found

    def committed_models(self):
        consumer = self.broker.consumer(group="tidecast")
        consumer.assign("readings", {})
        return {Committed.parse(*known).model for known in consumer.committed([0, 1]).values()}

    def decisions(self):
        return [(each.decision.was, each.decision.to, each.decision.by)
                for each in read_history(self.broker, self.settings).decisions]  # fmt: skip


class MetricsOfTheNext:
    """A world makes the metrics with the worker."""

    def __getattr__(self, name):
        return getattr(self.metrics, name)


def test_a_better_shadow_takes_over_by_itself_and_stays_after_a_restart(models):
    worse, better, _ = models
    world = ChampionWorld(worse, better)
    world.send(0, ENOUGH, rubbish=False)
    world.life()
    assert world.decisions() == [(worse.spec.id, better.spec.id, "auto")]
    assert world.committed_models() == {better.spec.id}
    assert world.metric("promotions_total", by="auto") == 1
    world.send(ENOUGH, ENOUGH + 5, rubbish=False)
    world.life()
    assert world.answered_by() == {p: [worse.spec.id, better.spec.id] for p in range(2)}
    assert len(world.forecasts()) == 4 * (ENOUGH + 5)
    assert world.metric("promotions_total", by="auto") == 0


def test_a_shadow_that_is_as_bad_does_not_take_over(models):
    world = ChampionWorld(models[0], models[2])
    world.send(0, 2 * ENOUGH, rubbish=False)
    world.life()
    assert world.decisions() == []
    assert world.answered_by() == {p: [models[0].spec.id] for p in range(2)}


def test_without_auto_only_a_command_promotes_and_a_rollback_goes_back(models):
    worse, better, _ = models
    world = ChampionWorld(worse, better, promote="by-command")
    world.send(0, ENOUGH, rubbish=False)
    world.life()
    assert world.decisions() == []
    world.command(better.spec.id, was=worse.spec.id)
    world.send(ENOUGH, ENOUGH + 5, rubbish=False)
    world.life()
    world.command(worse.spec.id, was=better.spec.id, by="rollback")
    world.send(ENOUGH + 5, ENOUGH + 10, rubbish=False)
    world.life()
    ids = [worse.spec.id, better.spec.id, worse.spec.id]
    assert world.answered_by() == dict.fromkeys(range(2), ids)
    assert len(world.forecasts()) == 4 * (ENOUGH + 10)


def test_a_decision_while_it_runs_takes_effect_at_once_and_is_counted(models):
    worse, better, _ = models
    world = ChampionWorld(worse, better, promote="by-command", max_poll_records=8)
    world.send(0, 40, rubbish=False)

    def decide(polls):
        if polls == 8:
            world.command(better.spec.id, was=worse.spec.id)

    world.life(at_poll=decide)
    assert world.answered_by() == {p: [worse.spec.id, better.spec.id] for p in range(2)}
    assert len(world.forecasts()) == 4 * 40
    assert world.metric("promotions_total", by="command") == 1


def test_a_model_that_the_worker_does_not_run_is_said_once_counted_and_changes_nothing(models, caplog):
    worse, better, stranger = models
    world = ChampionWorld(worse, better, promote="by-command")
    world.command(stranger.spec.id)
    world.send(0, 40, rubbish=False)
    world.life()
    assert world.answered_by() == {p: [worse.spec.id] for p in range(2)}
    assert world.metric("ignored_decisions_total", reason="unknown_model") == 1
    assert caplog.text.count("a decision is ignored") == 1


class KilledAt(Spy):
    """As a spy, and killed at the nth time of a call, before or after it is done."""

    def __init__(self, call, nth, after):
        super().__init__()
        self.call, self.nth, self.after = call, nth, after

    def around(self, call, do):
        hit = call == self.call and self.count(call) + 1 == self.nth
        if hit and not self.after:
            raise Killed
        done = super().around(call, do)
        if hit:
            raise Killed
        return done


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("nth", range(6, 12))
@pytest.mark.parametrize("call", ["poll", "produce forecasts", "commit_transaction"])
def test_a_worker_killed_at_any_step_of_a_promotion_answers_each_reading_once_and_goes_not_back(
    models, call, nth, after
):
    worse, better, _ = models
    world = ChampionWorld(worse, better, promote="by-command", max_poll_records=8)
    world.send(0, 40, rubbish=False)

    def decide(polls):
        if polls == 8 and not world.decisions():
            world.command(better.spec.id, was=worse.spec.id)

    spy = KilledAt(call, nth, after)
    world.life(at_poll=decide, spy=spy)
    assert spy.count(call) >= nth - 1 + after, "it was killed there"
    world.life(at_poll=decide)
    assert world.answered_by() == {p: [worse.spec.id, better.spec.id] for p in range(2)}
    answered = [(key, forecast["ts"]) for _, key, forecast in world.forecasts()]
    assert len(answered) == len(set(answered)) == 4 * 40
    assert world.committed_models() == {better.spec.id}
