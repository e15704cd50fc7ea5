"""New York taxi passengers, five half hours ahead: what this project promises about accuracy, on real data.

The data may not be shipped; where the folder is not there the test says so.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tidecast.service import cli
from tidecast.training import train as pipeline
from tidecast.training.config import read_config

DATA = Path(__file__).parents[3] / "shared" / "data" / "nyc_taxi" / "nyc_taxi_dev.csv"

CONFIG = """
name = "nyc-taxi"
[data]
time = "timestamp"
step = "30min"
targets = ["passenger_count"]
train_until = "{train_until}"
validate_until = "{validate_until}"
[model]
horizon = 5
lags = ["1d", "7d"]
calendar = ["day", "week"]
[fit]
epochs = 4
"""


@pytest.mark.skipif(not DATA.exists(), reason="the taxi data is not at ../shared/data")
@pytest.mark.timeout(1200)
@pytest.mark.long
def test_taxi_forecasts_are_far_ahead_of_last_week_and_of_a_linear_autoregression(tmp_path):
    with DATA.open(newline="") as file:
        rows = list(csv.DictReader(file))
    times = [row["timestamp"].replace(" ", "T") + "Z" for row in rows]
    config_path = tmp_path / "taxi.toml"
    config_path.write_text(CONFIG.format(train_until=times[8000], validate_until=times[9000]))
    model = tmp_path / "model"
    model.mkdir()
    _, evaluation = pipeline.train(read_config(config_path), DATA, model, quiet=True)
    scores = evaluation.scores["passenger_count"]
    assert np.mean(scores["tidecast"].mae) < np.mean(scores["linear autoregression"].mae)

    # The same from outside: what `replay` writes, held against the file, by nothing of ours.
    out = tmp_path / "forecasts.jsonl"
    assert cli.main(["replay", "--model", str(model), "--data", str(DATA), "--out", str(out)]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == len(rows)
    assert {record["series"] for record in records} == {"nyc-taxi"}
    y = np.array([float(row["passenger_count"]) for row in rows])
    median = np.array([record["targets"]["passenger_count"]["p50"] for record in records])  # [rows, horizon]
    errors, naive = [], []
    for lead in range(1, 6):
        target = np.arange(9000, 10_000)
        errors.append(np.abs(median[target - lead, lead - 1] - y[target]).mean())
        naive.append(np.abs(y[target - 336] - y[target]).mean())
    np.testing.assert_allclose(errors, scores["tidecast"].mae, rtol=1e-3)
    assert np.mean(errors) <= 0.75 * np.mean(naive)
