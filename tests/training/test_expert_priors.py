"""How soon the linear experts' errors are forgotten must follow the data, not a constant of ours."""

import numpy as np

from tidecast.training.config import read_config
from tidecast.training.data.dataset import load_dataset
from tidecast.training.fit.prepare import fit_linear_path, fit_scalers
from tidecast.training.fit.resolve_config import resolve_config
from tidecast.training.model.forecaster import Forecaster

HOURS = 3_000
START = np.datetime64("2023-01-01T00:00:00", "s")


CONFIG = """
name = "hours"
[data]
time = "time"
step = "1h"
targets = ["load"]
train_until = "2023-04-01T00:00:00Z"
validate_until = "2023-05-01T00:00:00Z"
[model]
horizon = 6
lags = ["1d"]
"""


def _rate(tmp_path, values) -> float:
    path = tmp_path / "series.csv"
    times = START + np.arange(len(values)) * np.timedelta64(1, "h")
    path.write_text("time,load\n" + "".join(f"{t}Z,{v:.5f}\n" for t, v in zip(times, values, strict=True)))
    (tmp_path / "hours.toml").write_text(CONFIG)
    config = read_config(tmp_path / "hours.toml")
    dataset = load_dataset(config, path)
    config = resolve_config(config, dataset)
    model = Forecaster(config)
    fit_scalers(model, dataset, config.train_until_ms)
    fit_linear_path(model, dataset, config)
    return float(model.experts.forgetting)


def test_a_series_that_changes_its_ways_is_judged_by_its_latest_errors(tmp_path):
    generator = np.random.default_rng(0)
    hours = np.arange(HOURS)
    steady = 50 + 10 * np.sin(2 * np.pi * hours / 24) + generator.normal(0, 3, HOURS)
    wandering = 50 + generator.normal(0, 1, HOURS).cumsum() * 0.8
    turns = (hours // 60) % 2 == 0  # every few days a daily wave, then a random walk
    changing = np.where(turns, 50 + 25 * np.sin(2 * np.pi * hours / 24), wandering)
    assert _rate(tmp_path, changing) > _rate(tmp_path, steady)
