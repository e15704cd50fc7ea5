"""An hour's worth of readings through one worker, in a few minutes, and what becomes of its memory and descriptors.

python -m tests.chaos.long_run --seconds 180 --rate 4000
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from tests.chaos.feed import Feeder, feed
from tests.support.models import counting_model
from tests.support.serving import Topics, serving
from tidecast.service.broker.embedded.server import EmbeddedBroker
from tidecast.service.model.session import Model

MOST_MB_A_MINUTE = 1.0
WARM_UP = 1 / 3  # of the time: caches, arenas and Kafka's buffers fill up


@dataclass(slots=True)
class Figures:
    """What was seen of a worker, once a second; the lists are parallel."""

    at: list[float] = field(default_factory=list)  # s since the first reading was answered
    rss_mb: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    readings: float = 0.0

    def look(self, process: psutil.Process, at: float) -> None:
        """Take one sample."""
        self.at.append(at)
        with process.oneshot():
            self.rss_mb.append(process.memory_info().rss / 1e6)
            self.descriptors.append(process.num_fds())
            self.threads.append(process.num_threads())

    @property
    def warm(self) -> int:
        """The first sample after the warm-up."""
        return int(len(self.at) * WARM_UP)

    @property
    def mb_a_minute(self) -> float:
        """The slope of the memory after the warm-up, by least squares."""
        return float(np.polyfit(self.at[self.warm :], self.rss_mb[self.warm :], 1)[0] * 60)

    @property
    def more_descriptors(self) -> int:
        """How many more there are at the end than after the warm-up: medians of ten samples each."""
        return int(np.median(self.descriptors[-10:]) - np.median(self.descriptors[self.warm : self.warm + 10]))

    def __str__(self) -> str:
        at = [self.warm, (self.warm + len(self.at) - 1) // 2, -1]
        return (
            f"{self.readings:,.0f} readings in {self.at[-1]:.0f} s · RSS "
            + " → ".join(f"{self.rss_mb[i]:.1f}" for i in at)
            + f" MB, {self.mb_a_minute:+.2f} MB a minute, {self.bytes_a_reading:+.1f} bytes a reading · descriptors "
            + " → ".join(f"{self.descriptors[i]}" for i in at)
            + " · threads "
            + " → ".join(f"{self.threads[i]}" for i in at)
        )

    @property
    def bytes_a_reading(self) -> float:
        """The same slope, as what each reading would leave behind."""
        return self.mb_a_minute * 1e6 / 60 / (self.readings / self.at[-1])


def run(folder: Path, *, seconds: float, rate: float, series: int, model: Path | None = None) -> Figures:
    """A broker, a worker and a feed of their own; readings flow for so long.

    Raises:
        AssertionError: the worker fell behind, or did not end well.
    """
    model = model or counting_model(folder / "model")
    figures = Figures()
    with EmbeddedBroker(folder / "kafka", heap_mb=384) as kafka:
        topics = Topics(kafka.bootstrap_servers, partitions=4)
        flags = ["--model", str(model), "--dead-letter-limit=0", "--changelog-seconds=3", *topics.flags]
        with serving(*flags) as worker:
            worker.ready()
            feeder = Feeder(topics.broker, topics.readings, feed(Model.load(model).spec, series, 1), rate)
            feeder.start()
            worker.wait_for("the first forecasts", lambda: worker.metric("tidecast_forecasts_total") > 0)
            process, began = psutil.Process(worker.process.pid), time.monotonic()
            while (at := time.monotonic() - began) < seconds:
                figures.look(process, at)
                time.sleep(max(0.0, len(figures.at) - (time.monotonic() - began)))
            feeder.finish()
            worker.wait_for("the last readings", lambda: worker.metric("tidecast_readings_total") == feeder.sent)
            figures.readings = feeder.sent
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
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="long-run-") as folder:
        figures = run(Path(folder), **given)
    print(figures)
    flat = figures.mb_a_minute < MOST_MB_A_MINUTE and figures.more_descriptors <= 0
    print("flat" if flat else f"it grows: at most {MOST_MB_A_MINUTE:g} MB a minute is allowed, and no descriptor")
    return 0 if flat else 1


if __name__ == "__main__":
    raise SystemExit(main())
