"""The anomaly score of a starter: what is an alarm, how often, and that the graph says what torch says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tidecast.service.cli import main
from tidecast.service.model.session import Model
from tidecast.training.export.parity import Floats, fold, torch_step
from tidecast.training.model.anomaly_score import QUIET, VIEWS, AnomalyScore
from tidecast.training.model.starter import Starter, StarterShape

MINUTE = 60_000
START = 1_767_225_600_000
WEEK = 2_016  # steps of five minutes


def scores(x: Floats, alarms_a_week: float = 1.0, missing: float = 0.0) -> Floats:
    """[steps, 2 + views, series] of x [steps, series], one value every five minutes."""
    model = AnomalyScore(alarms_a_week, 5 * MINUTE)
    state = {name: torch.zeros(rows, x.shape[1]) for name, rows in model.layout}
    there = np.random.default_rng(9).random(x.shape) >= missing
    out = []
    with torch.no_grad():
        for t, row in enumerate(x.astype(np.float32)):
            ts = torch.full((x.shape[1],), START + t * 5 * MINUTE)
            found, parts = model(torch.from_numpy(row)[None], torch.from_numpy(there[t])[None].float(), ts, state)
            state = dict(zip(state, parts, strict=True))
            out.append(found.numpy())
    return np.stack(out)


def noise(steps: int, series: int = 1, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=(steps, series))


def day(steps: int) -> Floats:
    return 10 * np.sin(2 * np.pi * np.arange(steps) / 288)[:, None]


def alarms(found: Floats) -> Floats:
    return found[:, 0] > 0


def test_a_value_far_outside_all_that_was_seen_is_an_alarm_and_says_on_which_side():
    for sign in (1, -1):
        x = noise(1_000)
        x[900] = sign * 30
        found = scores(x)
        assert alarms(found)[900].all()
        assert found[900, 1, 0] > 0.9
        value = found[900, 2 + VIEWS.index("value"), 0]
        assert np.sign(value) == sign


def test_the_views_parts_add_up_to_the_score():
    found = scores(noise(3_000, 8))
    parts, whole = np.nansum(np.abs(found[:, 2:]), axis=1), found[:, 1]
    assert (whole > 0).sum() > 20
    assert parts == pytest.approx(whole, abs=1e-5)


def test_a_value_that_is_usual_but_not_at_this_hour_is_an_alarm():
    x = day(6 * WEEK) + 0.3 * noise(6 * WEEK)
    x[-100:-88] = x[-100 - 144 : -88 - 144]  # an hour of the other half of the day
    assert alarms(scores(x))[-100:-80].any()


def test_noise_that_grows_is_an_alarm():
    x = noise(3_000)
    x[2_500:] *= 4
    assert alarms(scores(x))[2_500:2_600].any()


@pytest.mark.parametrize("asked", [1.0, 2.0])
@pytest.mark.parametrize("kind", ["white", "autocorrelated", "daily", "skewed"])
def test_a_steady_series_raises_about_as_many_alarms_as_were_asked_for_and_a_season_fewer(asked, kind):
    steps, series = 8 * WEEK, 20
    e = noise(steps, series)
    x = e
    if kind in ("autocorrelated", "daily"):
        x = np.zeros_like(e)
        for t in range(1, steps):
            x[t] = 0.95 * x[t - 1] + e[t]
        x = x if kind == "autocorrelated" else day(steps) + 0.3 * x
    if kind == "skewed":
        x = np.exp(e)
    weekly = alarms(scores(x, asked))[WEEK:].sum() / series / 7
    assert (0 if kind == "daily" else asked / 2) <= weekly <= asked * 2


def test_after_an_alarm_only_something_larger_is_one_for_a_while():
    x = noise(1_100)
    x[900:910] = 30
    found = alarms(scores(x))[900:910, 0]
    assert found[0]
    assert found.sum() == 1


def test_no_alarm_before_some_readings_were_seen():
    x = noise(int(QUIET))
    x[50] = 1e6
    assert not alarms(scores(x)).any()


def test_a_missing_value_changes_nothing_and_has_no_score():
    x = noise(600, 3)
    found = scores(x, missing=0.3)
    gone = np.random.default_rng(9).random(x.shape) < 0.3
    assert np.isnan(found.transpose(0, 2, 1)[gone]).all()
    assert np.isfinite(found[:, 1][~gone]).all()


def test_the_unit_of_the_values_does_not_matter():
    x = noise(2_000, 4)
    plain = scores(x)[:, 1]
    assert scores(1024 * x)[:, 1] == pytest.approx(plain, abs=1e-4)
    assert scores(x / 1024)[:, 1] == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 1e15, -1e15, 1e-20])
def test_hostile_values_give_scores_between_0_and_1(value):
    x = noise(400)
    x[200:300] = value
    found = scores(x)
    assert np.isfinite(found[:, 1]).all()
    assert ((found[:, 1] >= 0) & (found[:, 1] <= 1)).all()
    assert np.nanmax(np.abs(found[:, 2:])) <= 1


def test_the_written_starter_says_the_same_as_torch_and_forecasts_as_one_without(tmp_path):
    arguments = ["--step", "5min", "--target", "a,b", "--horizon", "2"]
    assert main(["starter", *arguments, "--alarm-rate", "1", "--out", str(tmp_path / "with")]) == 0
    served = Model.load(tmp_path / "with" / "model.onnx")
    shape = {
        "targets": ["a", "b"], "others": [], "step_ms": 5 * MINUTE, "horizon": 2, "quantiles": served.spec.quantiles,
    }  # fmt: skip
    model, without = (Starter(StarterShape(**shape, alarms_a_week=rate)).eval() for rate in (1.0, 0.0))
    x = noise(500, 6).reshape(500, 3, 2).transpose(1, 0, 2).astype(np.float32)
    x[:, 400] += 20
    ts = np.tile(START + 5 * MINUTE * np.arange(500, dtype=np.int64), (3, 1))
    plain = fold(torch_step(without), without.initial_state().numpy(), x, ts)
    assert (fold(torch_step(model), model.initial_state().numpy(), x, ts) == plain).all()

    names = [diagnostic.name for diagnostic in served.spec.diagnostics]
    state, mine = np.tile(served.initial_state, (3, 1)), model.initial_state().expand(3, -1)
    for t in range(500):
        _, state, score = served.step(np.ascontiguousarray(x[:, t]), ts[:, t], state)
        with torch.no_grad():
            _, mine, expected = model(torch.from_numpy(x[:, t]), torch.from_numpy(ts[:, t]), mine)
        at = slice(names.index("alarm_a"), None)
        assert np.allclose(score[:, at], expected.numpy()[:, at], atol=1e-4, equal_nan=True)
        if t == 400:
            assert (score[:, names.index("alarm_a")] == 1).all()
            assert (score[:, names.index("anomaly_value_b")] > 0).all()
    assert "--alarm-rate 1" in (tmp_path / "with" / "MODEL_CARD.md").read_text("utf-8")


@pytest.mark.parametrize("rate", ["-1", "nan", "2000"])
def test_a_rate_of_alarms_that_makes_no_sense_is_refused(rate, tmp_path, capsys):
    arguments = ["--step", "1h", "--target", "a", "--alarm-rate", rate, "--out", str(tmp_path)]
    assert main(["starter", *arguments]) == 2
    assert "--alarm-rate must be 0 to 1,000 alarms a week" in capsys.readouterr().err
