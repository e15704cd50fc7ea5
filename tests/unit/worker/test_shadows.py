"""Shadows step over the readings of the champion: nothing of theirs is lost or doubled, and nothing of its changes."""

import json

import pytest

from tests.support.models import (
    POISON_FORECAST,
    POISON_STATE,
    START_MS,
    STEP_MS,
    SUCCESSORS,
    counting_model,
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
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerError, ModelError
from tidecast.service.model.session import Model
from tidecast.service.worker.served_models import ServedModels


def test_the_champions_records_are_byte_for_byte_those_without_a_shadow(models, turned):
    worlds = []
    for shadows in ((), (models[SAME_LAYOUT], models[NEW_LAYOUT], turned)):
        world = World(models[OLD])
        world.send(0, 30)
        world.live(shadows=shadows)
        worlds.append(world)
    plain, shadowed = worlds
    for topic in ("forecasts", "dead-letters"):
        assert shadowed.read(topic) == plain.read(topic) != []
    plain.check()  # and without shadows the states are written as ever
    assert {value[0] for _, _, value, _ in plain.read("tidecast-state")} == {1}
    assert {value[0] for _, _, value, _ in shadowed.read("tidecast-state")} == {4}


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("nth", range(2, 10))
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", [Killed, lambda: BrokerError("no answer")], ids=["killed", "failing"])
def test_a_worker_that_ends_anywhere_leaves_the_states_of_all_models_as_if_each_had_run_alone(
    models, turned, error, step, nth, after
):
    world = World(models[OLD], changelog_seconds=0.1)
    shadows = models[NEW_LAYOUT], turned
    world.send(0, 20)
    world.live(Fault(step, nth, error(), after), shadows=shadows)
    world.send(20, 24)
    world.live(shadows=shadows)
    alone = Alone(models[OLD], OLD), Alone(models[NEW_LAYOUT], NEW_LAYOUT), Alone(turned, SUCCESSORS[3])
    judge(world, *alone)
    assert states(world, models[OLD], *shadows) == expected(*alone)


def test_a_shadow_that_is_added_begins_at_its_initial_state_and_all_others_continue_exactly(models, turned):
    world = World(models[OLD])
    world.send(0, 10, rubbish=False)
    world.live()
    world.send(10, 20, rubbish=False)
    world.live(shadows=[models[SAME_LAYOUT]])  # of the same layout, but its states are its own
    world.send(20, 30, rubbish=False)
    world.live(shadows=[turned, models[SAME_LAYOUT]])
    one, two, three = (
        Alone(models[OLD], OLD),
        Alone(models[SAME_LAYOUT], SAME_LAYOUT, 10),
        Alone(turned, SUCCESSORS[3], 20),
    )
    judge(world, one, two, three)
    assert states(world, models[OLD], turned, models[SAME_LAYOUT]) == expected(one, two, three)


def test_the_states_of_shadows_that_are_left_out_are_gone_and_those_of_the_others_stay(models, turned):
    world = World(models[OLD])
    world.send(0, 10, rubbish=False)
    world.live(shadows=[turned, models[NEW_LAYOUT]])
    world.send(10, 20, rubbish=False)
    world.live(shadows=[models[NEW_LAYOUT]])
    alone = Alone(models[OLD], OLD), Alone(models[NEW_LAYOUT], NEW_LAYOUT)
    judge(world, *alone)
    assert states(world, models[OLD], models[NEW_LAYOUT]) == expected(*alone)
    world.send(20, 24, rubbish=False)
    world.live()
    world.check()
    assert {c.members for c in committed(world).values()} == {()}
    last = {key: value for _, key, value, _ in world.read("tidecast-state")}
    assert {value[0] for value in last.values()} == {1}, "all are written again, in the form without shadows"


def test_a_restart_with_another_layout_of_the_model_keeps_the_states_of_the_shadows(models, turned, caplog):
    world = World(models[OLD])
    world.send(0, 10, rubbish=False)
    world.live(shadows=[turned])
    world.model = models[NEW_LAYOUT]
    world.send(10, 20, rubbish=False)
    world.live(shadows=[turned])
    alone = Alone(models[OLD], OLD), Alone(models[NEW_LAYOUT], NEW_LAYOUT, 10), Alone(turned, SUCCESSORS[3])
    told = judge(world, *alone)
    assert changed(told)[0] == [models[OLD].spec.id, models[NEW_LAYOUT].spec.id]
    assert states(world, models[NEW_LAYOUT], turned) == expected(*alone[1:])
    assert "the model begins at its initial state" in caplog.text


def test_where_no_model_has_states_all_of_them_replay_recent_readings(models, turned):
    world = World(models[OLD])
    world.send(0, 20, rubbish=False)
    world.live()
    world.model = models[NEW_LAYOUT]
    world.send(20, 24, rubbish=False)
    world.live(shadows=[turned])
    found = [f for _, _, f in world.forecasts() if f["model"] == models[NEW_LAYOUT].spec.id]
    assert len(found) == 4 * 4 and all(f["warm"] for f in found)
    told = states(world, models[NEW_LAYOUT], turned)
    assert {told[key][model.spec.id][1] for key in told for model in (models[NEW_LAYOUT], turned)} == {3 * 2 + 4}


def test_a_model_of_another_name_without_any_state_is_refused_as_without_shadows(models, tmp_path, turned):
    world = World(models[OLD])
    world.send(0, 5, rubbish=False)
    world.live()
    world.model = Model.load(counting_model(tmp_path, NEW_LAYOUT, name="another"))
    with pytest.raises(Exception, match=r"made by the model counting@.*tidecast state reset --all"):
        world.live(shadows=[turned])


@pytest.mark.parametrize("variant", [SAME_LAYOUT, NEW_LAYOUT], ids=["same layout", "new layout"])
@pytest.mark.parametrize("promoted", [False, True], ids=["answering", "as a shadow"])
def test_a_newer_file_of_the_model_takes_its_place_and_the_shadows_continue_exactly(models, turned, variant, promoted):
    world = World(models[OLD])
    world.send(0, 40, rubbish=False)
    policy = Decides((3, turned.spec.id)) if promoted else Decides()
    world.live(newer=models[variant], after=20, shadows=[turned], policy=policy)
    three = Alone(turned, SUCCESSORS[3])
    three.run(world.sent)
    told = {key: found[turned.spec.id] for key, found in states(world, models[variant], turned).items()}
    assert told == {key: found[turned.spec.id] for key, found in expected(three).items()}
    answered = {forecast["model"] for _, _, forecast in world.forecasts()}
    wanted = turned if promoted else models[variant]
    assert {c.model for c in committed(world).values()} == {wanted.spec.id}
    assert answered == {models[OLD].spec.id, wanted.spec.id}
    assert world.metric("model_swaps_total", outcome="done") == 1


def test_a_shadow_that_comes_while_readings_flow_changes_no_forecast_and_begins_with_recent_input(models, turned):
    worlds = []
    for joining in ((), (turned,)):
        world = World(models[OLD])
        world.send(0, 40, rubbish=False)
        world.live(newer=models[OLD] if joining else None, joining=joining, after=20)
        worlds.append(world)
    plain, joined = worlds
    assert joined.read("forecasts") == plain.read("forecasts") != []
    told = states(joined, models[OLD], turned)
    assert {key: found[models[OLD].spec.id] for key, found in told.items()} == {
        key: found[models[OLD].spec.id] for key, found in expected(Alone(models[OLD], OLD).run(joined.sent)).items()
    }
    begun = [expected(Alone(turned, SUCCESSORS[3], first).run(joined.sent)) for first in range(30)]
    for key, found in told.items():
        assert found[turned.spec.id][1] > 0, "it has met the series"
        assert found[turned.spec.id] in [since[key][turned.spec.id] for since in begun if key in since]


def test_a_shadow_that_is_published_as_the_model_answers_with_its_own_states(models, turned):
    world = World(models[OLD])
    world.send(0, 40, rubbish=False)
    world.live(newer=turned, after=20, shadows=[turned])
    told = judge(world, Alone(models[OLD], OLD), Alone(turned, SUCCESSORS[3]))
    assert changed(told) == {p: [models[OLD].spec.id, turned.spec.id] for p in (0, 1)}
    world.model = turned
    world.send(40, 44, rubbish=False)
    world.live(shadows=[turned])
    judge(world, Alone(models[OLD], OLD), Alone(turned, SUCCESSORS[3]))
    assert {value[0] for _, _, value, _ in world.read("tidecast-state")[-8:]} == {1}, "it is alone"


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("nth", range(4, 12))
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("variant", [SAME_LAYOUT, NEW_LAYOUT], ids=["same layout", "new layout"])
def test_a_newer_file_whose_hand_over_is_cut_short_anywhere_costs_the_shadows_nothing(
    models, turned, variant, step, nth, after
):
    world = World(models[OLD])
    world.send(0, 24, rubbish=False)
    world.live(Fault(step, nth, Killed(), after), newer=models[variant], after=8, shadows=[turned])
    world.model = models[variant]
    world.send(24, 30, rubbish=False)
    world.live(shadows=[turned], policy=Decides((4, turned.spec.id)))
    three = Alone(turned, SUCCESSORS[3]).run(world.sent)
    told = {key: found[turned.spec.id] for key, found in states(world, models[variant], turned).items()}
    assert told == {key: found[turned.spec.id] for key, found in expected(three).items()}
    answers = {(key, f["ts"]): f["targets"]["value"]["p50"] for _, key, f in world.forecasts()
               if f["model"] == turned.spec.id}  # fmt: skip
    assert answers and all(three.answers[place][0] == p50 for place, p50 in answers.items())
    assert len(world.forecasts()) == 30 * 4


@pytest.mark.parametrize("poison", [POISON_STATE, POISON_FORECAST], ids=["state", "forecast"])
def test_a_shadow_that_is_not_finite_starts_again_alone(models, turned, poison):
    """The first feature of `turned` is the wind."""
    values = []
    for shadows in ((), [turned]):
        world = World(models[OLD])
        for step in range(8):
            wind = poison if step == 4 else 1.0
            reading = {"ts": START_MS + step * STEP_MS, "value": 1, "wind": wind}
            world.send_value(b"a", json.dumps(reading).encode())
        world.live(shadows=shadows)
        values.append(world.read("forecasts"))
    assert values[0] == values[1] and len(values[0]) == 8
    assert world.read("dead-letters") == []
    assert world.metric("shadow_resets_total", model=turned.spec.id) == 1
    assert world.metric("resets_total", reason="non_finite") == 0
    told = states(world, models[OLD], turned)[b"a"]
    assert (told[models[OLD].spec.id][1], told[turned.spec.id][1]) == (8, 3)


def test_a_champion_that_is_not_finite_starts_again_and_its_shadows_continue(models, turned):
    world = World(models[OLD])
    for step in range(8):
        reading = {"ts": START_MS + step * STEP_MS, "value": POISON_STATE if step == 4 else 1, "wind": 1.0}
        world.send_value(b"a", json.dumps(reading).encode())
    world.live(shadows=[turned])
    assert len(world.read("forecasts")) == 7 and len(world.read("dead-letters")) == 1
    told = states(world, models[OLD], turned)[b"a"]
    assert (told[models[OLD].spec.id][1], told[turned.spec.id][1]) == (3, 8)
    assert [forecast["warm"] for _, _, forecast in world.forecasts()] == [False, False, True, True, False, False, True]


def test_a_feature_that_only_a_shadow_has_cannot_make_a_dead_letter(models, tmp_path):
    spec = {"features": ["value", "dew"], "name": "dewy"}
    dewy = Model.load(counting_model(tmp_path, SUCCESSORS[3], **spec))
    world, rows = World(models[OLD]), []
    for step, dew in enumerate((1.0, "wet", None, 4.0, 5.0)):
        row = {"ts": START_MS + step * STEP_MS, "value": 2, "wind": 3} | ({} if dew is None else {"dew": dew})
        world.send_value(b"a", json.dumps(row).encode())
        known = {name: value for name, value in row.items() if not isinstance(value, str)}
        rows.append((0, b"a", json.dumps(known).encode()))
    world.live(shadows=[dewy])
    assert len(world.read("forecasts")) == 5 and not world.read("dead-letters")
    world.sent = rows
    alone = [Alone(models[OLD], OLD), Alone(dewy, SUCCESSORS[3])]
    judge(world, *alone)
    assert states(world, models[OLD], dewy) == expected(*alone)


def test_the_memory_of_all_models_counts_for_how_many_series_are_kept(models, turned, caplog):
    caplog.set_level("INFO")
    for shadows in ([], [turned]):
        ServedModels(Settings(), models[OLD], {}, lambda: 0.0, shadows)
    alone, group = (record.bytes_per_series for record in caplog.records if "series are kept" in record.message)
    assert group - alone == 4 * (turned.spec.state_size + 2), "its state, and the steps of both"


def test_models_with_another_step_are_refused_with_what_to_do(models, tmp_path):
    hourly = Model.load(counting_model(tmp_path, name="hourly", step_ms=3_600_000))
    with pytest.raises(ModelError, match=r"the shadow hourly@.* has a step of 3600000 ms.*--group"):
        World(models[OLD]).worker(shadows=[hourly])


def test_with_a_table_a_shadow_cannot_have_features_that_the_model_lacks(models, tmp_path):
    table = tmp_path / "input.toml"
    table.write_text('[input]\ntime = "ts"\n')
    dewy = Model.load(counting_model(tmp_path, SUCCESSORS[3], features=["value", "dew"], name="dewy"))
    with pytest.raises(ModelError, match=r"has features that counting@.* has not: dew"):
        ServedModels(Settings(input=str(table)), models[OLD], {}, lambda: 0.0, [dewy])


def test_the_same_model_given_twice_runs_once(models):
    served = ServedModels(Settings(), models[OLD], {}, lambda: 0.0, [models[OLD]])
    assert served.members() == [(models[OLD].spec.id, "champion")]


def test_each_model_is_scored_under_its_name_and_shown_with_its_role(models, turned):
    world = World(models[OLD])
    world.send(0, 10, rubbish=False)
    decides = Decides((8, turned.spec.id))
    worker = world.live(shadows=[turned], policy=decides)
    for model in (models[OLD], turned):
        labels = {"model": model.spec.id, "target": "value", "horizon": "1"}
        assert world.metric("model_absolute_error_count", **labels) == 4 * 9, "the first has no earlier forecast"
    roles = {"counting": "shadow", "turned": "champion"}
    for model in (models[OLD], turned):
        labels = {"name": model.spec.name, "hash": model.spec.hash[:12], "role": roles[model.spec.name]}
        labels |= {"kind": "forecaster", "contract": "1"}
        assert world.metrics.registry.get_sample_value("tidecast_model_info", labels) == 1
    assert sum(len(batch.keys) for batch in decides.scored) == 40
    assert {batch.members[0].spec.id for batch in decides.scored} == {models[OLD].spec.id, turned.spec.id}
    assert worker.series("a") is None, "its partition was given back"


def test_the_page_of_a_series_has_the_state_of_each_model_by_name(models, turned):
    served = ServedModels(Settings(max_series=10), models[OLD], {}, lambda: 0.0, [turned])
    served.current.store.add(b"a", 0)
    found = served.series("a")
    assert found["model"] == models[OLD].spec.id and found["warm"] is False
    assert {name: told["role"] for name, told in found["models"].items()} == {
        models[OLD].spec.id: "champion", turned.spec.id: "shadow"
    }  # fmt: skip
    assert found["models"][models[OLD].spec.id]["state"] == {"count": [0], "missing": [0], "last": [0], "hash": [0]}
