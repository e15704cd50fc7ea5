"""A group of models steps as each of them would alone."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest

from tests.support.models import START_MS, STEP_MS, SUCCESSORS, counting_model
from tidecast.service.errors import ModelError
from tidecast.service.model.group import ModelGroup, check_group
from tidecast.service.model.session import Model

ROWS = 7


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [Model.load(counting_model(folder / str(i), v)) for i, v in enumerate(SUCCESSORS[:3])]


def steps_of(group, count=4, champion=0):
    """y, states and scores after so many steps of random readings; states of the group."""
    rng, state = np.random.default_rng(0), np.tile(group.initial_state, (ROWS, 1))
    for step in range(count):
        x = rng.integers(0, 50, (ROWS, 2)).astype(np.float32)
        ts = np.full(ROWS, START_MS + step * STEP_MS)
        y, state, score = group.step(champion, x, ts, state)
    return y, state, score


@pytest.mark.parametrize("champion", range(3))
def test_each_member_has_the_results_that_it_has_alone(models, champion):
    group = ModelGroup(models)
    y, state, score = steps_of(group, champion=champion)
    for nth, model in enumerate(group.members):
        own_y, own_state, own_score = steps_of(ModelGroup([model]))
        if nth == champion:
            assert y.tobytes() == own_y.tobytes()
        assert np.ascontiguousarray(state[:, group.layout.slices[nth]]).tobytes() == own_state.tobytes()
        assert np.array_equal(score[:, group.scores[nth]], own_score, equal_nan=True)
        assert group.warm(nth, score).all() and state[:, group.layout.steps_at[nth]].tolist() == [4.0] * ROWS


class Failing:
    """A model whose runtime fails."""

    def __init__(self, model):
        self.spec, self.initial_state = model.spec, model.initial_state

    def step(self, x, ts, state):
        raise ModelError("the model failed in a step", got="out of memory")


def test_a_shadow_that_fails_in_a_step_starts_again_and_the_champion_answers(models, caplog):
    caplog.set_level(logging.ERROR)
    group = ModelGroup([models[0], Failing(models[2])])
    shadow = group.index(models[2].spec.id)
    y, state, score = steps_of(group, champion=1 - shadow)
    assert y.tobytes() == steps_of(ModelGroup([models[0]]))[0].tobytes()
    assert (state[:, group.layout.slices[shadow]] == models[2].initial_state).all()
    assert not group.warm(shadow, score).any() and np.isnan(score[:, group.scores[shadow]]).all()
    assert group.take_resets() == {models[2].spec.id: 4 * ROWS} and group.take_resets() == {}
    assert len(caplog.records) == 1, "it is said once"
    with pytest.raises(ModelError, match="failed in a step"):
        steps_of(group, champion=shadow)


def test_the_order_in_which_models_are_given_changes_nothing_but_who_was_asked_for(models):
    one, two = ModelGroup(models), ModelGroup(models[::-1])
    assert one.specs == two.specs and one.layout.members == two.layout.members
    assert [one.specs[one.asked], two.specs[two.asked]] == [models[0].spec, models[2].spec]
    assert len(ModelGroup([models[0], models[1], models[0]]).members) == 2


def test_too_many_or_other_kinds_of_models_are_refused(models):
    spec = models[0].spec
    with pytest.raises(ModelError, match="at most 15 shadows"):
        check_group([spec] * 17)
    other = SimpleNamespace(step_ms=spec.step_ms, kind="classifier", id="other@0")
    with pytest.raises(ModelError, match="the shadow other@0 is a classifier"):
        check_group([spec, other])
