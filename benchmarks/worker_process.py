"""What the benchmarks share: a worker as its users run it, a process of its own, and the topics and models for it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from tidecast.service.broker.port import Broker, OutgoingBatch
from tidecast.service.broker.topics import CHANGELOG_CONFIG
from tidecast.service.config.settings import flag

ROOT = Path(__file__).parents[1]
PATIENCE = 300.0  # seconds, for what must come
# Kafka's Java, 1 GB: compiled in full while it runs, and seldom stopped to collect garbage, as a server's. That takes a
# minute or so of work.
HEAP_MB = 1024
STEADY = (f"-Xms{HEAP_MB}m", f"-Xmn{HEAP_MB * 2 // 3}m", "-XX:+UseSerialGC")
# As Kafka's own start scripts have it: each stop of the serial collector, of 25 to 50 ms, would be what is measured.
USUAL = (
    f"-Xms{HEAP_MB}m",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
    "-XX:MaxInlineLevel=15",
)

T = TypeVar("T")


def make_topics(
    broker: Broker, name: str, partitions: int, by_broker: Sequence[str] = ("output_topic",)
) -> dict[str, str]:
    """Topics of one run's own, and the settings that name them. Records `by_broker` have its clock as their time."""
    roles = ("input_topic", "output_topic", "dead_letter_topic", "changelog_topic")
    names = {role: f"{role.removesuffix('_topic').replace('_', '-')}-{name}" for role in roles}
    config = {"changelog_topic": CHANGELOG_CONFIG} | {r: {"message.timestamp.type": "LogAppendTime"} for r in by_broker}
    for role, topic in names.items():
        broker.create_topic(topic, partitions, config.get(role))
    return names


def send(broker: Broker, topic: str, records: Iterator[tuple[int, bytes, bytes]]) -> int:
    """Produce (partition, key, value), and wait until Kafka has them; how many."""
    producer, out, n = broker.producer(), OutgoingBatch(topic), 0
    for partition, key, value in records:
        out.append(key, value, partition=partition)
        if len(out) >= 10_000:
            n += len(out)
            producer.produce(out)
            out = OutgoingBatch(topic)
    producer.produce(out)
    producer.flush(PATIENCE)
    producer.close()
    return n + len(out)


def trained_model(folder: Path) -> Path:
    """A model of the weather sample after two epochs, for what does not depend on how good it is."""
    config, model = ROOT / "training/samples/weather.toml", folder / "model"
    train = [sys.executable, "-m", "tidecast", "train", str(config), "--out", str(model), "--epochs", "2", "--quiet"]
    subprocess.run(train, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return model


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """min / median / max."""
    ordered = sorted(values)
    n = len(ordered)
    median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return " / ".join(format(value, form) for value in (ordered[0], median, ordered[-1]))


def get(url: str) -> str | None:
    """The page, None while there is none."""
    try:
        with urllib.request.urlopen(url, timeout=5) as page:
            return page.read().decode()
    except (urllib.error.URLError, OSError):
        return None


class WorkerProcess:
    """`tidecast serve`; made, it has been started and is ready, `seconds` after its start."""

    def __init__(self, model: Path, bootstrap_servers: str, log: Path, settings: Mapping[str, object]) -> None:
        self.log = log
        everything = {"model": model, "bootstrap_servers": bootstrap_servers, "http_port": 0} | dict(settings)
        flags = [f"{flag(name)}={value}" for name, value in everything.items()]
        started = time.perf_counter()
        with log.open("wb") as out:
            self.process = subprocess.Popen([sys.executable, "-m", "tidecast", "serve", *flags], stderr=out, cwd=ROOT)
        try:
            self.url = self.wait(lambda: (found := re.search(r"url=(http://\S+)", log.read_text())) and found[1])
            self.wait(lambda: get(f"{self.url}/readyz"))
        except BaseException:
            self.kill()
            raise
        self.seconds = time.perf_counter() - started

    def wait(self, test: Callable[[], T | None]) -> T:
        """What `test` gives, once it is true."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := test():
                return found
            time.sleep(0.03)  # it answers pages on the core that it works on
        raise SystemExit(f"the worker did not get so far:\n{self.log.read_text()}")

    def metric(self, name: str) -> float:
        """One number of /metrics."""
        found = re.search(rf"^tidecast_{name} (\S+)$", get(f"{self.url}/metrics") or "", re.MULTILINE)
        return float(found[1]) if found else 0.0

    def end(self) -> None:
        """SIGTERM, and wait."""
        self.process.terminate()
        self.process.wait(60)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)
