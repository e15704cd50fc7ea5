"""How the engine's cost for each reading grows with the series it holds, and with the model's sizes. No broker.

    python benchmarks/scaling.py [--full] [--readings 100000] [--runs 3] [--models] [--json]

CPU time of this process, the median of the runs, which take turns. The series come in an order of their own in each
round, as sensors do, so that no state lies beside the one before; and each count of series is measured in the same
rounds of its readings, right after two that fill the table. `--full`: a million series too (6 GB). `--models`: only the
second table, the whole forecaster's sizes, one at a time. Linear is: twice the series or the size, twice the cost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import process_time
from typing import Any

import forecaster64
import lstm64
import numpy as np

from service.broker.base import Batch
from service.engines import Engine
from service.model import Model
from service.settings import Settings

BATCH, PARTITIONS, FILL, ROUNDS = 5_000, 4, 2, 8  # ROUNDS at the most, with those that fill the table
SERIES, FULL = (1_000, 10_000, 100_000), 1_000_000
JOBS = {"lstm64": lstm64, "forecaster": forecaster64}
SIZES = {
    "features": (1, 2, 4, 8, 16),
    "horizon": (5, 10, 20, 40),
    "hidden": (32, 64, 128, 256),
    "history": (24, 48, 96, 192),
}
COMMITS = 20


class Filled:
    """An engine with so many series, and the rest of its readings."""

    def __init__(self, model: Model, reading: Any, series: int) -> None:
        self.engine = Engine(Settings(max_series=max(series, FULL)), model, time.monotonic)
        self._reading, self._series, self._offsets = reading, series, [0] * PARTITIONS
        self._order = np.random.default_rng(0)
        for batch in self._batches(range(FILL), FILL * series):
            self.engine.pipeline.process(batch)

    def step(self, readings: int) -> float:
        """CPU seconds of so many readings, after those before."""
        took = 0.0
        for batch in self._batches(range(FILL, ROUNDS), readings):
            began = process_time()
            result = self.engine.pipeline.process(batch)
            took += process_time() - began
            if len(result.forecasts) != len(batch):
                raise SystemExit(f"{len(batch)} readings, {len(result.forecasts)} forecasts")
        return took

    def commit(self) -> float:
        """CPU seconds of what a commit looks at: which states are due, and from where the input would be replayed."""
        rolling, began = self.engine.rolling, process_time()
        for _ in range(COMMITS):
            rolling._slots((), ())
            rolling.snapshots(dict.fromkeys(range(PARTITIONS), 10**9))
        return (process_time() - began) / COMMITS

    def _batches(self, rounds: range, most: int) -> Iterator[Batch]:
        """As a client hands them over, at most so many readings."""
        batch, left = Batch("readings"), most
        for number in rounds:
            for k in self._order.permutation(self._series)[:left].tolist():
                partition, key, value = self._reading(number * self._series + k, self._series, PARTITIONS)
                batch.partitions.append(partition)
                batch.offsets.append(self._offsets[partition])
                batch.timestamps.append(forecaster64.START_MS + 10**11)
                batch.keys.append(key)
                batch.values.append(value)
                batch.headers.append(())
                self._offsets[partition] += 1
                if len(batch) == BATCH:
                    yield batch
                    batch = Batch("readings")
            left -= self._series
            if left <= 0:
                break
        if len(batch):
            yield batch


def cost(model: Model, reading: Any, series: int, readings: int) -> tuple[float, float]:
    """Microseconds a reading, milliseconds a commit."""
    took, done = 0.0, 0
    while done < readings:
        filled = Filled(model, reading, series)
        n = min(readings - done, (ROUNDS - FILL) * series)
        took, done = took + filled.step(n), done + n
    return took / done * 1e6, filled.commit() * 1e3


def by_series(models: dict[str, Model], counts: tuple[int, ...], readings: int, runs: int) -> dict[str, float]:
    """Prints the cost against the number of series; the ratios to linear, the last against the first."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(runs):
        for name, model in models.items():
            for series in counts:
                each = cost(model, JOBS[name].reading, series, readings)  # type: ignore[attr-defined]
                found.setdefault((name, series), []).append(each)
    print("| series | " + " | ".join(f"{name}, µs a reading | of linear | a commit, ms" for name in models) + " |")
    print("|---" * (1 + 3 * len(models)) + "|")
    medians: dict[str, float] = {}
    for series in counts:
        row = f"{series:,}"
        for name in models:
            us = statistics.median(each for each, _ in found[name, series])
            first = statistics.median(each for each, _ in found[name, counts[0]])
            row += f" | {us:.2f} | {us / first:.2f} | {statistics.median(ms for _, ms in found[name, series]):.2f}"
            medians[f"{name}_of_linear"] = round(us / first, 3)
        print(f"| {row} |", flush=True)
    return medians


def by_size(make: Any, folder: Path, readings: int, runs: int) -> dict[str, float]:
    """Prints the cost against the sizes of the whole forecaster; the ratios to linear, the last against the first."""
    print("| of the whole forecaster | size | floats of state | µs a reading | of linear |\n|---|---|---|---|---|")
    medians: dict[str, float] = {}
    for what, sizes in SIZES.items():
        models = {size: Model.load(make(folder / f"{what}-{size}", **{what: size})) for size in sizes}
        found: dict[int, list[float]] = {size: [] for size in sizes}
        for _ in range(runs):
            for size, model in models.items():
                reading = partial(forecaster64.reading, features=size) if what == "features" else forecaster64.reading
                found[size].append(cost(model, reading, 1_000, readings)[0])
        first = statistics.median(found[sizes[0]])
        for size, model in models.items():
            us = statistics.median(found[size])
            ratio = us / first / (size / sizes[0])
            print(f"| {what} | {size} | {model.spec.state_size:,} | {us:.2f} | {ratio:.2f} |", flush=True)
            medians[f"{what}_of_linear"] = round(ratio, 3)
    return medians


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="a million series too")
    parser.add_argument("--readings", type=int, default=100_000, help="timed for each figure of a run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--models", action="store_true", help="only the table of the model's sizes")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object of the medians")
    args = parser.parse_args()
    medians: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder_name, ProcessPoolExecutor(1, get_context("spawn")) as maker:

        def made(job: Any, folder: Path, **sizes: int) -> Path:  # in a process of its own: it needs torch
            return maker.submit(partial(job.make, folder, **sizes)).result()

        if not args.models:
            models = {name: Model.load(made(job, Path(folder_name) / name)) for name, job in JOBS.items()}
            counts = (*SERIES, FULL) if args.full else SERIES
            medians |= by_series(models, counts, args.readings, args.runs)
            print()
        medians |= by_size(partial(made, forecaster64), Path(folder_name), args.readings // 4, args.runs)
    if args.json:
        print(json.dumps(medians))


if __name__ == "__main__":
    main()
