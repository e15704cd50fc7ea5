"""A restore from a real broker, in this process: how fast the changelog is read, and what that costs.

    python benchmarks/restore_kafka.py [--series 100000] [--state 426] [--runs 5] [--json]

A changelog with one record for each series is restored by either client, in turns. Seconds count from the first records
that arrive until the last state is in the table; CPU is this process's, from the first question to the broker. The
broker is a server's (`steady`), and the first run of each client is not counted.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import process_time
from typing import Any

from memory import make_model
from restore import PARTITIONS, changelog
from worker_process import PATIENCE, spread

from service.broker.base import Broker
from service.broker.connect import CLIENTS, connect
from service.broker.embedded import EmbeddedBroker
from service.engines import Engines
from service.model import Model
from service.restore import Restore
from service.settings import Settings
from service.topics import CHANGELOG_CONFIG


def fill(broker: Broker, model: Model, series: int, settings: Settings) -> None:
    """The topics, a state of each series, and a commit that fits."""
    broker.create_topic(settings.input_topic, PARTITIONS)
    broker.create_topic(settings.changelog_topic, PARTITIONS, CHANGELOG_CONFIG)
    producer = broker.producer()
    for out in changelog(model, series, settings):
        producer.produce(out)
    producer.flush(PATIENCE)
    producer.close()
    consumer = broker.consumer(group=settings.group)
    consumer.assign(settings.input_topic, dict.fromkeys(range(PARTITIONS), 0))
    consumer.commit(dict.fromkeys(range(PARTITIONS), series), "")
    consumer.close()


def restored(broker: Broker, model: Model, settings: Settings) -> tuple[int, float, float]:
    """Series, seconds, CPU seconds."""
    gc.collect()  # the table before this one
    gc.disable()  # the worker has it look once a second at the most
    consumer = broker.consumer(group=settings.group)
    consumer.assign(settings.input_topic, dict.fromkeys(range(PARTITIONS), 0))
    engines = Engines(settings, model, time.monotonic)
    restore, times = Restore(broker, settings, engines, time.monotonic), list[float]()
    apply = restore._apply

    def timed(batch: Any) -> None:
        times.append(time.perf_counter())
        apply(batch)

    restore._apply = timed  # type: ignore[method-assign]
    restore.begin(range(PARTITIONS))
    began = process_time()
    while restore.partitions:
        restore.step(consumer, 0.2)
    seconds, cpu = time.perf_counter() - times[0], process_time() - began
    restore.close()
    consumer.close()
    return len(engines.current.table), seconds, cpu


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
        with EmbeddedBroker(Path(name) / "kafka", heap_mb=1024, steady=True) as kafka:
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
    medians = {}
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
