"""Small configs and data for the trainer's tests: seconds, not minutes."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx
import pytest
import torch

from tests.support.daily import write_daily
from tests.support.one_at_a_time import one_at_a_time
from tidecast.training.config import Config, read_config
from tidecast.training.data.dataset import Dataset, load_dataset
from tidecast.training.export.export import build_graph
from tidecast.training.fit.loop import History, fit
from tidecast.training.model.forecaster import Forecaster
from tidecast.training.progress import Progress

torch.set_num_threads(1)  # waiting threads spin: tests must not depend on a second core being free


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whichever test is first trains and exports the shared model: that takes minutes on a busy machine."""
    for item in items:
        if "fitted" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def daily_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The daily file; its config is in the same directory."""
    return write_daily(tmp_path_factory.mktemp("daily"))


@pytest.fixture(scope="session")
def config(daily_file: Path) -> Config:
    """The config next to the daily file."""
    return read_config(daily_file.with_suffix(".toml"))


@pytest.fixture(scope="session")
def dataset(config: Config, daily_file: Path) -> Dataset:
    """The daily file as stretches."""
    return load_dataset(config, daily_file)


@dataclass(frozen=True)
class Fitted:
    """A forecaster of the daily file. Tests share it: change only a copy of the model."""

    model: Forecaster
    history: History
    onnx_data: bytes

    def graph(self) -> onnx.ModelProto:
        """A new copy of the exported graph, without metadata."""
        return onnx.load_from_string(self.onnx_data)


@pytest.fixture(scope="session")
def fitted(config: Config, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory, testrun_uid: str) -> Fitted:
    """Trained and exported once in a test run, by the process that needs it first: an export takes many seconds."""
    path = tmp_path_factory.getbasetemp().parent / f"fitted-{testrun_uid}"
    with one_at_a_time(path.with_suffix(".lock")):
        if not path.exists():
            model, history = fit(config, dataset, Progress(quiet=True))
            path.write_bytes(pickle.dumps(Fitted(model, history, build_graph(model).SerializeToString())))
        return pickle.loads(path.read_bytes())


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
