"""Small configs and data for the trainer's tests: seconds, not minutes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from service.timestamps import format_time
from training.config import Config, read_config
from training.data import Dataset, load_dataset

START = 1_700_000_000_000 // 3_600_000 * 3_600_000
HOUR = 3_600_000

CONFIG = """
name = "daily"
[data]
path = "daily.csv"
time = "time"
step = "1h"
series = "sensor"
targets = ["load"]
covariates = ["heat"]
train_until = "{train_until}"
validate_until = "{validate_until}"
[model]
hidden = 8
horizon = 3
lags = ["1d"]
calendar = ["day"]
[fit]
window = 24
lanes = 4
epochs = 2
"""


def daily(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy daily wave that also follows `heat`: (load, heat)."""
    generator = np.random.default_rng(seed)
    heat = np.cumsum(generator.normal(0, 0.3, rows))
    heat -= heat.mean()
    load = 50 + 10 * np.sin(2 * np.pi * np.arange(rows) / 24) + 2 * np.roll(heat, 1) + generator.normal(0, 0.5, rows)
    return load, heat


@pytest.fixture(scope="session")
def daily_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sensors, 500 hours, with missing values, a short gap, a long gap and a duplicate; the config lies beside it."""
    directory = tmp_path_factory.mktemp("daily")
    rows = 500
    with (directory / "daily.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["time", "sensor", "load", "heat"])
        for n, sensor in enumerate(("a", "b")):
            load, heat = daily(rows, n)
            for i in range(rows):
                if sensor == "a" and i in (100, 101, 102):
                    continue  # a short gap
                if sensor == "b" and 200 <= i < 230:
                    continue  # a gap of more than a day
                value = "NA" if i % 37 == 5 else f"{load[i]:.3f}"
                writer.writerow([format_time(START + i * HOUR), sensor, value, f"{heat[i]:.3f}"])
                if sensor == "a" and i == 50:
                    writer.writerow([format_time(START + i * HOUR), sensor, "999", f"{heat[i]:.3f}"])
    text = CONFIG.format(train_until=format_time(START + 350 * HOUR), validate_until=format_time(START + 420 * HOUR))
    (directory / "daily.toml").write_text(text)
    return directory / "daily.csv"


@pytest.fixture(scope="session")
def config(daily_file: Path) -> Config:
    """The config beside the daily file."""
    return read_config(daily_file.with_suffix(".toml"))


@pytest.fixture(scope="session")
def dataset(config: Config, daily_file: Path) -> Dataset:
    """The daily file as stretches."""
    return load_dataset(config, daily_file)


@pytest.fixture
def changed(config: Config) -> Callable[..., Config]:
    """The config with some of [model] and [fit] changed: changed(model={"cell": "lstm"}, fit={"members": 2})."""

    def change(model: dict[str, object] | None = None, fit: dict[str, object] | None = None) -> Config:
        return msgspec.structs.replace(
            config,
            model=msgspec.structs.replace(config.model, **(model or {})),
            fit=msgspec.structs.replace(config.fit, **(fit or {})),
        )

    return change
