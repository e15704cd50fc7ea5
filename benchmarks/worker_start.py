"""How long a worker takes from its start to ready, and what memory it holds for 1,000 series: on a real, idle broker.

    python benchmarks/worker_start.py [--model DIR] [--runs 5]

Without --model, one is trained on the weather sample for two epochs: start and memory do not depend on how good it is.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
from worker_process import WorkerProcess, make_topics, send, spread, trained_model

from tidecast.service.broker.connect import connect
from tidecast.service.broker.embedded.server import EmbeddedBroker
from tidecast.service.model.session import Model

SERIES, STEPS = 1_000, 20
START_MS = 1_700_000_000_000


def readings(features: list[str]) -> Iterator[tuple[int, bytes, bytes]]:
    """(partition, key, value), an hour between two of a series."""
    for step in range(STEPS):
        for series in range(SERIES):
            value = {"ts": START_MS + step * 3_600_000, **dict.fromkeys(features, 20.0 + series % 7)}
            yield series % 4, f"sensor-{series}".encode(), json.dumps(value).encode()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = args.model or trained_model(folder)
        features = Model.load(model).spec.features
        with EmbeddedBroker(folder / "kafka") as kafka:
            broker = connect(kafka.bootstrap_servers)
            topics = make_topics(broker, "start", 4)
            runs = []
            for i in range(args.runs + 1):  # the first one only warms the machine's caches
                if runs:
                    runs[-1].end()
                settings = {**topics, "group": f"start-{i}"}
                runs.append(WorkerProcess(model, kafka.bootstrap_servers, folder / "log", settings))
            run = runs[-1]
            idle = psutil.Process(run.process.pid).memory_info().rss
            send(broker, topics["input_topic"], readings(features))
            run.wait(lambda: run.metric("forecasts_total") >= SERIES * STEPS)
            loaded = psutil.Process(run.process.pid).memory_info().rss
            run.end()
            broker.close()
    print(f"start to ready, s (min / median / max of {args.runs}): {spread([r.seconds for r in runs[1:]], '.2f')}")
    print(
        f"resident memory, MB: idle {idle / 1e6:.0f}, "
        f"with {SERIES:,} series after {SERIES * STEPS:,} readings {loaded / 1e6:.0f}"
    )


if __name__ == "__main__":
    main()
