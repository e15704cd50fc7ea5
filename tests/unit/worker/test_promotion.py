"""A shadow becomes the champion, and back: once for each decision, in the commit that names it, and under kills."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from tests.support.models import (
    OFFSETS,
    SUCCESSORS,
    counting_graph,
    counting_spec,
    save,
)
from tests.support.shadowed import (
    NEW_LAYOUT,
    OLD,
    SAME_LAYOUT,
    STEPS,
    Alone,
    Decides,
    changed,
    committed,
    expected,
    judge,
    states,
)
from tests.support.world import Fault, Killed, World
from tidecast.service.model.session import Model
from tidecast.service.model.spec import Diagnostic


def test_series_that_send_nothing_are_written_again_too_so_that_a_third_start_has_them_right(models):
    """Otherwise a state of one model might be taken for that of another with the same layout."""
    world = World(models[OLD], changelog_seconds=0.1)
    world.send(0, 10, rubbish=False)
    world.live()
    world.live(shadows=[models[SAME_LAYOUT]], policy=Decides((1, models[SAME_LAYOUT].spec.id)), idle=40)
    assert {c.model for c in committed(world).values()} == {models[SAME_LAYOUT].spec.id}
    assert {c.origin for c in committed(world).values()} == {models[OLD].spec.hash[:12]}
    world.send(10, 14, rubbish=False)
    world.live(shadows=[models[SAME_LAYOUT]])
    one, two = Alone(models[OLD], OLD), Alone(models[SAME_LAYOUT], SAME_LAYOUT, 10)
    told = judge(world, one, two)
    assert changed(told)[0] == [models[OLD].spec.id, models[SAME_LAYOUT].spec.id]
    assert states(world, models[OLD], models[SAME_LAYOUT]) == expected(one, two)


def test_a_promotion_before_old_records_are_written_again_does_not_mix_up_whose_they_are(models):
    world = World(models[OLD], changelog_seconds=3_600.0)
    world.send(0, 10, rubbish=False)
    world.live()
    decides = Decides((1, models[SAME_LAYOUT].spec.id))
    world.send(10, 12, rubbish=False)
    world.live(Fault("commit_transaction", 3, Killed(), True), shadows=[models[SAME_LAYOUT]], policy=decides)
    world.live(shadows=[models[SAME_LAYOUT]])
    world.send(12, 14, rubbish=False)
    world.live(shadows=[models[SAME_LAYOUT]])
    one, two = Alone(models[OLD], OLD), Alone(models[SAME_LAYOUT], SAME_LAYOUT, 10)
    judge(world, one, two)
    assert states(world, models[OLD], models[SAME_LAYOUT]) == expected(one, two)


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
def test_a_shadow_that_is_promoted_answers_from_the_next_batch_on_and_a_rollback_is_the_same(models, turned, delivery):
    world = World(models[OLD], delivery=delivery)
    world.send(0, 40)
    old, new = models[OLD].spec.id, turned.spec.id
    decides = Decides((10, new), (25, old))
    world.live(shadows=[turned], policy=decides)
    alone = Alone(models[OLD], OLD), Alone(turned, SUCCESSORS[3])
    told = judge(world, *alone)
    assert changed(told) == {p: [old, new, old] for p in (0, 1)}
    assert [(to, set(was.values())) for to, was, _ in decides.took] == [(new, {old}), (old, {new})]
    assert states(world, models[OLD], turned) == expected(*alone)
    assert {(c.model, c.members) for c in committed(world).values()} == {
        (old, tuple(sorted((models[OLD].spec.hash[:12], turned.spec.hash[:12]))))
    }


def test_what_is_committed_says_who_answers_after_a_restart_and_not_the_order_of_the_flags(models, turned):
    world = World(models[OLD])
    world.send(0, 10, rubbish=False)
    world.live(shadows=[turned], policy=Decides((3, turned.spec.id)))
    world.send(10, 20, rubbish=False)
    world.live(shadows=[turned])
    world.model = turned
    world.send(20, 30, rubbish=False)
    world.live(shadows=[models[OLD]])
    told = judge(world, Alone(models[OLD], OLD), Alone(turned, SUCCESSORS[3]))
    assert changed(told) == {p: [models[OLD].spec.id, turned.spec.id] for p in (0, 1)}


def test_a_worker_that_has_not_heard_of_the_newest_decision_does_not_go_back_to_an_older_one(models, turned):
    world = World(models[OLD])
    world.send(0, 10, rubbish=False)
    world.live(shadows=[turned], policy=Decides((3, turned.spec.id), first=7))
    world.send(10, 20, rubbish=False)
    world.live(shadows=[turned], policy=Decides((1, models[OLD].spec.id), first=6))
    told = judge(world, Alone(models[OLD], OLD), Alone(turned, SUCCESSORS[3]))
    assert changed(told) == {p: [models[OLD].spec.id, turned.spec.id] for p in (0, 1)}
    world.send(20, 30, rubbish=False)
    world.live(shadows=[turned], policy=Decides((1, models[OLD].spec.id), first=8))
    assert {c.decision for c in committed(world).values()} == {8}
    assert {c.model for c in committed(world).values()} == {models[OLD].spec.id}


def test_a_model_that_comes_with_the_old_one_as_its_shadow_leaves_the_answers_to_it(models, turned):
    """So a new model can be added without a word about who answers; it is promoted once it is warm."""
    world = World(models[OLD])
    world.send(0, 10, rubbish=False)
    world.live()
    world.model = turned
    world.send(10, 20, rubbish=False)
    world.live(shadows=[models[OLD]])
    alone = Alone(models[OLD], OLD), Alone(turned, SUCCESSORS[3], 10)
    assert set(judge(world, *alone)[0]) == {models[OLD].spec.id}
    assert states(world, turned, models[OLD]) == expected(*alone)


def test_a_decision_that_is_older_than_the_one_in_force_is_said_to_change_nothing(models, turned, caplog):
    world = World(models[OLD])
    world.send(0, 10, rubbish=False)
    world.live(shadows=[turned], policy=Decides((3, turned.spec.id), first=7))
    world.live(shadows=[turned], policy=Decides((5, models[OLD].spec.id), first=0), idle=20)
    assert {c.model for c in committed(world).values()} == {turned.spec.id}
    assert "a newer decision is in force" in caplog.text


def test_an_idle_worker_commits_a_promotion_at_once(models):
    world = World(models[OLD])
    world.send(0, 10, rubbish=False)
    world.live(shadows=[models[NEW_LAYOUT]])
    world.live(shadows=[models[NEW_LAYOUT]], policy=Decides((5, models[NEW_LAYOUT].spec.id)), idle=30)
    assert {c.model for c in committed(world).values()} == {models[NEW_LAYOUT].spec.id}


def test_a_decision_about_a_model_that_does_not_run_is_ignored(models, caplog):
    world = World(models[OLD])
    world.send(0, 10, rubbish=False)
    decides = Decides((5, "another@000000000000"))
    world.live(shadows=[models[NEW_LAYOUT]], policy=decides)
    assert set(judge(world, Alone(models[OLD], OLD))[0]) == {models[OLD].spec.id}
    assert not decides.took and caplog.text.count("a decision is ignored") == 1


def test_a_champion_that_is_no_longer_served_leaves_the_answers_to_the_model_that_is(models, turned):
    world = World(models[OLD])
    world.send(0, 10, rubbish=False)
    world.live(shadows=[turned], policy=Decides((3, turned.spec.id)))
    world.send(10, 20, rubbish=False)
    world.live()
    told = judge(world, Alone(models[OLD], OLD), Alone(turned, SUCCESSORS[3]))
    assert changed(told) == {p: [models[OLD].spec.id, turned.spec.id, models[OLD].spec.id] for p in (0, 1)}


fortunes = st.sampled_from([(), (), *[(step, nth) for step in STEPS for nth in (1, 2, 3)]])


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 1)), max_size=2), fortunes, fortunes),
        min_size=1, max_size=5,
    ),
    st.sampled_from([0.1, 3_600.0]),
)  # fmt: skip
def test_models_are_promoted_and_workers_die_in_any_order_and_every_forecast_is_that_of_the_model_it_names(
    models, turned, story, seconds
):
    world, sent = World(models[OLD], changelog_seconds=seconds), 0
    ids = models[OLD].spec.id, turned.spec.id
    number = 0
    for decisions, fault, next_fault in story:
        said = sorted((after, ids[which]) for after, which in decisions)
        world.send(sent, sent + 6)
        world.live(Fault(*fault, Killed()) if fault else None, shadows=[turned], policy=Decides(*said, first=number))
        number += len(said)
        world.live(Fault(*next_fault, Killed()) if next_fault else None, shadows=[turned])
        world.send(sent + 6, sent + 8)
        world.live(shadows=[turned])
        sent += 8
    alone = Alone(models[OLD], OLD), Alone(turned, SUCCESSORS[3])
    told = judge(world, *alone)
    assert states(world, models[OLD], turned) == expected(*alone)
    decided = sum(len(decisions) for decisions, _, _ in story)
    assert all(len(names) <= decided + 1 for names in changed(told).values()), "it changes once for each decision"


@pytest.fixture
def shorter(tmp_path):
    """A model with one step ahead, one score, another warm-up, and a feature of its own."""
    graph = counting_graph(diagnostics=1, variant=SUCCESSORS[3])
    offsets = next(each for each in graph.graph.initializer if each.name == "offsets")
    offsets.CopyFrom(numpy_helper.from_array(OFFSETS[:1].reshape(1, 1, 1, -1), "offsets"))
    graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    spec = counting_spec(SUCCESSORS[3], name="shorter", horizon=1, warmup_steps=5, features=["wind", "dew"])
    test = msgspec.structs.replace(spec.self_test, y=spec.self_test.y[:3])
    scores = [Diagnostic("missing", "absolute_error", "value", 1)]
    return Model.load(save(tmp_path, graph, msgspec.structs.replace(spec, self_test=test, diagnostics=scores)))


def test_models_of_other_shapes_take_over_from_each_other(models, shorter):
    world = World(models[OLD])
    world.send(0, 30)
    decides = Decides((8, shorter.spec.id), (16, models[OLD].spec.id), (22, shorter.spec.id))
    world.live(shadows=[shorter], policy=decides)
    alone = Alone(models[OLD], OLD), Alone(shorter, SUCCESSORS[3])
    told = judge(world, *alone)
    assert {len(names) for names in changed(told).values()} == {4}
    assert states(world, models[OLD], shorter) == expected(*alone)
    for _, _, forecast in world.forecasts():
        own = forecast["model"] == shorter.spec.id
        assert len(forecast["targets"]["value"]["p90"]) == (1 if own else 2)
        assert forecast["score"].keys() <= ({"missing"} if own else {"missing", "earlier"})
    assert {tuple(each.scores.shape[1] for each in batch.members) for batch in decides.scored} == {(2, 1), (1, 2)}
