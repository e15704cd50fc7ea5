"""Trained models that learn each series on while they are served."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from tests.training.conftest import Fitted
from tidecast.training import adapt
from tidecast.training.adapt import settle_adapt
from tidecast.training.config import Config
from tidecast.training.data.dataset import Dataset
from tidecast.training.export import parity
from tidecast.training.export.export import build_graph
from tidecast.training.export.parity import check_parity, fold, onnx_step
from tidecast.training.fit.resolve_config import resolve_config
from tidecast.training.model.forecaster import Forecaster

START = 1_767_225_600_000

pytestmark = pytest.mark.slow


def with_adapt(config: Config, choice: str) -> Config:
    return msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, adapt=choice))


@pytest.fixture(scope="module")
def online(fitted: Fitted, config: Config, dataset: Dataset) -> Forecaster:
    model = Forecaster(resolve_config(with_adapt(config, "online"), dataset))
    model.load_state_dict(fitted.model.state_dict())
    model.experts.assemble()
    return model.eval()


@pytest.fixture(scope="module")
def graph(online: Forecaster) -> bytes:
    return build_graph(online).SerializeToString()


def test_window_fold_and_onnxruntime_agree_on_a_model_that_learns_on(online, graph, dataset, monkeypatch):
    monkeypatch.setattr(parity, "STEPS", 200)  # a training compares 600
    check_parity(online, graph, dataset)


def test_another_pattern_is_learned_by_a_model_that_learns_on(online, graph, fitted):
    hours = np.arange(700)
    x = np.zeros((1, 700, len(online.targets) + len(online.covariates)), np.float32)
    x += (60 + 10 * np.sign(np.sin(2 * np.pi * hours / 24 * 3)))[None, :, None].astype(np.float32)
    ts = START + hours[None] * online.step_ms
    errors = {}
    for name, step, model in (
        ("still", onnx_step(fitted.onnx_data), fitted.model),
        ("online", onnx_step(graph), online),
    ):
        y = fold(step, model.initial_state().numpy(), x, ts)[0]
        middle = y[500:-1, 0, 0, model.calibration.center]
        errors[name] = np.nanmean(np.abs(middle - x[0, 501:, 0]))
    assert errors["online"] < errors["still"]


def test_auto_keeps_what_is_better_on_validation_rows_and_says_so(fitted, config, dataset):
    resolved = resolve_config(with_adapt(config, "auto"), dataset)
    model, settled, said = settle_adapt(fitted.model, resolved, dataset)
    assert settled.model.adapt in ("online", "none")
    assert (model.online is not None) == (settled.model.adapt == "online")
    assert "times the error" in said and ("does not learn on" in said) == (settled.model.adapt == "none")


def test_auto_leaves_out_what_would_make_the_state_too_large(fitted, config, dataset, monkeypatch):
    monkeypatch.setattr(adapt, "MOST_NUMBERS", 10)
    model, settled, said = settle_adapt(fitted.model, resolve_config(with_adapt(config, "auto"), dataset), dataset)
    assert model is fitted.model and settled.model.adapt == "none"
    assert "numbers more for each series" in said


def test_a_choice_of_the_user_is_kept(fitted, config, dataset):
    chosen = with_adapt(config, "none")
    assert settle_adapt(fitted.model, chosen, dataset) == (fitted.model, chosen, None)


def test_forecasts_of_a_model_that_learns_on_do_not_depend_on_the_batch(online, graph, dataset):
    step = onnx_step(graph)
    x = np.tile(dataset.stretches[0].x[None, :60], (8, 1, 1))
    ts = np.tile(dataset.stretches[0].ts[None, :60], (8, 1))
    initial = online.initial_state().numpy()
    assert (fold(step, initial, x, ts)[:4] == fold(step, initial, x[:4], ts[:4])).all()
