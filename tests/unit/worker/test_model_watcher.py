"""The model file is watched: a good new model is taken once; a bad one is refused, and the old one stays in service."""

import logging
import os

import pytest

from tests.support.models import SUCCESSORS, counting_model, publish
from tidecast.service.config.settings import Settings
from tidecast.service.errors import ModelError
from tidecast.service.worker.model_watcher import ModelWatcher


@pytest.fixture
def place(tmp_path):
    return counting_model(tmp_path / "model")


@pytest.fixture
def watch(place):
    return ModelWatcher(Settings(model=str(place)))


def published(place, tmp_path, variant, **changes):
    publish(counting_model(tmp_path / "draft", variant, **changes), place)


def looks(watch, times=3, on_refused=lambda: None):
    for _ in range(times):
        watch.check(on_refused)
    return watch.take_newer()


def test_a_newer_model_is_taken_once(watch, place, tmp_path):
    assert looks(watch) is None
    first = watch.model.spec.id
    published(place, tmp_path, SUCCESSORS[1])
    newer = looks(watch)
    assert newer is not None and newer.spec.id != first
    assert watch.take_newer() is None and looks(watch) is None


def test_a_file_that_is_still_being_copied_is_not_refused_but_waited_for(watch, place, tmp_path, caplog):
    whole = (counting_model(tmp_path / "draft", SUCCESSORS[1]) / "model.onnx").read_bytes()
    for part in range(1, 4):
        (place / "model.onnx").write_bytes(whole[: len(whole) * part // 4])
        watch.check()
        assert watch.take_newer() is None
    (place / "model.onnx").write_bytes(whole)
    assert looks(watch) is not None
    assert "refused" not in caplog.text


def test_a_bad_model_is_refused_once_and_the_next_good_one_is_taken(watch, place, tmp_path, caplog):
    refused = []
    with caplog.at_level(logging.ERROR):
        (place / "model.onnx").write_bytes(b"no model")
        assert looks(watch, 5, lambda: refused.append(1)) is None
    assert len(refused) == 1
    (record,) = caplog.records
    assert record.message == "the new model is refused, the old one stays in service" and record.reason
    published(place, tmp_path, SUCCESSORS[1])
    assert looks(watch) is not None


def test_a_model_of_another_kind_is_refused_with_what_to_do(watch, place, tmp_path, caplog):
    published(place, tmp_path, SUCCESSORS[2], name="another")
    with caplog.at_level(logging.ERROR):
        assert looks(watch) is None
    assert "neither its name nor the layout" in caplog.records[0].reason and "Publish it as" in caplog.records[0].reason


def test_another_name_is_no_matter_where_the_states_mean_the_same(watch, place, tmp_path):
    published(place, tmp_path, SUCCESSORS[1], name="another")
    assert looks(watch) is not None


def test_a_file_that_was_only_touched_or_taken_away_changes_nothing(watch, place, caplog):
    os.utime(place / "model.onnx", ns=(1, 1))
    assert looks(watch) is None
    (place / "model.onnx").unlink()
    assert looks(watch) is None
    assert not caplog.records


def test_when_told_to_it_looks_at_once(watch, place, tmp_path):
    published(place, tmp_path, SUCCESSORS[1])
    watch.check_now()
    watch.check()
    assert watch.take_newer() is not None


def test_a_worker_without_a_model_does_not_start(tmp_path):
    with pytest.raises(ModelError, match="cannot be read"):
        ModelWatcher(Settings(model=str(tmp_path / "none")))


def test_a_newer_file_that_is_not_the_pinned_one_is_refused_with_one_line_and_the_old_one_stays(
    place, tmp_path, caplog
):
    digest = ModelWatcher(Settings(model=str(place))).model.sha256
    watch = ModelWatcher(Settings(model=str(place), model_sha256=digest))
    with caplog.at_level(logging.ERROR):
        published(place, tmp_path, SUCCESSORS[1])
        assert looks(watch, 5) is None
    (line,) = caplog.records
    assert line.message == "the new model is refused, the old one stays in service"
    assert "not the one that was asked for" in line.reason and digest in line.reason
    assert watch.model.sha256 == digest


def test_a_worker_whose_first_model_is_not_the_pinned_one_does_not_start(place):
    with pytest.raises(ModelError, match=r"not the one that was asked for.*--model-sha256"):
        ModelWatcher(Settings(model=str(place), model_sha256="0" * 64))
