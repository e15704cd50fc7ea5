"""How fast this machine is at the moment, to judge the absolute figures of the other benchmarks.

    python benchmarks/machine.py [--runs 2] [--json]

A loop in Python, a model in onnxruntime, and a byte to a process on another core and back, which is what a record meets
at each hand-over between worker and broker. Where there is a folder `bench-peers`,
some of its contenders too, compared with what they gave when its table was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import lstm64
import numpy as np
from contenders import PEERS
from worker_process import HEAP_MB, STEADY, spread

from tidecast.service.broker.embedded.server import EmbeddedBroker
from tidecast.service.model.session import Model

ROWS = 256
NAMES = ("naive-kp", "raw-kp-pass", "raw-ck-pass-tuned")  # as bench-peers calls them
THEN = "results-2026-11-21.jsonl"
ROUNDS = 21
FIGURES = {
    "python_ns": "a turn of a loop in Python, ns",
    "model_rows_per_s": f"LSTM-64 in onnxruntime, {ROWS} at a time, rows/s",
    "there_and_back_us": "to the other core and back, µs",
}


def python_ns() -> float:
    """One turn of a loop that adds up squares."""
    began, n, total = time.perf_counter(), 200_000, 0
    for i in range(n):
        total += i * i
    return (time.perf_counter() - began) / n * 1e9


def model_rows(model: Model) -> Callable[[], float]:
    """Gives rows/s of LSTM-64 in calls of `ROWS`."""
    x, ts = np.full((ROWS, 1), 0.5, dtype=np.float32), np.full(ROWS, lstm64.START_MS)
    state = np.tile(model.initial_state, (ROWS, 1))  # [rows, state]

    def measured() -> float:
        began, calls = time.perf_counter(), 200
        for _ in range(calls):
            model.step(x, ts, state)
        return ROWS * calls / (time.perf_counter() - began)

    return measured


def there_and_back_us() -> float:
    """A byte to a process on the other core and back, the median."""
    cores = sorted(os.sched_getaffinity(0))
    mine, others = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:  # until the pipe ends
        os.close(others[1])
        os.sched_setaffinity(0, {cores[-1]})
        while os.read(others[0], 1):
            os.write(mine[1], b".")
        os._exit(0)
    os.sched_setaffinity(0, {cores[0]})
    took = []
    for _ in range(1_000):
        began = time.perf_counter()
        os.write(others[1], b".")
        os.read(mine[0], 1)
        took.append(time.perf_counter() - began)
    for end in (*mine, *others):
        os.close(end)
    os.waitpid(child, 0)
    os.sched_setaffinity(0, set(cores))
    return statistics.median(took) * 1e6


def rates(results: Path) -> dict[str, float]:
    """Contender of bench-peers -> records/s, the median of its runs."""
    found = defaultdict(list)
    for line in results.read_text().splitlines():
        run = json.loads(line)
        if run["name"] in NAMES and "rate" in run:
            found[run["name"]].append(run["rate"])
    return {name: statistics.median(of_runs) for name, of_runs in found.items()}


def peers(folder: Path, runs: int) -> Iterator[tuple[str, float, float]]:
    """Contender, records/s then and now."""
    if not PEERS.is_dir():
        return
    with EmbeddedBroker(folder / "kafka", heap_mb=HEAP_MB, java=STEADY) as kafka:
        more = {
            "BENCH_BROKER": kafka.bootstrap_servers,
            "BENCH_MODEL": str(PEERS / "lstm64.onnx"),
            "PY": sys.executable,
        }
        out = folder / "now.jsonl"
        command = [sys.executable, "bench.py", "run", "--reps", str(runs), "--out", str(out), *NAMES]
        subprocess.run(command, cwd=PEERS, env=os.environ | more, stdout=sys.stderr, check=True)
    then, now = rates(PEERS / THEN), rates(out)
    for name in now:
        yield name, then[name], now[name]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2, help="of each contender of bench-peers")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object of the medians")
    args = parser.parse_args()
    found: dict[str, list[float]] = defaultdict(list)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = model_rows(Model.load(lstm64.make(folder / "model")))
        for _ in range(ROUNDS):
            found["python_ns"].append(python_ns())
            found["model_rows_per_s"].append(rows())
            found["there_and_back_us"].append(there_and_back_us())
        print(f"min / median / max of {ROUNDS}\n\n| | |\n|---|---|")
        for key, what in FIGURES.items():
            figures[key] = statistics.median(found[key])
            print(f"| {what} | {spread(found[key])} |", flush=True)
        for number, (peer, then, now) in enumerate(peers(folder, args.runs)):
            if not number:
                print("\n| of bench-peers | records/s then | now | of then |\n|---|---|---|---|")
            figures[f"{peer}_per_s"] = now
            print(f"| {peer} | {then:,.0f} | {now:,.0f} | {now / then:.2f} |")
    if args.json:
        print(json.dumps({key: round(value, 1) for key, value in figures.items()}))


if __name__ == "__main__":
    main()
