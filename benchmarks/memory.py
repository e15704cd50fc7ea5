"""What a worker's memory holds: the states themselves, and what comes on top of them.

    python benchmarks/memory.py [--series 1000 100000 1000000] [--state 264] [--json]

A process for each count, with all of a worker's modules loaded, no broker. Readings go through the pipeline, two of
each series, and the rolling flush takes its records as at a commit; at last all states are flushed at once, as a
worker does that hands its partitions over. RSS is what the process holds when it is filled; the peak is that of its
whole life.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

SERIES = (1_000, 100_000, 1_000_000)
BATCH, STEPS = 5_000, 2
MOST_SERIES = 1_000_000  # that `--max-series auto` keeps


def make_model(folder: Path, state: int) -> Path:
    """An LSTM with so many numbers of state. In a process of its own: it needs torch."""
    import lstm64

    return lstm64.make(folder, hidden=state // 2)


def memory(name: str) -> int:
    """Bytes of this process: VmRSS, or VmHWM, the most it has held."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def fill(path: Path, series: int) -> dict[str, int]:
    """Bytes that this process holds: with the worker's modules, with the model, filled, and at the peak."""
    from lstm64 import readings
    from reading_batches import PARTITIONS, batches

    import tidecast.service.commands.serve
    import tidecast.service.observability.http  # noqa: F401
    from tidecast.service.broker.connect import connect  # noqa: F401
    from tidecast.service.config.settings import Settings
    from tidecast.service.model.session import Model
    from tidecast.service.worker.served_model import ServedModel

    found = {"modules": memory("VmRSS")}
    engine = ServedModel(Settings(max_series=max(series, MOST_SERIES)), [Model.load(path)], time.monotonic)
    found["model"] = memory("VmRSS")
    backlog = readings(STEPS * series, series, PARTITIONS)
    for batch in batches(backlog, BATCH, 1_700_000_000_000, [0] * PARTITIONS):
        engine.pipeline.process(batch)
        for _ in engine.rolling.due():
            pass
    found["filled"] = memory("VmRSS")
    for _ in engine.rolling.due(range(PARTITIONS)):
        pass
    assert len(engine.store) == series
    return found | {"peak": memory("VmHWM")}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, nargs="+", default=SERIES)
    parser.add_argument("--state", type=int, default=264, help="float32 numbers, even")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--fill", nargs=2, metavar=("MODEL", "SERIES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fill:
        print(json.dumps(fill(Path(args.fill[0]), int(args.fill[1]))))
        return
    state_bytes, medians = 4 * args.state, {}
    print(f"state of {args.state} floats, {state_bytes:,} bytes\n")
    print("| series | states, MB | RSS, MB | RSS / states | peak, MB | bytes a series | of them not state |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, get_context("spawn")) as maker:
        path = maker.submit(make_model, Path(folder), args.state).result()
        for series in args.series:
            command = [sys.executable, __file__, "--fill", str(path), str(series)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            each = (found["filled"] - found["model"]) / series
            states, rss, peak = (mb / 1e6 for mb in (series * state_bytes, found["filled"], found["peak"]))
            row = f"{states:,.1f} | {rss:,.0f} | {rss / states:.2f} | {peak:,.0f} | {each:,.0f}"
            print(f"| {series:,} | {row} | {each - state_bytes:,.0f} |", flush=True)
            medians = {"bytes_per_series": round(each), "ratio": round(rss / states, 3)}  # of the last
            medians |= {"rss_mb": round(rss), "peak_mb": round(peak)}
    print(f"\nbefore the first reading: modules {found['modules'] / 1e6:,.0f} MB, model {found['model'] / 1e6:,.0f} MB")
    if args.json:
        print(json.dumps(medians))


if __name__ == "__main__":
    main()
