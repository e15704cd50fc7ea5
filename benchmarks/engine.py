"""The engine alone: bytes in, bytes out, the whole pipeline, no broker; what each stage costs, on one core.

    python benchmarks/engine.py [--series 1000] [--batch 5000] [--readings 200000] [--runs 3] [--few] [--json]
    python benchmarks/engine.py --profile lstm64 [--flame FILE]

CPU time of this process (waiting for a core does not count). `--few` adds the catch-up case:
a deep backlog of 1, 4 and 16 series, where little or nothing batches across series. `--profile` prints where Python
spends the time of one model instead (cProfile: it makes Python calls look more expensive than they are). With `--flame`
pyinstrument (`pip install pyinstrument`) samples instead, which costs little: a flame graph as HTML, or a tree as .txt.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import pstats
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from time import process_time
from typing import Any

import forecaster64
import lstm64
import starters
from reading_batches import PARTITIONS, batches

from tidecast.service.broker.port import Batch
from tidecast.service.model.session import Model
from tidecast.service.pipeline.pipeline import Pipeline
from tidecast.service.pipeline.policy import Policy

JOBS: dict[str, Any] = {
    "lstm64": lstm64,
    "forecaster": forecaster64,
    "starter-1": starters.job(1),
    "starter-1-alarms": starters.job(1, 1.0),
    "starter-24": starters.job(24),
}
FEW = (1, 4, 16)
LATER_MS = 10**11  # that much after their event times the records were sent: a backlog
# What is timed, by the pipeline's own parts; the model inside of the step by itself.
STAGES = {
    "_decode": "decode",
    "_split": "slots",
    "_plan_steps": "order",
    "_run_model": "gather, scatter",
    "_encode": "encode",
}
COLUMNS = ("decode", "slots", "order", "model", "gather, scatter", "encode", "rest")


def backlog_of(job: Any, readings: int, series: int, size: int) -> Iterator[Batch]:
    """Whole batches of a job's readings."""
    sent = job.START_MS + LATER_MS
    return batches(job.readings(readings - readings % size, series, PARTITIONS), size, sent, [0] * PARTITIONS)


class Stages:
    """CPU seconds of each stage of a pipeline; what a stage calls that is timed too does not count twice."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = 0.0
        for method, stage in STAGES.items():
            setattr(pipeline, method, self._timed(getattr(pipeline, method), stage))
        champion = pipeline._champions[0]
        champion.step = self._timed(champion.step, "model")  # type: ignore[method-assign]

    def _timed(self, call: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def timed(*given: Any) -> Any:
            before, self._inside, began = self._inside, 0.0, process_time()
            found = call(*given)
            if isinstance(found, Iterator):
                found = list(found)
            took = process_time() - began
            self.seconds[stage] += took - self._inside
            self._inside = before + took
            return found

        return timed


def run(model: Model, backlog: Iterator[Batch], warm: int, *, stages: bool) -> dict[str, float]:
    """Microseconds a reading: in all ("total"), or of each stage. The first `warm` batches do not count."""
    pipeline = Pipeline(model, Policy(), output_topic="forecasts", dead_letter_topic="dead-letters")
    for batch in islice(backlog, warm):
        pipeline.process(batch)
    timed = Stages(pipeline) if stages else None
    readings, took = 0, 0.0
    for batch in backlog:
        began = process_time()
        result = pipeline.process(batch)
        took += process_time() - began
        if len(result.forecasts) != len(batch):
            raise SystemExit(f"{len(batch)} readings, {len(result.forecasts)} forecasts")
        readings += len(batch)
    found = {"total": took} if timed is None else timed.seconds | {"rest": took - sum(timed.seconds.values())}
    return {name: seconds / readings * 1e6 for name, seconds in found.items()}


def measure(models: dict[str, Model], readings: int, series: int, size: int, runs: int) -> dict[str, dict[str, float]]:
    """Job -> microseconds a reading, the median of the runs, which take turns."""
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in models}
    warm = max(1, 60 * series // size)  # a forecaster is past its warm-up, and scores itself
    for number in range(2 * runs):
        for name, model in models.items():
            backlog = backlog_of(JOBS[name], readings + warm * size, series, size)
            for stage, us in run(model, backlog, warm, stages=number % 2 == 1).items():
                found[name][stage].append(us)
    return {name: {stage: statistics.median(us) for stage, us in stages.items()} for name, stages in found.items()}


def show(title: str, found: dict[str, dict[str, float]]) -> None:
    """A table with a row for each model."""
    print(f"\n{title}\n\n| | readings/s | µs a reading | {' | '.join(COLUMNS)} |\n{'|---' * (3 + len(COLUMNS))}|")
    for name, us in found.items():
        stages = " | ".join(f"{us.get(column, 0.0):.2f}" for column in COLUMNS)
        print(f"| {name} | {1e6 / us['total']:,.0f} | {us['total']:.2f} | {stages} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=1_000)
    parser.add_argument("--batch", type=int, default=5_000)
    parser.add_argument("--readings", type=int, default=200_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--few", action="store_true", help="a deep backlog of few series too")
    parser.add_argument("--profile", choices=JOBS, help="cProfile of one model instead")
    parser.add_argument("--flame", type=Path, metavar="FILE", help="with --profile: by pyinstrument, into this file")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object of the medians")
    args = parser.parse_args()
    # In a process of its own: a worker has no torch in it, whose work leaves the heap in another state.
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, get_context("spawn")) as maker:
        models = {name: Model.load(maker.submit(job.make, Path(folder) / name).result()) for name, job in JOBS.items()}
    gc.collect()
    gc.freeze()  # nor are its objects any of the collector's work
    if args.profile:
        backlog = backlog_of(JOBS[args.profile], args.readings, args.series, args.batch)
        if args.flame:
            from pyinstrument import Profiler

            with Profiler(interval=0.0005) as sampled:
                run(models[args.profile], backlog, 1, stages=False)
            tree = sampled.output_text(short_mode=True) if args.flame.suffix == ".txt" else sampled.output_html()
            args.flame.write_text(tree)
            return
        with cProfile.Profile() as profile:
            run(models[args.profile], backlog, 1, stages=False)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        return
    found = measure(models, args.readings, args.series, args.batch, args.runs)
    show(f"{args.series:,} series, batches of {args.batch:,}", found)
    medians = {f"{name.replace('-', '_')}_per_s": round(1e6 / us["total"]) for name, us in found.items()}
    for series in FEW if args.few else ():
        few = measure(models, args.readings // 20, series, min(args.batch, 2_000), args.runs)
        show(f"{series} series, batches of {min(args.batch, 2_000):,}", few)
        medians |= {f"{name}_{series}_series_per_s": round(1e6 / us["total"]) for name, us in few.items()}
    if args.json:
        print(json.dumps(medians))


if __name__ == "__main__":
    main()
