"""What the benchmarks share: a worker as its users run it, a process of its own, and the topics and models for it."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from tidecast.service.broker.port import Broker, OutgoingBatch
from tidecast.service.broker.topics import CHANGELOG_CONFIG
from tidecast.service.config.settings import flag

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # a benchmark is run as a file: only its own folder is there
worker_process = importlib.import_module("tests.support.worker_process")

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


class WorkerProcess(worker_process.WorkerProcess):
    """`tidecast serve`; made, it has been started and is ready, `seconds` after its start."""

    patience = PATIENCE

    def __init__(self, model: Path, bootstrap_servers: str, log: Path, settings: Mapping[str, object]) -> None:
        everything = {"model": model, "bootstrap_servers": bootstrap_servers, "http_port": 0} | dict(settings)
        started = time.perf_counter()
        super().__init__(*(f"{flag(n)}={v}" for n, v in everything.items()), log_file=log, preloaded=False)
        try:
            self.ready()
        except BaseException:
            self.kill()
            raise
        self.seconds = time.perf_counter() - started

    def wait(self, test: Callable[[], T]) -> T:
        """What `test` returns, once that is true."""
        return self.wait_for("what is measured", test)

    def metric(self, name: str) -> float:
        """The sum over all labels of tidecast_`name`."""
        return super().metric(f"tidecast_{name}")
