"""A newcomer's first hour: the README's commands, pasted as they stand, from a CSV to forecasts on a real Kafka.

And what they leave is held to what is promised: on the weather sample's test rows the model beats what is cheap.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import free_port

ROOT = Path(__file__).parents[2]


def block(name: str) -> str:
    """The commands of one README block."""
    found = re.search(rf"<!-- run: {name} -->\n```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def paste(commands: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run them in one shell, as a person would, stopping at the first that fails."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TIDECAST_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
    return subprocess.run(
        ["bash", "-emc", commands],
        cwd=folder,
        env={**clean, "PATH": path, "XDG_DATA_HOME": str(folder / "data"), **env},
        text=True,
        capture_output=True,
        timeout=280,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with nothing of the project but its sample."""
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / "training").mkdir()
    (folder / "training" / "samples").symlink_to(ROOT / "training" / "samples")
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> subprocess.CompletedProcess[str]:
    done = paste(block("train"), folder)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.timeout(300)
def test_training_on_the_sample_beats_what_is_cheap_at_every_lead_that_is_printed(trained, folder):
    metrics = json.loads((folder / "build/weather/metrics.json").read_text())["scores"]["temp"]
    ours = metrics.pop("tidecast")["mae"]
    assert set(metrics) == {"persistence", "seasonal naive", "linear autoregression"}
    for name, scores in metrics.items():
        worse = [lead + 1 for lead, (a, b) in enumerate(zip(ours, scores["mae"], strict=True)) if a >= b]
        assert not worse, f"{name} is better {worse} hours ahead"
    assert trained.stdout.count("linear autoregression") == 2  # train prints the table, evaluate prints it again


def test_replay_answers_every_reading_of_the_sample(trained, folder):
    lines = (folder / "build/forecasts.jsonl").read_text().splitlines()
    assert len(lines) == 26115
    record = json.loads(lines[-1])
    assert record["series"] == "LGA"
    assert record["warm"]
    assert len(record["targets"]["temp"]["p50"]) == 24


@pytest.mark.timeout(300)
def test_serving_as_the_readme_says_answers_readings_ends_cleanly_and_leaves_states_to_look_at(trained, folder):
    http, kafka = free_port(), free_port()
    commands = block("serve").replace("9108", str(http))
    # As it stands, but for the pauses, which are long enough on a machine that has nothing else to do.
    answered = f"curl -s http://127.0.0.1:{http}/metrics | grep -q 'forecasts_total 26115'"
    commands, pauses = re.subn("sleep 1;", f"for j in $(seq 200); do {answered} && break || sleep 0.2; done;", commands)
    assert pauses == 1
    done = paste(
        f"{commands}echo the states:\n{block('state')}kill %1 && wait %1",
        folder,
        TIDECAST_BROKER_PORT=str(kafka),
        TIDECAST_BOOTSTRAP_SERVERS=f"127.0.0.1:{kafka}",
        TIDECAST_HTTP_PORT=str(http),
    )
    assert done.returncode == 0, done.stderr
    served, states = done.stdout.split("the states:\n")
    assert "tidecast_forecasts_total 26115" in served
    assert '"hidden_0"' in served
    assert "JFK" in states and "hidden_0" in states
    kept = [json.loads(line) for line in (folder / "build/states.jsonl").read_text().splitlines()]
    assert {each["series"] for each in kept} == {"EWR", "JFK", "LGA"}


def test_a_newer_model_is_put_in_place_as_the_readme_says(trained, folder):
    shutil.copytree(folder / "build/weather", folder / "build/newer")
    done = paste(block("newer"), folder)
    assert done.returncode == 0, done.stderr
    assert not (folder / "build/weather/model.onnx.new").exists()
