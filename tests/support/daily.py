"""Two sensors with a daily wave, and all that is awkward in one file: missing values, gaps, a duplicate."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from tidecast.service.timestamps import format_time

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
adapt = "none"
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


def write_daily(directory: Path) -> Path:
    """Write daily.csv and daily.toml: 500 hours with missing values, a short gap, a long gap and a duplicate."""
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
