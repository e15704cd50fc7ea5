"""Small configs and data for the trainer's tests: seconds, not minutes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from tests.support.daily import write_daily
from tidecast.training.config import Config, read_config
from tidecast.training.data.dataset import Dataset, load_dataset

torch.set_num_threads(1)  # waiting threads spin: tests must not depend on a second core being free


@pytest.fixture(scope="session")
def daily_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The daily file; its config lies beside it."""
    return write_daily(tmp_path_factory.mktemp("daily"))


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
