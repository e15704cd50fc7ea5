"""One file, three ways: through a real Kafka and a worker, through `tidecast replay`, and through a plain torch loop.

The forecasts of every reading agree, so state is carried across polls, batches and waves as the model means it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.daily import write_daily
from tests.support.serving import serving
from tidecast.service import cli
from tidecast.service.datafiles.table import read_table
from tidecast.training.config import Config, read_config
from tidecast.training.data.dataset import load_dataset
from tidecast.training.export.export import build_graph, write
from tidecast.training.fit.loop import fit
from tidecast.training.model.forecaster import Forecaster
from tidecast.training.progress import Progress

Forecasts = dict[tuple[str, int], np.ndarray]  # (series, ts) -> [horizon, quantiles]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path, Path, Forecaster]:
    """(config, data, model directory, the torch module)."""
    data = write_daily(tmp_path_factory.mktemp("same"))
    config = read_config(data.with_suffix(".toml"))
    dataset = load_dataset(config, data)
    model, _ = fit(config, dataset, Progress(quiet=True))
    directory = data.parent / "model"
    directory.mkdir()
    write(build_graph(model), model, config, dataset, {}, directory / "model.onnx")
    (directory / "config.toml").write_text(data.with_suffix(".toml").read_text())
    return config, data, directory, model


def torch_loop(config: Config, data: Path, model: Forecaster) -> Forecasts:
    """The plainest way: one series after another, one step at a time, in torch."""
    names = [f"p{100 * q:g}" for q in model.quantiles]
    assert names[3] == "p50"
    out: Forecasts = {}
    for stretch in load_dataset(config, data).stretches:
        state = model.initial_state()[None]
        for t in range(len(stretch.ts)):
            with torch.no_grad():
                x, ts = torch.from_numpy(stretch.x[t : t + 1]), torch.from_numpy(stretch.ts[t : t + 1])
                y, state, _ = model(x, ts, state)
            if stretch.rows[t] >= 0:
                out[stretch.series, int(stretch.ts[t])] = y[0, :, 0].numpy()
    return out


def as_arrays(series: str, record: dict) -> tuple[tuple[str, int], np.ndarray]:
    return (series, record["ts"]), np.array(list(record["targets"]["load"].values())).T


def same(one: Forecasts, other: Forecasts) -> None:
    assert one.keys() == other.keys()
    for at in one:
        np.testing.assert_allclose(one[at], other[at], rtol=1e-4, err_msg=str(at))


def test_kafka_replay_and_torch_forecast_the_same_for_every_reading(trained, topics):
    config, data, directory, model = trained
    expected = torch_loop(config, data, model)
    assert len(expected) == len(read_table(data, config.columns)) - 1  # one reading is a duplicate

    out = data.parent / "forecasts.jsonl"
    assert cli.main(["replay", "--model", str(directory), "--data", str(data), "--out", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    replayed = dict(as_arrays(line["series"], line) for line in lines)
    same(replayed, expected)

    t = topics(partitions=2)
    flags = ["--bootstrap-servers", t.bootstrap_servers, "--input-topic", t.readings]
    with serving("--model", directory, "--max-poll-records=37", *t.flags) as worker:
        assert cli.main(["produce", "file", str(data), "--model", str(directory), "--speed", "max", *flags]) == 0
        found = t.read(t.forecasts, len(expected))
        code, log = worker.end()
    assert code == 0, log
    streamed = dict(as_arrays(key.decode(), json.loads(value)) for _, key, value, _ in found)
    assert len(streamed) == len(found)
    same(streamed, expected)
    order = [json.loads(value)["ts"] for _, key, value, _ in found if key == b"a"]
    assert order == sorted(order)
    warm = {(line["series"], line["ts"]): line["warm"] for line in lines}
    streamed_warm = {(key.decode(), json.loads(value)["ts"]): json.loads(value)["warm"] for _, key, value, _ in found}
    assert warm == streamed_warm
    assert {True, False} == set(warm.values())


def test_replay_writes_in_the_order_of_the_file(trained, capsys):
    config, data, directory, _ = trained
    assert cli.main(["replay", "--model", str(directory), "--data", str(data), "--out", "-"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    table = read_table(data, config.columns)
    in_file = list(zip(table.series, table.ts.tolist(), strict=True))
    assert [(line["series"], line["ts"]) for line in lines] == list(dict.fromkeys(in_file))
