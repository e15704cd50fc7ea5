"""A whole forecaster as the trainer exports it: GRU-64, 48 past values, 5 steps ahead as 5 quantiles, calibration.

Only its scalers and its linear path are fitted, to a made-up daily wave; the recurrent weights are random, from a fixed
seed: what a step costs does not depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch

from service.timestamps import format_time
from training.config import Config, DataConfig, ModelConfig
from training.data import load_dataset
from training.export import build_graph, write
from training.forecaster import Forecaster
from training.prepare import fit_linear_path, fit_scalers

HISTORY, HORIZON, QUANTILES = 48, 5, [0.1, 0.25, 0.5, 0.75, 0.9]
START_MS, STEP_MS, ROWS = 1_700_000_000_000 // 3_600_000 * 3_600_000, 3_600_000, 600


def readings(n: int, series: int, partitions: int) -> Iterator[tuple[int, bytes, bytes]]:
    """(partition, key, value): one series after the other, each an hour on from its last."""
    for i in range(n):
        value = b'{"ts": %d, "value": %.6f}' % (START_MS + i // series * STEP_MS, number(i // series, i % series))
        yield i % series % partitions, b"sensor-%d" % (i % series), value


def number(step: int, series: int = 0) -> float:
    """A daily wave that does not quite repeat itself."""
    return 20 + 5 * math.sin(math.tau * step / 24 + series) + math.sin(step * 1.7 + 3 * series)


def make(folder: Path) -> Path:
    """The model in `folder`; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "wave.csv"
    rows = [f"{format_time(START_MS + i * STEP_MS)},{number(i):.6f}" for i in range(ROWS)]
    data.write_text("time,value\n" + "\n".join(rows) + "\n")
    config = Config(
        name="forecaster64",
        data=DataConfig(
            time="time",
            step="1h",
            targets=["value"],
            train_until=format_time(START_MS + ROWS * 7 // 10 * STEP_MS),
            validate_until=format_time(START_MS + ROWS * 8 // 10 * STEP_MS),
        ),
        model=ModelConfig(
            hidden=64,
            horizon=HORIZON,
            quantiles=QUANTILES,
            history=HISTORY,
            calendar=["day"],
            scale="global",
            experts=0,
        ),
    )
    torch.manual_seed(0)
    dataset = load_dataset(config, data)
    model = Forecaster(config)
    fit_scalers(model, dataset, config.train_until_ms)
    fit_linear_path(model, dataset, config)
    model.eval()
    write(build_graph(model), model, config, dataset, {}, folder / "model.onnx")
    return folder
