"""An hour's worth of readings through one worker, in a few minutes: its memory and its descriptors must not grow.

python -m tests.chaos.long_run --seconds 180 --rate 4000
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from tests.chaos.feed import Feeder, feed
from tests.support.models import counting_model
from tests.support.serving import Topics, serving
from tidecast.service.broker.embedded.server import EmbeddedBroker
from tidecast.service.model.session import Model

MOST_BYTES_A_READING = 5.0
WARM_UP = 1 / 3  # of the time: caches, arenas and Kafka's buffers fill up


@dataclass(slots=True)
class Figures:
    """What was seen of a worker, twice a second; the lists are parallel."""

    readings: list[int] = field(default_factory=list)  # sent so far
    rss_mb: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def sample(self, process: psutil.Process, readings: int) -> None:
        """Take one sample."""
        self.readings.append(readings)
        with process.oneshot():
            self.rss_mb.append(process.memory_info().rss / 1e6)
            self.descriptors.append(process.num_fds())
            self.threads.append(process.num_threads())

    def last(self, readings: int) -> Figures:
        """The samples of the last so many readings; all of them where there are not so many."""
        first = int(np.searchsorted(self.readings, self.readings[-1] - readings))
        return Figures(self.readings[first:], self.rss_mb[first:], self.descriptors[first:], self.threads[first:])

    @property
    def bytes_a_reading(self) -> float:
        """What each reading leaves behind: the slope of the memory, by least squares."""
        return float(np.polyfit(self.readings, self.rss_mb, 1)[0] * 1e6)

    @property
    def more_descriptors(self) -> int:
        """How many more there are at the end than at the beginning: medians of a third of the samples each."""
        third = max(1, len(self.readings) // 3)
        return int(np.median(self.descriptors[-third:]) - np.median(self.descriptors[:third]))

    def flat(self, bytes_a_reading: float) -> bool:
        """Whether no more than this is left behind by each reading, and no descriptor."""
        return self.bytes_a_reading < bytes_a_reading and self.more_descriptors <= 0

    def __str__(self) -> str:
        at = [0, (len(self.readings) - 1) // 2, -1]
        return (
            f"{self.readings[-1] - self.readings[0]:,} readings · RSS "
            + " → ".join(f"{self.rss_mb[i]:.1f}" for i in at)
            + f" MB, {self.bytes_a_reading:+.1f} bytes a reading · descriptors "
            + " → ".join(f"{self.descriptors[i]}" for i in at)
            + " · threads "
            + " → ".join(f"{self.threads[i]}" for i in at)
        )


def run(
    bootstrap_servers: str, model: Path, done: Callable[[Figures, float], bool], *, rate: float, series: int
) -> Figures:
    """A worker and a feed of its own; readings flow until `done`, which gets the figures and the seconds so far.

    Raises:
        AssertionError: the worker fell behind, or did not end well.
    """
    figures, topics = Figures(), Topics(bootstrap_servers, partitions=4)
    flags = ["--model", str(model), "--dead-letter-limit=0", "--changelog-seconds=3", *topics.flags]
    with serving(*flags, preloaded=False) as worker:
        worker.ready()
        feeder = Feeder(topics.broker, topics.readings, feed(Model.load(model).spec, series, 1), rate)
        feeder.start()
        worker.wait_for("the first forecasts", lambda: worker.metric("tidecast_forecasts_total") > 0)
        process, began = psutil.Process(worker.process.pid), time.monotonic()
        while not figures.readings or not done(figures, time.monotonic() - began):
            figures.sample(process, feeder.sent)
            time.sleep(0.5)
        feeder.finish()
        worker.wait_for("the last readings", lambda: worker.metric("tidecast_readings_total") == feeder.sent)
        code, log = worker.end()
        assert code == 0, log
    topics.broker.close()
    return figures


def main(args: list[str] | None = None) -> int:
    """0 where nothing grows."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.long_run", description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--rate", type=float, default=4_000.0, help="readings a second [%(default)s]")
    parser.add_argument("--series", type=int, default=500, help="[%(default)s]")
    parser.add_argument("--model", type=Path, help="a model directory [one that counts its steps]")
    given = vars(parser.parse_args(args))
    seconds, model = given.pop("seconds"), given.pop("model")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with (
        tempfile.TemporaryDirectory(prefix="long-run-") as folder,
        EmbeddedBroker(Path(folder) / "kafka", heap_mb=384) as kafka,
    ):
        model = model or counting_model(Path(folder) / "model")
        figures = run(kafka.bootstrap_servers, model, lambda _, at: at >= seconds, **given)
    warm = figures.last(int(figures.readings[-1] * (1 - WARM_UP)))
    print(warm)
    flat = warm.flat(MOST_BYTES_A_READING)
    print("flat" if flat else f"it grows: at most {MOST_BYTES_A_READING:g} bytes a reading are allowed, no descriptor")
    return 0 if flat else 1


if __name__ == "__main__":
    raise SystemExit(main())
