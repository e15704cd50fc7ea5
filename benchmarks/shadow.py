"""What shadows cost: the engine alone, bytes in, bytes out, with none, one and two, each of the champion's size.

    python benchmarks/shadow.py [--series 1000] [--batch 5000] [--readings 200000] [--runs 5] [--json]

CPU time of this process, in turns; the models are whole forecasters (GRU-64, 48 past values, 5 steps ahead). `bytes of
a state` are those of a series in memory (with what belongs to it, as `--max-series auto` counts) and of its record in
the changelog.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from time import process_time

import forecaster64
from engine import backlog_of

from tidecast.service.broker.port import Batch
from tidecast.service.model.group import ModelGroup
from tidecast.service.model.session import Model
from tidecast.service.pipeline.pipeline import Pipeline
from tidecast.service.pipeline.policy import Policy
from tidecast.service.state.capacity import bytes_per_series
from tidecast.service.state.codec import Codec

SIZES = (64, 65, 66)  # of the recurrent layers: models with the same content would run once


def make(folder: Path, hidden: int) -> Path:
    """A forecaster; in a process of its own: it needs torch."""
    return forecaster64.make(folder, hidden=hidden)


def run(group: ModelGroup, backlog: Iterator[Batch], warm: int) -> float:
    """Microseconds a reading. The first `warm` batches do not count."""
    pipeline = Pipeline(group, Policy(), output_topic="forecasts", dead_letter_topic="dead-letters")
    for batch in islice(backlog, warm):
        pipeline.process(batch)
    readings, took = 0, 0.0
    for batch in backlog:
        began = process_time()
        pipeline.process(batch)
        took += process_time() - began
        readings += len(batch)
    return took / readings * 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=1_000)
    parser.add_argument("--batch", type=int, default=5_000)
    parser.add_argument("--readings", type=int, default=200_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, get_context("spawn")) as maker:
        paths = [maker.submit(make, Path(folder) / str(size), size).result() for size in SIZES]
        models = [Model.load(path) for path in paths]
    groups = [ModelGroup(models[: n + 1]) for n in range(len(models))]
    took: list[list[float]] = [[] for _ in groups]
    warm = max(2, 48 * args.series // args.batch // 4)
    for _ in range(args.runs):
        for n, group in enumerate(groups):
            backlog = backlog_of(forecaster64, args.readings, args.series, args.batch)
            took[n].append(run(group, backlog, warm))
    print("| shadows | readings/s | µs a reading | ratio, min / median / max | bytes of a state: memory | changelog |")
    print("|---|---|---|---|---|---|")
    found = {}
    for n, (group, own) in enumerate(zip(groups, took, strict=True)):
        ratios = sorted(each / alone for each, alone in zip(own, took[0], strict=True))
        each, memory = statistics.median(own), bytes_per_series(group.layout.size)
        codec = Codec(*group.specs)
        three = f"{ratios[0]:.2f} / {statistics.median(ratios):.2f} / {ratios[-1]:.2f}"
        print(f"| {n} | {1e6 / each:,.0f} | {each:.2f} | {three} | {memory:,} | {codec.record_bytes:,} |", flush=True)
        found[f"ratio_{n}"] = round(statistics.median(ratios), 3)
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
