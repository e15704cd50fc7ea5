"""`tidecast publish`: a model that is worse than the current one is not served."""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.support.daily import HOUR, START
from tidecast.service.errors import ModelError, UsageError
from tidecast.service.model.onnx_file import content_hash
from tidecast.service.model.session import Model
from tidecast.training.commands import publish as command
from tidecast.training.config import read_config, write_config
from tidecast.training.export.export import describe, write_model
from tidecast.training.export.parity import fold, onnx_step
from tidecast.training.release.publish import judge


@pytest.fixture(scope="module")
def made(fitted, config, dataset, daily_file, tmp_path_factory):
    """Model directories over the same rows: one as it was fitted, one with its largest tensor spoilt."""
    folder = tmp_path_factory.mktemp("models")
    for name, factor in (("better", 1.0), ("worse", 1.1)):
        (folder / name).mkdir()
        write_config(config, daily_file, folder / name)
        (folder / name / "metrics.json").write_text("{}")
        graph = fitted.graph()
        tensor = max((t for t in graph.graph.initializer if t.data_type == 1), key=lambda t: len(t.raw_data))
        tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * np.float32(factor)).tobytes()
        data = graph.SerializeToString()
        spec = describe(fitted.model, config, dataset, {}, content_hash(data))
        x, ts = np.array([spec.self_test.x], np.float32), np.array([spec.self_test.ts])
        y = fold(onnx_step(data), np.array(spec.initial_state, np.float32), x, ts)[0, -1]
        spec = msgspec.structs.replace(spec, self_test=msgspec.structs.replace(spec.self_test, y=y.ravel().tolist()))
        write_model(graph, spec, folder / name / "model.onnx")
    assert judge(folder / "better", folder / "worse", daily_file).ratio < 0.99  # or the tests below show nothing
    return folder


def run(*flags: object) -> int:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return command.run(parser.parse_args([str(flag) for flag in flags]))


def test_the_first_model_is_published_where_there_is_none(made, tmp_path, capsys):
    assert run("--candidate", made / "worse", "--model", tmp_path / "model") == 0
    assert "there was none before" in capsys.readouterr().out
    assert Model.load(tmp_path / "model").spec.id == Model.load(made / "worse").spec.id


def test_a_better_one_takes_the_place_and_can_itself_be_compared_with_later(made, tmp_path, capsys):
    place = tmp_path / "model"
    run("--candidate", made / "worse", "--model", place)
    assert run("--candidate", made / "better", "--model", place) == 0
    said = capsys.readouterr().out
    assert "it follows daily@" in said and "readings since" in said
    assert Model.load(place).spec.id == Model.load(made / "better").spec.id
    path = read_config(place / "config.toml").data.path
    assert path is not None and (place / path).exists(), "the data's path is relative to where the config now lies"
    assert {p.name for p in place.iterdir()} == {"model.onnx", "config.toml", "metrics.json"}


def test_a_worse_one_is_refused_and_the_one_in_force_is_left_as_it_was(made, tmp_path):
    place = tmp_path / "model"
    run("--candidate", made / "better", "--model", place)
    before = {p.name: p.read_bytes() for p in place.iterdir()}
    with pytest.raises(ModelError, match="is not published: it has 1\\.") as refused:
        run("--candidate", made / "worse", "--model", place)
    assert "stays in force" in str(refused.value)
    assert {p.name: p.read_bytes() for p in place.iterdir()} == before


def test_a_tolerance_lets_one_pass_that_is_a_little_worse(made, tmp_path):
    place = tmp_path / "model"
    run("--candidate", made / "better", "--model", place)
    assert run("--candidate", made / "worse", "--model", place, "--tolerance", "0.9") == 0


def test_the_same_model_again_changes_nothing(made, tmp_path, capsys):
    place = tmp_path / "model"
    run("--candidate", made / "better", "--model", place)
    written = (place / "model.onnx").stat().st_mtime_ns
    assert run("--candidate", made / "better", "--model", place) == 0
    assert "in force already" in capsys.readouterr().out
    assert (place / "model.onnx").stat().st_mtime_ns == written


def test_both_are_measured_by_rows_that_are_new_to_the_one_trained_on_later_dates(made, daily_file, tmp_path):
    """A model in force that has seen what the candidate is tested by must not win by having seen it."""
    later = tmp_path / "later"
    later.mkdir()
    (later / "model.onnx").write_bytes((made / "worse" / "model.onnx").read_bytes())
    config = read_config(made / "worse" / "config.toml")
    moved = msgspec.structs.replace(config.data, validate_until="2023-12-03T10:00:00Z")
    write_config(msgspec.structs.replace(config, data=moved), daily_file, later)
    plain, shifted = (judge(made / "better", other, daily_file) for other in (made / "worse", later))
    assert plain.since == START + 420 * HOUR
    assert shifted.since > plain.since and 0 < shifted.rows < plain.rows


def test_another_task_is_refused_with_what_differs(made, daily_file, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.onnx").write_bytes((made / "worse" / "model.onnx").read_bytes())
    config = read_config(made / "worse" / "config.toml")
    write_config(
        msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, horizon=2)), daily_file, other
    )
    with pytest.raises(UsageError, match="their horizons differ"):
        judge(made / "better", other, daily_file)


def test_a_reader_never_sees_half_a_model(made, tmp_path):
    """Loaded over and over while others are published in its place."""
    place = tmp_path / "model"
    run("--candidate", made / "worse", "--model", place)
    ended, broken = threading.Event(), []

    def read() -> None:
        while not ended.is_set():
            try:
                Model.load(Path(place))
            except ModelError as error:
                broken.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for each in ("better", "worse", "better", "worse"):
        run("--candidate", made / each, "--model", place, "--tolerance", "0.9")
    ended.set()
    reader.join()
    assert broken == []


def test_a_tolerance_that_is_no_share_is_refused(made, tmp_path):
    with pytest.raises(UsageError, match="--tolerance"):
        run("--candidate", made / "better", "--model", tmp_path, "--tolerance", "2")
