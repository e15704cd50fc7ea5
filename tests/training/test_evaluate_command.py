"""`tidecast evaluate`: the tables, the JSON, the plots, and models side by side."""

from __future__ import annotations

import argparse
import json
import shutil

import numpy as np
import pytest

from tidecast.service.errors import UsageError
from tidecast.training.commands import evaluate as command
from tidecast.training.config import read_config, write_config
from tidecast.training.export.export import write


@pytest.fixture(scope="module")
def models(fitted, config, dataset, daily_file, tmp_path_factory):
    """Two model directories over the same rows: one as it was fitted, one with a tensor of it spoilt."""
    folder = tmp_path_factory.mktemp("models")
    spoilt = fitted.graph()
    tensor = max((t for t in spoilt.graph.initializer if t.data_type == 1), key=lambda t: len(t.raw_data))
    tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * np.float32(1.005)).tobytes()
    for name, made in (("fitted", fitted.graph()), ("spoilt", spoilt)):
        (folder / name).mkdir()
        write_config(config, daily_file, folder / name)
        write(made, fitted.model, config, dataset, {}, folder / name / "model.onnx")
    return folder


def run(*flags: object) -> int:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return command.run(parser.parse_args([str(flag) for flag in flags]))


def test_the_json_holds_every_measure_of_every_method_by_lead(models, capsys):
    assert run("--model", models / "fitted", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    methods = found["scores"]["load"]
    assert set(methods) == {"tidecast", "persistence", "seasonal naive", "linear autoregression"}
    for scores in methods.values():
        for name in ("mae", "rmse", "mase", "smape", "mape", "nrmse", "pinball", "crps"):
            assert len(scores[name]) == 3
            assert all(value > 0 for value in scores[name])
        assert [i["level"] for i in scores["intervals"]] == [0.9, 0.8, 0.5]
        assert all(a > b for a, b in zip(scores["intervals"][0]["width"], scores["intervals"][2]["width"], strict=True))
    assert methods["tidecast"]["crps"][0] < methods["tidecast"]["mae"][0]  # a spread is worth something


def test_the_tables_fit_and_show_intervals_next_to_the_linear_ones(models, capsys):
    assert run("--model", models / "fitted", "--leads", "1,3") == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 120
    assert "+3h" in out and "+2h" not in out
    for level in ("90 %", "80 %", "50 %"):
        assert f"│ {level} " in out


@pytest.mark.parametrize("leads", ["0", "4", "x", ""])
def test_leads_that_the_model_does_not_have_are_refused(models, leads):
    with pytest.raises(UsageError, match="steps ahead"):
        run("--model", models / "fitted", "--leads", leads)


def test_scaled_scores_are_the_raw_ones_over_the_training_deviation_where_there_is_one_series(models, capsys, dataset):
    run("--model", models / "fitted", "--json")
    raw = json.loads(capsys.readouterr().out)
    run("--model", models / "fitted", "--json", "--scaled")
    scaled = json.loads(capsys.readouterr().out)
    assert scaled["scaled"] is True
    ratio = np.array(raw["scores"]["load"]["tidecast"]["mae"]) / np.array(scaled["scores"]["load"]["tidecast"]["mae"])
    assert (ratio > 5).all() and (ratio < 10).all()  # a wave of amplitude 10 deviates by 7
    np.testing.assert_allclose(raw["scores"]["load"]["tidecast"]["mase"], scaled["scores"]["load"]["tidecast"]["mase"])


def test_plots_are_written_for_one_model_and_for_several(models, tmp_path, capsys):
    run("--model", models / "fitted", "--plots", tmp_path / "one")
    run("--compare", models / "fitted", models / "spoilt", "--plots", tmp_path / "two")
    for folder in ("one", "two"):
        for name in ("error_by_lead.png", "coverage_by_lead.png"):
            assert (tmp_path / folder / name).read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()


def test_models_stand_side_by_side_and_the_best_of_each_column_is_marked(models, capsys):
    assert run("--model", models / "fitted", "--compare", models / "spoilt") == 0
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith("│") and "*" in line]
    assert max(map(len, out.splitlines())) <= 120
    assert "fitted" in out and "spoilt" in out and "persistence" in out
    assert sum(line.count("*") for line in rows) == 7  # three leads, three means, coverage
    run("--compare", models / "fitted", models / "spoilt", "--json")
    found = json.loads(capsys.readouterr().out)["models"]
    better = min(found, key=lambda name: np.mean(found[name]["scores"]["load"]["tidecast"]["mae"]))
    marked = next(line for line in rows if better in line)
    assert marked.split("│")[5].strip().endswith("*")  # the mean of the absolute error


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("validate_until = ", 'validate_until = "2023-12-02T00:00:00Z" # ', "test rows differ"),
        ("horizon = 3", "horizon = 2", "horizons differ"),
        ('targets = [\n    "load",\n]', 'targets = ["heat"]', "targets differ"),
    ],
)
def test_models_that_forecast_something_else_are_refused(models, tmp_path, old, new, why):
    other = tmp_path / "other"
    shutil.copytree(models / "spoilt", other)
    text = (other / "config.toml").read_text()
    assert old in text
    text = text.replace(old, new).replace(
        'covariates = [\n    "heat",\n]', "" if "heat" in new else 'covariates = ["heat"]'
    )
    (other / "config.toml").write_text(text)
    with pytest.raises(UsageError, match=why):
        run(
            "--compare",
            models / "fitted",
            other,
            "--data",
            models / "missing" if why != "test rows differ" else data_of(models),
        )


def data_of(models):
    return models / "fitted" / str(read_config(models / "fitted" / "config.toml").data.path)


def test_one_model_alone_is_not_a_comparison(models):
    with pytest.raises(UsageError, match="at least two"):
        run("--compare", models / "fitted")
    with pytest.raises(UsageError, match="twice"):
        run("--model", models / "fitted", "--compare", models / "fitted")
    with pytest.raises(UsageError, match="nothing to evaluate"):
        run()
