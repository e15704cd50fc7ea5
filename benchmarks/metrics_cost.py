"""What metrics cost: the time that the loop spends on them for one batch, compared with the pipeline's.

    python benchmarks/metrics_cost.py [--sizes 1 10 100 1000 5000] [--readings 100000] [--runs 5] [--json]

CPU time of this process; the two take turns, batch by batch. Kafka is left out: its share of the time would make that
of metrics smaller. Then the scrapes: a whole page for each, as often as Prometheus comes.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from time import monotonic, process_time, time
from types import SimpleNamespace
from typing import Any

import forecaster64
from engine import backlog_of
from prometheus_client import generate_latest

from tidecast.service.input.rejected import DeadLetterReason
from tidecast.service.model.session import Model
from tidecast.service.observability.liveness import Liveness
from tidecast.service.observability.metrics import Metrics
from tidecast.service.pipeline.batch import BatchResult
from tidecast.service.pipeline.pipeline import Pipeline
from tidecast.service.pipeline.policy import Policy
from tidecast.service.worker.emitted_batches import EmittedBatches
from tidecast.service.worker.worker import Worker

SERIES = 1_000
COMMIT_SECONDS = 0.1  # the default of --commit-interval-ms
SCRAPE_SECONDS = 5.0  # as in deploy/prometheus/prometheus.yml


class Loop:
    """The worker's own way of counting, with the rest of its loop left out."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.batches = EmittedBatches(metrics, monotonic)
        self.pulse = Liveness(monotonic, metrics.note_answer)
        self.own = SimpleNamespace(_metrics=metrics, _clock=monotonic)

    def stage(self, name: str) -> Any:
        return Worker._stage(self.own, name)  # type: ignore[arg-type]

    def turn(self, result: BatchResult) -> None:
        """A turn that polls and answers."""
        metrics = self.metrics
        metrics.last_poll.set(time())
        with self.stage("poll"):
            pass
        self.pulse.note_answer()
        with self.stage("emit"):
            pass
        self.batches.add(result)

    def commit(self) -> None:
        """What a commit adds."""
        metrics = self.metrics
        with self.stage("commit"):
            metrics.transactions.labels("committed").inc()
            metrics.note_commit()
            self.batches.ask()
            self.batches.count()


def measure(model: Model, size: int, readings: int) -> tuple[float, float, float]:
    """Microseconds a batch: of the pipeline, of metrics; and ms of CPU a scrape."""
    pipeline = Pipeline(model, Policy(), output_topic="forecasts", dead_letter_topic="dead-letters")
    metrics = Metrics(model.spec, DeadLetterReason)
    loop = Loop(metrics)
    backlog = backlog_of(forecaster64, readings + 3 * SERIES, SERIES, size)
    for batch in islice(backlog, 3 * SERIES // size):
        loop.turn(pipeline.process(batch))
    work, counting, batches, commits = 0.0, 0.0, 0, 0
    for batch in backlog:
        began = process_time()
        result = pipeline.process(batch)
        between = process_time()
        loop.turn(result)
        if work >= (commits + 1) * COMMIT_SECONDS:
            loop.commit()
            commits += 1
        work, counting, batches = work + between - began, counting + process_time() - between, batches + 1
    began = process_time()
    for _ in range(20):
        generate_latest(metrics.registry)
    return work / batches * 1e6, counting / batches * 1e6, (process_time() - began) / 20 * 1e3


def table(model: Model, sizes: Sequence[int], readings: int, runs: int) -> dict[str, float]:
    """Print a row for each size; the medians."""
    print("| readings a batch | pipeline, µs | metrics, µs | share |\n|---|---|---|---|")
    found: dict[str, float] = {}
    scrape = 0.0
    for size in sizes:
        taken = [measure(model, size, max(size * 20, min(readings, size * 2_000))) for _ in range(runs)]
        work, counting, scrape = (statistics.median(column) for column in zip(*taken, strict=True))
        found[f"share_{size}"] = counting / (work + counting)
        print(f"| {size:,} | {work:,.0f} | {counting:,.1f} | {found[f'share_{size}']:.2%} |", flush=True)
    found["scrape_ms"], found["scrape_share"] = scrape, scrape / 1e3 / SCRAPE_SECONDS
    print(f"\nA scrape takes {scrape:.1f} ms: {found['scrape_share']:.2%} of a core, one each {SCRAPE_SECONDS:g} s.")
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 100, 1_000, 5_000])
    parser.add_argument("--readings", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object of the medians")
    args = parser.parse_args()
    # In a process of its own, as a worker has no torch in it.
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, get_context("spawn")) as maker:
        model = Model.load(maker.submit(forecaster64.make, Path(folder) / "model").result())
    gc.collect()
    gc.freeze()
    found = table(model, args.sizes, args.readings, args.runs)
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
