"""A model is checked in another process: whatever it does there, the answer is a sentence, within the limits."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support import hostile
from tests.support.models import counting_model
from tidecast.service.errors import ModelError
from tidecast.service.memory_limit import MemoryLimit
from tidecast.service.model import candidate as module
from tidecast.service.model.candidate import Candidate, Limits
from tidecast.service.model.model_file import read_model_file


def verdict(model: Path, **limits: float) -> str:
    """The sentence of the refusal, "" for a model that is accepted."""
    candidate = Candidate(read_model_file(model), limits=Limits(**limits))  # type: ignore[arg-type]
    candidate.begin()
    try:
        candidate.wait()
    except ModelError as error:
        return str(error)
    return ""


def test_a_good_model_is_accepted(tmp_path: Path) -> None:
    assert verdict(counting_model(tmp_path)) == ""


def test_a_graph_that_never_ends_is_refused_when_its_cpu_time_is_used_up(tmp_path: Path) -> None:
    assert "more than 1 s of CPU time" in verdict(hostile.endless(tmp_path), cpu_seconds=1)


def test_a_check_that_waits_for_ever_is_refused_too(tmp_path: Path) -> None:
    assert "did not end within 0.3 s" in verdict(hostile.endless(tmp_path), seconds=0.3)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory")
def test_a_graph_that_takes_all_memory_is_refused(tmp_path: Path) -> None:
    said = verdict(hostile.hungry(tmp_path, gigabytes=1), memory_bytes=300 << 20)
    assert "needs more memory than the" in said and "MB that its check may use" in said


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors do not mind this division")
def test_a_graph_that_crashes_onnxruntime_is_refused(tmp_path: Path) -> None:
    assert "makes onnxruntime crash: its check was ended by SIGFPE" in verdict(hostile.crashing(tmp_path))


def test_a_self_test_of_too_many_readings_is_refused_and_not_run(tmp_path: Path) -> None:
    assert "the self-test has more than 1000 readings, got 50000" in verdict(hostile.long_self_test(tmp_path, 50_000))


def test_metadata_of_megabytes_is_refused_and_the_sentence_stays_short(tmp_path: Path) -> None:
    said = verdict(hostile.much_metadata(tmp_path))
    assert "more than 2097152 bytes of metadata" in said and len(said) < 1_000


def test_the_worker_ends_the_check_when_it_ends(tmp_path: Path) -> None:
    candidate = Candidate(read_model_file(hostile.endless(tmp_path)))
    candidate.begin()
    process = _child(psutil.Process())
    candidate.cancel()
    with pytest.raises(ModelError):
        candidate.wait()
    assert not process.is_running()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only the CPU limit ends it")
def test_a_worker_that_is_killed_leaves_no_check_behind(tmp_path: Path) -> None:
    text = (
        "import sys, time; from tidecast.service.model.candidate import Candidate;"
        "from tidecast.service.model.model_file import read_model_file;"
        "c = Candidate(read_model_file(sys.argv[1])); c.begin(); c.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", text, str(hostile.endless(tmp_path))]) as parent:
        process = _child(psutil.Process(parent.pid))
        parent.kill()
    psutil.wait_procs([process], timeout=30)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_where_the_container_has_too_little_memory_left_the_check_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text("500000000")
    (tmp_path / "memory.current").write_text("450000000")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 10000000\n")
    monkeypatch.setattr(module, "memory_limit", lambda: MemoryLimit(500_000_000, tmp_path))
    model = counting_model(tmp_path)
    assert "57 MB of the container's 476 MB, 112 MB are needed" in verdict(model)
    (tmp_path / "memory.current").write_text("300000000")
    assert verdict(model) == ""


def _child(parent: psutil.Process) -> psutil.Process:
    """The process that checks, once there is one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in parent.children():
            if any("check_candidate" in word for word in child.cmdline()):
                return child
        time.sleep(0.01)
    raise AssertionError("no check was started")
