"""A restore from a real broker, in this process: how fast the changelog is read, and what that costs.

    python benchmarks/restore_kafka.py [--series 100000] [--state 426] [--runs 5] [--json]

A changelog with one record for each series is restored by either client, in turns. Seconds count from the first records
that arrive until the last state is in the table; CPU is this process's, from the first question to the broker. The
broker is a server's, and the first run of each client is not counted.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import process_time

from memory import make_model
from restore import fill, restoring
from worker_process import HEAP_MB, STEADY, spread

from tidecast.service.broker.connect import CLIENTS, connect
from tidecast.service.broker.embedded.server import EmbeddedBroker
from tidecast.service.broker.port import Broker
from tidecast.service.config.settings import Settings
from tidecast.service.model.session import Model


def restored(broker: Broker, model: Model, settings: Settings) -> tuple[int, float, float]:
    """Series, seconds, CPU seconds."""
    gc.collect()  # the table before this one
    gc.disable()  # the worker has it look once a second at the most
    times: list[float] = []

    def timed(apply: Callable[[], None]) -> None:
        times.append(time.perf_counter())
        apply()

    with restoring(broker, model, settings, timed) as (run, table):
        began = process_time()
        run()
        seconds, cpu = time.perf_counter() - times[0], process_time() - began
    return len(table), seconds, cpu


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=100_000)
    parser.add_argument("--state", type=int, default=426, help="float32 numbers, even")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object of the medians")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(1, get_context("spawn")) as maker:
        model, settings = Model.load(maker.submit(make_model, Path(name) / "model", args.state).result()), Settings()
        found: dict[str, list[tuple[float, float]]] = {client: [] for client in CLIENTS}
        with EmbeddedBroker(Path(name) / "kafka", heap_mb=HEAP_MB, java=STEADY) as kafka:
            brokers = {client: connect(kafka.bootstrap_servers, client=client) for client in CLIENTS}
            fill(brokers[CLIENTS[0]], model, args.series, settings)
            for _ in range(args.runs + 1):
                for client, broker in brokers.items():
                    n, seconds, cpu = restored(broker, model, settings)
                    if n != args.series:
                        raise SystemExit(f"{client}: {n:,} of {args.series:,}")
                    found[client].append((n / seconds, cpu / n * 1e6))
            for broker in brokers.values():
                broker.close()
    print(f"{args.series:,} series of {args.state} floats\n")
    print("| | series/s, min / median / max | CPU, µs a series, min / median / max |\n|---|---|---|")
    medians: dict[str, float] = {}
    for client, runs in found.items():
        rates, costs = zip(*runs[1:], strict=True)
        print(f"| {client} | {spread(rates)} | {spread(costs, '.2f')} |")
        medians |= {
            f"{client}_per_s": round(statistics.median(rates)),
            f"{client}_us": round(statistics.median(costs), 2),
        }
    if args.json:
        print(json.dumps(medians))


if __name__ == "__main__":
    main()
