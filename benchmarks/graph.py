"""The exported graph alone: what a call costs, and which operators are the most expensive.

    python benchmarks/graph.py [--model DIR ...] [--rows 1 16 256 1024] [--runs 7] [--json]

CPU time of this process, the least and the median of the runs, in which the models and batch sizes take turns. Without
`--model`: the whole forecaster of the other benchmarks. With several, they are compared. The operators'
shares are onnxruntime's own profile at 1 and 1,024 rows, whose clock adds to each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import process_time

import forecaster64
import numpy as np
import onnx
import onnxruntime as ort

from tidecast.service.model.model_file import MODEL_FILE
from tidecast.service.model.session import Float32, Int64, Model

SHOWN = 10
WARM = 60  # steps: past the warm-up, and every forecast is scored
CALLS, READINGS = 1_000, 40_000  # at the most, in one run
PROFILED = 200


def inputs(model: Model, rows: int) -> tuple[Float32, Int64, Float32]:
    """x, ts and the state of `rows` series that have had some readings."""
    generator = np.random.default_rng(0)
    x = np.zeros((rows, len(model.spec.features)), np.float32)
    ts = np.full(rows, forecaster64.START_MS, np.int64)
    state = np.tile(model.initial_state, (rows, 1))
    for step in range(WARM):
        x = generator.normal(20, 5, x.shape).astype(np.float32)
        _, state, _ = model.step(x, ts + step * forecaster64.STEP_MS, state)
    return x, ts + WARM * forecaster64.STEP_MS, np.ascontiguousarray(state)


def measure(models: dict[str, Model], sizes: list[int], runs: int) -> dict[tuple[str, int], list[float]]:
    """(model, rows) -> microseconds a call, of each run."""
    given = {(name, rows): inputs(model, rows) for name, model in models.items() for rows in sizes}
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for _ in range(runs):
        for (name, rows), each in given.items():
            step, calls = models[name].step, max(10, min(CALLS, READINGS // rows))
            began = process_time()
            for _ in range(calls):
                step(*each)
            found[name, rows].append((process_time() - began) / calls * 1e6)
    return found


def operators(file: Path, model: Model, rows: int) -> list[tuple[str, int, float]]:
    """(operator, how many, microseconds of a call), the most expensive first, as onnxruntime's profile has it."""
    x, ts, state = inputs(model, rows)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_mem_pattern = False
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/profile"
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        for _ in range(PROFILED):
            session.run(None, {"x": x, "ts": ts, "state": state})
        events = json.loads(Path(session.end_profiling()).read_text())
    spent: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"], event["name"]].append(event["dur"])
    by_operator: dict[str, list[float]] = defaultdict(list)
    for (operator, _), us in spent.items():
        by_operator[operator].append(statistics.median(us))
    return sorted(((name, len(us), sum(us)) for name, us in by_operator.items()), key=lambda row: -row[2])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, action="append", help="a model directory; may be given several times")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 256, 1024])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object of the medians")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not args.model:  # in a process of its own: a worker has no torch in it
            with ProcessPoolExecutor(1, get_context("spawn")) as maker:
                args.model = [maker.submit(forecaster64.make, Path(folder) / "forecaster").result()]
        models = {str(path): Model.load(path) for path in args.model}
        found = measure(models, args.rows, args.runs)
        print("| model | nodes | rows | µs a call: least | median | µs a row |\n|---|---|---|---|---|---|")
        medians: dict[str, float] = {}
        for path, name in zip(args.model, models, strict=True):
            nodes = len(onnx.load(path / MODEL_FILE).graph.node)
            prefix = f"{path.name}_" if len(models) > 1 else ""
            medians[f"{prefix}nodes"] = nodes
            for rows in args.rows:
                least, middle = min(found[name, rows]), statistics.median(found[name, rows])
                medians[f"{prefix}us_{rows}"] = round(middle, 1)
                print(f"| {path.name} | {nodes} | {rows:,} | {least:.1f} | {middle:.1f} | {middle / rows:.2f} |")
        for path, model in zip(args.model, models.values(), strict=True):
            for rows in (1, 1024):
                print(f"\n{path.name}, {rows:,} rows\n\n| operator | how many | µs of a call |\n|---|---|---|")
                for operator, count, us in operators(path / MODEL_FILE, model, rows)[:SHOWN]:
                    print(f"| {operator} | {count} | {us:.1f} |")
    if args.json:
        print(json.dumps(medians))


if __name__ == "__main__":
    main()
