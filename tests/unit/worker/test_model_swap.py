"""A newer model takes over while readings flow: every reading is answered once, by the one or the other, and rightly.

What is right is what the chaos tests' verifier says, which knows nothing of the worker.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos.topics import Names
from tests.chaos.verifier import verify
from tests.support.models import SUCCESSORS, counting_model
from tests.support.shadowed import NEW_LAYOUT, OLD, SAME_LAYOUT, STEPS, committed
from tests.support.world import Fault, Killed, World
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError, ModelError
from tidecast.service.model.compatibility import check_successor
from tidecast.service.model.session import Model
from tidecast.service.worker.model_swap import warmup_readings


def judged(world, *models):
    """The report of a world in which these were published, in this order; nothing may be amiss in it."""
    report = verify(world.broker, models, Names("readings", "forecasts", "dead-letters", "tidecast-state"),
                    rtol=0, atol=0)  # fmt: skip
    assert report.ok, report
    return report


@pytest.mark.parametrize("variant", [SAME_LAYOUT, NEW_LAYOUT], ids=["same layout", "new layout"])
def test_a_newer_model_takes_over_while_readings_arrive_and_no_forecast_is_missing_or_doubled(models, variant):
    world = World(models[OLD])
    world.send(0, 40, rubbish=False)
    world.live(newer=models[variant], after=20)
    report = judged(world, models[OLD], models[variant])
    assert sum(report.hand_overs.values()) == 4, "each of the four series has changed over once"
    assert set(report.serving.values()) == {models[variant].spec.id}
    assert {c.model for c in committed(world).values()} == {models[variant].spec.id}


def test_series_are_warm_when_a_model_with_another_layout_takes_over(models):
    world = World(models[OLD])
    world.send(0, 60, rubbish=False)
    world.live(newer=models[NEW_LAYOUT], after=20)
    cold = [value for _, _, value, _ in world.read("forecasts") if b'"warm":false' in value]
    assert len(cold) == 2 * 4, "the first two readings of each series, and no others"


@pytest.mark.parametrize("variant", [SAME_LAYOUT, NEW_LAYOUT], ids=["same layout", "new layout"])
def test_an_idle_worker_hands_over_too(models, variant):
    world = World(models[OLD])
    world.send(0, 10, rubbish=False)
    world.live(idle=40)
    world.live(newer=models[variant], after=0)
    assert {c.model for c in committed(world).values()} == {models[variant].spec.id}
    world.model = models[variant]
    world.send(10, 14, rubbish=False)
    world.live()
    judged(world, models[OLD], models[variant])


def test_a_worker_without_any_series_yet_takes_the_newer_model_at_once(models):
    world = World(models[OLD])
    world.live(newer=models[NEW_LAYOUT])
    world.model = models[NEW_LAYOUT]
    world.send(0, 5, rubbish=False)
    world.live()
    assert judged(world, models[NEW_LAYOUT]).forecasts == 20


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("nth", range(4, 12))
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("variant", [SAME_LAYOUT, NEW_LAYOUT], ids=["same layout", "new layout"])
@pytest.mark.parametrize("error", [Killed, lambda: BrokerError("no answer")], ids=["killed", "failing"])
def test_a_hand_over_that_is_cut_short_anywhere_leaves_no_trace(models, error, variant, step, nth, after):
    world = World(models[OLD])
    world.send(0, 24, rubbish=False)
    world.live(Fault(step, nth, error(), after), newer=models[variant], after=8)
    world.model = models[variant]  # a worker that is started again finds the newer one
    world.send(24, 30, rubbish=False)
    world.live()
    judged(world, models[OLD], models[variant])


fortunes = st.sampled_from([(), (), *[(step, nth) for step in STEPS for nth in (1, 2, 3)]])


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from(SUCCESSORS), st.integers(0, 12), fortunes, fortunes), min_size=1, max_size=4),
    st.sampled_from([0.1, 3_600.0]),
)
def test_models_come_and_workers_die_in_any_order_and_every_reading_is_answered_once(models, story, seconds):
    """Each model comes to answer something in the end: of one that did not, its answers could not tell."""
    world = World(models[OLD], changelog_seconds=seconds)
    sent, published = 0, [models[OLD]]
    for variant, after, fault, next_fault in story:
        newer = models[variant] if models[variant] is not world.model else None
        world.send(sent, sent + 6, rubbish=False)
        world.live(Fault(*fault, Killed()) if fault else None, newer=newer, after=after)
        world.model = newer or world.model
        world.live(Fault(*next_fault, Killed()) if next_fault else None)
        world.send(sent + 6, sent + 8, rubbish=False)
        world.live()
        sent += 8
        published.append(world.model)
    judged(world, *dict.fromkeys(published))


def test_what_another_model_left_is_made_anew_at_a_restart_and_cleared_away(models):
    world = World(models[OLD])
    world.send(0, 20, rubbish=False)
    world.live()
    world.model = models[NEW_LAYOUT]
    world.send(20, 24, rubbish=False)
    world.live()
    judged(world, models[OLD], models[NEW_LAYOUT])


def test_a_worker_is_refused_the_states_of_a_model_with_another_name_and_layout(models, tmp_path):
    world = World(models[OLD])
    world.send(0, 5, rubbish=False)
    world.live()
    world.model = Model.load(counting_model(tmp_path, NEW_LAYOUT, name="another"))
    with pytest.raises(Exception, match=r"made by the model counting@.*tidecast state reset --all"):
        world.live()


def test_only_a_model_of_the_same_name_or_layout_may_follow(models, tmp_path):
    def named(variant, name):
        return Model.load(counting_model(tmp_path / f"{variant.longer}-{name}", variant, name=name)).spec

    check_successor(models[OLD].spec, models[NEW_LAYOUT].spec)
    check_successor(models[OLD].spec, named(SAME_LAYOUT, "another"))
    with pytest.raises(ModelError, match=r"cannot replace counting@.*Publish it as 'counting'"):
        check_successor(models[OLD].spec, named(NEW_LAYOUT, "another"))


def test_what_is_replayed_for_a_newer_model_grows_with_the_series_up_to_a_limit(models):
    spec = models[NEW_LAYOUT].spec
    assert warmup_readings(Settings(), spec, 100) == 2 * spec.warmup_steps * 100
    assert warmup_readings(Settings(swap_replay_readings=50), spec, 100) == 50
