"""Starters as the engine's benchmark runs them: hourly readings, one and 24 steps ahead."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import forecaster64


def make(folder: Path, horizon: int, alarms_a_week: float = 0.0) -> Path:
    """The model in `folder`; returns it."""
    from tidecast.training.starter import StarterConfig, make_starter  # torch: not where only readings are made

    folder.mkdir(parents=True, exist_ok=True)
    make_starter(StarterConfig(step_ms=3_600_000, features=["value"], targets=["value"], horizon=horizon,
                               alarms_a_week=alarms_a_week), folder)  # fmt: skip
    return folder


def job(horizon: int, alarms_a_week: float = 0.0) -> SimpleNamespace:
    """What `benchmarks/engine.py` calls a job."""
    return SimpleNamespace(
        make=partial(make, horizon=horizon, alarms_a_week=alarms_a_week),
        readings=forecaster64.readings,
        START_MS=forecaster64.START_MS,
    )
