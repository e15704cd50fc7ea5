"""No graph leaves the trainer unless it equals the model; what leaves carries nothing of this machine."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch

from tidecast.service.errors import ModelError
from tidecast.service.model.session import Model
from tidecast.training import train as pipeline
from tidecast.training.commands import evaluate as evaluate_command
from tidecast.training.export.export import write
from tidecast.training.export.parity import STEPS, check_parity, fold, onnx_step, sequences, torch_step


def test_the_three_ways_to_run_the_model_agree(fitted, dataset):
    results = check_parity(fitted.model, fitted.onnx_data, dataset)
    assert [r.batch for r in results] == [1, 64]
    assert all(r.steps >= 500 for r in results)


def test_a_graph_that_differs_from_the_model_is_refused(fitted, dataset):
    wrong = fitted.graph()
    for tensor in wrong.graph.initializer:  # all large ones: of two paths one may hardly count
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.raw_data) > 1000:
            tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * np.float32(1.01)).tobytes()
    with pytest.raises(ModelError, match="No model was written"):
        check_parity(fitted.model, wrong.SerializeToString(), dataset)


def test_the_file_loads_as_the_worker_loads_it(fitted, config, dataset, tmp_path):
    model = fitted.model
    spec = write(fitted.graph(), model, config, dataset, {"load.mae": 1.0}, tmp_path / "model.onnx")
    served = Model.load(tmp_path)
    assert served.spec == spec
    x, ts = sequences(model, dataset, 3, seed=1)
    ours = fold(torch_step(model), model.initial_state().numpy(), x, ts)
    theirs = fold(served.step, served.initial_state, x, ts)
    assert ours.shape == (3, STEPS, 3, 1, 7)
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-3)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_file_that_the_worker_would_refuse_is_not_written(fitted, config, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("tidecast.training.export.export.content_hash", lambda data: "0" * 64)
    with pytest.raises(ModelError):
        write(fitted.graph(), fitted.model, config, dataset, {}, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_this_machine_is_in_the_graph(fitted):
    data = fitted.onnx_data
    for trace in (b"/root", b"/home", b"/tmp", b".py", b'File "', b"site-packages"):
        assert trace not in data
    assert torch.__version__.encode() not in data.split(b"pytorch")[0]


def test_only_batch_is_dynamic_and_only_standard_operators_are_used(fitted):
    graph = fitted.graph()
    assert [o.domain for o in graph.opset_import] == [""]
    assert not graph.functions
    assert not [n for n in graph.graph.node if n.op_type in ("Loop", "Scan", "If")]
    for value in [*graph.graph.input, *graph.graph.output]:
        dims = value.type.tensor_type.shape.dim
        assert dims[0].dim_param
        assert all(d.dim_value for d in dims[1:])


def test_the_limits_that_the_card_names_are_those_at_which_the_graph_clips(fitted):
    model = fitted.model
    ((_, high), _) = model.units.limits().numpy()
    step = onnx_step(fitted.onnx_data)
    ts, state = np.zeros(4, np.int64), np.tile(model.initial_state().numpy(), (4, 1))
    x = np.array([[high, 0], [high * 5, 0], [high * 1000, 0], [high * 0.9, 0]], np.float32)
    y = step(x, ts, state)[0]
    np.testing.assert_allclose(y[1:3], y[[0, 0]], rtol=1e-4)
    assert abs(y[3] / y[0] - 1).max() > 0.01


def test_a_model_directory_holds_all_that_the_readme_says(fitted, config, daily_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "fit", lambda *args: (fitted.model, fitted.history))
    monkeypatch.setattr(pipeline, "build_graph", lambda model: fitted.graph())
    spec, evaluation = pipeline.train(config, daily_file, tmp_path, quiet=True)
    printed = capsys.readouterr().out
    assert "persistence" in printed
    assert "linear autoregression" in printed
    for name in ("model.onnx", "MODEL_CARD.md", "metrics.json", "config.toml"):
        assert (tmp_path / name).stat().st_size > 0
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {"forecast.png", "error_by_lead.png", "training.png"}
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert spec.id in card
    assert "## The data" in card and "| load | target |" in card
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert len(metrics["scores"]["load"]["tidecast"]["mae"]) == 3

    import argparse

    parser = argparse.ArgumentParser()
    evaluate_command.configure(parser)
    assert evaluate_command.run(parser.parse_args(["--model", str(tmp_path), "--json"])) == 0
    again = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(again["scores"]["load"]["tidecast"]["mae"], evaluation.scores["load"]["tidecast"].mae)


def test_an_interrupted_export_leaves_no_model(fitted, config, daily_file, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise ModelError("the export is wrong")

    monkeypatch.setattr(pipeline, "fit", lambda *args: (fitted.model, fitted.history))
    monkeypatch.setattr(pipeline, "build_graph", lambda model: fitted.graph())
    monkeypatch.setattr(pipeline, "check_parity", broken)
    with pytest.raises(ModelError):
        pipeline.train(config, daily_file, tmp_path, quiet=True)
    assert not (tmp_path / "model.onnx").exists()
