"""A newcomer's first hour: the README's commands, pasted letter by letter, from a CSV to forecasts on a real Kafka.

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

from tests.support.checkout import copy_tree
from tests.support.printed import printed, spans
from tests.support.weather import paste
from tidecast.service.broker.embedded import jars
from tidecast.service.model.session import Model

# The README's ports may be in use here: its commands get a network of their own, with nothing in it but loopback.
OWN_NETWORK = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
LOOPBACK_UP = (
    "import fcntl, os, socket, struct, sys; "
    "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh', b'lo', 1)); "  # SIOCSIFFLAGS, IFF_UP
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


@pytest.fixture(scope="module")
def folder(weather: Path) -> Path:
    """The folder of somebody who has pasted the README's commands for training."""
    return weather


@pytest.mark.timeout(300, func_only=True)
def test_training_on_the_sample_beats_the_simple_forecasts_at_every_lead(folder):
    metrics = json.loads((folder / "build/weather/metrics.json").read_text())["scores"]["temp"]
    ours = metrics.pop("tidecast")["mae"]
    assert set(metrics) == {"persistence", "seasonal naive", "linear autoregression"}
    for name, scores in metrics.items():
        worse = [lead + 1 for lead, (a, b) in enumerate(zip(ours, scores["mae"], strict=True)) if a >= b]
        assert not worse, f"{name} is better {worse} hours ahead"
    tables = (folder / "stdout").read_text().count("linear autoregression")
    assert tables == 2, "train prints the table, and evaluate prints it again"


@pytest.mark.timeout(300, func_only=True)
def test_replay_answers_every_reading_of_the_sample(folder):
    lines = (folder / "build/forecasts.jsonl").read_text().splitlines()
    assert len(lines) == 26115
    record = json.loads(lines[-1])
    assert record["series"] == "LGA"
    assert record["warm"]
    assert len(record["targets"]["temp"]["p50"]) == 24


@pytest.mark.timeout(600)
def test_serving_as_the_docs_say_answers_readings_also_on_own_topics_and_leaves_states_to_look_at(folder):
    if subprocess.run([*OWN_NETWORK, "true"], capture_output=True).returncode:
        pytest.skip("unshare --net is not allowed here, and the printed ports may be in use")
    jars.classpath(print)  # which that network cannot reach
    pasted = f"""{printed("serve")}
echo the states:
{printed("state")}
echo own topic:
{printed("own-topic")}
curl -sf --retry 60 --retry-delay 1 --retry-all-errors http://127.0.0.1:9118/readyz
tidecast produce file training/samples/weather.csv.gz --model build/weather --speed max --limit 30
until curl -s http://127.0.0.1:9118/metrics | grep '^tidecast_forecasts_total 30'; do sleep 0.2; done
kill $! && wait $!
tidecast topics
kill %1 && wait %1"""
    done = paste(pasted, folder, *OWN_NETWORK, sys.executable, "-c", LOOPBACK_UP)
    assert done.returncode == 0, done.stderr
    served, rest = done.stdout.split("the states:\n")
    states, own = rest.split("own topic:\n")
    assert "tidecast_forecasts_total 30" in own and "plant-forecasts" in own
    assert "tidecast_forecasts_total 26115" in served
    assert '"hidden_0"' in served
    assert "JFK" in states and "hidden_0" in states
    *kept, last = [json.loads(line) for line in (folder / "build/states.jsonl").read_text().splitlines()]
    assert {each["series"] for each in kept} == {"EWR", "JFK", "LGA"} and last == {"states": 3}


def test_the_readmes_starter_is_a_model_that_a_worker_accepts(folder):
    done = paste(printed("starter"), folder)
    assert done.returncode == 0, done.stderr
    spec = Model.load(folder / "build/starter").spec
    assert (spec.targets, spec.horizon, len(spec.features)) == (["temp"], 24, 7)


@pytest.mark.timeout(600)
@pytest.mark.long
def test_make_demo_with_seconds_as_the_readme_says_is_shorter(folder, tmp_path):
    shorter = "make demo SECONDS=20"
    assert shorter in [text for _, text in spans()]
    earlier = folder / "home" / ".local" / "share" / "tidecast" / "demo"  # a model is there: nothing is trained
    earlier.mkdir(parents=True)
    (earlier / "model").symlink_to(folder / "build/weather")
    tree = copy_tree(tmp_path / "tidecast")
    (tree / ".venv").symlink_to(sys.prefix)
    done = paste(f"cd {tree}; {shorter}", folder)
    assert done.returncode == 0, done.stderr
    assert "live: 4d of weather readings per second, for 20 s." in done.stderr
    assert "the trained model runs next to the starter" in done.stderr
    for name in ("starter", "weather"):  # each has its figures, on the same readings
        assert re.search(rf"^ +{name}: mean absolute error \d+\.\d\d °F 1h ahead, ", done.stdout, re.MULTILINE), name
    made, read = re.search(r"^([\d,]+) forecasts for ([\d,]+) readings", done.stdout, re.MULTILINE).groups()
    assert made == read  # none is still on its way when it ends
    assert "next, a data file of your own: .venv/bin/tidecast inspect FILE.csv" in done.stderr


def test_a_newer_model_is_put_in_place_as_the_readme_says(folder):
    shutil.copytree(folder / "build/weather", folder / "build/newer")
    done = paste(printed("newer"), folder)
    assert done.returncode == 0, done.stderr
    assert not (folder / "build/weather/model.onnx.new").exists()
