"""The model file is watched: a good new model is taken once; a bad one is refused, and the old one stays in service."""

import logging
import os

import pytest

from tests.support.models import SUCCESSORS, counting_model, publish
from tidecast.service.config.settings import Settings
from tidecast.service.errors import ModelError
from tidecast.service.model.candidate import Candidate
from tidecast.service.worker.model_watcher import ModelWatcher


@pytest.fixture
def place(tmp_path):
    return counting_model(tmp_path / "model")


@pytest.fixture(autouse=True)
def checks(monkeypatch):
    """The hashes that were given to the other process, in the place of a check that takes a second."""
    found = []
    monkeypatch.setattr(Candidate, "run", lambda candidate: found.append(candidate.file.sha256))
    return found


def watching(place, **settings):
    watch = ModelWatcher(Settings(model=str(place), **settings))
    watch.load()
    return watch


@pytest.fixture
def watch(place):
    return watching(place)


def published(place, tmp_path, variant, **changes):
    publish(counting_model(tmp_path / "draft", variant, **changes), place)


def looks(watch, times=3, on_refused=lambda: None):
    for _ in range(times):
        watch.check(on_refused)
    return (watch.take_newer() or [None])[0]


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
    digest = watching(place).model.sha256
    watch = watching(place, model_sha256=digest)
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


def test_each_new_model_is_checked_by_another_process_before_it_is_loaded(watch, place, tmp_path, checks):
    published(place, tmp_path, SUCCESSORS[1])
    assert looks(watch).sha256 == checks[-1] != checks[0]
    os.utime(place / "model.onnx", ns=(1, 1))
    looks(watch)
    assert len(checks) == 2, "the same content is not checked again"


def test_what_the_check_refuses_is_never_loaded_and_the_old_model_stays(watch, place, tmp_path, caplog, monkeypatch):
    def refuse(candidate):
        raise ModelError("it never ends")

    monkeypatch.setattr(Candidate, "run", refuse)
    refused = []
    published(place, tmp_path, SUCCESSORS[1])
    assert looks(watch, 5, lambda: refused.append(1)) is None
    assert len(refused) == 1 and caplog.records[-1].reason == "it never ends"
    with pytest.raises(ModelError, match="never ends"):
        watching(place)


def test_what_is_loaded_is_what_was_checked_although_the_file_changes_meanwhile(place, tmp_path, monkeypatch):
    first = watching(place).model.sha256
    monkeypatch.setattr(Candidate, "run", lambda candidate: published(place, tmp_path, SUCCESSORS[1]))
    watch = watching(place)
    assert watch.model.sha256 == first
    assert looks(watch) is not None, "the change is found afterwards"


def test_a_shadow_that_is_not_there_yet_is_said_once_and_runs_as_soon_as_it_is(place, tmp_path, caplog):
    late = tmp_path / "late"
    with caplog.at_level(logging.WARNING):
        watch = watching(place, shadow=str(late))
    (line,) = caplog.records
    assert "becomes a shadow as soon as there is" in line.message and line.shadow == str(late)
    assert watch.shadows == [] and looks(watch) is None
    counting_model(late, SUCCESSORS[3], name="late")
    for _ in range(3):
        watch.check()
    model, shadow = watch.take_newer()
    assert (model.sha256, shadow.spec.name) == (watch.model.sha256, "late")
    assert watch.take_newer() is None


def test_a_shadow_that_cannot_run_with_the_model_is_refused_and_all_others_stay(place, tmp_path, caplog):
    shadow, refused = counting_model(tmp_path / "shadow", SUCCESSORS[3], name="shadow"), []
    watch = watching(place, shadow=str(shadow))
    published(shadow, tmp_path, SUCCESSORS[3], name="slower", step_ms=2 * 60_000)
    with caplog.at_level(logging.ERROR):
        assert looks(watch, 5, lambda: refused.append(1)) is None
    assert len(refused) == 1 and caplog.records[0].shadow == str(shadow) and "step" in caplog.records[0].reason
    assert [each.spec.name for each in watch.shadows] == ["shadow"]


def test_a_newer_file_of_a_shadow_takes_its_place(place, tmp_path):
    shadow = counting_model(tmp_path / "shadow", SUCCESSORS[3], name="shadow")
    watch = watching(place, shadow=str(shadow))
    before = watch.shadows[0].sha256
    published(shadow, tmp_path, SUCCESSORS[2], name="shadow")
    for _ in range(3):
        watch.check()
    model, newer = watch.take_newer()
    assert model.sha256 == watch.model.sha256 and newer.sha256 != before


def test_shadows_are_checked_too_and_one_that_cannot_run_with_the_model_is_refused(place, tmp_path, checks):
    shadow, hourly = counting_model(tmp_path / "shadow", SUCCESSORS[2]), tmp_path / "hourly"
    watch = watching(place, shadow=f"{shadow}, ")
    assert [model.spec.id for model in watch.shadows] != [watch.model.spec.id] and len(checks) == 2
    counting_model(hourly, SUCCESSORS[1], step_ms=3_600_000)
    with pytest.raises(ModelError, match=r"the shadow counting@.* has a step of 3600000 ms"):
        watching(place, shadow=f"{shadow},{hourly}")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ModelError):
        watching(place, shadow=str(tmp_path / "empty"))


def test_a_newer_model_that_does_not_fit_the_shadows_is_refused(place, tmp_path, caplog):
    watch = watching(place, shadow=str(counting_model(tmp_path / "shadow", SUCCESSORS[2])))
    published(place, tmp_path, SUCCESSORS[1], step_ms=3_600_000)
    assert looks(watch) is None
    assert "has a step of 60000 ms" in caplog.records[-1].reason
    published(place, tmp_path, SUCCESSORS[1])
    assert looks(watch) is not None
