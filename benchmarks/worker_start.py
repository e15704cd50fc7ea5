"""How long a worker takes from its start to ready, and what memory it holds for 1,000 series: on a real, idle broker.

    python benchmarks/worker_start.py [--model DIR] [--runs 5]

Without --model, one is trained on the weather sample for two epochs: start and memory do not depend on how good it is.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from service.broker.base import Outgoing
from service.broker.connect import connect
from service.broker.embedded import EmbeddedBroker
from service.model import Model
from service.topics import CHANGELOG_CONFIG

ROOT = Path(__file__).parents[1]
SERIES, STEPS = 1_000, 20
START_MS = 1_700_000_000_000


def get(url: str) -> str | None:
    """The page, None while there is none."""
    try:
        with urllib.request.urlopen(url, timeout=5) as page:
            return page.read().decode()
    except (urllib.error.URLError, OSError):
        return None


class Run:
    """One worker process, from its start to the end."""

    def __init__(self, model: Path, broker: str, group: str, log: Path) -> None:
        self.log = log
        command = [sys.executable, "-m", "service", "serve", "--model", str(model), "--bootstrap-servers", broker]
        started = time.perf_counter()
        with log.open("wb") as out:
            self.process = subprocess.Popen([*command, "--group", group, "--http-port", "0"], stderr=out, cwd=ROOT)
        self.url = self.wait(lambda: (found := re.search(r"url=(http://\S+)", log.read_text())) and found[1])
        self.wait(lambda: get(f"{self.url}/readyz"))
        self.seconds = time.perf_counter() - started

    def wait(self, test):
        """What `test` gives, once it is true."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := test():
                return found
            time.sleep(0.01)
        raise SystemExit(f"the worker did not get so far:\n{self.log.read_text()}")

    def forecasts(self) -> float:
        """How many it has made."""
        found = re.search(r"^tidecast_forecasts_total (\S+)$", get(f"{self.url}/metrics") or "", re.MULTILINE)
        return float(found[1]) if found else 0.0

    def end(self) -> None:
        """SIGTERM, and wait."""
        self.process.terminate()
        self.process.wait(30)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = args.model or folder / "model"
        if args.model is None:
            config = ROOT / "training/samples/weather.toml"
            train = [
                sys.executable,
                "-m",
                "service",
                "train",
                str(config),
                "--out",
                str(model),
                "--epochs",
                "2",
                "--quiet",
            ]
            subprocess.run(train, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        features = Model.load(model).spec.features
        with EmbeddedBroker(folder / "kafka") as kafka:
            broker = connect(kafka.bootstrap_servers)
            for topic in ("readings", "forecasts", "dead-letters"):
                broker.create_topic(topic, 4)
            broker.create_topic("tidecast-state", 4, CHANGELOG_CONFIG)
            runs = [Run(model, kafka.bootstrap_servers, "start", folder / "log") for _ in range(1)]
            runs[0].end()
            seconds = []
            for i in range(args.runs):
                run = Run(model, kafka.bootstrap_servers, f"start-{i}", folder / "log")
                seconds.append(run.seconds)
                if i < args.runs - 1:
                    run.end()
            idle = psutil.Process(run.process.pid).memory_info().rss
            producer = broker.producer()
            for step in range(STEPS):
                out = Outgoing("readings")
                for series in range(SERIES):
                    value = {"ts": START_MS + step * 3_600_000, **dict.fromkeys(features, 20.0 + series % 7)}
                    out.append(f"sensor-{series}".encode(), json.dumps(value).encode())
                producer.produce(out)
            producer.flush(60)
            run.wait(lambda: run.forecasts() >= SERIES * STEPS)
            loaded = psutil.Process(run.process.pid).memory_info().rss
            run.end()
            producer.close()
            broker.close()
    low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
    print(f"start to ready, s (min / median / max of {args.runs}): {low:.2f} / {middle:.2f} / {high:.2f}")
    print(
        f"resident memory, MB: idle {idle / 1e6:.0f}, "
        f"with {SERIES:,} series after {SERIES * STEPS:,} readings {loaded / 1e6:.0f}"
    )


if __name__ == "__main__":
    main()
