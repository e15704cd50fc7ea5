"""A whole forecaster as the trainer exports it: GRU-64, 48 past values, 5 steps ahead as 5 quantiles, calibration.

Only its scalers and its linear path are fitted, to a made-up daily wave; the recurrent weights are random, from a fixed
seed: what a step costs does not depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from tidecast.service.timestamps import format_time

HISTORY, HORIZON, QUANTILES = 48, 5, [0.1, 0.25, 0.5, 0.75, 0.9]
START_MS, STEP_MS, ROWS = 1_700_000_000_000 // 3_600_000 * 3_600_000, 3_600_000, 600


def readings(n: int, series: int, partitions: int) -> Iterator[tuple[int, bytes, bytes]]:
    """(partition, key, value): one series after the other, each an hour on from its last."""
    return (reading(i, series, partitions) for i in range(n))


def reading(i: int, series: int, partitions: int, features: int = 1) -> tuple[int, bytes, bytes]:
    """The i-th of them."""
    x = number(i // series, i % series)
    more = b"".join(b', "%s": %.6f' % (name.encode(), x + k) for k, name in enumerate(covariates(features)))
    value = b'{"ts": %d, "value": %.6f%s}' % (START_MS + i // series * STEP_MS, x, more)
    return i % series % partitions, b"sensor-%d" % (i % series), value


def covariates(features: int) -> list[str]:
    """The names of all features but "value"."""
    return [f"covariate-{k}" for k in range(1, features)]


def number(step: int, series: int = 0) -> float:
    """A daily wave that does not quite repeat itself."""
    return 20 + 5 * math.sin(math.tau * step / 24 + series) + math.sin(step * 1.7 + 3 * series)


def make(folder: Path, hidden: int = 64, history: int = HISTORY, horizon: int = HORIZON, features: int = 1) -> Path:
    """The model in `folder`; returns it."""
    import torch  # which whoever only wants the readings does not need

    from tidecast.training.config import Config, DataConfig, ModelConfig
    from tidecast.training.data.dataset import load_dataset
    from tidecast.training.export.export import build_graph, write
    from tidecast.training.fit.prepare import fit_linear_path, fit_scalers
    from tidecast.training.model.forecaster import Forecaster

    folder.mkdir(parents=True, exist_ok=True)
    data, more = folder / "wave.csv", covariates(features)
    rows = [
        ",".join([format_time(START_MS + i * STEP_MS), *(f"{number(i, k):.6f}" for k in range(features))])
        for i in range(ROWS)
    ]
    data.write_text("\n".join([",".join(["time", "value", *more]), *rows, ""]))
    config = Config(
        name="forecaster64",
        data=DataConfig(
            time="time",
            step="1h",
            targets=["value"],
            covariates=more,
            train_until=format_time(START_MS + ROWS * 7 // 10 * STEP_MS),
            validate_until=format_time(START_MS + ROWS * 8 // 10 * STEP_MS),
        ),
        model=ModelConfig(
            hidden=hidden,
            horizon=horizon,
            quantiles=QUANTILES,
            history=history,
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
