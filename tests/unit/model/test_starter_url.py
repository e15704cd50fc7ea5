"""Models that are made when they are asked for: --model starter:…"""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

from tidecast.service.errors import ModelError, UsageError
from tidecast.service.model.starter_url import local_model

STARTER = "starter:step=1h&target=temp&horizon=2"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_a_directory_is_taken_as_it_is():
    assert local_model("build/weather") == "build/weather"


def test_a_starter_is_made_once_with_the_flags_that_it_names(cache, monkeypatch):
    calls = []

    def made(words, **_):
        calls.append(words)
        out = Path(words[words.index("--out") + 1])
        out.mkdir()
        (out / "model.onnx").write_bytes(b"graph")
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(subprocess, "run", made)
    first = local_model(STARTER)
    assert local_model(STARTER) == first and (Path(first) / "model.onnx").read_bytes() == b"graph"
    assert len(calls) == 1 and calls[0][4:10] == ["--step", "1h", "--target", "temp", "--horizon", "2"]
    assert local_model(STARTER + "&name=other") != first


@pytest.mark.parametrize("text", ["starter:", "starter:step=1h", "starter:step=1h&target=a&hidden=8",
                                  "starter:step=1h&step=2h&target=a", "starter:step"])  # fmt: skip
def test_a_starter_that_says_too_little_or_something_unknown_is_refused(cache, text):
    with pytest.raises(UsageError, match="says each of step, target once"):
        local_model(text)


def test_without_the_trainer_it_says_what_to_install_or_where_to_make_it(cache, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'tidecast\[train\]'.*tidecast starter --step 1h.*--out DIR"):
        local_model(STARTER)


def test_what_the_trainer_refuses_is_passed_on(cache, monkeypatch):
    said = subprocess.CompletedProcess([], 2, "", "warning\ntidecast: --step must be above 0, got '0'. Give one.\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: said)
    with pytest.raises(ModelError, match="the starter cannot be made: --step must be above 0"):
        local_model(STARTER)
    assert not list(cache.rglob("model.onnx"))
