"""The model itself: a window equals its folded steps, quantiles never cross, series never touch, time stays exact."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tidecast.service.errors import UsageError
from tidecast.training.config import check
from tidecast.training.export.export import build_graph
from tidecast.training.export.parity import fold, onnx_step, torch_step
from tidecast.training.fit.prepare import fit_linear_path, fit_scalers, prepare
from tidecast.training.fit.resolve_config import choose_scale, resolve_config
from tidecast.training.model.calendar import Calendar, slot_of
from tidecast.training.model.expert_mixture import ExpertMixture, error_of
from tidecast.training.model.forecaster import Forecaster

SHAPES = [
    pytest.param(
        {"cell": cell, "layers": layers, "scale": scale}, {"members": members}, id=f"{cell}-{layers}-{members}"
    )
    for cell, layers, members, scale in (
        ("gru", 1, 1, "local"),
        ("lstm", 2, 1, "global"),
        ("rnn", 2, 1, "local"),
        ("gru", 1, 2, "global"),
    )
]


def _wild(config, dataset) -> Forecaster:
    """A model with a fitted linear path and random weights, so that every part of it matters."""
    check(config)
    config = resolve_config(config, dataset)
    torch.manual_seed(0)
    model = Forecaster(config).eval()
    fit_scalers(model, dataset, config.train_until_ms)
    fit_linear_path(model, dataset, config)
    prepare(model, dataset, config, lambda done: None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
        model.calibration.factors.copy_(0.5 + torch.rand_like(model.calibration.factors) * 2)
    return model


def _readings(dataset, batch, steps, missing=0.15):
    generator = np.random.default_rng(5)
    stretch = dataset.stretches[0]
    at = generator.integers(0, len(stretch.ts) - steps, batch)[:, None] + np.arange(steps)
    x = stretch.x[at].copy()
    x[generator.random(x.shape) < missing] = np.nan
    return x, stretch.ts[at].copy()


def test_an_anomaly_score_is_added_and_changes_no_forecast(changed, dataset):
    plain, scored = (_wild(changed({"alarm_rate": rate}, {}), dataset) for rate in (0.0, 1.0))
    x, ts = _readings(dataset, 5, 200)
    x[:, 150] = 1e30
    window = scored.window(torch.from_numpy(x[:, :80]), torch.from_numpy(ts[:, :80])).detach().numpy()
    folded = fold(torch_step(scored), scored.initial_state().numpy(), x, ts)
    np.testing.assert_allclose(folded[:, :80], window, rtol=1e-4, atol=1e-4)
    assert (folded == fold(torch_step(plain), plain.initial_state().numpy(), x, ts)).all()

    names = [diagnostic.name for diagnostic in scored.diagnostics]
    alarm = names.index("alarm_" + scored.calibration.targets[0])
    own, exported = torch_step(scored), onnx_step(build_graph(scored).SerializeToString())
    mine = served = np.tile(scored.initial_state().numpy(), (5, 1))
    for t in range(200):
        now = np.ascontiguousarray(x[:, t]), np.ascontiguousarray(ts[:, t])
        _, mine, expected = own(*now, mine)
        _, served, score = exported(*now, served)
        np.testing.assert_allclose(score[:, alarm:], expected[:, alarm:], rtol=1e-3, atol=1e-4)
        assert t != 150 or (score[:, alarm] == 1).all()


@pytest.mark.parametrize(("model", "fit"), SHAPES)
def test_a_window_equals_its_folded_steps(changed, dataset, model, fit):
    forecaster = _wild(changed(model, fit), dataset)
    x, ts = _readings(dataset, 5, 80)
    with torch.no_grad():
        window = forecaster.window(torch.from_numpy(x), torch.from_numpy(ts)).numpy()
    folded = fold(torch_step(forecaster), forecaster.initial_state().numpy(), x, ts)
    np.testing.assert_allclose(folded, window, rtol=1e-4, atol=1e-4)


def test_quantiles_ascend_whatever_the_weights_and_readings(changed, dataset):
    forecaster = _wild(changed(), dataset)
    x, ts = _readings(dataset, 8, 40)
    x[0] *= 1e20
    x[1] = np.nan
    y = fold(torch_step(forecaster), forecaster.initial_state().numpy(), x, ts)
    assert np.isfinite(y).all()
    assert (np.diff(y, axis=-1) >= 0).all()


def test_a_missing_value_in_one_series_leaves_the_others_bit_equal(changed, dataset):
    forecaster = _wild(changed(), dataset)
    x, ts = _readings(dataset, 6, 30, missing=0)
    whole = fold(torch_step(forecaster), forecaster.initial_state().numpy(), x, ts)
    x[2, 5:] = np.nan
    holed = fold(torch_step(forecaster), forecaster.initial_state().numpy(), x, ts)
    others = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(whole[others], holed[others])
    assert not np.array_equal(whole[2], holed[2])


def test_a_state_stays_finite_through_a_long_outage(changed, dataset):
    forecaster = _wild(changed(), dataset)
    x, ts = _readings(dataset, 2, 30)
    step, state = torch_step(forecaster), np.tile(forecaster.initial_state().numpy(), (2, 1))
    for t in range(600):
        now = x[:, t] if t < 30 else np.full_like(x[:, 0], np.nan)
        y, state, _ = step(now, ts[:, 0] + t * 3_600_000, state)
    assert np.isfinite(state).all()
    assert np.isfinite(y).all()


def test_the_score_is_the_error_of_what_was_forecast_then(changed, dataset):
    forecaster = _wild(changed(), dataset)
    x, ts = _readings(dataset, 1, 30, missing=0)
    x = np.nan_to_num(x, nan=50.0)
    step, state = torch_step(forecaster), forecaster.initial_state().numpy()[None]
    ys, scores = [], []
    for t in range(30):
        y, state, score = step(x[:, t], ts[:, t], state)
        ys.append(y[0])
        scores.append(score[0])
    names = [d.name for d in forecaster.diagnostics]
    for h in (1, 3):
        column = names.index(f"absolute_error_load_{h}")
        assert all(np.isnan(scores[t][column]) for t in range(h))
        for t in range(h, 30):
            expected = abs(x[0, t, 0] - ys[t - h][h - 1, 0, forecaster.calibration.center])
            np.testing.assert_allclose(scores[t][column], expected, rtol=1e-3, atol=1e-3)
            inside = ys[t - h][h - 1, 0, 0] <= x[0, t, 0] <= ys[t - h][h - 1, 0, -1]
            assert scores[t][names.index(f"inside_load_{h}")] == inside
            naive = abs(x[0, t, 0] - x[0, t - h, 0])
            np.testing.assert_allclose(scores[t][names.index(f"naive_error_load_{h}")], naive, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("transform", ["none", "sqrt", "log"])
def test_in_local_units_a_series_a_thousand_times_as_large_is_forecast_alike(changed, dataset, transform):
    forecaster = _wild(changed({"scale": "local", "transform": transform}), dataset)
    forecaster.units.low.fill_(-1e9)
    forecaster.units.high.fill_(1e9)
    x, ts = _readings(dataset, 3, 80, missing=0.05)
    x[:, 0] = np.nan_to_num(x[:, 0], nan=30.0)  # before its first value nothing tells how large a series is
    step, initial = torch_step(forecaster), forecaster.initial_state().numpy()
    y = fold(step, initial, x, ts)
    x[:, :, 0] *= 1000
    np.testing.assert_allclose(fold(step, initial, x, ts), 1000 * y, rtol=1e-2, atol=50)


def test_a_value_beyond_the_trained_range_is_said_to_have_been_clipped(changed, dataset):
    forecaster = _wild(changed(), dataset)
    names = [d.name for d in forecaster.diagnostics]
    step, state = torch_step(forecaster), forecaster.initial_state().numpy()[None]
    ts = np.array([1_700_000_000_000])
    said = [
        step(np.array([[value, 0.0]], np.float32), ts, state)[2][0, names.index("clipped_load")]
        for value in (50.0, 1e9, -1e9, np.nan)
    ]
    np.testing.assert_array_equal(said, [np.nan, 1.0, 1.0, np.nan])


def test_a_series_on_which_the_recurrent_path_fails_is_forecast_by_the_linear_one(changed, dataset):
    forecaster = _wild(changed({"horizon": 1, "score_horizons": [1]}), dataset)
    with torch.no_grad():  # a recurrent path that says ten deviations too much, always
        forecaster.heads[0].last.weight.zero_()
        forecaster.heads[0].last.bias.fill_(10.0)
    x, ts = _readings(dataset, 1, 300, missing=0)
    x = np.nan_to_num(x, nan=50.0)
    y = fold(torch_step(forecaster), forecaster.initial_state().numpy(), x, ts)[
        0, :, 0, 0, forecaster.calibration.center
    ]
    forecaster.calibration.share = lambda errors: torch.ones(1, 1)
    wrong = fold(torch_step(forecaster), forecaster.initial_state().numpy(), x, ts)[
        0, :, 0, 0, forecaster.calibration.center
    ]
    error, unweighed = abs(y[:-1] - x[0, 1:, 0]), abs(wrong[:-1] - x[0, 1:, 0])
    assert error[100:].mean() < 0.5 * unweighed[100:].mean()


def test_intervals_widen_until_they_hold_what_they_say_when_the_noise_grows(changed, dataset):
    forecaster = _wild(changed({"interval_adaptation": 0.05, "horizon": 1, "score_horizons": [1]}), dataset)
    with torch.no_grad():  # the linear path with its spread, as a fitted model would have it
        forecaster.heads[0].last.weight.zero_()
        forecaster.heads[0].last.bias.fill_(-0.5)
        forecaster.calibration.factors.fill_(1.0)
    generator = np.random.default_rng(3)
    steps = 1500
    hours = np.arange(steps)
    load = 50 + 10 * np.sin(2 * np.pi * hours / 24) + generator.normal(0, 1, steps) * np.where(hours > 700, 3.0, 1.0)
    x = np.stack([load, np.zeros(steps)], axis=1)[None].astype(np.float32)
    ts = (1_700_000_000_000 + hours * 3_600_000)[None]
    held = {}
    for adaptation in (0.0, 0.05):
        forecaster.calibration.adaptation = adaptation
        y = fold(torch_step(forecaster), forecaster.initial_state().numpy(), x, ts)[0, :-1, 0, 0]  # [steps, quantiles]
        inside = (load[1:] >= y[:, 0]) & (load[1:] <= y[:, -1])
        held[adaptation] = inside[900:].mean()
    assert held[0.05] == pytest.approx(0.9, abs=0.03)
    assert abs(held[0.0] - 0.9) > 0.03, "the test shows nothing: the intervals were right by themselves"


def test_the_scale_is_local_only_where_series_differ_by_orders_of_magnitude(changed, dataset):
    import copy

    assert choose_scale(changed(), dataset).model.scale == "global"
    other = copy.deepcopy(dataset)
    for stretch in other.stretches:
        if stretch.series == "b":
            stretch.x[:, 0] *= 1000
    assert choose_scale(changed(), other).model.scale == "local"
    assert choose_scale(changed({"scale": "global"}), other).model.scale == "global"


def test_slots_of_the_week_are_exact_to_the_millisecond():
    week, slot = 604_800_000, 300_000
    edges = torch.arange(0, week, slot, dtype=torch.int64)
    assert torch.equal(slot_of(edges, slot), torch.arange(len(edges)))
    assert torch.equal(slot_of(edges + slot - 1, slot), torch.arange(len(edges)))


def test_scalers_and_the_linear_path_never_see_test_rows(changed, dataset, config):
    import copy

    other = copy.deepcopy(dataset)
    for stretch in other.stretches:
        stretch.x[stretch.ts >= config.validate_until_ms] *= 100
    one, two = _wild(changed(), dataset), _wild(changed(), other)
    for (name, a), (_, b) in zip(one.named_buffers(), two.named_buffers(), strict=True):
        if name != "calibration":  # random in this test
            assert torch.equal(a, b), name


def test_the_state_is_named_without_holes(changed):
    forecaster = Forecaster(changed(model={"cell": "lstm"}, fit={"members": 2}))
    at = 0
    for part in forecaster.slices:
        assert part.start == at
        at += int(np.prod(part.shape))
    assert at == forecaster.state_size


def test_a_linear_expert_that_turns_out_better_takes_over_in_the_series_that_needs_it(changed, dataset):
    experts = ExpertMixture(3, horizon=2, targets=1, covariates=0, history=4, picks=[], calendar=Calendar([], 1000, 2))
    age, errors = torch.full((1, 2), 10.0), experts.prior[..., None].expand(-1, -1, 2)
    said = torch.tensor([1.0, 2.0, 3.0])[:, None, None, None].expand(-1, 2, 1, 2)
    truth = torch.tensor([2.0, 3.0]).expand(2, 1, 2)  # the second expert is right, then the third
    assert experts.mix(said, errors).flatten().tolist() == pytest.approx([2.0] * 4)
    for _ in range(200):
        errors, age = experts.review(errors, error_of(said, truth), age), age + 1
    assert experts.mix(said, errors).flatten().tolist() == pytest.approx([2.0, 3.0, 2.0, 3.0], abs=0.01)


def test_a_model_of_logarithms_never_forecasts_below_zero(changed, dataset):
    forecaster = _wild(changed({"transform": "log"}), dataset)
    x, ts = _readings(dataset, 4, 60)
    x[1, 20:, 0] = -5.0
    y = fold(torch_step(forecaster), forecaster.initial_state().numpy(), x, ts)
    assert np.isfinite(y).all() and (y > 0).all()


def test_logarithms_of_what_is_not_above_zero_are_refused(changed, dataset):
    lower = [dataclasses.replace(s, x=s.x - 1000) for s in dataset.stretches]
    below = dataclasses.replace(dataset, stretches=lower)
    with pytest.raises(UsageError, match="above 0"):
        resolve_config(changed({"transform": "log"}), below)
