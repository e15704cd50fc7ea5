"""The starter: a forecaster without training."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.support.hostile_series import hostile
from tidecast.service.cli import main
from tidecast.service.model.session import Model
from tidecast.training.export.parity import Floats, fold, torch_step
from tidecast.training.model.starter import Starter, StarterShape

HOUR = 3_600_000
START = 1_767_225_600_000
QUANTILES = [0.05, 0.25, 0.5, 0.75, 0.95]


def starter(horizon: int = 24, targets: int = 1, others: int = 0, step_ms: int = HOUR) -> Starter:
    return Starter(
        StarterShape(
            targets=[f"t{i}" for i in range(targets)], others=[f"c{i}" for i in range(others)], step_ms=step_ms,
            horizon=horizon, quantiles=QUANTILES,
        )
    ).eval()  # fmt: skip


def run(model: Starter, x: Floats, step_ms: int = HOUR) -> Floats:
    """Forecasts [batch, steps, horizon, targets, quantiles] of x [batch, steps, features]."""
    ts = np.tile(START + np.arange(x.shape[1], dtype=np.int64) * step_ms, (len(x), 1))
    return fold(torch_step(model), model.initial_state().numpy(), x.astype(np.float32), ts)


def daily(steps: int, seed: int = 0, noise: float = 0.1, batch: int = 1) -> Floats:
    """[batch, steps, 1]: a daily wave and noise."""
    generator = np.random.default_rng(seed)
    wave = np.sin(2 * np.pi * np.arange(steps) / 24)
    return (wave[None] + noise * generator.normal(size=(batch, steps)))[..., None].astype(np.float32)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """One target, 24 hourly steps, as the command writes it."""
    out = tmp_path_factory.mktemp("starter")
    arguments = [
        "--step",
        "1h",
        "--features",
        "pressure,temp",
        "--target",
        "temp",
        "--horizon",
        "1d",
        "--out",
        str(out),
    ]
    assert main(["starter", *arguments]) == 0
    yield Model.load(out)


def test_the_first_forecast_is_the_first_reading_with_a_width():
    y = run(starter(), np.full((1, 1, 1), 20.0))[0, 0, :, 0]
    assert (y[:, 2] == 20).all()
    assert (y[:, 0] < 19.5).all() and (y[:, 4] > 20.5).all()


def test_before_the_first_reading_forecasts_are_finite():
    y = run(starter(2), np.full((1, 3, 1), np.nan))
    assert np.isfinite(y).all()


def test_a_daily_wave_is_learned_within_days():
    x = daily(20 * 24)
    y = run(starter(), x)[0, :, :, 0, 2]
    truth = x[0, :, 0]
    at = np.arange(10 * 24, 19 * 24)
    for lead in (1, 6, 24):
        error = np.abs(y[at, lead - 1] - truth[at + lead]).mean()
        assert error < 0.15  # the noise alone is 0.08, persistence 6 steps ahead 0.9


def test_later_readings_change_no_earlier_forecast():
    model, x = starter(6), daily(120)
    changed = x.copy()
    changed[:, 80:] = 50.0
    assert (run(model, x)[:, :80] == run(model, changed)[:, :80]).all()


def test_a_series_is_forecast_alike_at_any_size_and_level():
    model, x = starter(6), daily(150)
    y = run(model, x)[0, 5:]
    assert run(model, x * 1024)[0, 5:] / 1024 == pytest.approx(y, abs=1e-5)
    assert run(model, x + 1000)[0, 5:] - 1000 == pytest.approx(y, abs=2e-3)  # a float32 at 1,000 is 6e-5 fine


def test_a_target_is_forecast_as_if_it_were_alone():
    x = daily(100, batch=2)
    both = np.concatenate([x[:1], x[1:] + 5], axis=2)
    y = run(starter(4, targets=2), both)[0]
    assert y[:, :, 0] == pytest.approx(run(starter(4), both[..., :1])[0, :, :, 0], abs=1e-5)
    assert y[:, :, 1] == pytest.approx(run(starter(4), both[..., 1:])[0, :, :, 0], abs=1e-5)


def test_forecasts_do_not_depend_on_which_series_share_a_wave(served):
    x = np.concatenate([daily(80, batch=37), daily(80, seed=1, batch=37)], axis=2)
    x[np.random.default_rng(2).random(x.shape) < 0.1] = np.nan
    states = {n: np.tile(served.initial_state, (n, 1)) for n in (1, 3, 37)}
    for t in range(80):
        y = {}
        for n in states:
            y[n], states[n], _ = served.step(np.ascontiguousarray(x[:n, t]), np.full(n, START + t * HOUR), states[n])
        assert (y[37][:1] == y[1]).all() and (y[37][:3] == y[3]).all()
        assert (states[37][:1] == states[1]).all() and (states[37][:3] == states[3]).all()


def test_a_missing_value_is_replaced_by_its_own_forecast():
    model, x = starter(1), daily(200)
    known = run(model, x)
    x[0, 150] = np.nan
    hidden = run(model, x)
    assert (hidden[:, :150] == known[:, :150]).all()
    assert abs(hidden[0, 150, 0, 0, 2] - known[0, 150, 0, 0, 2]) < 0.2


def test_a_long_run_of_missing_values_stays_in_the_usual_range():
    x = daily(400)
    x[0, 200:] = np.nan
    y = run(starter(3), x)
    assert np.abs(y[..., 2]).max() < 3


@pytest.mark.slow
def test_a_million_hostile_steps_leave_every_forecast_finite_and_in_order(served):
    series, steps, quiet = 500, 2_000, 400
    x = hostile(series, steps, seed=5, quiet=quiet)
    state, late = np.tile(served.initial_state, (series, 1)), []
    for t in range(steps):
        readings = np.stack([x[:, t], np.full(series, np.nan, np.float32)], axis=1)
        y, state, _ = served.step(readings, np.full(series, START + t * HOUR), state)
        assert np.isfinite(y).all() and np.isfinite(state).all()
        assert (np.diff(y, axis=-1) >= 0).all()
        if t >= steps - 150:
            late.append(y[:, 0, 0, 3])
    error = np.abs(np.array(late[:-1]) - x[:, -149:].T)
    persistence = np.abs(np.diff(x[:, -150:], axis=1)).T
    ratio = np.median(error, axis=0) / np.median(persistence, axis=0)
    assert np.quantile(ratio, 0.9) < 1  # most series are forecast well again
    assert np.quantile(ratio, 0.99) < 3


def test_the_same_flags_give_the_same_file(served, tmp_path):
    arguments = ["--step", "1h", "--features", "pressure,temp", "--target", "temp", "--horizon", "24"]
    assert main(["starter", *arguments, "--out", str(tmp_path)]) == 0
    assert Model.load(tmp_path).sha256 == served.sha256


def test_the_directory_says_what_it_is_and_how_to_make_it_again(tmp_path, capsys):
    assert main(["starter", "--step", "1d", "--target", "a,b", "--horizon", "2", "--out", str(tmp_path)]) == 0
    assert "tidecast serve --model" in capsys.readouterr().out
    config = tomllib.loads((tmp_path / "config.toml").read_text())
    assert config["data"]["targets"] == ["a", "b"] and config["starter"]["horizon"] == 2
    assert (
        "tidecast starter --step 1d --features a,b --target a,b --horizon 2" in (tmp_path / "MODEL_CARD.md").read_text()
    )


def test_the_state_of_an_hourly_day_ahead_starter_is_small(served):
    assert served.spec.state_size <= 1_400


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--step", "0", "--target", "a"], "--step must be above 0"),
        (["--step", "1h", "--features", "b", "--target", "a"], "--target names what is not in --features: a"),
        (["--step", "1h", "--target", "a", "--horizon", "90min"], "90min, 1.5 steps"),
        (["--step", "1h", "--target", "a", "--horizon", "2000"], "1 to 1,000 whole steps"),
        (["--step", "1h", "--target", "a,a"], "names that differ"),
        (["--step", "1h", "--target", "ts"], "none of them ts"),
        (["--step", "1h", "--target", "a", "--quantiles", "0.5,0.1"], "ascending"),
        (["--step", "1h", "--target", "a", "--name", " "], "1 to 200 characters"),
    ],
)
def test_a_flag_that_cannot_be_used_is_refused(flags, said, tmp_path, capsys):
    assert main(["starter", *flags, "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("step_ms", [1_000, 60_000, 7 * 60_000, 6 * HOUR, 24 * HOUR, 7 * 24 * HOUR])
def test_any_step_has_its_seasons_or_none(step_ms):
    model = starter(10, step_ms=step_ms)
    with torch.no_grad():
        y = run(model, daily(60), step_ms)
    assert np.isfinite(y).all() and (np.diff(y, axis=-1) >= 0).all()
