"""Settings that a config leaves to the data: the units and the number of linear experts."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidecast.service.errors import UsageError
from tidecast.training.config import Config
from tidecast.training.data.dataset import Dataset
from tidecast.training.linear.expert_bank import expert_count

ORDERS_APART = 100.0  # times; ETT's channels, which share a size for this purpose, are 10 apart


def resolve_config(config: Config, dataset: Dataset) -> Config:
    """The config with the settings that the data decides: `model.scale` and `model.experts`.

    Raises:
        UsageError: the transform is log or sqrt, and a target has values without a logarithm or root.
    """
    config = choose_scale(config, dataset)
    _need_values_for(config.model.transform, config, dataset)
    if config.model.experts is None:
        series = len({s.series for s in dataset.stretches})
        count = 0 if config.step_ms == 0 else expert_count(series, config.lag_steps)
        config = msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, experts=count))
    return config


def _need_values_for(transform: str, config: Config, dataset: Dataset) -> None:
    if transform == "none":
        return
    for s in dataset.stretches:
        rows = s.x[s.ts < config.train_until_ms, : len(config.targets)]
        if (rows <= 0).any() if transform == "log" else (rows < 0).any():
            least = "above 0" if transform == "log" else "of at least 0"
            raise UsageError(
                f'model.transform = "{transform}" needs targets {least} in training rows; {s.series} has others',
                got=float(np.nanmin(rows)),
                do='Use "none", or leave that target out.',
            )


def choose_scale(config: Config, dataset: Dataset) -> Config:
    """Resolve `model.scale = "auto"`: local units where the series differ in size by orders of magnitude.

    Otherwise the size of a value is information, and is kept.
    """
    if config.model.scale != "auto":
        return config
    by_series: dict[str, list[NDArray[np.float32]]] = {}
    for s in dataset.stretches:
        by_series.setdefault(s.series, []).append(s.x[s.ts < config.train_until_ms, : len(config.targets)])
    sizes = []
    for parts in by_series.values():
        rows = np.concatenate(parts)
        if np.isfinite(rows).any(axis=0).all():
            sizes.append(np.nanstd(rows.astype(np.float64), axis=0))
    deviations = np.array(sizes).reshape(-1, len(config.targets))  # [series, targets]
    apart = deviations.max(axis=0) / np.maximum(deviations.min(axis=0), 1e-9) if len(deviations) else np.zeros(1)
    scale: Literal["local", "global"] = "local" if (apart > ORDERS_APART).any() else "global"
    return msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, scale=scale))
