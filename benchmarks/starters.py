"""Starters as the engine's benchmark runs them: hourly readings, one and 24 steps ahead."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import forecaster64


def make(folder: Path, horizon: int) -> Path:
    """The model in `folder`; returns it."""
    from tidecast.training.starter import StarterConfig, make_starter  # torch: not where only readings are made

    folder.mkdir(parents=True, exist_ok=True)
    make_starter(StarterConfig(step_ms=3_600_000, features=["value"], targets=["value"], horizon=horizon), folder)
    return folder


def job(horizon: int) -> SimpleNamespace:
    """What `benchmarks/engine.py` calls a job."""
    return SimpleNamespace(
        make=partial(make, horizon=horizon), readings=forecaster64.readings, START_MS=forecaster64.START_MS
    )
