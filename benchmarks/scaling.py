"""How the engine's cost for each reading grows with the series it holds, and with the model's sizes. No broker.

    python benchmarks/scaling.py [--full] [--batches 60] [--models] [--json]

CPU time of this process, the medians of batches that take turns. The series come in another order in each round, so
that no state is next to the one before, and no forecaster is past its warm-up, so that all write the same. `--full`: a
million series too (2 GB). `--models`: only the second table, the whole forecaster's sizes, one at a time.
Linear is: twice the series at the same cost for each reading; twice the size at twice the cost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import process_time
from typing import Any

import forecaster64
import lstm64
import numpy as np
from reading_batches import PARTITIONS, batches

from tidecast.service.broker.port import Batch
from tidecast.service.config.settings import Settings
from tidecast.service.model.session import Model
from tidecast.service.worker.served_model import ServedModel

BATCH = 5_000
FILL, ROUNDS = 2, 47  # of readings of every series: those that fill the table, and at the most
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
        self.engine = ServedModel(Settings(max_series=max(series, FULL)), [model], time.monotonic)
        self._reading, self._series, self._offsets = reading, series, [0] * PARTITIONS
        self._order = np.random.default_rng(0)
        for batch in self._batches(range(FILL)):
            self.engine.pipeline.process(batch)
        self._rest = self._batches(range(FILL, ROUNDS))

    def step(self) -> float | None:
        """CPU seconds of the next batch, None where there are no more."""
        batch = next(self._rest, None)
        if batch is None or len(batch) < BATCH:
            return None
        began = process_time()
        result = self.engine.pipeline.process(batch)
        took = process_time() - began
        if len(result.forecasts) != len(batch):
            raise SystemExit(f"{len(batch)} readings, {len(result.forecasts)} forecasts")
        return took

    def commit(self) -> float:
        """CPU seconds of what a commit looks at: which states are due, and from where the input would be replayed."""
        rolling, began = self.engine.rolling, process_time()
        for _ in range(COMMITS):
            rolling._slots((), ())
            rolling.snapshot_offsets(dict.fromkeys(range(PARTITIONS), 10**9))
        return (process_time() - began) / COMMITS

    def _batches(self, rounds: range) -> Iterator[Batch]:
        return batches(self._readings(rounds), BATCH, forecaster64.START_MS + 10**11, self._offsets)

    def _readings(self, rounds: range) -> Iterator[tuple[int, bytes, bytes]]:
        for number in rounds:
            for k in self._order.permutation(self._series).tolist():
                yield self._reading(number * self._series + k, self._series, PARTITIONS)


def costs(makers: dict[int, Callable[[], Filled]], batches: int) -> dict[int, tuple[float, float]]:
    """Microseconds a reading, milliseconds a commit, of each. Their batches take turns; the medians."""
    filled = {which: make() for which, make in makers.items()}
    found: dict[int, list[float]] = {which: [] for which in makers}
    for _ in range(batches):
        for which, make in makers.items():
            while (took := filled[which].step()) is None:
                filled[which] = make()
            found[which].append(took / BATCH * 1e6)
    return {which: (statistics.median(us), filled[which].commit() * 1e3) for which, us in found.items()}


def by_series(models: dict[str, Model], counts: tuple[int, ...], batches: int) -> dict[str, float]:
    """Prints the cost against the number of series; the ratios to linear, the last against the first."""
    medians: dict[str, float] = {}
    print("| | series | µs a reading | of linear | what a commit looks at, ms |\n|---|---|---|---|---|")
    for name, model in models.items():
        reading = JOBS[name].reading  # type: ignore[attr-defined]
        found = costs({n: partial(Filled, model, reading, n) for n in counts}, batches)
        for series, (us, commit_ms) in found.items():
            ratio = us / found[counts[0]][0]
            print(f"| {name} | {series:,} | {us:.2f} | {ratio:.2f} | {commit_ms:.2f} |", flush=True)
            medians[f"{name}_of_linear"] = round(ratio, 3)
    return medians


def by_size(make: Any, folder: Path, batches: int) -> dict[str, float]:
    """Prints the cost against the sizes of the whole forecaster; the ratios to linear, the last against the first."""
    medians: dict[str, float] = {}
    print("| of the whole forecaster | size | floats of state | µs a reading | of linear |\n|---|---|---|---|---|")
    for what, sizes in SIZES.items():
        models = {size: Model.load(make(folder / f"{what}-{size}", **{what: size})) for size in sizes}
        makers: dict[int, Callable[[], Filled]] = {}
        for size, model in models.items():
            features = size if what == "features" else 1
            makers[size] = partial(Filled, model, partial(forecaster64.reading, features=features), 1_000)
        found = costs(makers, batches)
        for size, (us, _) in found.items():
            ratio = us / found[sizes[0]][0] / (size / sizes[0])
            print(f"| {what} | {size} | {models[size].spec.state_size:,} | {us:.2f} | {ratio:.2f} |", flush=True)
            medians[f"{what}_of_linear"] = round(ratio, 3)
    return medians


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="a million series too")
    parser.add_argument("--batches", type=int, default=60, help="timed for each figure, of 5,000 readings each")
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
            medians |= by_series(models, counts, args.batches)
            print()
        medians |= by_size(partial(made, forecaster64), Path(folder_name), max(1, args.batches // 3))
    if args.json:
        print(json.dumps(medians))


if __name__ == "__main__":
    main()
