"""The demo as its users run it, with a model that needs no training: it shows, ends, and leaves nothing behind."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from tests.support.models import counting_model

PATIENCE = 90.0
HOUR = 3_600_000
CONFIG = """name = "weather"
[data]
path = "weather.csv.gz"
time = "time_hour"
step = "1h"
series = "origin"
targets = ["temp"]
covariates = ["humid"]
train_until = "2013-09-15T00:00:00Z"
validate_until = "2013-10-25T00:00:00Z"
units = { temp = "°F" }
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = counting_model(
        tmp_path_factory.mktemp("model"), step_ms=HOUR, features=["temp", "humid"], targets=["temp"]
    )
    (directory / "config.toml").write_text(CONFIG)
    return directory


class Demo:
    """A running demo, what it prints, and the processes that it starts."""

    def __init__(self, *flags):
        env = {name: value for name, value in os.environ.items() if not name.startswith("TIDECAST_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tidecast", "demo", *map(str, flags)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.out, self.err = [], []
        self.family = set()
        self._threads = [
            threading.Thread(target=lambda: self.out.extend(iter(self.process.stdout.readline, ""))),
            threading.Thread(target=lambda: self.err.extend(iter(self.process.stderr.readline, ""))),
        ]
        for thread in self._threads:
            thread.start()

    def until(self, pattern):
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            self._look()
            if re.search(pattern, "".join(self.out + self.err)):
                return
            time.sleep(0.05)
        pytest.fail(f"never came: {pattern}\n{''.join(self.out + self.err)}")

    def _look(self):
        with contextlib.suppress(psutil.NoSuchProcess):
            self.family |= set(psutil.Process(self.process.pid).children(recursive=True))

    def end(self):
        """(exit code, stdout, stderr), once it has ended by itself."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < deadline:
            self._look()
            time.sleep(0.05)
        ended = self.process.poll()
        self.kill()
        return ended, "".join(self.out), "".join(self.err)

    def kill(self):
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join()
        self.process.stdout.close()
        self.process.stderr.close()

    def left_running(self):
        return [process for process in self.family if process.is_running()]


@pytest.fixture
def demo():
    started = []

    def start(*flags):
        started.append(Demo(*flags))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def test_the_demo_on_a_kafka_that_is_there_shows_forecasts_and_leaves_no_process_and_no_topic(
    demo, model, broker, kafka, tmp_path
):
    one = demo("--model", model, "--data-dir", tmp_path, "--bootstrap-servers", broker, "--seconds", 10)
    code, out, err = one.end()
    assert code == 0, err
    assert re.search(r"metrics are at http://127\.0\.0\.1:\d+/metrics", err)
    page = re.search(r"open (http://127\.0\.0\.1:\d+) in a browser", err)
    assert page and page[1] in (tmp_path / "page.log").read_text()
    assert re.search(r"EWR  temp \S+ °F  forecast 1h before: \d", out)
    checked = re.findall(r"1h ahead: .*\((\d[\d,]*) forecasts checked\)", out)
    assert checked and int(checked[-1].replace(",", "")) > 0
    assert len(one.family) >= 3 and one.left_running() == []
    assert [topic for topic in kafka.topics() if topic.startswith("demo-")] == []  # other tests have topics there too


def test_ctrl_c_ends_the_demo_well_and_stops_its_kafka_whose_topics_have_their_usual_names_again_and_again(
    demo, model, tmp_path
):
    for _ in range(2):
        one = demo("--model", model, "--data-dir", tmp_path, "--seconds", 600)
        one.until(r"forecasts checked")
        assert "topics=readings,forecasts" in (tmp_path / "page.log").read_text()
        one.process.send_signal(signal.SIGINT)
        code, _, err = one.end()
        assert code == 0, err
        assert "nothing is left running" in err and "Traceback" not in err
        assert "a data file of your own" not in err  # only where it has come to its end
        assert one.left_running() == []


def test_a_worker_that_dies_ends_the_demo_with_its_last_words(demo, model, broker, tmp_path):
    one = demo("--model", model, "--data-dir", tmp_path, "--bootstrap-servers", broker, "--seconds", 600)
    one.until(r"forecasts checked")
    pid = int(re.search(r"pid=(\d+)", (tmp_path / "worker.log").read_text())[1])
    os.kill(pid, signal.SIGKILL)
    code, _, err = one.end()
    assert code == 1
    assert "the worker ended" in err and "partitions assigned" in err and "Traceback" not in err
    assert one.left_running() == []


def test_a_model_that_is_not_there_is_refused_before_anything_is_started(demo, tmp_path):
    code, _, err = demo("--model", tmp_path / "none", "--data-dir", tmp_path / "d").end()
    assert code == 2
    assert "no model directory" in err and "Kafka" not in err
